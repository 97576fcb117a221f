"""Data for the tasks in this folder, for lm-eval: `custom_dataset: !function local.questions`."""

import json
from pathlib import Path
from typing import Any


def questions(file: str, **_: Any) -> Any:
    """A DatasetDict with the splits of a JSON lines file in this folder; each line names its `split`.

    Args:
        file: Name of the file.
        **_: Settings of lm-eval that are not used here.
    """
    from datasets import Dataset, DatasetDict

    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    splits = dict.fromkeys(record["split"] for record in records)
    return DatasetDict(
        {name: Dataset.from_list([r for r in records if r["split"] == name]) for name in splits}
    )
