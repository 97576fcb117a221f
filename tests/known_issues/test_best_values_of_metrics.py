"""Model cards gave the lowest use and perplexity of a codebook, and the lowest share of places found, as the
best ones, and a best bit rate and roughness, of which neither end is the best."""

import pytest
from database import give_database

from lit_moss.release.training_facts import training_of
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.mlflow_access import open_client
from lit_moss.runs.tracking import Tracker

BEST = {
    "val/codebook_used": 0.9, "val/codebook_perplexity": 0.9, "val/align_found": 0.9,
    "val/text_accuracy": 0.9, "heldout/speech_cloze": 0.9, "val/cer": 0.1, "heldout/asr_wer": 0.1,
    "heldout/speech_ppl": 0.1, "val/align_keep": 0.1, "val/mel_distance_db": 0.1,
    "val/bit_rate": None, "val/roughness": None,
}  # fmt: skip


def test_of_a_run_with_results(tmp_path):
    run = RunFolder(tmp_path / "runs/tiny/one")
    run.path.mkdir(parents=True)
    run.begin(None)
    values = dict.fromkeys(BEST, 0.5)
    run.write_result(
        {"step": 3, "stopped": None, "run_id": None, "metrics": values,
         "lowest": dict.fromkeys(BEST, 0.1), "highest": dict.fromkeys(BEST, 0.9)}
    )  # fmt: skip
    (stage,) = training_of(run).stages
    assert {metric.name: metric.best for metric in stage.metrics()} == BEST
    assert {metric.last for metric in stage.metrics()} == {0.5}


@pytest.mark.slow
def test_of_a_run_that_mlflow_knows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    run = RunFolder(tmp_path / "runs/tiny/one")
    run.path.mkdir(parents=True)
    tracker = Tracker("tiny", "one", "runs", None, system_metrics=False)
    run.begin(tracker.run_id)
    for step, value in enumerate((0.1, 0.9, 0.5)):
        tracker.log_metrics(dict.fromkeys(BEST, value), step=step)
    tracker.finalize("success")
    assert open_client().get_run(tracker.run_id).data.metrics["val/codebook_used"] == 0.5
    (stage,) = training_of(run).stages
    assert {metric.name: metric.best for metric in stage.metrics()} == BEST
