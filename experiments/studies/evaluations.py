"""Benchmarks that a study runs with `evaluate`, and their results."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from experiments.studies.stages import run_verb
from lit_moss.errors import UserError

_FOLDER = re.compile(r"^(?P<folder>\S.*): (?:done before|report\.md)", re.MULTILINE)


def run_benchmark(
    benchmark: str, recipe: Mapping[str, Any], file: Path, log: Path, kept: Path, study: tuple[str, str],
    tags: Mapping[str, str], threads: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Runs `evaluate`, which continues a killed evaluation; returns the metrics.

    Args:
        benchmark: Name of the benchmark.
        recipe: Options of the benchmark.
        file: YAML file that the options are written to.
        log: File that the output is appended to.
        kept: Folder that the report and the metrics are copied to, see `keep`.
        study: MLflow experiment, and root folder of all runs.
        tags: MLflow tags of the evaluation's run.
        threads: OMP_NUM_THREADS of the process; None: unchanged.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(dict(recipe), sort_keys=False, allow_unicode=True))
    name, run_root = study
    words = ["evaluate", benchmark, "-c", str(file), "--name", name, "--run_root", run_root]
    run_verb(words, log, tags, threads)
    return keep(benchmark, log, kept)


def keep(name: str, log: Path, kept: Path) -> dict[str, Any]:
    """Copies the report and the metrics of an evaluation to a folder; returns the metrics.

    Args:
        name: Name of the evaluation.
        log: Output of `evaluate`, whose last lines name the folder of its results.
        kept: Output folder; created if it does not exist.

    Raises:
        UserError: if the log names no folder with results.
    """
    folders = [Path(m["folder"]) for m in _FOLDER.finditer(log.read_text(errors="replace"))]
    found = [path for path in folders if (path / "result.json").is_file()]
    if not found:
        raise UserError(f"{log} names no folder of results: expected that of {name} as its last line")
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("report.md", "result.json", "items.csv"):
        if (found[-1] / file).is_file():
            shutil.copyfile(found[-1] / file, kept / file)
    return metrics_of(kept)


def metrics_of(kept: Path) -> dict[str, float]:
    """Metrics of an evaluation; those of a nested table as RUNG/NAME."""
    content = json.loads((kept / "result.json").read_text())
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return flat | {
        f"{k}/{name}": v for k, of in content.items() if isinstance(of, dict) for name, v in of.items()
    }
