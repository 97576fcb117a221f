"""Results of `evaluate resynthesis`: means of each rung, and the report."""

from collections.abc import Sequence
from typing import Any

from lit_moss.evaluate import wer
from lit_moss.evaluate.evaluation import markdown_table
from lit_moss.evaluate.intervals import half_width, pooled_interval

Row = dict[str, Any]
Counts = dict[str, list[wer.Errors]]
# Means over clips; word errors are computed separately.
MEASURES = (
    "similarity", "similarity_prompt", "dnsmos", "dnsmos_sig", "dnsmos_bak", "utmos", "mcd_db", "roughness",
    "rtf", "first_sound_sec", "seam_ratio",
)  # fmt: skip
WORD_ERRORS = ("wer_seed", "wer_seed_pooled", "wer_normalised", "wer_normalised_pooled")
METRICS = ("wer", *MEASURES)


def means(rows: Sequence[Row], rungs: Sequence[str], language: str = "en") -> dict[str, dict[str, float]]:
    """Rung -> pooled word error rate, the rates in `WORD_ERRORS`, and the means of all other measures."""
    metrics: dict[str, dict[str, float]] = {}
    for rung in rungs:
        own = [row for row in rows if row["rung"] == rung]
        values = metrics[rung] = {}
        for name, counts in _counts(own, language).items():
            if name != "wer":
                values[name.removesuffix("_pooled")] = wer.mean_rate(counts)
            values[name] = wer.pooled_rate(counts)
        for key in MEASURES:
            measured = [row[key] for row in own if row.get(key) is not None]
            if measured:
                values[key] = sum(measured) / len(measured)
    return metrics


def _counts(own: Sequence[Row], language: str) -> Counts:
    """Pooled rate -> errors of each clip of a rung that has a transcript; empty without words."""
    heard = [row for row in own if row["words"] is not None]
    if not sum(row["words"] for row in heard):
        return {}
    counts = {"wer": [wer.Errors(row["errors"], row["words"]) for row in heard]}
    spoken = [row for row in own if row.get("reference") and row.get("hypothesis") is not None]
    for mode in wer.MODES if spoken else ():
        pairs = [(row["reference"], row["hypothesis"]) for row in spoken]
        counts[f"wer_{mode}_pooled"] = [wer.errors(*pair, language, mode) for pair in pairs]
    return counts


def report(
    metrics: dict[str, dict[str, float]],
    rows: Sequence[Row],
    config: Any,
    clips: int,
    unread: list[str],
) -> str:
    """Markdown: a table with a line per rung, and another with word errors in %."""
    of_rung = {rung: [row for row in rows if row["rung"] == rung] for rung in metrics}
    counts = {rung: _counts(own, config.language) for rung, own in of_rung.items()}
    text = (
        f"# Resynthesis: {config.codec}\n\n{clips} clips of {config.clips}, {len(unread)} failures; ASR "
        f"{config.judge}, speaker encoder {config.speaker}, voice prompt {config.voice_prompt}; ± is half of "
        "a 95 % interval, those of pooled word errors are by a bootstrap over clips"
        + (f"; not readable, counted as not recognised: {', '.join(unread)}" if unread else "")
        + f"\n\n{_table(metrics, of_rung, counts, METRICS)}"
    )
    if any("wer_seed" in values for values in metrics.values()):
        unit, after = "Word", "Whisper's normaliser"
        if config.language == "zh":
            unit, after = "Character", "simplification and with digits written out"
        text += (
            f"\n{unit} errors in %: wer_seed as Seed-TTS-Eval (mean of clips, no normalisation of numbers), "
            f"wer_normalised after {after}\n\n{_table(metrics, of_rung, counts, WORD_ERRORS, 100)}"
        )
    if any("similarity" in values for values in metrics.values()):
        text += "\nsimilarity: with the recording itself; similarity_prompt: with the voice prompt\n"
    return text


def _table(
    metrics: dict[str, dict[str, float]],
    rows: dict[str, list[Row]],
    counts: dict[str, Counts],
    names: Sequence[str],
    scale: float = 1,
) -> str:
    """Markdown of the available measures, with intervals of means over clips and of pooled rates."""
    heads = [name for name in names if any(name in values for values in metrics.values())]
    lines = []
    for rung, values in metrics.items():
        line: dict[str, Any] = {"": rung}
        for name in heads:
            value = f"{scale * values[name]:.3f}" if name in values else ""
            measured = [row[name] for row in rows[rung] if row.get(name) is not None]
            if len(counted := counts[rung].get(name, ())) > 1:
                low, high = pooled_interval([c.errors for c in counted], [c.words for c in counted])
                value += f" ({scale * low:.3f} to {scale * high:.3f})"
            elif name in values and (half := half_width(measured)) is not None:
                value += f" ± {scale * half:.3f}"
            line[name] = value
        lines.append(line)
    return markdown_table(lines)
