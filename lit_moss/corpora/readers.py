"""Readers of public corpora: each is a function in `READERS` that yields utterances without measured lengths.

Transcripts keep their words, but white space is replaced by single spaces: a line separator within a text
would break its JSON line.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from lit_moss.corpora.folders import counted, print_left_out, sound_files
from lit_moss.errors import UserError
from lit_moss.records import Record, file_name, is_number, json_lines, printable, text_lines, unique_name

if TYPE_CHECKING:
    from lit_moss.corpora.manifest import Utterance

_SLACK_SEC = 0.1  # tolerance between a supervision and its cut: corpora round their times
NAMED = 5  # number of files that a message names
_EXTENSION_OF = {b"RIFF": ".wav", b"fLaC": ".flac", b"OggS": ".ogg"}  # by the first four bytes
_LANG_OF = {"english": "en", "chinese": "zh", "mandarin": "zh"}


def first_few(messages: Sequence[str]) -> str:
    """Joins the first few messages, and the number of the others."""
    more = len(messages) - NAMED
    return "; ".join(messages[:NAMED]) + (f"; and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class Corpus:
    """Location of a corpus and how to read it; an option applies only to the kind named before it.

    Args:
        source: Folder, dataset or file.
        kind: Name of the reader in `READERS`.
        audio_folder: Output folder for the audio of a corpus that stores it in tables.
        download: librispeech: part to download into the source first, e.g. dev-clean.
        speaker_from_parent: folder: take the name of the parent folder as the speaker.
        split: hf: split of the dataset; None: train.
        subset: hf: configuration of a dataset that has several.
        audio_column: hf: column of the audio; None: `audio`.
        text_column: hf: column of the transcript, or `none` for no transcripts; None: `text`, if there is
            such a column.
        speaker_column: hf: column of the speaker's name; None: no speakers.
    """

    source: str
    kind: str
    audio_folder: Path
    download: str | None = None
    speaker_from_parent: bool = False
    split: str | None = None
    subset: str | None = None
    audio_column: str | None = None
    text_column: str | None = None
    speaker_column: str | None = None


def _utterance(audio: Path, text: str | None = None, speaker: str | None = None, **known: Any) -> Utterance:
    from lit_moss.corpora.manifest import Utterance

    return Utterance(audio, text=_clean(text), speaker=_clean(speaker), **known)


def _clean(text: str | None) -> str | None:
    return None if text is None else " ".join(text.split()) or None


def _beside(path: Path, name: str) -> Path:
    """Returns a file in a folder by its name, in lower or upper case (metadata.csv, METADATA.CSV)."""
    if path.is_dir() and not (path / name).exists():
        matches = [other for other in path.iterdir() if other.name.lower() == name.lower()]
        return min(matches, default=path / name)
    return path / name


def _lines(path: Path) -> list[str]:
    return [line for _, line in text_lines(path, "text in UTF-8")]


def _ljspeech(corpus: Corpus) -> Iterator[Utterance]:
    """LJ Speech: metadata.csv (id|text|normalised text) and wavs/ID.wav, or any other audio format."""
    table, wavs = _beside(Path(corpus.source), "metadata.csv"), Path(corpus.source, "wavs")
    if not table.is_file() or not wavs.is_dir():
        expected = "LJ Speech's folder, which holds metadata.csv and wavs/ID.wav"
        lacks = "wavs" if table.is_file() else "metadata.csv"
        raise UserError(f"no {lacks} in {corpus.source}: expected {expected}, check SOURCE and --from")
    sounds: dict[str, list[Path]] = {}
    files, others = sound_files(wavs.resolve())
    for path in files:
        sounds.setdefault(path.stem, []).append(path)
    missing = []
    for number, line in enumerate(_lines(table), start=1):
        name, *texts = (field.strip() for field in line.split("|"))
        if name and not texts:
            raise UserError(f"{table}, line {number}: got {line[:60]!r}, expected id|text|normalised text")
        if len(sounds.get(name, ())) > 1:
            got = f"{table}, line {number}: {name} names {' and '.join(map(str, sounds[name][:2]))}"
            raise UserError(f"{got}, expected one sound file: remove or rename the other")
        if name in sounds:
            yield _utterance(sounds[name][0], next(filter(None, texts[1::-1]), None), "ljspeech", lang="en")
        elif name:
            missing.append(name)
    print_left_out(others)
    if missing:
        print(f"left out {counted(len(missing), 'row')} without a sound file: {first_few(missing)}")


def _librispeech(corpus: Corpus) -> Iterator[Utterance]:
    """LibriSpeech: SPEAKER-CHAPTER-UTTERANCE.flac, with the text in SPEAKER-CHAPTER.trans.txt next to it."""
    folder = _download_librispeech(corpus.source, corpus.download) if corpus.download else corpus.source
    sounds, others = sound_files(Path(folder).resolve())
    named = [path for path in sounds if re.fullmatch(r"\d+-\d+-\d+", path.stem)]
    if not named:
        got = f"{counted(len(sounds), 'sound file')} in {folder}, none named SPEAKER-CHAPTER-UTTERANCE.flac"
        raise UserError(f"{got} as expected: check SOURCE and --from, or fetch it by --download dev-clean")
    transcripts = cache(_transcripts)
    for path in named:
        speaker, chapter, _ = path.stem.split("-")
        text = transcripts(_beside(path.parent, f"{speaker}-{chapter}.trans.txt")).get(path.stem)
        yield _utterance(path, text, speaker, lang="en")
    print_left_out(path for path in others if path.suffix.lower() != ".txt")
    if len(named) < len(sounds):
        print(f"left out {len(sounds) - len(named)} of {len(sounds)} files for names unlike LibriSpeech's")


def _transcripts(path: Path) -> dict[str, str]:
    parts = (line.partition(" ") for line in _lines(path)) if path.exists() else ()
    return {name: text for name, _, text in parts}


def _download_librispeech(folder: str, part: str) -> Path:
    from torchaudio.datasets import LIBRISPEECH

    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        LIBRISPEECH(folder, url=part, download=True)
    except (OSError, EOFError, RuntimeError, ValueError, tarfile.TarError, zlib.error) as error:
        why = f"LibriSpeech {part} could not be fetched ({_brief(error)})"
        raise UserError(
            f"{why}: check the name and the connection to openslr.org, or unpack it yourself"
        ) from error
    return Path(folder, "LibriSpeech", part)


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _any_folder(corpus: Corpus) -> Iterator[Utterance]:
    """Every audio file below a folder; its text is in the .txt (.TXT) or else .lab file of the same name."""
    sounds, others = sound_files(Path(corpus.source).resolve())
    texts = {(path.with_suffix(""), path.suffix.lower()): path for path in others}
    used: set[Path] = set()
    for path in sounds:
        candidates = (texts.get((path.with_suffix(""), ending)) for ending in (".txt", ".lab"))
        text = next(filter(None, candidates), None)
        used |= {text} if text else set()
        speaker = printable(path.parent.name) if corpus.speaker_from_parent else None
        yield _utterance(path, " ".join(_lines(text)) if text else None, speaker)
    print_left_out(path for path in others if path not in used)


def _hugging_face(corpus: Corpus) -> Iterator[Utterance]:
    """A dataset of the hub or of `save_to_disk`; its audio is written unchanged next to the manifest."""
    dataset, columns = _load_dataset(corpus)
    folder = corpus.audio_folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    used: set[str] = set()
    for index, row in enumerate(dataset):
        sound = row[columns["audio"]] or {}
        content, origin = sound.get("bytes"), PurePath(sound.get("path") or f"{index:07d}")
        if content is None and os.path.isfile(origin):
            content = Path(origin).read_bytes()
        # Keep the name given by the corpus, if there is one: the validation split is drawn by the id.
        stem = file_name(origin.stem)
        stem = unique_name(f"{stem}-{index:07d}" if stem in used else stem, used)
        audio = folder / (stem + _EXTENSION_OF.get((content or b"")[:4], origin.suffix or ".mp3"))
        if content is not None:  # else the file is missing, and counted as unreadable
            audio.write_bytes(content)
        fields = Record({name: row[name] for name in columns.values()}, f"{corpus.source}, row {index}")
        text = fields.text(columns["text"]) if "text" in columns else None
        speaker = fields.name(columns["speaker"]) if "speaker" in columns else None
        yield _utterance(audio, text, speaker)


def _load_dataset(corpus: Corpus) -> tuple[Any, dict[str, str]]:
    """Loads the split with undecoded audio (needs no torchcodec), and the columns to read."""
    import datasets
    from datasets.exceptions import DatasetsError

    split = corpus.split or "train"
    failures = (OSError, ValueError, RuntimeError, DatasetsError)
    try:
        if any(Path(corpus.source, name).exists() for name in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(corpus.source)
            splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
        else:
            splits = {split: datasets.load_dataset(corpus.source, corpus.subset, split=split)}
    except failures as error:
        why = f"dataset {corpus.source} could not be loaded ({_brief(error)})"
        raise UserError(f"{why}: check its name, --subset and --split") from error
    if split not in splits:
        raise UserError(
            f"no split {split!r} in {corpus.source}: give --split, one of {', '.join(map(str, splits))}"
        )
    columns = _columns(corpus, splits[split].column_names)
    _check_types(columns, splits[split].features)
    dataset = splits[split].select_columns(list(dict.fromkeys(columns.values())))
    try:
        return dataset.cast_column(columns["audio"], datasets.Audio(decode=False)), columns
    except (TypeError, ValueError, RuntimeError) as error:
        got = f"column {columns['audio']!r} holds no sound ({_brief(error)})"
        raise UserError(f"{got}: name another by --audio-column") from error


def _check_types(columns: dict[str, str], features: Any) -> None:
    """Checks that text is strings, and speakers strings or integers; a list or float is not a transcript."""
    strings = {"string", "large_string", "string_view"}
    integers = {f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
    allowed = {"text": strings, "speaker": strings | integers}
    for key in columns.keys() & allowed.keys():
        kind = str(getattr(features[columns[key]], "dtype", type(features[columns[key]]).__name__))
        if kind not in allowed[key]:
            got = f"column {columns[key]!r} holds {kind} ({features[columns[key]]!r:.80})"
            wanted = "strings" + ("" if key == "text" else " or whole numbers")
            hint = " (--text-column none takes none)" if key == "text" else ""
            raise UserError(f"{got}, expected {wanted}: name another by --{key}-column{hint}")


def _columns(corpus: Corpus, names: Sequence[str]) -> dict[str, str]:
    unwanted = corpus.text_column == "none" and "none" not in names
    text = None if unwanted else corpus.text_column or ("text" if "text" in names else None)
    wanted = {"audio": corpus.audio_column or "audio", "text": text, "speaker": corpus.speaker_column}
    if text is None and not unwanted:
        print(f"no column 'text' among {', '.join(names)}, so no transcripts: --text-column names one")
    for key, name in wanted.items():
        if name and name not in names:
            raise UserError(f"no column {name!r}: give --{key}-column, one of {', '.join(names)}")
    return {key: name for key, name in wanted.items() if name}


def _lhotse(corpus: Corpus) -> Iterator[Utterance]:
    """A lhotse manifest in JSON lines, gzipped or not: cuts, or supervisions with their recordings."""
    path, recordings = Path(corpus.source), None
    for record in json_lines(path, "an object of lhotse's"):
        cut = record.content
        if (name := record.name("recording_id")) is not None:  # a supervision: make the cut that contains it
            recordings = recordings or _recordings(path)
            if name not in recordings:
                raise UserError(f"{record.where}: expected recording {name!r} in the recordings: add it")
            whole = [cut | {"start": 0.0}]
            cut = cut | {"type": "MonoCut", "recording": recordings[name], "supervisions": whole}
        try:
            yield _utterance_of_cut(replace(record, content=cut), path.parent)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            expected = "expected a MonoCut of one file's first channel with at most one (whole) supervision"
            hint = "save_audios() and trim_to_supervisions() of lhotse make such cuts"
            raise UserError(f"{record.where}: got {_brief(error)}; {expected}: {hint}") from error


def _recordings(supervisions: Path) -> dict[str, dict[str, Any]]:
    path = supervisions.with_name(supervisions.name.replace("supervisions", "recordings"))
    if not path.is_file():
        raise UserError(f"no {path}: expected the recordings there, named as lhotse does: rename them")
    recordings = {}
    for record in json_lines(path, "a recording of lhotse's"):
        if "sources" in record.content:
            if (name := record.name("id")) is None:
                raise record.error("id", "the recording's name")
            recordings[name] = record.content
    return recordings


def _utterance_of_cut(record: Record, folder: Path) -> Utterance:
    cut = record.content
    if cut.get("type") != "MonoCut":
        raise ValueError(cut.get("type") or f"an entry of {', '.join(cut)}")
    recording, spoken, channel = cut["recording"], cut.get("supervisions") or [{}], cut.get("channel", 0)
    kinds = [source["type"] for source in recording["sources"]]
    first = recording["sources"][0]["channels"][0]  # the channel that `lit_moss.audio.io.read` takes
    if kinds != ["file"] or len(spoken) > 1 or channel not in (first, [first]) or recording.get("transforms"):
        changed = "transformed " if recording.get("transforms") else ""
        raise ValueError(f"{changed}sources {kinds}, channel {channel}, {len(spoken)} supervisions")
    source = Record(recording["sources"][0], record.where, prefix="recording.sources[0].")
    (supervision,) = Record({"supervisions": spoken}, record.where).objects("supervisions")
    if (name := source.path("source")) is None:
        raise source.error("source", "the path of a sound file")
    start_sec, duration_sec = record.seconds("start"), record.seconds("duration")
    if start_sec is None or duration_sec is None:
        raise record.error("start" if start_sec is None else "duration", "seconds, a number from 0 on")
    # Relative to the working folder, as in lhotse, or else to the manifest, for a corpus that has been moved.
    audio = Path(name)
    audio = (audio if os.path.exists(audio) else folder / audio).absolute()
    lang = (supervision.text("language") or "").lower().partition("-")[0]
    lang = _LANG_OF.get(lang, lang if len(lang) == 2 else None)
    _check_span(supervision, duration_sec)
    times = {"offset_sec": float(start_sec), "duration_sec": float(duration_sec)}
    return _utterance(audio, supervision.text("text"), supervision.name("speaker"), lang=lang, **times)


def _check_span(supervision: Record, cut_sec: float) -> None:
    """Checks that a cut contains its whole supervision; it may contain more, as padded cuts do.

    Raises:
        ValueError: if the supervision reaches beyond the cut.
    """
    start_sec, length_sec = supervision.content.get("start"), supervision.seconds("duration")
    if start_sec is None or length_sec is None:
        return
    if not is_number(start_sec):  # from the start of the cut; negative if it begins before the cut
        raise supervision.error("start", "seconds from the start of the cut, a number")
    if start_sec < -_SLACK_SEC or start_sec + length_sec > cut_sec + _SLACK_SEC:
        span = f"{start_sec:.2f} to {start_sec + length_sec:.2f} s"
        raise ValueError(f"a supervision from {span} in a cut of {cut_sec:.2f} s")


READERS: dict[str, Callable[[Corpus], Iterator[Utterance]]] = {
    "ljspeech": _ljspeech,
    "librispeech": _librispeech,
    "folder": _any_folder,
    "hf": _hugging_face,
    "lhotse": _lhotse,
}
