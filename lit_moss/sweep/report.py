"""Results of a study: a Markdown report and figures, in its folder and in its MLflow run."""

import contextlib
import warnings
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from lit_moss.runs.tracking import Tracker
from lit_moss.sweep.config import Sweep
from lit_moss.sweep.study import ERROR, by_slot, deaths, is_given_up


def write_report(study: optuna.Study, sweep: Sweep, tracker: Tracker) -> Path:
    """Writes `report.md` and the figures; returns the report's path."""
    folder = tracker.run_dir
    counted = {slot: members[0] for slot, members in by_slot(study, sweep).items()}
    pictures = _pictures(study, sweep)
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=110, bbox_inches="tight")
        tracker.log_figure(figure, name)
    text = _markdown(study, sweep, counted, list(pictures))
    report = folder / "report.md"
    report.write_text(text, encoding="utf-8")
    tracker.log_text(text, "report.md")
    for slot, trial in counted.items():
        if trial.state == TrialState.COMPLETE:
            values = dict(zip(sweep.objectives, trial.values, strict=True))
            for metric, value in values.items():  # slots come in any order, possibly twice
                tracker.experiment.log_metric(tracker.run_id, f"trial/{metric}", value, step=slot)
    return report


def _markdown(study: optuna.Study, sweep: Sweep, counted: dict[int, FrozenTrial], pictures: list[str]) -> str:
    states = [trial.state.name.lower() for trial in counted.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    lines = [
        f"# {sweep.study}",
        "",
        f"{len(counted)} of {sweep.trials} trials ({counts}), seeds {sweep.seeds}.",
        "",
    ]
    best = {t.number for t in study.best_trials}
    metrics = list(sweep.objectives)
    lines += [
        "| trial | " + " | ".join([*map(_short, sweep.search), *metrics, "state", "attempts", "min"]) + " |",
        "|---" * (len(sweep.search) + len(metrics) + 4) + "|",
    ]
    attempts = {slot: len(members) for slot, members in by_slot(study, sweep).items()}
    for slot, trial in counted.items():
        params = [_cell(trial.params.get(key, "–")) for key in sweep.search]
        values = [_value(trial, sweep, i) for i in range(len(metrics))]
        minutes = f"{trial.duration.total_seconds() / 60:.1f}" if trial.duration else "–"
        name = f"**{slot}**" if trial.number in best else str(slot)
        row = [name, *params, *values, trial.state.name.lower(), str(attempts[slot]), minutes]
        lines.append("| " + " | ".join(row) + " |")
    kind = "best" if len(metrics) == 1 else "on the Pareto front"
    lines += ["", f"Bold: {kind}. Mean ± standard deviation over seeds; `min` of the last attempt.", ""]
    failed = [(slot, t.user_attrs[ERROR]) for slot, t in counted.items() if ERROR in t.user_attrs]
    lines += [f"- trial {slot} failed: {error}" for slot, error in failed]
    lines += [
        f"- trial {slot} is given up: killed {deaths(members)} times"
        for slot, members in by_slot(study, sweep).items()
        if is_given_up(members, sweep)
    ]
    lines += [f"![{name}]({name})" for name in pictures]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _value(trial: FrozenTrial, sweep: Sweep, i: int) -> str:
    if trial.state != TrialState.COMPLETE:
        return "–"
    metric = list(sweep.objectives)[i]
    each = [result[metric] for s in sweep.seeds if (result := trial.user_attrs.get(f"seed {s}"))]
    return f"{trial.values[i]:.4g}" + (f" ± {stdev(each):.2g}" if len(each) > 1 else "")


def _pictures(study: optuna.Study, sweep: Sweep) -> dict[str, Any]:
    """File name -> figure, for each figure that Optuna can draw from the trials so far."""
    import matplotlib

    matplotlib.use("Agg")
    import optuna.visualization.matplotlib as draw

    metrics = list(sweep.objectives)
    kinds = [("history", draw.plot_optimization_history), ("slice", draw.plot_slice),
             ("importance", draw.plot_param_importances)]  # fmt: skip
    figures: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for kind, plot in kinds:
            for i, metric in enumerate(metrics):
                options: dict[str, Any] = {"target_name": metric}
                if len(metrics) > 1:
                    options["target"] = lambda trial, i=i: trial.values[i]
                suffix = f"_{metric.replace('/', '_')}" if len(metrics) > 1 else ""
                # A single complete trial has no importances, and a single value has no variance.
                with contextlib.suppress(ValueError, RuntimeError, ZeroDivisionError):
                    figures[f"{kind}{suffix}.png"] = _figure(plot(study, **options), sweep)
        if len(metrics) in (2, 3):
            with contextlib.suppress(ValueError):
                figures["pareto.png"] = _figure(draw.plot_pareto_front(study, target_names=metrics), sweep)
    return figures


def _figure(axes: Any, sweep: Sweep) -> Any:
    """Abbreviates long keys to their last words, and makes every panel large enough for them."""
    panels = list(np.ravel(axes))  # one panel, or an array of panels
    figure = panels[0].figure
    figure.set_size_inches(max(7.0, 4.5 * len(panels)), 4.8)
    for panel in panels:
        if panel.get_xlabel() in sweep.search:
            panel.set_xlabel(_short(panel.get_xlabel()))
        if any(text.get_text() in sweep.search for text in panel.get_yticklabels()):
            panel.set_yticks(panel.get_yticks(), [_short(t.get_text()) for t in panel.get_yticklabels()])
    return figure


def _short(key: str) -> str:
    return key.rpartition(".")[2]
