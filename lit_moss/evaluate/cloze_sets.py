"""Pairs of a true and a false continuation, in the public file formats.

    numbered      a folder of 0_….wav, 1_….wav, 2_….wav …: sorted by the number before the first `_` or `+`,
                  the first, third, … is true and the following one false (as SlamKit reads tStoryCloze and
                  sStoryCloze). A file contains context and ending.
    cross_modal   a folder of I_mutual, I_correct and I_incorrect, each .wav and .txt
    gold          a folder with gold.csv (ZeroSpeech 2021: sBLIMP, sWUGGY): columns filename, id, voice,
                  correct; a pair has the same id and voice
    salmon        a folder of sample_I_0.wav (true) and sample_I_1.wav, or a folder of such folders
    manifest      JSON lines {"id": …, "prompt": WAV, "good": WAV, "bad": WAV, "prompt_text": TEXT,
                  "good_text": TEXT, "bad_text": TEXT, "group": NAME}; either audio or texts may be missing;
                  without a prompt, good and bad include the context. Paths are relative to the file.
    xstorycloze   JSON lines with input_sentence_1 … input_sentence_4, sentence_quiz1, sentence_quiz2 and
                  answer_right_ending (1 or 2): text only
    stories       embedded:stories-en, 60 stories, each with a wrong ending (`story`, as sStoryCloze) and with
                  the ending of another story (`topic`, as tStoryCloze): text only

SlamKit pairs files by their sorted order, whatever they are; here ambiguous names are rejected.
"""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal, get_args

from lit_moss.audio.io import EXTENSIONS
from lit_moss.corpora.sources import entry_kind
from lit_moss.corpora.stories import STORIES, stories
from lit_moss.data.interleave import join_words
from lit_moss.errors import UserError
from lit_moss.records import json_lines, read_text, text_lines

Format = Literal[
    "numbered", "cross_modal", "gold", "salmon", "manifest", "xstorycloze", "stories", "documents"
]
Modalities = Literal["speech-speech", "text-text", "speech-text", "text-speech"]
MODALITIES: tuple[Modalities, ...] = get_args(Modalities)
_SAMPLE = re.compile(r"sample_(\d+)_(\d+)")
_PARTS = ("mutual", "correct", "incorrect")
_SHOWN = 3  # number of names in an error message


@dataclass(frozen=True)
class Part:
    """A context, an ending, or both in one, as audio, text or both.

    Args:
        audio: Sound file, or None.
        text: Text, or None.
    """

    audio: Path | None = None
    text: str | None = None

    def has(self, modality: str) -> bool:
        """Whether it is available in a modality, `speech` or `text`."""
        return self.audio is not None if modality == "speech" else bool(self.text)


@dataclass(frozen=True)
class Pair:
    """A true and a false continuation.

    Args:
        id: Id, unique within its set.
        good: The true ending; if `prompt` is None, context and true ending in one.
        bad: The false ending, in the same form.
        prompt: Context of both endings; None: it is part of them.
        key: Pairs with the same key are averaged first, such as the voices of a sentence.
        group: Kind of the pair, such as a type of sBLIMP; "": none.
    """

    id: str
    good: Part
    bad: Part
    prompt: Part | None
    key: str
    group: str = ""

    def has(self, modalities: Modalities) -> bool:
        """Whether context and ending are available in these modalities."""
        context, ending = modalities.split("-")
        if self.prompt is None:
            return context == ending and self.good.has(ending) and self.bad.has(ending)
        return self.prompt.has(context) and self.good.has(ending) and self.bad.has(ending)


@dataclass(frozen=True)
class PairSet:
    """The pairs of one file or folder.

    Args:
        name: Name in reports.
        pairs: All of them.
    """

    name: str
    pairs: list[Pair]

    def modalities(self) -> list[Modalities]:
        """Modalities that at least one pair has."""
        return [m for m in MODALITIES if any(pair.has(m) for pair in self.pairs)]

    def first(self, limit: int | None) -> "PairSet":
        """The pairs of the first `limit` keys; all for None."""
        keys = set(list(dict.fromkeys(pair.key for pair in self.pairs))[:limit])
        return PairSet(self.name, [pair for pair in self.pairs if pair.key in keys])


def format_of(source: str) -> Format:
    """The format of a file or folder, from the names in it or its first line.

    Raises:
        UserError: if the format is unknown.
    """
    path = Path(source)
    if source == STORIES:
        return "stories"
    if path.is_dir():
        return _format_of_folder(path)
    if path.suffix.lower() == ".jsonl":
        for record in json_lines(path, "an object with good and bad, or good_text and bad_text"):
            if record.content.keys() & {"good", "good_text"}:
                return "manifest"
            if "sentence_quiz1" in record.content:
                return "xstorycloze"
            break
        entry_kind(path)  # rejects everything else
    return "documents"


def _format_of_folder(path: Path) -> Format:
    names = [file.name for file in path.iterdir()]
    if "gold.csv" in names:
        return "gold"
    if any(Path(name).stem.endswith("_mutual") for name in names):
        return "cross_modal"
    if _salmon_folders(path):
        return "salmon"
    if any(Path(name).suffix.lower() in EXTENSIONS for name in names):
        return "numbered"
    raise UserError(
        f"{path} holds no pairs: expected gold.csv, I_mutual.wav, sample_I_J.wav, or sound files 0_….wav, "
        "1_….wav; or give a manifest (.jsonl)"
    )


def read_pairs(source: str, form: Format, name: str | None = None) -> list[PairSet]:
    """Reads the pairs of a file or folder; for `salmon` one set per part.

    Args:
        source: File or folder.
        form: Its format, any except `documents`; see the module docstring.
        name: Name of the set. Default: name of the file or folder.

    Raises:
        UserError: if it cannot be read, or it is ambiguous what belongs together.
    """
    path = Path(source)
    if form in ("manifest", "xstorycloze") and not path.is_file():
        raise UserError(f"no file {source}: expected JSON lines of pairs")
    if form in ("numbered", "cross_modal", "gold", "salmon") and not path.is_dir():
        raise UserError(f"no folder {source}: expected one of pairs ({form})")
    name = name or set_name(source)
    if form == "salmon":
        folders = _salmon_folders(path)
        sets = [PairSet(name if f == path else f"{name}-{f.name}", _salmon(f)) for f in folders]
    else:
        readers: dict[str, Callable[[Path], list[Pair]]] = {
            "numbered": _numbered, "cross_modal": _cross_modal, "gold": _gold,
            "manifest": _manifest, "xstorycloze": _xstorycloze, "stories": _stories,
        }  # fmt: skip
        sets = [PairSet(name, readers[form](path))]
    if not any(one.pairs for one in sets):
        raise UserError(f"{source} holds no pairs of the format {form}")
    return sets


def set_name(source: str) -> str:
    """Name of a set: the last component of its path, preceded by its parent for a generic `dev` or `test`."""
    path = Path(source)
    stem = path.stem if path.suffix.lower() in (".jsonl", ".txt", ".csv") else path.name
    if stem in ("dev", "test", "train", "validation") and path.parent.name:
        stem = f"{path.parent.name}-{stem}"
    return stem.rpartition(":")[2] or source


def _sounds(path: Path) -> list[Path]:
    return sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS)


def _numbered(path: Path) -> list[Pair]:
    numbers: dict[int, Path] = {}
    rule = "expected 0_….wav (true), 1_….wav (false), 2_….wav …; rename them, or give a manifest (.jsonl)"
    for file in _sounds(path):
        digits = re.match(r"\d+(?=[_+.])", file.name)
        if digits is None:
            raise UserError(f"{file} has no number before the first _: {rule}")
        if (other := numbers.get(int(digits[0]))) is not None:
            raise UserError(
                f"{other.name} and {file.name} in {path} have the same number, so which is true follows from "
                f"the order of the folder: {rule}"
            )
        numbers[int(digits[0])] = file
    order = sorted(numbers)
    if len(order) % 2:
        raise UserError(f"{path} holds {len(order)} sound files, an odd number: {rule}")
    pairs = list(zip(order[::2], order[1::2], strict=True))
    for first, second in pairs:
        if second != first + 1 or first % 2 != order[0] % 2:
            raise UserError(
                f"{numbers[first].name} and {numbers[second].name} in {path} would be a pair, but a number "
                f"is missing at or before them: {rule}"
            )
    return [
        Pair(numbers[a].stem, Part(numbers[a]), Part(numbers[b]), None, numbers[a].stem) for a, b in pairs
    ]


def _cross_modal(path: Path) -> list[Pair]:
    names = sorted(
        {match[1] for f in path.iterdir() if (match := re.match(r"(.+)_mutual$", f.stem))}, key=_natural
    )
    pairs = []
    for name in names:
        parts = []
        for kind in _PARTS:
            audio, text = path / f"{name}_{kind}.wav", path / f"{name}_{kind}.txt"
            part = Part(
                audio if audio.is_file() else None,
                read_text(text, "a text").strip() if text.is_file() else None,
            )
            if part == Part():
                raise UserError(f"{path} has neither {audio.name} nor {text.name}: expected one or both")
            parts.append(part)
        prompt, good, bad = parts
        pairs.append(Pair(name, good, bad, prompt, name))
    return pairs


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key that puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _salmon_folders(path: Path) -> list[Path]:
    """The folder, or the folders in it, with files sample_I_J."""

    def has_samples(folder: Path) -> bool:
        return any(_SAMPLE.fullmatch(file.stem) for file in folder.iterdir())

    if has_samples(path):
        return [path]
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and has_samples(folder))


def _salmon(path: Path) -> list[Pair]:
    found: dict[int, dict[int, Path]] = {}
    for file in _sounds(path):
        if match := _SAMPLE.fullmatch(file.stem):
            found.setdefault(int(match[1]), {})[int(match[2])] = file
    pairs = []
    for number, files in sorted(found.items()):
        if sorted(files) != [0, 1]:
            got = ", ".join(file.name for file in files.values())
            raise UserError(f"{path}: got {got}, expected sample_{number}_0.wav and sample_{number}_1.wav")
        pairs.append(Pair(str(number), Part(files[0]), Part(files[1]), None, str(number), path.name))
    return pairs


def _gold(path: Path) -> list[Pair]:
    file = path / "gold.csv"
    lines = [(number, line) for number, line in text_lines(file, "ZeroSpeech's gold.csv") if line.strip()]
    rows = csv.DictReader(line for _, line in lines)
    needed = {"filename", "id", "voice", "correct"}
    missing = needed - set(rows.fieldnames or ())
    if missing:
        raise UserError(
            f"{file} has no column {', '.join(sorted(missing))}: expected filename, id, voice, correct"
        )
    found: dict[tuple[str, str], dict[str, dict[str, str]]] = {}
    for row in rows:
        if any(row[column] is None for column in needed):
            raise UserError(
                f"{file}, line {lines[rows.line_num - 1][0]}: has {sum(v is not None for v in row.values())} "
                f"columns, expected {len(row)}: {', '.join(row)}"
            )
        sides, correct = found.setdefault((row["id"], row["voice"]), {}), row["correct"].strip()
        if sides.setdefault(correct, row) is not row:
            raise UserError(
                f"{file}, line {lines[rows.line_num - 1][0]}: id {row['id']}, voice {row['voice']} has "
                f"another row with correct {correct}, expected one with 1 and one with 0: give pairs ids of "
                "their own"
            )
    pairs = []
    for (name, voice), sides in sorted(found.items(), key=lambda item: [_natural(part) for part in item[0]]):
        if set(sides) != {"0", "1"}:
            raise UserError(
                f"{file}: id {name}, voice {voice} has correct {', '.join(sorted(sides))}, expected one row "
                "with 1 and one with 0"
            )
        good, bad = (
            Part(
                _with_extension(path / sides[c]["filename"]),
                sides[c].get("transcription") or sides[c].get("word"),
            )
            for c in "10"
        )
        group = sides["1"].get("type") or sides["1"].get("frequency") or ""
        pairs.append(Pair(f"{name}-{voice}" if voice else name, good, bad, None, name, group))
    return pairs


def _with_extension(path: Path) -> Path:
    return path if path.suffix.lower() in EXTENSIONS else path.with_name(f"{path.name}.wav")


def _manifest(path: Path) -> list[Pair]:
    pairs = []
    for record in json_lines(path, "an object with good and bad, or good_text and bad_text"):

        def part(key: str, record=record) -> Part:  # noqa: ANN001
            audio = record.path(key)
            return Part(path.parent / audio if audio else None, record.text(f"{key}_text"))

        name = record.name("id") or f"{path.stem}-{record.number}"
        prompt, good, bad = part("prompt"), part("good"), part("bad")
        if not any(good.has(m) and bad.has(m) for m in ("speech", "text")):
            got = ", ".join(sorted(map(str, record.content)))
            raise UserError(f"{record.where}: got {got}, expected good and bad, or good_text and bad_text")
        group = record.text("group") or ""
        pairs.append(Pair(name, good, bad, None if prompt == Part() else prompt, name, group))
    return pairs


def _xstorycloze(path: Path) -> list[Pair]:
    pairs = []
    for record in json_lines(path, "an object of XStoryCloze"):
        sentences = [record.text(f"input_sentence_{i}") or "" for i in range(1, 5)]
        endings = [record.text(f"sentence_quiz{i}") for i in (1, 2)]
        answer = record.name("answer_right_ending")
        if answer not in ("1", "2"):
            raise record.error("answer_right_ending", "1 or 2")
        if not all(sentences) or not all(endings):
            raise UserError(
                f"{record.where}: expected texts input_sentence_1 to input_sentence_4, sentence_quiz1 and "
                "sentence_quiz2"
            )
        right = int(answer) - 1
        name = record.name("story_id") or record.name("id") or f"{path.stem}-{record.number}"
        good, bad = Part(text=endings[right]), Part(text=endings[1 - right])
        pairs.append(Pair(name, good, bad, Part(text=join_words(sentences)), name))
    return pairs


def _stories(_: Path) -> list[Pair]:
    every = stories()
    pairs = []
    for number, story in enumerate(every):
        other = every[(number + len(every) // 2) % len(every)].ending
        for group, wrong in (("story", story.wrong), ("topic", other)):
            name = f"{story.id}-{group}"
            good, bad = Part(text=story.ending), Part(text=wrong)
            pairs.append(Pair(name, good, bad, Part(text=story.context), name, group))
    return pairs


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix of two lists."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def without_repeats(codes: Iterable[int]) -> list[int]:
    """Run-length deduplication: removes codes that equal the previous one."""
    codes = list(codes)
    return codes[:1] + [b for a, b in pairwise(codes) if a != b]
