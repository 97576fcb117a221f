"""Results of `evaluate` runs that a study has started."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError

_FOLDER = re.compile(r"^(?P<folder>\S.*): (?:done before|report\.md)", re.MULTILINE)


def keep(name: str, log: Path, kept: Path) -> dict[str, Any]:
    """Copies report and metrics of an evaluation into a folder; returns the metrics.

    Args:
        name: Of the evaluation.
        log: Output of `evaluate`, whose last lines name the folder of its results.
        kept: Made if needed.

    Raises:
        UserError: if the log names none.
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
    """Metrics of an evaluation; those of rungs as RUNG/NAME."""
    content = json.loads((kept / "result.json").read_text())
    flat = {key: value for key, value in content.items() if not isinstance(value, dict)}
    return flat | {
        f"{k}/{name}": v for k, of in content.items() if isinstance(of, dict) for name, v in of.items()
    }
