"""Tables, pictures and sounds of what a chain has made.

    report.md      steps, documents, the paper's tables 1 and 2, sources and licences, rejections
    pictures/      durations, lengths of documents, rejections
    audio/         sounds to listen to: some that were kept, and the worst that were not

In a chain it reads all steps before it; alone, the manifests that it is given: `prepare report
OUT/*/manifest.jsonl --out OUT/report`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lit_moss.data.conversation import PAIRS
from lit_moss.errors import UserError
from lit_moss.prepare import report_pictures as pictures
from lit_moss.prepare.folder_counts import documents_out
from lit_moss.prepare.language import text_language
from lit_moss.prepare.report_data import (
    StepFiles,
    Tally,
    final_steps,
    licence_of,
    read_steps,
    real_or_synthetic,
    source_of,
)
from lit_moss.prepare.report_sounds import Sounds
from lit_moss.prepare.stage import Item, Result, WholeStage
from lit_moss.records import is_number

_REPORT = "report.md"
LANGUAGE_NAMES = {"en": "English", "zh": "Chinese"}


@dataclass(frozen=True)
class ReportOptions:
    """What the report shows.

    Args:
        context: Rows of a training sequence, to say how many documents are longer; null says nothing.
        sounds: Sounds of each group: kept, and dropped because of what ASR heard. Of other rules, one each.
        sound_sec: Longest sound in seconds; longer ones are cut.
        seed: Of the choice of sounds.
    """

    context: int | None = None
    sounds: int = 8
    sound_sec: float = 30.0
    seed: int = 1

    def __post_init__(self) -> None:
        if (self.context is not None and self.context < 2) or self.sounds < 0 or self.sound_sec <= 0:
            raise UserError(
                f"context is {self.context}, sounds {self.sounds}, sound_sec {self.sound_sec}: expected 2 "
                "rows or more, 0 or more, above 0"
            )


class ReportStage(WholeStage):
    """Writes `report.md` with its pictures and sounds; its manifest is empty."""

    name = "report"
    reads = "all"
    Options = ReportOptions

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        return [_REPORT]

    def run_all(self, sources: Sequence[str]) -> Result:
        steps = read_steps(sources)
        made = _Made(final_steps(steps))
        sounds = Sounds(self.storage, self.options.sounds, self.options.sound_sec, self.options.seed)
        parts = [
            "# What was prepared",
            steps_table(steps),
            *_part("Documents", documents_table(steps, self.options.context)),
            *_part("Hours by language (table 1 of the paper)", hours_table(steps)),
            *_part("Conversations by source and pair (table 2 of the paper)", samples_table(steps)),
            *_part("Sources and licences", licences_table(made.licences)),
            *_part("Word errors of what was synthesised", errors_table(steps)),
            *_part("Left out", rejections_table(steps)),
            *_part("Pictures", self._pictures(steps, made)),
            *_part("Sounds", sounds.of(steps)),
        ]
        self.storage.write(_REPORT, ("\n\n".join(parts) + "\n").encode())
        return Result(counts={"sounds": sounds.written, "sources": len(made.licences.items)})

    def _pictures(self, steps: Sequence[StepFiles], made: "_Made") -> str:
        paths = []
        if made.durations:
            paths.append(pictures.durations(self.storage, made.durations))
        rows_of = {d.name: d.rows_D for step in steps for d in step.documents}
        if rows_of:
            paths.append(pictures.lengths(self.storage, rows_of, self.options.context))
        numbers = [
            (f"{step.name}: {reason}", number)
            for step in steps
            for reason, number in sorted(step.counts.get("rejected", {}).items())
        ]
        if numbers:
            paths.append(pictures.rejections(self.storage, numbers))
        return "\n".join(f"![{path}]({path})" for path in paths)


class _Made:
    """What is counted of the items that went into documents, in one pass over them."""

    def __init__(self, final: Sequence[StepFiles]) -> None:
        self.licences = Tally()
        self.durations: dict[str, Counter[int]] = defaultdict(Counter)
        for step in final:
            for item in step.items():
                origin, seconds = real_or_synthetic(item), 0.0
                for part in (item, *(item.get("messages") or ())):
                    if is_number(part.get("duration")):
                        seconds += part["duration"]
                        self.durations[origin][int(part["duration"] / pictures.BIN_SEC)] += 1
                key = (source_of(item), licence_of(item), _language(item), origin)
                self.licences.add(key, seconds)


def _language(item: Item) -> str:
    """The language that is stated, else what a text looks like."""
    return str(item.get("lang") or (text_language(str(item["text"])) if item.get("text") else ""))


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; empty without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(content: object) -> str:
    return "" if content is None else str(content).replace("|", "\\|").replace("\n", " ")


def _part(title: str, content: str) -> list[str]:
    return [f"## {title}", content] if content else []


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.3f}"


def steps_table(steps: Sequence[StepFiles]) -> str:
    """Items and hours in and out of each step; documents of those that write them."""
    rows = []
    for step in steps:
        c = step.counts
        dropped = sum(c.get("rejected", {}).values())
        own = (c["items_out"], c.get("speech_sec_out", 0.0) / 3600)
        made, hours = documents_out(c.get("counts", {})) or own
        hours_in = _hours(c.get("speech_sec_in", 0.0))
        rows.append([step.name, step.stage, c.get("items_in"), made, dropped, hours_in, f"{hours:.3f}"])
    header = ["step", "stage", "items in", "items out", "rejected", "hours in", "hours out"]
    return table(header, rows)


def documents_table(steps: Sequence[StepFiles], context: int | None) -> str:
    """Folders of documents, and what of them is longer than the context."""
    rows = []
    for documents in (d for step in steps for d in step.documents):
        rows_D = documents.rows_D
        name, kind, hours = documents.name, documents.kind, _hours(documents.speech_sec)
        row = [name, kind, len(rows_D), int(rows_D.sum()), hours, int(rows_D.max(initial=0))]
        if context is not None:
            longer = rows_D[rows_D > context]
            row += [len(longer), f"{longer.sum() / max(1, rows_D.sum()):.2%}"]
        rows.append(row)
    header = ["folder", "kind", "documents", "rows", "hours of speech", "longest"]
    if context is not None:
        header += [f"longer than {context} rows", "share of rows"]
    return table(header, rows)


def hours_table(steps: Sequence[StepFiles]) -> str:
    """Hours of recordings, real and synthetic, that went into interleaved and speech-only documents."""
    hours: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for step, manifests in _read_by(steps, ("interleaved", "unsupervised")):
        kinds = {documents.kind for documents in step.documents}
        unsupervised_sec = sum(d.speech_sec for d in step.documents if d.kind == "unsupervised")
        speech_only: dict[str, float] = defaultdict(float)
        everything: dict[str, float] = defaultdict(float)
        for item in (item for manifest in manifests for item in manifest.items()):
            seconds, origin = float(item.get("duration") or 0.0), real_or_synthetic(item)
            everything[origin] += seconds
            if item.get("use") == "speech":
                speech_only[origin] += seconds
            elif "interleaved" in kinds:
                lang = str(item.get("lang") or "")
                hours[f"{LANGUAGE_NAMES.get(lang, lang or 'no language')} interleaved"][origin] += seconds
        if "unsupervised" in kinds:
            # Documents of speech alone are made of those utterances, or of all of them.
            only = unsupervised_sec <= 1.05 * sum(speech_only.values())
            for origin, seconds in (speech_only if only else everything).items():
                hours["Unsupervised"][origin] += seconds
    order = sorted(hours, key=lambda name: (name == "Unsupervised", name != "English interleaved", name))
    rows = [
        [name, *map(_hours, (sum(hours[name].values()), hours[name]["real"], hours[name]["synthetic"]))]
        for name in order
    ]
    return table(["dataset", "total (h)", "real (h)", "synthetic (h)"], rows)


def _read_by(steps: Sequence[StepFiles], kinds: Sequence[str]) -> Iterator[tuple[StepFiles, list[StepFiles]]]:
    """Steps that wrote documents of these kinds, and the steps whose manifests they read."""
    for step in steps:
        if any(documents.kind in kinds for documents in step.documents):
            yield step, [other for other in steps if other.manifest in step.sources]


def samples_table(steps: Sequence[StepFiles]) -> str:
    """Conversations by source and language, and their documents by modality pair."""
    samples: Counter[tuple[str, str]] = Counter()
    by_pair: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for step, manifests in _read_by(steps, ("sft",)):
        key_of: dict[str, tuple[str, str]] = {}
        for item in (item for manifest in manifests for item in manifest.items()):
            key = source_of(item), str(item.get("lang") or "")
            samples[key] += 1
            key_of[str(item.get("id"))] = key
        for documents in step.documents:
            for conversation, pair in documents.pairs:
                by_pair[key_of.get(conversation, ("not stated", ""))][pair] += 1
    rows = []
    for key in sorted({*samples, *by_pair}):
        rows.append([*key, samples[key], *(by_pair[key][pair] for pair in PAIRS)])
    return table(["source", "language", "samples", *PAIRS], rows)


def licences_table(licences: Tally) -> str:
    """Items and hours by source and licence."""
    rows = [[*key, licences.items[key], _hours(licences.seconds[key])] for key in sorted(licences.items)]
    return table(["source", "licence", "language", "speech", "items", "hours"], rows)


def errors_table(steps: Sequence[StepFiles]) -> str:
    """Errors of ASR over all words, of everything that a filter has recognised and of what it keeps."""
    rows = []
    for step in (step for step in steps if step.stage == "filter"):
        counts = step.counts.get("counts", {})
        for lang in ("en", "zh"):
            for group in ("all", "kept"):
                words = counts.get(f"{lang} words {group}", 0)
                if words:
                    edits, sounds = counts[f"{lang} edits {group}"], counts[f"{lang} sounds {group}"]
                    rows.append([step.name, lang, group, int(sounds), int(words), f"{edits / words:.2%}"])
    return table(["step", "language", "sounds of", "sounds", "words or characters", "errors"], rows)


def rejections_table(steps: Sequence[StepFiles]) -> str:
    """Rules and how many items each has left out, with one value."""
    rows = []
    for step in steps:
        examples: dict[str, str] = {}
        for rejection in step.rejections():
            if rejection["reason"] not in examples:
                value, threshold = rejection.get("value"), rejection.get("threshold")
                text = "" if value is None else str(value)[:80]
                examples[rejection["reason"]] = text + ("" if threshold is None else f" (limit {threshold})")
        for reason, number in sorted(step.counts.get("rejected", {}).items(), key=lambda pair: -pair[1]):
            rows.append([step.name, reason, number, examples.get(reason, "")])
    return table(["step", "rule", "items", "for example"], rows)
