"""The common interface of streams: the whole however it is cut, and closed after `flush`."""

import pytest
import torch
from decoders import small_flow, small_hift, small_prompt

from lit_moss.audio.features import Resampler
from lit_moss.audio.streams import run_stream
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder

CODES = torch.arange(20)
MEL = torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(0))
WAVE = torch.randn(9_000, generator=torch.Generator().manual_seed(0)) / 10


@pytest.fixture(params=["resampler", "tokenizer", "flow", "hift", "griffin-lim", "player"])
def make(request, tiny_encoder):
    """A function that makes a stream, its input, and the axis of the input that is cut."""
    return {
        "resampler": lambda: (lambda: Resampler(24_000, 16_000), WAVE, 0),
        "tokenizer": lambda: (SpeechTokenizer(tiny_encoder()).stream, WAVE, 0),
        "flow": lambda: (small_flow(steps=2).stream, CODES, 0),
        "hift": lambda: (HiFTVocoder(small_hift()).stream, MEL, -1),
        "griffin-lim": lambda: (GriffinLim(2).stream, MEL, -1),
        "player": lambda: (Codec(None, small_flow(steps=2), GriffinLim(2)).stream, CODES, 0),
    }[request.param]()


@pytest.mark.slow
def test_outputs_of_any_pieces_are_as_long_as_that_of_the_whole(make):
    stream, whole, axis = make
    expected = run_stream(stream(), [whole])
    for size in (7, 2_000):
        pieces = [whole[..., :0], *whole.split(size, dim=axis)]
        assert run_stream(stream(), pieces).shape == expected.shape


@pytest.mark.slow
def test_after_flush_every_call_is_the_same_error(make):
    stream, whole, _ = make
    flushed = stream()
    flushed.push(whole)
    flushed.flush()
    for call in (lambda: flushed.push(whole), flushed.flush):
        with pytest.raises(RuntimeError, match="this stream was flushed: make a new one"):
            call()


def test_a_stream_can_be_flushed_without_input(make):
    assert not make[0]().flush().numel()


def test_an_error_about_a_piece_leaves_a_stream_as_it_was(tiny_encoder):
    tokenizer = SpeechTokenizer(tiny_encoder())
    stream = tokenizer.stream()
    codes = [stream.push(WAVE[:5_000])]
    with pytest.raises(ValueError, match="not finite"):
        stream.push(torch.tensor([torch.nan]))
    codes += [stream.push(WAVE[5_000:]), stream.flush()]
    assert torch.equal(torch.cat(codes), tokenizer.encode(WAVE, 16_000))


@pytest.mark.slow
def test_copies_of_a_player_speak_in_its_voice_and_do_not_mix():
    codec = Codec(None, small_flow(steps=2), HiFTVocoder(small_hift()))
    prompt, other = small_prompt(codes=10), CODES.flip(0)
    primed = codec.stream(prompt)
    first, second = primed.copy(), primed.copy()
    waves = [[], []]
    for start in range(0, 20, 4):  # in turns
        waves[0].append(first.push(CODES[start : start + 4]))
        waves[1].append(second.push(other[start : start + 4]))
    for wave, player, codes in zip(waves, (first, second), (CODES, other), strict=True):
        whole = run_stream(codec.stream(prompt), codes.split(4))
        assert torch.equal(torch.cat([*wave, player.flush()]), whole)
    assert first._flow._network is codec.flow
