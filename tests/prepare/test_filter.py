"""Planted bad audio is found, good audio kept, and what was heard is told."""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.audio import io
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.prepare import sound_checks
from lit_moss.prepare.filter import (
    FilterOptions,
    FilterStage,
    _Sound,
    language,
    reference_text,
    sounds_of,
)
from lit_moss.prepare.joined_asr import WINDOW_SEC, Heard, windows
from lit_moss.prepare.sound_checks import Limits
from lit_moss.prepare.storage import Storage

RATE_HZ = 24_000
LIMITS = Limits((6.0, 25.0), 1.5, 1.0, 0.001, (-40.0, -6.0))


def tone(seconds: float, level: float = 0.1) -> np.ndarray:
    return level * np.sin(np.arange(round(seconds * RATE_HZ)) * 0.05).astype(np.float32)


def faults_of(wave: np.ndarray, chars: int = 30) -> list[str]:
    return [fault.reason for fault in sound_checks.faults(wave, RATE_HZ, chars, LIMITS)]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * RATE_HZ), dtype=np.float32)


def test_sounds_break_the_rules_that_they_should():
    assert faults_of(tone(2.0)) == []
    assert faults_of(silence(2.0)) == ["silence"]
    assert faults_of(tone(1.0)) == ["too short for its text"]  # 30 letters at 25 a second are 1.2 s
    assert faults_of(tone(6.6)) == ["too long for its text"]  # at 6 a second 5 s, and 1.5 s more
    assert faults_of(np.concatenate([silence(1.2), tone(2.0)])) == ["leading silence"]
    assert faults_of(np.concatenate([tone(2.0), silence(1.2)])) == ["trailing silence"]
    assert faults_of(tone(2.0, 0.005)) == ["too quiet"]
    assert faults_of(tone(2.0, 0.9)) == ["too loud"]


def test_clipping_is_seen_at_any_level():
    clipped = np.clip(tone(2.0, 1.5), -1, 1)
    assert sound_checks.clipped_share(clipped) > 0.3
    assert sound_checks.clipped_share(0.1 * clipped) == sound_checks.clipped_share(clipped)
    assert sound_checks.clipped_share(tone(2.0)) < 1e-4
    assert sound_checks.clipped_share(silence(1.0)) == 0.0


def test_edges_are_measured():
    wave = np.concatenate([silence(0.5), tone(1.0), silence(0.25)])
    before, sound, after = sound_checks.edges_sec(sound_checks.frame_levels_db(wave, RATE_HZ))
    assert (before, sound, after) == pytest.approx((0.5, 1.0, 0.25), abs=0.011)


def test_windows_hold_what_fits_and_all_of_it():
    waves = [np.full(seconds * 16_000, i, dtype=np.float32) for i, seconds in enumerate((9, 9, 9, 12, 40, 3))]
    groups = list(windows(waves))
    assert [[int(wave[0]) for wave in group] for group in groups] == [[0, 1, 2], [3], [4], [5]]


def test_options_out_of_range_are_refused():
    with pytest.raises(UserError, match="max_wer"):
        FilterOptions(max_wer=0)
    with pytest.raises(UserError, match="'zh'"):
        FilterOptions(fastest={"en": 25.0})


def test_language_of_a_sound():
    assert language({"lang": "zh-CN"}, {}) == "zh"
    assert language({"lang": "en"}, {"lang": "zh"}) == "zh"
    assert language({}, {"spoken": "你好"}) == "zh"
    assert language({}, {"text": "hello"}) == "en"


def test_the_reference_is_what_the_voice_was_given():
    assert reference_text({"text": "5", "spoken": "five"}) == "five"
    assert reference_text({"content": "hello"}) == "hello"
    messages = [{"content": "a"}, {"content": "b", "audio_filepath": "b.wav"}]
    assert [place for place, _ in sounds_of({"messages": messages})] == [1]
    assert [place for place, _ in sounds_of({"audio_filepath": "a.wav"})] == [None]


# --- with Whisper -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> FilterStage:
    pytest.importorskip("faster_whisper")
    stage = FilterStage(FilterOptions(), Storage(str(tmp_path_factory.mktemp("filter"))))
    stage.open()
    return stage


@pytest.fixture(scope="module")
def good(corpus) -> list[dict]:
    return [
        {
            "id": u.id,
            "audio_filepath": str(u.audio),
            "duration": u.duration_sec,
            "spoken": u.text,
            "lang": "en",
        }
        for u in read_manifest(corpus / "train.jsonl")
    ]


def planted(good: list[dict], folder, per_kind: int) -> list[dict]:
    """Another text, half the sound, noise, silence."""
    rng, bad = np.random.default_rng(0), []
    for k, item in enumerate(good[:per_kind]):
        bad.append(item | {"id": f"text-{k}", "spoken": good[k + per_kind]["spoken"]})
        wave = io.read(item["audio_filepath"], RATE_HZ).numpy()
        half = len(wave) // 2
        sounds = {
            "cut": wave[:half],
            "noise": 0.05 * rng.standard_normal(len(wave)),
            "silence": np.zeros(len(wave)),
        }
        for name, sound in sounds.items():
            path = folder / f"{name}-{k}.flac"
            soundfile.write(path, sound, RATE_HZ)
            seconds = len(sound) / RATE_HZ
            bad.append(item | {"id": f"{name}-{k}", "audio_filepath": str(path), "duration": seconds})
    return bad


def run(stage: FilterStage, items: list[dict]) -> tuple[dict[str, dict], dict[str, tuple[str, dict]]]:
    kept, rejected = {}, {}
    for unit in stage.units(iter(items)):
        result = stage.run(unit)
        kept |= {item["id"]: item for item in result.items}
        rejected |= {r.item["id"]: (r.reason, r.item) for r in result.rejected}
    return kept, rejected


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("per_kind", [1, pytest.param(5, marks=pytest.mark.nightly)])
def test_planted_bad_audio_is_dropped_among_good_audio(stage, good, tmp_path, per_kind):
    bad = planted(good, tmp_path, per_kind)
    fine = good[: len(bad)]
    mixed = [item for pair in zip(fine, bad, strict=True) for item in pair]  # neighbours share windows
    kept, rejected = run(stage, mixed)
    assert set(rejected) == {item["id"] for item in bad}
    assert set(kept) == {item["id"] for item in fine}
    reasons = {name.partition("-")[0]: reason for name, (reason, _) in rejected.items()}
    assert reasons["text"] in ("word error rate", "too short for its text", "too long for its text")
    assert reasons["silence"] == "silence"
    for item in kept.values():
        assert item["wer"] < 0.2
        assert item["heard"]


@pytest.mark.slow
@pytest.mark.network
def test_a_conversation_fails_with_one_of_its_messages(stage, good):
    def message(role: str, item: dict) -> dict:
        keys = ("audio_filepath", "duration", "spoken")
        return {"role": role, "content": item["spoken"]} | {k: item[k] for k in keys}

    question, answer = message("user", good[2]), message("assistant", good[7])
    fine = {"id": "fine", "lang": "en", "messages": [question, answer]}
    bad = fine | {"id": "bad", "messages": [question, answer | {"spoken": good[5]["spoken"]}]}
    mute = {"id": "mute", "lang": "en", "messages": [{"role": "user", "content": "Hello there"}]}
    empty = good[0] | {"id": "empty", "spoken": "...", "text": ""}
    kept, rejected = run(stage, [fine, bad, mute, empty])
    assert [m["edits"] for m in kept["fine"]["messages"]] == [0, 0]
    assert rejected["bad"][1]["failed_message"] == 1
    assert rejected["mute"][0] == "no sound"
    assert rejected["empty"][0] == "empty reference"


@pytest.mark.network
def test_few_errors_of_a_short_text_are_forgiven_unless_all_is_wrong(stage):
    def fails(reference: str, heard: str) -> bool:
        sound = _Sound("en", reference, np.zeros(0, dtype=np.float32))
        return stage._compared(sound, Heard(heard)).fault is not None

    assert not fails("turn it off", "turn it of")
    assert fails("turn it off", "burn it of")
    assert fails("yes", "guess")
    assert fails(
        "one two three four five six seven eight nine ten", "one two three four five six seven eight"
    )
    assert not fails("it is 50%", "it is fifty percent")


def test_units_fill_a_window_and_follow_from_the_items_alone(good):
    stage = FilterStage(FilterOptions(), Storage("."))
    units = list(stage.units(iter(good)))
    assert [item for unit in units for item in unit] == good
    assert all(sum(item["duration"] for item in unit) <= WINDOW_SEC for unit in units)
    assert len(units) < len(good) / 2
    unknown = [{k: v for k, v in item.items() if k != "duration"} for item in good[:3]]
    assert [len(unit) for unit in stage.units(iter(unknown))] == [1, 1, 1]
    assert json.dumps(stage.content())
