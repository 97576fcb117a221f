"""The trained vocoder's network: shapes, reach, streams against the whole, folders, what is refused."""

import json
import math

import pytest
import torch
from vocoders import small_vocoder

from lit_moss.codec.trained_vocoder import TrainedVocoder, net_of
from lit_moss.codec.vocoder import Vocoder
from lit_moss.codec.vocoder_net import SILENCE, VocoderConfig, VocoderNet, overlap_add
from lit_moss.errors import UserError

HOP = 480
CAUSAL = {"lookahead_frames": 0}
WIDE = {"lookahead_frames": 9}
LEARNT = {"magnitudes": "learnt"}
SHORT_WINDOWS = LEARNT | {"fft_samples": 960, "hop_samples": 240, "lookahead_frames": 4}
SHAPES = [CAUSAL, {}, WIDE, LEARNT, SHORT_WINDOWS, LEARNT | {"fft_samples": 1000, "hop_samples": 120}]


def mel(frames, seed=0):
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(seed)) * 2 - 5


def pieces(frames, sizes):
    """Cuts (1, 80, T) into pieces of these lengths, the last one repeated."""
    cut, start = [], 0
    while start < frames.shape[-1]:
        size = sizes[min(len(cut), len(sizes) - 1)]
        cut.append(frames[..., start : start + size])
        start += size
    return cut


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [[1], [3], [20], [1, 0, 2, 7, 11, 13], [57]], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_stream_gives_the_samples_of_the_whole(shape, sizes):
    vocoder: Vocoder = small_vocoder(**shape)
    frames, stream = mel(57), vocoder.stream()
    whole = vocoder(frames)
    assert whole.shape == (1, 57 * HOP)
    found = torch.cat([*(stream.push(piece) for piece in pieces(frames, sizes)), stream.flush()], dim=1)
    assert found.shape == whole.shape
    assert float((found - whole).abs().max()) < 1e-6 < 0.01 < float(whole.abs().max())
    with pytest.raises(RuntimeError, match="flushed"):
        stream.push(frames)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_sample_depends_on_no_frame_beyond_the_stated_look_ahead(shape):
    vocoder = small_vocoder(**shape)
    frames = mel(60)
    changed = frames.clone()
    changed[:, :, 40:] += 1
    same = (vocoder(frames) == vocoder(changed))[0].view(60, HOP).all(dim=1)
    first = 40 - vocoder.lookahead_frames
    assert bool(same[:first].all())
    assert not same[first]
    # And a stream has given them by then.
    stream = vocoder.stream()
    assert stream.push(frames[:, :, :40]).shape[1] >= first * HOP


def test_every_item_of_a_batch_is_made_as_if_alone():
    vocoder = small_vocoder()
    frames = torch.cat([mel(20), mel(20, seed=1)])
    assert torch.allclose(vocoder(frames)[1:], vocoder(frames[1:]), atol=1e-6)
    assert torch.equal(vocoder(frames), vocoder(frames))


def test_silence_before_the_first_frame_is_no_edge():
    """Zeros of the convolutions' padding are frames of silence: some more before change nothing later."""
    net = VocoderNet(VocoderConfig(16, 32, 1, lookahead_frames=0)).requires_grad_(False)
    frames, silence = mel(30), torch.full((1, 80, 12), SILENCE)
    padded = net.embed((torch.cat([silence, frames], dim=-1) - SILENCE) / 4)[..., 12:]
    assert torch.allclose(net.embed((frames - SILENCE) / 4), padded, atol=1e-6)


def test_overlapping_windows_of_a_wave_add_up_to_it():
    for shape in SHAPES:
        config = VocoderConfig(**shape)
        wave = torch.randn(1, 20 * HOP)
        padded = torch.nn.functional.pad(wave, (config.edge_samples, config.edge_samples))
        windows = padded.unfold(1, config.fft_samples, config.hop_samples)
        windows = (windows * torch.hann_window(config.fft_samples).square()).transpose(1, 2)
        assert torch.allclose(overlap_add(windows, config), wave, atol=1e-5)


def test_gradients_reach_every_parameter():
    net = VocoderNet(VocoderConfig(16, 32, 2))
    net(mel(12)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in net.parameters())


def test_nothing_gives_nothing():
    vocoder = small_vocoder(**WIDE)
    assert vocoder(torch.zeros(2, 80, 0)).shape == (2, 0)
    assert vocoder.stream().flush().shape == (1, 0)
    short = vocoder.stream()
    assert short.push(mel(3)).shape == (1, 0)
    assert short.flush().shape == (1, 3 * HOP)


def test_reduced_precision_around_it_leaves_the_samples_float32():
    vocoder, frames = small_vocoder(), mel(20)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = vocoder(frames)
    assert rounded.dtype == torch.float32
    assert (rounded - vocoder(frames)).abs().mean() < 0.1 * vocoder(frames).abs().mean()


# --- folders ------------------------------------------------------------------------------------------------


def test_a_folder_holds_it_to_the_bit(tmp_path):
    vocoder = small_vocoder(**SHORT_WINDOWS)
    vocoder.save_pretrained(tmp_path)
    again = TrainedVocoder.from_pretrained(tmp_path)
    assert again.net.config == vocoder.net.config
    assert again.trained_on == {"steps": 7}
    assert torch.equal(again(mel(20)), vocoder(mel(20)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["mel"].update(hop_samples=256),
            "takes mels with hop_samples 256, the decoder makes them",
        ),
        (lambda c: c.pop("mel"), "takes mels with sample_rate_hz None"),
        (lambda c: c["vocoder"].update(channels=32), "is not of the sizes in"),
        (lambda c: c["vocoder"].update(depth=3), "has 'depth'"),
        (lambda c: c["vocoder"].update(kernel=4), "vocoder.kernel is 4, expected an odd number"),
        (lambda c: c["vocoder"].update(hop_samples="x"), "vocoder.hop_samples is 'x'"),
        (lambda c: c.pop("vocoder"), "holds no vocoder"),
    ],
)
def test_a_folder_that_does_not_fit_is_one_line(tmp_path, change, message):
    small_vocoder().save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    change(content)
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message) as error:
        TrainedVocoder.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_one_line(tmp_path):
    vocoder = small_vocoder()
    vocoder.net.head.bias[3] = math.nan
    vocoder.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"head\.bias are not finite"):
        TrainedVocoder.from_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no file"):
        TrainedVocoder.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lookahead_frames": 10}, "at most 9: 3 for each convolution"),
        ({"hop_samples": 200}, "expected 480, 240, 160 or 120"),
        ({"fft_samples": 600}, "at least twice the hop"),
        ({"fft_samples": 960, "hop_samples": 240}, "expected learnt, or mel with 1920 and 480"),
        ({"channels": 0}, "channels is 0, expected 1 or more"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        small_vocoder(**change)


def test_weights_under_other_names_are_refused():
    net = small_vocoder().net
    tensors = net.state_dict() | {"extra": torch.zeros(1)}
    from dataclasses import asdict

    from lit_moss.codec.trained_vocoder import MEL

    with pytest.raises(UserError, match="extra is not of the sizes"):
        net_of(asdict(net.config), MEL, tensors, "a", "b")
