"""A FLAC stream that was piped into a file has no length in its header; libsndfile then says 2^63 - 1 frames.

A manifest line got a duration of 18 million years, and reading to the end asked numpy for an array of that
size: a ValueError, which was no skipped file but the end of the run.
"""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.audio import io
from lit_moss.data import SpeechDataModule


@pytest.fixture
def piped(tmp_path):
    path = tmp_path / "piped.flac"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples; 0 is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert soundfile.info(path).frames > 2**62
    return path


def test_its_length_is_not_made_up(piped):
    with pytest.raises(io.UnreadableAudio, match=r"piped\.flac: the header does not state a length"):
        io.info(piped)


def test_reading_to_its_end_is_refused_and_reading_a_part_works(piped):
    with pytest.raises(io.UnreadableAudio, match="does not state a length"):
        io.read(piped, 16_000)
    assert len(io.read(piped, 16_000, duration_sec=0.5)) == 8000


def test_it_is_skipped_by_name(piped, tmp_path):
    soundfile.write(tmp_path / "good.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text(
        "".join(json.dumps({"audio_filepath": name}) + "\n" for name in ("good.wav", "piped.flac"))
    )
    data = SpeechDataModule(train=[str(manifest)], workers=0)
    data.setup("fit")
    assert data.skipped == {str(piped): f"{piped}: the header does not state a length; re-encode the file"}
    assert next(iter(data.train_dataloader())).ids == ["good"]
