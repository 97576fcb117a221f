"""The MLflow run of a study, the parent of its trials' runs."""

from pathlib import Path

from lit_moss.errors import UserError
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.mlflow_access import find_run, mlflow_errors, open_client, tracking_uri, without_password
from lit_moss.runs.tracking import Tracker


def study_run(name: str, root: Path, run_id: str | None = None) -> Tracker:
    """The MLflow run of a study: that of an earlier call, or a new one.

    Args:
        name: MLflow experiment, which also contains the study's runs.
        root: Root folder of all runs; the study's own files are in `studies/NAME/study`.
        run_id: Id of the MLflow run, if the caller knows it.

    Raises:
        UserError: if MLflow has no such run.
    """
    folder = RunFolder(root / "studies" / name / "study")
    if run_id is None and folder.is_run():
        run_id = folder.mlflow_run_id
    if run_id is not None:
        with mlflow_errors():
            run = find_run(open_client(), run_id)
        if run is None:
            raise UserError(
                f"MLflow at {without_password(tracking_uri())} has no run {run_id} of study {name!r}: set "
                "MLFLOW_TRACKING_URI to the server that the study was begun with"
            )
    tracker = Tracker(name, "study", str(root / "studies"), run_id, system_metrics=False)
    tracker.experiment  # noqa: B018 - creates or continues the run
    return tracker
