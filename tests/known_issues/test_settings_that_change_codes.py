"""Settings of a tokenizer's files under which the released network computes other codes were accepted.

GLM-4-Voice's tokenizer (`encoder_causal_attention: false`) was encoded with as if it were causal. Wrong types
in a codec folder's JSON were tracebacks, and weights with NaN gave codes and silence.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.pretrained import load_encoder
from lit_moss.errors import UserError


@pytest.fixture
def folder(tiny_encoder, tmp_path):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


def change(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{"encoder_causal_attention": False}, {"encoder_causal_convolution": False}, {"scale_embedding": True},
     {"activation_function": "relu"}, {"activation_function": "gelu_new"}, {"pooling_type": "max"},
     {"pooling_kernel_size": 2}, {"pooling_position": 1}, {"layer_norm_eps": 1e-6}],
)  # fmt: skip
def test_other_numbers_are_refused_for_encoding_and_allowed_to_start_from(folder, changes):
    change(folder, **changes)
    with pytest.raises(UserError, match=next(iter(changes))) as caught:
        SpeechTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)
    assert "init_from" in str(caught.value)
    encoder, _ = load_encoder(str(folder))
    assert len(encoder.layers) == 2


@pytest.mark.parametrize("features", [{"hop_length": 320}, {"n_fft": 512}, {"sampling_rate": 24_000},
                                      {"do_normalize": True}, {"feature_size": 128}])  # fmt: skip
def test_other_features_are_refused_for_encoding(folder, features):
    (folder / "preprocessor_config.json").write_text(json.dumps(features))
    with pytest.raises(UserError, match=next(iter(features))):
        SpeechTokenizer.from_pretrained(folder)


def test_what_changes_nothing_is_accepted(folder):
    change(folder, dropout=0.1, encoder_layerdrop=0.2, quantize_causal_encoder=False, scale_embedding=None)
    (folder / "preprocessor_config.json").write_text(json.dumps({"hop_length": 160, "feature_size": 80}))
    SpeechTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [{"d_model": "64"}, {"d_model": 64.0}, {"d_model": True}, {"d_model": -64}, {"d_model": 0},
     {"encoder_attention_heads": 0}, {"quantize_position": [2]}, {"quantize_vocab_size": 10**15},
     {"quantize_position": 10**9}, {"max_source_positions": "1500"}, {"quantize_ema_decay": float("nan")},
     {"log_mel": 3}, {"log_mel": ["causal"]}],
)  # fmt: skip
def test_a_wrong_type_or_size_is_one_line(folder, changes):
    change(folder, **changes)
    with pytest.raises(UserError) as caught:
        SpeechTokenizer.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", '"text"', "3", "null", "{", "", "\xff"])
def test_a_config_that_is_no_object_is_one_line(folder, content):
    (folder / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"config\.json"):
        SpeechTokenizer.from_pretrained(folder)


@pytest.mark.slow
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["conv1.weight", "layers.1.fc2.bias", "codebook.weight"])
def test_weights_that_are_not_finite_are_refused(folder, tiny_encoder, name, value):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[f"encoder.{name}"].view(-1)[3] = value
    save_file(tensors, file)
    with pytest.raises(UserError, match=f"{name} are not finite"):
        SpeechTokenizer.from_pretrained(folder)
    # And of a network in memory, by what it computes.
    encoder = tiny_encoder()
    encoder.state_dict()[name].view(-1)[3] = value
    for exact in (True, False):
        broken = SpeechTokenizer(encoder, exact)
        with pytest.raises(UserError, match="not finite"):
            broken.encode(torch.rand(16_000), 16_000)
        with pytest.raises(UserError, match="not finite"):
            broken.stream().push(torch.rand(16_000))


def test_quantized_weights_are_refused(folder):
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["encoder.conv1.weight"] = tensors["encoder.conv1.weight"].to(torch.int8)
    save_file(tensors, file)
    with pytest.raises(UserError, match="expected float weights"):
        SpeechTokenizer.from_pretrained(folder)
