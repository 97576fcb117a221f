"""`fit --ckpt_path last` took an evaluation of the same name for the newest run and began at step 0."""

from dataclasses import dataclass

from database import give_database

from lit_moss.cli.choose_run import find_start
from lit_moss.evaluate.evaluation import Evaluation
from lit_moss.runs.checkpoints import checkpoint_of
from lit_moss.runs.folder import RunFolder


@dataclass
class Config:
    name: str
    run_root: str


def test_last_and_auto_pass_over_an_evaluation_of_the_same_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    training = RunFolder(tmp_path / "runs/demo/first")
    training.path.mkdir(parents=True)
    training.begin("a")
    with Evaluation("toy", Config("demo", "runs"), []) as evaluation:
        (row,) = evaluation.results(["a"], lambda batch: [{"right": 1.0} for _ in batch], key=str)
        evaluation.finish({"acc": row["right"]}, "# Report\n", [row])
    assert evaluation.run.is_run()
    assert evaluation.run.mlflow_run_id != "a"
    assert [run.path.name for run in RunFolder.all_in(tmp_path / "runs/demo")] == ["first"]
    for asked in ("last", "auto"):
        assert find_start(asked, tmp_path / "runs/demo", "fit", None) == (training.path, "a")
    assert checkpoint_of(evaluation.folder.parent.parent / "elsewhere") is None
