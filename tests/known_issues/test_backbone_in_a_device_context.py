"""Inside Lightning's device context transformers' loading asked for accelerate, which a plain installation
lacks: the first run on a machine with a GPU ended there."""

import subprocess
import sys

import pytest
import torch
import transformers.modeling_utils
from backbones import folder_of
from lm_recipe import lm_recipe
from recording import fit

from lit_moss.llm import SplitLM


@pytest.fixture
def on_cuda(monkeypatch):
    """What transformers sees inside `torch.device("cuda:0")`."""
    monkeypatch.setattr(
        transformers.modeling_utils,
        "get_torch_context_manager_or_global_device",
        lambda: torch.device("cuda:0"),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_backbone_is_read_without_accelerate(tmp_path, kind, on_cuda, monkeypatch):
    folder, model = folder_of(tmp_path, kind)
    monkeypatch.setattr(transformers.integrations.accelerate, "is_accelerate_available", lambda: False)
    rows = torch.arange(30)[None]
    lm = SplitLM.from_backbone(folder, 2, 40).eval()
    lm.save_pretrained(tmp_path / "saved")
    again = SplitLM.from_pretrained(tmp_path / "saved")
    monkeypatch.undo()
    with torch.no_grad():
        wanted = model(rows, use_cache=False).logits
        assert torch.equal(lm(rows).text_logits, wanted)
        assert torch.equal(again(rows).text_logits, wanted)


@pytest.mark.nightly
def test_a_run_and_a_next_stage_read_it_without_accelerate(tmp_path, on_cuda, monkeypatch):
    monkeypatch.setattr(transformers.integrations.accelerate, "is_accelerate_available", lambda: False)
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 5, save_frozen=False))
    (run,) = (tmp_path / "run/runs/tiny").iterdir()
    fit(tmp_path / "next", lm_recipe(tmp_path / "next", 5, stages=[{"policy": "full"}], init_from=str(run)))


BLOCKED = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "accelerate" else PathFinder.find_spec(name, path, target)

sys.meta_path = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
import importlib.metadata as metadata
version = metadata.version

def hidden(name):
    if name == "accelerate":
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = hidden
import torch
from transformers.utils import is_accelerate_available
assert not is_accelerate_available()
from lit_moss.llm import SplitLM

torch.manual_seed(0)
plain = SplitLM.from_backbone(sys.argv[1], 2, 40).state_dict()
import transformers.modeling_utils
transformers.modeling_utils.get_torch_context_manager_or_global_device = lambda: torch.device("cuda:0")
torch.manual_seed(0)
under = SplitLM.from_backbone(sys.argv[1], 2, 40).state_dict()
assert all(torch.equal(plain[name], under[name]) for name in plain)
assert "accelerate" not in sys.modules
"""


@pytest.mark.nightly
def test_the_same_weights_where_accelerate_is_not_installed(tmp_path):
    folder, _ = folder_of(tmp_path, "llama")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(folder)], capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]
