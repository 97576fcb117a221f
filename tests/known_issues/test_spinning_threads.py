"""Waiting OpenMP threads spun, and one busy process beside a training made it three times slower."""

import os
import subprocess
import sys

import pytest

PRINT = "import sys, {module}, os; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"


def spin_count(module: str, **variables: str) -> list[str]:
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if k not in own} | variables
    code = PRINT.format(module=module)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    return done.stdout.split()


@pytest.mark.parametrize("module", ["lit_moss", "experiments"])
def test_spin_count_is_set_before_torch_is_imported(module):
    """Every package whose modules may be the first to import torch; GNU OpenMP reads it only once."""
    assert spin_count(module) == ["1000", "False"]


@pytest.mark.parametrize(
    ("variables", "kept"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")]
)
def test_settings_of_the_user_stay(variables, kept):
    assert spin_count("lit_moss", **variables)[0] == kept
