"""Measures the speed of each stage of data preparation, with one worker and with two.

    python -m experiments.benches.prepare [SOURCE …] [--minutes 3] [--out FOLDER] [--profile STAGE]

SOURCE are recordings, folders of them, or manifests with transcripts; default: the embedded corpus, whose
utterances are joined to recordings of one minute. Speech passes through the stages from `vad` to
`interleave`; the first sentences of the corpus are spoken, filtered and turned into documents; the first of
the included questions are adapted, answered and spoken.

Each stage runs alone, with the functions that the engine calls, on one thread per worker. Models are loaded
and one item is processed before the clock starts; that time has its own column. With two workers, the clock
runs from when both are ready until the last one has finished. Stages that need all items run in one process.
Run it on an otherwise idle machine. Writes `prepare.json` and `prepare.md` to FOLDER.
"""

import argparse
import cProfile
import json
import os
import platform
import pstats
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from lit_moss.assets import cache_dir
from lit_moss.audio import io, rates
from lit_moss.corpora.everyday import everyday_corpus, sentences
from lit_moss.corpora.questions import questions_file
from lit_moss.errors import UserError
from lit_moss.prepare.chain import step_options
from lit_moss.prepare.engine import MANIFEST, run_step
from lit_moss.prepare.items import Item, resolved_items, speech_sec
from lit_moss.prepare.shards import to_line
from lit_moss.prepare.stage import Stage, WholeStage
from lit_moss.prepare.step import Machine, Step, set_threads
from lit_moss.prepare.storage import Storage

RECORDING_SEC = 60.0
# Between utterances, and after each fifth: segments are about 20 s long, as in continuous speech. Whisper
# computes 30 s whatever the length of a segment, so it would seem slower with short ones.
GAP_SEC, LONG_GAP_SEC, GROUP = 0.5, 2.0, 5
SHOWN = 15  # number of lines of a profile


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Args:
        name: Name of the row; equal to the stage's, unless a stage is measured with several options.
        reads: Row whose items it takes, or one of the inputs: recordings, texts, questions.
        options: Options of the stage.
        stage: Name of the stage, if it differs from that of the row.
        limit: Maximum number of items; None: all.
    """

    name: str
    reads: str
    options: dict[str, Any] = field(default_factory=dict)
    stage: str = ""
    limit: int | None = None


HIBARI, KOKORO_EN, KOKORO_ZH = "embedded:hibari", "embedded:kokoro/en", "embedded:kokoro/zh"
ROWS = (
    Row("vad", "recordings", {"join_gap_sec": 1.0}),
    Row("transcribe", "vad", {"language": "en"}),
    Row("transcribe, language detected", "vad", stage="transcribe"),
    Row("check-transcripts", "transcribe"),
    Row("align", "check-transcripts"),
    Row("chunk", "align"),
    Row("tokenize", "chunk"),
    Row("interleave", "tokenize", {"unsupervised": "all"}),
    Row("dedup", "texts"),
    Row("synthesize", "dedup", {"voices": [HIBARI]}),
    Row("synthesize, Kokoro", "dedup", {"voices": [KOKORO_EN]}, "synthesize", 12),
    Row("filter", "synthesize"),
    Row("text", "texts"),
    Row("adapt", "questions"),
    Row("self-answer", "questions", {"max_new_tokens": 64, "batch": 8, "dtype": "bfloat16"}, limit=16),
    Row("speak", "adapt", {"user_voices": [HIBARI, KOKORO_EN, KOKORO_ZH],
                           "assistant_voices": [HIBARI, "embedded:kokoro/zf_xiaoxiao"]}, limit=12),
    Row("sft", "speak"),
    Row("report", "speak"),
)  # fmt: skip


@dataclass
class Measured:
    """Measurements of one row.

    Args:
        name: Name of the row.
        items: Number of input items.
        audio_sec: Seconds of speech in the input, or in the output if the input has none.
        load_sec: Seconds to load models and process one item; not part of the other times.
        one_sec: Seconds with one worker.
        two_sec: Seconds with two workers; None if the stage runs in one process.
    """

    name: str
    items: int
    audio_sec: float
    load_sec: float
    one_sec: float
    two_sec: float | None = None

    def rate(self, seconds: float | None) -> str:
        """Seconds of speech per second of computing, or items per second if there is no speech."""
        if not seconds:
            return "–"
        if self.audio_sec:
            return f"{self.audio_sec / seconds:.3g}x"
        return f"{self.items / seconds:.3g} items/s"


# --- one row ------------------------------------------------------------------------------------------------


def warm_up(stage: Stage, unit: Sequence[Item], scratch: str) -> None:
    """Loads the models and runs one item; its files go to `scratch`, since a stage keeps existing ones."""
    own, stage.storage = stage.storage, Storage(scratch)
    stage.open()
    if stage.name != "tokenize":  # otherwise the item would be in the cache of codes
        stage.run(unit[:1])
    stage.storage = own


def measure_one(step: Step, scratch: str, profile: bool) -> tuple[Measured, list[Item]]:
    """Runs one worker in this process and returns the measurement and the stage's items."""
    stage = step.build()
    assert isinstance(stage, Stage)
    set_threads(1)
    items = list(resolved_items(step.sources))
    units = list(stage.units(items))
    begin = time.perf_counter()
    warm_up(stage, units[0], scratch)
    load_sec, profiler = time.perf_counter() - begin, cProfile.Profile()
    begin = time.perf_counter()
    with profiler if profile else nullcontext():
        results = [stage.run(unit) for unit in units]
    seconds = time.perf_counter() - begin
    if profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(SHOWN)
    made = [item for result in results for item in result.items]
    stated = [result.speech_sec_in for result in results if result.speech_sec_in is not None]
    audio_sec = sum(stated) or sum(map(speech_sec, items)) or sum(map(speech_sec, made))
    return Measured(step.name, len(items), audio_sec, load_sec, seconds), made


def _work(step: Step, scratch: str, ready: Any, next_unit: Any) -> None:
    """A process of `measure_two`: takes the next unit until none is left."""
    set_threads(1)
    stage = step.build()
    assert isinstance(stage, Stage)
    units = list(stage.units(resolved_items(step.sources)))
    warm_up(stage, units[0], scratch)
    ready.wait()
    while True:
        with next_unit.get_lock():
            number, next_unit.value = next_unit.value, next_unit.value + 1
        if number >= len(units):
            return
        stage.run(units[number])


def measure_two(step: Step, scratch: str) -> float:
    """Seconds that two workers need."""
    context = get_context("spawn")
    ready, next_unit = context.Barrier(3), context.Value("i", 0)
    processes = [
        context.Process(target=_work, args=(step, f"{scratch}-{n}", ready, next_unit)) for n in range(2)
    ]
    for process in processes:
        process.start()
    ready.wait(timeout=300)
    begin = time.perf_counter()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise RuntimeError(f"{step.name}: a worker failed")
    return time.perf_counter() - begin


def measure(row: Row, source: Path, folder: Path, with_two: bool, profile: bool) -> Measured:
    """Measures one row and writes its items to `folder/NAME/manifest.jsonl`."""
    name = row.stage or row.name
    options = step_options(row.name, name, row.options)
    step = Step(row.name, name, options, (str(source),), str(folder / row.name), str(folder))
    if isinstance(step.build(), WholeStage):
        result = run_step(step, Machine())
        return Measured(row.name, result.counts.items_in, result.counts.speech_sec_in, 0.0, result.seconds)
    with own_codes(folder / "codes-1"):
        measured, made = measure_one(step, str(folder / "warm" / row.name), profile)
    Storage(step.folder).write(MANIFEST, b"".join(to_line(step.manifest_folder.written(i)) for i in made))
    if with_two:
        second = Step(row.name, name, options, step.sources, str(folder / "two" / row.name), str(folder))
        with own_codes(folder / "codes-2"):
            measured.two_sec = measure_two(second, str(folder / "warm" / f"{row.name} two"))
    return measured


@contextmanager
def own_codes(folder: Path) -> Iterator[None]:
    """Within the block, the cache of codes is a separate one, empty at first; other caches are shared."""
    before = os.environ.get("LIT_MOSS_CACHE")
    if not folder.exists():
        folder.mkdir(parents=True)
        for part in cache_dir().iterdir():
            if part.name != "codes":
                (folder / part.name).symlink_to(part)
    os.environ["LIT_MOSS_CACHE"] = str(folder)
    try:
        yield
    finally:
        os.environ.pop("LIT_MOSS_CACHE")
        if before is not None:
            os.environ["LIT_MOSS_CACHE"] = before


# --- inputs -------------------------------------------------------------------------------------------------


def inputs(sources: Sequence[str], minutes: float, folder: Path) -> dict[str, Path]:
    """Writes the manifests that the first stages read: recordings, texts, questions."""
    recordings = folder / "recordings.jsonl"
    if sources:
        from lit_moss.prepare.registry import stage_class

        items: list[Item] = []
        for source in sources:
            items += stage_class("vad").read_source(source) or resolved_items([source])
        _write(recordings, items)
    else:
        _write(
            recordings,
            joined(list(resolved_items([str(everyday_corpus() / "train.jsonl")])), minutes, folder),
        )
    spoken = max(4, round(15 * minutes))  # about 4 s each
    texts = [
        {"id": f"text-{n:04d}", "text": text, "lang": "en"} for n, text in enumerate(sentences()[:spoken])
    ]
    _write(folder / "texts.jsonl", texts)
    questions = [json.loads(line) for line in questions_file().read_text(encoding="utf-8").splitlines()]
    _write(folder / "questions.jsonl", questions)
    return {name: folder / f"{name}.jsonl" for name in ("recordings", "texts", "questions")}


def joined(items: Sequence[Item], minutes: float, folder: Path) -> list[Item]:
    """Joins utterances, with silence in between, to recordings of one minute."""
    import soundfile

    rate_hz = rates.TOKENIZER_RATE_HZ
    recordings: list[Item] = []
    parts: list[np.ndarray] = []
    left = iter(items)
    while len(recordings) * RECORDING_SEC < minutes * 60 and (item := next(left, None)):
        gap_sec = GAP_SEC if (len(parts) // 2 + 1) % GROUP else LONG_GAP_SEC
        gap = np.zeros(round(gap_sec * rate_hz), dtype=np.float32)
        parts += [io.read(item["audio_filepath"], rate_hz).numpy(), gap]
        seconds = sum(map(len, parts)) / rate_hz
        if seconds >= min(RECORDING_SEC, minutes * 60):
            path = folder / f"recording-{len(recordings):03d}.flac"
            soundfile.write(path, np.concatenate(parts), rate_hz)
            recordings.append({"audio_filepath": str(path), "duration": seconds})
            parts = []
    return recordings


def _write(path: Path, items: Sequence[Item]) -> None:
    path.write_bytes(b"".join(map(to_line, items)))


def limited(manifest: Path, limit: int | None, folder: Path) -> Path:
    """Writes a manifest of the first items, unless there is no limit."""
    if limit is None:
        return manifest
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "first.jsonl", list(resolved_items([str(manifest)]))[:limit])
    return folder / "first.jsonl"


def needed(names: Sequence[str]) -> list[Row]:
    """Returns the rows of these names and the rows that they read, in order.

    Raises:
        UserError: if a name is unknown.
    """
    row_of = {row.name: row for row in ROWS}
    if wrong := set(names) - set(row_of):
        raise UserError(f"no line {', '.join(sorted(wrong))}, expected some of: {'; '.join(row_of)}")
    wanted, left = set(), list(names)
    while left:
        name = left.pop()
        wanted.add(name)
        if row_of[name].reads in row_of:
            left.append(row_of[name].reads)
    return [row for row in ROWS if row.name in wanted]


# --- the table ----------------------------------------------------------------------------------------------


def table(lines: Sequence[Measured]) -> str:
    """The measurements in Markdown, and the slowest stage."""
    head = ("stage", "items", "speech, s", "load, s", "1 worker, s", "1 worker", "2 workers, s", "2 workers")
    rows = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for m in lines:
        two = "–" if m.two_sec is None else f"{m.two_sec:.1f}"
        cells = (m.name, str(m.items), f"{m.audio_sec:.0f}", f"{m.load_sec:.1f}", f"{m.one_sec:.1f}",
                 m.rate(m.one_sec), two, m.rate(m.two_sec))  # fmt: skip
        rows.append("| " + " | ".join(cells) + " |")
    if of_speech := [m for m in lines if m.audio_sec and m.one_sec]:
        slowest = min(of_speech, key=lambda m: m.audio_sec / m.one_sec)
        rows += ["", f"Slowest for each second of speech: {slowest.name}, {slowest.rate(slowest.one_sec)}."]
    return "\n".join(rows)


def hours_table(lines: Sequence[Measured]) -> str:
    """Computing time of 1,000 and 100,000 hours of each stage's input, at the rate of one worker.

    Stages that run in one process do not run faster with more cores.
    """
    corpora = ((1_000, 64), (100_000, 1_024))  # hours, cores
    head = "".join(f" {hours:,} h: core-hours | on {cores:,} cores |" for hours, cores in corpora)
    rows = [f"| stage |{head}", "|---" * (1 + 2 * len(corpora)) + "|"]
    for m in (m for m in lines if m.audio_sec and m.one_sec):
        cells = ""
        for hours, cores in corpora:
            core_hours = hours * m.one_sec / m.audio_sec
            wall_hours = core_hours / (1 if m.two_sec is None else cores)
            cells += f" {_short(core_hours)} | {_short(wall_hours)} h |"
        rows.append(f"| {m.name} |{cells}")
    return "\n".join(rows)


def _short(hours: float) -> str:
    """Formats to three digits, without an exponent."""
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.3g}"


def parse() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="recordings (the embedded corpus)")
    parser.add_argument(
        "--minutes", type=float, default=3.0, help="of embedded speech, and of speech to synthesise (3)"
    )
    parser.add_argument("--out", type=Path, help="folder for prepare.json and prepare.md (none)")
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="STAGE", help="lines of the table, and what they read"
    )
    parser.add_argument("--profile", metavar="STAGE", help="where this stage spends its time")
    parser.add_argument("--one-worker", action="store_true", help="leave out the runs with two workers")
    return parser.parse_args()


def main() -> None:
    """Measures the stages and prints the tables."""
    args = parse()
    names = [args.profile] if args.profile else args.only or [row.name for row in ROWS]
    rows, lines = needed(names), []
    folder = Path(tempfile.mkdtemp(prefix="prepare-"))
    try:
        manifests = inputs(args.sources, args.minutes, folder)
        for row in rows:
            source = limited(manifests[row.reads], row.limit, folder / f"first of {row.name}")
            with_two = not (args.one_worker or args.profile)
            lines.append(measure(row, source, folder, with_two, row.name == args.profile))
            manifests[row.name] = folder / row.name / MANIFEST
            print(f"{row.name}: {lines[-1].one_sec:.1f} s", flush=True)
    finally:
        shutil.rmtree(folder)
    shown = f"{table(lines)}\n\n{hours_table(lines)}\n"
    print(f"\n{shown}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        machine = {
            "cores": os.cpu_count(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
        content = {"machine": machine, "minutes": args.minutes, "stages": [asdict(line) for line in lines]}
        (args.out / "prepare.json").write_text(json.dumps(content, indent=1) + "\n")
        (args.out / "prepare.md").write_text(shown)


if __name__ == "__main__":
    main()
