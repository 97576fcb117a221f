"""An MLflow database made once: its migrations cost 0.9 s of computing, and nearly every run needs one."""

import functools
import os
import shutil
import tempfile
from pathlib import Path


@functools.cache
def _empty() -> Path:
    from mlflow import MlflowClient

    path = Path(tempfile.mkdtemp(prefix="lit_moss_database_")) / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


def give_database(folder: Path) -> None:
    """Puts an empty database where a run in `folder` would make its own (tests/test_cli.py sees that)."""
    if "MLFLOW_TRACKING_URI" not in os.environ and not (folder / "mlflow.db").exists():
        shutil.copyfile(_empty(), folder / "mlflow.db")
