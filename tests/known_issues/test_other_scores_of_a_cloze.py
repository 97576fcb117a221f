"""`--score` and `--against` replaced the report and the intervals of the default evaluation of the items.

The next plain call then printed another score's report, with a comparison that nobody had asked for.
"""

import json

import pytest
from spoken_model import spoken_model

from lit_moss.evaluate import cloze
from lit_moss.evaluate.cloze import Config


@pytest.fixture
def model(tmp_path):
    return spoken_model(tmp_path / "model")


def test_the_default_keeps_its_report_and_its_result(model, tmp_path, capsys):
    endings = [("We stay in.", "It is dry."), ("Good.", "Now the sun shines.")]
    lines = [
        {"id": f"s{i}", "prompt_text": "It rains.", "good_text": good, "bad_text": bad}
        for i, (good, bad) in enumerate(endings)
    ]
    items = tmp_path / "pairs.jsonl"
    items.write_text("\n".join(map(json.dumps, lines)) + "\n")
    plain = {"model": str(model), "items": [str(items)], "run_root": str(tmp_path / "runs"),
             "speech_tokenizer": "none"}  # fmt: skip
    cloze.run(Config(**plain))
    (folder,) = (tmp_path / "runs/cloze").glob("cloze-*")
    before = {file: (folder / file).read_bytes() for file in ("report.md", "result.json", "items.csv")}

    cloze.run(Config(**plain, score="ending-sum", against=str(folder)))
    assert f"## Against {folder} (ending-sum)" in capsys.readouterr().out
    named = f"report-ending-sum-against-{folder.name}.md"
    assert "95 % one of ending-sum" in (folder / named).read_text()
    assert before == {file: (folder / file).read_bytes() for file in before}

    cloze.run(Config(**plain))
    out = capsys.readouterr().out
    assert "95 % one of whole-mean" in out
    assert "Against" not in out


def test_another_score_first_leaves_the_default_behind(model, tmp_path, capsys):
    items = tmp_path / "pairs.jsonl"
    items.write_text(json.dumps({"id": "s", "prompt_text": "A", "good_text": "b", "bad_text": "cd"}) + "\n")
    plain = {"model": str(model), "items": [str(items)], "run_root": str(tmp_path / "runs"),
             "speech_tokenizer": "none"}  # fmt: skip
    cloze.run(Config(**plain, score="ending-mean"))
    assert "95 % one of ending-mean" in capsys.readouterr().out
    (folder,) = (tmp_path / "runs/cloze").glob("cloze-*")
    assert "95 % one of whole-mean" in (folder / "report.md").read_text()
