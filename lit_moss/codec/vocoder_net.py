"""A trained vocoder: mel to magnitudes and phases to waveform, after Vocos (arXiv:2306.00814, section 3).

    mel (B, 80, T) -> convolution -> ConvNeXt blocks, all at 50 frames/s -> r spectra a frame -> overlap-add

There is no upsampling: the inverse STFT does it, so that a second of speech costs as much as 50 positions of
a small network. The convolutions see past frames and, in total, `lookahead_frames` future frames. A sample of
mel frame i depends on no frame after i + lookahead_frames + overlap_frames, where `overlap_frames` is the
number of later frames whose windows cover it (2 with the default window of 80 ms). A stream therefore returns
the samples of the whole utterance, up to float rounding, with that delay in frames. Nothing is random.

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
# Log-mel of silence, the floor of `decoder_mel`. It is subtracted from the input, so that the zero padding of
# a convolution means silence.
SILENCE = math.log(1e-5)
_SCALE = 4.0
# Maximum log magnitude: a full-scale sine has 0.25 * 1920 = 480.
_LOUDEST = math.log(1000.0)
# Minimum of the pseudo-inverse's magnitudes, which are partly negative, and 0 above 8 kHz.
_QUIETEST = 1e-2


@dataclass(frozen=True)
class VocoderConfig:
    """Sizes of a `VocoderNet`.

    Args:
        channels: Width of the network.
        inner: Width inside a block.
        blocks: Number of ConvNeXt blocks.
        kernel: Kernel size of each convolution in frames, odd.
        lookahead_frames: Number of mel frames (20 ms) after a frame that its spectra depend on; 0: causal.
            The first convolution uses up to (kernel - 1) / 2 of them, then each block does.
        fft_samples: Window of the inverse STFT in samples, even; at least twice `hop_samples`.
        hop_samples: Samples between spectra: 480 or a divisor of it (240, 160, 120).
        magnitudes: `mel`: the network scales magnitudes that have the given mel (by the pseudo-inverse of its
            filters; requires the window and hop of the mel). `learnt`: the network predicts all magnitudes.
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
        """Number of spectra per mel frame, r."""
        return HOP // self.hop_samples

    @property
    def edge_samples(self) -> int:
        """Number of samples by which the first window begins before the first sample."""
        return (self.fft_samples - self.hop_samples) // 2

    @property
    def overlap_frames(self) -> int:
        """Number of mel frames after a sample's own whose windows cover it."""
        return (HOP - 1 + self.edge_samples) // HOP

    def lookaheads(self) -> list[int]:
        """Look-ahead in frames of each convolution: the first one, then those of the blocks."""
        left, most, each = self.lookahead_frames, self.kernel // 2, []
        for _ in range(1 + self.blocks):
            each.append(min(left, most))
            left -= each[-1]
        return each


class StreamState:
    """State of a stream: the last input frames of each convolution and residual."""

    def __init__(self) -> None:
        self.held: dict[nn.Module, Tensor] = {}


class BoundedConv(nn.Module):
    """A convolution over time that sees `ahead` frames ahead; the rest of its kernel is in the past.

    Args:
        channels_in: Number of input channels.
        channels_out: Number of output channels.
        kernel: Kernel size in frames.
        ahead: Number of frames after the current one.
        groups: Groups, as in `nn.Conv1d`.
    """

    def __init__(self, channels_in: int, channels_out: int, kernel: int, ahead: int, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(channels_in, channels_out, kernel, groups=groups)
        self.behind, self.ahead = kernel - 1 - ahead, ahead

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> (B, C', T), padded with silence."""
        return self.conv(nnf.pad(x_BCT, (self.behind, self.ahead)))

    def step(self, x_BCT: Tensor, state: StreamState, last: bool) -> Tensor:
        """Pushes the next frames of a stream; returns the complete frames, or all at the `last` step."""
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
    """Depth-wise convolution, norm, two linear layers, a learnt scale per channel, and a residual.

    Args:
        config: Sizes.
        ahead: Look-ahead of the convolution in frames.
    """

    def __init__(self, config: VocoderConfig, ahead: int) -> None:
        super().__init__()
        width = config.channels
        self.mix = BoundedConv(width, width, config.kernel, ahead, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, config.inner), nn.Linear(config.inner, width)
        self.scale = nn.Parameter(torch.full((width,), 1.0 / config.blocks))

    def forward(self, x_BCT: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T)."""
        return x_BCT + self._change(self.mix(x_BCT))

    def step(self, x_BCT: Tensor, state: StreamState, last: bool) -> Tensor:
        """As `BoundedConv.step`; the residual is delayed to match the convolution."""
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
    """Mel to waveform; see the module docstring.

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
        """Pushes the next mel frames; returns the complete windows of samples, (1, fft, K)."""
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
        """Hidden frames and their mel -> windows of samples, (B, fft, K): irfft of exp(m) e^(i p)."""
        x_BTH = self.head(self.norm(x_BCT.transpose(1, 2)))
        with torch.autocast(x_BTH.device.type, enabled=False):
            x_BKH = x_BTH.float().unflatten(-1, (self.config.spectra_per_frame, -1)).flatten(1, 2)
            log_BKF, phase_BKF = x_BKH.chunk(2, dim=-1)
            if self.config.magnitudes == "mel":
                inverse_FM = inverse_filters(torch.float32, mel_BMT.device)
                given_BKF = mel_BMT.float().exp().transpose(1, 2) @ inverse_FM.T
                log_BKF = log_BKF + given_BKF.clamp(min=_QUIETEST).log()
            magnitude_BKF = log_BKF.clamp(max=_LOUDEST).exp()
            # Not `torch.polar`, which waits for the device to check that all magnitudes are finite.
            spectrum_BKF = torch.complex(magnitude_BKF * phase_BKF.cos(), magnitude_BKF * phase_BKF.sin())
            pieces_BKL = torch.fft.irfft(spectrum_BKF, self.config.fft_samples)
            return (pieces_BKL * window(self.config, pieces_BKL)).transpose(1, 2)


def window(config: VocoderConfig, like: Tensor) -> Tensor:
    """The window of a spectrum, (fft,), on the device of `like`."""
    return torch.hann_window(config.fft_samples, device=like.device)


def overlap_add(windows_BLK: Tensor, config: VocoderConfig) -> Tensor:
    """Overlap-add, divided by the squared windows (least squares): (B, fft, K) -> (B, hop K)."""
    edge, spectra = config.edge_samples, windows_BLK.shape[-1]
    if not spectra:
        return windows_BLK.new_zeros(len(windows_BLK), 0)
    total_BL = added(windows_BLK, config)
    squares_L = window(config, windows_BLK).square()
    weight_BL = added(squares_L[None, :, None].expand(1, -1, spectra), config)
    inside = slice(edge, edge + config.hop_samples * spectra)
    return total_BL[:, inside] / weight_BL[:, inside]


def added(windows_BLK: Tensor, config: VocoderConfig) -> Tensor:
    """Sum of pieces at their positions: (B, fft, K) -> (B, hop (K - 1) + fft)."""
    length = config.hop_samples * (windows_BLK.shape[-1] - 1) + config.fft_samples
    size, stride = (1, config.fft_samples), (1, config.hop_samples)
    return nnf.fold(windows_BLK, (1, length), size, stride=stride)[:, 0, 0]
