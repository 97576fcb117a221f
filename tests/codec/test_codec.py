"""The whole codec: folders, encode and decode, prompts, streams, what it refuses."""

import json

import pytest
import torch
from decoders import small_flow, small_hift

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.codec import LONGEST_AT_ONCE
from lit_moss.codec.hift import HiFT
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder
from lit_moss.errors import UserError


@pytest.fixture
def codec(tiny_encoder):
    vocoder = HiFTVocoder(small_hift(), lookahead_frames=HiFT.REACH_FRAMES)
    return Codec(SpeechTokenizer(tiny_encoder()), small_flow(), vocoder)


@pytest.fixture
def official(codec, tmp_path):
    """A folder in the official layout."""
    codec.save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.nightly
def test_beyond_its_history_a_stream_is_still_the_offline_wave(codec):
    codes = torch.randint(0, 256, (200,), generator=torch.Generator().manual_seed(0))
    for left_chunks in (25, None):
        whole = codec.decode(codes, streaming=True, left_chunks=left_chunks)
        player = codec.stream(left_chunks=left_chunks)
        parts = [*(player.push(piece) for piece in codes.split(30)), player.flush()]
        assert torch.allclose(torch.cat(parts), whole, atol=2e-3)
    assert not torch.allclose(whole, codec.decode(codes, streaming=True), atol=2e-3)


def test_a_folder_gives_the_codec_back(codec, official):
    assert sorted(p.name for p in official.rglob("*.*")) == [
        "config.json", "config.json", "flow.pt", "hift.pt", "model.safetensors"
    ]  # fmt: skip
    again = Codec.from_pretrained(official)
    codes = torch.arange(12)
    again.vocoder.lookahead_frames = HiFT.REACH_FRAMES
    assert torch.equal(again.decode(codes), codec.decode(codes))
    assert isinstance(again.vocoder, HiFTVocoder)
    assert again.flow.config == codec.flow.config


def test_sizes_come_from_the_shapes_where_no_config_of_ours_lies(tmp_path):
    flow = small_flow(head_width=64, heads=1)
    Codec(None, flow).save_pretrained(tmp_path)
    (tmp_path / "flow/config.json").unlink()
    again = Codec.from_pretrained(tmp_path)
    assert again.flow.config.heads == 1
    assert again.flow.config.mid_stages == flow.config.mid_stages
    assert torch.equal(again.decode(torch.arange(9)), Codec(None, flow).decode(torch.arange(9)))
    assert isinstance(again.vocoder, GriffinLim)
    with pytest.raises(UserError, match="no tokenizer"):
        again.encode(torch.zeros(1600), 16_000)


def test_parts_that_are_missing_or_damaged_are_one_line(official, tmp_path):
    with pytest.raises(UserError, match=r"no flow/flow\.pt"):
        Codec.from_pretrained(tmp_path)
    torch.save({"a": torch.zeros(1)}, official / "flow/hift.pt")
    with pytest.raises(UserError, match="no HiFT vocoder"):
        Codec.from_pretrained(official)
    (official / "flow/hift.pt").unlink()
    for content in ("{", '{"flow": {"size": 3}}'):
        (official / "flow/config.json").write_text(content)
        with pytest.raises(UserError, match="damaged"):
            Codec.from_pretrained(official)
    (official / "flow/config.json").unlink()
    half = (official / "flow/flow.pt").read_bytes()[:5000]
    (official / "flow/flow.pt").write_bytes(half)
    with pytest.raises(UserError, match="no file of plain tensors"):
        Codec.from_pretrained(official)


def test_speech_goes_in_codes_come_out_speech_comes_back(codec, speech):
    codes = codec.encode(speech[0], 16_000)
    wave = codec.decode(codes)
    assert wave.dtype == torch.float32
    assert wave.shape == (1920 * len(codes),)
    assert wave.abs().max() <= 0.99
    assert len(codec.decode([])) == 0
    assert len(codec.decode([3])) == 1920


@pytest.mark.slow
@pytest.mark.parametrize("prompted", [False, True])
@pytest.mark.parametrize("pieces", [1, 3, 64])
def test_a_stream_is_the_offline_wave(codec, speech, prompted, pieces):
    prompt = codec.prompt(speech[1][:20_000], 16_000) if prompted else None
    codes = torch.randint(0, 256, (40,), generator=torch.Generator().manual_seed(0))
    whole = codec.decode(codes, prompt, streaming=True)
    player = codec.stream(prompt)
    parts = [*(player.push(piece) for piece in codes.split(pieces)), player.flush()]
    assert sum(map(len, parts)) == 1920 * 40
    assert torch.allclose(torch.cat(parts), whole, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("vocoder", [GriffinLim(3), HiFTVocoder(small_hift())], ids=["gl", "hift"])
def test_first_sound_comes_with_the_eighth_code(codec, vocoder):
    codec.vocoder = vocoder
    player = codec.stream()
    lengths = [len(player.push([code])) for code in range(20)]
    assert lengths[:7] == [0] * 7
    assert lengths[7] > 0
    assert lengths[12] == lengths[17] == 5 * 1920


def test_a_prompts_codes_and_mel_are_of_the_same_time(codec, speech):
    prompt = codec.prompt(speech[0][:33_333], 16_000)
    assert prompt.mel_MT.shape == (80, 4 * len(prompt.codes_N))
    assert len(prompt.codes_N) == 33_333 * 3 // 2 // 1920 // 5 * 5  # whole chunks
    assert len(codec.prompt(torch.cat(speech), 16_000, max_sec=2.0).codes_N) == 25
    assert not torch.equal(codec.decode([1] * 9, prompt), codec.decode([1] * 9))


@pytest.mark.nightly
def test_long_codes_are_decoded_as_a_stream(codec):
    codec.vocoder = GriffinLim(1)
    codes = torch.zeros(LONGEST_AT_ONCE + 9, dtype=torch.long)
    assert len(codec.decode(codes)) == 1920 * len(codes)


@pytest.mark.parametrize(
    ("codes", "message"),
    [([256], "expected 0 to 255"), ([-1], "expected 0 to"), ([0.5], "expected codes int64"),
     ([[1, 2]], "expected codes int64")],
)  # fmt: skip
def test_what_is_not_a_code_is_an_error(codec, codes, message):
    with pytest.raises(ValueError, match=message):
        codec.decode(torch.tensor(codes))
    with pytest.raises(ValueError, match=message):
        codec.stream().push(torch.tensor(codes))


@pytest.mark.slow
def test_a_speaker_encoder_of_another_width_is_refused(codec):
    class Speaker:
        dim = 9

    with pytest.raises(UserError, match="9 values, the flow was built for 8"):
        Codec(None, small_flow(), None, Speaker())


@pytest.mark.network
def test_the_speaker_encoder_comes_back_with_the_codec(tmp_path):
    from lit_moss.codec.speaker import VoiceEncoder, open_speaker

    flow = small_flow(speaker_dim=256)
    Codec(None, flow, None, open_speaker("embedded:resemblyzer")).save_pretrained(tmp_path)
    assert isinstance(Codec.from_pretrained(tmp_path).speaker, VoiceEncoder)
    config = json.loads((tmp_path / "flow/config.json").read_text())
    (tmp_path / "flow/config.json").write_text(json.dumps(config | {"speaker": "nobody"}))
    with pytest.raises(UserError, match="no speaker encoder 'nobody'"):
        Codec.from_pretrained(tmp_path)
