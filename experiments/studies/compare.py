"""Compares MLflow runs: a Markdown table of first and last values, and a plot of each metric.

    python -m experiments.studies.compare stage1 stage2_full RUN_ID… [--metrics heldout/speech_ppl …] …

A name means the newest finished run of the experiment of that name; a run id can also be given. The tracking
server is that of `fit` ($MLFLOW_TRACKING_URI, or `mlflow.db` in this folder). Writes OUT/compare.md and
OUT/compare.png.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lit_moss.errors import UserError
from lit_moss.runs.mlflow_access import mlflow_errors, open_client

METRICS = ["heldout/speech_ppl", "heldout/text_ppl", "heldout/speech_cloze", "heldout/text_cloze"]
Curve = list[tuple[int, float]]


def run_named(client: Any, name: str) -> Any:
    """Finds a run by its id, or the newest run of the experiment `name`, preferably a finished one.

    Raises:
        UserError: if there is no such run.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.get_run(name)
        except MlflowException as error:
            raise UserError(
                f"no experiment and no run {name!r}: expected a run's name or id, see `mlflow ui`"
            ) from error
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    if not runs:
        raise UserError(f"experiment {name!r} has no run yet: wait for its first")
    return next((r for r in runs if r.info.status == "FINISHED"), runs[0])


def curves(client: Any, run: Any, metrics: list[str]) -> dict[str, Curve]:
    """Points of each metric in the order of steps; of several values at a step, the last one counts."""
    points_of = {}
    for metric in metrics:
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, metric)}
        points_of[metric] = sorted(points.items())
    return points_of


def table(named: dict[str, dict[str, Curve]], metrics: list[str]) -> str:
    """Markdown table with the first and last value of each metric, and the last step."""
    lines = ["| run | step | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for name, curves_of in named.items():
        last = max((points[-1][0] for points in curves_of.values() if points), default=0)
        cells = [f"{p[0][1]:.4g} -> {p[-1][1]:.4g}" if p else "–" for p in (curves_of[m] for m in metrics)]
        lines.append(f"| {name} | {last} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def spread(values: Sequence[float | None]) -> str:
    """`mean ± standard deviation` of the values that are not None; empty if all are."""
    numbers = [float(v) for v in values if v is not None]
    if not numbers:
        return ""
    return f"{mean(numbers):.4g}" + (f" ± {stdev(numbers):.2g}" if len(numbers) > 1 else "")


def picture(named: dict[str, dict[str, Curve]], metrics: list[str], path: Path) -> None:
    """Plots each metric with the curves of all runs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(metrics), figsize=(4.5 * len(metrics), 3.4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for name, curves_of in named.items():
            if curves_of[metric]:
                axis.plot(*zip(*curves_of[metric], strict=True), marker="o", markersize=3, label=name)
        if metric.endswith("_ppl"):
            axis.set_yscale("log")
        axis.set_title(metric)
        axis.set_xlabel("optimizer step of the run")
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize="small")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> int:
    """Prints the table; returns 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="names or run ids")
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--out", type=Path, default=Path("compare"))
    args = parser.parse_args(arguments)
    try:
        with mlflow_errors("be read"):
            client = open_client()
            named = {name: curves(client, run_named(client, name), args.metrics) for name in args.runs}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = table(named, args.metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compare.md").write_text(text)
    picture(named, args.metrics, args.out / "compare.png")
    print(text + f"{args.out}/compare.md, {args.out}/compare.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
