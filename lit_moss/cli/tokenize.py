"""Audio files -> codes, one JSON line a file: {"audio_filepath": …, "codes": […], "duration": seconds}.

Files, folders (every sound file below them) and manifests (.jsonl) are taken, of any length. A file that
cannot be read is named and left out, and the exit code is then 1.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.cli.options import add_log_mel_argument
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.codec import SpeechTokenizer
    from lit_moss.corpora.manifest import Utterance


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "audio", nargs="+", metavar="AUDIO", help="sound files, folders of them, or manifests (.jsonl)"
    )
    parser.add_argument(
        "--speech-tokenizer",
        required=True,
        help="checkpoint, folder or hub id; runs/NAME is the best of its newest run",
    )
    add_log_mel_argument(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="JSONL", help="file to write")
    parser.add_argument(
        "--batch-sec", type=float, default=240.0, help="seconds of audio computed at once (default 240)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--force", action="store_true", help="overwrite existing output")


def main(args: argparse.Namespace) -> None:
    """Tokenizes all files; memory is bounded by one batch and the longest file."""
    from tqdm import tqdm

    from lit_moss.codec.encoder import fingerprint
    from lit_moss.devices import moved
    from lit_moss.hub import open_tokenizer

    if args.out.exists() and not args.force:
        raise UserError(f"{args.out} exists: give another --out, or --force to overwrite it")
    if args.out.is_dir():
        raise UserError(f"{args.out} is a folder: expected the name of a file to write")
    if not args.batch_sec > 0:
        raise UserError(f"--batch-sec is {args.batch_sec}, expected seconds above 0")
    todo = list(_utterances(args.audio))
    tokenizer = moved(open_tokenizer(args.speech_tokenizer, args.log_mel), args.device)
    mark = fingerprint(tokenizer.encoder)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(args.out.name + ".partial")
    audio_sec, codes, bad, begun = 0.0, 0, [], time.monotonic()
    with partial.open("w", encoding="utf-8") as out, tqdm(total=len(todo), unit="file", disable=None) as bar:
        for group in _groups(todo, args.batch_sec, bad):
            seconds = [len(wave) / rate for _, wave, rate in group]
            for (utterance, _, _), second, found in zip(
                group, seconds, _encode(tokenizer, group, args.batch_sec), strict=True
            ):
                line: dict[str, Any] = {
                    "audio_filepath": str(utterance.audio),
                    "codes": found,
                    "duration": round(second, 4),
                    "speech_tokenizer": mark,
                }
                if utterance.offset_sec:
                    line["offset"] = utterance.offset_sec
                out.write(json.dumps(line) + "\n")
                codes += len(found)
            audio_sec += sum(seconds)
            bar.update(len(group))
            bar.set_postfix_str(f"{audio_sec / (time.monotonic() - begun):.0f} x real time", refresh=False)
    partial.replace(args.out)
    taken = time.monotonic() - begun
    print(f"{args.out}: {len(todo) - len(bad)} files, {audio_sec / 60:.1f} min, {codes} codes, "
          f"{taken:.1f} s ({audio_sec / taken:.0f} x real time)")  # fmt: skip
    if bad:
        print(f"{len(bad)} left out: {'; '.join(bad[:5])}{' …' if len(bad) > 5 else ''}", file=sys.stderr)
        raise SystemExit(1)


def _utterances(names: list[str]) -> Iterator["Utterance"]:
    from lit_moss.audio.io import EXTENSIONS
    from lit_moss.corpora.manifest import Utterance, read_manifest
    from lit_moss.corpora.readers import print_left_out, sound_files

    for name in names:
        path = Path(name)
        if path.is_dir():
            found, others = sound_files(path)
            print_left_out(others)
            if not found:
                raise UserError(f"{name} holds no sound files ({', '.join(EXTENSIONS)})")
            yield from (Utterance(p) for p in found)
        elif path.suffix.lower() == ".jsonl":
            yield from read_manifest(path)
        elif path.exists():
            yield Utterance(path)
        else:
            raise UserError(f"no file {name}: expected a sound file, a folder, or a manifest")


def _groups(
    todo: list["Utterance"], batch_sec: float, bad: list[str]
) -> Iterator[list[tuple["Utterance", Any, int]]]:
    """Read utterances, in order, gathered until a batch is full; unreadable ones go to `bad`."""
    from lit_moss.audio import io, rates

    group, held = [], 0.0
    for utterance in todo:
        try:
            wave = io.read(
                utterance.audio, rates.TOKENIZER_RATE_HZ, utterance.offset_sec, utterance.duration_sec
            )
        except io.UnreadableAudio as error:
            bad.append(str(error))
            continue
        group.append((utterance, wave, rates.TOKENIZER_RATE_HZ))
        held += len(wave) / rates.TOKENIZER_RATE_HZ
        if held >= batch_sec:
            yield group
            group, held = [], 0.0
    if group:
        yield group


def _encode(
    tokenizer: "SpeechTokenizer", group: list[tuple["Utterance", Any, int]], batch_sec: float
) -> list[list[int]]:
    found = tokenizer.encode([wave for _, wave, _ in group], group[0][2], batch_sec=min(60.0, batch_sec))
    return [codes.tolist() for codes in found]
