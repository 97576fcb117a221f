"""Transcripts of real and of empty segments by Whisper: texts, times, order, what is left out."""

import json

import pytest
import torch

from lit_moss.audio import io
from lit_moss.audio.io import UnreadableAudio
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.evaluate.judges import word_errors
from lit_moss.prepare.check_transcripts import CheckTranscriptsOptions, check_transcript
from lit_moss.prepare.language import simplified
from lit_moss.prepare.transcribe import TranscribeOptions, TranscribeStage

pytest.importorskip("faster_whisper")
RATE = 16_000
SCORES = ("text", "avg_logprob", "no_speech_prob", "asr_words")


def opened(storage, **options) -> TranscribeStage:
    defaults = {"model": "embedded:whisper-tiny", "beam_size": 1, "device": "cpu"}
    stage = TranscribeStage(TranscribeOptions(**(defaults | options)), storage)
    stage.open()
    return stage


@pytest.fixture(scope="module")
def stage() -> TranscribeStage:
    return opened(None)


@pytest.fixture(scope="module")
def spoken(corpus) -> list[tuple[str, torch.Tensor]]:
    """Three sentences and their samples at 16 kHz."""
    utterances = read_manifest(corpus / "train.jsonl")[:3]
    return [(u.text or "", io.read(u.audio, RATE)) for u in utterances]


@pytest.fixture(scope="module")
def recording(spoken, tmp_path_factory) -> list[dict]:
    """The sentences 20 s apart in a recording of 48 kHz; their segments begin 0.5, 1.5 and 0.1 s earlier."""
    path = tmp_path_factory.mktemp("recording") / "long.flac"
    wave_T = torch.zeros(80 * RATE)
    items = []
    for i, (text, speech_T) in enumerate(spoken):
        start, margin = (20 * i + 10) * RATE, (0.5, 1.5, 0.1)[i]
        wave_T[start : start + len(speech_T)] = speech_T
        seconds = margin + len(speech_T) / RATE
        items.append(
            {"audio_filepath": str(path), "offset": start / RATE - margin, "duration": seconds, "said": text}
        )
    up_T = torch.nn.functional.interpolate(wave_T[None, None], scale_factor=3, mode="linear")[0, 0]
    io.write(path, up_T, 48_000)
    return items


@pytest.fixture(scope="module")
def transcribed(stage, recording) -> list[dict]:
    return stage.run(recording).items


def saved(folder, name: str, wave_T: torch.Tensor) -> dict:
    io.write(folder / f"{name}.flac", wave_T, RATE)
    return {"audio_filepath": str(folder / f"{name}.flac"), "duration": len(wave_T) / RATE}


@pytest.mark.slow
@pytest.mark.network
def test_segments_of_a_recording_get_their_texts_and_scores(transcribed, recording):
    assert [item["said"] for item in transcribed] == [item["said"] for item in recording]
    for item in transcribed:
        errors, words = word_errors(item["said"], item["text"])
        assert errors <= 0.2 * words, item["text"]
        assert item["lang"] == "en"
        assert "lang_prob" not in item  # an English model detects nothing
        assert item["asr"] == "embedded:whisper-tiny"
        assert -0.7 < item["avg_logprob"] < 0
        assert 0 <= item["no_speech_prob"] < 0.3
        assert check_transcript(item, CheckTranscriptsOptions()) is None
        json.dumps(item)


@pytest.mark.network
def test_word_times_count_from_the_start_of_the_segment(transcribed, spoken):
    for item, (_, speech_T), margin in zip(transcribed, spoken, (0.5, 1.5, 0.1), strict=True):
        words = item["asr_words"]
        assert " ".join(word[0] for word in words) == item["text"]
        loud = (speech_T.abs() > 0.02).nonzero()
        first, last = (margin + float(loud[i]) / RATE for i in (0, -1))
        assert abs(words[0][2] - first) < 1.0  # the first word's end: Whisper lets its start begin early
        assert abs(words[-1][2] - last) < 0.4
        times = [time for _, start, end, _ in words for time in (start, end)]
        assert times == sorted(times)
        assert 0 <= times[0] <= times[-1] <= item["duration"]
        assert all(0 <= word[3] <= 1 for word in words)


@pytest.mark.slow
@pytest.mark.network
def test_a_unit_does_not_depend_on_what_ran_before(stage, transcribed, recording, tmp_path):
    noise = saved(tmp_path, "noise", 0.1 * torch.randn(5 * RATE))
    stage.run([noise])
    assert stage.run(recording).items == transcribed


@pytest.mark.slow
@pytest.mark.network
def test_a_segment_in_a_batch_and_alone_have_the_same_words(stage, transcribed, recording):
    (alone,) = stage.run(recording[1:2]).items
    assert alone["text"] == transcribed[1]["text"]
    for word, in_batch in zip(alone["asr_words"], transcribed[1]["asr_words"], strict=True):
        assert word[1:3] == pytest.approx(in_batch[1:3], abs=0.021)


@pytest.mark.slow
@pytest.mark.network
def test_segments_over_30_s_are_rejected_and_change_nothing_else(stage, transcribed, recording):
    long = {"audio_filepath": recording[0]["audio_filepath"], "offset": 3.0, "duration": 30.5}
    result = stage.run([recording[0], long, *recording[1:]])
    assert result.items == transcribed
    (rejection,) = result.rejected
    assert rejection.item == long
    assert (rejection.value, rejection.threshold) == (30.5, 30.0)
    whole = {"audio_filepath": recording[0]["audio_filepath"]}  # no duration: the file's own
    assert stage.run([whole]).rejected[0].value == 80.0


@pytest.mark.nightly
@pytest.mark.network
def test_what_is_written_over_silence_and_noise_is_caught(stage, tmp_path):
    generator = torch.Generator().manual_seed(0)
    empty = {
        "silence": torch.zeros(4 * RATE),
        "noise": 0.05 * torch.randn(5 * RATE, generator=generator),
        "hum": 0.2 * torch.sin(2 * torch.pi * 100 * torch.arange(6 * RATE) / RATE),
        "long": 1e-3 * torch.randn(30 * RATE, generator=generator),
    }
    items = stage.run([saved(tmp_path, name, wave_T) for name, wave_T in empty.items()]).items
    assert len(items) == 4
    found = [check_transcript(item, CheckTranscriptsOptions()) for item in items]
    assert None not in found, [item["text"] for item in items]


@pytest.mark.slow
@pytest.mark.network
def test_a_stock_phrase_that_was_said_is_kept(stage, tmp_path):
    from hibari import Hibari

    wave_T = io_resampled(torch.as_tensor(Hibari(threads=1)("Thank you.")).float(), 24_000)
    without_duration = {"audio_filepath": saved(tmp_path, "thanks", wave_T)["audio_filepath"]}
    (item,) = stage.run([without_duration]).items
    assert item["duration"] == pytest.approx(len(wave_T) / RATE)
    assert item["text"].lower().startswith("thank you")
    assert check_transcript(item, CheckTranscriptsOptions()) is None


def io_resampled(wave_T: torch.Tensor, rate_hz: int) -> torch.Tensor:
    from lit_moss.audio.features import Resampler

    resampler = Resampler(rate_hz, RATE)
    return torch.cat([resampler.push(wave_T), resampler.flush()])


@pytest.mark.network
def test_unreadable_sound_is_named(stage, tmp_path, recording):
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(UnreadableAudio, match=r"text\.wav"):
        stage.run([{"audio_filepath": str(tmp_path / "text.wav"), "duration": 1.0}])
    with pytest.raises(UnreadableAudio, match="not inside"):
        stage.run([recording[0] | {"offset": 79.0, "duration": 5.0}])


@pytest.mark.network
def test_languages_that_the_model_does_not_know_are_refused(stage, recording):
    with pytest.raises(UserError, match=r"'zh' is not known to embedded:whisper-tiny, expected en"):
        opened(None, language="zh")
    with pytest.raises(UserError, match="'zh'"):
        stage.run([recording[0] | {"lang": "zh"}])


@pytest.mark.network
@pytest.mark.nightly
def test_the_language_of_each_segment_is_detected_or_taken_from_the_item(recording):
    stage = opened(None, model="embedded:whisper-base", compute_type="int8", word_times=False)
    detected, stated = stage.run([recording[0], recording[0] | {"lang": "zh"}]).items
    assert detected["lang"] == "en"
    assert detected["lang_prob"] > 0.8
    assert stated["lang"] == "zh"
    assert "lang_prob" not in stated
    assert "asr_words" not in stated


def test_units_are_consecutive_segments_of_one_recording():
    stage = TranscribeStage(TranscribeOptions(batch=3), None)
    items = [
        {"audio_filepath": name, "offset": i}
        for name, n in (("a", 7), ("b", 2), ("c", 3), ("a", 1))
        for i in range(n)
    ]
    units = list(stage.units(items))
    assert [item for unit in units for item in unit] == items
    assert [(unit[0]["audio_filepath"], len(unit)) for unit in units] == [
        ("a", 3), ("a", 3), ("a", 1), ("b", 2), ("c", 3), ("a", 1),
    ]  # fmt: skip
    assert all(len({item["audio_filepath"] for item in unit}) == 1 for unit in units)


@pytest.mark.network
def test_another_model_is_another_content():
    contents = [
        TranscribeStage(TranscribeOptions(model=f"embedded:whisper-{size}"), None).content()
        for size in ("tiny", "base")
    ]
    assert contents[0]["weights"] != contents[1]["weights"]
    assert "device" not in contents[0]


@pytest.mark.parametrize("option", ["batch", "beam_size", "threads"])
def test_options_below_one_are_refused(option):
    with pytest.raises(UserError, match=f"{option} is 0"):
        TranscribeOptions(**{option: 0})


def test_chinese_is_written_in_simplified_characters():
    assert simplified("謝謝觀看 OK") == "谢谢观看 OK"
