"""Vocoders from mel to waveform with a common interface: HiFT (released weights), Griffin-Lim (no weights).

Vocoders trained with lit_moss are in `lit_moss.codec.trained_vocoder`.

    vocoder(mel (B, 80, T)) -> (B, 480 T)                 whole utterances
    stream = vocoder.stream(); stream.push(mel (1, 80, t)) -> (1, l); stream.flush()

A stream returns 480 samples per frame in total, with a delay of some frames, because a sample depends on
later mel frames (HiFT: 18; Griffin-Lim: those whose windows overlap the sample; a trained vocoder: as
configured).

Shapes: B batch, T frames, L samples, F frequencies (961).
"""

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import mel_filters
from lit_moss.audio.precision import full_precision
from lit_moss.audio.streams import ClosedByFlush, Stream
from lit_moss.codec.hift import CYCLE, HARMONICS, HiFT, PitchPredictor

HOP = rates.DECODER_HOP_SAMPLES
FFT = rates.DECODER_FFT_SAMPLES


class Vocoder(Protocol):
    """Mel (B, 80, T) -> waveform (B, 480 T) at 24 kHz."""

    def __call__(self, mel_BMT: Tensor) -> Tensor: ...

    def stream(self) -> Stream[Tensor, Tensor]:
        """A stream for one utterance: mel (1, 80, t) -> samples (1, l)."""
        ...

    def to(self, device: str | torch.device) -> "Vocoder":
        """Moves the vocoder; returns self."""
        ...


# --- HiFT ---------------------------------------------------------------------------------------------------


class HiFTVocoder:
    """HiFT as a `Vocoder`, with reproducible noise.

    Args:
        hift: The network.
        noise: Whether the excitation contains noise.
        lookahead_frames: Number of frames after a sample that a stream waits for. With 18 its samples equal
            those of the whole utterance, since no sample depends on later frames; with 12 they are within
            2e-3 of it (4e-4 with the recorded random weights) and 0.12 s earlier; the released scheme waits
            for 8 and cross-fades.
    """

    def __init__(self, hift: HiFT, noise: bool = True, lookahead_frames: int = 12) -> None:
        self.hift, self.noise, self.lookahead_frames = hift.eval(), noise, lookahead_frames

    def to(self, device: str | torch.device) -> "HiFTVocoder":
        self.hift.to(device)
        return self

    @torch.no_grad()
    def __call__(self, mel_BMT: Tensor) -> Tensor:
        if not mel_BMT.shape[-1]:
            return mel_BMT.new_zeros(len(mel_BMT), 0)
        draws = self.draws(0, mel_BMT.shape[-1], mel_BMT)
        return self.hift(mel_BMT, None if draws is None else draws.expand(len(mel_BMT), -1, -1))[0]

    def draws(self, first: int, frames: int, like: Tensor) -> Tensor | None:
        """Noise of the excitation from frame `first` on, fixed per frame number: (1, 480 frames, 9)."""
        if not self.noise:
            return None
        noise = [_frame_noise(n % 1500, like.device) for n in range(first, first + frames)]
        return torch.cat(noise)[None].to(like)

    def stream(self) -> Stream[Tensor, Tensor]:
        return HiFTStream(self)


@lru_cache(maxsize=3000)  # for two devices, 26 MB each
def _frame_noise(n: int, device: torch.device) -> Tensor:
    """Drawn on the CPU, so that it is the same on all devices; copied to each device once."""
    generator = torch.Generator("cpu").manual_seed(n)
    drawn = torch.randn(HOP, HARMONICS, generator=generator, device="cpu", dtype=torch.float32)
    return drawn.to(device)


class _WindowStream(ClosedByFlush, ABC):
    """A `Stream` from mel (1, 80, t) to samples (1, l), applying a vocoder to a moving window."""

    _lookahead_frames: int

    def __init__(self) -> None:
        self._mel: Tensor | None = None  # the window

    @torch.no_grad()
    def push(self, mel_1MT: Tensor) -> Tensor:
        """Pushes mel frames, any number; returns new samples (1, l)."""
        self._check_open()
        self._mel = mel_1MT if self._mel is None else torch.cat([self._mel, mel_1MT], dim=-1)
        return self._advance(self._mel, self._lookahead_frames)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance and returns the remaining samples (1, l)."""
        self._close()
        return torch.zeros(1, 0, device="cpu") if self._mel is None else self._advance(self._mel, 0)

    @abstractmethod
    def _advance(self, mel_1MT: Tensor, wait: int) -> Tensor:
        """New samples of the window's frames, without the last `wait` frames and those already returned."""


class HiFTStream(_WindowStream):
    """HiFT on a moving window, with context before and look-ahead after it; the phase is continued."""

    def __init__(self, vocoder: HiFTVocoder) -> None:
        super().__init__()
        self._vocoder, self._hift = vocoder, vocoder.hift
        self._lookahead_frames = vocoder.lookahead_frames
        self._first = 0
        self._done = 0  # number of frames whose samples were returned
        self._phase: dict[int, Tensor] = {}  # phase in the middle of some frames

    def _advance(self, mel_1MT: Tensor, wait: int) -> Tensor:
        mel = mel_1MT
        until = self._first + mel.shape[-1] - wait
        if until <= self._done:
            return mel.new_zeros(1, 0)
        reach, pitch_reach = HiFT.REACH_FRAMES, PitchPredictor.REACH_FRAMES
        start = max(0, self._done - reach)  # first frame of the excitation
        skip = start - self._first
        pitch = self._hift.f0_predictor(mel)[:, skip:]
        frames = pitch.shape[1]
        source = self._hift.source(pitch, self._vocoder.draws(start, frames, mel), self._phase.get(start - 1))
        wave = self._hift.decode(mel[:, :, skip:], source.wave_B1L)
        new = wave[:, (self._done - start) * HOP : (until - start) * HOP]
        self._done = until
        # The next window begins `reach` frames before the next sample; that of the pitch some frames earlier.
        start_next = max(0, until - reach)
        if start_next:
            self._phase = {start_next - 1: source.phase_BTK[:, start_next - 1 - start] % CYCLE}
        first_next = max(0, start_next - pitch_reach)
        self._mel, self._first = mel[:, :, first_next - self._first :], first_next
        return new


# --- Griffin-Lim --------------------------------------------------------------------------------------------


class GriffinLim:
    """Estimates phases by fast Griffin-Lim (Perraudin et al. 2013): intelligible speech without any weights.

    Args:
        iterations: Number of iterations per utterance; in a stream, per push.
        momentum: Momentum of the fast algorithm; 0 is the plain one.
        lookahead_frames: Number of frames a stream waits for: the windows of four frames overlap a sample.
    """

    CONTEXT_FRAMES = 8

    def __init__(self, iterations: int = 60, momentum: float = 0.99, lookahead_frames: int = 8) -> None:
        self.iterations, self.momentum, self.lookahead_frames = iterations, momentum, lookahead_frames

    def to(self, device: str | torch.device) -> "GriffinLim":
        return self

    @torch.no_grad()
    def __call__(self, mel_BMT: Tensor) -> Tensor:
        if not mel_BMT.shape[-1]:
            return mel_BMT.new_zeros(len(mel_BMT), 0)
        magnitude_BFT = linear_magnitude(mel_BMT.float())
        wave = self.phases(magnitude_BFT, _random_start(magnitude_BFT, 0))
        return wave.clamp(-0.99, 0.99)

    def phases(self, magnitude_BFT: Tensor, start_BL: Tensor, known_BL: Tensor | None = None) -> Tensor:
        """Waveform (B, 480 T) whose spectrum has these magnitudes, computed iteratively from `start_BL`.

        `known_BL` holds initial samples that are not changed.
        """
        previous = torch.zeros_like(magnitude_BFT, dtype=torch.complex64)
        wave_BL = start_BL
        for _ in range(self.iterations):
            if known_BL is not None:
                wave_BL = torch.cat([known_BL, wave_BL[:, known_BL.shape[1] :]], dim=1)
            rebuilt = _stft(wave_BL)
            angles = rebuilt - self.momentum / (1 + self.momentum) * previous
            previous = rebuilt
            wave_BL = _istft(magnitude_BFT * angles / (angles.abs() + 1e-16))
        return wave_BL

    def stream(self) -> Stream[Tensor, Tensor]:
        return GriffinLimStream(self)


class GriffinLimStream(_WindowStream):
    """Griffin-Lim on a moving window that begins with samples already returned, which are not changed.

    Samples that were held back are estimated again together with the new frames, starting from their previous
    phases; over the first two of their frames the new samples are cross-faded with the old ones.
    """

    def __init__(self, vocoder: GriffinLim) -> None:
        super().__init__()  # the window: context, held-back and new frames
        self._vocoder, self._lookahead_frames = vocoder, vocoder.lookahead_frames
        self._known = torch.zeros(1, 0, device="cpu")  # samples of the context
        self._held = torch.zeros(1, 0, device="cpu")  # estimate for the held-back frames
        self._done = 0

    def _advance(self, mel_1MT: Tensor, wait: int) -> Tensor:
        mel = mel_1MT
        known, held = self._known.to(mel), self._held.to(mel)
        context = known.shape[1] // HOP
        until = mel.shape[-1] - wait
        if until <= context:
            return mel.new_zeros(1, 0)
        magnitude = linear_magnitude(mel.float())
        start = torch.cat([known, held], dim=1)
        fresh = _random_start(magnitude[:, :, start.shape[1] // HOP :], self._done)
        wave = self._vocoder.phases(magnitude, torch.cat([start, fresh], dim=1), known)
        new = wave[:, known.shape[1] :].clamp(-0.99, 0.99)
        fade = min(2 * HOP, held.shape[1])
        if fade:
            rise = torch.hann_window(2 * fade, device=mel.device)[:fade]
            new = torch.cat([new[:, :fade] * rise + held[:, :fade] * (1 - rise), new[:, fade:]], dim=1)
        count = (until - context) * HOP
        returned, self._held = new[:, :count], new[:, count:]
        past = torch.cat([known, returned], dim=1)
        keep = min(self._vocoder.CONTEXT_FRAMES, past.shape[1] // HOP)
        self._known = past[:, past.shape[1] - keep * HOP :]
        self._mel = mel[:, :, until - keep :]
        self._done += until - context
        return returned


def linear_magnitude(mel_BMT: Tensor, updates: int = 50) -> Tensor:
    """Magnitudes of a 1920-point transform that have this log-mel: (B, F, T), zero above 8 kHz.

    Non-negative least squares by multiplicative updates (Lee and Seung 2001), starting from the
    pseudo-inverse.
    """
    filters_FM = mel_filters(
        rates.DECODER_MEL_BINS, FFT, rates.DECODER_RATE_HZ, mel_BMT.dtype, mel_BMT.device
    )
    target_BMT = mel_BMT.exp()
    with full_precision(mel_BMT.device):
        magnitude = (inverse_filters(mel_BMT.dtype, mel_BMT.device) @ target_BMT).clamp(min=1e-8)
        wanted = filters_FM @ target_BMT
        for _ in range(updates):
            magnitude = magnitude * wanted / (filters_FM @ (filters_FM.T @ magnitude) + 1e-10)
    return magnitude


@lru_cache(maxsize=4)
def inverse_filters(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Pseudo-inverse of the mel filters, from mel to linear magnitudes: (F, M)."""
    # On the CPU: not every device supports float64 or pseudo-inverses.
    cpu = torch.device("cpu")
    filters = mel_filters(rates.DECODER_MEL_BINS, FFT, rates.DECODER_RATE_HZ, torch.float64, cpu)
    return torch.linalg.pinv(filters.T).to(device=device, dtype=dtype)


def _random_start(magnitude_BFT: Tensor, first: int) -> Tensor:
    """Samples with these magnitudes and random phases determined by the frame number: (B, 480 T)."""
    if not magnitude_BFT.shape[-1]:
        return magnitude_BFT.new_zeros(len(magnitude_BFT), 0)
    frames = range(first, first + magnitude_BFT.shape[-1])
    angles = torch.stack([_frame_angles(n % 1500, magnitude_BFT.device) for n in frames], dim=-1)
    return _istft(torch.polar(magnitude_BFT, angles.to(magnitude_BFT).expand_as(magnitude_BFT).contiguous()))


@lru_cache(maxsize=3000)  # for two devices, 6 MB each
def _frame_angles(n: int, device: torch.device) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(n)
    drawn = torch.rand(FFT // 2 + 1, generator=generator, device="cpu", dtype=torch.float32)
    return (2 * torch.pi * drawn).to(device)


def _stft(wave_BL: Tensor) -> Tensor:
    """Frames as for the mel: frame i covers samples [480 i - 720, 480 i + 1200), zeros outside."""
    pad = (FFT - HOP) // 2
    padded = torch.nn.functional.pad(wave_BL, (pad, pad))
    window = torch.hann_window(FFT, device=wave_BL.device)
    return torch.stft(padded, FFT, HOP, window=window, center=False, return_complex=True)


def _istft(spectrum_BFT: Tensor) -> Tensor:
    """Inverse of `_stft` by overlap-add and least squares: (B, F, T) -> (B, 480 T)."""
    pad, frames = (FFT - HOP) // 2, spectrum_BFT.shape[-1]
    window = torch.hann_window(FFT, device=spectrum_BFT.device)
    pieces_BTL = torch.fft.irfft(spectrum_BFT.transpose(1, 2), FFT) * window
    length = HOP * frames + 2 * pad

    def overlap(x_BLT: Tensor) -> Tensor:
        return torch.nn.functional.fold(x_BLT, (1, length), (1, FFT), stride=(1, HOP))[:, 0, 0]

    total = overlap(pieces_BTL.transpose(1, 2))
    weight = overlap(window.square()[None, :, None].expand(1, -1, frames))
    return (total / weight.clamp(min=1e-8))[:, pad : pad + HOP * frames]
