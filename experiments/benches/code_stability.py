"""How many codes change when the sound does in ways that are not speech: level, noise, DC offset, room.

    python -m experiments.benches.code_stability TOKENIZER MANIFEST [--clips 40]

Prints, for each change, the share of the clips' codes that differ from those of the unchanged clip. Changes
are made by `lit_moss.data.wave_changes`, with draws that follow from a clip's place in the manifest.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data.wave_changes import ChangedWaves, WaveChanges
from lit_moss.hub.tokenizer import open_tokenizer

CHANGES = {
    **{
        f"gain {factor:g} ({db:+.0f} dB)": WaveChanges(gain_share=1.0, gain_db=[db, db])
        for factor, db in ((0.1, -20.0), (0.3, -10.46), (0.5, -6.02))
    },
    **{
        f"{colour} noise, {db:.0f} dB": WaveChanges(
            noise_share=1.0, noise_snr_db=[db, db], noise_colours=[colour]
        )
        for colour in ("white", "pink")
        for db in (30.0, 15.0)
    },
    "offset up to 0.02": WaveChanges(offset_share=1.0),
    "room, 0.3 s, 6 dB": WaveChanges(
        reverb_share=1.0, reverb_rt60_sec=[0.3, 0.3], reverb_direct_db=[6.0, 6.0]
    ),
}


def changed_share(tokenizer: SpeechTokenizer, waves: list[Tensor], changes: WaveChanges) -> float:
    """Share of all codes that differ after the change.

    Args:
        tokenizer: Encodes.
        waves: Clips (T,) at 16 kHz.
        changes: What is done to each.
    """
    change, differing, total = ChangedWaves(changes, seed=1), 0, 0
    for n, wave_T in enumerate(waves):
        before_N, after_N = tokenizer.encode([wave_T, change(wave_T, n, 0)], rates.TOKENIZER_RATE_HZ)
        differing, total = differing + int((before_N != after_N).sum()), total + len(before_N)
    return differing / max(1, total)


@torch.no_grad()
def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--clips", type=int, default=40)
    args = parser.parse_args()
    tokenizer = open_tokenizer(args.tokenizer)
    clips = read_manifest(args.manifest)[: args.clips]
    waves = [
        io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel)
        for u in clips
    ]
    print(f"| change, {len(waves)} clips | share of codes changed |\n|---|---|")
    for name, changes in CHANGES.items():
        print(f"| {name} | {changed_share(tokenizer, waves, changes):.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
