"""HiFT: mel spectrogram to waveform, from harmonics of a predicted pitch that are shaped by a small network.

    mel -> pitch -> 9 sines + noise -> STFT (4-sample hop) -.
    mel -> conv -> x8 -> x5 -> x3 (each adds the source) ---+-> magnitude and phase -> inverse STFT

HiFTNet (arXiv:2309.09493) as in CosyVoice 2's `hift.pt`; parameter names are that file's.

Shapes: B batch, M mel bands, T mel frames, C channels, L samples (= 480 T), K = 9 harmonics.
"""

import math
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from lit_moss.audio import rates
from lit_moss.codec.state_dicts import LoadReport, load_fitting, read_state_dict
from lit_moss.errors import UserError

HOP = rates.DECODER_HOP_SAMPLES
HARMONICS = 9
SINE, NOISE, VOICED_HZ = 0.1, 0.003, 10.0
CYCLE = 2**32  # one cycle of the phase, in integers; at 480 CYCLE a frame int64 overflows after a day
FFT, FFT_HOP = 16, 4
UP_RATES, UP_KERNELS = (8, 5, 3), (16, 11, 7)
KERNELS, DILATIONS, SOURCE_KERNELS = (3, 7, 11), (1, 3, 5), (7, 7, 11)


@dataclass(frozen=True)
class HiFTConfig:
    """Sizes of the vocoder; its rates and kernels are determined by the 24 kHz mel.

    Args:
        channels: Number of channels of the first stage; halved in each of the three stages.
        pitch_channels: Number of channels of the pitch predictor.
    """

    channels: int = 512
    pitch_channels: int = 512


class Snake(nn.Module):
    """x + sin^2(a x) / (a + 1e-9), with one a per channel (arXiv:2006.08195)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.ones(channels))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        a = self.alpha[None, :, None]
        return x_BCT + torch.sin(x_BCT * a).square() / (a + 1e-9)


class ResBlock(nn.Module):
    """Three residual pairs of convolutions; the first of each pair is dilated by 1, 3, 5."""

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, dilation=d, padding=(kernel - 1) * d // 2))
            for d in DILATIONS
        )
        self.convs2 = nn.ModuleList(
            weight_norm(nn.Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2)) for _ in DILATIONS
        )
        self.activations1 = nn.ModuleList(Snake(channels) for _ in DILATIONS)
        self.activations2 = nn.ModuleList(Snake(channels) for _ in DILATIONS)

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        for snake1, conv1, snake2, conv2 in zip(
            self.activations1, self.convs1, self.activations2, self.convs2, strict=True
        ):
            x_BCT = x_BCT + conv2(snake2(conv1(snake1(x_BCT))))
        return x_BCT


class PitchPredictor(nn.Module):
    """Predicts the fundamental frequency in Hz: mel (B, M, T) -> (B, T). Sees five frames on either side."""

    REACH_FRAMES = 5

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [rates.DECODER_MEL_BINS, *[channels] * 5]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [weight_norm(nn.Conv1d(before, after, 3, padding=1)), nn.ELU()]
        self.condnet = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, 1)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Mel (B, M, T) -> pitch in Hz (B, T)."""
        return self.classifier(self.condnet(mel_BMT).transpose(1, 2)).squeeze(-1).abs()


class _Source(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l_linear = nn.Linear(HARMONICS, 1)


@dataclass(frozen=True)
class Source:
    """Excitation signal of some frames.

    Args:
        wave_B1L: Samples (B, 1, L).
        phase_BTK: Phase in the middle of each frame, int64 (B, T, K), in units of 2^-32 of a cycle.
    """

    wave_B1L: Tensor
    phase_BTK: Tensor

    @property
    def cycles_BTK(self) -> Tensor:  # noqa: N802 - as the field
        """The phase in cycles, float32."""
        return self.phase_BTK.float() / CYCLE


class HiFT(nn.Module):
    """Mel (B, 80, T) -> waveform (B, 480 T) at 24 kHz."""

    # Number of mel frames on either side that a sample depends on, apart from its phase: 13 of the
    # convolutions, plus the pitch predictor's 5. Found by perturbation, see tests/codec/test_vocoder.py.
    REACH_FRAMES = 18

    def __init__(self, config: HiFTConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or HiFTConfig()
        widths = [config.channels >> i for i in range(4)]
        self.m_source = _Source()
        self.conv_pre = weight_norm(nn.Conv1d(rates.DECODER_MEL_BINS, widths[0], 7, padding=3))
        self.ups = nn.ModuleList(
            weight_norm(nn.ConvTranspose1d(widths[i], widths[i + 1], k, u, padding=(k - u) // 2))
            for i, (u, k) in enumerate(zip(UP_RATES, UP_KERNELS, strict=True))
        )
        shapes = ((30, 15, 7), (6, 3, 1), (1, 1, 0))
        self.source_downs = nn.ModuleList(
            nn.Conv1d(FFT + 2, widths[i + 1], kernel, stride, padding)
            for i, (kernel, stride, padding) in enumerate(shapes)
        )
        self.source_resblocks = nn.ModuleList(
            ResBlock(widths[i + 1], kernel) for i, kernel in enumerate(SOURCE_KERNELS)
        )
        self.resblocks = nn.ModuleList(ResBlock(widths[i + 1], k) for i in range(3) for k in KERNELS)
        self.conv_post = weight_norm(nn.Conv1d(widths[3], FFT + 2, 7, padding=3))
        self.f0_predictor = PitchPredictor(config.pitch_channels)

    def source(
        self, pitch_BT: Tensor, noise_BLK: Tensor | None = None, phase_BK: Tensor | None = None
    ) -> Source:
        """Mixes sines at nine harmonics, where speech is voiced, and noise, where it is not, into one signal.

        The phase of harmonic k grows by frac(k f0 / 24000) cycles per sample, linearly between the middles of
        frames. It is computed in integers, whose sums are exact for any length and any division into chunks:
        in float32 it would be off by a radian after a minute, and some devices lack float64.

        Args:
            pitch_BT: f0 in Hz, (B, T).
            noise_BLK: Standard normal noise (B, 480 T, 9); None: zeros.
            phase_BK: Phase in the middle of the preceding frame (see `Source`), int64 (B, K); None: start of
                the speech.
        """
        harmonics_K = torch.arange(1, HARMONICS + 1, device=pitch_BT.device)
        rate_BTK = (pitch_BT[..., None] * harmonics_K / rates.DECODER_RATE_HZ) % 1
        step_BTK = (rate_BTK * CYCLE).round().long()  # per sample
        phase_BTK = HOP * step_BTK.cumsum(dim=1)
        # A segment runs from the middle of one frame to the middle of the next. At the edges the phase is
        # constant; in a stream the preceding frame is known instead.
        slope_BTK = torch.cat([step_BTK, torch.zeros_like(step_BTK[:, :1])], dim=1)
        if phase_BK is None:
            start_B1K = phase_BTK[:, :1]
            slope_BTK[:, 0] = 0
        else:
            start_B1K = phase_BK[:, None]
            phase_BTK = phase_BTK + start_B1K
        halves_P1 = torch.arange(1, 2 * HOP, 2, device=pitch_BT.device)[:, None]  # in half samples
        segment_BTPK = torch.cat([start_B1K, phase_BTK], dim=1)[:, :, None] + (
            slope_BTK[:, :, None] * halves_P1 // 2
        )
        phase_BLK = segment_BTPK.flatten(1, 2)[:, HOP // 2 : -(HOP // 2)] % CYCLE
        sine_BLK = SINE * torch.sin(2 * math.pi / CYCLE * phase_BLK.to(pitch_BT.dtype))
        voiced_BL1 = (pitch_BT > VOICED_HZ).to(pitch_BT.dtype).repeat_interleave(HOP, dim=1)[..., None]
        signal_BLK = sine_BLK * voiced_BL1
        if noise_BLK is not None:
            signal_BLK = signal_BLK + noise_BLK * (voiced_BL1 * NOISE + (1 - voiced_BL1) * SINE / 3)
        wave_B1L = torch.tanh(self.m_source.l_linear(signal_BLK)).transpose(1, 2)
        return Source(wave_B1L, phase_BTK)

    def decode(self, mel_BMT: Tensor, source_B1L: Tensor) -> Tensor:
        """Mel and excitation -> waveform (B, 480 T)."""
        window = torch.hann_window(FFT, device=mel_BMT.device)
        spectrum = torch.stft(source_B1L[:, 0].float(), FFT, FFT_HOP, FFT, window, return_complex=True)
        source_BCF = torch.cat([spectrum.real, spectrum.imag], dim=1).to(mel_BMT.dtype)
        x = self.conv_pre(mel_BMT)
        for i, up in enumerate(self.ups):
            x = up(F.leaky_relu(x, 0.1))
            if i == len(self.ups) - 1:
                x = torch.cat([x[:, :, 1:2], x], dim=-1)
            x = x + self.source_resblocks[i](self.source_downs[i](source_BCF))
            blocks = [self.resblocks[3 * i + j](x) for j in range(len(KERNELS))]
            x = (blocks[0] + blocks[1] + blocks[2]) / len(KERNELS)
        x = self.conv_post(F.leaky_relu(x, 0.01)).float()
        magnitude = x[:, : FFT // 2 + 1].exp().clamp(max=100.0)
        phase = torch.sin(x[:, FFT // 2 + 1 :])
        spectrum = torch.complex(magnitude * phase.cos(), magnitude * phase.sin())
        wave = torch.istft(spectrum, FFT, FFT_HOP, FFT, window)
        return wave.clamp(-0.99, 0.99)

    def forward(
        self, mel_BMT: Tensor, noise_BLK: Tensor | None = None, source_head_B1L: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Waveform (B, 480 T) and its excitation (B, 1, 480 T).

        Args:
            mel_BMT: Mel (B, M, T).
            noise_BLK: Standard normal noise, see `source`.
            source_head_B1L: Replaces the first samples of the excitation, as in the released streaming
                scheme; or None.
        """
        source_B1L = self.source(self.f0_predictor(mel_BMT), noise_BLK).wave_B1L
        if source_head_B1L is not None:
            source_B1L = torch.cat([source_head_B1L, source_B1L[:, :, source_head_B1L.shape[-1] :]], dim=-1)
        return self.decode(mel_BMT, source_B1L), source_B1L

    def load_official(self, path: str | Path) -> LoadReport:
        """Loads a released `hift.pt`, with weight norm in either naming.

        Raises:
            UserError: if the file is not a plain state dict, or none of its tensors fits.
        """
        return load_fitting(self, read_state_dict(path), str(path))


def load_hift(path: str | Path) -> HiFT:
    """Loads HiFT from a `hift.pt`; sizes are derived from the shapes.

    Raises:
        UserError: if the file is not a complete HiFT.
    """
    tensors = read_state_dict(path)
    try:
        channels = tensors["conv_pre.bias"].shape[0]
        pitch = tensors["f0_predictor.classifier.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is no HiFT vocoder: it holds no tensor {error}") from error
    hift = HiFT(HiFTConfig(channels, pitch))
    report = load_fitting(hift, tensors, str(path))
    if report.kept or report.reshaped:
        raise UserError(f"{path} does not fit its own sizes: {report}")
    return hift
