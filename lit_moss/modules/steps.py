"""The optimizer step common to all LightningModules: counting targets, skipping steps, AdamW, clipping.

`callbacks.NonFiniteSteps` decides whether a step is skipped and sets `skip_step`. It keeps the parameters and
their moments unchanged; the module itself restores everything else that a step changes, such as a codebook.
"""

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import Protocol, runtime_checkable

from lit_moss.errors import UserError
from lit_moss.optimizer_groups import NO_DECAY
from lit_moss.trainer_access import is_deepspeed


@runtime_checkable
class _Scaling(Protocol):
    """A precision plugin that has a gradient scaler if it scales the loss."""

    scaler: Any


class StepModule(LightningModule):
    """A LightningModule whose optimizer steps can be skipped.

    Attributes:
        skip_step: Whether the current or the last step is skipped: a bool, or a bool tensor () on the device
            if reading it would make the host wait.
        step_targets: Number of targets of this rank since the last optimizer step; None: the module does not
            count them. A step without targets on any rank is skipped.
        gradient_norm: Norm of all gradients, float (), once the callback has computed it.
        resumes: Whether the run continues from a checkpoint, if that is known before the model is built.
        validates_first: Whether a run also validates before its first step, see `callbacks.FirstValidation`.
    """

    validates_first: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.skip_step: bool | Tensor = False
        self.step_targets: int | None = None
        self.resumes = False
        self.gradient_norm: Tensor | None = None

    @property
    def is_usable(self) -> bool:
        """Whether the current state is usable; otherwise it never counts as the best one."""
        return True

    def count_targets(self, targets: int) -> None:
        """Adds the number of targets of a micro-batch, which must be known on the host."""
        self.step_targets = targets + (self.step_targets or 0)

    def on_device(self, value: float) -> Tensor:
        """A value to log, created on the device: `self.log` of a float would copy it there and wait."""
        return torch.full((), float(value), dtype=torch.float32, device=self.device)

    def on_before_backward(self, loss: Tensor) -> None:
        """Corrects the loss for DeepSpeed, whose engine divides it by the number of micro-batches again.

        Lightning has already divided the loss. Without the correction, gradients would be too small by that
        factor, and gradient clipping would hardly ever act.
        """
        if getattr(self.trainer.strategy, "handles_gradient_accumulation", False):
            loss.mul_(self.trainer.accumulate_grad_batches)

    def adamw(self, groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
        """Creates AdamW; fused on CUDA, where a step can be skipped without the host waiting for the device.

        Not fused with a gradient scaler (float16): the fused optimizer would unscale the gradients itself,
        after clipping.
        """
        for group in groups:
            refuse_impossible(group.get("lr", options.get("lr")), "lr", str(group.get("name", "")))
            refuse_impossible(group.get("weight_decay", options.get("weight_decay")), "weight_decay")
        betas = options.get("betas", (0.9, 0.999))
        if not all(0 <= beta < 1 for beta in betas):
            raise UserError(f"model.betas is {list(betas)}, expected two numbers from 0 to below 1")
        precision = None if self._trainer is None else self._trainer.precision_plugin
        scaled = isinstance(precision, _Scaling) and precision.scaler is not None
        fused = (self.device.type == "cuda" and not scaled) or None
        return torch.optim.AdamW(groups, fused=fused, **options)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's gradient clipping; for clipping by norm, it uses the norm that is already known.

        Bypasses the mixed-precision plugin, which refuses to clip with a fused AdamW, even in bfloat16, where
        there is no scaler.
        """
        if (
            is_deepspeed(self.trainer.strategy) or not gradient_clip_val or gradient_clip_val < 0
        ):  # Lightning ignores negative values
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(params, float(gradient_clip_val))
            return
        norm = self.gradient_norm if self.gradient_norm is not None else total_norm(params)
        if params:
            torch.nn.utils.clip_grads_with_norm_(params, float(gradient_clip_val), norm)


def refuse_impossible(value: float | None, option: str, part: str = "") -> None:
    """Raises an error for a negative or non-finite learning rate or weight decay.

    Args:
        value: Value of the option; None: not set.
        option: Name of the option.
        part: Part of the model that the value applies to; "": the whole model.

    Raises:
        UserError: if the value is negative or not finite.
    """
    if value is not None and not (value >= 0 and math.isfinite(value)):
        where = f" of {part.removesuffix(NO_DECAY)}" if part else ""
        raise UserError(f"model.{option}{where} is {value}, expected 0 or more")


class HostCopy:
    """Host copy of a one-element tensor; reads the device only after the tensor was written to."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = -1
        self._value: Any = None

    def get(self, tensor: Tensor) -> Any:
        """The value; read from the device if the tensor may have changed."""
        if self._tensor is not tensor or self._version != tensor._version:
            self.set(tensor, tensor.item())
        return self._value

    def set(self, tensor: Tensor, value: Any) -> None:
        """Stores a value that the caller knows; call it directly after writing the tensor."""
        self._tensor, self._version, self._value = tensor, tensor._version, value


def total_norm(params: list[torch.nn.Parameter]) -> Tensor:
    """2-norm of all gradients, a tensor () or a DTensor; not finite if any gradient is not."""
    return torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in params])
