"""Kinds of corpora: each is one function of `SOURCES` that yields utterances, their lengths still unmeasured.

Transcripts keep their words, but white space becomes single spaces: a line separator inside a text would tear
its line of JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.data.manifest import Utterance

NAMED = 5  # files that a message names
_EXTENSION_OF = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # by the first four bytes
_LANG_OF = {"english": "en", "chinese": "zh", "mandarin": "zh"}


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def first_few(messages: Sequence[str]) -> str:
    """The first few of them, and how many more there are."""
    more = len(messages) - NAMED
    return "; ".join(messages[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def audio_folder(args: argparse.Namespace) -> Path:
    """Where sound goes that a corpus holds in tables: beside the manifest."""
    return args.out.with_name(f"{args.out.stem}_audio")


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
        print(f"left out {counted(len(missing), 'row')} without a sound file: {first_few(missing)}")


def _librispeech(args: argparse.Namespace) -> Iterator[Utterance]:
    """LibriSpeech: SPEAKER-CHAPTER-UTTERANCE.flac, its text from SPEAKER-CHAPTER.trans.txt beside."""
    folder = _download_librispeech(args) if args.download else args.source
    sounds = _sound_files(folder)
    named = [path for path in sounds if re.fullmatch(r"\d+-\d+-\d+", path.stem)]
    if not named:
        got = f"{counted(len(sounds), 'sound file')} in {folder}, none named SPEAKER-CHAPTER-UTTERANCE.flac"
        raise UserError(f"{got} as expected: check SOURCE and --from, or fetch it by --download dev-clean")
    transcripts = cache(_transcripts)
    for path in named:
        speaker, chapter, _ = path.stem.split("-")
        text = transcripts(path.with_name(f"{speaker}-{chapter}.trans.txt")).get(path.stem)
        yield _utterance(path, text, speaker, lang="en")
    if len(named) < len(sounds):
        print(f"left out {len(sounds) - len(named)} of {len(sounds)} files for names unlike LibriSpeech's")


def _transcripts(path: Path) -> dict[str, str]:
    parts = (line.partition(" ") for line in _lines(path)) if path.exists() else ()
    return {name: text for name, _, text in parts}


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
    folder = audio_folder(args).resolve()
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


def _load_dataset(args: argparse.Namespace) -> tuple[Any, dict[str, str]]:
    """The split, with sound undecoded: torchcodec is not needed; and its columns of audio, text, speaker."""
    import datasets
    from datasets.exceptions import DatasetsError

    split = args.split or "train"
    failures = (OSError, ValueError, RuntimeError, DatasetsError)
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
