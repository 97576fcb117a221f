"""`prepare synthesize`: every piece of a text is spoken or rejected, the same way in every run."""

import json
from pathlib import Path

import pytest
import soundfile

from lit_moss.errors import UserError
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.synthesize import SynthesizeOptions

STORY = (
    "In 1905, Dr. Smith paid $5.50 for it. Yes. It was a long story about a man who walked 12 km every day. "
    "Nobody knew why he did so, and nobody asked him."
)


def run(texts: list[dict], folder: Path, workers: int = 1, **options):
    source = folder.with_name(f"{folder.name}.jsonl")
    source.write_text("".join(json.dumps(t) + "\n" for t in texts), encoding="utf-8")
    step = Step(
        "synthesize", "synthesize", SynthesizeOptions(**options), (str(source),), str(folder), str(folder)
    )
    result = run_step(step, Machine(workers=workers, shard_items=1 if workers > 1 else None))
    return result, *(
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("manifest.jsonl", "rejected.jsonl")
    )


def files(folder: Path) -> dict[str, bytes]:
    found = [
        folder / "manifest.jsonl",
        folder / "rejected.jsonl",
        *sorted((folder / "audio").rglob("*.flac")),
    ]
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def test_a_text_becomes_utterances_in_order(tmp_path):
    text = {"id": "story", "text": STORY, "score": 3.5, "source": "tales", "licence": "CC0-1.0"}
    _, items, rejected = run([text], tmp_path / "out", max_chars=90)
    assert not rejected
    assert " ".join(i["written"] for i in items) == STORY
    assert [i["text"] for i in items] == [i["written"] for i in items]
    spoken = " ".join(i["spoken"] for i in items)
    assert not set("0123456789$") & set(spoken)
    for words in ("nineteen oh five", "Doctor Smith", "five dollars and fifty cents", "twelve kilometers"):
        assert words in spoken
    assert [i["id"] for i in items] == [f"story-{n:04d}" for n in range(len(items))]
    for item in items:
        assert {k: item[k] for k in ("document", "lang", "speaker", "score", "source", "licence")} == {
            "document": "story", "lang": "en", "speaker": "hibari-heart", "score": 3.5, "source": "tales",
            "licence": "CC0-1.0",
        }  # fmt: skip
        info = soundfile.info(tmp_path / "out" / item["audio_filepath"])
        assert item["duration"] == info.frames / info.samplerate
        assert 6 < len(item["spoken"]) / item["duration"] < 25


def test_what_cannot_be_spoken_is_rejected_with_its_reason_and_leaves_no_hole(tmp_path):
    texts = [
        {"id": "low", "text": STORY, "score": 2.9},
        {"id": "empty", "text": " "},
        {"id": "zh", "text": "今天天气真好，我们去公园散步吧。"},
        {
            "id": "d",
            "text": "We all went home that day. It was a good 🎉 for all of us. Then the sun came out again.",
        },
    ]
    _, items, rejected = run(texts, tmp_path / "out")
    reasons = [(r["item"]["id"], r["reason"], r["value"], r["threshold"]) for r in rejected]
    assert reasons == [
        ("low", "score", 2.9, 3.0),
        ("empty", "no text", None, None),
        ("zh", "no voice for the language", "zh", None),
        ("d-0001", "unspeakable", "🎉", None),
    ]
    assert [i["document"] for i in items] == ["d", "d+1"]


def test_a_killed_run_uses_the_sounds_that_are_there_and_ends_with_the_same_files(tmp_path):
    texts = [{"id": f"t{i}", "text": f"This is the sentence with the number {i}."} for i in range(3)]
    run(texts, tmp_path / "whole")
    whole = files(tmp_path / "whole")
    run(texts, tmp_path / "cut")
    for name in ("manifest.jsonl", "rejected.jsonl", "stage.json"):
        (tmp_path / "cut" / name).unlink()
    for path in (tmp_path / "cut" / "parts").iterdir():
        path.unlink()
    sounds = sorted((tmp_path / "cut" / "audio").rglob("*.flac"))
    sounds[0].unlink()
    kept = {p: p.stat().st_mtime_ns for p in sounds[1:]}
    run(texts, tmp_path / "cut")
    assert files(tmp_path / "cut") == whole
    assert {p: p.stat().st_mtime_ns for p in kept} == kept


def test_pace_is_drawn_by_text_or_by_utterance(tmp_path):
    text = {"id": "t", "text": "The first sentence of the text is here. " * 4}
    same = run([text], tmp_path / "same", max_chars=40, min_speed=0.8, max_speed=1.2)[1]
    each = run([text], tmp_path / "each", max_chars=40, min_speed=0.8, max_speed=1.2, voice_per="utterance")[
        1
    ]
    assert len({i["duration"] for i in same}) == 1
    assert len({i["duration"] for i in each}) > 1


@pytest.mark.nightly
def test_two_workers_write_the_same_bytes_as_one(tmp_path):
    texts = [{"id": f"t{i}", "text": f"This is the sentence with the number {i}."} for i in range(4)]
    run(texts, tmp_path / "one", min_speed=0.9, max_speed=1.1)
    run(texts, tmp_path / "two", workers=2, min_speed=0.9, max_speed=1.1)
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_scores_on_another_scale_are_refused(tmp_path):
    texts = [{"id": str(i), "text": "A text.", "score": i / 200} for i in range(150)]
    with pytest.raises(UserError, match=r"all from 0 to 1 .* 0\.6"):
        run(texts, tmp_path / "out")
    _, items, rejected = run(texts[-3:], tmp_path / "out2", min_score=0.7375)
    assert (len(items), len(rejected)) == (2, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"voices": []},
        {"min_speed": 1.2},
        {"max_speed": 3.0},
        {"min_score": 6},
        {"threads": 0},
        {"max_chars": 5},
    ],
)
def test_options_that_cannot_be_are_refused(tmp_path, options):
    with pytest.raises(UserError, match="expected"):
        run([{"id": "a", "text": "A text."}], tmp_path / "out", **options)


@pytest.mark.nightly
@pytest.mark.network
def test_a_piece_of_too_many_phonemes_is_said_in_parts(tmp_path):
    text = "the extraordinarily straightforward characteristics, " * 18
    _, items, rejected = run(
        [{"id": "long", "text": text}], tmp_path / "out", voices=["embedded:kokoro/af_bella"], max_chars=2000
    )
    assert not rejected
    assert len(items) == 1
    assert items[0]["duration"] > 18 * 1.5
