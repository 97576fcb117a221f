"""Changes of waves: levels, ratios and decays as asked, draws by (seed, batch, place), what is refused."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import Utterance, read_manifest, write_manifest
from lit_moss.data import SpeechDataModule
from lit_moss.data.wave_changes import (
    ChangedWaves,
    WaveChanges,
    coloured_noise,
    from_direct_sound,
    reverberated,
    room_response,
    with_noise,
    within_full_scale,
)
from lit_moss.errors import UserError

RATE_HZ = rates.TOKENIZER_RATE_HZ


def tone(seconds=1.0, peak=0.3, hz=300):
    t = torch.arange(int(seconds * RATE_HZ)) / RATE_HZ
    return peak * torch.sin(2 * math.pi * hz * t)


def db(power):
    return 10 * math.log10(float(power))


def changed(wave, n=0, place=0, seed=1, **changes):
    return ChangedWaves(WaveChanges(**changes), seed)(wave, n, place)


# --- closed forms -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gain_db", [-20.0, -3.0, 6.0])
def test_the_level_changes_by_the_gain(gain_db):
    found = changed(tone(), gain_share=1.0, gain_db=[gain_db, gain_db])
    assert torch.allclose(found, tone() * 10 ** (gain_db / 20))


def test_nothing_is_clipped():
    found = changed(tone(peak=0.9), gain_share=1.0, gain_db=[20.0, 20.0])
    assert float(found.abs().max()) == pytest.approx(1.0)
    assert torch.allclose(found / found.abs().max(), tone(peak=0.9) / tone(peak=0.9).abs().max(), atol=1e-6)
    loud = 1.3 * torch.ones(5)
    assert torch.equal(within_full_scale(loud), torch.ones(5))
    assert changed(loud, gain_share=0.0) is loud  # unchanged items are left as they are


@pytest.mark.parametrize("colour", ["white", "pink"])
@pytest.mark.parametrize("snr_db", [-5.0, 10.0, 30.0])
def test_noise_has_the_ratio_that_was_asked_for(colour, snr_db):
    wave = tone(peak=0.1)
    found = changed(wave, noise_share=1.0, noise_snr_db=[snr_db, snr_db], noise_colours=[colour])
    assert db(wave.square().mean() / (found - wave).square().mean()) == pytest.approx(snr_db, abs=0.01)


def test_silence_gets_no_noise_and_noise_of_silence_changes_nothing():
    silent, noise = torch.zeros(100), torch.randn(100)
    assert torch.equal(with_noise(silent, noise, 10.0), silent)
    assert torch.equal(with_noise(noise, silent, 10.0), noise)


def test_pink_noise_loses_3_db_per_octave_and_white_none():
    for colour, expected in (("white", 0.0), ("pink", -3.01)):
        noise = coloured_noise(np.random.default_rng(0), 1 << 18, colour)
        power = torch.fft.rfft(noise).abs().square()
        octaves = [float(power[1 << k : 2 << k].mean()) for k in range(8, 16)]
        slopes = [db(b / a) for a, b in pairwise(octaves)]
        assert np.mean(slopes) == pytest.approx(expected, abs=0.3)


def test_the_offset_is_the_mean_and_of_either_sign():
    found = [float((changed(tone(), n, offset_share=1.0, offset=0.05) - tone()).mean()) for n in range(200)]
    assert max(map(abs, found)) <= 0.05
    assert min(found) < -0.04
    assert max(found) > 0.04


@pytest.mark.parametrize(("rt60_sec", "direct_db"), [(0.2, 0.0), (0.8, 6.0)])
def test_a_room_decays_by_60_db_in_its_time_behind_the_direct_sound(rt60_sec, direct_db):
    response = room_response(np.random.default_rng(0), rt60_sec, direct_db).double()
    assert len(response) == round(rt60_sec * RATE_HZ)
    assert response[0] == 1.0
    assert db(1.0 / response[1:].square().sum()) == pytest.approx(direct_db, abs=0.01)
    # Power of the first and the middle twentieth: half the time is 30 dB.
    part = len(response) // 20
    start, middle = response[1 : 1 + part], response[len(response) // 2 : len(response) // 2 + part]
    assert db(middle.square().mean() / start.square().mean()) == pytest.approx(-30, abs=1.5)


def test_reverberation_is_the_convolution_at_the_same_level_and_length():
    wave, response = torch.randn(400), torch.randn(90)
    expected = torch.from_numpy(np.convolve(wave.numpy(), response.numpy())[:400])
    found = reverberated(wave, response)
    assert len(found) == 400
    assert float(found.square().mean()) == pytest.approx(float(wave.square().mean()), rel=1e-5)
    assert torch.allclose(found / found.norm(), expected / expected.norm(), atol=1e-5)
    assert torch.allclose(reverberated(wave, torch.ones(1)), wave, atol=1e-5)


def test_a_measured_response_begins_with_its_direct_sound():
    assert torch.equal(from_direct_sound(torch.tensor([0.0, 0.1, -2.0, 1.0])), torch.tensor([1.0, -0.5]))
    assert torch.equal(from_direct_sound(torch.zeros(4)), torch.ones(1))


# --- draws --------------------------------------------------------------------------------------------------

ALL = {"reverb_share": 0.5, "noise_share": 0.5, "gain_share": 0.5, "offset_share": 0.5}


def test_draws_follow_from_seed_batch_and_place():
    for key in ({"n": 3}, {"place": 2}, {"seed": 9}):
        pairs = [
            (changed(tone(), **({"n": k} | ALL)), changed(tone(), **({"n": k} | key | ALL)))
            for k in (0, 1, 2)
        ]
        assert not all(torch.equal(a, b) for a, b in pairs)
    for n in range(6):
        assert torch.equal(changed(tone(), n, 1, **ALL), changed(tone(), n, 1, **ALL))


def test_one_change_leaves_the_draws_of_the_others():
    for n in range(8):
        alone = changed(tone(), n, gain_share=0.5)
        with_offset = changed(tone(), n, gain_share=0.5, offset_share=1.0, offset=0.01)
        assert torch.allclose(with_offset - with_offset.mean(), alone - alone.mean(), atol=1e-5)


def test_shares_are_kept_and_off_is_the_same_wave():
    wave = tone(0.05)
    touched = sum(changed(wave, n, gain_share=0.3) is not wave for n in range(1000))
    assert 250 < touched < 350
    assert changed(wave) is wave
    assert not WaveChanges().on


# --- in the data module -------------------------------------------------------------------------------------


@pytest.fixture
def made(corpus, tmp_path):
    def make(**options):
        return SpeechDataModule(
            train=[str(corpus / "train.jsonl")], batch_sec=12, max_sec=10, freq_masks=0, **options
        )

    return make


def first(module, n=3):
    module.setup("fit")
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(n)]


def test_batches_do_not_depend_on_workers_or_resume_and_wait_for_their_first_batch(made):
    changes = WaveChanges(**ALL)
    direct = first(made(workers=0, wave_changes=changes), 4)
    plain = first(made(workers=0), 4)
    late = first(made(workers=0, wave_changes=changes, augment_from_batch=2), 4)
    resumed = made(workers=2, wave_changes=changes)
    resumed.next_batch = 2
    for a, b in zip(direct[2:], first(resumed, 2), strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.wave_BT, b.wave_BT)
    for n in range(4):
        assert torch.equal(late[n].wave_BT, (plain if n < 2 else direct)[n].wave_BT)
    assert not all(torch.equal(a.wave_BT, b.wave_BT) for a, b in zip(direct, plain, strict=True))


def test_a_resume_with_other_changes_is_refused_and_none_are_those_of_before(made):
    plain, changed_ = made(), made(wave_changes=WaveChanges(gain_share=0.5))
    assert made(wave_changes=WaveChanges()).fingerprints() == plain.fingerprints()
    plain.setup("fit")
    changed_.setup("fit")
    with pytest.raises(UserError, match="trained on other augmentation"):
        changed_.load_state_dict(plain.state_dict())


@pytest.fixture
def noises(tmp_path):
    (tmp_path / "noise").mkdir()
    for name, seconds in (("long", 20.0), ("short", 0.3)):
        io.write(tmp_path / f"noise/{name}.wav", 0.1 * torch.ones(int(seconds * RATE_HZ)), RATE_HZ)
    lines = [Utterance(tmp_path / f"noise/{name}.wav") for name in ("long", "short")]
    write_manifest(tmp_path / "noise/noises.jsonl", lines)
    return tmp_path / "noise/noises.jsonl"


def test_noise_and_rooms_come_from_recordings(made, noises, tmp_path):
    changes = WaveChanges(noise_share=1.0, noise_snr_db=[10.0, 10.0], noises=[str(noises)])
    plain, noisy = first(made(workers=0)), first(made(workers=0, wave_changes=changes))
    for a, b in zip(plain, noisy, strict=True):
        for before, after, samples in zip(a.wave_BT, b.wave_BT, a.samples_B, strict=True):
            added = (after - before)[:samples]
            assert float(added.std()) < 1e-3 * float(added.mean())  # constant, repeated or not
    response = torch.zeros(800)
    response[[100, 500]] = torch.tensor([0.5, 0.25])
    io.write(tmp_path / "room.wav", response, RATE_HZ)
    write_manifest(tmp_path / "rooms.jsonl", [Utterance(tmp_path / "room.wav")])
    echo = first(
        made(workers=0, wave_changes=WaveChanges(reverb_share=1.0, rooms=[str(tmp_path / "rooms.jsonl")]))
    )
    before, after = plain[0].wave_BT[0], echo[0].wave_BT[0]
    n = int(plain[0].samples_B[0])
    expected = before[:n] + 0.5 * torch.cat([torch.zeros(400), before[: n - 400]])
    cosine = torch.nn.functional.cosine_similarity(after[:n], expected, dim=0)
    assert float(cosine) > 0.9999


def test_noise_that_cannot_be_read_is_one_line_or_skipped_by_name(made, noises):
    changes = WaveChanges(noise_share=1.0, noises=[str(noises)])
    module = made(workers=0, wave_changes=changes)
    module.setup("fit")
    for u in read_manifest(noises):
        u.audio.write_bytes(b"damaged")
    assert "noise/" in next(iter(module.train_dataloader())).skipped[0]
    with pytest.raises(UserError, match=r"data.wave_changes.noises: .*: take it out of"):
        made(wave_changes=changes).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gain_share": 1.5}, "gain_share is 1.5, expected 0 to 1"),
        ({"gain_db": [3.0, -3.0]}, r"gain_db is \[3.0, -3.0\], expected \[least, greatest\]"),
        ({"reverb_rt60_sec": [0.0, 1.0]}, "from 0.01 to 5"),
        ({"noise_snr_db": [1.0]}, "noise_snr_db"),
        ({"noise_colours": ["brown"]}, "expected some of white, pink"),
    ],
)
def test_options_that_cannot_be_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        WaveChanges(**options)
