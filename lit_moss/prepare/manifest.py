"""`python -m lit_moss prepare manifest --from KIND SOURCE --out manifest.jsonl`: from a corpus to a manifest.

Each kind of corpus is one function of `SOURCES` that yields utterances. What they share stands above them:
lengths from the files' headers, the count of unreadable files, the validation share, the closing lines.

Headers alone are read: a file that is damaged further on is found by `tokenize`. Transcripts keep their
words, but white space becomes single spaces: a line separator inside a text would tear its line of JSON.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.data.manifest import Utterance

END_SLACK_SEC = 0.1  # a cut may end this much after its file: corpora round their times
UNKNOWN_FRAMES = 2**62  # libsndfile says 2^63 - 1 for a stream whose header does not tell its length
NAMED = 5  # files that a message names
_EXTENSION_OF = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # by the first four bytes
_LANG_OF = {"english": "en", "chinese": "zh", "mandarin": "zh"}
_HF_OPTIONS = ("split", "subset", "audio_column", "text_column", "speaker_column")
_KIND_OF = {"download": "librispeech", "speaker_from_parent": "folder"} | dict.fromkeys(_HF_OPTIONS, "hf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    add = parser.add_argument
    add("source", metavar="SOURCE", help="folder, dataset or file that holds the corpus")
    add("--from", dest="kind", required=True, choices=list(SOURCES), help="kind of corpus")
    add("--out", type=Path, required=True, metavar="JSONL", help="manifest to write")
    add("--force", action="store_true", help="overwrite existing output")
    add("--lang", help="language of all utterances, ISO 639-1 such as en; default: what the corpus says")
    add("--validation-out", type=Path, metavar="JSONL", help="manifest of the validation share")
    add("--validation-share", type=float, help="its share by hash of the id, between 0 and 1; default 0.1")
    add("--max-bad-share", type=float, default=0.01, help="stop above this share of unreadable files, 0 to 1")
    add("--download", metavar="PART", help="librispeech: first fetch this part, as dev-clean, into SOURCE")
    add("--speaker-from-parent", action="store_true", help="folder: the speaker is the folder's name")
    add("--split", help="hf: split of the dataset; default train")
    add("--subset", help="hf: configuration of a dataset that has several")
    add("--audio-column", help="hf: column of the sound; default audio")
    add("--text-column", help="hf: column of the transcript; default text, where there is one")
    add("--speaker-column", help="hf: column of the speaker's name; default none")


def main(args: argparse.Namespace) -> None:
    """Writes the manifest, and the validation manifest where one is asked for.

    Raises:
        UserError: on a wrong source or option, existing output, too many unreadable files, or no result.
    """
    from lit_moss.data.manifest import write_manifest

    _check_options(args)
    fresh = not _audio_folder(args).exists()
    try:
        utterances, bad = _measure_all(args)
        parts = _split(utterances, args)
    except UserError:
        if fresh:
            shutil.rmtree(_audio_folder(args), ignore_errors=True)
        raise
    for path, part in reversed(parts):  # training last: where its manifest stands, all is done
        write_manifest(path.resolve(), part)
    for path, part in parts:
        print(_summary(path, part))
    if bad:
        print(f"skipped {len(bad)} of {len(bad) + len(utterances)} as unreadable: {_first(bad)}")


def _check_options(args: argparse.Namespace) -> None:
    for name, kind in _KIND_OF.items():
        if getattr(args, name) and args.kind != kind:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} belongs to --from {kind}, got --from {args.kind}: leave {option} out")
    if args.lang and not re.fullmatch("[a-z]{2}", args.lang):
        raise UserError(f"--lang is {args.lang!r}, expected two small letters (ISO 639-1) such as en")
    if args.validation_share is not None and not 0 < args.validation_share < 1:
        raise UserError(f"--validation-share is {args.validation_share}, expected a share between 0 and 1")
    if args.validation_share is not None and args.validation_out is None:
        raise UserError("--validation-share without --validation-out: name the file for that share")
    outs = [out for out in (args.out, args.validation_out) if out]
    if len({out.resolve() for out in outs}) < len(outs):
        raise UserError(f"--out and --validation-out are both {args.out}, expected two files: rename one")
    for out in outs:
        if out.is_dir() or (out.exists() and not args.force):
            raise UserError(f"{out} exists: give another name" + ("" if out.is_dir() else ", or --force"))


def _measure_all(args: argparse.Namespace) -> tuple[list[Utterance], list[str]]:
    """Utterances of the source with their lengths, and what is wrong with the others.

    Raises:
        UserError: if there are none, or more than `max_bad_share` are unreadable.
    """
    from tqdm import tqdm

    from lit_moss.audio.io import UnreadableAudio, info

    header = lru_cache(maxsize=16)(info)  # many cuts of one long file ask for the same header
    good, bad = [], []
    for u in tqdm(SOURCES[args.kind](args), desc=args.kind, unit=" files", disable=None):
        try:
            good.append(replace(u, duration_sec=_duration_sec(u, header), lang=args.lang or u.lang))
        except UnreadableAudio as error:
            bad.append(str(error))
    total = len(good) + len(bad)
    # One bad file of a small corpus is more than 1 % of it, and still an accident.
    accident = 1 if total < 100 and args.max_bad_share > 0 else 0
    if bad and (not good or len(bad) > max(args.max_bad_share * total, accident)):
        got = f"{len(bad)} of {total} in {args.source} are unreadable: {_first(bad)}"
        expected = f"expected at most {args.max_bad_share:.2%}, so nothing was written"
        raise UserError(f"{got}; {expected}: repair or remove them, or raise --max-bad-share")
    if not good:
        raise UserError(f"no utterances in {args.source}: expected a corpus, check SOURCE and --from")
    return good, bad


def _duration_sec(u: Utterance, header: Callable) -> float:
    from lit_moss.audio.io import UnreadableAudio

    file = header(u.audio)
    if file.frames >= UNKNOWN_FRAMES:
        raise UnreadableAudio(f"{u.audio}: its header does not tell its length, write it anew")
    left_sec = file.duration_sec - u.offset_sec
    wanted_sec = left_sec if u.duration_sec is None else u.duration_sec
    if not (u.offset_sec >= 0 and left_sec > 0 and 0 < wanted_sec <= left_sec + END_SLACK_SEC):
        cut = f"a cut of {wanted_sec:.2f} s at {u.offset_sec:.2f} s"
        raise UnreadableAudio(f"{u.audio}: {cut} is not inside its {file.duration_sec:.2f} s")
    return round(min(wanted_sec, left_sec), 6)


def _split(utterances: list[Utterance], args: argparse.Namespace) -> list[tuple[Path, list[Utterance]]]:
    """The manifests to write, training first; none is empty."""
    if args.validation_out is None:
        return [(args.out, utterances)]
    share = args.validation_share or 0.1
    training: list[Utterance] = []
    validation: list[Utterance] = []
    for u in utterances:
        # By the id alone: a file that is added moves no other from one part to the other.
        fraction = int.from_bytes(hashlib.sha256(u.id.encode()).digest()[:8]) / 2**64
        (validation if fraction < share else training).append(u)
    if not training or not validation:
        got = f"{len(training)} for training, {len(validation)} for validation"
        raise UserError(f"--validation-share {share} leaves {got}, expected some of both: change or drop it")
    return [(args.out, training), (args.validation_out, validation)]


def _summary(path: Path, utterances: Sequence[Utterance]) -> str:
    minutes = sum(u.duration_sec or 0.0 for u in utterances) / 60
    speakers = len({u.speaker for u in utterances} - {None})
    texts = sum(u.text is not None for u in utterances)
    counts = f"{_count(len(utterances), 'utterance')}, {minutes:.1f} min, {_count(speakers, 'speaker')}"
    return f"{path}: {counts}, {texts} with text"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _first(messages: Sequence[str]) -> str:
    more = len(messages) - NAMED
    return "; ".join(messages[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def _utterance(audio: Path, text: Any = None, speaker: Any = None, **known: Any) -> Utterance:
    from lit_moss.data.manifest import Utterance

    return Utterance(audio, text=_clean(text), speaker=_clean(speaker), **known)


def _clean(text: Any) -> str | None:
    return None if text is None else " ".join(str(text).split()) or None


def _sound_files(folder: str | Path) -> list[Path]:
    """Sound files at any depth, sorted; hidden ones (macOS leaves `._a.wav`) are none."""
    from lit_moss.audio.io import EXTENSIONS

    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: expected a folder of sound files, check SOURCE")
    found = (path for path in Path(folder).resolve().rglob("[!.]*") if path.suffix.lower() in EXTENSIONS)
    return sorted(path for path in found if path.is_file())


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}, expected text in UTF-8: convert it") from error


def _ljspeech(args: argparse.Namespace) -> Iterator[Utterance]:
    """LJ Speech: metadata.csv (id|text|normalised text) and wavs/ID.wav, or any other sound format."""
    table, wavs = Path(args.source, "metadata.csv"), Path(args.source, "wavs")
    if not table.is_file() or not wavs.is_dir():
        expected = "LJ Speech's folder, which holds metadata.csv and wavs/ID.wav"
        lacks = "wavs" if table.is_file() else "metadata.csv"
        raise UserError(f"no {lacks} in {args.source}: expected {expected}, check SOURCE and --from")
    sounds = {path.stem: path for path in _sound_files(wavs)}
    missing = []
    for number, line in enumerate(_lines(table), start=1):
        name, *texts = (field.strip() for field in line.split("|"))
        if name and not texts:
            raise UserError(f"{table}, line {number}: got {line[:60]!r}, expected id|text|normalised text")
        if name in sounds:
            yield _utterance(sounds[name], next(filter(None, texts[1::-1]), None), "ljspeech", lang="en")
        elif name:
            missing.append(name)
    if missing:
        print(f"left out {_count(len(missing), 'row')} without a sound file: {_first(missing)}")


def _librispeech(args: argparse.Namespace) -> Iterator[Utterance]:
    """LibriSpeech: SPEAKER-CHAPTER-UTTERANCE.flac, its text from SPEAKER-CHAPTER.trans.txt beside."""
    folder = _download_librispeech(args) if args.download else args.source
    sounds = _sound_files(folder)
    named = [path for path in sounds if re.fullmatch(r"\d+-\d+-\d+", path.stem)]
    if not named:
        got = f"{_count(len(sounds), 'sound file')} in {folder}, none named SPEAKER-CHAPTER-UTTERANCE.flac"
        raise UserError(f"{got} as expected: check SOURCE and --from, or fetch it by --download dev-clean")
    transcripts = cache(_transcripts)
    for path in named:
        speaker, chapter, _ = path.stem.split("-")
        text = transcripts(path.with_name(f"{speaker}-{chapter}.trans.txt")).get(path.stem)
        yield _utterance(path, text, speaker, lang="en")
    if len(named) < len(sounds):
        print(f"left out {len(sounds) - len(named)} of {len(sounds)} files for names unlike LibriSpeech's")


def _transcripts(path: Path) -> dict[str, str]:
    return dict(line.partition(" ")[::2] for line in _lines(path)) if path.exists() else {}


def _download_librispeech(args: argparse.Namespace) -> Path:
    from torchaudio.datasets import LIBRISPEECH

    try:
        Path(args.source).mkdir(parents=True, exist_ok=True)
        LIBRISPEECH(args.source, url=args.download, download=True)
    except (OSError, EOFError, RuntimeError, ValueError, tarfile.TarError, zlib.error) as error:
        why = f"LibriSpeech {args.download} could not be fetched ({_brief(error)})"
        raise UserError(f"{why}: check the name and the way to openslr.org, or unpack it yourself") from error
    return Path(args.source, "LibriSpeech", args.download)


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _any_folder(args: argparse.Namespace) -> Iterator[Utterance]:
    """Every sound file below a folder; text from the same-named .txt, or else .lab."""
    for path in _sound_files(args.source):
        found = [text for text in (path.with_suffix(".txt"), path.with_suffix(".lab")) if text.is_file()]
        speaker = path.parent.name if args.speaker_from_parent else None
        yield _utterance(path, " ".join(_lines(found[0])) if found else None, speaker)


def _hugging_face(args: argparse.Namespace) -> Iterator[Utterance]:
    """A dataset of the hub or of `save_to_disk`; its sound goes unchanged beside the manifest."""
    dataset, columns = _load_dataset(args)
    folder = _audio_folder(args).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for index, row in enumerate(dataset):
        sound = row[columns["audio"]] or {}
        content, origin = sound.get("bytes"), PurePath(sound.get("path") or f"{index:07d}")
        if content is None and Path(origin).is_file():
            content = Path(origin).read_bytes()
        # The corpus's own name where it has one: the id decides about validation.
        stem = f"{origin.stem}-{index:07d}" if origin.stem in used else origin.stem
        used.add(stem)
        audio = folder / (stem + _EXTENSION_OF.get((content or b"")[:4], origin.suffix or ".mp3"))
        if content is not None:  # without, the file is missing and counted as unreadable
            audio.write_bytes(content)
        text, speaker = (row[columns[key]] if key in columns else None for key in ("text", "speaker"))
        yield _utterance(audio, text, speaker)


def _audio_folder(args: argparse.Namespace) -> Path:
    return args.out.with_name(f"{args.out.stem}_audio")


def _load_dataset(args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """The split, with sound undecoded: torchcodec is not needed; and its columns of audio, text, speaker."""
    try:
        import datasets
    except ImportError as error:
        raise UserError('--from hf needs datasets: pip install "lit-moss[prepare]"') from error
    split = args.split or "train"
    failures = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        if any(Path(args.source, name).exists() for name in ("state.json", "dataset_dict.json")):
            found = datasets.load_from_disk(args.source)
            splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
        else:
            splits = {split: datasets.load_dataset(args.source, args.subset, split=split)}
    except failures as error:
        why = f"dataset {args.source} could not be loaded ({_brief(error)})"
        raise UserError(f"{why}: check its name, --subset and --split") from error
    if split not in splits:
        raise UserError(f"no split {split!r} in {args.source}: give --split, one of {', '.join(splits)}")
    columns = _columns(args, splits[split].column_names)
    dataset = splits[split].select_columns(list(dict.fromkeys(columns.values())))
    try:
        return dataset.cast_column(columns["audio"], datasets.Audio(decode=False)), columns
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"column {columns['audio']!r} holds no sound ({_brief(error)})"
        raise UserError(f"{got}: name another by --audio-column") from error


def _columns(args: argparse.Namespace, names: Sequence[str]) -> dict[str, str]:
    text = args.text_column or ("text" if "text" in names else None)
    wanted = {"audio": args.audio_column or "audio", "text": text, "speaker": args.speaker_column}
    if text is None:
        print(f"no column 'text' among {', '.join(names)}, so no transcripts: --text-column names one")
    for key, name in wanted.items():
        if name and name not in names:
            raise UserError(f"no column {name!r}: give --{key}-column, one of {', '.join(names)}")
    return {key: name for key, name in wanted.items() if name}


def _lhotse(args: argparse.Namespace) -> Iterator[Utterance]:
    """A lhotse manifest in JSON lines, gzipped or not: cuts, or supervisions with their recordings."""
    path, recordings = Path(args.source), None
    for where, cut in _json_lines(path):
        if "recording_id" in cut:  # a supervision is the cut that holds it alone
            recordings = recordings or _recordings(path)
            if cut["recording_id"] not in recordings:
                raise UserError(
                    f"{where}: expected recording {cut['recording_id']!r} in the recordings: add it"
                )
            recording = recordings[cut["recording_id"]]
            cut = cut | {"type": "MonoCut", "recording": recording, "supervisions": [cut]}
        try:
            yield _utterance_of_cut(cut, path.parent)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            expected = "expected a MonoCut of one file's first channel with at most one supervision"
            hint = "save_audios() and trim_to_supervisions() of lhotse make such cuts"
            raise UserError(f"{where}: got {_brief(error)}; {expected}: {hint}") from error


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield f"{path}, line {number}", dict(json.loads(line))
    except (OSError, EOFError, TypeError, ValueError, zlib.error) as error:
        got = f"{path}, after line {number}: {_brief(error)}"
        raise UserError(f"{got}; expected lhotse's JSON lines: check SOURCE and --from") from error


def _recordings(supervisions: Path) -> dict[str, dict[str, Any]]:
    path = supervisions.with_name(supervisions.name.replace("supervisions", "recordings"))
    if not path.is_file():
        raise UserError(f"no {path}: expected the recordings there, named as lhotse does: rename them")
    return {entry["id"]: entry for _, entry in _json_lines(path) if "sources" in entry}


def _utterance_of_cut(cut: dict[str, Any], folder: Path) -> Utterance:
    if cut.get("type") != "MonoCut":
        raise ValueError(cut.get("type") or f"an entry of {', '.join(cut)}")
    recording, spoken, channel = cut["recording"], cut.get("supervisions") or [{}], cut.get("channel", 0)
    kinds = [source["type"] for source in recording["sources"]]
    first = recording["sources"][0]["channels"][0]  # the one that `lit_moss.audio.io.read` takes
    if kinds != ["file"] or len(spoken) > 1 or channel not in (first, [first]) or recording.get("transforms"):
        changed = "transformed " if recording.get("transforms") else ""
        raise ValueError(f"{changed}sources {kinds}, channel {channel}, {len(spoken)} supervisions")
    # Relative to the working folder, as lhotse takes it, or else to the manifest: corpora move.
    audio = Path(recording["sources"][0]["source"])
    audio = (audio if audio.exists() else folder / audio).absolute()
    lang = (spoken[0].get("language") or "").lower().partition("-")[0]
    lang = _LANG_OF.get(lang, lang if len(lang) == 2 else None)
    times = {"offset_sec": float(cut["start"]), "duration_sec": float(cut["duration"])}
    return _utterance(audio, spoken[0].get("text"), spoken[0].get("speaker"), lang=lang, **times)


SOURCES: dict[str, Callable[[argparse.Namespace], Iterator[Utterance]]] = {
    "ljspeech": _ljspeech,
    "librispeech": _librispeech,
    "folder": _any_folder,
    "hf": _hugging_face,
    "lhotse": _lhotse,
}
