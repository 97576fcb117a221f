"""Every study and bench can be started; the benches of the tokenizer open it by any name."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

ROOT = Path(__file__).resolve().parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for folder in ("studies", "benches")
    for path in sorted((ROOT / "experiments" / folder).glob("*.py"))
    if path.stem != "__init__" and '__name__ == "__main__"' in path.read_text()
]


def run(monkeypatch, module: str, *words: str) -> object:
    """Exit code, None where it only returns."""
    monkeypatch.setattr(sys, "argv", [module, *words])
    try:
        runpy.run_module(module, run_name="__main__")
    except SystemExit as ended:
        return ended.code
    return None


@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*")
@pytest.mark.parametrize("module", MODULES)
def test_help_is_shown(monkeypatch, capsys, module):
    assert run(monkeypatch, module, "--help") in (0, None)
    assert "usage:" in capsys.readouterr().out


@pytest.mark.network
@pytest.mark.nightly
@pytest.mark.filterwarnings("ignore:.*found in sys.modules.*")
def test_live_latency_runs_with_its_defaults(monkeypatch, capsys, tmp_path):
    """The default tokenizer is one that only lit_moss.hub can open."""
    noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
    soundfile.write(tmp_path / "a.wav", noise, 16_000)
    assert run(monkeypatch, "experiments.benches.live_latency", str(tmp_path), "--minutes", "0.02") in (
        0,
        None,
    )
    assert "median" in capsys.readouterr().out
