"""Where a speaker begins and ends, found in the sound as it comes by silero-vad.

    24 kHz ─ resampler ─ 16 kHz ─ silero: a probability for each 32 ms ─ began / ended

The rule is nearly that of silero's own `VADIterator`: speech begins at the first frame of `threshold` or
more. It ends after `silence_ms` without such a frame, counted from the first one below `threshold` - 0.15
(there: from the end of that frame).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import Resampler
from lit_moss.audio.streams import Stream
from lit_moss.errors import UserError

FRAME_16K = 512  # samples of a frame of silero's at 16 kHz: 32 ms
FRAME_SAMPLES = FRAME_16K * rates.DECODER_RATE_HZ // rates.TOKENIZER_RATE_HZ  # the same at 24 kHz
QUIET_BELOW = 0.15  # silero's distance between the thresholds of beginning and end
LEAST_QUIET = 0.01  # and its lowest threshold of the end


@dataclass(frozen=True)
class TurnDetection:
    """When a turn begins and ends.

    Args:
        threshold: Probability of speech at which it begins, 0 to 1.
        silence_ms: Silence that ends it.
    """

    threshold: float = 0.5
    silence_ms: int = 500


@dataclass(frozen=True)
class Border:
    """Beginning or end of speech.

    Args:
        kind: Which.
        sample: Where, in samples at 24 kHz: the first of the frame where speech was found; or the first after
            the silence that ended it.
    """

    kind: Literal["began", "ended"]
    sample: int


class Probabilities(Protocol):
    """A model of voice activity: streams of samples at 16 kHz -> probabilities of frames of `FRAME_16K`."""

    def stream(self, window_frames: int) -> Stream[np.ndarray, np.ndarray]: ...


def load_silero() -> Probabilities:
    """silero-vad; a tenth of a second. One may serve any number of sessions.

    Raises:
        UserError: if the package is missing.
    """
    from lit_moss.prepare.vad_models import Silero

    try:
        return Silero()
    except UserError as error:
        raise UserError(
            "turn detection needs silero-vad and onnxruntime: pip install 'lit-moss[serve]'"
        ) from error


class _SmallBlocks(Resampler):
    """The resampler in blocks of a frame: a frame's samples are known 32 ms after its last."""

    BLOCK_SAMPLES = FRAME_SAMPLES


class TurnDetector:
    """Turns in one session's sound; its state is its own.

    Args:
        model: See `load_silero`.
        options: The rule.
        first_sample: Number of the first sample that it will hear.
    """

    # Samples at 24 kHz between the newest one and the end of the newest frame with a probability: a frame in
    # the making, and the resampler's two blocks.
    MAX_DELAY_SAMPLES = 4 * FRAME_SAMPLES

    def __init__(self, model: Probabilities, options: TurnDetection, first_sample: int = 0) -> None:
        self.options, self._first = options, first_sample
        self._frames = model.stream(window_frames=1)
        self._resampler = _SmallBlocks(rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
        self._next = 0  # number of the next frame
        self.speaking = False
        self._quiet_since: int | None = None  # frame

    def push(self, samples_T: Tensor) -> list[Border]:
        """Next samples at 24 kHz, float32 (T,) -> borders found, in their order. About 0.5 ms for 0.1 s of
        sound."""
        with torch.inference_mode():
            piece = self._resampler.push(samples_T).numpy()
        borders = [self._judge(float(probability)) for probability in self._frames.push(piece)]
        return [border for border in borders if border is not None]

    def end_turn(self) -> None:
        """Takes the speech that is heard now for ended; if it goes on, that is a new beginning."""
        self.speaking, self._quiet_since = False, None

    def _judge(self, probability: float) -> Border | None:
        frame, self._next = self._next, self._next + 1
        if probability >= self.options.threshold:
            self._quiet_since = None
            if not self.speaking:
                self.speaking = True
                return Border("began", self._first + frame * FRAME_SAMPLES)
        elif self.speaking and probability < max(self.options.threshold - QUIET_BELOW, LEAST_QUIET):
            self._quiet_since = frame if self._quiet_since is None else self._quiet_since
            end = (frame + 1) * FRAME_SAMPLES
            silence = end - self._quiet_since * FRAME_SAMPLES
            if 1000 * silence >= self.options.silence_ms * rates.DECODER_RATE_HZ:
                self.end_turn()
                return Border("ended", self._first + end)
        return None
