"""Discriminators for training a vocoder, and their losses.

    PeriodDiscriminator       folds the wave by a period, convolves along time: HiFi-GAN, arXiv:2010.05646
    ResolutionDiscriminator   STFT magnitudes, convolves along both axes: UnivNet, arXiv:2106.07889

Hinge losses as in Vocos (arXiv:2306.00814, section 3.3): D minimises max(0, 1 - D(x)) + max(0, 1 + D(y)); the
vocoder minimises max(0, 1 - D(y)) and the L1 distance of all feature maps of x and y (x recording, y wave of
the vocoder).

Shapes: B batch, L samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as nnf
from torch.nn.utils.parametrizations import weight_norm

from lit_moss.codec.spectral_losses import magnitudes
from lit_moss.errors import UserError


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Sizes of the discriminators. Defaults: those of HiFi-GAN and UnivNet.

    Args:
        periods: Periods in samples by which the wave is folded; empty: no period discriminators.
        period_channels: Output channels of the layers of each period discriminator.
        windows: STFT windows in samples, with a hop of a quarter window; empty: no resolution discriminators.
        window_channels: Output channels of the layers of each resolution discriminator.
    """

    periods: list[int] = field(default_factory=lambda: [2, 3, 5, 7, 11])
    period_channels: list[int] = field(default_factory=lambda: [32, 128, 512, 1024, 1024])
    windows: list[int] = field(default_factory=lambda: [2048, 1024, 512])
    window_channels: int = 32

    def __post_init__(self) -> None:
        sizes = [*self.periods, *self.period_channels, *self.windows, self.window_channels]
        hops = [window // 4 for window in self.windows]
        if any(size < 1 for size in [*sizes, *hops]) or not (self.periods or self.windows):
            raise UserError(
                f"model.discriminators has periods {self.periods}, period_channels {self.period_channels}, "
                f"windows {self.windows} and window_channels {self.window_channels}, expected sizes of 1 or "
                "more, windows of 4 or more, and a period or a window"
            )


@dataclass
class Judgement:
    """Output of one discriminator for a wave.

    Args:
        score: Scores of positions in the wave, (B, …); above 0 means a recording.
        features: Outputs of its layers.
    """

    score: Tensor
    features: list[Tensor]


class PeriodDiscriminator(nn.Module):
    """Discriminates the wave by samples that are `period` apart.

    Args:
        period: Period in samples.
        channels: Output channels of each layer.
    """

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        strides = [3] * (len(channels) - 1) + [1]
        widths = [1, *channels]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, b, (5, 1), (stride, 1), (2, 0)))
            for a, b, stride in zip(widths, channels, strides, strict=False)
        )
        self.last = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), 1, (1, 0)))

    def forward(self, wave_BL: Tensor) -> Judgement:
        """Wave (B, L) -> scores and features."""
        wave_BL = nnf.pad(wave_BL, (0, -wave_BL.shape[1] % self.period))
        return _judged(self, wave_BL.unflatten(1, (-1, self.period))[:, None])


class ResolutionDiscriminator(nn.Module):
    """Discriminates the wave by the magnitudes of an STFT.

    Args:
        window: Window in samples.
        channels: Output channels of each layer.
    """

    def __init__(self, window: int, channels: int) -> None:
        super().__init__()
        self.window = window
        shapes = [(1, (3, 9), (1, 1)), *[(channels, (3, 9), (1, 2))] * 3, (channels, (3, 3), (1, 1))]
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(a, channels, kernel, stride, (kernel[0] // 2, kernel[1] // 2)))
            for a, kernel, stride in shapes
        )
        self.last = weight_norm(nn.Conv2d(channels, 1, (3, 3), 1, (1, 1)))

    def forward(self, wave_BL: Tensor) -> Judgement:
        """Wave (B, L) -> scores and features."""
        with torch.autocast(wave_BL.device.type, enabled=False):
            spectrum_BKF = magnitudes(wave_BL.float(), self.window, self.window // 4).transpose(1, 2)
        return _judged(self, spectrum_BKF[:, None])


def _judged(discriminator: "PeriodDiscriminator | ResolutionDiscriminator", x: Tensor) -> Judgement:
    features = []
    for layer in discriminator.layers:
        x = nnf.leaky_relu(layer(x), 0.1)
        features.append(x)
    return Judgement(discriminator.last(x).flatten(1), features)


class Discriminators(nn.Module):
    """All discriminators of a configuration.

    Args:
        config: Sizes.
    """

    def __init__(self, config: DiscriminatorConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or DiscriminatorConfig()
        self.parts = nn.ModuleList(
            [
                *(PeriodDiscriminator(period, config.period_channels) for period in config.periods),
                *(ResolutionDiscriminator(window, config.window_channels) for window in config.windows),
            ]
        )

    def forward(self, wave_BL: Tensor) -> list[Judgement]:
        """Wave (B, L) -> scores and features of each discriminator."""
        return [part(wave_BL) for part in self.parts]

    def frozen(self, wave_BL: Tensor) -> list[Judgement]:
        """As `forward`, but gradients flow only to the wave, not to the discriminators' weights."""
        own = {name: p.detach() for name, p in self.named_parameters()}
        return functional_call(self, own, (wave_BL,))


@dataclass
class AdversarialLosses:
    """Losses of one step, each averaged over the discriminators; ().

    Args:
        discriminator: Hinge loss of the discriminators.
        adversarial: Hinge loss of the generator (the vocoder).
        features: Feature matching loss: L1 distance of the feature maps.
    """

    discriminator: Tensor
    adversarial: Tensor
    features: Tensor


def adversarial_losses(
    discriminators: Discriminators, generated_BL: Tensor, real_BL: Tensor
) -> AdversarialLosses:
    """Losses of both sides, computed in one graph with the weights before the step.

    Gradients of `discriminator` do not reach the vocoder; gradients of the other losses do not reach the
    discriminators.
    """
    count = len(generated_BL)
    real_and_fake = discriminators(torch.cat([real_BL, generated_BL.detach()]))
    fake_frozen = discriminators.frozen(generated_BL)
    discriminator_loss, generator_loss, feature_loss = (generated_BL.new_zeros(()) for _ in range(3))
    for both, fake in zip(real_and_fake, fake_frozen, strict=True):
        real_score, fake_score = both.score.float().split(count)
        discriminator_loss = (
            discriminator_loss + nnf.relu(1 - real_score).mean() + nnf.relu(1 + fake_score).mean()
        )
        generator_loss = generator_loss + nnf.relu(1 - fake.score.float()).mean()
        maps = zip(both.features, fake.features, strict=True)
        gaps = [(own.float() - real[:count].detach().float()).abs().mean() for real, own in maps]
        feature_loss = feature_loss + sum(gaps, generated_BL.new_zeros(())) / len(gaps)
    parts = len(fake_frozen)
    return AdversarialLosses(discriminator_loss / parts, generator_loss / parts, feature_loss / parts)
