"""How exact the word times of an aligner are.

    python -m lit_moss prepare transcribe data/ljspeech/validation.jsonl --out steps/transcribe
    python -m experiments.benches.align steps/transcribe/manifest.jsonl --aligner tokenizer \\
        --speech-tokenizer runs/codec_encoder

Errors of the borders between words (the middles of their gaps, where recordings are cut):

- in utterances whose borders are known, see `lit_moss.prepare.known_borders`;
- against the manifest's `asr_words`, as they are and without their constant difference;
- of both at the pauses of the recordings, against the middles of the pauses as their loudness shows them.

And the score of each utterance with its own text and with that of the next one.
"""

import argparse
import json
import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from lit_moss.audio import io
from lit_moss.prepare.align import mean_score, words_of
from lit_moss.prepare.aligners import Aligner, ASRAligner, open_aligner
from lit_moss.prepare.forced_alignment import CannotAlign, TimedWord
from lit_moss.prepare.known_borders import measure_shift
from lit_moss.prepare.stage import Item

RATE_HZ, FRAME_SAMPLES = 16_000, 160
QUIET_DB = 35  # below the loud parts (95th percentile) of an utterance
LEAST_PAUSE_FRAMES, EDGE_FRAMES = 15, 10
NEAR_SEC = 0.4  # a border belongs to a pause if it is this near to its middle

Words = Sequence[TimedWord | None]


def borders(words: Words) -> list[float | None]:
    """Middles of the gaps between neighbouring words, in seconds."""
    return [(a.end_sec + b.start_sec) / 2 if a and b else None for a, b in pairwise(words)]


def pauses(item: Item) -> list[float]:
    """Middles of the pauses of an utterance, in seconds."""
    wave_T = io.read(
        item["audio_filepath"],
        RATE_HZ,
        item.get("offset") or 0.0,
        item.get("duration"),
        channel=item.get("channel"),
    ).numpy()
    frames = wave_T[: len(wave_T) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)
    level_db = 20 * np.log10(np.sqrt((frames**2).mean(axis=1)) + 1e-6)
    quiet = level_db < np.percentile(level_db, 95) - QUIET_DB
    edges = np.flatnonzero(np.diff(np.concatenate([[0], quiet.astype(int), [0]])))
    found = zip(edges[::2], edges[1::2], strict=True)
    return [
        float(a + b) / 2 * FRAME_SAMPLES / RATE_HZ
        for a, b in found
        if b - a >= LEAST_PAUSE_FRAMES and a > EDGE_FRAMES and b < len(quiet) - EDGE_FRAMES
    ]


def at_pauses(words: Words, middles: Sequence[float]) -> list[float]:
    """The nearest border of each pause minus its middle."""
    known = [border for border in borders(words) if border is not None]
    nearest = (min(known, key=lambda border: abs(border - middle)) - middle for middle in middles if known)
    return [error for error in nearest if abs(error) < NEAR_SEC]


def line(name: str, errors: Sequence[float]) -> str:
    """A row of the table, in milliseconds."""
    if not len(errors):
        return f"| {name} | 0 | | | | |"
    e = 1000 * np.asarray(errors)
    rest = np.abs(e - np.median(e))
    raw = f"{np.median(np.abs(e)):.0f}"
    return (
        f"| {name} | {len(e)} | {np.median(e):+.0f} | {raw} | {np.median(rest):.0f} "
        f"| {np.percentile(rest, 95):.0f} |"
    )


def aligned(aligner: Aligner, item: Item, text: str) -> Words | None:
    """The words of a text in an utterance; None if it is refused."""
    spoken = [word for _, own in words_of(text, item.get("lang") or "en") for word in own]
    try:
        return aligner.align(item, spoken).words
    except CannotAlign:
        return None


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path, help="utterances with `text` and `asr_words`")
    parser.add_argument("--aligner", default="tokenizer", help="as of `prepare align`")
    parser.add_argument("--speech-tokenizer")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--first", type=int, help="only this many utterances")
    args = parser.parse_args()
    torch.set_num_threads(1)
    items = [json.loads(line) for line in args.manifest.read_text(encoding="utf-8").splitlines()][
        : args.first
    ]
    for item in items:
        item["audio_filepath"] = os.path.join(args.manifest.parent.absolute(), item["audio_filepath"])
    aligner, asr = open_aligner(args.aligner, args.speech_tokenizer, args.device), ASRAligner()
    against_asr: list[float] = []
    own_at_pauses: list[float] = []
    asr_at_pauses: list[float] = []
    scores: dict[str, list[float]] = {"own text": [], "next text": []}
    for item, following in pairwise([*items, items[0]]):
        own, other = aligned(aligner, item, item["text"]), aligned(asr, item, item["text"])
        wrong = aligned(aligner, item, following["text"])
        scores["own text"] += [mean_score(own)] if own else []
        scores["next text"] += [mean_score(wrong)] if wrong else []
        if own and other:
            pairs = zip(borders(own), borders(other), strict=True)
            against_asr += [a - b for a, b in pairs if a is not None and b is not None]
            middles = pauses(item)
            own_at_pauses += at_pauses(own, middles)
            asr_at_pauses += at_pauses(other, middles)
    print("| borders, ms | n | median | median size | … without the constant | 95th percentile |")
    print("|---|---|---|---|---|---|")
    if args.aligner != "whisper":
        print(line("known borders", measure_shift(aligner).errors))
    print(line("against asr_words", against_asr))
    print(line("at pauses", own_at_pauses))
    print(line("asr_words at pauses", asr_at_pauses))
    for name, values in scores.items():
        percentiles = np.percentile(values, [0, 5, 50, 95, 100])
        print(f"score, {name}: min, 5 %, median, 95 %, max = {', '.join(f'{p:.3f}' for p in percentiles)}")


if __name__ == "__main__":
    main()
