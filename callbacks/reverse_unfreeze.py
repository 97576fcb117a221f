"""Layer-wise unfreezing of the trunk in reverse order, with a learning rate per layer (FP-Layerwise)."""

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer

from callbacks.freezing import apply_freezing, drop_gradients, trained_names
from callbacks.learning_rate import LearningRateSchedule, Schedule, set_rates
from lit_moss.contracts import Parts
from lit_moss.errors import UserError
from lit_moss.optimizer_groups import part_of
from lit_moss.schedule import layerwise_lr, rate_factor
from lit_moss.trainer_access import all_names, callbacks_of, parts_of, waits_for_all_gradients


class ReverseUnfreeze(Schedule):
    """Layer i of N is frozen until step (N - 1 - i) k; then its learning rate warms up and decays.

    Source: appendix D of arXiv:2510.00499.

    It sets the rates of all groups, so it replaces `LearningRateSchedule`. Other parts (embeddings, tails,
    norms, heads) start at their peak rate at step 0.

    Args:
        k: Number of steps between the unfreezing of two layers.
        w: Number of warm-up steps of a layer.
        total_steps: Step T at which all layers have reached their minimum rate. None: `trainer.max_steps`, or
            in a resumed run the length that it started with.
        eta_max: Peak rate of the trunk layers. None: the model's `lr`.
        floor: Minimum rate r, as a fraction of the peak.
        others: Schedule of the other parts: `cosine` from the peak to the minimum at T, or `constant`.
    """

    def __init__(
        self,
        k: int = 5000,
        w: int = 2000,
        total_steps: int | None = None,
        eta_max: float | None = None,
        floor: float = 0.1,
        others: Literal["cosine", "constant"] = "cosine",
    ) -> None:
        if k < 0 or w < 0 or not 0 <= floor <= 1:
            raise UserError(
                f"ReverseUnfreeze got k {k}, w {w}, floor {floor}: expected 0 or more, floor up to 1"
            )
        if eta_max is not None and eta_max < 0:
            raise UserError(f"ReverseUnfreeze got eta_max {eta_max}, expected 0 or more")
        self.k, self.w, self.total_steps, self.floor, self.others = k, w, total_steps, floor, others
        self.eta_max = eta_max
        self._layers = 0
        self._trained: set[str] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(isinstance(c, LearningRateSchedule) for c in callbacks_of(trainer)):
            raise UserError("ReverseUnfreeze and LearningRateSchedule both set rates: keep one of them")
        self._set_length(trainer)
        self._layers = _layers(parts_of(pl_module))
        if not self._layers:
            raise UserError("ReverseUnfreeze has no trunk layers to unfreeze: the split leaves none")
        self._rate(0, 0, 1.0)  # raises an error if T is too short

    def trained(self, parts: Parts, step: int) -> set[str]:
        """Everything except the layers that are still frozen at the step."""
        layers = _layers(parts)
        frozen = {f"trunk.{i}" for i in range(layers) if step < (layers - 1 - i) * self.k}
        return all_names(parts) - {name for part in frozen for name, _ in parts[part]}

    def ever_trained(self, parts: Parts) -> set[str]:
        """All parameters."""
        return all_names(parts)

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Learning rate of a parameter group at a step."""
        part = part_of(group)
        if part.startswith("trunk."):
            peak = group["base_lr"] if self.eta_max is None else self.eta_max
            return self._rate(step, int(part.removeprefix("trunk.")), peak)
        return group["base_lr"] * rate_factor(self.others, step, 0, self._total, self.floor)

    def _rate(self, step: int, layer: int, peak: float) -> float:
        return layerwise_lr(step, layer, self._layers, self.k, self.w, self._total, peak, self.floor)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._trained = None

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        trained = trained_names(trainer, pl_module, trainer.global_step)
        if trained != self._trained:
            self._trained = trained
            apply_freezing(trainer, pl_module, trained)
        set_rates(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._trained is not None and waits_for_all_gradients(trainer):
            drop_gradients(pl_module, self._trained)


def _layers(parts: Parts) -> int:
    return sum(part.startswith("trunk.") for part in parts)
