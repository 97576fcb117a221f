"""From a corpus to a speech manifest.

The readers in `lit_moss.corpora.readers` say which utterances a corpus has; here is what they share: lengths
from the files' headers, the count of unreadable files, cuts at pauses, the validation share, the closing
lines.

Only headers are read, except of files that `max_sec` cuts, and up to 30 s of those with several channels:
`tokenize` finds a file that is damaged further
on.
"""

from __future__ import annotations

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

from lit_moss.corpora.readers import READERS, Corpus, counted, first_few
from lit_moss.errors import UserError
from lit_moss.records import printable

if TYPE_CHECKING:
    from lit_moss.audio.io import AudioInfo
    from lit_moss.corpora.manifest import Utterance

END_SLACK_SEC = 0.1  # a cut may end this much after its file: corpora round their times
CUT_BLOCK_SEC = 600.0  # a long file is read in blocks of this length to be cut
LEAST_MAX_SEC = 1.0
VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class ManifestOptions:
    """What to write, and which utterances go into it.

    Args:
        out: Manifest to write.
        force: Overwrite existing files.
        lang: Language of all utterances, ISO 639-1; None takes what the corpus states.
        validation_out: Manifest of the validation share; None for no validation share.
        validation_share: Share of the utterances that are held out, between 0 and 1, by a hash of their id;
            None for 0.1.
        max_bad_share: Share of unreadable files above which nothing is written, 0 to 1.
        max_sec: Utterances without text that are longer are cut at pauses; None cuts none.
    """

    out: Path
    force: bool = False
    lang: str | None = None
    validation_out: Path | None = None
    validation_share: float | None = None
    max_bad_share: float = 0.01
    max_sec: float | None = None


def make_manifest(corpus: Corpus, options: ManifestOptions) -> None:
    """Writes the manifest, and the validation manifest where one is asked for; prints what is in them.

    Raises:
        UserError: on a wrong source or option, existing output, too many unreadable files, or no result.
    """
    from lit_moss.corpora.manifest import write_manifest

    _check_options(options)
    fresh = not corpus.audio_folder.exists()
    try:
        measured = _measure_all(corpus, options)
        parts = _split(measured.groups, corpus, options)
    except UserError:
        if fresh:
            shutil.rmtree(corpus.audio_folder, ignore_errors=True)
        raise
    for path, part in reversed(parts):  # training last: once its manifest is there, everything is done
        write_manifest(path.resolve(), part)
    for path, part in parts:
        print(_summary(path, part))
    _print_notes(measured, options.max_sec)


@dataclass
class _Measured:
    """Utterances of a corpus.

    Args:
        groups: Readable utterances with their lengths; several in a group are the pieces of a long one.
        bad: Unreadable ones: `path: reason`.
        uncut: Names of those that are too long, but kept whole because their text cannot be cut with them.
        sides: Files whose channels differ, of utterances that state no channel; in order.
        files: Number of files.
    """

    groups: list[list[Utterance]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)
    uncut: list[str] = field(default_factory=list)
    sides: list[str] = field(default_factory=list)
    files: int = 0


def _check_options(options: ManifestOptions) -> None:
    if options.lang and not re.fullmatch("[a-z]{2}", options.lang):
        raise UserError(f"--lang is {options.lang!r}, expected two small letters (ISO 639-1) such as en")
    share, max_sec = options.validation_share, options.max_sec
    if share is not None and not 0 < share < 1:
        raise UserError(f"--validation-share is {share}, expected a share between 0 and 1")
    if max_sec is not None and not LEAST_MAX_SEC <= max_sec < float("inf"):
        raise UserError(f"--max-sec is {max_sec}, expected seconds, {LEAST_MAX_SEC:.0f} or more")
    if share is not None and options.validation_out is None:
        raise UserError("--validation-share without --validation-out: name the file for that share")
    outs = [out for out in (options.out, options.validation_out) if out]
    if len({out.resolve() for out in outs}) < len(outs):
        raise UserError(f"--out and --validation-out are both {options.out}, expected two files: rename one")
    for out in outs:
        if out.is_dir() or (out.exists() and not options.force):
            raise UserError(f"{out} exists: give another name" + ("" if out.is_dir() else ", or --force"))


def _measure_all(corpus: Corpus, options: ManifestOptions) -> _Measured:
    """Utterances of the corpus with their lengths, long ones cut, and what is wrong with the others.

    Raises:
        UserError: if there are none, or more than `max_bad_share` are unreadable.
    """
    from tqdm import tqdm

    from lit_moss.audio.io import UnreadableAudio, channels_differ, info

    header = lru_cache(maxsize=16)(info)  # many cuts of one long file ask for the same header
    limit_sec = float("inf") if options.max_sec is None else options.max_sec
    measured, files = _Measured(), set[Path]()
    for u in tqdm(READERS[corpus.kind](corpus), desc=corpus.kind, unit=" files", disable=None):
        try:
            seconds = _duration_sec(u, header)
            u = replace(u, duration_sec=seconds, lang=options.lang or u.lang)
            long = seconds > limit_sec
            measured.groups.append(_cut(u, header(u.audio), limit_sec) if long and u.text is None else [u])
            if u.audio not in files and u.channel is None and header(u.audio).channels > 1:
                measured.sides += [str(u.audio)] if channels_differ(u.audio) else []
            files.add(u.audio)
            if long and u.text is not None:
                measured.uncut.append(f"{u.id} ({seconds:.1f} s)")
        except UnreadableAudio as error:
            measured.bad.append(str(error))
    measured.files = len(files)
    _check_measured(measured, corpus.source, options.max_bad_share)
    return measured


def _check_measured(measured: _Measured, source: str, max_bad_share: float) -> None:
    bad, total = measured.bad, len(measured.groups) + len(measured.bad)
    # One bad file of a small corpus is more than 1 % of it, and still an accident.
    accident = 1 if total < 100 and max_bad_share > 0 else 0
    if bad and (not measured.groups or len(bad) > max(max_bad_share * total, accident)):
        got = f"{len(bad)} of {total} in {source} are unreadable: {first_few(bad)}"
        expected = f"expected at most {max_bad_share:.2%}, so nothing was written"
        raise UserError(f"{got}; {expected}: repair or remove them, or raise --max-bad-share")
    if not measured.groups:
        raise UserError(f"no utterances in {source}: expected a corpus, check SOURCE and --from")


def _cut(u: Utterance, file: AudioInfo, max_sec: float) -> list[Utterance]:
    """Pieces of one utterance, cut at pauses, that hold every sample of it.

    The file is read block by block. A cut depends only on the `max_sec` after the previous cut; since the
    last piece of a block is started again in the next one, the pieces are those of the whole file.
    """
    from lit_moss.audio.io import read
    from lit_moss.audio.segments import cut_at_pauses

    rate_hz, length_sec = file.rate_hz, u.duration_sec or 0.0
    start = round(u.offset_sec * rate_hz)
    end, block = start + round(length_sec * rate_hz), round(max(CUT_BLOCK_SEC, 2 * max_sec) * rate_hz)
    bounds = [start]
    while bounds[-1] < end:
        samples = min(block, end - bounds[-1])
        wave_T = read(u.audio, rate_hz, bounds[-1] / rate_hz, samples / rate_hz, channel=u.channel)
        block_start, last = bounds[-1], bounds[-1] + samples == end
        pieces = cut_at_pauses(wave_T, rate_hz, max_sec)
        bounds += [block_start + cut for _, cut in pieces[:-1]] + ([end] if last else [])
    times = [round(sample / rate_hz, 6) for sample in bounds]
    return [
        replace(
            u,
            offset_sec=u.offset_sec if i == 0 else times[i],
            duration_sec=round((stop - first) / rate_hz, 6),
        )
        for i, (first, stop) in enumerate(pairwise(bounds))
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


def _split(
    groups: list[list[Utterance]], corpus: Corpus, options: ManifestOptions
) -> list[tuple[Path, list[Utterance]]]:
    """The manifests to write, training first; none is empty."""
    if options.validation_out is None:
        return [(options.out, list(chain.from_iterable(groups)))]
    share = options.validation_share or VALIDATION_SHARE
    training: list[Utterance] = []
    validation: list[Utterance] = []
    files: dict[str, set[Path]] = {}
    for group in groups:
        files.setdefault(group[0].id, set()).add(group[0].audio)
    for group in groups:
        # By the id alone, so that a new file moves no other one between the parts; by the id of the first
        # piece, so that the pieces of an utterance stay together. Files of several folders with the same id
        # are distinguished by their path below the corpus; otherwise all of them would be in the same part.
        name = group[0].id
        if len(files[name]) > 1:
            name = f"{os.path.relpath(group[0].audio.parent, Path(corpus.source).resolve())}/{name}"
        fraction = int.from_bytes(hashlib.sha256(printable(name).encode()).digest()[:8]) / 2**64
        (validation if fraction < share else training).extend(group)
    if not training or not validation:
        got = f"{len(training)} for training, {len(validation)} for validation"
        raise UserError(f"--validation-share {share} leaves {got}, expected some of both: change or drop it")
    return [(options.out, training), (options.validation_out, validation)]


def _summary(path: Path, utterances: Sequence[Utterance]) -> str:
    minutes = sum(u.duration_sec or 0.0 for u in utterances) / 60
    speakers = len({u.speaker for u in utterances} - {None})
    texts = sum(u.text is not None for u in utterances)
    counts = f"{counted(len(utterances), 'utterance')}, {minutes:.1f} min, {counted(speakers, 'speaker')}"
    return f"{path}: {counts}, {texts} with text"


def _print_notes(measured: _Measured, max_sec: float | None) -> None:
    pieces = [group for group in measured.groups if len(group) > 1]
    if pieces:
        count = counted(sum(map(len, pieces)), "piece")
        print(f"cut {counted(len(pieces), 'utterance')} longer than {max_sec:g} s at pauses into {count}")
    if measured.uncut:
        kept = f"kept {counted(len(measured.uncut), 'utterance')} longer than {max_sec:g} s whole"
        print(f"{kept}, their text cannot be cut without word times: {first_few(measured.uncut)}")
    if measured.sides:
        which = f"{len(measured.sides)} of {counted(measured.files, 'file')} have channels that differ"
        print(
            f"{which}, e.g. {printable(measured.sides[0])}: the first channel is read alone; if each side is "
            "a speaker, give each channel a line of its own with `channel` (docs/data.md#channels)"
        )
    if measured.bad:
        total = len(measured.bad) + len(measured.groups)
        print(f"skipped {len(measured.bad)} of {total} as unreadable: {first_few(measured.bad)}")
