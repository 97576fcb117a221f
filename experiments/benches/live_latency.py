"""Measures how long a live stream of the speech tokenizer takes for each 80 ms of speech.

    python -m experiments.benches.live_latency FOLDER [--speech-tokenizer NAME] [--threads 1]
    python -m experiments.benches.live_latency FOLDER --official --minutes 1

FOLDER contains audio files, which are joined in the order of their names (and repeated) to the requested
length. The stream receives 1280 samples at a time. Prints the median, 99th percentile and maximum duration of
a push in ms, of wall-clock and of CPU time, and how many streamed codes differ from those of the whole
recording.
"""

import argparse
import sys
import time
from itertools import cycle
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from lit_moss.audio import io, rates
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.hub import open_tokenizer


def joined(folder: Path, seconds: float) -> Tensor:
    """Joins the audio files of a folder to exactly `seconds` at 16 kHz."""
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".flac", ".wav", ".ogg", ".mp3"))
    if not files:
        raise SystemExit(f"error: {folder} holds no sound files")
    wanted, waves, held = round(seconds * rates.TOKENIZER_RATE_HZ), [], 0
    for file in cycle(files):
        waves.append(io.read(file, rates.TOKENIZER_RATE_HZ))
        held += len(waves[-1])
        if held >= wanted:
            return torch.cat(waves)[:wanted]
    raise AssertionError


def official() -> SpeechTokenizer:
    """The released size with random weights, which do not affect the speed."""
    torch.manual_seed(0)
    return SpeechTokenizer(CausalEncoder(EncoderConfig()))


def main() -> int:
    """Command line; exit code 1 if a code differs although the stream is exact."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of sound files")
    parser.add_argument(
        "--speech-tokenizer", default="embedded:whisper-tiny-kmeans", help="checkpoint or folder"
    )
    parser.add_argument("--log-mel", help="causal for a released tokenizer, whose own features cannot stream")
    parser.add_argument("--official", action="store_true", help="random weights at the released size instead")
    parser.add_argument("--minutes", type=float, default=10.0, help="speech pushed (default 10)")
    parser.add_argument("--threads", type=int, help="torch's threads (default: torch's choice)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-exact", action="store_true", help="float32 alone (SpeechTokenizer.exact off)")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    wave = joined(args.folder, 60.0 * args.minutes)
    tokenizer = official() if args.official else open_tokenizer(args.speech_tokenizer, args.log_mel)
    tokenizer.exact = not args.no_exact
    tokenizer.to(args.device)
    warm = tokenizer.stream()  # warms up allocators and thread pools; a separate stream is measured
    for samples in wave[: 5 * rates.SAMPLES_PER_CODE].split(rates.SAMPLES_PER_CODE):
        warm.push(samples)
    start = time.perf_counter()
    stream = tokenizer.stream()
    opening = time.perf_counter() - start
    taken, cpu, codes = [], [], []
    for samples in tqdm(wave.split(rates.SAMPLES_PER_CODE), disable=None, leave=False):
        start, cpu_start = time.perf_counter(), time.process_time()
        codes.append(stream.push(samples))
        cpu.append(1000.0 * (time.process_time() - cpu_start))
        taken.append(1000.0 * (time.perf_counter() - start))
    codes.append(stream.flush())
    streamed = torch.cat(codes)
    whole = tokenizer.encode(wave, rates.TOKENIZER_RATE_HZ)
    ms, cpu_ms = torch.tensor(taken), torch.tensor(cpu)
    differ = int((streamed != whole).sum())
    print(
        f"CPU time: median {cpu_ms.median():.1f} ms, p99 {cpu_ms.quantile(0.99):.1f} ms, maximum "
        f"{cpu_ms.max():.1f} ms (for a machine that does other work too)"
    )
    print(
        f"exact={tokenizer.exact} threads={torch.get_num_threads()} {args.device}: {len(ms)} pushes, "
        f"median {ms.median():.1f} ms, p99 {ms.quantile(0.99):.1f} ms, maximum {ms.max():.1f} ms, "
        f"{ms.sum() / (60_000 * args.minutes):.3f} of real time; opening {1000 * opening:.0f} ms; "
        f"{differ} of {len(whole)} codes differ from offline"
    )
    return 1 if tokenizer.exact and differ else 0


if __name__ == "__main__":
    sys.exit(main())
