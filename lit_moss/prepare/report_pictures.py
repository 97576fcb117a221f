"""Figures of the report: histograms of durations and lengths, and bars of rejections."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_moss.prepare.storage import Storage

BIN_SEC = 0.5


def _save(figure: Any, storage: Storage, name: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    path = f"pictures/{name}.png"
    storage.write(path, buffer.getvalue())
    return path


def _figure() -> Any:
    from matplotlib.figure import Figure  # without pyplot, which opens windows and keeps figures

    return Figure(figsize=(7, 3.5), layout="constrained")


def durations(storage: Storage, bins_of: Mapping[str, Mapping[int, int]]) -> str:
    """Histogram of durations.

    Args:
        storage: Folder of the report.
        bins_of: Name of a group -> index of the bin of width `BIN_SEC` -> number of items.
    """
    figure = _figure()
    axes = figure.subplots()
    highest = max((max(bins) for bins in bins_of.values() if bins), default=0)
    edges = np.arange(highest + 2) * BIN_SEC
    for name, bins in bins_of.items():
        axes.stairs([bins.get(i, 0) for i in range(highest + 1)], edges, label=name, fill=True, alpha=0.5)
    axes.set(xlabel="duration in seconds", ylabel="sounds", title="Durations")
    axes.legend()
    return _save(figure, storage, "durations")


def lengths(storage: Storage, rows_of: Mapping[str, np.ndarray], context: int | None) -> str:
    """Histogram of the number of rows of documents, with a line at the context."""
    figure = _figure()
    axes = figure.subplots()
    longest = max((int(rows.max(initial=1)) for rows in rows_of.values()), default=1)
    edges = np.linspace(0, longest + 1, 41)
    for name, rows in rows_of.items():
        axes.hist(rows, edges, label=name, alpha=0.5)
    if context is not None:
        axes.axvline(context, color="black", linestyle="--", label="context")
    axes.set(xlabel="rows", ylabel="documents", title="Lengths of documents")
    axes.legend()
    return _save(figure, storage, "lengths")


def rejections(storage: Storage, numbers: Sequence[tuple[str, int]]) -> str:
    """Bar chart of the number of items that each rule rejected.

    Args:
        storage: Folder of the report.
        numbers: Rule with its step, and number of items.
    """
    figure = _figure()
    figure.set_size_inches(7, 1.2 + 0.28 * len(numbers))
    axes = figure.subplots()
    bars = axes.barh([name for name, _ in numbers], [number for _, number in numbers])
    axes.bar_label(bars, padding=3)
    axes.invert_yaxis()
    axes.set(xlabel="items", title="Left out, by step and rule")
    return _save(figure, storage, "rejections")
