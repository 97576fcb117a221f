"""Report of the study `talk`: aims, times, evaluations, and audio of held-out questions and replies."""

import csv
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.evaluations import metrics_of
from experiments.studies.talk_data import write_lines
from lit_moss.audio import io, rates
from lit_moss.corpora.facts import has_answer
from lit_moss.evaluate.evaluation import markdown_table, wilson
from lit_moss.evaluate.statistics import mcnemar
from lit_moss.records import json_lines
from lit_moss.runs.launch import RunError


def answer_aloud(
    questions: Path, model: Path, folder: Path, count: int, answer: Callable[[Path, Path], None]
) -> None:
    """Writes the first questions of a list and the model's spoken answers as FLAC, and `sounds.jsonl`.

    Args:
        questions: List as for `evaluate spoken_qa`.
        model: Folder of the model.
        folder: Output folder; existing contents are removed.
        count: Number of questions.
        answer: Function (question file, answer file) that writes the spoken answer to a question.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    records = [
        record.content for _, record in zip(range(count), json_lines(questions, "a question"), strict=False)
    ]
    for i, record in enumerate(records):
        asked, said = folder / f"{i:02d}-question.flac", folder / f"{i:02d}-answer.flac"
        wave_T = io.read(questions.parent / record["audio"], rates.TOKENIZER_RATE_HZ)
        io.write(asked, wave_T, rates.TOKENIZER_RATE_HZ)
        record["sound"] = asked.name
        try:
            made = folder / "answer.wav"
            answer(asked, made)
            # 16 kHz, as for the questions, so that ten of both take less than 1 MB.
            io.write(said, io.read(made, rates.TOKENIZER_RATE_HZ), rates.TOKENIZER_RATE_HZ)
            made.unlink()
            record["answer"] = said.name
        except RunError as error:  # a model may answer without any audio
            record["failed"] = str(error)
    kept = ("id", "question", "answers", "group", "voice", "sound", "answer", "failed")
    write_lines(folder / "sounds.jsonl", [{k: r[k] for k in kept if k in r} for r in records])


def report(folder: Path, seconds: Mapping[str, float], cer: float | None = None) -> str:
    """Returns the report in Markdown, and writes it to FOLDER/report.md.

    Args:
        folder: Folder of the study.
        seconds: Computing time of each stage in seconds, and of `all`, which is less than the sum if stages
            ran at the same time; evaluations without a time are left out.
        cer: Character error rate of the tokenizer on held-out sentences; None: not measured.
    """
    parts = ["# A small system that talks", ""]
    found = sorted((folder / "evaluations").glob("*/report.md"))
    reports = [path for path in found if path.parent.name in seconds]
    results = {path.parent.name: metrics_of(path.parent) for path in reports}
    crossed: list[dict[str, Any]] = []
    if "qa" in results:
        relation = {
            str(record.content["id"]): str(record.content["relation"])
            for record in json_lines(folder / "lists" / "qa.jsonl", "a question")
        }
        crossed = crossing(_items(folder, "qa"), relation)
    aims = (
        [] if cer is None else [_aim("tokenizer, character errors, held-out sentences", "0.08 or less", cer)]
    )
    if aims := [*aims, *_aims(results), *_crossing_aims(crossed)]:
        parts += ["## Aims", "", markdown_table(aims)]
    if crossed:
        parts += ["## What is known in text, asked and answered aloud", "", _CROSSING, ""]
        parts.append(markdown_table(crossed))
    if len(forms := {p: p.partition("-")[2] for p in results if p == "qa" or p.startswith("qa-")}) > 1:
        of_form = {form or "main": _items(folder, name) for name, form in forms.items()}
        parts += ["## Forms of spoken replies", "", _FORMS, "", markdown_table(forms_table(of_form))]
    rows = [{"stage": name, "minutes": s / 60} for name, s in seconds.items()]
    parts += ["## Computing time", "", markdown_table(rows, 1)]
    for path in reports:
        parts += [f"## {path.parent.name}", "", path.read_text(encoding="utf-8").strip(), ""]
    text = "\n".join(parts)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


_CROSSING = (
    "`right` is the share of all questions, `of known` that of those with a right answer as text to text, "
    "with its 95 % interval, and `chance` how often a reply fits another fact of the same relation instead."
)


def _items(folder: Path, name: str) -> list[dict[str, str]]:
    """Rows of items.csv of an evaluation."""
    with (folder / "evaluations" / name / "items.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


_FORMS = (
    "`heard` is the share of right answers in what is understood of the sound, `written` that in the reply's "
    "own text. p: McNemar's exact test of `heard` against the first form, on the same questions."
)


def forms_table(rows_of: Mapping[str, Sequence[Mapping[str, str]]]) -> list[dict[str, Any]]:
    """Compares several forms of spoken replies, by the modality of the question.

    Args:
        rows_of: Form -> rows of items.csv of `evaluate spoken_qa`; the others are compared with the first.
    """
    table = []
    first: dict[str, dict[str, float]] = {}
    for form, rows in rows_of.items():
        for pair in ("text-speech", "speech-speech"):
            own = [row for row in rows if row["pair"] == pair]
            heard = {row["id"]: float(row["match_norm"]) for row in own}
            written = [float(row["text_match_norm"]) for row in own if row.get("text_match_norm")]
            before = first.setdefault(pair, heard)
            both = [name for name in before if name in heard]
            low, high = wilson(sum(heard.values()), len(heard))
            table.append(
                {
                    "form": form,
                    "pair": pair,
                    "n": len(own),
                    "heard": _mean(list(heard.values())),
                    "interval": f"{low:.2f} to {high:.2f}",
                    "written": _mean(written),
                    "p": mcnemar([before[n] for n in both], [heard[n] for n in both]).p,
                }
            )
    return table


def crossing(rows: Sequence[Mapping[str, Any]], relation: Mapping[str, str]) -> list[dict[str, Any]]:
    """How often questions answered correctly in text are answered by other modality pairs, per group.

    Args:
        rows: Rows of items.csv of `evaluate spoken_qa`.
        relation: Id of a question -> name of its relation.
    """
    known = {row["id"] for row in rows if row["pair"] == "text-text" and float(row["match_norm"])}
    table = []
    for group, pair in dict.fromkeys((row["group"], row["pair"]) for row in rows):
        own = [row for row in rows if (row["group"], row["pair"]) == (group, pair)]
        of_known = [float(row["match_norm"]) for row in own if row["id"] in known]
        low, high = wilson(sum(of_known), len(of_known))
        table.append(
            {
                "group": group,
                "pair": pair,
                "n": len(own),
                "right": _mean([float(row["match_norm"]) for row in own]),
                "known": len(of_known),
                "of known": _mean(of_known),
                "interval": f"{low:.2f} to {high:.2f}",
                "chance": _chance([row for row in own if row["id"] in known], relation),
            }
        )
    return table


def _chance(rows: Sequence[Mapping[str, Any]], relation: Mapping[str, str]) -> float | None:
    """Mean probability that a reply is correct for another fact of its relation with a different answer."""
    shares = []
    for row in rows:
        reply, own = row.get("transcript") or row.get("reply") or "", row["answers"]
        others = {
            other["answers"]
            for other in rows
            if relation.get(other["id"]) == relation.get(row["id"]) and other["answers"] != own
        }
        if others:
            shares.append(
                _mean([float(has_answer(reply, answers.split(" | "))) for answers in sorted(others)])
            )
    return _mean(shares)


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers else None


def _aim(what: str, aim: str, reached: Any) -> dict[str, Any]:
    return {"what": what, "aim": aim, "reached": reached}


def _crossing_aims(crossed: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        _aim(f"{pair}, held-out {group}, of those right in text", aim, line["of known"])
        for group, pair, aim in (
            ("phrasing", "speech-text", "0.60 or more"),
            ("phrasing", "speech-speech", "0.40 or more"),
            ("fact", "speech-text", "above chance"),
            ("fact", "speech-speech", "above chance"),
        )
        for line in crossed
        if (line["group"], line["pair"]) == (group, pair)
    ]


def _aims(results: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    """Rows of the aims that were measured."""
    lines = []
    for what, aim, measured, *by in AIMS:
        found = [_value(results.get(name, {}), key) for name, key in (measured, *by)]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            lines.append(_aim(what, aim, values[0] / max(values[1], 1e-9) if by else values[0]))
    return lines


def _value(metrics: Mapping[str, float], key: str) -> float | None:
    """The metric whose name ends with `key`, since benchmarks prefix names with files and folders."""
    found = [value for name, value in metrics.items() if name.endswith(key)]
    return found[0] if found else None


# Of stories, which are not in the training data: sentences like those of the study are learnt in any case.
_PPL, _CLOZE = "stories-en/text-text/ppl", "stories-en/text-text/whole-mean"
# Description, aim, (evaluation, metric), and optionally (evaluation, metric) to divide by.
AIMS: tuple[tuple[Any, ...], ...] = (
    ("word errors of true mels -> sound", "", ("resynthesis", "vocoder/wer")),
    ("word errors of codes -> sound", "", ("resynthesis", "codec/wer")),
    (
        "the second over the first",
        "1.5 or less",
        ("resynthesis", "codec/wer"),
        ("resynthesis", "vocoder/wer"),
    ),
    ("DNSMOS of codes -> sound", "2.5 or more", ("resynthesis", "codec/dnsmos")),
    (
        "text perplexity of stories over the backbone's",
        "1.02 or less",
        ("text_cloze", _PPL),
        ("text_cloze_before", _PPL),
    ),
    (
        "text cloze of stories over the backbone's",
        "0.98 or more",
        ("text_cloze", _CLOZE),
        ("text_cloze_before", _CLOZE),
    ),
    ("everyday choices over the backbone's", "0.98 or more", ("text", "/acc"), ("text_before", "/acc")),
    (
        "end of a spoken question -> first sound, ms, median",
        "1000 or less",
        ("latency", "speech_to_speech/1/first_sound/p50"),
    ),
)
