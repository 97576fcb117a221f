"""Loads weights into a `CausalEncoder`: released tokenizers, any Whisper encoder, checkpoints of runs.

Everything is read as plain tensors (safetensors, CTranslate2's flat binary, torch's files with
`weights_only`). Code in a file is never executed.
"""

import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.codec.ctc import CharVocabulary, CTCHead
from lit_moss.codec.ctranslate2 import read_ctranslate2, whisper_encoder_tensors
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, departures
from lit_moss.codec.settings import read_settings
from lit_moss.codec.state_dicts import LoadReport, check_finite
from lit_moss.errors import UserError, first_line


def load_encoder(
    name: str, config: EncoderConfig | None = None, trained: bool = False, unstated_log_mel: str = "causal"
) -> tuple[CausalEncoder, LoadReport]:
    """Loads an encoder by `name` (see `lit_moss.assets.resolve`).

    If `config` has fewer layers than the source, the lower layers are taken.

    Args:
        name: Source of the weights.
        config: Sizes. None: those of the source.
        trained: Require a complete tokenizer whose codes this network reproduces. False: weights to start a
            training from, such as a Whisper encoder, or a tokenizer with settings that the network does not
            support.
        unstated_log_mel: `log_mel` for sources that do not state it.

    Raises:
        UserError: if the folder contains no known weights, a convolution or attention has another shape, or a
            weight is not finite.
    """
    folder = resolve(name)
    tensors, stated_config = _read(folder, trained, unstated_log_mel)
    config = config or stated_config
    report = _compare(tensors, config, name)
    if trained and "codebook.weight" not in report.loaded:
        raise UserError(
            f"{name} has no codebook of {config.quantize_vocab_size} codes of {config.d_model}: expected a "
            f"trained tokenizer ({report})"
        )
    check_finite({key: tensors[key] for key in report.loaded}, name)
    encoder = CausalEncoder(config)
    state = encoder.state_dict()
    for key in report.loaded:
        state[key].copy_(tensors[key])
    if "codebook.weight" in report.loaded and "ema_weight" not in report.loaded:
        encoder.ema_weight.copy_(encoder.codebook.weight)
    return encoder, report


def _compare(tensors: Mapping[str, Tensor], config: EncoderConfig, name: str) -> LoadReport:
    """Compares tensors with an encoder of these sizes, to report which ones it loads.

    Raises:
        UserError: if a tensor of the network is missing or has another shape.
    """
    layers = min(config.quantize_position, _layers(tensors) + 1)
    with torch.device("meta"):  # shapes only: the sizes of a damaged file must not exhaust memory
        own = CausalEncoder(replace(config, quantize_position=layers)).state_dict()
    loaded, kept, reshaped = [], [], []
    for key, value in own.items():
        if key not in tensors:
            kept.append(key)
        elif tensors[key].shape != value.shape:
            reshaped.append(f"{key}: {tuple(tensors[key].shape)}, ours {tuple(value.shape)}")
        else:
            loaded.append(key)
    network = ("conv1", "conv2", "layers")
    wrong = [line for line in reshaped if line.startswith(network)]
    missing = [key for key in kept if key.startswith(network)]
    if wrong or missing:
        raise UserError(
            f"{name} does not fit the configured sizes ({len(wrong)} shapes differ, {len(missing)} tensors "
            f"missing; first: {(wrong + missing)[0]}); expected d_model {config.d_model}, "
            f"{config.num_mel_bins} mels and at least {config.quantize_position} layers: change "
            "`config:` or `init_from:`"
        )
    return LoadReport(tuple(loaded), tuple(kept), tuple(reshaped))


def encoder_of_checkpoint(path: Path) -> CausalEncoder:
    """Encoder from a Lightning checkpoint of `CodecEncoder`.

    Raises:
        UserError: if the file is not such a checkpoint, contains more than plain data, or was written before
            the codebook was initialised.
    """
    checkpoint = _read_checkpoint(path)
    settings = checkpoint["speech_tokenizer"]
    if not settings["codebook_ready"]:
        raise UserError(
            f"{path} was written before quantization began and has no codebook yet: take a later one"
        )
    encoder = CausalEncoder(EncoderConfig.from_official(settings["config"]))
    encoder.load_state_dict(_part_of(checkpoint, "encoder.", path))
    return encoder


def head_of_checkpoint(path: Path) -> tuple[CTCHead, CharVocabulary]:
    """CTC head from a Lightning checkpoint of `CodecEncoder`, and its characters.

    Raises:
        UserError: as in `encoder_of_checkpoint`.
    """
    checkpoint = _read_checkpoint(path)
    weights = _part_of(checkpoint, "head.", path)
    vocabulary = CharVocabulary(checkpoint["speech_tokenizer"]["characters"])
    size, width = weights["proj.weight"].shape
    code_width = len(weights["norm.weight"])
    head = CTCHead(code_width, size, width, _layers(weights), heads=width // 64, dropout=0.0)
    head.load_state_dict(weights)
    return head, vocabulary


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}): expected a .ckpt file of "
            "a tokenizer run, or a folder"
        ) from error
    if "speech_tokenizer" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a tokenizer run: expected one made by conf/codec_encoder.yaml"
        )
    return checkpoint


def _part_of(checkpoint: Mapping[str, Any], prefix: str, path: Path) -> dict[str, Tensor]:
    """Tensors of one part of the network, without its prefix, checked to be finite."""
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    check_finite(weights, str(path))
    return weights


def _read(folder: Path, trained: bool, unstated_log_mel: str) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Tensors under lit_moss' names, and the sizes; damage raises a UserError that names the folder."""
    if folder.is_file():
        return _read_run(folder)
    try:
        tensors = _read_tensors(folder)
        return tensors, _sizes(tensors, folder, trained, unstated_log_mel)
    except UserError:
        raise
    except (SafetensorError, struct.error, ValueError, KeyError, OSError, IndexError) as error:
        raise UserError(
            f"{folder} cannot be read as a tokenizer or Whisper encoder ({type(error).__name__}: "
            f"{first_line(error)}): get it again, or give another folder"
        ) from error


def _read_run(path: Path) -> tuple[dict[str, Tensor], EncoderConfig]:
    """The same from a checkpoint of `CodecEncoder`; without its codebook if that was not initialised yet."""
    checkpoint = _read_checkpoint(path)
    settings, tensors = checkpoint["speech_tokenizer"], _part_of(checkpoint, "encoder.", path)
    if not settings["codebook_ready"]:
        book = ("codebook.weight", "ema_count", "ema_weight")
        tensors = {name: tensor for name, tensor in tensors.items() if name not in book}
    return tensors, EncoderConfig.from_official(settings["config"])


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.bin").exists():
        tensors = whisper_encoder_tensors(read_ctranslate2(folder / "model.bin"))
    elif files := sorted(folder.glob("*.safetensors")):
        tensors = {}
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a dict
                    tensors[key.removeprefix("model.").removeprefix("encoder.")] = opened.get_tensor(key)
    else:
        raise UserError(f"{folder} holds neither *.safetensors nor a CTranslate2 model.bin")
    if "conv1.weight" not in tensors:
        raise UserError(f"{folder} holds no Whisper-like encoder: no tensor named conv1.weight")
    return tensors


def _layers(tensors: Mapping[str, Tensor]) -> int:
    return 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("layers.")), default=-1)


def _sizes(tensors: dict[str, Tensor], folder: Path, trained: bool, unstated_log_mel: str) -> EncoderConfig:
    """Sizes from `config.json`, or from the shapes.

    Heads are 64 wide in every Whisper, which gives their number if it is not stated.
    """
    config = read_settings(folder / "config.json")
    features = read_settings(folder / "preprocessor_config.json")
    if trained and (differences := departures(config, features)):
        raise UserError(
            f"{folder} has {'; '.join(differences)}: its codes would be computed wrongly; it serves as "
            "weights to start a training from (`init_from`)"
        )
    if "quantize_position" in config:
        try:
            return EncoderConfig.from_official(config, unstated_log_mel, strict=False)
        except UserError as error:
            raise UserError(f"{folder / 'config.json'}: {error}") from error
    width, mels = tensors["conv1.weight"].shape[:2]
    return EncoderConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_attention_heads=config.get("encoder_attention_heads", width // 64),
        encoder_ffn_dim=tensors["layers.0.fc1.weight"].shape[0],
        quantize_position=_layers(tensors),
        quantize_vocab_size=1024,
        log_mel=config.get("log_mel", unstated_log_mel),
    )
