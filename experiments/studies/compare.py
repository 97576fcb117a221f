"""MLflow runs side by side: one Markdown table of last values, an overlay plot of each metric.

    python -m experiments.studies.compare stage1 stage2_full RUN_ID… [--metrics heldout/speech_ppl …] …

A name stands for the newest finished run of that name, a run id for itself; the tracking server is that of
`fit` ($MLFLOW_TRACKING_URI, or `mlflow.db` here). Writes OUT/compare.md and OUT/compare.png.
"""

import argparse
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.runs.mlflow_access import tracking_uri

METRICS = ["heldout/speech_ppl", "heldout/text_ppl", "heldout/speech_cloze", "heldout/text_cloze"]
Curve = list[tuple[int, float]]


def find_run(client: Any, asked: str) -> Any:
    """A run by id, or the newest of the experiment of that name; a finished one, if there is any.

    Raises:
        UserError: if there is none.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(asked)
    if experiment is None:
        try:
            return client.get_run(asked)
        except MlflowException as error:
            raise UserError(
                f"no experiment and no run {asked!r}: expected a run's name or id, see `mlflow ui`"
            ) from error
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    if not runs:
        raise UserError(f"experiment {asked!r} has no run yet")
    return next((r for r in runs if r.info.status == "FINISHED"), runs[0])


def curves(client: Any, run: Any, metrics: list[str]) -> dict[str, Curve]:
    """Each metric's points in the order of steps; the last value counts where a step was logged twice."""
    found = {}
    for metric in metrics:
        points = {m.step: m.value for m in client.get_metric_history(run.info.run_id, metric)}
        found[metric] = sorted(points.items())
    return found


def table(named: dict[str, dict[str, Curve]], metrics: list[str]) -> str:
    """Markdown; first and last value of each metric, and the last step."""
    lines = ["| run | step | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 2) + "|"]
    for name, found in named.items():
        last = max((points[-1][0] for points in found.values() if points), default=0)
        cells = [f"{p[0][1]:.4g} -> {p[-1][1]:.4g}" if p else "–" for p in (found[m] for m in metrics)]
        lines.append(f"| {name} | {last} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def picture(named: dict[str, dict[str, Curve]], metrics: list[str], path: Path) -> None:
    """All runs in one plot a metric, side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(metrics), figsize=(4.5 * len(metrics), 3.4), squeeze=False)
    for axis, metric in zip(axes[0], metrics, strict=True):
        for name, found in named.items():
            if found[metric]:
                axis.plot(*zip(*found[metric], strict=True), marker="o", markersize=3, label=name)
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
    """Prints the table; 2 for a name that nothing is known of."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="names or run ids")
    parser.add_argument("--metrics", nargs="+", default=METRICS)
    parser.add_argument("--out", type=Path, default=Path("compare"))
    args = parser.parse_args(arguments)
    import mlflow

    client = mlflow.MlflowClient(tracking_uri())
    try:
        named = {asked: curves(client, find_run(client, asked), args.metrics) for asked in args.runs}
    except UserError as error:
        print(f"error: {error}")
        return 2
    text = table(named, args.metrics)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "compare.md").write_text(text)
    picture(named, args.metrics, args.out / "compare.png")
    print(text + f"{args.out}/compare.md, {args.out}/compare.png")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
