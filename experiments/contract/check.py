"""Compares this project's modules with recorded tensors of the released codec.

    python -m experiments.check_contract FOLDER

FOLDER contains one folder for each module (`encoder`, `features`, `flow`, `hift`, `streaming_decode`), each
with `config.json`, `io.safetensors` (recorded inputs and outputs) and, if the module has weights,
`weights.safetensors`. Prints one line for each quantity with its largest difference and the tolerance.
Differences are absolute on processors with AVX512; on others they are relative for values above 1. The exit
code is 0 if all are within their tolerance, 1 if one is not, and 2 if FOLDER cannot be used.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from experiments.contract.decoder import check_flow, check_hift, check_streaming_decode
from lit_moss.audio import features, rates
from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, EncoderLayer, EncoderState
from lit_moss.errors import UserError

_ADDS_AS_RECORDED = torch.backends.cpu.get_cpu_capability() == "AVX512"
# Name, computed value, recorded value, tolerance (0: equality).
Line = tuple[str, Tensor, Tensor, float]
ACTIVATION, LOG_MEL, FBANK, RESAMPLED = 1e-5, 1e-4, 1e-3, 1e-6


def check_encoder(folder: Path) -> Iterator[Line]:
    """The tokenizer: every recorded activation, codes, and codes computed in chunks with their caches."""
    io = load_file(folder / "io.safetensors")
    encoder = CausalEncoder(EncoderConfig.from_official(json.loads((folder / "config.json").read_text())))
    weights = {k.removeprefix("encoder."): v for k, v in load_file(folder / "weights.safetensors").items()}
    encoder.load_state_dict(encoder.state_dict() | weights)
    seen = _record(encoder)
    pooled = encoder.pool(encoder(io["input_features"]))
    seen["pooled"] = pooled
    codes = encoder.quantize(pooled)
    seen["distances"] = quantizer.squared_distances(pooled.flatten(0, 1), encoder.codebook.weight).view(
        *pooled.shape[:2], -1
    )
    seen["codebook_rows"] = encoder.codebook(codes)
    seen["last_hidden_state"] = encoder.dequantize(codes)
    for name in (n for n in io if n in seen):
        # |x|^2 + |c|^2 - 2 x c has the rounding error of its terms, even where the result itself is small.
        size = float(io[name].max()) if name == "distances" and not _ADDS_AS_RECORDED else 1.0
        yield name, seen[name] / size, io[name] / size, ACTIVATION
    yield "token_ids", codes, io["token_ids"], 0
    if "oddlen_input_features" in io:
        yield (
            "oddlen_token_ids",
            encoder.quantize(encoder.pool(encoder(io["oddlen_input_features"]))),
            io["oddlen_token_ids"],
            0,
        )
    if "stream_chunk_frames" in io:
        yield from _check_stream(encoder, io)


def _record(encoder: CausalEncoder) -> dict[str, Tensor]:
    """Registers hooks that fill the returned dictionary with activations, by their recorded names."""
    seen: dict[str, Tensor] = {}

    def keep(name: str, take: Callable[..., Tensor]) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(name, take(inputs, output))

        return hook

    encoder.conv1.register_forward_hook(keep("conv1_out_pre_gelu", lambda i, o: o))
    encoder.conv2.register_forward_hook(keep("conv2_out_pre_gelu", lambda i, o: o))
    for n, layer in enumerate(cast(Iterable[EncoderLayer], encoder.layers)):
        if n == 0:
            layer.register_forward_hook(keep("embed_added", lambda i, o: i[0]))
        parts: dict[str, nn.Module] = {"attn_ln_out": layer.self_attn_layer_norm, "fc1_out": layer.fc1}
        for suffix, module in parts.items():
            module.register_forward_hook(keep(f"layer{n}_{suffix}", lambda i, o: o))
        layer.self_attn.register_forward_hook(keep(f"layer{n}_attn_out", lambda i, o: o[0]))
        layer.register_forward_hook(keep(f"layer{n}_out", lambda i, o: o[0]))
    return seen


def _check_stream(encoder: CausalEncoder, io: dict[str, Tensor]) -> Iterator[Line]:
    for item in range(len(io["input_features"])):
        state, start, codes = EncoderState(), 0, []
        for chunk, frames in enumerate(io["stream_chunk_frames"].tolist()):
            mel = io["input_features"][item : item + 1, :, start : start + frames]
            start += frames
            codes.append(encoder.quantize(encoder.pool(encoder(mel, state))))
            prefix = f"stream_b{item}_chunk{chunk}"
            for name, ours, tolerance in (
                ("token_ids", codes[-1], 0.0),
                ("conv1_cache", state.conv1_tail, ACTIVATION),
                ("conv2_cache", state.conv2_tail, ACTIVATION),
            ):
                if f"{prefix}_{name}" in io and ours is not None:
                    yield f"{prefix}_{name}", ours, io[f"{prefix}_{name}"], tolerance
        if f"stream_token_ids_b{item}" in io:
            yield f"stream_token_ids_b{item}", torch.cat(codes, dim=1)[0], io[f"stream_token_ids_b{item}"], 0


def check_features(folder: Path) -> Iterator[Line]:
    """Whisper log-mel with its masks and filters, 24 kHz mel, resampling, Kaldi filter banks."""
    io = load_file(folder / "io.safetensors")
    config = json.loads((folder / "config.json").read_text())
    waves = [io[name] for name in sorted(n for n in io if n.startswith("w16k_"))]
    longest = rates.codes_of_samples(max(map(len, waves))) * rates.SAMPLES_PER_CODE
    batch = torch.stack([nn.functional.pad(wave, (0, longest - len(wave))) for wave in waves])
    bins = config["whisper"]["feature_size"]
    yield (
        "whisper_input_features",
        features.whisper_log_mel(batch, bins),
        io["whisper_input_features"],
        LOG_MEL,
    )
    frame_mask = torch.stack(
        [
            rates.WHISPER_HOP_SAMPLES * torch.arange(io["whisper_attention_mask"].shape[1]) < len(w)
            for w in waves
        ]
    )
    yield "whisper_attention_mask", frame_mask.long(), io["whisper_attention_mask"], 0
    tokens = torch.arange(io["whisper_token_valid_mask"].shape[1])
    valid = torch.stack([tokens < rates.codes_of_samples(len(w)) for w in waves])
    yield "whisper_token_valid_mask", valid.long(), io["whisper_token_valid_mask"].long(), 0
    cpu = torch.device("cpu")
    for name in (n for n in io if n.startswith("whisper_mel_filters_")):
        rows = [int(word) for word in name.split("_rows_")[1].split("_")]
        ours = features.mel_filters(
            bins, rates.WHISPER_FFT_SAMPLES, rates.TOKENIZER_RATE_HZ, torch.float32, cpu
        )
        yield name, ours[rows], io[name], 1e-6
    for name in (n for n in io if n.startswith("mel24k_filters_")):
        rows = [int(word) for word in name.split("_rows_")[1].split("_")]
        ours = features.mel_filters(
            rates.DECODER_MEL_BINS, rates.DECODER_FFT_SAMPLES, rates.DECODER_RATE_HZ, torch.float32, cpu
        )
        yield name, ours.T[rows], io[name], 1e-6
    yield "mel24k", features.decoder_mel(io["w24k"]), io["mel24k"], LOG_MEL
    resampled = features.resample(io["w24k"], rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
    yield "w24k_resampled_to_16k", resampled, io["w24k_resampled_to_16k"], RESAMPLED
    yield from _check_fbank(io, waves, resampled[0])


def _check_fbank(io: dict[str, Tensor], waves: list[Tensor], resampled: Tensor) -> Iterator[Line]:
    """The recording does not name its wave, so the best match among waves of equal length is compared."""
    recorded = io["kaldi_fbank80"]
    computed = [features.kaldi_fbank(wave) for wave in (resampled, *waves)]
    fitting = [fbank for fbank in computed if fbank.shape == recorded.shape]
    if not fitting:
        raise UserError(f"kaldi_fbank80 has {len(recorded)} frames, expected the length of a recorded wave")
    ours = min(fitting, key=lambda fbank: float((fbank - recorded).abs().max()))
    yield "kaldi_fbank80", ours, recorded, FBANK
    yield (
        "kaldi_fbank80_mean_subtracted",
        ours - ours.mean(dim=0, keepdim=True),
        io["kaldi_fbank80_mean_subtracted"],
        FBANK,
    )


CHECKS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "encoder": check_encoder,
    "features": check_features,
    "flow": check_flow,
    "hift": check_hift,
    "streaming_decode": check_streaming_decode,
}


@torch.no_grad()
def check(folder: Path) -> bool:
    """Prints one line for each quantity; returns True if all are within their tolerance.

    Raises:
        UserError: if the folder contains none of the modules, or one is incomplete.
    """
    present = [name for name in CHECKS if (folder / name).is_dir()]
    if not present:
        raise UserError(f"{folder} has none of the folders {', '.join(CHECKS)}")
    good = True
    for module in present:
        for file in ("config.json", "io.safetensors"):
            if not (folder / module / file).is_file():
                raise UserError(f"{folder / module} has no {file}")
        for name, ours, recorded, tolerance in CHECKS[module](folder / module):
            if ours.shape != recorded.shape:
                difference, text = (
                    float("inf"),
                    f"shape {tuple(ours.shape)}, recorded {tuple(recorded.shape)}",
                )
            else:
                # Activations of the decoder reach 30, where neighbouring float32 numbers differ by 2e-6, and
                # processors add in different orders: the difference is 2.1e-5 with AVX2, but below 2e-5 with
                # AVX512.
                size = (
                    torch.ones_like(recorded.double())
                    if _ADDS_AS_RECORDED
                    else recorded.double().abs().clamp(1.0)
                )
                difference = float(((ours.double() - recorded.double()).abs() / size).max())
                text = f"{difference:.3g}"
            within = difference <= tolerance
            good &= within
            print(
                f"{'ok  ' if within else 'FAIL'} {module + '.' + name:<48} {text:>12}  "
                f"tolerance {tolerance:g}"
            )
    others = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name not in CHECKS)
    if others:
        print(f"not checked: {', '.join(others)}")
    print(f"{folder}: {'all within tolerance' if good else 'NOT within tolerance'}")
    return good


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of recorded tensors")
    try:
        return 0 if check(parser.parse_args().folder) else 1
    except (UserError, OSError, KeyError, ValueError, SafetensorError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
