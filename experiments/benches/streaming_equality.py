"""Are streamed codes the offline codes?

    python -m experiments.benches.streaming_equality MANIFEST --speech-tokenizer CKPT [--chunks 1 2 4 10]

Encodes every utterance as a whole, in batches, and then pushed in chunks of so many codes; prints how many
codes differ, with and without the float64 look at near-ties, and how many codes that look has changed.
"""

import argparse
import sys
from pathlib import Path

import torch
from tqdm import tqdm

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import read_manifest
from lit_moss.hub import open_tokenizer


def main() -> int:
    """Command line; exit code 1 if a code differs although near-ties were decided in float64."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--speech-tokenizer", required=True, help="checkpoint or folder")
    parser.add_argument("--chunks", type=int, nargs="+", default=[1, 2, 4, 10], help="codes a push")
    parser.add_argument("--log-mel", help="causal for a released tokenizer, whose own features cannot stream")
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.speech_tokenizer, args.log_mel)
    utterances = read_manifest(args.manifest)
    waves = [
        io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel)
        for u in utterances
    ]
    offline = tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)
    total = sum(map(len, offline))
    tokenizer.exact = False
    plain = tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)
    changed = sum(int((a != b).sum()) for a, b in zip(offline, plain, strict=True))
    print(f"{len(waves)} utterances, {total} codes; float64 changed {changed} offline codes")
    good = True
    for exact in (False, True):
        tokenizer.exact = exact
        reference = offline if exact else plain
        for chunk in args.chunks:
            differ = 0
            for wave, codes in zip(tqdm(waves, disable=None, leave=False), reference, strict=True):
                stream = tokenizer.stream()
                streamed = [stream.push(part) for part in wave.split(chunk * rates.SAMPLES_PER_CODE)]
                differ += int((torch.cat([*streamed, stream.flush()]) != codes).sum())
            print(f"exact={exact!s:<5} {chunk:>2} codes a push: {differ} of {total} differ", flush=True)
            good &= not (exact and differ)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
