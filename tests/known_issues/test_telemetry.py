"""MLflow reported each use to its makers, while SECURITY.md said that no such report is sent."""

import os
import subprocess
import sys

import pytest

SHOW = """
import os, lit_moss
from huggingface_hub import constants
from mlflow.environment_variables import MLFLOW_DISABLE_TELEMETRY
print(MLFLOW_DISABLE_TELEMETRY.get(), constants.HF_HUB_DISABLE_TELEMETRY)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"), [({}, "True True"), ({"MLFLOW_DISABLE_TELEMETRY": "false"}, "False True")]
)
def test_uses_are_not_reported_unless_asked_for(given, said):
    names = ("MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "DISABLE_TELEMETRY")
    env = {k: v for k, v in os.environ.items() if k not in names} | given
    done = subprocess.run([sys.executable, "-c", SHOW], env=env, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == said, done.stderr
