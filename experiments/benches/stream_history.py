"""What a stream loses by a bounded history: mels of long talks with a bounded and with the whole history.

    python -m experiments.benches.stream_history CODEC MANIFEST [--seconds 40] [--talks 4] [--chunks 5 25]

Utterances are joined into talks of `--seconds`. The mel of each is computed from its codes with streaming
masks and a history of `--chunks` chunks (0.4 s) or all; also as a whole, with full attention. Printed are,
over the frames after the longest bound, the mean absolute differences from the recording's mel, and from the
mel with the whole history, in dB.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.codec import trimmed
from lit_moss.codec.flow import Prompt
from lit_moss.corpora.manifest import read_manifest
from lit_moss.hub import open_codec
from lit_moss.modules.flow_decoder import DECIBELS


def talks(manifest: Path, seconds: float, count: int) -> list[Tensor]:
    """Waves at 24 kHz of joined utterances, `seconds` each."""
    waves, joined = [], []
    for utterance in read_manifest(manifest):
        span = (utterance.offset_sec, utterance.duration_sec, None, utterance.channel)
        joined.append(io.read(utterance.audio, rates.DECODER_RATE_HZ, *span))
        if sum(map(len, joined)) >= seconds * rates.DECODER_RATE_HZ:
            waves.append(torch.cat(joined)[: int(seconds * rates.DECODER_RATE_HZ)])
            joined = []
        if len(waves) == count:
            break
    return waves


@torch.no_grad()
def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("codec")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--talks", type=int, default=4)
    parser.add_argument("--chunks", type=int, nargs="+", default=[5, 25])
    args = parser.parse_args()
    codec = open_codec(args.codec)
    chunk_frames = codec.flow.config.chunk_codes * rates.FRAMES_PER_CODE_DECODER
    first_frame = (max(args.chunks) + 1) * chunk_frames
    names = ["whole, full attention", "all", *map(str, args.chunks)]
    error, change = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    waves = talks(args.manifest, args.seconds, args.talks)
    if not waves or len(waves[0]) <= first_frame * rates.DECODER_HOP_SAMPLES:
        sys.exit(
            f"{args.manifest} is too short for a talk of {args.seconds} s beyond {max(args.chunks)} chunks"
        )
    for wave_T in waves:
        codes = codec.encode(wave_T, rates.DECODER_RATE_HZ)
        assert isinstance(codes, Tensor)
        codes_N, mel_MT = trimmed(codes, decoder_mel(wave_T[None])[0])
        wave_16k_T = resample(wave_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
        prompt = Prompt.none(codec.speaker(wave_16k_T) if codec.speaker is not None else None)
        mels: dict[str, Tensor] = {}
        for name in names:
            streaming, left = name != names[0], int(name) if name.isdigit() else None
            mels[name] = codec.flow.sample(
                codes_N[None], prompt=prompt, streaming=streaming, left_chunks=left
            )[0]
        for name in names:
            error[name] += float((mels[name] - mel_MT)[:, first_frame:].abs().mean()) / len(waves)
            change[name] += float((mels[name] - mels["all"])[:, first_frame:].abs().mean()) / len(waves)
    print(f"{'history, chunks':24} {'dB from truth':>14} {'dB from all':>12}")
    for name in names:
        print(f"{name:24} {DECIBELS * error[name]:14.3f} {DECIBELS * change[name]:12.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
