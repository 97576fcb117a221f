"""What the LightningModules share about an optimizer step: what it counts, whether it is skipped, AdamW,
clipping.

`callbacks.NonFiniteSteps` decides whether a step is skipped and says so in `skip_step`; parameters and their
moments it keeps itself, anything else that a step changes (the tokenizer's codebook) is the module's to keep.
"""

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from torch import Tensor


class StepModule(LightningModule):
    """A LightningModule whose steps can be skipped.

    Attributes:
        skip_step: Whether the step about to be taken, or just taken, is skipped: a bool, or a bool tensor ()
            on the device where asking for it would make the host wait.
        step_targets: Targets of this rank since the last optimizer step; None where nobody counts. A step
            without any, over all ranks, is skipped.
        gradient_norm: Norm of all gradients, once the callback has computed it; () float.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skip_step: bool | Tensor = False
        self.step_targets: int | None = None
        self.gradient_norm: Tensor | None = None

    def count_targets(self, targets: int) -> None:
        """Adds a micro-batch's targets, a number that the host knows without asking the device."""
        self.step_targets = targets + (self.step_targets or 0)

    def on_device(self, value: float) -> Tensor:
        """A number to log, filled in on the device: `self.log` of a float copies it there and waits."""
        return torch.full((), float(value), device=self.device)

    def adamw(self, groups: list[dict[str, Any]], **options: Any) -> torch.optim.AdamW:
        """AdamW; fused on CUDA, where it can skip a step without telling the host.

        With a gradient scaler (float16) it is not fused: the fused one would unscale by itself, after the
        clipping.
        """
        trainer = self._trainer
        scaled = trainer is not None and getattr(trainer.precision_plugin, "scaler", None) is not None
        fused = (self.device.type == "cuda" and not scaled) or None
        return torch.optim.AdamW(groups, fused=fused, **options)

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Lightning's clipping, by norm with the norm that is known already.

        Not through its mixed-precision plugin, which refuses to clip for any fused AdamW, also in bfloat16
        where there is no scaler.
        """
        sharded = "deepspeed" in type(self.trainer.strategy).__name__.lower()
        if sharded or not gradient_clip_val:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        params = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(params, float(gradient_clip_val))
            return
        norm = self.gradient_norm if self.gradient_norm is not None else total_norm(params)
        if params:
            torch.nn.utils.clip_grads_with_norm_(params, float(gradient_clip_val), norm)


class HostCopy:
    """Value of a one-element tensor as the host knows it, read from the device only after another has written
    to the tensor."""

    def __init__(self) -> None:
        self._of: Tensor | None = None
        self._version = -1
        self._value: Any = None

    def get(self, of: Tensor) -> Any:
        """The value; reads it where it may have changed."""
        if self._of is not of or self._version != of._version:
            self.set(of, of.item())
        return self._value

    def set(self, of: Tensor, value: Any) -> None:
        """Notes a value that the caller knows, right after having written to the tensor."""
        self._of, self._version, self._value = of, of._version, value


def total_norm(params: list[torch.nn.Parameter]) -> Tensor:
    """2-norm of all gradients together: (), a DTensor where they are; not finite if any gradient is not."""
    return torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in params])
