"""Finds where a speaker starts and stops in incoming audio, using silero-vad.

    24 kHz ─ resampler ─ 16 kHz ─ silero: a probability per 32 ms ─ began / ended

The rule is almost that of silero's own `VADIterator`: speech begins at the first frame with at least
`threshold`. It ends after `silence_ms` without such a frame, counted from the first frame below `threshold` -
0.15 (in `VADIterator`: from the end of that frame).
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

FRAME_16K = 512  # samples of a silero frame at 16 kHz: 32 ms
FRAME_SAMPLES = FRAME_16K * rates.DECODER_RATE_HZ // rates.TOKENIZER_RATE_HZ  # as above, at 24 kHz
QUIET_BELOW = 0.15  # silero's difference between the thresholds of start and end
LEAST_QUIET = 0.01  # silero's minimum for the threshold of the end


@dataclass(frozen=True)
class TurnDetection:
    """Options of turn detection.

    Args:
        threshold: Probability of speech at which a turn begins, 0 to 1.
        silence_ms: Length of the silence that ends a turn, in ms.
    """

    threshold: float = 0.5
    silence_ms: int = 500


@dataclass(frozen=True)
class Border:
    """Beginning or end of speech.

    Args:
        kind: Which of the two.
        sample: Position in samples at 24 kHz: the first sample of the frame in which speech was found, or the
            first after the silence that ended it.
    """

    kind: Literal["began", "ended"]
    sample: int


class Probabilities(Protocol):
    """A model of voice activity: streams of samples at 16 kHz -> probabilities per `FRAME_16K`."""

    def stream(self, window_frames: int) -> Stream[np.ndarray, np.ndarray]: ...


def load_silero() -> Probabilities:
    """Loads silero-vad, which takes a tenth of a second. One model can serve any number of sessions.

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
    """The resampler with blocks of one frame: the samples of a frame are known 32 ms after its last one."""

    BLOCK_SAMPLES = FRAME_SAMPLES


class TurnDetector:
    """Finds turns in the audio of one session and holds its state.

    Args:
        model: Model of voice activity, see `load_silero`.
        options: Options of turn detection.
        first_sample: Index of the first sample that it will receive.
    """

    # Samples at 24 kHz between the newest sample and the end of the newest frame with a probability: an
    # incomplete frame, and two blocks of the resampler.
    MAX_DELAY_SAMPLES = 4 * FRAME_SAMPLES

    def __init__(self, model: Probabilities, options: TurnDetection, first_sample: int = 0) -> None:
        self.options, self._first = options, first_sample
        self._frames = model.stream(window_frames=1)
        self._resampler = _SmallBlocks(rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
        self._next = 0  # index of the next frame
        self.speaking = False
        self._quiet_since: int | None = None  # frame

    def push(self, samples_T: Tensor) -> list[Border]:
        """Adds samples at 24 kHz, float32 (T,); returns the borders found, in order.

        Takes about 0.5 ms for 0.1 s of audio.
        """
        with torch.inference_mode():
            piece = self._resampler.push(samples_T).numpy()
        borders = [self._judge(float(probability)) for probability in self._frames.push(piece)]
        return [border for border in borders if border is not None]

    def end_turn(self) -> None:
        """Ends the current speech; if it continues, a new beginning is reported."""
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
