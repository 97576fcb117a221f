"""Reading weights into a `CausalEncoder`: released tokenizers, any Whisper encoder, CTranslate2 files.

Everything is read as plain arrays (safetensors, or CTranslate2's flat binary). Nothing is unpickled.
"""

import mmap
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, departures
from lit_moss.codec.settings import read_settings
from lit_moss.codec.state_dicts import LoadReport, check_finite
from lit_moss.errors import UserError

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def load_encoder(
    name: str, config: EncoderConfig | None = None, trained: bool = False, unstated_log_mel: str = "causal"
) -> tuple[CausalEncoder, LoadReport]:
    """Encoder from `name` (see `lit_moss.assets.resolve`); sizes from the source where `config` is None.

    A `config` with fewer layers than the source takes the lower ones.

    Args:
        name: Source.
        config: Sizes.
        trained: The source has to be a whole tokenizer whose codes ours equal; False takes weights to start a
            training from, which may be a Whisper's, or a tokenizer's with settings that we do not compute.
        unstated_log_mel: `log_mel` of a source that does not state it.

    Raises:
        UserError: if the folder holds no known weights, a shape of conv or attention differs, or a weight is
            not finite.
    """
    folder = resolve(name)
    tensors, found = _read(folder, trained, unstated_log_mel)
    config = config or found
    layers = _layers(tensors)
    with torch.device("meta"):  # shapes alone: sizes of a damaged file must not take all memory
        own = CausalEncoder(
            replace(config, quantize_position=min(config.quantize_position, layers + 1))
        ).state_dict()
    reshaped = [
        f"{key}: {tuple(tensors[key].shape)}, ours {tuple(value.shape)}"
        for key, value in own.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    network = ("conv1", "conv2", "layers")
    wrong = [line for line in reshaped if line.startswith(network)]
    missing = [key for key in own if key.startswith(network) and key not in tensors]
    if wrong or missing:
        raise UserError(
            f"{name} does not fit the configured sizes ({len(wrong)} shapes differ, {len(missing)} tensors "
            f"missing; first: {(wrong + missing)[0]}); expected d_model {config.d_model}, "
            f"{config.num_mel_bins} mels and at least {config.quantize_position} layers: change "
            "`config:` or `init_from:`"
        )
    loaded = [key for key in own if key in tensors and tensors[key].shape == own[key].shape]
    if trained and "codebook.weight" not in loaded:
        report = LoadReport(tuple(loaded), tuple(k for k in own if k not in tensors), tuple(reshaped))
        raise UserError(
            f"{name} has no codebook of {config.quantize_vocab_size} codes of {config.d_model}: expected a "
            f"trained tokenizer ({report})"
        )
    check_finite({key: tensors[key] for key in loaded}, name)
    encoder = CausalEncoder(config)
    state = encoder.state_dict()
    for key in loaded:
        state[key].copy_(tensors[key])
    if "codebook.weight" in loaded and "ema_weight" not in loaded:
        encoder.ema_weight.copy_(encoder.codebook.weight)
    kept = tuple(
        key for key in own if key not in loaded and not any(r.startswith(key + ":") for r in reshaped)
    )
    return encoder, LoadReport(tuple(loaded), kept, tuple(reshaped))


def _read(folder: Path, trained: bool, unstated_log_mel: str) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Tensors under our names, and the sizes; whatever is damaged is one line that names the folder."""
    try:
        tensors = _read_tensors(folder)
        return tensors, _sizes(tensors, folder, trained, unstated_log_mel)
    except UserError:
        raise
    except (SafetensorError, struct.error, ValueError, KeyError, OSError, IndexError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "damaged file"
        raise UserError(
            f"{folder} cannot be read as a tokenizer or Whisper encoder ({type(error).__name__}: {reason}): "
            "get it again, or give another folder"
        ) from error


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    if (folder / "model.bin").exists():
        tensors = _from_ctranslate2(read_ctranslate2(folder / "model.bin"))
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


def _layers(tensors: dict[str, Tensor]) -> int:
    return 1 + max((int(key.split(".")[1]) for key in tensors if key.startswith("layers.")), default=-1)


def _sizes(tensors: dict[str, Tensor], folder: Path, trained: bool, unstated_log_mel: str) -> EncoderConfig:
    """Sizes of `config.json`, or as far as shapes tell them.

    Heads are 64 wide in every Whisper, so their number follows where it is not written.
    """
    config = read_settings(folder / "config.json")
    features = read_settings(folder / "preprocessor_config.json")
    if trained and (found := departures(config, features)):
        raise UserError(
            f"{folder} has {'; '.join(found)}: its codes would be computed wrongly; it serves as weights to "
            "start a training from (`init_from`)"
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


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Variables of a CTranslate2 `model.bin`, version 6: copies of its plain arrays, by name."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0

        def take(form: str) -> int:
            nonlocal at
            (value,) = struct.unpack_from("<" + form, data, at)
            at += struct.calcsize(form)
            return value

        def text() -> str:
            nonlocal at
            length = take("H")
            value = data[at : at + length].rstrip(b"\0").decode()
            at += length
            return value

        version = take("I")
        if version != 6:
            raise UserError(f"{path} is CTranslate2 binary version {version}, expected 6")
        text()  # spec name
        take("I")  # revision
        variables = {}
        for _ in range(take("I")):
            name = text()
            shape = [take("I") for _ in range(take("B"))]
            dtype = np.dtype(_CT2_DTYPES[take("B")])
            size = take("I")
            count = size // dtype.itemsize
            variables[name] = np.frombuffer(data, dtype, count, at).reshape(shape).copy()
            at += size
        return variables


def _from_ctranslate2(variables: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Whisper's encoder out of CTranslate2's names: q, k and v are stacked there, key biases are zero."""
    tensors = {}

    def floats(name: str) -> Tensor:
        values = variables[name]
        if values.dtype.kind != "f":
            raise UserError(f"{name} is quantized ({values.dtype}): get the model in float16 or float32")
        return torch.from_numpy(values.astype(np.float32))

    def put(ours: str, theirs: str) -> None:
        tensors[ours] = floats(theirs)

    for conv in ("conv1", "conv2"):
        for part in ("weight", "bias"):
            put(f"{conv}.{part}", f"encoder/{conv}/{part}")
    layers = {name.split("/")[1] for name in variables if name.startswith("encoder/layer_")} - {"layer_norm"}
    for i in range(len(layers)):
        source, target = f"encoder/layer_{i}", f"layers.{i}"
        for ours, theirs in (("weight", "gamma"), ("bias", "beta")):
            put(f"{target}.self_attn_layer_norm.{ours}", f"{source}/self_attention/layer_norm/{theirs}")
            put(f"{target}.final_layer_norm.{ours}", f"{source}/ffn/layer_norm/{theirs}")
        for part in ("weight", "bias"):
            put(f"{target}.self_attn.out_proj.{part}", f"{source}/self_attention/linear_1/{part}")
            put(f"{target}.fc1.{part}", f"{source}/ffn/linear_0/{part}")
            put(f"{target}.fc2.{part}", f"{source}/ffn/linear_1/{part}")
            stacked = floats(f"{source}/self_attention/linear_0/{part}")
            for letter, values in zip("qkv", stacked.chunk(3), strict=True):
                if (letter, part) != ("k", "bias"):
                    tensors[f"{target}.self_attn.{letter}_proj.{part}"] = values.clone()
    return tensors
