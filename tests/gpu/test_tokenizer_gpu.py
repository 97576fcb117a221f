"""The same numbers on a CUDA device. Run by `make gpu-test`."""

import torch

from lit_moss.audio.features import CausalLogMel
from lit_moss.codec import SpeechTokenizer


def test_codes_on_the_device_are_the_codes_on_the_cpu(tiny_encoder, speech):
    encoder = tiny_encoder()
    on_cpu = SpeechTokenizer(encoder).encode(speech, 16_000)
    on_device = SpeechTokenizer(encoder).to("cuda").encode(speech, 16_000)
    assert all(torch.equal(a, b) for a, b in zip(on_cpu, on_device, strict=True))


def test_log_mel_on_the_device(speech):
    wave = speech[0][: len(speech[0]) // 160 * 160][None]
    torch.testing.assert_close(CausalLogMel(80)(wave.cuda()).cpu(), CausalLogMel(80)(wave), rtol=0, atol=1e-4)
