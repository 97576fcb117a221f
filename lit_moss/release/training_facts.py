"""What is known about the training of a model: its chain of runs with their data, settings and results.

    first stage ─ init_from ─ … ─ init_from ─ last stage       read from the run folders, then from MLflow

Everything is optional: a folder from elsewhere has no runs, data may have moved, MLflow may be unreachable.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from lit_moss.data.documents import META
from lit_moss.errors import UserError
from lit_moss.release.public_names import data_name, part_name
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.mlflow_access import find_run, open_client, tracking_uri

_LONGEST_CHAIN = 20  # limit for runs that refer to each other in a circle
_MEASURED = ("val/", "heldout/", "test/", "eval/")
_HIGHER_IS_BETTER = (
    "accuracy", "cloze", "codebook_perplexity", "codebook_used", "found", "mos", "similarity",
)  # fmt: skip
_NEITHER_IS_BETTER = ("bit_rate", "roughness")  # both cost and benefit; optimum at 1


@dataclass(frozen=True)
class Data:
    """One source of a run's data.

    Args:
        name: Name without local folders.
        part: train, validation or heldout.
        kind: Kind of documents, such as sft; "" for manifests and text.
        items: Number of documents, utterances or lines; None if the data is not available.
        rows: Number of rows of documents.
        hours: Hours of speech.
        languages: ISO 639-1 codes stated by the items.
        epochs: Number of times a round of the mixture contains it.
    """

    name: str
    part: str
    kind: str = ""
    items: int | None = None
    rows: int | None = None
    hours: float | None = None
    languages: tuple[str, ...] = ()
    epochs: float | None = None


@dataclass(frozen=True)
class Metric:
    """A metric of a run: its value at the last validation, and the best over all validations. `best` is None
    if neither the minimum nor the maximum is the best."""

    name: str
    last: float | None
    best: float | None


@dataclass(frozen=True)
class Stage:
    """One run of the chain.

    Args:
        folder: Folder of the run.
        config: Its resolved configuration; empty if there is none.
        tags: Tags of its MLflow run; empty if it is unreachable.
        in_mlflow: Validation and held-out metrics from MLflow, for a run without `result.json`.
    """

    folder: RunFolder
    config: dict[str, Any] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    in_mlflow: tuple[Metric, ...] = ()

    @property
    def name(self) -> str:
        """Name of the recipe."""
        return str(self.config.get("name") or self.folder.path.absolute().parent.name)

    @property
    def run_name(self) -> str:
        """Name of the individual run."""
        return self.folder.path.absolute().name

    @property
    def run_root(self) -> str:
        """Root folder of runs, as configured."""
        return str(self.config.get("run_root") or "runs")

    def settings(self, part: str) -> dict[str, Any]:
        """Settings of `model` or `data`."""
        return dict((self.config.get(part) or {}).get("init_args") or {})

    @property
    def callbacks(self) -> dict[str, dict[str, Any]]:
        """Name of each callback -> its settings."""
        listed = (self.config.get("trainer") or {}).get("callbacks") or []
        return {entry["class_path"].rpartition(".")[2]: entry.get("init_args") or {} for entry in listed}

    @property
    def steps(self) -> int | None:
        """Number of optimizer steps done; None if unknown."""
        result = self.folder.result()
        return (result["step"] if result else 0) or None

    def locate(self, name: str) -> Path:
        """Resolves a path of the configuration: as it is, otherwise relative to the directory in which the
        run was started, assuming that its folder still has the same depth."""
        path = Path(name)
        if path.exists() or path.is_absolute() or Path(self.run_root).is_absolute():
            return path
        levels, above = len(Path(self.run_root).parts) + 1, self.folder.path.absolute().parents
        return above[levels] / path if levels < len(above) else path

    def metrics(self) -> list[Metric]:
        """Validation and held-out metrics, from `result.json`, otherwise from MLflow."""
        result = self.folder.result()
        if result is None:
            return list(self.in_mlflow)
        names = [name for name in sorted(result["metrics"]) if name.startswith(_MEASURED)]
        return [
            Metric(name, result["metrics"][name], _best(name, result["lowest"], result["highest"]))
            for name in names
        ]

    @cached_property
    def data(self) -> list[Data]:
        """All sources, including those of a mixture's parts; each is read to count its items."""
        settings = self.settings("data")
        return list(self._sources(settings, str((self.config.get("data") or {}).get("class_path") or "")))

    def _sources(self, settings: dict[str, Any], owner: str, epochs: float | None = None) -> Iterator[Data]:
        parts, shares = settings.get("parts") or [], settings.get("epochs") or []
        for place, entry in enumerate(parts):
            share = shares[place] if place < len(shares) else None
            yield from self._sources(entry.get("init_args") or {}, entry.get("class_path") or "", share)
        kind = owner.rpartition(".")[2].removesuffix("DataModule").lower()
        for part in ("train", "validation", "heldout"):
            for entry in settings.get(part) or []:
                data = Data(data_name(str(entry)), part, "" if part == "heldout" else kind)
                data = replace(data, epochs=epochs if part == "train" else None)
                yield replace(data, **_counted(self.locate(str(entry))))

    def previous(self) -> "RunFolder | str | None":
        """What `init_from` refers to: a run, or the name of something else; None: only the backbone."""
        name = self.settings("model").get("init_from")
        return (self.run_of(str(name)) or part_name(str(name), self.run_root)) if name else None

    def run_of(self, name: str) -> RunFolder | None:
        """The run that a configured name refers to; None if it is something else or no longer exists."""
        path = self.locate(name)
        if RunFolder(path).is_run():
            return RunFolder(path)
        if run := RunFolder.of_checkpoint(path):
            return run
        # The newest run of that name that existed when this run started.
        began = _begun_ns(self.folder)
        earlier = [run for run in RunFolder.all_in(path) if _begun_ns(run) <= began]
        return earlier[-1] if earlier else None


@dataclass(frozen=True)
class Training:
    """The chain of runs of a model.

    Args:
        stages: Runs, first stage first; empty if nothing is known.
        start: Name of what the first run started from, besides its backbone.
    """

    stages: tuple[Stage, ...] = ()
    start: str | None = None

    @property
    def languages(self) -> list[str]:
        """ISO 639-1 codes of all training data."""
        trained_on = [data for stage in self.stages for data in stage.data if data.part == "train"]
        return sorted({lang for data in trained_on for lang in data.languages})


def training_of(run: RunFolder | None) -> Training:
    """Everything that is recorded about a run and the runs before it."""
    stages: list[Stage] = []
    previous: RunFolder | str | None = run
    while isinstance(previous, RunFolder) and len(stages) < _LONGEST_CHAIN:
        stages.append(_stage(previous))
        previous = stages[-1].previous()
    return Training(tuple(reversed(stages)), previous if isinstance(previous, str) else None)


def _stage(folder: RunFolder) -> Stage:
    config = folder.config() if folder.config_file.is_file() else {}
    try:
        run, metrics = _from_mlflow(folder)
    except Exception:  # any error of an unreachable server or a database of another version
        return Stage(folder, config)
    return Stage(folder, config, dict(run.data.tags) if run else {}, metrics)


def _from_mlflow(folder: RunFolder) -> tuple[Any, tuple[Metric, ...]]:
    """The MLflow run of a run folder, or None, and its metrics if there is no `result.json`."""
    run_id, uri = folder.mlflow_run_id if folder.is_run() else None, tracking_uri()
    file = uri.removeprefix("sqlite:///")
    if run_id is None or (file != uri and not Path(file).is_file()):
        return None, ()  # opening a missing database would create it
    client = open_client()
    run = find_run(client, run_id)
    if run is None or folder.result() is not None:
        return run, ()
    names = [name for name in sorted(run.data.metrics) if name.startswith(_MEASURED)]
    metrics = []
    for name in names:
        values = [m.value for m in client.get_metric_history(run_id, name) if math.isfinite(m.value)]
        lowest, highest = ({name: end(values)} if values else {} for end in (min, max))
        metrics.append(Metric(name, run.data.metrics[name], _best(name, lowest, highest)))
    return run, tuple(metrics)


def _best(name: str, lowest: Mapping[str, float | None], highest: Mapping[str, float | None]) -> float | None:
    """The best value of a metric, or None.

    Args:
        name: Name of the metric.
        lowest: Minimum over all validations, by name.
        highest: Maximum over all validations, by name.
    """
    if name.endswith(_NEITHER_IS_BETTER):
        return None
    return (highest if name.endswith(_HIGHER_IS_BETTER) else lowest).get(name)


def _begun_ns(run: RunFolder) -> int:
    return (run.path / "run.json").stat().st_mtime_ns


# --- counting data ------------------------------------------------------------------------------------------


def _counted(path: Path) -> dict[str, Any]:
    """Counts of a manifest, a text file or a folder of documents; empty if it is missing or damaged."""
    try:
        if (path / META).is_file():
            return _count_documents(path)
        return _count_lines(path) if path.is_file() else {}
    except (OSError, ValueError, KeyError, UserError):
        return {}


def _count_documents(folder: Path) -> dict[str, Any]:
    meta = json.loads((folder / META).read_text())
    seconds, languages = 0.0, set()
    for shard in meta.get("shards") or []:
        table = pq.read_table(folder / shard["name"], columns=["speech_sec", "lang"])
        seconds += pc.sum(table["speech_sec"]).as_py() or 0.0  # pyright: ignore[reportAttributeAccessIssue]
        languages |= set(table["lang"].unique().to_pylist())
    return {
        "items": meta["documents"],
        "rows": meta["rows"],
        "kind": meta["kind"],
        "hours": seconds / 3600 or None,
        "languages": tuple(sorted(filter(None, languages))),
    }


def _count_lines(file: Path) -> dict[str, Any]:
    """Number of lines of a text file; for JSON lines also their `duration` and `lang`."""
    count, seconds, languages = 0, 0.0, set()
    is_json = file.suffix == ".jsonl" or file.suffix == ".json"
    with file.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if not line.strip():
                continue
            count += 1
            content = json.loads(line) if is_json else None
            if isinstance(content, dict):
                duration, lang = content.get("duration"), content.get("lang")
                seconds += duration if isinstance(duration, int | float) else 0.0
                languages |= {lang} if isinstance(lang, str) else set()
    return {"items": count, "hours": seconds / 3600 or None, "languages": tuple(sorted(languages))}
