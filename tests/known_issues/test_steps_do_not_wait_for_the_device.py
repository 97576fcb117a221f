"""A training step asks the device nothing between two logging intervals: each question drains a GPU's queue.

Counted on a CPU, where asking is free: operations whose result's value or size the host reads. The forward of
the language model itself (where its targets are, where documents end) is not this file's.
"""

import sys
from pathlib import Path

import pytest
import torch
from decoders import decoder_recipe, made_up_codec
from lm_recipe import lm_recipe
from recording import fit, recipe
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[2]
OWN = [str(ROOT / part) for part in ("lit_moss/modules", "lit_moss/codec", "callbacks")]
ASKING = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "bincount",
    "unique2",
    "unique_consecutive",
    "equal",
}
# Where values are read on purpose: at intervals of their own, and once for the codebook's start.
ALLOWED = {"_read", "_not_finite", "_shown", "state_dict", "on_save_checkpoint", "on_validation_end",
           "_start_codebook", "speech_frames", "kmeans", "sum_over_ranks", "get"}  # fmt: skip


class Asked(TorchDispatchMode):
    """Notes the innermost line of ours that made the host ask."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masked = name == "index" and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1] if hasattr(t, "dtype")
        )
        if name in ASKING or masked:
            note(self.found, name)
        return func(*args, **(kwargs or {}))


class Converted(TorchFunctionMode):
    """The same for what never reaches a dispatcher on a CPU."""

    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("tolist", "cpu", "numpy") and isinstance(args[0], torch.Tensor):
            note(self.found, name)
        return func(*args, **(kwargs or {}))


def note(found, name):
    frame = sys._getframe(1)
    while frame is not None:
        file, function = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(str(ROOT / "lit_moss" / "llm")):
            return
        if any(file.startswith(part) for part in OWN):
            found.append((name, f"{Path(file).name}:{frame.f_lineno}", function))
            return
        frame = frame.f_back


@pytest.fixture
def asked(monkeypatch):
    """Everything that steps asked, as (operation, place, function)."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    found, advance = [], _TrainingEpochLoop.advance

    def watched(self, data_fetcher):
        if not self.global_step:  # tables made once and kept
            return advance(self, data_fetcher)
        with Asked(found), Converted(found):
            return advance(self, data_fetcher)

    monkeypatch.setattr(_TrainingEpochLoop, "advance", watched)
    # Decisions and reading as on a GPU: the host looks only where metrics are logged.
    monkeypatch.setattr("callbacks.non_finite_steps.cheap_to_read", lambda device: False)
    return found


def fused(self, groups, **options):
    return torch.optim.AdamW(groups, fused=True, **options)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["tokenizer", "decoder", "language model"])
def test_no_question_between_logging_intervals(tmp_path, corpus, asked, monkeypatch, kind):
    monkeypatch.setattr("lit_moss.modules.steps.StepModule.adamw", fused)
    changes = {"trainer__log_every_n_steps": 100, "trainer__val_check_interval": 100}
    if kind == "text_tokenizer":
        changes["model__init_args__encoder__quantize_restart_interval"] = 100
        path = recipe(tmp_path, corpus, 9, model__init_args__quantize_from_step=2, **changes)
    elif kind == "decoder":
        path = decoder_recipe(tmp_path, corpus, made_up_codec(tmp_path / "codec"), 9, **changes)
    else:
        path = lm_recipe(tmp_path / "run", 9)
        text = path.read_text().replace("log_every_n_steps: 1", "log_every_n_steps: 100")
        path.write_text(text.replace("val_check_interval: 8", "val_check_interval: 100"))
    text = path.read_text()
    path.write_text(text.replace("every_n_steps: 5\n", "every_n_steps: 100\n"))
    fit(path.parent, path)
    found = {f"{name} in {place}" for name, place, function in asked if function not in ALLOWED}
    assert not found
