"""A corpus that gives no items ended `evaluate cloze` in a traceback, or was missing in the report beside a
good one. A set in which every item failed had a perplexity of 1, the best there is."""

import json

import pytest
from spoken_model import spoken_model

from lit_moss.errors import UserError
from lit_moss.evaluate import cloze
from lit_moss.evaluate.cloze import Config

SENTENCES = [f"This is sentence number {n} of a quiet day in the garden." for n in range(8)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(spoken_model(tmp_path_factory.mktemp("cloze") / "model"))


def run(model, tmp_path, items, **options):
    return cloze.run(Config(model, [str(item) for item in items], run_root=str(tmp_path / "runs"), **options))


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(
    ("name", "content", "modalities"),
    [
        ("book.txt", "\n".join(SENTENCES), ["speech-speech"]),
        ("short.txt", "It rains.", None),
        ("chat.jsonl", json.dumps({"messages": [{"role": "user", "content": "Hi"},
                                                {"role": "assistant", "content": "Hello"}]}), None),
    ],
)  # fmt: skip
def test_a_source_without_items_is_one_line(model, tmp_path, name, content, modalities, beside):
    (tmp_path / name).write_text(content + "\n")
    (tmp_path / "good.txt").write_text("\n".join(SENTENCES) + "\n")
    items = [tmp_path / name, *([tmp_path / "good.txt"] if beside else [])]
    wanted = modalities[0] if modalities else "speech-speech, text-text"
    with pytest.raises(UserError, match=rf"{name} gives no items of {wanted}, expected") as error:
        run(model, tmp_path, items, modalities=modalities, speech_tokenizer="none")
    assert "\n" not in str(error.value)


def test_a_set_of_failures_has_no_perplexity(model, tmp_path, capsys):
    lines = {
        "good.jsonl": {"id": 1, "prompt_text": "It is", "good_text": "dark", "bad_text": "a"},
        # Longer than the backbone has positions.
        "long.jsonl": {"id": 1, "prompt_text": "It is " * 400, "good_text": "dark", "bad_text": "a"},
    }
    for name, line in lines.items():
        (tmp_path / name).write_text(json.dumps(line) + "\n")
    metrics = run(model, tmp_path, [tmp_path / name for name in lines], modalities=["text-text"])
    assert metrics["long/text-text/failed"] == metrics["long/text-text/n"] == 1
    assert metrics["long/text-text/whole-mean"] == 0
    assert metrics["good/text-text/ppl"] > 1
    for name in ("ppl", "shorter"):
        assert f"good/text-text/{name}" in metrics
        assert f"long/text-text/{name}" not in metrics
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| long")]
    assert row.endswith("|  |  |")
