"""Word times, chunks and error rates of an older transcript stayed beside a new one; an `id` of 0 was none.

Times of other words then cut speech for interleaving; error rates chose utterances by a text that was gone.
"""

import pytest
import torch

from lit_moss.audio import io
from lit_moss.prepare.stage import OF_A_TEXT, item_id
from lit_moss.prepare.storage import Storage

RATE_HZ = 16_000
OLD = dict.fromkeys(OF_A_TEXT, "old")


@pytest.mark.slow
@pytest.mark.network
def test_a_new_transcript_has_nothing_of_the_older_one(tmp_path):
    pytest.importorskip("faster_whisper")
    from lit_moss.prepare.transcribe import TranscribeOptions, TranscribeStage

    io.write(tmp_path / "a.wav", torch.randn(RATE_HZ) * 0.01, RATE_HZ)
    item = {
        "id": 0,
        "audio_filepath": str(tmp_path / "a.wav"),
        "duration": 1.0,
        "text": "old",
        "speaker": "x",
    }
    stage = TranscribeStage(TranscribeOptions(model="embedded:whisper-tiny", beam_size=1, device="cpu"), None)
    stage.open()
    (new,) = stage.run([item | OLD]).items
    assert not OLD.keys() & new.keys()
    assert new["text"] != "old"
    assert (new["id"], new["speaker"]) == (0, "x")


@pytest.mark.network
def test_segments_have_nothing_of_the_whole_s_text(tmp_path, speech):
    pytest.importorskip("silero_vad")
    from lit_moss.prepare.vad import VadOptions, VadStage

    wave_T = torch.cat(speech)[: 10 * RATE_HZ]
    io.write(tmp_path / "a.wav", wave_T, RATE_HZ)
    stage = VadStage(VadOptions(), Storage("unused"))
    stage.open()
    item = {
        "id": 0,
        "audio_filepath": str(tmp_path / "a.wav"),
        "text": "old",
        "asr_words": [],
        "licence": "CC0",
    }
    segments = stage.run([item | OLD]).items
    assert segments
    for segment in segments:
        assert not {*OLD, "text", "asr_words"} & segment.keys()
        assert segment["licence"] == "CC0"
        assert segment["id"] == f"0@{segment['offset']:.3f}"


def test_an_id_of_zero_is_one():
    assert item_id({"id": 0, "audio_filepath": "a.wav"}) == "0"
    assert item_id({"id": "", "audio_filepath": "a.wav"}) == "a"
