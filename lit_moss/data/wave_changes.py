"""Random changes of a wave that a tokenizer should be invariant to: level, noise, DC offset, room acoustics.

Each change has its own generator, seeded by (seed, batch number, position in the batch): enabling one does
not alter the draws of the others, and a sample does not depend on which process makes it.

Shapes: T samples at 16 kHz.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.errors import UserError

Colour = Literal["white", "pink"]


@dataclass(frozen=True)
class WaveChanges:
    """Which changes are made, how often, and how strong they are. Default: none.

    A changed wave whose peak exceeds full scale is scaled down instead of being clipped.

    Args:
        reverb_share: Fraction of items with room reverberation, 0 to 1.
        reverb_rt60_sec: Minimum and maximum time in which the reverberation decays by 60 dB, in seconds.
        reverb_direct_db: Minimum and maximum level of the direct sound relative to the reverberation, in dB.
        rooms: Manifests of impulse responses to use instead of decaying noise.
        noise_share: Fraction of items with noise, 0 to 1.
        noise_snr_db: Minimum and maximum signal-to-noise ratio, in dB.
        noise_colours: Kinds of noise to draw from: white, pink.
        noises: Manifests of noise recordings to use instead; short recordings are repeated.
        gain_share: Fraction of items with a changed level, 0 to 1.
        gain_db: Minimum and maximum change of the level, in dB.
        offset_share: Fraction of items with a DC offset, 0 to 1.
        offset: Maximum DC offset, of either sign, as a fraction of full scale.
    """

    reverb_share: float = 0.0
    reverb_rt60_sec: list[float] = field(default_factory=lambda: [0.1, 0.6])
    reverb_direct_db: list[float] = field(default_factory=lambda: [0.0, 12.0])
    rooms: list[str] = field(default_factory=list)
    noise_share: float = 0.0
    noise_snr_db: list[float] = field(default_factory=lambda: [10.0, 40.0])
    noise_colours: list[Colour] = field(default_factory=lambda: ["white", "pink"])
    noises: list[str] = field(default_factory=list)
    gain_share: float = 0.0
    gain_db: list[float] = field(default_factory=lambda: [-24.0, 6.0])
    offset_share: float = 0.0
    offset: float = 0.02

    def __post_init__(self) -> None:
        for name in ("reverb_share", "noise_share", "gain_share", "offset_share", "offset"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"data.wave_changes.{name} is {getattr(self, name)}, expected 0 to 1")
        for name in ("reverb_rt60_sec", "reverb_direct_db", "noise_snr_db", "gain_db"):
            pair, least = getattr(self, name), 0.01 if name == "reverb_rt60_sec" else -100.0
            most = 5.0 if name == "reverb_rt60_sec" else 100.0
            if len(pair) != 2 or not least <= pair[0] <= pair[1] <= most:
                raise UserError(
                    f"data.wave_changes.{name} is {pair}, expected [least, greatest] from {least:g} to "
                    f"{most:g}"
                )
        for name, share in (("noises", "noise_share"), ("rooms", "reverb_share")):
            if getattr(self, name) and not getattr(self, share):
                raise UserError(
                    f"data.wave_changes.{name} is {getattr(self, name)} and {share} 0: no item would have "
                    f"any; give {share}, for example 0.5, or leave {name} out"
                )
        if not self.noise_colours or not set(self.noise_colours) <= set(get_args(Colour)):
            raise UserError(
                f"data.wave_changes.noise_colours is {self.noise_colours}, expected some of "
                f"{', '.join(get_args(Colour))}"
            )

    @property
    def on(self) -> bool:
        """Whether any change is enabled."""
        return any(getattr(self, f.name) for f in fields(self) if f.name.endswith("_share"))


class ChangedWaves:
    """Changes waves according to the options.

    Args:
        changes: The options.
        seed: Seed of all draws.
        noises: Recordings listed in `changes.noises`, with their durations.
        rooms: Impulse responses listed in `changes.rooms`.
    """

    def __init__(
        self,
        changes: WaveChanges,
        seed: int,
        noises: Sequence[Utterance] = (),
        rooms: Sequence[Utterance] = (),
    ) -> None:
        self._changes, self._seed, self._noises, self._rooms = changes, seed, noises, rooms

    def __call__(self, wave_T: Tensor, n: int, place: int) -> Tensor:
        """The changed wave (T,) of item `place` of batch `n`; the same object if nothing is drawn.

        Raises:
            UnreadableAudio: if a noise recording or an impulse response cannot be read.
        """
        if not len(wave_T):
            return wave_T
        changes, before_T = self._changes, wave_T
        steps = (
            (changes.reverb_share, self._in_a_room),
            (changes.noise_share, self._with_noise),
            (changes.gain_share, self._at_another_level),
            (changes.offset_share, self._with_an_offset),
        )
        for number, (share, change) in enumerate(steps):
            rng = np.random.default_rng([self._seed, n, place, number])
            if rng.random() < share:
                wave_T = change(wave_T, rng)
        return wave_T if wave_T is before_T else within_full_scale(wave_T)

    def _in_a_room(self, wave_T: Tensor, rng: np.random.Generator) -> Tensor:
        if self._rooms:
            u = self._rooms[int(rng.integers(len(self._rooms)))]
            response_T = io.read(
                u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec, channel=u.channel
            )
            return reverberated(wave_T, from_direct_sound(response_T))
        rt60_sec = _between(rng, self._changes.reverb_rt60_sec)
        direct_db = _between(rng, self._changes.reverb_direct_db)
        return reverberated(wave_T, room_response(rng, rt60_sec, direct_db))

    def _with_noise(self, wave_T: Tensor, rng: np.random.Generator) -> Tensor:
        snr_db = _between(rng, self._changes.noise_snr_db)
        if self._noises:
            noise_T = _part_of(self._noises[int(rng.integers(len(self._noises)))], len(wave_T), rng)
        else:
            colours = self._changes.noise_colours
            noise_T = coloured_noise(rng, len(wave_T), colours[int(rng.integers(len(colours)))])
        return with_noise(wave_T, noise_T, snr_db)

    def _at_another_level(self, wave_T: Tensor, rng: np.random.Generator) -> Tensor:
        return wave_T * 10 ** (_between(rng, self._changes.gain_db) / 20)

    def _with_an_offset(self, wave_T: Tensor, rng: np.random.Generator) -> Tensor:
        return wave_T + rng.uniform(-self._changes.offset, self._changes.offset)


def recordings_of(manifests: Sequence[str], option: str) -> list[Utterance]:
    """The recordings of the manifests, with their durations.

    Raises:
        UserError: if a manifest or the header of a recording cannot be read.
    """
    recordings = []
    for manifest in manifests:
        for u in read_manifest(manifest):
            try:
                seconds = io.span_sec(u.audio, io.info(u.audio, probe=False), u.offset_sec, u.duration_sec)
            except io.UnreadableAudio as error:
                raise UserError(f"data.wave_changes.{option}: {error}: take it out of {manifest}") from error
            recordings.append(replace(u, duration_sec=seconds))
    return recordings


def _part_of(recording: Utterance, samples: int, rng: np.random.Generator) -> Tensor:
    """A random part of a recording, (samples,); shorter recordings are repeated."""
    wanted_sec, held_sec = samples / rates.TOKENIZER_RATE_HZ, recording.duration_sec or 0.0
    start_sec = rng.uniform(0.0, max(0.0, held_sec - wanted_sec))
    noise_T = io.read(
        recording.audio,
        rates.TOKENIZER_RATE_HZ,
        recording.offset_sec + start_sec,
        min(wanted_sec, held_sec),
        channel=recording.channel,
    )
    return noise_T.repeat(-(-samples // max(1, len(noise_T))))[:samples]


def with_noise(wave_T: Tensor, noise_T: Tensor, snr_db: float) -> Tensor:
    """wave + g noise with 10 log10(mean wave^2 / mean (g noise)^2) = snr_db; silence is returned
    unchanged."""
    speech, noise = float(wave_T.square().mean()), float(noise_T.square().mean())
    if not speech or not noise:
        return wave_T
    return wave_T + noise_T * (speech / noise / 10 ** (snr_db / 10)) ** 0.5


def coloured_noise(rng: np.random.Generator, samples: int, colour: Colour) -> Tensor:
    """Gaussian noise (samples,): white has equal power at all frequencies, pink falls by 3 dB per octave."""
    noise = rng.standard_normal(samples)
    if colour == "pink":
        spectrum = np.fft.rfft(noise)
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        spectrum[:1] = 0.0
        noise = np.fft.irfft(spectrum, samples)
    return torch.from_numpy(noise).float()


def room_response(rng: np.random.Generator, rt60_sec: float, direct_db: float) -> Tensor:
    """Impulse response of a synthetic room: 1, then noise that decays as 10^(-3 t / rt60), 60 dB in rt60.

    Args:
        rng: Random number generator.
        rt60_sec: Decay time by 60 dB, in seconds; also the length of the response.
        direct_db: Energy of the first sample relative to that of the rest, in dB.
    """
    t_sec = np.arange(1, max(2, round(rt60_sec * rates.TOKENIZER_RATE_HZ))) / rates.TOKENIZER_RATE_HZ
    tail = rng.standard_normal(len(t_sec)) * 10 ** (-3 * t_sec / rt60_sec)
    tail *= (10 ** (-direct_db / 10) / np.square(tail).sum()) ** 0.5
    return torch.from_numpy(np.concatenate([[1.0], tail])).float()


def from_direct_sound(response_T: Tensor) -> Tensor:
    """A measured response starting at its largest sample, which is scaled to 1: the wave is not delayed."""
    first = int(response_T.abs().argmax()) if len(response_T) else 0
    response_T = response_T[first:]
    return response_T / response_T[0] if len(response_T) and response_T[0] else torch.ones(1)


def reverberated(wave_T: Tensor, response_T: Tensor) -> Tensor:
    """Convolves the wave with an impulse response, cut to (T,), and restores the level of the wave."""
    size = len(wave_T) + len(response_T) - 1
    spectrum = torch.fft.rfft(wave_T, size) * torch.fft.rfft(response_T, size)
    wet_T = torch.fft.irfft(spectrum, size)[: len(wave_T)]
    before, after = float(wave_T.square().mean()), float(wet_T.square().mean())
    return wet_T * (before / after) ** 0.5 if after else wave_T


def within_full_scale(wave_T: Tensor) -> Tensor:
    """Scales the wave down if its peak exceeds 1."""
    peak = float(wave_T.abs().max()) if len(wave_T) else 0.0
    return wave_T / peak if peak > 1.0 else wave_T


def _between(rng: np.random.Generator, bounds: Sequence[float]) -> float:
    return float(rng.uniform(bounds[0], bounds[1]))
