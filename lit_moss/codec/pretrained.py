"""Reading weights into a `CausalEncoder`: released tokenizers, any Whisper encoder, CTranslate2 files.

Everything is read as plain arrays (safetensors, or CTranslate2's flat binary). Nothing is unpickled.
"""

import json
import mmap
import struct
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.codec.state_dicts import LoadReport
from lit_moss.errors import UserError

_CT2_DTYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}


def load_encoder(name: str, config: EncoderConfig | None = None) -> tuple[CausalEncoder, LoadReport]:
    """Encoder from `name` (see `lit_moss.assets.resolve`); sizes from the source where `config` is None.

    A `config` with fewer layers than the source takes the lower ones.

    Raises:
        UserError: if the folder holds no known weights, or a shape of conv or attention differs.
    """
    folder = resolve(name)
    tensors, found = _read(folder)
    config = config or found
    encoder = CausalEncoder(config)
    own = encoder.state_dict()
    loaded, reshaped = [], []
    for key, value in own.items():
        if key in tensors and tensors[key].shape == value.shape:
            value.copy_(tensors[key])
            loaded.append(key)
        elif key in tensors:
            reshaped.append(f"{key}: {tuple(tensors[key].shape)}, ours {tuple(value.shape)}")
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
    if "codebook.weight" in loaded and "ema_weight" not in loaded:
        encoder.ema_weight.copy_(encoder.codebook.weight)
    kept = tuple(
        key for key in own if key not in loaded and not any(r.startswith(key + ":") for r in reshaped)
    )
    return encoder, LoadReport(tuple(loaded), kept, tuple(reshaped))


def _read(folder: Path) -> tuple[dict[str, Tensor], EncoderConfig]:
    """Tensors under our names, and the sizes; whatever is damaged is one line that names the folder."""
    try:
        return _read_whole(folder)
    except UserError:
        raise
    except (SafetensorError, struct.error, ValueError, KeyError, OSError, IndexError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else "damaged file"
        raise UserError(
            f"{folder} cannot be read as a tokenizer or Whisper encoder ({type(error).__name__}: {reason}): "
            "get it again, or give another folder"
        ) from error


def _read_whole(folder: Path) -> tuple[dict[str, Tensor], EncoderConfig]:
    config_file = folder / "config.json"
    config = json.loads(config_file.read_text(encoding="utf-8-sig")) if config_file.exists() else {}
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
    return tensors, _sizes(tensors, config)


def _sizes(tensors: dict[str, Tensor], config: dict) -> EncoderConfig:
    """Sizes as far as shapes tell them.

    Heads are 64 wide in every Whisper, so their number follows where it is not written.
    """
    if "quantize_position" in config:
        return EncoderConfig.from_official(config)
    width, mels = tensors["conv1.weight"].shape[:2]
    layers = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("layers."))
    return EncoderConfig(
        num_mel_bins=mels,
        d_model=width,
        encoder_attention_heads=config.get("encoder_attention_heads", width // 64),
        encoder_ffn_dim=tensors["layers.0.fc1.weight"].shape[0],
        quantize_position=layers,
        quantize_vocab_size=1024,
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

    def put(ours: str, theirs: str) -> None:
        tensors[ours] = torch.from_numpy(variables[theirs].astype(np.float32))

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
            stacked = torch.from_numpy(
                variables[f"{source}/self_attention/linear_0/{part}"].astype(np.float32)
            )
            for letter, values in zip("qkv", stacked.chunk(3), strict=True):
                if (letter, part) != ("k", "bias"):
                    tensors[f"{target}.self_attn.{letter}_proj.{part}"] = values.clone()
    return tensors
