"""An evaluation: stores the results of its items as they are computed, its tables, and its MLflow run.

    folder RUN_ROOT/NAME/BENCHMARK-…   named by options and models, so that the same command finds it
      items.jsonl     a line per finished item
      report.md       the table
      result.json     the means

A killed evaluation continues after the last line of `items.jsonl`. A finished one is read, not repeated.
"""

import csv
import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from tqdm import tqdm

from lit_moss.errors import UserError
from lit_moss.files import atomic_write
from lit_moss.runs.checkpoints import checkpoint_of
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.tracking import Tracker

T = TypeVar("T")
Result = dict[str, Any]
# Options that affect where or how fast an evaluation runs, but not its results.
NEUTRAL = ("name", "run_root", "device", "batch_size", "again")
# As above, but the folder's name includes their defaults, so that earlier folders are found.
NEUTRAL_DEFAULTS = ("keep_sounds", "judge_max_requests", "judge_api_key_env")
FAILED = "failed"  # key of an item without a result: the reason
_SHOWN = 10  # number of items that a report lists under one heading


class Evaluation:
    """One benchmark with its options and models; a context manager that closes the MLflow run.

    Args:
        benchmark: Name of the benchmark, with which the folder's name begins.
        config: The benchmark's dataclass of options, with `name` (MLflow experiment) and `run_root`; options
            in `NEUTRAL` and `NEUTRAL_DEFAULTS` do not affect the folder.
        sources: Everything the results depend on besides options: models, codecs, lists of items. The size
            and modification time of runs and files are included, so that a model trained further is evaluated
            again.
        again: Start over if results exist.
    """

    def __init__(
        self, benchmark: str, config: Any, sources: Sequence[str | Path | None], again: bool = False
    ) -> None:
        self.benchmark, self.options = benchmark, asdict(config)
        kept = {key: value for key, value in self.options.items() if key not in NEUTRAL}
        kept |= {one.name: one.default for one in fields(config) if one.name in NEUTRAL_DEFAULTS}
        facts = [benchmark, kept, [identity(source) for source in sources if source]]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
        name, root = self.options["name"], self.options["run_root"]
        self.run = RunFolder(Path(root) / name / f"{benchmark}-{digest}")
        self.folder = self.run.path
        self._held = self.run.hold()
        self._items = self.folder / "items.jsonl"
        known, tags = self.run.mlflow_run_id if self.run.is_run() else None, {}
        if again:
            for file in (self._items, self.folder / "result.json"):
                file.unlink(missing_ok=True)
            if known is not None:  # MLflow keeps the first value of a step, and appends rows to tables
                known, tags = None, {"repeats": known}
        self.tracker = Tracker(
            name, self.folder.name, root, known, tags=tags, system_metrics=False, kind="evaluation"
        )
        self._status = "interrupted"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and issubclass(kind, Exception):
            self._status = "failed"
        self.tracker.finalize(self._status)
        self._held.close()

    @property
    def is_done(self) -> bool:
        """Whether the evaluation is complete."""
        return self._outcome() is not None

    def _outcome(self) -> tuple[dict[str, float], str] | None:
        try:
            metrics = json.loads((self.folder / "result.json").read_text())
            return metrics, (self.folder / "report.md").read_text(encoding="utf-8")
        except (OSError, ValueError):
            return None

    def done(self) -> dict[str, float] | None:
        """The means of a complete evaluation, whose report is printed; None if it is not complete."""
        outcome = self._outcome()
        if outcome is None:
            return None
        metrics, report = outcome
        self._status = "success"
        print(f"{report}\n{self.folder}: done before; --again true repeats it")
        return metrics

    def results(
        self,
        items: Sequence[T],
        judge: Callable[[Sequence[T]], Sequence[Result]],
        batch_size: int = 1,
        key: Callable[[T], str] = attrgetter("id"),
    ) -> list[Result]:
        """A result for each item, in order; results of earlier calls are read.

        Args:
            items: Items in the order of evaluation. Sort them by length if padding is expensive.
            judge: Computes the results of a batch. An item that cannot be evaluated gets `{FAILED: reason}`:
                it counts as wrong in every benchmark, and the report lists it.
            batch_size: Maximum number of items per call.
            key: Returns the name of an item; names must be unique.

        Raises:
            UserError: if two items have the same name.
        """
        self.tracker.log_hyperparams(self.options)
        names = [key(item) for item in items]
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise UserError(f"two items are called {twice!r}: expected a name for each")
        known = self._read()
        missing = [(name, item) for name, item in zip(names, items, strict=True) if name not in known]
        with (
            self._items.open("a", encoding="utf-8") as file,
            tqdm(total=len(items), initial=len(items) - len(missing), unit="item", disable=None) as bar,
        ):
            for start in range(0, len(missing), batch_size):
                batch = missing[start : start + batch_size]
                judged = judge([item for _, item in batch])
                for (name, _), result in zip(batch, judged, strict=True):
                    known[name] = result
                    if FAILED in result:
                        print(f"{name}: {result[FAILED]}; counted as wrong", file=sys.stderr, flush=True)
                    line = json.dumps({"item": name, "result": result}, ensure_ascii=False)
                    file.write(line + "\n")
                file.flush()
                bar.update(len(batch))
        return [known[name] for name in names]

    def _read(self) -> dict[str, Result]:
        """Results of earlier calls; an incomplete last line is dropped."""
        known: dict[str, Result] = {}
        if not self._items.exists():
            return known
        lines = self._items.read_bytes().splitlines(keepends=True)
        whole = 0
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            known[record["item"]] = record["result"]
            whole += len(line)
        with self._items.open("r+b") as file:
            file.truncate(whole)
        return known

    def finish(
        self,
        metrics: Mapping[str, float],
        report: str,
        table: Sequence[Mapping[str, Any]] = (),
        figures: Mapping[str, Any] | None = None,
        say: bool = True,
    ) -> dict[str, float]:
        """Writes and logs the results, and prints the report.

        Args:
            metrics: Name -> value; `/` groups them in MLflow.
            report: Report in Markdown.
            table: A row per item, or per item and method; missing keys are empty. Written to items.csv and to
                a table of the MLflow run.
            figures: File name -> matplotlib figure, for the folder and MLflow.
            say: Whether to print the report.

        Returns:
            The metrics.
        """
        found = {name: float(value) for name, value in metrics.items()}
        self.tracker.log_metrics(found, step=0)
        if table:
            columns = list(dict.fromkeys(name for row in table for name in row))
            self.tracker.log_table({name: [row.get(name) for row in table] for name in columns}, "items.json")
            with (self.folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, columns)
                writer.writeheader()
                writer.writerows(table)
        for name, figure in (figures or {}).items():
            figure.savefig(self.folder / name, dpi=110, bbox_inches="tight")
            self.tracker.log_figure(figure, name)
        self.tracker.log_text(report, "report.md")
        (self.folder / "report.md").write_text(report, encoding="utf-8")
        with atomic_write(self.folder / "result.json") as partial:  # last: marks the folder as complete
            partial.write_text(json.dumps(found, indent=1) + "\n")
        self._status = "success"
        if say:
            print(f"{report}\n{self.folder}: report.md, items.jsonl, result.json")
        return found

    def add_report(self, name: str, report: str) -> None:
        """Writes, logs and prints an additional report on the same results.

        Args:
            name: File name of the report.
            report: Report in Markdown.
        """
        self.tracker.log_text(report, name)
        (self.folder / name).write_text(report, encoding="utf-8")
        self._status = "success"
        print(f"{report}\n{self.folder / name}")


def identity(source: str | Path) -> list[Any]:
    """Names, sizes and modification times of the files of a model or list, which differ after a change.

    Args:
        source: A file, a folder, a run (its newest state and its best weights), or another name such as a hub
            id, which is used as it is.

    Raises:
        UserError: if a run has neither of these.
    """
    path = Path(source)
    facts: list[Any] = []
    for place in (_checkpoints(path) if path.is_dir() else []) or [path]:
        if place.is_file():
            files = [place]
        elif place.is_dir():
            # Importing a task's code writes into this folder, which would make the same command start another
            # evaluation.
            files = sorted(f for f in place.rglob("*") if f.is_file() and f.parent.name != "__pycache__")
        else:
            return [str(source)]
        facts += [str(place.absolute()), *((f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files)]
    return facts


def local_parts(*names: str | None) -> list[str]:
    """Names of recognisers, speaker encoders etc. that are local files or folders, whose content may change.
    Others are not included in sources, so that earlier folders are found."""
    return [name for name in names if name and os.path.exists(name)]


def _checkpoints(folder: Path) -> list[Path]:
    """Newest state and best weights of a run, as far as they exist; empty for a folder that is not a run.

    Language models are opened from the former; codecs, tokenizers and vocoders from the latter.

    Raises:
        UserError: if a run has neither.
    """
    try:
        best = checkpoint_of(folder, "best")
    except UserError:
        last = checkpoint_of(folder, "last")
        return [last] if last else []
    if best is None or best == folder:
        return [best] if best else []
    # Only called if there are states: for a run without any it would print that the run starts again.
    if all(other == best for other in best.parent.glob("*.ckpt")):
        return [best]
    try:
        last = checkpoint_of(folder, "last")
    except UserError:  # damaged
        return [best]
    return [last, best] if last else [best]


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95 % interval of a fraction `right / n`; (0, 1) if there are no items."""
    if n == 0:
        return 0.0, 1.0
    p = right / n
    middle, half = p + z * z / (2 * n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    scale = 1 + z * z / n
    return max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale)


def named(title: str, reasons: Mapping[str, str]) -> list[str]:
    """Lines with a heading, the number of items, and the first items with their reasons."""
    if not reasons:
        return []
    shown = [f"- {name}: {why}" for name, why in list(reasons.items())[:_SHOWN]]
    more = [f"- and {len(reasons) - _SHOWN} more, see items.csv"] if len(reasons) > _SHOWN else []
    return [f"## {title}: {len(reasons)}", "", *shown, *more, ""]


def markdown_table(rows: Sequence[Mapping[str, Any]], digits: int = 3) -> str:
    """Markdown table of rows with the same keys; floats are rounded, None is empty."""
    if not rows:
        return ""
    heads = list(rows[0])

    def cell(value: Any) -> str:
        if value is None:
            return ""
        return f"{value:.{digits}f}" if isinstance(value, float) else str(value).replace("|", "\\|")

    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell(row[head]) for head in heads) + " |" for row in rows]
    return "\n".join(lines) + "\n"
