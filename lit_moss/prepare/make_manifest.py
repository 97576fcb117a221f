"""`python -m lit_moss prepare manifest --from KIND SOURCE --out manifest.jsonl`: from a corpus to a manifest.

Kinds of corpora are in `corpora.py`; here is what they share: lengths from the files' headers, the count of
unreadable files, cuts at pauses, the validation share, the closing lines.

Headers alone are read, but for what `--max-sec` cuts: `tokenize` finds a file that is damaged further on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.corpora.readers import SOURCES, audio_folder, counted, first_few
from lit_moss.errors import UserError
from lit_moss.records import printable

if TYPE_CHECKING:
    from lit_moss.audio.io import AudioInfo
    from lit_moss.corpora.manifest import Utterance

END_SLACK_SEC = 0.1  # a cut may end this much after its file: corpora round their times
CUT_BLOCK_SEC = 600.0  # a long file is read in blocks of this length to be cut
LEAST_MAX_SEC = 1.0
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
    add(
        "--max-sec",
        type=float,
        metavar="SECONDS",
        help="cut longer utterances without text at pauses; default none",
    )
    add("--download", metavar="PART", help="librispeech: first fetch this part, as dev-clean, into SOURCE")
    add("--speaker-from-parent", action="store_true", help="folder: the speaker is the folder's name")
    add("--split", help="hf: split of the dataset; default train")
    add("--subset", help="hf: configuration of a dataset that has several")
    add("--audio-column", help="hf: column of the sound; default audio")
    add("--text-column", help="hf: column of the transcript, none for none; default text, if any")
    add("--speaker-column", help="hf: column of the speaker's name; default none")


def main(args: argparse.Namespace) -> None:
    """Writes the manifest, and the validation manifest where one is asked for.

    Raises:
        UserError: on a wrong source or option, existing output, too many unreadable files, or no result.
    """
    from lit_moss.corpora.manifest import write_manifest

    _check_options(args)
    fresh = not audio_folder(args).exists()
    try:
        found = _measure_all(args)
        parts = _split(found.groups, args)
    except UserError:
        if fresh:
            shutil.rmtree(audio_folder(args), ignore_errors=True)
        raise
    for path, part in reversed(parts):  # training last: where its manifest stands, all is done
        write_manifest(path.resolve(), part)
    for path, part in parts:
        print(_summary(path, part))
    _print_notes(found, args.max_sec)


@dataclass
class _Found:
    """What a source gave.

    Args:
        groups: Readable utterances with their lengths; several in a group are the pieces of a long one.
        bad: Unreadable ones: `path: reason`.
        uncut: Names of those that are too long, and kept whole because their text cannot be cut with them.
    """

    groups: list[list[Utterance]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)


def _check_options(args: argparse.Namespace) -> None:
    for name, kind in _KIND_OF.items():
        if getattr(args, name) and args.kind != kind:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} belongs to --from {kind}, got --from {args.kind}: leave {option} out")
    if args.lang and not re.fullmatch("[a-z]{2}", args.lang):
        raise UserError(f"--lang is {args.lang!r}, expected two small letters (ISO 639-1) such as en")
    if args.validation_share is not None and not 0 < args.validation_share < 1:
        raise UserError(f"--validation-share is {args.validation_share}, expected a share between 0 and 1")
    if args.max_sec is not None and not LEAST_MAX_SEC <= args.max_sec < float("inf"):
        raise UserError(f"--max-sec is {args.max_sec}, expected seconds, {LEAST_MAX_SEC:.0f} or more")
    if args.validation_share is not None and args.validation_out is None:
        raise UserError("--validation-share without --validation-out: name the file for that share")
    outs = [out for out in (args.out, args.validation_out) if out]
    if len({out.resolve() for out in outs}) < len(outs):
        raise UserError(f"--out and --validation-out are both {args.out}, expected two files: rename one")
    for out in outs:
        if out.is_dir() or (out.exists() and not args.force):
            raise UserError(f"{out} exists: give another name" + ("" if out.is_dir() else ", or --force"))


def _measure_all(args: argparse.Namespace) -> _Found:
    """Utterances of the source with their lengths, long ones cut, and what is wrong with the others.

    Raises:
        UserError: if there are none, or more than `max_bad_share` are unreadable.
    """
    from tqdm import tqdm

    from lit_moss.audio.io import UnreadableAudio, info

    header = lru_cache(maxsize=16)(info)  # many cuts of one long file ask for the same header
    limit_sec = float("inf") if args.max_sec is None else args.max_sec
    found = _Found()
    for u in tqdm(SOURCES[args.kind](args), desc=args.kind, unit=" files", disable=None):
        try:
            seconds = _duration_sec(u, header)
            u = replace(u, duration_sec=seconds, lang=args.lang or u.lang)
            long = seconds > limit_sec
            found.groups.append(_cut(u, header(u.audio), limit_sec) if long and u.text is None else [u])
            if long and u.text is not None:
                found.uncut.append(f"{u.id} ({seconds:.1f} s)")
        except UnreadableAudio as error:
            found.bad.append(str(error))
    bad, total = found.bad, len(found.groups) + len(found.bad)
    # One bad file of a small corpus is more than 1 % of it, and still an accident.
    accident = 1 if total < 100 and args.max_bad_share > 0 else 0
    if bad and (not found.groups or len(bad) > max(args.max_bad_share * total, accident)):
        got = f"{len(bad)} of {total} in {args.source} are unreadable: {first_few(bad)}"
        expected = f"expected at most {args.max_bad_share:.2%}, so nothing was written"
        raise UserError(f"{got}; {expected}: repair or remove them, or raise --max-bad-share")
    if not found.groups:
        raise UserError(f"no utterances in {args.source}: expected a corpus, check SOURCE and --from")
    return found


def _cut(u: Utterance, file: AudioInfo, max_sec: float) -> list[Utterance]:
    """Pieces of one utterance, cut at pauses, that hold every sample of it.

    The file is read block by block. A cut depends on no more than `max_sec` after the cut before it, so where
    the last piece of a block is begun anew in the next one, the pieces are the whole's.
    """
    from lit_moss.audio.io import read
    from lit_moss.audio.segments import cut_at_pauses

    rate_hz, length_sec = file.rate_hz, u.duration_sec or 0.0
    start = round(u.offset_sec * rate_hz)
    end, block = start + round(length_sec * rate_hz), round(max(CUT_BLOCK_SEC, 2 * max_sec) * rate_hz)
    bounds = [start]
    while bounds[-1] < end:
        samples = min(block, end - bounds[-1])
        wave_T = read(u.audio, rate_hz, bounds[-1] / rate_hz, samples / rate_hz)
        begun, last = bounds[-1], bounds[-1] + samples == end
        pieces = cut_at_pauses(wave_T, rate_hz, max_sec)
        bounds += [begun + cut for _, cut in pieces[:-1]] + ([end] if last else [])
    times = [round(sample / rate_hz, 6) for sample in bounds]
    return [
        replace(u, offset_sec=u.offset_sec if i == 0 else times[i], duration_sec=round((b - a) / rate_hz, 6))
        for i, (a, b) in enumerate(pairwise(bounds))
    ]


def _duration_sec(u: Utterance, header: Callable) -> float:
    from lit_moss.audio.io import UnreadableAudio

    file = header(u.audio)
    left_sec = file.duration_sec - u.offset_sec
    wanted_sec = left_sec if u.duration_sec is None else u.duration_sec
    if not (u.offset_sec >= 0 and left_sec > 0 and 0 < wanted_sec <= left_sec + END_SLACK_SEC):
        cut = f"a cut of {wanted_sec:.2f} s at {u.offset_sec:.2f} s"
        raise UnreadableAudio(f"{u.audio}: {cut} is not inside its {file.duration_sec:.2f} s")
    return round(min(wanted_sec, left_sec), 6)


def _split(groups: list[list[Utterance]], args: argparse.Namespace) -> list[tuple[Path, list[Utterance]]]:
    """The manifests to write, training first; none is empty."""
    if args.validation_out is None:
        return [(args.out, list(chain.from_iterable(groups)))]
    share = args.validation_share or 0.1
    training: list[Utterance] = []
    validation: list[Utterance] = []
    files: dict[str, set[Path]] = {}
    for group in groups:
        files.setdefault(group[0].id, set()).add(group[0].audio)
    for group in groups:
        # By the id alone: a file that is added moves no other from one part to the other. By the first one's:
        # pieces of one utterance stay together. Files of several folders that share an id are told apart by
        # their path below the corpus; otherwise all of them would fall into the same part.
        name = group[0].id
        if len(files[name]) > 1:
            name = f"{os.path.relpath(group[0].audio.parent, Path(args.source).resolve())}/{name}"
        fraction = int.from_bytes(hashlib.sha256(printable(name).encode()).digest()[:8]) / 2**64
        (validation if fraction < share else training).extend(group)
    if not training or not validation:
        got = f"{len(training)} for training, {len(validation)} for validation"
        raise UserError(f"--validation-share {share} leaves {got}, expected some of both: change or drop it")
    return [(args.out, training), (args.validation_out, validation)]


def _summary(path: Path, utterances: Sequence[Utterance]) -> str:
    minutes = sum(u.duration_sec or 0.0 for u in utterances) / 60
    speakers = len({u.speaker for u in utterances} - {None})
    texts = sum(u.text is not None for u in utterances)
    counts = f"{counted(len(utterances), 'utterance')}, {minutes:.1f} min, {counted(speakers, 'speaker')}"
    return f"{path}: {counts}, {texts} with text"


def _print_notes(found: _Found, max_sec: float | None) -> None:
    pieces = [group for group in found.groups if len(group) > 1]
    if pieces:
        made = counted(sum(map(len, pieces)), "piece")
        print(f"cut {counted(len(pieces), 'utterance')} longer than {max_sec:g} s at pauses into {made}")
    if found.uncut:
        kept = f"kept {counted(len(found.uncut), 'utterance')} longer than {max_sec:g} s whole"
        print(f"{kept}, their text cannot be cut without word times: {first_few(found.uncut)}")
    if found.bad:
        total = len(found.bad) + len(found.groups)
        print(f"skipped {len(found.bad)} of {total} as unreadable: {first_few(found.bad)}")
