"""The optimizer step that all LightningModules share: its targets, whether it is skipped, AdamW, clipping.

`callbacks.NonFiniteSteps` decides whether a step is skipped and sets `skip_step`. It keeps the parameters and
their moments as they were; the module itself keeps anything else that a step changes, such as a codebook.
"""

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from typing_extensions import Protocol, runtime_checkable

from lit_moss.errors import UserError
from lit_moss.optimizer_groups import NO_DECAY


@runtime_checkable
class _Scaling(Protocol):
    """A precision plugin that may scale the loss; it has a gradient scaler then."""

    scaler: Any


class StepModule(LightningModule):
    """A LightningModule whose steps can be skipped.

    Attributes:
        skip_step: Whether the step about to be taken, or just taken, is skipped: a bool, or a bool tensor ()
            on the device where asking for it would make the host wait.
        step_targets: Targets of this rank since the last optimizer step; None where the module does not count
            them. A step without any, over all ranks, is skipped.
        gradient_norm: Norm of all gradients, once the callback has computed it; () float.
        resumes: Whether the run continues from a checkpoint, where that is known before the model is built.
        validates_first: Whether a run validates before its first step too, see `callbacks.FirstValidation`.
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
        """Whether what is trained can be used as it is now; a state before that is never the best."""
        return True

    def count_targets(self, targets: int) -> None:
        """Adds a micro-batch's targets, a number that is known without asking the device."""
        self.step_targets = targets + (self.step_targets or 0)

    def on_device(self, value: float) -> Tensor:
        """A number to log, created on the device: `self.log` of a float copies it there and waits."""
        return torch.full((), float(value), dtype=torch.float32, device=self.device)

    def on_before_backward(self, loss: Tensor) -> None:
        """Undoes one of two divisions by the number of micro-batches, with DeepSpeed: its engine's.

        Lightning has divided the loss already, so that gradients would be that much too small, and clipping
        would hardly ever clip.
        """
        if getattr(self.trainer.strategy, "handles_gradient_accumulation", False):
            loss.mul_(self.trainer.accumulate_grad_batches)

    def adamw(self, groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
        """AdamW; fused on CUDA, where it can skip a step without the host knowing.

        With a gradient scaler (float16) it is not fused: the fused one would unscale by itself, after the
        clipping.
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
        """Lightning's clipping; by norm, it uses the norm that is known already.

        It does not go through the mixed-precision plugin, which refuses to clip for any fused AdamW, even in
        bfloat16, where there is no scaler.
        """
        sharded = "deepspeed" in type(self.trainer.strategy).__name__.lower()
        if sharded or not gradient_clip_val or gradient_clip_val < 0:  # Lightning clips by no negative value
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
    """Refuses a rate or decay that would train upwards, or that torch refuses in a traceback.

    Args:
        value: Of the optimizer; None where it has a default.
        option: Its name.
        part: Part of the model that it is for.

    Raises:
        UserError: if it is negative or not finite.
    """
    if value is not None and not (value >= 0 and math.isfinite(value)):
        where = f" of {part.removesuffix(NO_DECAY)}" if part else ""
        raise UserError(f"model.{option}{where} is {value}, expected 0 or more")


class HostCopy:
    """Host copy of a one-element tensor, read from the device only after the tensor was written to."""

    def __init__(self) -> None:
        self._tensor: Tensor | None = None
        self._version = -1
        self._value: Any = None

    def get(self, tensor: Tensor) -> Any:
        """The value; read again if it may have changed."""
        if self._tensor is not tensor or self._version != tensor._version:
            self.set(tensor, tensor.item())
        return self._value

    def set(self, tensor: Tensor, value: Any) -> None:
        """Stores a value that the caller knows, right after it was written to the tensor."""
        self._tensor, self._version, self._value = tensor, tensor._version, value


def total_norm(params: list[torch.nn.Parameter]) -> Tensor:
    """2-norm of all gradients together: (), a DTensor where they are; not finite if any gradient is not."""
    return torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in params])
