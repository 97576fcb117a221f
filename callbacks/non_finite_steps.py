"""Skips steps with a non-finite loss or gradient, and ends training after several in a row."""

import sys
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_moss.contracts import Batch
from lit_moss.errors import UserError
from lit_moss.modules.steps import StepModule, total_norm
from lit_moss.trainer_access import callbacks_of, is_deepspeed


class NonFiniteSteps(Callback):
    """Skips optimizer steps with a NaN or infinite loss or gradient, and steps without targets.

    A skipped step leaves parameters, moments, averaged weights and the tokenizer's codebook unchanged, bit
    for bit, on every rank. It still counts as a step of the run, since rates and data are functions of the
    step number. `train/skipped_steps` counts the non-finite steps; `stop_after` of them in a row end the run
    with a one-line error. A checkpoint with non-finite weights is never written.

    Where the decision is made:

      fused AdamW     on the device, by the flag that gradient scalers use; the host reads the counts when
                      metrics are logged, at validations and at checkpoints. After `stop_after` steps in a row
                      all later steps are skipped, so nothing is lost until the host reads the counts
      other AdamW     on the host: gradients are dropped, and AdamW does not change parameters without
                      gradient. On a CPU this is free, on other devices it takes one transfer per step
      DeepSpeed       its own check of the gradient norm skips the step; the steps are only counted here

    The gradient scaler of float16 deliberately starts with scales that are too large: an infinite gradient
    with a finite loss is skipped and counted, but does not count towards `stop_after` while the scale is
    above 1.

    Args:
        stop_after: Number of consecutive non-finite steps that ends the run.
    """

    def __init__(self, stop_after: int = 3) -> None:
        if stop_after < 1:
            raise UserError(f"NonFiniteSteps got stop_after {stop_after}, expected 1 or more")
        self.stop_after = stop_after
        self.skipped = self.empty = 0  # as known on the host
        self._in_row = 0
        self._counts: Tensor | None = None  # skipped, consecutive, empty; int64 (3,), on the device
        self._loss_bad: Tensor | None = None  # of any micro-batch since the last step
        self._pending: tuple[Tensor, Tensor] | None = None  # DeepSpeed: counted after its own check
        self._last: tuple[Any, list[str]] = None, []  # loss, names of the documents or utterances

    # --- one step -------------------------------------------------------------------------------------------

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~torch.isfinite(loss.detach()).all()
        self._loss_bad = bad if self._loss_bad is None else self._loss_bad | bad

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return  # DeepSpeed calls this for every micro-batch
        module = _step_module(pl_module)
        device, deepspeed = module.device, is_deepspeed(trainer.strategy)
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        # Also infinite if finite gradients overflow in the norm: Adam squares them.
        norm = None if deepspeed or not params else total_norm(params)
        loss_bad = torch.zeros((), dtype=torch.bool, device=device)
        loss_bad = loss_bad if self._loss_bad is None else self._loss_bad
        gradient_bad = torch.zeros_like(loss_bad)
        if norm is not None:
            gradient_bad = ~torch.isfinite(norm.full_tensor() if isinstance(norm, DTensor) else norm)
        targets = module.step_targets
        some = torch.full((), targets is None or targets > 0, device=device)
        flags = torch.stack([loss_bad, gradient_bad, some]).to(torch.int32)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        loss_bad, gradient_bad, some = flags.bool().unbind()
        module.gradient_norm, module.step_targets, self._loss_bad = norm, None, None
        if deepspeed:
            self._pending = loss_bad, ~some
            return
        module.skip_step = skip = self._count(loss_bad, gradient_bad, ~some, _scale(trainer))
        if optimizer.param_groups and all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = skip.to(torch.float32)
            return
        module.skip_step = bool(skip)
        if module.skip_step:
            module.gradient_norm = None
            for p in params:
                p.grad = None

    def _count(self, loss_bad: Tensor, gradient_bad: Tensor, empty: Tensor, scale: Tensor | None) -> Tensor:
        """Whether to skip the step, bool (); updates the counts on the device."""
        if self._counts is None:
            self._counts = torch.tensor([self.skipped, self._in_row, self.empty]).to(
                loss_bad.device, non_blocking=True
            )
        skipped, in_row, without = self._counts.unbind()
        stopped = in_row >= self.stop_after
        bad = loss_bad | gradient_bad
        counts = bad if scale is None else loss_bad | (gradient_bad & (scale <= 1))
        # A step without targets, or one that only searches for a scale, neither extends nor ends the row.
        row = torch.where(counts, in_row + 1, torch.where(bad | empty, in_row, 0))
        self._counts = torch.stack(
            [skipped + bad.long(), torch.where(stopped, in_row, row), without + (empty & ~bad).long()]
        )
        return bad | empty | stopped

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        if self._pending is not None:
            (loss_bad, empty), self._pending = self._pending, None
            zero: Any = trainer.optimizers[0]  # DeepSpeed's; only its float16 optimizers have a scale
            overflow = torch.full_like(loss_bad, bool(getattr(zero, "overflow", False)))
            scale = torch.full((), float(getattr(zero, "loss_scale", 1.0)), device=loss_bad.device)
            self._count(loss_bad, overflow, empty, scale)
        if self._counts is None:
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        self._last = loss, batch.ids if isinstance(batch, Batch) else []
        pl_module.log("train/skipped_steps", self._counts[0].float())
        if trainer._logger_connector.should_update_logs or cheap_to_read(self._counts.device):
            self._read(trainer)

    # --- counts on the host ---------------------------------------------------------------------------------

    def _read(self, trainer: Trainer) -> None:
        """Reads the counts from the device, reports new ones, and stops the run at `stop_after`."""
        if self._counts is None:
            return
        before = self.skipped, self.empty
        self.skipped, self._in_row, self.empty = self._counts.tolist()
        if (self.skipped, self.empty) == before and self._in_row < self.stop_after:
            return
        step, (loss, names) = trainer.global_step, self._last
        where = f"loss {float('nan' if loss is None else loss):.4g}, batch {', '.join(names[:3])}"
        if trainer.is_global_zero:
            what = "without a target" if self.skipped == before[0] else "with a loss or gradient not finite"
            text = f"step {step}: skipped, a step {what} ({where}); weights stay as they were, "
            text += f"{self.skipped} not finite and {self.empty} empty so far"
            print(text, file=sys.stderr, flush=True)
            if self.empty != before[1] and trainer.logger is not None:
                trainer.logger.log_metrics({"train/empty_steps": float(self.empty)}, step=step)
        if self._in_row >= self.stop_after:
            raise UserError(
                f"step {step}: loss or gradients were not finite (NaN or infinite) {self.stop_after} steps "
                f"in a row ({where}), expected finite ones; the weights are those before these steps. Lower "
                "the learning rate or look at the data, then resume with --ckpt_path last"
            )

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._read(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read(trainer)

    # --- averaged weights -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _step_module(pl_module).skip_step = False
        self._counts = self._loss_bad = None
        for callback in callbacks_of(trainer):
            model = callback._average_model if isinstance(callback, WeightAveraging) else None
            if model is not None:
                average: Any = model
                if average.avg_fn is not None:
                    average.avg_fn = partial(_keep_equal, average.avg_fn)
                average.update_parameters = partial(_average, model, type(model).update_parameters)

    # --- checkpoints ----------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        if self._counts is not None:
            self.skipped, self._in_row, self.empty = self._counts.tolist()
        return {"skipped": self.skipped, "in_row": self._in_row, "empty": self.empty}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self._in_row, self.empty = (state_dict[k] for k in ("skipped", "in_row", "empty"))
        if self._in_row >= self.stop_after:  # saved before the host read it; a resumed run may continue
            self._in_row = 0

    @torch.no_grad()
    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        named: dict[str, Any] = dict(pl_module.named_parameters())
        if not is_deepspeed(trainer.strategy):
            named |= dict(pl_module.named_buffers())
        wrong = _not_finite(named | (checkpoint.get("state_dict") or {}))
        bad = torch.full((), bool(wrong), device=pl_module.device, dtype=torch.int32)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(bad, dist.ReduceOp.MAX)  # with shards only one rank may see it
        if bool(bad):
            raise UserError(
                f"step {trainer.global_step}: the weights are not finite ({wrong or 'on another rank'}), so "
                "no checkpoint is written; earlier ones are whole. Lower the learning rate, then resume with "
                "--ckpt_path last"
            )


def cheap_to_read(device: torch.device) -> bool:
    """Whether a value can be read without making the host wait for queued work."""
    return device.type == "cpu"


def _step_module(module: LightningModule) -> StepModule:
    if not isinstance(module, StepModule):
        raise UserError(
            f"{type(module).__name__} is no StepModule: NonFiniteSteps needs a module of lit_moss.modules"
        )
    return module


def _scale(trainer: Trainer) -> Tensor | None:
    """The loss scale of float16, or None."""
    plugin = trainer.precision_plugin
    return plugin.scaler._scale if isinstance(plugin, MixedPrecision) and plugin.scaler is not None else None


def _not_finite(named: dict[str, Any]) -> str:
    """Name of the first non-finite tensor, or ""; reads the device once."""
    local = {k: v.to_local() if isinstance(v, DTensor) else v for k, v in named.items()}
    local = {k: v.detach() for k, v in local.items()
             if isinstance(v, Tensor) and v.is_floating_point() and v.numel() and not v.is_meta}  # fmt: skip
    if not local:
        return ""
    device = next(iter(local.values())).device
    norms = [torch.linalg.vector_norm(v, float("inf")).to(device, torch.float32) for v in local.values()]
    wrong = (~torch.isfinite(torch.stack(norms))).nonzero().flatten().tolist()
    return list(local)[wrong[0]] if wrong else ""


def _keep_equal(average: Any, mean: Tensor, value: Tensor, steps: Any) -> Tensor:
    """The new mean; a value equal to the mean leaves it unchanged bit for bit, as frozen weights require."""
    return torch.where(mean == value, mean, average(mean, value, steps).to(mean.dtype))


def _average(average: Any, update: Any, module: LightningModule) -> None:
    """`AveragedModel.update_parameters`, but it does nothing in a skipped step."""
    skip = _step_module(module).skip_step
    if isinstance(skip, bool):
        if not skip:
            update(average, module)
    elif average.avg_fn is None or not average.use_buffers:
        saved = [t.clone() for t in (*average.parameters(), *average.buffers())]
        update(average, module)
        for tensor, before in zip((*average.parameters(), *average.buffers()), saved, strict=True):
            tensor.detach().copy_(torch.where(skip, before, tensor.detach()))
    else:  # torch's own asks the device at each step whether it is the first
        first = average.n_averaged == 0
        pairs = zip(
            (*average.module.parameters(), *average.module.buffers()),
            (*module.parameters(), *module.buffers()),
            strict=True,
        )
        for mean, value in pairs:
            mean, value = mean.detach(), value.detach().to(mean.device)
            new = torch.where(first, value, average.avg_fn(mean, value, average.n_averaged))
            mean.copy_(torch.where(skip, mean, new.to(mean.dtype)))
        average.n_averaged += (~skip).to(average.n_averaged.dtype)
