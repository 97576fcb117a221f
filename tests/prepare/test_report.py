"""The report's tables hold what the steps have written."""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.data.documents import DocumentWriter
from lit_moss.errors import UserError
from lit_moss.llm.rows import RowFormat
from lit_moss.prepare.report import ReportOptions, ReportStage
from lit_moss.prepare.report_data import real_or_synthetic
from lit_moss.prepare.storage import Storage

FORMAT = RowFormat(
    text_vocab_size=100, audio_vocab_size=50, sosp_token_id=1, eosp_token_id=40, modality_pad_token_id=2,
    audio_pad_token_id=3, im_start_id=4, im_end_id=5, end_id=6,
)  # fmt: skip


def write_step(folder, stage: str, sources=(), items=(), rejected=(), counts=None) -> str:
    """A finished step's files, as the engine writes them."""
    folder.mkdir(exist_ok=True, parents=True)
    reasons = [r["reason"] for r in rejected]
    content = {
        "items_in": len(items) + len(rejected),
        "items_out": len(items),
        "speech_sec_in": 0.0,
        "speech_sec_out": float(sum(item.get("duration", 0.0) for item in items)),
        "rejected": {reason: reasons.count(reason) for reason in reasons},
        "counts": counts or {},
    }
    state = {"step": folder.name, "stage": stage, "sources": list(sources), "state": "x", "counts": content}
    (folder / "stage.json").write_text(json.dumps(state))
    (folder / "timing.json").write_text(json.dumps({"seconds": 1.25, "items": len(items), "workers": 1}))
    for name, lines in (("manifest.jsonl", items), ("rejected.jsonl", rejected)):
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder / "manifest.jsonl")


def write_documents(folder, kind: str, documents: list[tuple[str, int, float]]) -> None:
    meta = {"kind": kind, "options": {}, "text_tokenizer": "t", "speech_tokenizer": None}
    with DocumentWriter(folder, meta | {"format": FORMAT.to_dict()}) as writer:
        for name, rows, seconds in documents:
            writer.add(name, [7] * rows, kind=kind, speech_sec=seconds)


@pytest.fixture
def chain(tmp_path):
    """align (two real, one synthetic), filter, interleave, sft."""
    sounds = [str(tmp_path / f"{name}.flac") for name in "abcd"]
    for number, sound in enumerate(sounds):
        wave = np.random.default_rng(number).standard_normal(8 * 16_000) * 0.05
        soundfile.write(sound, wave, 16_000)
    real = {"source": "podcasts", "licence": "CC-BY-4.0", "lang": "en"}
    items = [
        real | {"id": "r0", "audio_filepath": sounds[0], "duration": 1.8, "text": "some"},
        real | {"id": "r1", "audio_filepath": sounds[1], "duration": 3.6, "text": "more", "use": "speech"},
        {"id": "s0", "audio_filepath": sounds[2], "duration": 7.2, "spoken": "句子", "lang": "zh"},
    ]
    align = write_step(tmp_path / "align", "align", items=items)
    conversation = {
        "id": "c0", "lang": "en", "source": "own", "licence": "MIT",
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}],
    }  # fmt: skip
    bad = items[0] | {"id": "bad", "audio_filepath": sounds[3], "spoken": "one", "heard": "won | two"}
    rejected = [
        {"step": "filter", "reason": "word error rate", "value": 2.0, "threshold": 0.2, "item": bad},
        {"step": "filter", "reason": "silence", "value": -90.0, "threshold": -65.0, "item": bad},
    ]
    counts = {"en sounds all": 3, "en words all": 50, "en edits all": 5}
    counts |= {"en sounds kept": 2, "en words kept": 40, "en edits kept": 1}
    filtered = write_step(tmp_path / "filter", "filter", [align], [conversation], rejected, counts)
    interleave = write_step(tmp_path / "interleave", "interleave", ["../align/manifest.jsonl"])
    write_documents(tmp_path / "interleave" / "interleaved", "interleaved", [("a", 10, 3.6), ("b", 30, 3.6)])
    write_documents(tmp_path / "interleave" / "unsupervised", "unsupervised", [("c", 20, 3.6)])
    sft = write_step(tmp_path / "sft", "sft", ["../filter/manifest.jsonl"])
    pairs = [("c0/text-text", 9, 0.0), ("c0/speech-text", 19, 1.0)]
    write_documents(tmp_path / "sft" / "sft", "sft", pairs)
    return [align, filtered, interleave, sft]


def report_of(chain, tmp_path, **options) -> str:
    stage = ReportStage(ReportOptions(**options), Storage(str(tmp_path / "report")))
    result = stage.run_all(chain)
    assert not result.items
    return (tmp_path / "report" / "report.md").read_text()


@pytest.mark.slow
def test_tables_hold_what_the_steps_have_written(chain, tmp_path):
    text = report_of(chain, tmp_path, context=15)
    for line in (
        "| align | align | 3 | 3 | 0 | 0.000 | 0.004 |",
        "| interleave/interleaved | interleaved | 2 | 40 | 0.002 | 30 | 1 | 75.00% |",
        "| sft/sft | sft | 2 | 28 | 0.000 | 19 | 1 | 67.86% |",
        "| English interleaved | 0.001 | 0.001 | 0.000 |",  # 1.8 s, rounded to thousandths of an hour
        "| Chinese interleaved | 0.002 | 0.000 | 0.002 |",
        "| Unsupervised | 0.001 | 0.001 | 0.000 |",
        "| own | en | 1 | 0 | 1 | 0 | 1 |",
        "| podcasts | CC-BY-4.0 | en | real | 2 | 0.002 |",
        "| not stated | not stated | zh | synthetic | 1 | 0.002 |",
        "| own | MIT | en | text | 1 | 0.000 |",
        "| filter | en | all | 3 | 50 | 10.00% |",
        "| filter | en | kept | 2 | 40 | 2.50% |",
        "| filter | word error rate | 1 | 2.0 (limit 0.2) |",
    ):
        assert line in text
    assert text.index("English interleaved") < text.index("Chinese interleaved") < text.index("Unsupervised")


@pytest.mark.slow
def test_pictures_and_sounds_lie_beside_it(chain, tmp_path):
    text = report_of(chain, tmp_path, sounds=2, sound_sec=1.0)
    folder = tmp_path / "report"
    assert {path.name for path in (folder / "pictures").iterdir()} == {
        "durations.png", "lengths.png", "rejections.png",
    }  # fmt: skip
    sounds = sorted((folder / "audio").iterdir())
    assert len(sounds) == 4  # two kept, the worst, one of another rule
    assert all(f"(audio/{path.name})" in text for path in sounds)
    assert max(soundfile.info(path).duration for path in sounds) <= 1.0
    assert "word error rate 2.0 (limit 0.2); spoken: one; heard: won | two" in text
    assert "longer than" not in text  # no context was given


@pytest.mark.slow
def test_the_same_steps_give_the_same_report(chain, tmp_path):
    def content(name: str) -> dict[str, bytes]:
        stage = ReportStage(ReportOptions(sounds=1), Storage(str(tmp_path / name)))
        stage.run_all(chain)
        files = (path for path in (tmp_path / name).rglob("*") if path.is_file())
        return {str(path.relative_to(tmp_path / name)): path.read_bytes() for path in files}

    assert content("one") == content("two")


def test_a_manifest_that_no_step_made_is_reported_too(chain, tmp_path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"text": "words", "source": "a|b", "licence": "MIT", "lang": "en"}\n')
    text = report_of([str(plain)], tmp_path)
    assert "| a\\|b | MIT | en | text | 1 | 0.000 |" in text
    assert "| plain.jsonl |" in text


def test_damaged_steps_and_wrong_options_are_user_errors(chain, tmp_path):
    (tmp_path / "align" / "stage.json").write_text("{}")
    with pytest.raises(UserError, match="damaged step"):
        report_of(chain, tmp_path)
    with pytest.raises(UserError, match="context"):
        ReportOptions(context=1)


def test_what_a_voice_was_given_is_synthetic():
    assert real_or_synthetic({"audio_filepath": "a", "text": "x"}) == "real"
    assert real_or_synthetic({"audio_filepath": "a", "spoken": "x"}) == "synthetic"
    assert real_or_synthetic({"text": "x"}) == "text"
    message = {"role": "user", "content": "x", "audio_filepath": "a", "spoken": "x"}
    assert real_or_synthetic({"messages": [message]}) == "synthetic"
