"""The tokenizer's network against CONTRACT.md part A: recorded tensors, shapes, causality, streams."""

import json

import pytest
import torch
from safetensors.torch import load_file

from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, EncoderState, sinusoids
from lit_moss.errors import UserError


@pytest.fixture
def golden(contract):
    folder = contract / "codec/golden/encoder"
    encoder = CausalEncoder(EncoderConfig.from_official(json.loads((folder / "config.json").read_text())))
    weights = {k.removeprefix("encoder."): v for k, v in load_file(folder / "weights.safetensors").items()}
    encoder.load_state_dict(encoder.state_dict() | weights)
    return encoder.requires_grad_(False), load_file(folder / "io.safetensors")


def test_pooled_frames_and_codes_are_the_recorded_ones_a6_a7(golden):
    encoder, io = golden
    pooled = encoder.pool(encoder(io["input_features"]))
    torch.testing.assert_close(pooled, io["pooled"], atol=1e-5, rtol=0)
    codes = encoder.quantize(pooled)
    assert torch.equal(codes, io["token_ids"])
    torch.testing.assert_close(encoder.dequantize(codes), io["last_hidden_state"], atol=1e-5, rtol=0)


def test_codes_of_an_odd_length_are_the_recorded_ones_a1(golden):
    encoder, io = golden
    assert torch.equal(
        encoder.quantize(encoder.pool(encoder(io["oddlen_input_features"]))), io["oddlen_token_ids"]
    )


@pytest.mark.parametrize("item", [0, 1])
def test_streamed_codes_are_the_recorded_ones(golden, item):
    encoder, io = golden
    state = EncoderState()
    chunks = io["input_features"][item : item + 1].split(io["stream_chunk_frames"].tolist(), dim=-1)
    codes = [encoder.quantize(encoder.pool(encoder(chunk, state)))[0] for chunk in chunks]
    assert torch.equal(torch.cat(codes), io[f"stream_token_ids_b{item}"])


def test_names_and_shapes_at_the_official_size_are_the_released_ones(contract):
    manifest = json.loads((contract / "codec/manifest_encoder_official.json").read_text())
    with torch.device("meta"):
        encoder = CausalEncoder(EncoderConfig())
    ours = {name: list(value.shape) for name, value in encoder.state_dict().items()}
    assert ours == {entry["local_name"]: entry["shape"] for entry in manifest["tensors"]}


@pytest.mark.parametrize("frame", [0, 1, 8, 33, 62])
def test_a_mel_frame_changes_no_hidden_frame_before_it(tiny_encoder, frame):
    """Hidden frame i sees mel frames up to 2i: frame 2i - 1 or 2i first shows at i."""
    encoder = tiny_encoder()
    mel = torch.randn(1, 80, 64)
    changed = mel.clone()
    changed[..., frame] += 10.0
    a, b = encoder(mel), encoder(changed)
    first = (frame + 1) // 2
    torch.testing.assert_close(a[:, :first], b[:, :first], atol=1e-6, rtol=0)
    assert (a[:, first] - b[:, first]).abs().max() > 1e-3


def test_an_odd_length_is_filled_with_one_zero_frame(tiny_encoder):
    encoder, mel = tiny_encoder(), torch.randn(1, 80, 37)
    assert torch.equal(encoder(mel), encoder(torch.nn.functional.pad(mel, (0, 1))))
    assert encoder(mel).shape == (1, 19, 64)


@pytest.mark.parametrize("frames", [2, 8, 24])
def test_chunks_with_a_state_give_the_hidden_frames_of_the_whole(tiny_encoder, frames):
    encoder, mel, state = tiny_encoder(), torch.randn(2, 80, 96), EncoderState()
    parts = [encoder(chunk, state) for chunk in mel.split(frames, dim=-1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), encoder(mel), atol=1e-5, rtol=0)
    assert state.frames == 48


def test_pool_fills_the_last_group_with_zeros_a6(tiny_encoder):
    hidden = torch.arange(1.0, 7.0)[None, :, None]  # 1 2 3 4 | 5 6 0 0
    assert tiny_encoder().pool(hidden).flatten().tolist() == [10 / 4, 11 / 4]


def test_dequantize_adds_the_position_of_each_code_a8(tiny_encoder):
    encoder = tiny_encoder()
    row = encoder.dequantize(torch.tensor([[7, 7, 7]]))[0] - encoder.codebook.weight[7]
    torch.testing.assert_close(row, sinusoids(375, 64)[:3], atol=1e-6, rtol=0)


def test_sinusoids_are_sines_then_cosines_a4():
    table = sinusoids(4, 8).double()
    for j in range(4):
        inverse = torch.tensor(10_000.0).double() ** (-j / 3)
        for p in range(4):
            assert table[p, j] == pytest.approx(float(torch.sin(p * inverse)), abs=1e-6)
            assert table[p, 4 + j] == pytest.approx(float(torch.cos(p * inverse)), abs=1e-6)


def test_more_frames_than_positions_is_an_error_that_says_so(tiny_encoder):
    encoder = tiny_encoder(max_source_positions=256)
    encoder(torch.randn(1, 80, 512))
    with pytest.raises(ValueError, match="257 hidden frames, at most 256"):
        encoder(torch.randn(1, 80, 514))


def test_more_frames_than_positions_in_a_stream_is_the_same_error(tiny_encoder):
    encoder, state = tiny_encoder(max_source_positions=256), EncoderState()
    encoder(torch.randn(1, 80, 512), state)
    with pytest.raises(ValueError, match="at most 256"):
        encoder(torch.randn(1, 80, 8), state)


# --- config ---------------------------------------------------------------------------------------


def test_the_official_layout_leads_back_to_the_same_config():
    config = EncoderConfig(d_model=64, encoder_attention_heads=2, quantize_position=3, log_mel="whisper")
    assert EncoderConfig.from_official(json.loads(json.dumps(config.to_official()))) == config


def test_unknown_keys_are_ignored_and_missing_ones_take_the_default():
    config = EncoderConfig.from_official(
        {"quantize_position": 4, "d_model": 40, "dropout": 0.3, "num_mel_bins": None}
    )
    assert config == EncoderConfig(quantize_position=4, d_model=40)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pooling_kernel_size": 2}, "pooling_kernel_size=2, only 4"), ({"pooling_type": "max"}, "only 'avg'"),
     ({"pooling_position": 3}, "expected them equal"),
     ({"encoder_attention_heads": 7}, "not a multiple of 7"),
     ({"log_mel": "other"}, "expected 'causal' or 'whisper'")],
)  # fmt: skip
def test_a_config_we_cannot_run_is_an_error(change, message):
    with pytest.raises((ValueError, UserError), match=message):
        EncoderConfig.from_official(EncoderConfig().to_official() | change)
