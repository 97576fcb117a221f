"""A picture of every group's learning rate over the whole run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.freezing import trained_names
from lit_moss.contracts import PartedModule, RateSchedule
from lit_moss.errors import UserError
from lit_moss.optimizer_groups import part_of
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import rate_schedule


class SchedulePicture(Callback):
    """At the start of a run, logs a figure of all learning rates to MLflow: they are functions of the step.

    Args:
        points: Number of steps at which the curves are evaluated.
    """

    def __init__(self, points: int = 200) -> None:
        if points < 1:
            raise UserError(f"SchedulePicture got points {points}, expected 1 or more")
        self.points = points

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        schedule = rate_schedule(trainer)
        if schedule is None or not isinstance(trainer.logger, Tracker) or not trainer.is_global_zero:
            return
        trainer.logger.log_figure(self.figure(trainer, pl_module, schedule), "learning_rates.png")

    def figure(self, trainer: Trainer, module: LightningModule, schedule: RateSchedule) -> Any:
        """The figure: one line per group, with trunk layers coloured from first to last."""
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt

        parts = module.parts() if isinstance(module, PartedModule) else {}
        last = trainer.max_steps if trainer.max_steps > 0 else max(1, trainer.global_step + self.points)
        steps = sorted({round(i * last / self.points) for i in range(self.points + 1)})
        free = {s: trained_names(trainer, module, s) for s in steps} if parts else {}
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        layers = max(1, sum(p.startswith("trunk.") for p in parts))
        drawn: set[str] = set()
        for number, group in enumerate(trainer.optimizers[0].param_groups):
            name = part_of(group) or f"group {number}"
            if name in drawn:
                continue
            drawn.add(name)
            own = {n for n, _ in parts.get(name, ())}
            rates = [0.0 if own and not own & free[s] else schedule.rate(s, group) for s in steps]
            trunk = name.startswith("trunk.")
            colour = plt.get_cmap("viridis")(int(name.split(".")[1]) / layers) if trunk else None
            label = None if trunk and 0 < int(name.split(".")[1]) < layers - 1 else name
            axes.plot(
                steps, rates, color=colour, label=label, linewidth=1.0, linestyle="-" if trunk else "--"
            )
        axes.set(xlabel="step", ylabel="learning rate")
        axes.legend(fontsize="small", ncols=2)
        return figure
