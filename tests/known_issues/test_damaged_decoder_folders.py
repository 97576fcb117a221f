"""Damaged decoder folders: tracebacks for wrong types in JSON, silence or noise for NaN weights."""

import json

import pytest
import torch

from lit_moss.codec.codec import Codec
from lit_moss.codec.flow import Flow, FlowConfig
from lit_moss.codec.hift import HiFT, HiFTConfig
from lit_moss.codec.speaker import VoiceEncoder
from lit_moss.codec.vocoder import HiFTVocoder
from lit_moss.errors import UserError

SIZES = {
    "vocab_size": 32, "hidden": 16, "speaker_dim": 8, "encoder_heads": 2, "encoder_inner": 16,
    "encoder_layers": 1, "channels": 8, "heads": 1, "head_width": 8, "blocks": 1, "mid_stages": 1, "steps": 2,
}  # fmt: skip


def small_codec(voice=None):
    torch.manual_seed(0)
    flow = Flow(FlowConfig(**SIZES))
    return Codec(None, flow, HiFTVocoder(HiFT(HiFTConfig(channels=16, pitch_channels=8))), voice=voice)


@pytest.fixture
def folder(tmp_path):
    small_codec(torch.rand(8)).save_pretrained(tmp_path)
    return tmp_path


def test_the_folder_is_read_while_it_is_whole(folder):
    assert Codec.from_pretrained(folder).decode([1, 2, 3]).shape == (3 * 1920,)


@pytest.mark.slow
@pytest.mark.parametrize("content", ["[]", '"a"', "1", "null", "{", "", "\xff", '["flow"]', '"flow"'])
def test_a_config_that_is_no_object_is_one_line(folder, content):
    (folder / "flow" / "config.json").write_bytes(content.encode("latin1"))
    with pytest.raises(UserError, match=r"config\.json") as caught:
        Codec.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.nightly
@pytest.mark.parametrize(
    "changes",
    [{"flow": []}, {"flow": "a"}, {"flow": None}, {"flow": SIZES | {"hidden": "16"}},
     {"flow": SIZES | {"x": 1}}, {"flow": SIZES | {"hidden": 16.0}}, {"flow": SIZES | {"hidden": 32}},
     {"flow": SIZES | {"hidden": 10**12}}, {"flow": SIZES | {"steps": True}},
     {"flow": SIZES | {"guidance": float("nan")}},
     {"flow": SIZES | {"guidance": -1}}, {"flow": SIZES | {"dropout": 2.0}}, {"flow": SIZES | {"heads": 3}},
     {"voice": ["a"] * 8}, {"voice": [0.1] * 7}, {"voice": "a"}, {"voice": {"a": 1}}, {"voice": [[0.1] * 8]},
     {"voice": [True] * 8}, {"voice": [float("nan")] * 8}, {"voice": 3}, {"voice": 0}, {"voice": False},
     {"speaker": 3}, {"speaker": ["a"]}, {"speaker": "unknown"}],
)  # fmt: skip
def test_a_wrong_type_is_one_line(folder, changes):
    file = folder / "flow" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with pytest.raises(UserError) as caught:
        Codec.from_pretrained(folder)
    assert "\n" not in str(caught.value)


def test_a_voice_of_another_width_is_refused():
    with pytest.raises(UserError, match="built for \\(8,\\)"):
        small_codec(torch.rand(7))
    with pytest.raises(UserError, match="built for \\(8,\\)"):
        small_codec(["a"] * 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["flow", "hift"])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused(folder, part, value):
    file = folder / "flow" / f"{part}.pt"
    tensors = torch.load(file, weights_only=True)
    name = list(tensors)[-1]
    tensors[name].view(-1)[0] = value
    torch.save(tensors, file)
    with pytest.raises(UserError, match=f"{name} are not finite"):
        Codec.from_pretrained(folder)
    # And of networks in memory, by what they give.
    codec = small_codec()
    module = codec.flow if part == "flow" else codec.vocoder.hift
    next(module.parameters()).data.fill_(float("nan"))
    if part == "hift":
        module.conv_post.bias.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        codec.decode([1, 2, 3])
    player = codec.stream()
    with pytest.raises(UserError, match="not finite"):
        player.push([1] * 30)


def test_a_speaker_encoder_with_weights_that_are_not_finite_is_refused(tmp_path, monkeypatch):
    encoder = VoiceEncoder()
    state = encoder.state_dict()
    state["linear.bias"][0] = float("nan")
    torch.save({"model_state": state}, tmp_path / "pretrained.pt")
    with pytest.raises(UserError, match=r"linear\.bias are not finite"):
        VoiceEncoder.from_pretrained(str(tmp_path))
    encoder.load_state_dict(state)
    encoder.linear.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite"):
        encoder(torch.rand(16_000))
