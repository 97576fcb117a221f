"""TF32, reduced matmul precision and autocast voided the rule that streamed codes equal offline ones."""

import threading
from contextlib import nullcontext

import pytest
import torch

from lit_moss.audio import features
from lit_moss.audio.precision import full_precision
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import sinusoids

FLAGS = {
    "cuda matmul": torch.backends.cuda.matmul, "cudnn conv": torch.backends.cudnn.conv,
    "cudnn rnn": torch.backends.cudnn.rnn, "mkldnn matmul": torch.backends.mkldnn.matmul,
    "mkldnn conv": torch.backends.mkldnn.conv, "mkldnn rnn": torch.backends.mkldnn.rnn,
}  # fmt: skip


def settings():
    found = {name: flag.fp32_precision for name, flag in FLAGS.items()}
    older = {
        "float32_matmul_precision": torch.get_float32_matmul_precision,
        "cudnn.allow_tf32": lambda: torch.backends.cudnn.allow_tf32,
    }
    for name, read in older.items():
        try:
            found[name] = read()
        except RuntimeError:  # contradicts a newer one
            found[name] = None
    return found


@pytest.fixture(autouse=True)
def default_settings():
    yield
    torch.backends.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for name in ("cuda matmul", "mkldnn matmul", "mkldnn conv", "mkldnn rnn"):
        FLAGS[name].fp32_precision = "none"


def high():
    torch.set_float32_matmul_precision("high")


def medium():
    torch.set_float32_matmul_precision("medium")


def newer():
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def general():
    torch.backends.fp32_precision = "tf32"


def cudnn_off():
    torch.backends.cudnn.allow_tf32 = False


CASES = [lambda: None, high, medium, newer, general, cudnn_off]


@pytest.mark.parametrize("case", CASES)
def test_codes_are_computed_in_full_and_settings_are_as_before(tiny_encoder, speech, case):
    case()
    before, inside = settings(), []
    tokenizer = SpeechTokenizer(tiny_encoder())
    for module in (tokenizer.encoder, tokenizer.float64.network, tokenizer.encoder.conv1):
        module.register_forward_pre_hook(lambda *_: inside.append(settings()))
    tokenizer.encode(speech[0], 16_000)
    assert settings() == before
    for exact in (True, False):
        tokenizer.exact = exact
        tokenizer.stream().push(speech[0][:12_800])
        assert settings() == before
    assert len(inside) >= 4
    assert all(found[name] == "ieee" for found in inside for name in FLAGS)
    assert all(found["cudnn.allow_tf32"] in (False, None) for found in inside)


def test_settings_are_as_before_after_an_error(tiny_encoder):
    high()
    before, tokenizer = settings(), SpeechTokenizer(tiny_encoder())
    tokenizer.encoder.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tokenizer.encode(torch.rand(16_000), 16_000)
    assert settings() == before


def test_what_follows_the_general_setting_goes_on_to_follow_it():
    general()
    with full_precision(torch.device("cpu")):
        pass
    torch.backends.fp32_precision = "ieee"
    assert torch.backends.mkldnn.conv.fp32_precision == "ieee"


def test_the_last_of_overlapping_users_restores():
    high()
    before = settings()
    entered, leave = threading.Event(), threading.Event()

    def other():
        with full_precision(torch.device("cpu")):
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with full_precision(torch.device("cpu")):
        thread.start()
        entered.wait(10)
    assert settings()["cuda matmul"] == "ieee"
    leave.set()
    thread.join()
    assert settings() == before


@pytest.mark.parametrize("exact", [True, False])
def test_autocast_changes_no_code_and_no_feature(tiny_encoder, speech, exact):
    tokenizer, wave = SpeechTokenizer(tiny_encoder(), exact), speech[0]
    wave24 = features.resample(wave, 16_000, 24_000)
    found = []
    for context in (nullcontext(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with context:
            stream = tokenizer.stream()
            streamed = torch.cat([*(stream.push(x) for x in wave.split(6400)), stream.flush()])
            found.append(
                [tokenizer.encode(wave, 16_000), streamed, tokenizer.encode(wave24, 24_000),
                 features.resample(wave, 16_000, 24_000), features.decoder_mel(wave24[None]),
                 features.kaldi_fbank(wave)]
            )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_nothing_depends_on_the_default_device_or_type(tiny_encoder, speech):
    """Lightning builds modules under its device's context; bf16-true sets the default type."""
    tokenizer = SpeechTokenizer(tiny_encoder())
    expected = tokenizer.encode(speech[0], 16_000)
    with torch.device("meta"):
        stream = tokenizer.stream()
        assert torch.equal(torch.cat([stream.push(speech[0]), stream.flush()]), expected)
        assert torch.equal(tokenizer.encode(speech[0], 16_000), expected)
    table = sinusoids(20, 64)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert torch.equal(sinusoids(20, 64), table)
        stream = tokenizer.stream()
        assert torch.equal(torch.cat([stream.push(speech[0]), stream.flush()]), expected)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.slow
def test_a_decoder_stream_does_not_depend_on_the_default_device():
    from lit_moss.codec.codec import Codec
    from lit_moss.codec.flow import Flow, FlowConfig
    from lit_moss.codec.hift import HiFT, HiFTConfig
    from lit_moss.codec.vocoder import HiFTVocoder

    torch.manual_seed(0)
    flow = Flow(
        FlowConfig(vocab_size=32, hidden=16, speaker_dim=8, encoder_heads=2, encoder_inner=16,
                   encoder_layers=1, channels=8, heads=1, head_width=8, blocks=1, mid_stages=1, steps=2)
    )  # fmt: skip
    for vocoder in (HiFTVocoder(HiFT(HiFTConfig(channels=16, pitch_channels=8))), None):
        codec, found = Codec(None, flow, vocoder), []
        for context in (nullcontext(), torch.device("meta")):
            with context:
                player = codec.stream()
                found.append([player.push([1, 2, 3] * 6), player.flush(), codec.decode([1, 2, 3])])
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_draws_of_a_loss_take_a_generator_of_the_cpu():
    """On a GPU a CPU generator was an error; the numbers are those of the CPU."""
    from lit_moss.codec.flow_config import FlowConfig
    from lit_moss.codec.flow_training import draw

    mel_BMT, frames_B = torch.zeros(2, 80, 12, device="meta"), torch.tensor([8, 12])
    draws = draw(FlowConfig(), mel_BMT, frames_B, generator=torch.Generator().manual_seed(1))
    assert {x.device.type for x in (draws.t_B11, draws.z_BMT, draws.keep_B, draws.prefix_B)} == {"meta"}
