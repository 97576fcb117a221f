"""A near-tie in a live stream computed all since the last one again in float64: up to 30 s in one push.

Pushes of 80 ms took 12 ms in the median and 1.8 s at worst (Whisper-tiny, 10 minutes of LibriSpeech).
"""

import pytest
import torch

from lit_moss.audio.features import CausalLogMel
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import CausalEncoder

CODE = 1280


@pytest.fixture
def tied(tiny_encoder, speech):
    """A tokenizer for which every frame of a wave is a near-tie, and the wave."""
    encoder, wave = tiny_encoder(quantize_vocab_size=1024), torch.cat(speech)[: 200 * CODE]
    with torch.no_grad():
        x = encoder.pool(encoder(CausalLogMel(80)(wave[None])))[0]
        aside = 0.02 * x.norm(dim=1, keepdim=True) * torch.nn.functional.normalize(torch.randn_like(x))
        encoder.codebook.weight[: 2 * len(x)] = torch.cat([x + aside, x - aside])
    return SpeechTokenizer(encoder), wave


@pytest.mark.slow
def test_no_push_computes_more_frames_than_it_brings(tied, monkeypatch):
    tokenizer, wave = tied
    frames, forward = [], CausalEncoder.forward

    def counted(self, mel_BMF, state=None):
        frames.append(mel_BMF.shape[-1])
        return forward(self, mel_BMF, state)

    monkeypatch.setattr(CausalEncoder, "forward", counted)
    stream, most, codes = tokenizer.stream(), 0, []
    for n, samples in enumerate(wave.split(CODE)):
        frames.clear()
        if n == 100:  # a long silence without near-ties made the next one dear
            stream.push(torch.zeros(50 * CODE))
            frames.clear()
        codes.append(stream.push(samples))
        most = max(most, sum(frames))
    assert most <= 2 * 8


@pytest.mark.slow
def test_streamed_codes_are_those_of_the_whole(tied):
    tokenizer, wave = tied
    for size in (1, 3, 40):
        stream = tokenizer.stream()
        codes = torch.cat([*(stream.push(x) for x in wave.split(size * CODE)), stream.flush()])
        assert torch.equal(codes, tokenizer.encode(wave, 16_000))


@pytest.mark.slow
@pytest.mark.parametrize("exact", [True, False])
def test_equal_rows_are_one_tie_and_the_lowest_is_taken(tiny_encoder, speech, exact):
    encoder = tiny_encoder()
    rows = encoder.codebook.weight.data
    rows[37:74] = rows[:37]
    rows[100:137] = rows[:37]
    tokenizer = SpeechTokenizer(encoder)
    for wave in speech[:2]:
        stream = tokenizer.stream()
        codes = torch.cat([*(stream.push(x) for x in wave.split(CODE)), stream.flush()])
        assert torch.equal(codes, tokenizer.encode(wave, 16_000))
        assert not (((codes >= 37) & (codes < 74)) | ((codes >= 100) & (codes < 137))).any()


def test_the_float64_copy_is_made_before_the_first_push_and_holds_no_averages(tiny_encoder):
    tokenizer = SpeechTokenizer(tiny_encoder())
    tokenizer.stream()
    assert tokenizer.float64.is_made
    network = tokenizer.float64.network
    names = dict(network.named_buffers()) | dict(network.named_parameters())
    assert not any(name.startswith("ema_") for name in names)
    assert all(t.dtype == torch.float64 and t.device.type == "cpu" for t in names.values())


def test_a_second_segment_starts_afresh(tiny_encoder, speech):
    tokenizer = SpeechTokenizer(tiny_encoder(max_source_positions=256))  # segments of 64 codes
    wave = torch.cat(speech)[: 150 * CODE]
    stream = tokenizer.stream()
    codes = torch.cat([*(stream.push(x) for x in wave.split(3 * CODE)), stream.flush()])
    assert torch.equal(codes, tokenizer.encode(wave, 16_000))


def test_without_float64_on_the_device_the_copy_is_on_the_cpu(tiny_encoder, speech, monkeypatch):
    """As on MPS, which refuses float64."""
    expected = SpeechTokenizer(tiny_encoder()).encode(speech[0], 16_000)
    zeros = torch.zeros

    def refusing(*args, **kwargs):
        if kwargs.get("dtype") == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64 dtype")
        return zeros(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros", refusing)
    tokenizer = SpeechTokenizer(tiny_encoder())
    assert torch.equal(tokenizer.encode(speech[0], 16_000), expected)
    assert tokenizer.float64.device.type == "cpu"
