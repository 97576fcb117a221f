"""Measures decoding from codes to audio: cost along a stream, stages of a chunk, time to the first audio.

    python -m experiments.benches.decoder_speed [--size small official] [--seconds 120] [--out FOLDER]

Weights are random, which does not affect the speed. `small` is conf/flow_decoder.yaml, `official` the
released size. Along a stream (only `small`): computing time per second of audio and memory of the state, for
this project's decoder with 10 s of history, and for the released scheme, which recomputes the whole prefix
for each chunk.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from experiments.contract.released_streaming import mel_chunks
from lit_moss.audio import rates
from lit_moss.audio.stream_timing import timed_outputs
from lit_moss.codec.codec import Codec
from lit_moss.codec.conformer import LOOKAHEAD_CODES
from lit_moss.codec.flow import HISTORY_CHUNKS, Flow, FlowConfig, Prompt
from lit_moss.codec.hift import HiFT
from lit_moss.codec.trained_vocoder import TrainedVocoder
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder, Vocoder
from lit_moss.codec.vocoder_net import VocoderNet

ROOT = Path(__file__).resolve().parents[2]


def sizes(name: str) -> FlowConfig:
    """Sizes in conf/flow_decoder.yaml, or the official ones."""
    if name == "official":
        return FlowConfig()
    conf = yaml.safe_load((ROOT / "conf/flow_decoder.yaml").read_text())
    return FlowConfig(**conf["model"]["init_args"]["flow"])


@contextmanager
def timed(modules: dict[str, nn.Module], device: torch.device) -> Iterator[dict[str, float]]:
    """Measures the seconds spent in each module's calls during the block."""
    spent: dict[str, float] = defaultdict(float)
    handles = []
    for name, module in modules.items():
        begun: list[float] = []

        def before(*_: Any, begun: list[float] = begun) -> None:
            _wait(device)
            begun.append(time.perf_counter())

        def after(*_: Any, begun: list[float] = begun, name: str = name) -> None:
            _wait(device)
            spent[name] += time.perf_counter() - begun.pop()

        handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    yield spent
    for handle in handles:
        handle.remove()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def first_sound(codec: Codec, device: torch.device, repeats: int) -> dict[str, float]:
    """Computing time from the first code to the first samples, and of a chunk with full history."""
    chunk, first, later = codec.flow.config.chunk_codes, [], []
    pieces = [[1] * (chunk + LOOKAHEAD_CODES)]
    history = [[2] * (HISTORY_CHUNKS * chunk)]
    for repeat in range(repeats + 1):
        player = codec.stream()
        _wait(device)
        if repeat == repeats:
            pieces += history + [[2] * chunk] * max(3, repeats)
        # Samples are on the CPU after each push, so no further synchronisation is needed.
        seconds = [taken for _, taken in timed_outputs(player, pieces)]
        first.append(seconds[0])
        later = seconds[2:-1]  # without the history and `flush`
    later_sec = sorted(later)[len(later) // 2]
    return {
        "first_sound_sec": sorted(first[1:])[repeats // 2],
        "chunk_sec": later_sec,
        "rtf": later_sec / (chunk * rates.SECONDS_PER_CODE),
    }


def vocoders(hift: HiFT, device: torch.device) -> dict[str, Vocoder]:
    """HiFT, Griffin-Lim, and the trained vocoder of conf/vocoder.yaml."""
    trained = TrainedVocoder(VocoderNet()).to(device)
    return {"HiFT": HiFTVocoder(hift), "Griffin-Lim": GriffinLim(), "trained": trained}


@torch.no_grad()
def stages(flow: Flow, hift: HiFT, device: torch.device, codes: int) -> dict[str, float]:
    """Real-time factor of each stage over a whole utterance, with streaming masks."""
    ids = torch.randint(0, 1000, (1, codes), device=device)
    seconds = codes * rates.SECONDS_PER_CODE
    modules = {"flow encoder": flow.encoder, "velocity network": flow.decoder.estimator}
    for _ in range(2):
        with timed(modules, device) as spent:
            mel = flow.sample(ids, streaming=True)
    factors = {name: value / seconds for name, value in spent.items()}
    for name, vocoder in vocoders(hift, device).items():
        for _ in range(2):
            _wait(device)
            start = time.perf_counter()
            vocoder(mel)
            _wait(device)
            factors[name] = (time.perf_counter() - start) / seconds
    return factors


@torch.no_grad()
def along_a_stream(flow: Flow, seconds: float) -> list[tuple[float, float, float]]:
    """(position, computing time per second of audio, MiB of state), averaged over 2 s each."""
    chunk = flow.config.chunk_codes
    stream, points, spent = flow.stream(), [], []
    stream.push(torch.ones(chunk + LOOKAHEAD_CODES, dtype=torch.long))
    for n in range(1, int(seconds / (chunk * rates.SECONDS_PER_CODE))):
        _wait(stream.device)
        start = time.perf_counter()
        stream.push(torch.full((chunk,), n % 1000))
        _wait(stream.device)
        spent.append(time.perf_counter() - start)
        if n % 5 == 0:
            sound = 5 * chunk * rates.SECONDS_PER_CODE
            points.append((n * chunk * rates.SECONDS_PER_CODE, sum(spent[-5:]) / sound, stream.bytes / 2**20))
    return points


def state_mib(flow: Flow) -> float:
    """Memory of a stream's keys and values with full history; convolution states add 1 %."""
    config, frames = (
        flow.config,
        (HISTORY_CHUNKS + 1) * flow.config.chunk_codes * rates.FRAMES_PER_CODE_DECODER,
    )
    layers = config.blocks * (config.mid_stages + 2)
    solver = config.steps * 2 * layers * config.heads * config.head_width
    encoder = config.hidden * (4 + config.encoder_layers / rates.FRAMES_PER_CODE_DECODER)
    return frames * (solver + encoder) * 2 * 4 / 2**20


@torch.no_grad()
def released(flow: Flow, seconds: float) -> list[tuple[float, float]]:
    """(position, computing time per second of audio) of the released scheme, chunk by chunk."""
    codes = torch.ones(1, int(seconds / rates.SECONDS_PER_CODE), dtype=torch.long)
    points, start = [], time.perf_counter()
    for mel, _, first, last in mel_chunks(flow, codes, Prompt.none()):
        _wait(mel.device)
        sound = mel.shape[-1] * rates.DECODER_HOP_SAMPLES / rates.DECODER_RATE_HZ
        if not last:
            points.append((first * rates.SECONDS_PER_CODE + sound, (time.perf_counter() - start) / sound))
        start = time.perf_counter()
    return points


def picture(ours: list[tuple[float, float, float]], theirs: list[tuple[float, float]], path: Path) -> None:
    """Plots the cost per second of audio along a stream."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(*zip(*[(x, y) for x, y, _ in ours], strict=True), label="ours, 10 s of history")
    axes.plot(*zip(*theirs, strict=True), label="released scheme: the whole prefix again")
    axes.set(
        xlabel="position in the stream, s", ylabel="computing time per second of audio, s", ylim=(0, None)
    )
    axes.legend()
    figure.savefig(path, dpi=120)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", nargs="+", default=["small"], choices=("small", "official"))
    parser.add_argument("--seconds", type=float, default=120.0, help="length of the stream (small)")
    parser.add_argument(
        "--released-seconds", type=float, default=30.0, help="the same of the released scheme"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path("runs/decoder_speed"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device, results = torch.device(args.device), {}
    for name in args.size:
        flow = Flow(sizes(name)).eval().to(device)
        hift = HiFT().eval().to(device)
        official = name == "official"
        results[name] = stages(flow, hift, device, 50)
        results[name]["state of a stream, MiB"] = state_mib(flow)
        for label, vocoder in vocoders(hift, device).items():
            measured = first_sound(Codec(None, flow, vocoder), device, 1 if official else args.repeats)
            results[name] |= {f"{label}: {key}": value for key, value in measured.items()}
        if not official:
            ours, theirs = along_a_stream(flow, args.seconds), released(flow, args.released_seconds)
            results[name]["along a stream"] = ours
            results[name]["released scheme"] = theirs
            picture(ours, theirs, args.out / "stream_cost.png")
        for key, value in results[name].items():
            if isinstance(value, float):
                print(f"{name:<9} {key:<32} {value:.3f}")
        for position, cost, mib in results[name].get("along a stream", [])[::10]:
            print(f"{name:<9} at {position:5.1f} s: {cost:.3f} s per second of audio, {mib:.0f} MiB")
    (args.out / "result.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"{args.out}: result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
