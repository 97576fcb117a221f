"""What steps have made: a table for the terminal, and a run in MLflow."""

import json
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

from lit_moss.assets import cache_dir
from lit_moss.prepare.folder_counts import documents_out
from lit_moss.prepare.step import StepResult
from lit_moss.prepare.storage import is_remote

_COLUMNS = ("step", "items in", "items out", "rejected", "hours in", "hours out", "time", "rate")
_WIDTHS = (18, 9, 15, 9, 9, 9, 9, 18)


def statistics_table(results: Sequence[StepResult], header: bool = True, times: bool = True) -> str:
    """A Markdown table with a row per step.

    Args:
        results: Of the steps.
        header: Whether it has one.
        times: Whether it has `time` and `rate`. They are of this call: what was there already is not run
            again.

    Steps that write folders of documents have the number of these, and the hours of speech in them, as what
    came out.
    """
    lines = [_COLUMNS, ["-" * width for width in _WIDTHS]] if header else []
    lines = [*lines, *map(_cells, results)]
    columns = len(_COLUMNS) if times else _COLUMNS.index("time")
    return "\n".join(_line(cells[:columns]) for cells in lines)


def _cells(result: StepResult) -> list[str]:
    counts = result.counts
    made = documents_out(counts.counts) or (str(counts.items_out), counts.speech_sec_out / 3600)
    return [
        result.step,
        str(counts.items_in),
        made[0],
        str(sum(counts.rejected.values())),
        f"{counts.speech_sec_in / 3600:.3f}",
        f"{made[1]:.3f}",
        f"{result.seconds:.1f} s" if result.items_run else "done",
        _rate(result),
    ]


def _rate(result: StepResult) -> str:
    """Speech time over computing time; items a second where there is no speech."""
    if not result.items_run or result.seconds <= 0:
        return ""
    if result.speech_sec_run:
        return f"{result.speech_sec_run / result.seconds:.1f}x real time"
    return f"{result.items_run / result.seconds:.1f} items/s"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)) + " |"


def record(experiment: str, out: str, settings: dict[str, Any], results: Sequence[StepResult]) -> None:
    """Records options, counts and files in MLflow; a repeated call continues the same MLflow run.

    Args:
        experiment: Its experiment.
        out: Folder of the steps.
        settings: Options by step; they name variables that hold keys, never keys.
        results: Of the steps.

    Raises:
        UserError: if MLflow does not answer.
    """
    from lit_moss.runs.tracking import Tracker

    folder = Path(out)
    if is_remote(out):
        folder = cache_dir() / "prepare" / sha256(out.encode()).hexdigest()[:16]
    note = folder / "mlflow" / "run_id.json"
    run_id = json.loads(note.read_text())["run_id"] if note.exists() else None
    tracker = Tracker(experiment, folder.name, str(folder / "mlflow"), run_id, system_metrics=False)
    status = "failed"
    try:
        tracker.log_hyperparams(settings)
        for number, result in enumerate(results):
            tracker.log_metrics(_metrics(result), step=number)
        tracker.log_text(statistics_table(results) + "\n", "statistics.md")
        note.write_text(json.dumps({"run_id": tracker.run_id}) + "\n")
        if not is_remote(out):
            for result in results:
                if result.stage == "report":
                    tracker.log_folder(folder / result.step if len(results) > 1 else folder, "report")
        status = "success"
    finally:
        tracker.finalize(status)


def _metrics(result: StepResult) -> dict[str, float]:
    counts = result.counts
    named: dict[str, float] = {
        "items_in": counts.items_in,
        "items_out": counts.items_out,
        "hours_in": counts.speech_sec_in / 3600,
        "hours_out": counts.speech_sec_out / 3600,
        "rejected": sum(counts.rejected.values()),
        **counts.counts,
        **{f"rejected {reason}": number for reason, number in counts.rejected.items()},
    }
    if result.items_run:
        named |= {"seconds": result.seconds}
    return {f"{result.step}/{name}": float(value) for name, value in named.items()}
