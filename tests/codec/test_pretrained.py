"""Weights into the encoder: CTranslate2 files, Whispers of transformers, and what is refused."""

import json
import struct

import numpy as np
import pytest
import torch

from lit_moss.codec.ctranslate2 import read_ctranslate2
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.codec.pretrained import load_encoder
from lit_moss.errors import UserError

SIZES = {"num_mel_bins": 8, "d_model": 64, "encoder_attention_heads": 1, "encoder_ffn_dim": 32,
         "quantize_position": 2, "quantize_vocab_size": 16}  # fmt: skip
DTYPES = {"float32": 0, "int8": 1, "int16": 2, "int32": 3, "float16": 4}


def write_ctranslate2(path, variables, version=6):
    """Version, spec name, revision, then per variable: name, rank, shape, dtype, bytes."""

    def text(value):
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", version) + text("WhisperSpec") + struct.pack("<II", 3, len(variables))
    for name, value in variables.items():
        out += text(name) + struct.pack(f"<B{value.ndim}I", value.ndim, *value.shape)
        out += struct.pack("<BI", DTYPES[str(value.dtype)], value.nbytes) + value.tobytes()
    path.write_bytes(out + struct.pack("<I", 0))


def in_ctranslate2_names(encoder):
    """Our tensors as CTranslate2 stores a Whisper: q, k and v stacked, the key bias zero, float16."""
    own, variables = encoder.state_dict(), {}

    def put(theirs, *ours):
        parts = [own.get(name, torch.zeros(encoder.config.d_model)) for name in ours]
        variables[theirs] = torch.cat(parts).numpy().astype(np.float16)

    for part in ("weight", "bias"):
        put(f"encoder/conv1/{part}", f"conv1.{part}")
        put(f"encoder/conv2/{part}", f"conv2.{part}")
    for i in range(encoder.config.quantize_position):
        ours, theirs = f"layers.{i}", f"encoder/layer_{i}"
        for part, name in (("weight", "gamma"), ("bias", "beta")):
            put(f"{theirs}/self_attention/layer_norm/{name}", f"{ours}.self_attn_layer_norm.{part}")
            put(f"{theirs}/ffn/layer_norm/{name}", f"{ours}.final_layer_norm.{part}")
            stacked = [f"{ours}.self_attn.{letter}_proj.{part}" for letter in "qkv"]
            put(f"{theirs}/self_attention/linear_0/{part}", *stacked)
            put(f"{theirs}/self_attention/linear_1/{part}", f"{ours}.self_attn.out_proj.{part}")
            put(f"{theirs}/ffn/linear_0/{part}", f"{ours}.fc1.{part}")
            put(f"{theirs}/ffn/linear_1/{part}", f"{ours}.fc2.{part}")
    return variables


@pytest.mark.parametrize("dtype", DTYPES)
def test_ctranslate2_arrays_are_read_as_they_were_written(tmp_path, dtype):
    variables = {"a/weight": np.arange(6).reshape(2, 3).astype(dtype), "b": np.array([7], dtype)}
    write_ctranslate2(tmp_path / "model.bin", variables)
    read = read_ctranslate2(tmp_path / "model.bin")
    assert list(read) == ["a/weight", "b"]
    for name, value in variables.items():
        assert read[name].dtype == value.dtype
        np.testing.assert_array_equal(read[name], value)


def test_an_unknown_ctranslate2_version_is_refused(tmp_path):
    write_ctranslate2(tmp_path / "model.bin", {}, version=5)
    with pytest.raises(UserError, match="version 5, expected 6"):
        read_ctranslate2(tmp_path / "model.bin")


def test_a_ctranslate2_whisper_loads_every_tensor_and_its_sizes(tmp_path):
    torch.manual_seed(0)
    source = CausalEncoder(EncoderConfig(**SIZES))
    write_ctranslate2(tmp_path / "model.bin", in_ctranslate2_names(source))
    encoder, report = load_encoder(str(tmp_path))
    assert len(report.loaded) == 4 + 2 * 15
    assert set(report.kept) == {"ema_count", "ema_weight", "embed_positions.weight", "codebook.weight",
                                "embed_positions2.weight"}  # fmt: skip
    assert (encoder.config.d_model, encoder.config.num_mel_bins, encoder.config.quantize_position) == (
        64,
        8,
        2,
    )
    for name in report.loaded:
        assert torch.equal(encoder.state_dict()[name], source.state_dict()[name].half().float()), name


@pytest.fixture
def whisper(tmp_path):
    """A tiny random Whisper as transformers saves it."""
    from transformers import WhisperConfig, WhisperModel

    torch.manual_seed(0)
    sizes = {"d_model": 64, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
             "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}  # fmt: skip
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0)
    config = WhisperConfig(vocab_size=20, num_mel_bins=8, **sizes, **ids)
    model = WhisperModel(config).eval()
    model.save_pretrained(tmp_path / "whisper")
    return model, tmp_path / "whisper"


def test_a_whisper_of_transformers_loads_by_name(whisper):
    model, folder = whisper
    encoder, report = load_encoder(str(folder))
    theirs = model.encoder.state_dict()
    assert len(report.loaded) == 4 + 3 * 15 + 1  # convolutions, layers, positions
    assert not report.reshaped
    for name in report.loaded:
        assert torch.equal(encoder.state_dict()[name], theirs[name]), name
    assert encoder.config.encoder_attention_heads == 2


def test_its_layers_compute_what_transformers_does_under_a_causal_mask(whisper):
    model, folder = whisper
    encoder, _ = load_encoder(str(folder))
    x = torch.randn(1, 10, 64)
    mask = torch.full((1, 1, 10, 10), -torch.inf).triu(1)
    for ours, theirs in zip(encoder.layers, model.encoder.layers, strict=True):
        with torch.no_grad():
            out = theirs(x, mask)
        torch.testing.assert_close(
            ours(x)[0], out[0] if isinstance(out, tuple) else out, atol=1e-5, rtol=1e-5
        )


def test_fewer_layers_take_the_lower_ones(whisper):
    model, folder = whisper
    config = EncoderConfig(**(SIZES | {"quantize_position": 1, "encoder_attention_heads": 2}))
    encoder, _ = load_encoder(str(folder), config)
    assert len(encoder.layers) == 1
    assert torch.equal(encoder.layers[0].fc1.weight, model.encoder.layers[0].fc1.weight)


@pytest.mark.parametrize("change", [{"d_model": 128}, {"num_mel_bins": 80}, {"quantize_position": 4}])
def test_sizes_that_do_not_fit_are_one_line_that_names_both(whisper, change):
    config = EncoderConfig(**(SIZES | change))
    with pytest.raises(UserError, match="does not fit the configured sizes") as caught:
        load_encoder(str(whisper[1]), config)
    assert "\n" not in str(caught.value)
    assert f"d_model {config.d_model}, {config.num_mel_bins} mels" in str(caught.value)


def test_a_shorter_position_table_is_kept_and_reported(whisper):
    config = EncoderConfig(**(SIZES | {"max_source_positions": 400}))
    encoder, report = load_encoder(str(whisper[1]), config)
    assert report.reshaped == ("embed_positions.weight: (1500, 64), ours (400, 64)",)
    assert encoder.embed_positions.weight.shape == (400, 64)


@pytest.mark.parametrize("files", [{}, {"config.json": {}}])
def test_a_folder_without_weights_is_an_error_that_says_what_is_expected(tmp_path, files):
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"neither \*.safetensors nor a CTranslate2 model.bin"):
        load_encoder(str(tmp_path))


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(("name", "tensors", "width", "layers"), [("tiny", 64, 384, 4), ("base", 94, 512, 6)])
def test_the_embedded_whispers_load_whole(name, tensors, width, layers):
    encoder, report = load_encoder(f"embedded:whisper-{name}")
    assert len(report.loaded) == tensors
    assert not report.reshaped
    assert (encoder.config.d_model, encoder.config.num_mel_bins, len(encoder.layers)) == (width, 80, layers)
    assert all(value.isfinite().all() for value in encoder.state_dict().values())
