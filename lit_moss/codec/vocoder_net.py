"""A trained vocoder: mel -> magnitudes and phases -> waveform, after Vocos (arXiv:2306.00814, section 3).

    mel (B, 80, T) -> convolution -> ConvNeXt blocks, all at 50 frames/s -> r spectra a frame -> overlap-add

There is no upsampling: the inverse STFT does it, so that a second of speech costs as much as 50 positions of
a small network. Convolutions see the past, and `lookahead_frames` ahead in all. A sample of mel frame i
depends on no frame after i + lookahead_frames + overlap_frames, where `overlap_frames` are those whose
windows reach it (2 with the default window of 80 ms). What a stream gives is therefore the whole's samples,
to float rounding, that many frames late. Nothing is random.

Shapes: B batch, T mel frames (50 a second), M mel bands, C channels, K spectra (r T), F frequencies,
L samples.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

from lit_moss.audio import rates
from lit_moss.codec.settings import check_settings
from lit_moss.codec.vocoder import inverse_filters
from lit_moss.errors import UserError

HOP = rates.DECODER_HOP_SAMPLES
# Log-mel of silence, the floor of `decoder_mel`: inputs are shifted by it, so that the zeros before a
# convolution are silence.
SILENCE = math.log(1e-5)
_SCALE = 4.0
# Largest log magnitude: a sine of full scale has 0.25 * 1920 = 480.
_LOUDEST = math.log(1000.0)
# Smallest magnitude that the pseudo-inverse gives; it is negative in places, and 0 above 8 kHz.
_QUIETEST = 1e-2


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a `VocoderNet`.

    Args:
        channels: Width of the network.
        inner: Width inside a block.
        blocks: Number of ConvNeXt blocks.
        kernel: Frames under each convolution, an odd number.
        lookahead_frames: Mel frames (20 ms) after a frame that its spectra depend on; 0 is causal. The first
            convolution takes up to (kernel - 1) / 2 of them, then each block as many.
        fft_samples: Window of the inverse STFT, even; at least twice `hop_samples`.
        hop_samples: Samples from one spectrum to the next; 480, or a part of it (240, 160, 120).
        magnitudes: `mel`: the network multiplies magnitudes that have the given mel (by the pseudo-inverse of
            its filters; needs the mel's own window and hop); `learnt`: it makes them all.
    """

    channels: int = 256
    inner: int = 768
    blocks: int = 6
    kernel: int = 7
    lookahead_frames: int = 2
    fft_samples: int = rates.DECODER_FFT_SAMPLES
    hop_samples: int = HOP
    magnitudes: str = "mel"

    def __post_init__(self) -> None:
        check_settings(self, {"lookahead_frames": 0})
        if self.kernel % 2 == 0:
            raise UserError(f"kernel is {self.kernel}, expected an odd number of frames")
        if HOP % self.hop_samples:
            raise UserError(f"hop_samples is {self.hop_samples}, expected 480, 240, 160 or 120")
        if self.fft_samples % 2 or self.fft_samples < 2 * self.hop_samples or self.hop_samples % 2:
            raise UserError(
                f"fft_samples is {self.fft_samples} and hop_samples {self.hop_samples}, expected even "
                "numbers, the window at least twice the hop"
            )
        own = (self.fft_samples, self.hop_samples) == (rates.DECODER_FFT_SAMPLES, HOP)
        if self.magnitudes not in ("mel", "learnt") or (self.magnitudes == "mel" and not own):
            raise UserError(
                f"magnitudes is {self.magnitudes!r} with fft_samples {self.fft_samples} and hop_samples "
                f"{self.hop_samples}, expected learnt, or mel with 1920 and 480"
            )
        if self.lookahead_frames > self.kernel // 2 * (1 + self.blocks):
            raise UserError(
                f"lookahead_frames is {self.lookahead_frames}, expected at most "
                f"{self.kernel // 2 * (1 + self.blocks)}: {self.kernel // 2} for each convolution"
            )

    @property
    def spectra_per_frame(self) -> int:
        """Spectra of a mel frame, r."""
        return HOP // self.hop_samples

    @property
    def edge_samples(self) -> int:
        """Samples by which the first window begins before the first sample."""
        return (self.fft_samples - self.hop_samples) // 2

    @property
    def overlap_frames(self) -> int:
        """Mel frames after a sample's own whose windows reach it."""
        return (HOP - 1 + self.edge_samples) // HOP

    def lookaheads(self) -> list[int]:
        """Frames ahead of each convolution: the first one, then those of the blocks."""
        left, most, each = self.lookahead_frames, self.kernel // 2, []
        for _ in range(1 + self.blocks):
            each.append(min(left, most))
            left -= each[-1]
        return each


class StreamState:
    """What a stream keeps of each convolution and residual: the last frames of their inputs."""

    def __init__(self) -> None:
        self.held: dict[nn.Module, Tensor] = {}


class BoundedConv(nn.Module):
    """A convolution over time that sees `ahead` frames after its own and the others of its kernel before.

    Args:
        channels_in: Channels of the input.
        channels_out: Channels of the output.
        kernel: Frames.
        ahead: Frames after its own.
        groups: As of `nn.Conv1d`.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, ahead: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, groups=groups)
        self.behind, self.ahead = kernel - 1 - ahead, ahead

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T), silence outside."""
        return self.conv(nnf.pad(x_BCT, (self.behind, self.ahead)))

    def step(self, x_BCT: Tensor, state: StreamState, last: bool) -> Tensor:
        """The next frames of a stream -> frames that are known now; all that are left if it is the `last`."""
        held = state.held.get(self)
        if held is None:
            held = x_BCT.new_zeros(*x_BCT.shape[:2], self.behind)
        x_BCT = torch.cat([held, nnf.pad(x_BCT, (0, self.ahead if last else 0))], dim=-1)
        kernel = self.behind + self.ahead + 1
        state.held[self] = x_BCT[..., max(0, x_BCT.shape[-1] - kernel + 1) :]
        if x_BCT.shape[-1] < kernel:
            return x_BCT.new_zeros(len(x_BCT), self.conv.out_channels, 0)
        return self.conv(x_BCT)


class ConvNeXtBlock(nn.Module):
    """Depth-wise convolution, norm, two linear layers, a learnt scale for each channel, residual.

    Args:
        config: Sizes.
        ahead: Frames that the convolution sees ahead.
    """

    def __init__(self, config: VocoderConfig, ahead: int) -> None:
        super().__init__()
        width = config.channels
        self.mix = BoundedConv(width, width, config.kernel, ahead, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, config.inner), nn.Linear(config.inner, width)
        self.scale = nn.Parameter(torch.full((width,), 1.0 / config.blocks))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> the same."""
        return x_BCT + self._change(self.mix(x_BCT))

    def step(self, x_BCT: Tensor, state: StreamState, last: bool) -> Tensor:
        """As `BoundedConv.step`; the residual waits for the convolution."""
        mixed_BCT = self.mix.step(x_BCT, state, last)
        if self in state.held:
            x_BCT = torch.cat([state.held[self], x_BCT], dim=-1)
        known = mixed_BCT.shape[-1]
        state.held[self] = x_BCT[..., known:]
        return x_BCT[..., :known] + self._change(mixed_BCT)

    def _change(self, mixed_BCT: Tensor) -> Tensor:
        x_BTC = self.norm(mixed_BCT.transpose(1, 2))
        return (self.scale * self.down(nnf.gelu(self.up(x_BTC)))).transpose(1, 2)


class VocoderNet(nn.Module):
    """Mel -> waveform; see the head of this file.

    Args:
        config: Sizes.
    """

    def __init__(self, config: VocoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or VocoderConfig()
        first, *others = config.lookaheads()
        self.embed = BoundedConv(rates.DECODER_MEL_BINS, config.channels, config.kernel, first)
        self.embed_norm = nn.LayerNorm(config.channels, eps=1e-6)
        self.blocks = nn.ModuleList(ConvNeXtBlock(config, ahead) for ahead in others)
        self.norm = nn.LayerNorm(config.channels, eps=1e-6)
        self.head = nn.Linear(config.channels, config.spectra_per_frame * (config.fft_samples + 2))
        for module in self.modules():
            if isinstance(module, nn.Conv1d | nn.Linear) and module.bias is not None:
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, mel_BMT: Tensor) -> Tensor:
        """Natural-log mel (B, 80, T) -> samples (B, 480 T), float32."""
        x_BCT = self._normed(self.embed((mel_BMT - SILENCE) / _SCALE))
        for block in self.blocks:
            x_BCT = block(x_BCT)
        return overlap_add(self._windows(x_BCT, mel_BMT), self.config)

    def windows_step(self, mel_1MT: Tensor, state: StreamState, last: bool) -> Tensor:
        """The next mel frames of a stream -> windows of samples that are known now, (1, fft, K)."""
        x_BCT = self._normed(self.embed.step((mel_1MT - SILENCE) / _SCALE, state, last))
        for block in self.blocks:
            assert isinstance(block, ConvNeXtBlock)
            x_BCT = block.step(x_BCT, state, last)
        known = x_BCT.shape[-1]
        if self in state.held:
            mel_1MT = torch.cat([state.held[self], mel_1MT], dim=-1)
        state.held[self] = mel_1MT[..., known:]
        if not known:
            return x_BCT.new_zeros(len(x_BCT), self.config.fft_samples, 0)
        return self._windows(x_BCT, mel_1MT[..., :known])

    def _normed(self, x_BCT: Tensor) -> Tensor:
        return self.embed_norm(x_BCT.transpose(1, 2)).transpose(1, 2)

    def _windows(self, x_BCT: Tensor, mel_BMT: Tensor) -> Tensor:
        """Hidden frames, their mel -> windowed pieces of the wave, (B, fft, K): irfft of exp(m) e^(i p)."""
        x_BTH = self.head(self.norm(x_BCT.transpose(1, 2)))
        with torch.autocast(x_BTH.device.type, enabled=False):
            x_BKH = x_BTH.float().unflatten(-1, (self.config.spectra_per_frame, -1)).flatten(1, 2)
            log_BKF, phase_BKF = x_BKH.chunk(2, dim=-1)
            if self.config.magnitudes == "mel":
                inverse_FM = inverse_filters(torch.float32, mel_BMT.device)
                given_BKF = mel_BMT.float().exp().transpose(1, 2) @ inverse_FM.T
                log_BKF = log_BKF + given_BKF.clamp(min=_QUIETEST).log()
            magnitude_BKF = log_BKF.clamp(max=_LOUDEST).exp()
            # Not `torch.polar`: it asks the device whether all magnitudes are finite.
            spectrum_BKF = torch.complex(magnitude_BKF * phase_BKF.cos(), magnitude_BKF * phase_BKF.sin())
            pieces_BKL = torch.fft.irfft(spectrum_BKF, self.config.fft_samples)
            return (pieces_BKL * window(self.config, pieces_BKL)).transpose(1, 2)


def window(config: VocoderConfig, like: Tensor) -> Tensor:
    """The window of a spectrum, (fft,), on the device of `like`."""
    return torch.hann_window(config.fft_samples, device=like.device)


def overlap_add(windows_BLK: Tensor, config: VocoderConfig) -> Tensor:
    """Pieces (B, fft, K), windowed once -> samples (B, hop K): least squares, over the windows' squares."""
    edge, spectra = config.edge_samples, windows_BLK.shape[-1]
    if not spectra:
        return windows_BLK.new_zeros(len(windows_BLK), 0)
    total_BL = added(windows_BLK, config)
    squares_L = window(config, windows_BLK).square()
    weight_BL = added(squares_L[None, :, None].expand(1, -1, spectra), config)
    inside = slice(edge, edge + config.hop_samples * spectra)
    return total_BL[:, inside] / weight_BL[:, inside]


def added(windows_BLK: Tensor, config: VocoderConfig) -> Tensor:
    """Pieces at their places: (B, fft, K) -> (B, hop (K - 1) + fft)."""
    length = config.hop_samples * (windows_BLK.shape[-1] - 1) + config.fft_samples
    size, stride = (1, config.fft_samples), (1, config.hop_samples)
    return nnf.fold(windows_BLK, (1, length), size, stride=stride)[:, 0, 0]
