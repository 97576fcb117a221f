"""`--again true` went on in the MLflow run of before, which kept the old numbers and both tables."""

import json
from dataclasses import dataclass
from pathlib import Path

from database import give_database

from lit_moss.evaluate.evaluation import Evaluation
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.mlflow_access import open_client


@dataclass
class Config:
    name: str
    run_root: str
    again: bool = False


def evaluate(config: Config, right: float) -> RunFolder:
    with Evaluation("toy", config, [], config.again) as evaluation:
        (row,) = evaluation.results(["a"], lambda batch: [{"right": right} for _ in batch], key=str)
        evaluation.finish({"acc": row["right"]}, "# Report\n", [row])
    return evaluation.run


def test_mlflow_has_the_new_numbers_in_a_run_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    first = evaluate(Config("toy", "runs"), 0.25).mlflow_run_id
    again = evaluate(Config("toy", "runs", again=True), 0.75)
    client = open_client()
    run = client.get_run(str(again.mlflow_run_id))
    assert run.data.metrics["acc"] == 0.75
    assert run.data.tags["repeats"] == first
    table = json.loads(Path(client.download_artifacts(run.info.run_id, "items.json")).read_text())
    assert table == {"columns": ["right"], "data": [[0.75]]}
    assert client.get_run(str(first)).data.metrics["acc"] == 0.25
