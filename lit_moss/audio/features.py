"""Features from waveforms: resampling, two kinds of mels, Kaldi filter banks.

Plain torch and torchaudio, any float dtype.
Shapes: B batch, T samples, M mel bins, F frames.
The results match the released codec's feature extractors, see `experiments/contract/check.py`.
"""

import math
from functools import lru_cache

import torch
import torchaudio.compliance.kaldi
import torchaudio.functional as AF
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.precision import full_precision
from lit_moss.audio.streams import ClosedByFlush, run_stream

_ZEROS, _ROLLOFF = 6, 0.99  # zero crossings on either side of the kernel; its edge as a fraction of the band


def resample(wave: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Windowed-sinc resampling (Hann, width 6, roll-off 0.99): (..., T) -> (..., ceil(T * to / from)).

    A long wave is resampled in blocks, see `Resampler`, with the same resulting samples.

    Raises:
        ValueError: if a rate is not a positive whole number of Hz.
    """
    if from_hz == to_hz:
        return wave
    return run_stream(Resampler(from_hz, to_hz), [wave])


class Resampler(ClosedByFlush):
    """`resample` as a `Stream`: resamples recordings of any length with bounded memory.

    The samples equal those of resampling the whole at once, bit for bit (measured for 14 pairs of rates with
    torch 2.11): blocks begin at whole periods of the two rates and include the width of the kernel on both
    sides. torch's convolution sums small inputs (up to 20,480 elements) in another order, so shorter blocks
    are padded.

    Args:
        from_hz: Sample rate of the input in Hz.
        to_hz: Sample rate of the output in Hz.
        block_samples: Number of input samples per block. Default: `BLOCK_SAMPLES`. Use small values for live
            audio: from sample 20,481 on, the output lags the input by two blocks at most. A block is at least
            as long as half of the kernel.
    """

    # 11 s at 48 kHz. A recording shorter than two blocks is resampled at once.
    BLOCK_SAMPLES = 2**19
    # Up to this number of elements torch convolves in another order.
    FEW_SAMPLES = 20_480
    # Weights of torchaudio's kernel: for each sample of a period, a window of a whole period. 22.05 to 16 kHz
    # needs 150,000; 44,101 Hz to 16 kHz needs 700 million (2.8 GB and two minutes), of which all but 36 in
    # each row of 44,135 are zero. Above this limit only the non-zero weights are computed.
    MOST_WEIGHTS = 2**22

    def __init__(self, from_hz: int, to_hz: int, block_samples: int | None = None) -> None:
        if not all(hz > 0 and hz == int(hz) for hz in (from_hz, to_hz)):
            raise ValueError(f"resampling from {from_hz} to {to_hz} Hz, expected whole numbers above 0")
        from_hz, to_hz = int(from_hz), int(to_hz)
        common = math.gcd(from_hz, to_hz)
        # `_out` output samples per `_period` input samples.
        self._period, self._out = from_hz // common, to_hz // common
        self._width = math.ceil(_ZEROS * self._period / (min(self._period, self._out) * _ROLLOFF))
        self._sparse = self._out * (self._period + 2 * self._width) > self.MOST_WEIGHTS
        # Input that the first and last outputs of a block need beyond the block, in whole periods.
        self._around = -(-self._width // self._period) * self._period
        # At least that much: the samples before a block that it needs are kept from the previous block.
        block = max(block_samples or self.BLOCK_SAMPLES, self._around)
        self._block = -(-block // self._period) * self._period
        self._held: Tensor | None = None  # the input from sample `_held_from` on
        self._held_from = self._next = 0  # `_next` is the first sample of the next block

    def push(self, wave: Tensor) -> Tensor:
        """Pushes samples (..., T), any number; returns the resampled samples (..., n) that are complete."""
        self._check_open()
        if self._period == self._out:
            return wave
        held = wave if self._held is None else torch.cat([self._held, wave], dim=-1)
        blocks = []
        many = self._held_from + held.shape[-1] > self.FEW_SAMPLES  # otherwise the whole may be a small input
        while many and self._held_from + held.shape[-1] - self._next >= 2 * self._block:
            begin = self._next - self._held_from
            piece = self._at_once(self._filled(held[..., : begin + self._block + self._around]))
            blocks.append(piece[..., self._outputs_before(begin) : self._outputs_before(begin + self._block)])
            self._next += self._block
            dropped = self._next - self._around - self._held_from
            held, self._held_from = held[..., dropped:], self._held_from + dropped
        self._held = held.clone() if blocks else held  # a view would keep everything pushed in memory
        return torch.cat(blocks, dim=-1) if blocks else wave.new_zeros(*wave.shape[:-1], 0)

    def flush(self) -> Tensor:
        """Ends the recording and returns the remaining samples (..., n)."""
        self._close()
        held, self._held = self._held, None
        if held is None:
            return torch.zeros(0)
        if not self._next:
            return self._at_once(held)
        begin = self._outputs_before(self._next - self._held_from)
        left = self._length(self._held_from + held.shape[-1]) - self._outputs_before(self._next)
        # Zeros after the end, as when resampling the whole; without them torchaudio would round the length.
        padded = torch.nn.functional.pad(held, (0, self._around + self._period))
        return self._at_once(self._filled(padded))[..., begin : begin + left]

    def _filled(self, wave: Tensor) -> Tensor:
        """Zero-pads a wave so that it is convolved like long inputs."""
        return torch.nn.functional.pad(wave, (0, max(0, self.FEW_SAMPLES + 1 - wave.shape[-1])))

    def _outputs_before(self, samples: int) -> int:
        return samples // self._period * self._out

    def _length(self, samples: int) -> int:
        exact = -(-samples * self._out // self._period)
        if self._sparse:
            return exact
        # torchaudio first rounds to float32, which sometimes gives one sample less.
        return min(exact, int(torch.ceil(torch.as_tensor(self._out * samples / self._period))))

    def _at_once(self, wave: Tensor) -> Tensor:
        if not wave.shape[-1]:
            return wave
        if self._sparse:
            return _sparse_resample(wave, self._period, self._out, self._width)
        with full_precision(wave.device):
            return AF.resample(wave, self._period, self._out, lowpass_filter_width=_ZEROS, rolloff=_ROLLOFF)


def _sparse_resample(wave: Tensor, period: int, out: int, width: int) -> Tensor:
    """Resamples with the same kernel without its zeros; within 1e-6 of torchaudio's samples.

    Output n is at input position p = n period / out, and is the sum over inputs i with |i - p| < width of s
    sinc(s (i - p)) cos^2(pi s (i - p) / 12) x_i, where s = 0.99 min(1, out / period).
    """
    length = -(-wave.shape[-1] * out // period)
    scale = min(period, out) * _ROLLOFF / period
    padded = torch.nn.functional.pad(wave, (width, width + 1))
    taps_K = torch.arange(-width, width + 2, device=wave.device)
    pieces = []
    for outputs_N in torch.arange(length, device=wave.device).split(max(1, 2**20 // len(taps_K))):
        position_N, beyond_N = outputs_N * period // out, outputs_N * period % out
        t_NK = (taps_K - beyond_N[:, None].double() / out) * scale
        t_NK = t_NK.clamp(-_ZEROS, _ZEROS)
        weight_NK = scale * torch.sinc(t_NK) * torch.cos(math.pi * t_NK / _ZEROS / 2).square()
        windows_NK = padded[..., position_N[:, None] + taps_K + width]
        pieces.append((windows_NK * weight_NK.to(wave.dtype)).sum(dim=-1))
    return torch.cat(pieces, dim=-1)


@lru_cache(maxsize=16)
def mel_filters(
    bins: int, fft_samples: int, rate_hz: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Triangular filters on the Slaney scale, Slaney-normalised, from 0 to 8000 Hz: (fft/2 + 1, M).

    Computed in float64 in closed form: torchaudio's float32 computation differs by 3e-7 from the released
    filters. On the CPU, because not every device supports float64.
    """
    f_step_hz, knee_hz = 200.0 / 3, 1000.0
    knee_mel, log_step = knee_hz / f_step_hz, math.log(6.4) / 27

    def to_hz(mel: Tensor) -> Tensor:
        return torch.where(mel < knee_mel, mel * f_step_hz, knee_hz * torch.exp(log_step * (mel - knee_mel)))

    top_mel = knee_mel + math.log(8000.0 / knee_hz) / log_step
    edges = to_hz(torch.linspace(0.0, top_mel, bins + 2, dtype=torch.float64, device="cpu"))
    freqs = torch.linspace(0.0, rate_hz / 2, fft_samples // 2 + 1, dtype=torch.float64, device="cpu")
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (freqs[:, None] - lower) / (centre - lower)
    falling = (upper - freqs[:, None]) / (upper - centre)
    filters = torch.minimum(rising, falling).clamp(min=0.0) * (2.0 / (upper - lower))
    return filters.to(device=device, dtype=dtype)


def _power_mel(windows_BFN: Tensor, bins: int) -> Tensor:
    """Mel power of windows of 400 samples at 16 kHz: (B, F, 400) -> (B, M, F)."""
    n_fft = rates.WHISPER_FFT_SAMPLES
    hann = torch.hann_window(n_fft, dtype=windows_BFN.dtype, device=windows_BFN.device)
    power = torch.fft.rfft(windows_BFN * hann).abs().square()
    # No matrix product: BLAS sums in another order for other numbers of frames (AVX-512 without AMX: if not
    # divisible by 4), and a streamed frame would differ from the offline one in its last bit. A triangle
    # spans at most 14 of 201 bins, so this is also cheap: 3 ms for 30 s, 0.1 ms for a chunk.
    mel = power.new_zeros(())
    for bin_M, weight_M in _triangles(bins, n_fft, power.dtype, power.device):
        mel = mel + power.index_select(-1, bin_M) * weight_M
    return mel.transpose(-1, -2)


@lru_cache(maxsize=16)
def _triangles(
    bins: int, n_fft: int, dtype: torch.dtype, device: torch.device
) -> tuple[tuple[Tensor, Tensor], ...]:
    """The k-th bin below each triangle and its weight, for k = 0, 1, ...: pairs of (M,), (M,)."""
    # The widest triangle determines the number of pairs: computed on the CPU, to avoid waiting for a device.
    filters = mel_filters(bins, n_fft, rates.TOKENIZER_RATE_HZ, dtype, torch.device("cpu"))
    under = filters > 0
    steps = torch.arange(int(under.sum(dim=0).max()), device="cpu")[:, None]
    # Beyond the end of a triangle narrower than the widest one, its filter is zero.
    spectrum_bins = (under.int().argmax(dim=0) + steps).clamp(max=n_fft // 2)
    weights = filters.gather(0, spectrum_bins)
    return tuple(zip(spectrum_bins.to(device), weights.to(device), strict=True))


def whisper_log_mel(wave_BT: Tensor, bins: int) -> Tensor:
    """The released tokenizer's log-mel of whole segments, that of Whisper: (B, T) at 16 kHz -> (B, M, T/160).

    T is a multiple of 160. It uses centred windows with reflection padding, and a floor 8 decades below the
    loudest bin OF THE WHOLE SEGMENT. Neither is causal, so this is for offline use only. For streaming use
    `CausalLogMel`.
    """
    n_fft, hop = rates.WHISPER_FFT_SAMPLES, rates.WHISPER_HOP_SAMPLES
    padded = torch.nn.functional.pad(wave_BT[:, None], (n_fft // 2, n_fft // 2), mode="reflect")[:, 0]
    windows = padded.unfold(-1, n_fft, hop)[:, :-1]
    log_mel = _power_mel(windows, bins).clamp(min=1e-10).log10()
    floor = log_mel.amax(dim=(1, 2), keepdim=True) - 8.0
    return (torch.maximum(log_mel, floor) + 4.0) / 4.0


class CausalLogMel:
    """Whisper's log-mel made strictly causal.

    Frame i is known once sample 160 (i + 1) is, whatever comes after. There are two differences to
    `whisper_log_mel`, both required for streaming:
      * window i covers samples [160 i - 240, 160 i + 160) instead of [160 i - 200, 160 i + 200): 2.5 ms
        of lag, with zeros before the start and no reflection at either end;
      * the floor is 8 decades below the loudest bin SO FAR, and never lower than `FIRST_PEAK` - 8.
    An object holds the state of one batch of streams: each call continues where the last one ended, and any
    division into chunks gives the same frames, bit for bit. For offline use, apply a new object to whole
    recordings.
    """

    # log10 power of the loudest mel bin of a speech segment: 1.2 to 2.2 on LJ Speech (435 clips), median 1.8.
    # Starting there keeps leading silence at the level that Whisper was trained on, without amplifying its
    # noise.
    FIRST_PEAK = 1.5
    TAIL = rates.WHISPER_FFT_SAMPLES - rates.WHISPER_HOP_SAMPLES

    def __init__(self, bins: int) -> None:
        self.bins = bins
        self.tail_BT: Tensor | None = None
        self.peak_B1: Tensor | None = None

    def __call__(self, wave_BT: Tensor) -> Tensor:
        """Features of the next samples at 16 kHz, a multiple of 160: (B, T) -> (B, M, T/160)."""
        if self.tail_BT is None or self.peak_B1 is None:
            self.tail_BT = wave_BT.new_zeros(len(wave_BT), self.TAIL)
            self.peak_B1 = wave_BT.new_full((len(wave_BT), 1), self.FIRST_PEAK)
        wave_BT = torch.cat([self.tail_BT, wave_BT], dim=1)
        self.tail_BT = wave_BT[:, -self.TAIL :]
        windows = wave_BT.unfold(-1, rates.WHISPER_FFT_SAMPLES, rates.WHISPER_HOP_SAMPLES)
        log_mel = _power_mel(windows, self.bins).clamp(min=1e-10).log10()
        peaks_BF = torch.maximum(log_mel.amax(dim=1), self.peak_B1).cummax(dim=1).values
        self.peak_B1 = peaks_BF[:, -1:]
        return (torch.maximum(log_mel, peaks_BF[:, None] - 8.0) + 4.0) / 4.0


def decoder_mel(wave_BT: Tensor) -> Tensor:
    """Mel of the flow decoder and vocoder: (B, T) at 24 kHz -> (B, 80, floor(T / 480)), natural log."""
    n_fft, hop = rates.DECODER_FFT_SAMPLES, rates.DECODER_HOP_SAMPLES
    pad = (n_fft - hop) // 2
    padded = torch.nn.functional.pad(wave_BT[:, None], (pad, pad), mode="reflect")[:, 0]
    hann = torch.hann_window(n_fft, dtype=wave_BT.dtype, device=wave_BT.device)
    spectrum = torch.stft(padded, n_fft, hop, window=hann, center=False, return_complex=True)
    magnitude = (spectrum.abs().square() + 1e-9).sqrt()
    filters = mel_filters(
        rates.DECODER_MEL_BINS, n_fft, rates.DECODER_RATE_HZ, magnitude.dtype, magnitude.device
    )
    with full_precision(magnitude.device):
        return (filters.T @ magnitude).clamp(min=1e-5).log()


def kaldi_fbank(wave_T: Tensor, mean_subtract: bool = False) -> Tensor:
    """Kaldi filter banks for speaker vectors: (T,) at 16 kHz in [-1, 1] -> (F, 80).

    Without dither; only complete frames.
    """
    with full_precision(wave_T.device):
        fbank = torchaudio.compliance.kaldi.fbank(
            wave_T[None], num_mel_bins=80, sample_frequency=rates.TOKENIZER_RATE_HZ, dither=0.0
        )
    return fbank - fbank.mean(dim=0, keepdim=True) if mean_subtract else fbank
