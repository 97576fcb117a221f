"""Code, library versions and machine of a run."""

import os
import platform
import subprocess
import sys
from importlib import metadata

from lit_moss.runs.mlflow_access import without_password

_VERSIONS = ("lit-moss", "torch", "torchaudio", "lightning", "mlflow", "numpy")


def provenance() -> dict[str, str]:
    """MLflow tags: command, commit, library versions, machine."""
    tags = {
        "mlflow.source.name": "lit_moss",
        "command": without_password(" ".join(sys.argv[1:])),
        "python": platform.python_version(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    commit = _git("rev-parse", "HEAD")
    if commit:
        tags |= {"mlflow.source.git.commit": commit, "git.branch": _git("rev-parse", "--abbrev-ref", "HEAD"),
                 "git.dirty": str(bool(_git("status", "--porcelain", "--untracked-files=no")))}  # fmt: skip
    for package in _VERSIONS:
        try:
            tags[f"version.{package}"] = metadata.version(package)
        except metadata.PackageNotFoundError:
            tags[f"version.{package}"] = "not installed"
    return tags


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", *words], capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""
