"""Discriminators and losses of a vocoder's training: closed forms, and whose gradients go where."""

import pytest
import torch
from vocoders import DISCRIMINATORS

from lit_moss.codec.discriminators import DiscriminatorConfig, Discriminators, adversarial_losses
from lit_moss.codec.spectral_losses import stft_loss
from lit_moss.errors import UserError


@pytest.fixture
def judges():
    torch.manual_seed(0)
    return Discriminators(DiscriminatorConfig(**DISCRIMINATORS))


def waves(seed, size=2, samples=4800):
    return torch.randn(size, samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def test_equal_waves_are_at_no_distance_and_others_are():
    wave = waves(0)
    assert float(stft_loss(wave, wave)) == 0
    assert float(stft_loss(-wave, wave)) < 1e-4  # magnitudes do not know the sign
    assert float(stft_loss(wave, waves(1))) > 0.3


def test_a_wave_of_twice_the_level_is_at_a_known_distance():
    # |S - 2 S| / |S| = 1 and |log 2 S - log S| = log 2 wherever S is above the floor.
    wave = waves(0)
    assert float(stft_loss(2 * wave, wave)) == pytest.approx(1 + 0.6931, abs=2e-3)


def test_silence_gives_finite_gradients():
    made = torch.zeros(1, 4800, requires_grad=True)
    stft_loss(made, torch.zeros(1, 4800)).backward()
    assert bool(made.grad.isfinite().all())


def test_hinge_losses_are_their_closed_form(judges):
    made, truth = waves(0), waves(1)
    with torch.no_grad():
        found = adversarial_losses(judges, made, truth)
    with torch.no_grad():
        real, fake = judges(truth), judges(made)
    parts = zip(real, fake, strict=True)
    against = [(1 - r.score).clamp(min=0).mean() + (1 + f.score).clamp(min=0).mean() for r, f in parts]
    distance = [
        sum((a - b).abs().mean() for a, b in zip(r.features, f.features, strict=True)) / len(r.features)
        for r, f in zip(real, fake, strict=True)
    ]
    assert float(found.discriminator) == pytest.approx(float(sum(against) / 2), rel=1e-5)
    assert float(found.features) == pytest.approx(float(sum(distance) / 2), rel=1e-5)
    assert float(found.adversarial) == pytest.approx(
        float(sum((1 - f.score).clamp(min=0).mean() for f in fake) / 2), rel=1e-5
    )
    assert float(adversarial_losses(judges, truth, truth).features) == pytest.approx(0, abs=1e-7)


def test_gradients_of_each_side_stay_on_it(judges):
    made, truth = waves(0).requires_grad_(), waves(1)
    losses = adversarial_losses(judges, made, truth)
    (losses.adversarial + losses.features).backward(retain_graph=True)
    assert bool(made.grad.any())
    assert all(p.grad is None for p in judges.parameters())
    made.grad = None
    losses.discriminator.backward()
    assert made.grad is None
    assert all(p.grad is not None and bool(p.grad.any()) for p in judges.parameters())


@pytest.mark.slow
def test_they_learn_to_tell_noise_from_a_tone(judges):
    tone = 0.1 * torch.sin(torch.arange(4800) * 0.05)[None].repeat(2, 1)
    optimizer = torch.optim.Adam(judges.parameters(), 3e-3)
    first = None
    for step in range(30):
        loss = adversarial_losses(judges, waves(step), tone).discriminator
        first = float(loss) if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.7 * first


def test_sizes_are_checked():
    with pytest.raises(UserError, match="a period or a window"):
        DiscriminatorConfig(periods=[], windows=[])
