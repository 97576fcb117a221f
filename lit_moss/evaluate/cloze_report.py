"""Results of the cloze benchmark: right or wrong by each score, the report, comparisons of two models."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.evaluate.cloze_options import METHODS, Config, Method
from lit_moss.evaluate.cloze_scorer import Item
from lit_moss.evaluate.cloze_sets import Modalities
from lit_moss.evaluate.evaluation import FAILED, markdown_table, wilson
from lit_moss.evaluate.statistics import mcnemar


@dataclass(frozen=True)
class Outcome:
    """Outcome of one item.

    Args:
        item: The item.
        right: Score -> 1, .5 for a tie, or 0; all 0 for a failed item.
        margin: Score -> score of the true minus score of the false continuation; empty for a failed item.
        shorter: Result of always choosing the shorter ending: 1, .5 or 0; None for a failed item.
        nll: -log p of the counted rows of context and true ending, and their number.
        failed: Why there is no score; otherwise "".
    """

    item: Item
    right: dict[str, float]
    margin: dict[str, float]
    shorter: float | None
    nll: tuple[float, int]
    failed: str = ""


def outcome(item: Item, result: dict[str, Any]) -> Outcome:
    """The outcome of an item's result."""
    if FAILED in result:
        return Outcome(item, dict.fromkeys(METHODS, 0.0), {}, None, (0.0, 0), result[FAILED])
    good, bad = result["good"], result["bad"]
    margin = {
        "whole-mean": good["whole"] / good["whole_rows"] - bad["whole"] / bad["whole_rows"],
        "ending-sum": good["ending"] - bad["ending"],
        "ending-mean": good["ending"] / good["ending_rows"] - bad["ending"] / bad["ending_rows"],
    }
    right = {method: _half_step(value) for method, value in margin.items()}
    shorter = _half_step(bad["whole_rows"] - good["whole_rows"])
    return Outcome(item, right, margin, shorter, (-good["whole"], good["whole_rows"]))


def _half_step(x: float) -> float:
    return 0.5 * ((x > 0) + (x >= 0))


def _by_key(outcomes: Sequence[Outcome], values: Sequence[float]) -> dict[str, float]:
    """Means over the pairs with the same key, such as the voices of a sentence."""
    found: dict[str, list[float]] = {}
    for one, value in zip(outcomes, values, strict=True):
        found.setdefault(one.item.pair.key, []).append(value)
    return {key: sum(own) / len(own) for key, own in found.items()}


def accuracy(outcomes: Sequence[Outcome], method: str) -> tuple[float, int]:
    """Accuracy over pairs, after averaging voices, and the number of pairs."""
    found = _by_key(outcomes, [one.right[method] for one in outcomes])
    return sum(found.values()) / len(found), len(found)


def summary(
    config: Config, outcomes: Sequence[Outcome], against: "dict[str, dict[str, Any]] | None" = None
) -> tuple[dict[str, float], str, list[dict[str, Any]], dict[str, Any]]:
    """Metrics, report, a row per item, and figures."""
    metrics: dict[str, float] = {}
    rows, kinds, compared = [], [], []
    parts: dict[tuple[str, Modalities], list[Outcome]] = {}
    for one in outcomes:
        parts.setdefault((one.item.set_name, one.item.modalities), []).append(one)
    for (name, modalities), own in parts.items():
        row, values = _summary_row(name, modalities, own, config.score)
        rows.append(row)
        metrics |= {f"{name}/{modalities}/{key}": value for key, value in values.items()}
        kinds += _kinds(name, modalities, own, config.score)
        if against is not None:
            compared.append(_compared(name, modalities, own, against, config.score))
    failed = [one for one in outcomes if one.failed]
    lines = [
        f"# Cloze: {config.model}",
        "",
        "Accuracy in each score; chance is .5, ties count .5, failed items count as wrong. The interval is "
        f"the 95 % one of {config.score}. `shorter` is the accuracy of always taking the ending with fewer "
        "rows, `ppl` the perplexity of the true continuations with their context.",
        "",
        markdown_table(rows),
        f"eosp {'counts' if config.count_eosp else 'does not count'}; codes "
        f"{'without repetitions' if config.deduplicate else 'as they are'}; {config.join} of a spoken "
        f"context and ending are joined; other modality {'masked' if config.mask_other else 'not masked'}; "
        f"weights {config.dtype}.",
    ]
    if kinds:
        lines += ["", f"## Kinds of pairs ({config.score})", "", markdown_table(kinds)]
    if compared:
        lines += ["", f"## Against {config.against} ({config.score})", "", markdown_table(compared)]
    if failed:
        lines += ["", "## Failed", "", *(f"- {one.item.id}: {one.failed}" for one in failed)]
    figures = {"margins.png": _margins(parts, config.score)}
    return metrics, "\n".join(lines) + "\n", [_table_row(one) for one in outcomes], figures


def _summary_row(
    name: str, modalities: Modalities, own: Sequence[Outcome], score: Method
) -> tuple[dict[str, Any], dict[str, float]]:
    """A line of the report and the metrics for one set in one pair of modalities."""
    right = {method: accuracy(own, method) for method in METHODS}
    n = right[score][1]
    scored = [o for o in own if o.shorter is not None]
    shorter = _by_key(scored, [o.shorter or 0.0 for o in scored])
    nll, counted = (sum(values) for values in zip(*(o.nll for o in own), strict=True))
    values = {method: value for method, (value, _) in right.items()}
    failed = sum(bool(o.failed) for o in own)
    # None for a set in which every item failed: a perplexity of 1 would be perfect.
    more = {
        "shorter": sum(shorter.values()) / len(shorter) if shorter else None,
        "ppl": math.exp(min(nll / counted, 80.0)) if counted else None,
    }
    low, high = wilson(right[score][0] * n, n)
    head = {"set": name, "context-ending": modalities, "n": n, "failed": failed}
    line = {**head, **values, "95 %": f"{low:.3f} to {high:.3f}", **more}
    known = {key: value for key, value in more.items() if value is not None}
    return line, {**values, **known, "low": low, "high": high, "n": n, "failed": failed}


def _kinds(name: str, modalities: Modalities, own: Sequence[Outcome], method: str) -> list[dict[str, Any]]:
    """Lines for the kinds of pairs, for a set that has several."""
    groups = sorted({o.item.pair.group for o in own} - {""})
    lines = []
    for group in groups if len(groups) > 1 else ():
        value, n = accuracy([o for o in own if o.item.pair.group == group], method)
        low, high = wilson(value * n, n)
        head = {"set": name, "context-ending": modalities, "kind": group, "n": n}
        lines.append({**head, method: value, "95 %": f"{low:.3f} to {high:.3f}"})
    return lines


def _table_row(one: Outcome) -> dict[str, Any]:
    item = one.item
    return {
        "set": item.set_name, "item": item.pair.id, "modalities": item.modalities, "kind": item.pair.group,
        **{f"{method} right": one.right[method] for method in METHODS},
        **{f"{method} margin": one.margin.get(method) for method in METHODS},
        "shorter": one.shorter, "failed": one.failed,
    }  # fmt: skip


def _margins(parts: dict[tuple[str, Modalities], list[Outcome]], method: str) -> Any:
    """Histograms of the margins, which show how clearly pairs are decided."""
    from matplotlib.figure import Figure  # without pyplot, which opens windows and keeps figures

    figure = Figure(figsize=(7, 1 + 1.7 * len(parts)))
    for number, ((name, modalities), own) in enumerate(parts.items(), start=1):
        axes = figure.add_subplot(len(parts), 1, number)
        axes.hist([o.margin[method] for o in own if o.margin], bins=40)
        axes.axvline(0.0, color="black", linewidth=0.8)
        axes.set_ylabel("pairs")
        axes.set_title(f"{name}, {modalities}", fontsize=9)
        axes.set_xlabel(f"{method} of the true less that of the false continuation, nats")
    figure.tight_layout()
    return figure


# --- comparison ---------------------------------------------------------------------------------------------


def results_of(folder: str) -> dict[str, dict[str, Any]]:
    """Item -> result of an earlier evaluation.

    Raises:
        UserError: if the folder does not contain one.
    """
    file = Path(folder) / "items.jsonl"
    try:
        # Only a newline ends a line: a name may contain U+2028.
        records = [json.loads(line) for line in file.read_bytes().splitlines()]
        return {record["item"]: record["result"] for record in records}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"against is {folder}, expected the folder of a cloze evaluation ({error})"
        ) from error


def _compared(
    name: str,
    modalities: Modalities,
    own: Sequence[Outcome],
    against: dict[str, dict[str, Any]],
    method: str,
) -> dict[str, Any]:
    """A line of the comparison, over the items that both evaluations have."""
    both = [one for one in own if one.item.id in against]
    others = [outcome(one.item, against[one.item.id]) for one in both]
    if not both:
        raise UserError(f"the evaluation that against names has no item of {name}, {modalities}")
    here = _by_key(both, [one.right[method] for one in both])
    there = _by_key(others, [one.right[method] for one in others])
    test = mcnemar(list(here.values()), list(there.values()))
    n = len(here)
    return {
        "set": name, "context-ending": modalities, "n": n, "this": sum(here.values()) / n,
        "other": sum(there.values()) / n, "only this": test.only_a, "only other": test.only_b, "p": test.p,
    }  # fmt: skip
