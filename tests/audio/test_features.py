"""Features against CONTRACT.md part F: recorded tensors where they are, closed forms everywhere."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lit_moss.audio import features, rates


@pytest.fixture
def golden(contract):
    return load_file(contract / "codec/golden/features/io.safetensors")


def largest(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max())


# --- recorded tensors -----------------------------------------------------------------------------


def test_whisper_log_mel_is_the_recorded_one_f1(golden):
    waves = [golden["w16k_0"], golden["w16k_1"]]
    longest = rates.codes_of_samples(max(map(len, waves))) * 1280
    batch = torch.stack([torch.nn.functional.pad(w, (0, longest - len(w))) for w in waves])
    assert largest(features.whisper_log_mel(batch, 128), golden["whisper_input_features"]) <= 1e-4


def test_decoder_mel_is_the_recorded_one_f2(golden):
    assert largest(features.decoder_mel(golden["w24k"]), golden["mel24k"]) <= 1e-4


def test_resampler_is_the_recorded_one_f1(golden):
    ours = features.resample(golden["w24k"], 24_000, 16_000)
    assert largest(ours, golden["w24k_resampled_to_16k"]) <= 1e-6


def test_kaldi_fbank_is_the_recorded_one_f4(golden):
    """The recording is of one of the waves with 39 frames; it does not say which."""
    waves = [golden["w16k_0"], golden["w16k_1"], golden["w24k_resampled_to_16k"][0]]
    fitting = [w for w in waves if len(features.kaldi_fbank(w)) == len(golden["kaldi_fbank80"])]
    assert min(largest(features.kaldi_fbank(w), golden["kaldi_fbank80"]) for w in fitting) <= 1e-3
    subtracted = golden["kaldi_fbank80_mean_subtracted"]
    assert min(largest(features.kaldi_fbank(w, mean_subtract=True), subtracted) for w in fitting) <= 1e-3


# --- closed forms ---------------------------------------------------------------------------------


def naive_resample(x: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """F.1: output s*n+p = sum_k x[block s, k] (base/o) sinc(pi t) cos^2(pi t/12), t clipped to [-6, 6]."""
    o, n = from_hz // math.gcd(from_hz, to_hz), to_hz // math.gcd(from_hz, to_hz)
    base = 0.99 * min(o, n)
    W = math.ceil(6 * o / base)
    padded = np.concatenate([np.zeros(W), x, np.zeros(W + o)])
    k = np.arange(2 * W + o)
    out = []
    for s in range((len(padded) - len(k)) // o + 1):
        for p in range(n):
            t = np.clip(base * ((k - W) / o - p / n), -6, 6)
            out.append(
                np.sum(padded[s * o : s * o + len(k)] * base / o * np.sinc(t) * np.cos(np.pi * t / 12) ** 2)
            )
    return np.array(out[: math.ceil(len(x) * n / o)])


@pytest.mark.parametrize("from_hz", [8_000, 22_050, 24_000, 44_100, 48_000])
def test_resample_is_the_formula_of_f1(from_hz):
    x = np.random.default_rng(0).normal(0, 0.1, 700)
    ours = features.resample(torch.from_numpy(x), from_hz, 16_000).numpy()
    np.testing.assert_allclose(ours, naive_resample(x, from_hz, 16_000), atol=1e-7)


def test_resample_to_the_same_rate_is_the_input():
    wave = torch.randn(100)
    assert features.resample(wave, 16_000, 16_000) is wave


@pytest.mark.parametrize(
    ("bins", "fft", "rate_hz"), [(80, 400, 16_000), (128, 400, 16_000), (80, 1920, 24_000)]
)
def test_mel_filters_are_triangles_of_area_one_between_0_and_8000_hz(bins, fft, rate_hz):
    filters = features.mel_filters(bins, fft, rate_hz, torch.float64, torch.device("cpu"))
    freqs = torch.linspace(0, rate_hz / 2, fft // 2 + 1, dtype=torch.float64)
    assert filters.shape == (fft // 2 + 1, bins)
    assert (filters >= 0).all()
    assert filters[freqs > 8000].abs().sum() == 0
    peaks = freqs[filters.argmax(dim=0)]
    assert (peaks.diff() >= 0).all()
    # Slaney's norm 2 / (upper - lower) makes each integral over frequency 1; wide triangles sample it well.
    areas = filters.sum(dim=0) * (freqs[1] - freqs[0])
    torch.testing.assert_close(areas[-20:], torch.ones(20, dtype=torch.float64), atol=0.06, rtol=0)


def test_mel_filters_follow_the_slaney_scale_200_3_hz_below_1000_hz():
    """Below 1000 Hz the scale is linear: three mels are 200 Hz, so lower centres are even."""
    filters = features.mel_filters(40, 32_000, 16_000, torch.float64, torch.device("cpu"))
    centres = filters.argmax(dim=0) * 0.5
    top_mel = 15 + 27 * math.log(8) / math.log(6.4)
    expected = torch.arange(1, 12) * top_mel / 41 * 200 / 3
    assert largest(centres[:11].double(), expected.double()) <= 0.5


@pytest.mark.parametrize("tone_hz", [320.0, 1000.0, 3000.0])
def test_a_sine_peaks_in_the_bin_whose_centre_is_nearest(tone_hz):
    wave = 0.5 * torch.sin(2 * math.pi * tone_hz * torch.arange(16_000) / 16_000)
    filters = features.mel_filters(80, 400, 16_000, torch.float32, torch.device("cpu"))
    expected = int(filters[round(tone_hz / 40)].argmax())
    mel = features.whisper_log_mel(wave[None], 80)[0]
    assert (mel[:, 3:-3].argmax(dim=0) == expected).all()
    assert (features.CausalLogMel(80)(wave[None])[0, :, 3:].argmax(dim=0) == expected).all()


def test_whisper_log_mel_of_silence_is_its_lowest_value():
    """log10(1e-10) = -10, the floor is 8 below the maximum, (x + 4) / 4 = -1.5."""
    torch.testing.assert_close(
        features.whisper_log_mel(torch.zeros(1, 1600), 80), torch.full((1, 80, 10), -1.5)
    )


@pytest.mark.parametrize("samples", [4800, 4801, 5279, 5280])
def test_decoder_mel_has_one_frame_per_480_samples(samples):
    assert features.decoder_mel(torch.zeros(1, samples)).shape == (1, 80, samples // 480)


def naive_fbank_frame(x: np.ndarray) -> np.ndarray:
    """F.4 on one frame of 400 samples."""
    x = x - x.mean()
    x = x - 0.97 * np.concatenate([x[:1], x[:-1]])
    n = np.arange(400)
    power = np.abs(np.fft.rfft(x * (0.5 - 0.5 * np.cos(2 * np.pi * n / 399)) ** 0.85, 512)) ** 2
    mel = 1127 * np.log(1 + np.arange(257) * 16_000 / 512 / 700)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), 82)
    out = []
    for low, mid, high in zip(edges, edges[1:], edges[2:], strict=False):
        weights = np.clip(np.minimum((mel - low) / (mid - low), (high - mel) / (high - mid)), 0, None)
        out.append(np.log(max(np.sum(weights * power), 1.1920929e-07)))
    return np.array(out)


def test_kaldi_fbank_is_the_formula_of_f4_on_whole_frames_only():
    x = np.random.default_rng(0).normal(0, 0.1, 400 + 160 + 159)
    ours = features.kaldi_fbank(torch.from_numpy(x).float())
    expected = np.stack([naive_fbank_frame(x[:400]), naive_fbank_frame(x[160:560])])
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-3)


# --- the causal log-mel ---------------------------------------------------------------------------


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 16, 37])
def test_chunks_of_any_number_of_frames_give_the_frames_of_the_whole_to_the_bit(speech, frames):
    wave = speech[0][: len(speech[0]) // 160 * 160][None]
    mel = features.CausalLogMel(80)
    parts = [mel(chunk) for chunk in wave.split(frames * 160, dim=1)]
    assert torch.equal(torch.cat(parts, dim=-1), features.CausalLogMel(80)(wave))


@pytest.mark.parametrize("t", [1, 160, 161, 4000, 7999])
def test_samples_from_t_on_change_no_frame_i_with_160_i_plus_1_up_to_t(t):
    torch.manual_seed(0)
    wave = 0.1 * torch.randn(1, 8000)
    changed = wave.clone()
    changed[:, t:] = torch.randn(1, 8000 - t)
    a, b = features.CausalLogMel(80)(wave), features.CausalLogMel(80)(changed)
    settled = t // 160
    assert torch.equal(a[..., :settled], b[..., :settled])
    assert not torch.equal(a[..., settled], b[..., settled])


def test_the_floor_is_8_decades_below_the_running_peak():
    """Loud noise, then silence: frames of silence lie at (peak - 8 + 4) / 4, whatever is to come louder."""
    torch.manual_seed(0)
    wave = torch.cat([10 * torch.randn(3200), torch.zeros(3200), 100 * torch.randn(3200)])[None]
    mel = features.CausalLogMel(80)(wave)[0]
    torch.testing.assert_close(mel[:, 25:40], (mel[:, :25].max() - 2).expand(80, 15))


def test_leading_silence_lies_8_decades_below_the_first_peak():
    mel = features.CausalLogMel(80)(torch.zeros(1, 1600))
    torch.testing.assert_close(mel, torch.full_like(mel, (features.CausalLogMel.FIRST_PEAK - 8 + 4) / 4))


def test_a_loud_stream_leaves_the_others_of_its_batch_untouched():
    torch.manual_seed(0)
    quiet, loud = 0.01 * torch.randn(1, 3200), 10 * torch.randn(1, 3200)
    both = features.CausalLogMel(80)(torch.cat([quiet, loud]))
    torch.testing.assert_close(both[:1], features.CausalLogMel(80)(quiet), atol=1e-6, rtol=0)


@pytest.mark.parametrize("rate_hz", [24_000, 48_000, 44_100, 8_000])
@pytest.mark.parametrize("samples", [900, 20_480, 20_481, 30_011])
def test_live_resampling_equals_the_whole_to_the_bit(rate_hz, samples):
    wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(3))
    resampler = features.Resampler(rate_hz, 16_000, block_samples=rate_hz * 2 // 25)
    pieces, pushed, known = [], 0, 0
    for piece in wave.split(rate_hz // 50):
        pieces.append(resampler.push(piece))
        pushed, known = pushed + len(piece), known + len(pieces[-1])
        if pushed > 20_480:  # two blocks of 80 ms, each up to a period longer
            assert known / 16_000 > pushed / rate_hz - 0.2
    pieces.append(resampler.flush())
    assert torch.equal(torch.cat(pieces), features.resample(wave, rate_hz, 16_000))
