"""Voice activity models with a common interface: streams of samples to probabilities of speech.

| engine | model | licence |
|---|---|---|
| `silero` | silero-vad 6, weights in the package; one thread | MIT |
| `pyannote` | a segmentation model on Hugging Face | MIT, gated weights in a pickle file |
"""

import os
from collections.abc import Callable
from hashlib import sha256
from importlib import metadata, util
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch

from lit_moss.audio import rates
from lit_moss.audio.streams import ClosedByFlush, Stream
from lit_moss.errors import UserError, first_line

FRAME_SAMPLES = 512  # 32 ms at 16 kHz
_SILERO_WEIGHTS = "data/silero_vad_16k_sequence.onnx"
_INSTALL = "needs silero-vad and onnxruntime: pip install 'lit-moss[prepare]'"


class SpeechModel(Protocol):
    """A model of voice activity."""

    def stream(self) -> Stream[np.ndarray, np.ndarray]:
        """A stream for one recording (`lit_moss.audio.streams`).

        Pieces are float32 samples (T,) at 16 kHz. Outputs are float32 (n,): the probability of speech per
        frame of `FRAME_SAMPLES`, ceil(samples / FRAME_SAMPLES) in total. They do not depend on how the
        samples are divided.
        """
        ...


def load(engine: str, pyannote_model: str) -> SpeechModel:
    """Loads the model of an engine.

    Raises:
        UserError: if its package is not installed, or its weights are not available.
    """
    return Silero() if engine == "silero" else Pyannote(pyannote_model)


def model_fingerprint(engine: str, pyannote_model: str) -> str:
    """Identifies the model without loading it.

    Raises:
        UserError: if its package is not installed.
    """
    if engine == "silero":
        found = util.find_spec("silero_vad")
        if found is None or not found.submodule_search_locations:
            raise UserError(f"model silero {_INSTALL}")
        weights = Path(found.submodule_search_locations[0]) / _SILERO_WEIGHTS
        return sha256(weights.read_bytes()).hexdigest()[:16]
    try:
        version = metadata.version("pyannote.audio")
        path = Path(pyannote_model)
        name = sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else pyannote_model
        return f"{name} {version}"
    except metadata.PackageNotFoundError as error:
        raise _pyannote_missing() from error


def import_silero() -> ModuleType:
    """Imports the package `silero_vad` without its change of torch's number of threads.

    Raises:
        UserError: if it is not installed.
    """
    threads = torch.get_num_threads()
    try:
        import silero_vad
    except ImportError as error:
        raise UserError(f"model silero {_INSTALL}") from error
    finally:
        torch.set_num_threads(threads)
    return silero_vad


class Silero:
    """silero-vad as a sequence model: one call processes many frames; silero's loop makes a call for each.

    The probabilities equal those of the loop over its ONNX model (on 8 minutes of speech), and differ by up
    to 6e-5 from those of its TorchScript model.
    """

    def __init__(self) -> None:
        try:
            self._session = import_silero().load_silero_vad(sequence=True).session
        except ImportError as error:
            raise UserError(f"model silero {_INSTALL}") from error

    def stream(self, window_frames: int = 1024) -> "SileroStream":
        """As `SpeechModel.stream`; for `window_frames` see `SileroStream`."""
        return SileroStream(self._session, window_frames)


class SileroStream(ClosedByFlush):
    """A stream for one recording; carries the state over, so that windows give identical results.

    Args:
        session: The sequence model in onnxruntime.
        window_frames: Number of frames per call; more frames take more memory (2.3 kB each).
    """

    CONTEXT_SAMPLES = 64  # each frame is preceded by these samples

    def __init__(self, session: Any, window_frames: int) -> None:
        self._session, self._window = session, window_frames * FRAME_SAMPLES
        self._h = self._c = np.zeros((1, 1, 128), np.float32)
        self._held = np.zeros(self.CONTEXT_SAMPLES, np.float32)  # begins with the context of the next frame

    def push(self, piece: np.ndarray) -> np.ndarray:
        """Pushes samples (T,); returns probabilities (n,) of the complete windows."""
        self._check_open()
        held, begin, outputs = np.concatenate([self._held, piece]), 0, []
        while len(held) - begin - self.CONTEXT_SAMPLES >= self._window:
            outputs.append(self._run(held[begin : begin + self.CONTEXT_SAMPLES + self._window]))
            begin += self._window
        self._held = held[begin:].copy()
        return np.concatenate(outputs) if outputs else np.zeros(0, np.float32)

    def flush(self) -> np.ndarray:
        """Returns the probabilities of the remaining frames; the last one is zero-padded."""
        self._close()
        left = len(self._held) - self.CONTEXT_SAMPLES
        return self._run(np.pad(self._held, (0, -left % FRAME_SAMPLES))) if left else np.zeros(0, np.float32)

    def _run(self, samples: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(samples, self.CONTEXT_SAMPLES + FRAME_SAMPLES)
        inputs = {"input": np.ascontiguousarray(windows[::FRAME_SAMPLES]), "h": self._h, "c": self._c}
        outputs, self._h, self._c = self._session.run(["speech_probs", "hn", "cn"], inputs)
        return outputs.reshape(-1)


def _pyannote_missing() -> UserError:
    return UserError(
        "model pyannote needs pyannote.audio, which is not installed: pip install pyannote.audio"
    )


class Pyannote:
    """A segmentation model of pyannote.audio 4, over windows of 10 s.

    Its weights are gated on Hugging Face; the token is read from HF_TOKEN. They are a pickle file: use only
    models whose authors you trust.

    Args:
        name: Name of the model, or a local file.
    """

    def __init__(self, name: str) -> None:
        os.environ["PYANNOTE_METRICS_ENABLED"] = "false"  # otherwise it reports every loaded model
        try:
            from pyannote.audio import Model  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise _pyannote_missing() from error
        try:
            model = Model.from_pretrained(name)
        except Exception as error:  # of Hugging Face, the network or the file
            raise _no_weights(name, first_line(error)) from error
        if model is None:
            raise _no_weights(name, "no access")
        self._model = model.eval()
        self._is_powerset = bool(model.specifications.powerset)

    def stream(self) -> "WindowedStream":
        """As `SpeechModel.stream`."""
        return WindowedStream(self._probabilities)

    def _probabilities(self, samples: np.ndarray) -> np.ndarray:
        """Probabilities (T / FRAME_SAMPLES,) of samples (T,), interpolated between the model's frames."""
        least = rates.TOKENIZER_RATE_HZ  # the model needs 62 ms for one frame
        padded = np.pad(samples, (0, max(0, least - len(samples))))
        with torch.inference_mode():
            scores_FC = self._model(torch.from_numpy(padded)[None, None])[0]
        # Powerset models: log-probabilities of sets of speakers, the first one empty. Others: one per
        # speaker.
        speech_F = 1 - scores_FC[:, 0].exp() if self._is_powerset else scores_FC.amax(dim=1)
        field = self._model.receptive_field
        centres_sec = field.start + field.duration / 2 + field.step * np.arange(len(speech_F))
        frames_sec = (
            (np.arange(len(samples) // FRAME_SAMPLES) + 0.5) * FRAME_SAMPLES / rates.TOKENIZER_RATE_HZ
        )
        return np.interp(frames_sec, centres_sec, speech_F.numpy()).astype(np.float32)


def _no_weights(name: str, why: str) -> UserError:
    return UserError(
        f"pyannote's {name} cannot be loaded ({why}): accept its terms on Hugging Face and set HF_TOKEN"
    )


class WindowedStream(ClosedByFlush):
    """For a model that needs context on both sides: windows overlap by half, and their middle is used.

    Args:
        probabilities: Returns (T / FRAME_SAMPLES,) for samples (T,) in whole frames.
    """

    WINDOW_FRAMES = 312  # 10 s, with which pyannote's models were trained
    _HOP, _MARGIN = WINDOW_FRAMES // 2, WINDOW_FRAMES // 4

    def __init__(self, probabilities: Callable[[np.ndarray], np.ndarray]) -> None:
        self._probabilities = probabilities
        self._held = np.zeros(0, np.float32)
        self._known = 0  # held frames whose probabilities were returned

    def push(self, piece: np.ndarray) -> np.ndarray:
        """Pushes samples (T,); returns probabilities (n,) of frames in the middle of complete windows."""
        self._check_open()
        self._held, outputs = np.concatenate([self._held, piece]), [np.zeros(0, np.float32)]
        window, hop = self.WINDOW_FRAMES * FRAME_SAMPLES, self._HOP * FRAME_SAMPLES
        while len(self._held) >= window:
            frames = self._probabilities(self._held[:window])
            outputs.append(frames[self._known : self.WINDOW_FRAMES - self._MARGIN])
            self._known = self.WINDOW_FRAMES - self._MARGIN - self._HOP
            self._held = self._held[hop:].copy()
        return np.concatenate(outputs)

    def flush(self) -> np.ndarray:
        """Returns the probabilities of the remaining frames."""
        self._close()
        if not len(self._held):
            return np.zeros(0, np.float32)
        padded = np.pad(self._held, (0, -len(self._held) % FRAME_SAMPLES))
        return self._probabilities(padded)[self._known :]
