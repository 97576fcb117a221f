"""`Evaluation`: resumes behind the last complete item, is read when done, closed forms of its interval."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from lit_moss.errors import UserError
from lit_moss.evaluate.evaluation import FAILED, Evaluation, markdown_table, wilson


@dataclass
class Config:
    model: str
    name: str = "toy"
    run_root: str = "runs"
    batch_size: int = 2
    again: bool = False


@pytest.fixture
def config(tmp_path: Path) -> Config:
    model = tmp_path / "model.txt"
    model.write_text("one")
    return Config(str(model), run_root=str(tmp_path / "runs"))


def evaluate(config: Config, judge, items=("a", "b", "c", "d", "e")):
    with Evaluation("toy", config, [config.model], config.again) as evaluation:
        if (metrics := evaluation.done()) is not None:
            return evaluation, metrics
        results = evaluation.results(items, judge, config.batch_size, key=str)
        right = [r.get("right", 0) for r in results]
        return evaluation, evaluation.finish({"acc": sum(right) / len(right)}, "# Report\n", results)


def test_a_killed_evaluation_goes_on_behind_its_last_complete_line(config):
    seen = []

    def dies(batch):
        if "c" in batch:
            raise KeyboardInterrupt
        seen.extend(batch)
        return [{"right": 1} for _ in batch]

    with pytest.raises(KeyboardInterrupt):
        evaluate(config, dies)
    items = next(Path(config.run_root).glob("toy/*/items.jsonl"))
    assert [json.loads(line)["item"] for line in items.read_text().splitlines()] == ["a", "b"]
    with items.open("a") as file:
        file.write('{"item": "c", "resu')  # what a kill leaves

    def judge(batch):
        seen.extend(batch)
        return [{"right": 0} for _ in batch]

    _, metrics = evaluate(config, judge)
    assert seen == ["a", "b", "c", "d", "e"]
    assert metrics == {"acc": 0.4}
    assert len(items.read_text().splitlines()) == 5


def test_one_that_is_done_is_read_and_a_changed_model_is_judged_again(config, capsys):
    calls = []

    def judge(batch):
        calls.append(batch)
        return [{"right": 1} for _ in batch]

    first, _ = evaluate(config, judge)
    number = len(calls)
    second, metrics = evaluate(Config(**{**vars(config), "batch_size": 5}), judge)
    assert (len(calls), second.folder, metrics) == (number, first.folder, {"acc": 1.0})
    assert "done before" in capsys.readouterr().out
    evaluate(Config(**{**vars(config), "again": True}), judge)
    assert len(calls) == 2 * number
    Path(config.model).write_text("two, trained further")
    third, _ = evaluate(config, judge)
    assert third.folder != first.folder
    assert len(calls) == 3 * number


def test_failures_are_named_and_kept(config, capsys):
    def judge(batch):
        return [{FAILED: "no sound", "right": 0} if item == "d" else {"right": 1} for item in batch]

    evaluation, metrics = evaluate(config, judge)
    assert metrics["acc"] == 0.8
    assert "d: no sound; counted as wrong" in capsys.readouterr().err
    assert (evaluation.folder / "report.md").read_text() == "# Report\n"


def test_items_with_the_same_name_are_refused(config):
    with pytest.raises(UserError, match="two items are called 'a'"):
        evaluate(config, lambda batch: [{} for _ in batch], ["a", "b", "a"])


def test_wilson_interval():
    low, high = wilson(5, 10)  # the textbook's (0.2366, 0.7634)
    assert low == pytest.approx(0.2366, abs=1e-4)
    assert high == pytest.approx(0.7634, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 20)[0] == 0.0


def test_markdown_table():
    text = markdown_table([{"a": 0.12345, "b": None, "c": "x|y"}])
    assert text == "| a | b | c |\n|---|---|---|\n| 0.123 |  | x\\|y |\n"
