"""What the study `talk` has reached: aims, times, reports of evaluations, sounds of held-out questions."""

import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.studies.talk_data import write_lines
from lit_moss.audio import io, rates
from lit_moss.errors import UserError
from lit_moss.evaluate.evaluation import markdown_table
from lit_moss.records import json_lines
from lit_moss.runs.launch import RunError

_FOLDER = re.compile(r"^(?P<folder>\S.*): (?:done before|report\.md)", re.MULTILINE)


def keep(name: str, benchmark: str, log: Path, folder: Path) -> dict[str, Any]:
    """Copies report and metrics of an evaluation into FOLDER/evaluations/NAME; returns the metrics.

    Args:
        name: Of the evaluation.
        benchmark: Its benchmark.
        log: Output of `evaluate`, whose last lines name the folder of its results.
        folder: Of the study.

    Raises:
        UserError: if the log names none.
    """
    folders = [Path(m["folder"]) for m in _FOLDER.finditer(log.read_text(errors="replace"))]
    found = [path for path in folders if path.name.startswith(f"{benchmark}-") and path.is_dir()]
    if not found:
        raise UserError(f"{log} names no folder of results: expected that of evaluate {benchmark}")
    kept = folder / "evaluations" / name
    kept.mkdir(parents=True, exist_ok=True)
    for file in ("report.md", "result.json"):
        shutil.copyfile(found[-1] / file, kept / file)
    return json.loads((kept / "result.json").read_text())


def answer_aloud(
    questions: Path, model: Path, folder: Path, count: int, answer: Callable[[Path, Path], None]
) -> None:
    """The first questions of a list with the model's spoken answers, as FLAC, and `sounds.jsonl`.

    Args:
        questions: List as of `evaluate spoken_qa`.
        model: Folder of the model.
        folder: For the sounds; those that are there already stay where it was killed between.
        count: How many.
        answer: Makes the sound of the answer to a sound.
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
            answer(asked, said)
            record["answer"] = said.name
        except RunError as error:  # a model may answer without any sound
            record["failed"] = str(error)
    kept = ("id", "question", "answers", "group", "voice", "sound", "answer", "failed")
    write_lines(folder / "sounds.jsonl", [{k: r[k] for k in kept if k in r} for r in records])


def report(folder: Path, seconds: Sequence[tuple[str, float]]) -> str:
    """Markdown, also written to FOLDER/report.md.

    Args:
        folder: Of the study.
        seconds: Computing time of each stage.
    """
    parts = ["# A small system that talks", ""]
    reports = sorted((folder / "evaluations").glob("*/report.md"))
    results = {path.parent.name: json.loads((path.parent / "result.json").read_text()) for path in reports}
    if rows := _aims(results):
        parts += ["## Aims", "", markdown_table(rows)]
    rows = [{"stage": name, "minutes": s / 60} for name, s in seconds]
    rows.append({"stage": "all", "minutes": sum(s for _, s in seconds) / 60})
    parts += ["## Computing time", "", markdown_table(rows, 1)]
    for path in reports:
        parts += [f"## {path.parent.name}", "", path.read_text(encoding="utf-8").strip(), ""]
    text = "\n".join(parts)
    (folder / "report.md").write_text(text, encoding="utf-8")
    return text


def _aims(results: Mapping[str, Mapping[str, float]]) -> list[dict[str, Any]]:
    return [
        {"what": what, "aim": aim, "reached": results[name][key]}
        for name, key, what, aim in AIMS
        if key in results.get(name, {})
    ]


# Evaluation, its metric, in words, the aim.
AIMS: tuple[tuple[str, str, str, str], ...] = (
    ("resynthesis", "codec/wer", "word errors of codes -> sound", "1.5 times those of true mels"),
    ("resynthesis", "vocoder/wer", "word errors of true mels", ""),
    ("resynthesis", "codec/dnsmos", "DNSMOS of codes -> sound", "2.5 or more"),
)
