"""HiFT and Griffin-Lim: sizes, reach, phases, streams against the whole, seams."""

import json
import math

import pytest
import torch
from decoders import small_hift

from lit_moss.audio.features import decoder_mel
from lit_moss.codec.hift import HiFT, load_hift
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder, linear_magnitude
from lit_moss.errors import UserError
from lit_moss.evaluate.judges import seam_ratio

HOP = 480


@pytest.fixture(scope="module")
def hift():
    return small_hift().requires_grad_(False)


def mel(frames, seed=0):
    return torch.randn(1, 80, frames, generator=torch.Generator().manual_seed(seed))


def streamed(vocoder, frames, pieces):
    stream = vocoder.stream()
    return torch.cat([*(stream.push(piece) for piece in frames.split(pieces, dim=-1)), stream.flush()], dim=1)


# --- HiFT ---------------------------------------------------------------------------------------------------


def test_names_shapes_and_order_at_official_size_are_the_released_files(contract):
    tensors = json.loads((contract / "codec/manifest_hift_official.json").read_text())["tensors"]
    own = HiFT().state_dict()
    assert [(k, list(v.shape)) for k, v in own.items()] == [(t["name"], t["shape"]) for t in tensors]


def test_a_sample_depends_on_18_frames_on_either_side(hift):
    double, frames = small_hift().double().requires_grad_(False), mel(90).double()
    changed = frames.clone()
    changed[:, :, 45] += 1
    voiced_alike = (double.f0_predictor(frames) - double.f0_predictor(changed)).abs()[0]
    assert voiced_alike[:40].max() == 0
    assert voiced_alike[51:].max() == 0
    pitch = torch.full((1, 90), 150.0).double()
    source = double.source(pitch).wave_B1L
    difference = (double.decode(frames, source) - double.decode(changed, source)).abs()[0].view(90, HOP)
    reached = (difference.amax(dim=1) > 0).nonzero()
    assert int(reached.min()) >= 45 - HiFT.REACH_FRAMES
    assert int(reached.max()) <= 45 + HiFT.REACH_FRAMES


@pytest.mark.slow
def test_pitch_becomes_a_sine_of_that_pitch_without_drift(hift):
    with torch.no_grad():
        seconds = 120
        source = hift.source(torch.full((1, 50 * seconds), 200.0))
    cycles = source.cycles_BTK[0, -1, 0]
    assert abs(float(cycles) - 200.0 * seconds) < 1e-2
    # 2 s apart, whole numbers of cycles: float32 sums would be off by a radian here.
    wave = source.wave_B1L[0, 0].double()
    late = torch.arange(HOP * 50 * (seconds - 1), HOP * 50 * (seconds - 1) + 240)
    assert torch.allclose(wave[late], wave[late - 48_000], atol=5e-3)


@pytest.mark.nightly
@pytest.mark.parametrize("pieces", [1, 7, 20, 100])
def test_with_its_whole_look_ahead_a_stream_is_the_whole(hift, pieces):
    vocoder, frames = HiFTVocoder(hift, lookahead_frames=HiFT.REACH_FRAMES), mel(100)
    whole, found = vocoder(frames), streamed(vocoder, frames, pieces)
    assert found.shape == whole.shape == (1, 100 * HOP)
    assert torch.allclose(found, whole, atol=5e-4)  # the phase amplifies rounding


def test_with_twelve_frames_it_is_so_within_2e_3(hift):
    vocoder, frames = HiFTVocoder(hift), mel(100)
    assert torch.allclose(streamed(vocoder, frames, 20), vocoder(frames), atol=2e-3)


def test_both_spellings_of_weight_norm_load(hift, tmp_path):
    tensors = hift.state_dict()
    old = {
        k.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): v
        for k, v in tensors.items()
    }
    assert old.keys() != tensors.keys()
    for name, content in (("old.pt", old), ("new.pt", tensors)):
        torch.save(content, tmp_path / name)
        loaded = load_hift(tmp_path / name).state_dict()
        assert all(torch.equal(loaded[k], v) for k, v in tensors.items())
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(UserError, match="no HiFT"):
        load_hift(tmp_path / "other.pt")


# --- Griffin-Lim --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spoken(speech):
    from lit_moss.audio.features import resample

    return resample(speech[0][:32_000], 16_000, 24_000)[None]


def test_magnitudes_have_the_mel_they_were_made_from(spoken):
    from lit_moss.audio.features import mel_filters

    target = decoder_mel(spoken)
    magnitude = linear_magnitude(target)
    assert (magnitude >= 0).all()
    filters = mel_filters(80, 1920, 24_000, torch.float32, torch.device("cpu"))
    again = (filters.T @ magnitude).clamp(min=1e-5).log()
    assert (again - target).abs().mean() < 0.05


def test_griffin_lim_gives_a_wave_of_that_mel(spoken):
    target = decoder_mel(spoken)
    made = GriffinLim()(target)
    assert made.shape == (1, target.shape[-1] * HOP)
    loud = target > -5
    # Random phases alone are 0.5 off.
    assert (decoder_mel(made) - target)[loud].abs().mean() < 0.2
    assert torch.equal(made, GriffinLim()(target))


def test_a_stream_of_it_has_the_length_and_the_mel(spoken):
    target = decoder_mel(spoken)
    made = streamed(GriffinLim(), target, 20)
    assert made.shape == (1, target.shape[-1] * HOP)
    loud = target > -5
    assert (decoder_mel(made) - target)[loud].abs().mean() < 0.25


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["griffin-lim", "hift"])
def test_no_clicks_at_the_seams(kind, hift, speech):
    from lit_moss.audio.features import resample

    vocoder = GriffinLim() if kind == "griffin-lim" else HiFTVocoder(hift)
    wave = resample(torch.cat(speech[:4]), 16_000, 24_000)[None]
    frames = decoder_mel(wave)
    made = streamed(vocoder, frames, 20)
    seams = [n * HOP for n in range(20 - vocoder.lookahead_frames, frames.shape[-1] - 20, 20)]
    assert len(seams) > 10
    assert seam_ratio(made[0], seams) < 1.1
    clicked = made[0].clone()
    for seam in seams:  # a step at each, of 2 % of full scale; random HiFT is noise as loud as can be
        clicked[seam : seam + 240] += 0.02 if kind == "griffin-lim" else 2.0
    assert seam_ratio(clicked, seams) > 2 * seam_ratio(made[0], seams)
    assert math.isfinite(float(made.abs().max()))


@pytest.mark.parametrize("vocoder", [GriffinLim(5), HiFTVocoder(small_hift())], ids=["griffin-lim", "hift"])
def test_nothing_gives_nothing(vocoder):
    assert vocoder(torch.zeros(2, 80, 0)).shape == (2, 0)
    assert vocoder.stream().flush().shape == (1, 0)
    short = vocoder.stream()
    assert short.push(mel(3)).shape == (1, 0)
    assert short.flush().shape == (1, 3 * HOP)
