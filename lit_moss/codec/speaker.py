"""Speaker encoders with a common interface: CAM++ (released codec), the embedded encoder, or none.

encoder(wave (T,) at 16 kHz) -> (S,)
"""

from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from lit_moss.assets import resolve, sha256_of
from lit_moss.audio import rates
from lit_moss.audio.features import kaldi_fbank, mel_filters
from lit_moss.audio.precision import full_precision
from lit_moss.audio.waves import check_wave
from lit_moss.codec.state_dicts import check_finite
from lit_moss.errors import UserError

EMBEDDED = "embedded:resemblyzer"


class SpeakerEncoder(Protocol):
    """Samples (T,) at 16 kHz -> speaker vector (dim,)."""

    dim: int

    def __call__(self, wave_T: Tensor) -> Tensor: ...


class CampPlus:
    """CAM++ (arXiv:2303.00332) from the released codec's ONNX file: mean-free filter banks -> 192 values."""

    dim = 192

    def __init__(self, path: str | Path) -> None:
        import onnxruntime

        self.path = Path(path)

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UserError(f"{path} is no ONNX model that can be run ({type(error).__name__})") from error
        self._input = self._session.get_inputs()[0].name

    def __call__(self, wave_T: Tensor) -> Tensor:
        fbank = kaldi_fbank(_long_enough(wave_T, 400), mean_subtract=True)
        (vector,) = self._session.run(None, {self._input: fbank[None].numpy()})
        vector_S = torch.from_numpy(vector).flatten().float()
        return _finite(vector_S, str(self.path))


class VoiceEncoder(nn.Module):
    """Three LSTM layers over 40 mel bands; the last state is projected and normalised to 256 values.

    Trained with the generalised end-to-end loss (arXiv:1710.10467); the weights are those of the package
    Resemblyzer 0.1.4. Windows of 1.6 s, 0.77 s apart, are averaged.
    """

    dim, name = 256, EMBEDDED
    WINDOW_FRAMES, STEP_FRAMES = 160, 77

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)

    @classmethod
    def from_pretrained(cls, name: str = EMBEDDED) -> "VoiceEncoder":
        """Loads the embedded part, or a folder that contains its `pretrained.pt`."""
        path = resolve(name) / "pretrained.pt"
        try:
            tensors = dict(torch.load(path, map_location="cpu", weights_only=True)["model_state"])
        except Exception as error:
            raise UserError(f"{path} is no file of plain tensors ({type(error).__name__})") from error
        wanted = {k: v for k, v in tensors.items() if k.startswith(("lstm.", "linear."))}
        check_finite(wanted, str(path))
        encoder = cls()
        try:
            encoder.load_state_dict(wanted)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} is no speaker encoder of {cls.name} ({reason})") from error
        return encoder.eval()

    @torch.no_grad()
    def forward(self, wave_T: Tensor) -> Tensor:
        with full_precision(torch.device("cpu")):
            return _finite(self._vector(wave_T), self.name)

    def _vector(self, wave_T: Tensor) -> Tensor:
        wave_T = _long_enough(wave_T, rates.WHISPER_HOP_SAMPLES * self.WINDOW_FRAMES)
        # Raised to -30 dB of full scale, never lowered: the level of the network's training data.
        gain = 10 ** (-30 / 20) / wave_T.square().mean().sqrt().clamp(min=1e-5)
        mel_TM = _mel40(wave_T * gain.clamp(min=1.0))
        starts = range(0, max(1, len(mel_TM) - self.WINDOW_FRAMES + 1), self.STEP_FRAMES)
        windows = torch.stack([mel_TM[s : s + self.WINDOW_FRAMES] for s in starts])
        _, (hidden, _) = self.lstm(windows)
        vectors = nn.functional.normalize(torch.relu(self.linear(hidden[-1])), dim=1)
        return nn.functional.normalize(vectors.mean(dim=0), dim=0)


def _mel40(wave_T: Tensor) -> Tensor:
    """Power mel with 40 Slaney bands, without logarithm: (F, 40)."""
    n_fft, hop = rates.WHISPER_FFT_SAMPLES, rates.WHISPER_HOP_SAMPLES
    window = torch.hann_window(n_fft, device=wave_T.device)
    spectrum = torch.stft(wave_T, n_fft, hop, window=window, pad_mode="constant", return_complex=True)
    filters = mel_filters(40, n_fft, rates.TOKENIZER_RATE_HZ, torch.float32, torch.device("cpu"))
    return spectrum.abs().square().T @ filters


def _finite(vector_S: Tensor, name: str) -> Tensor:
    if not bool(vector_S.isfinite().all()):
        raise UserError(f"{name} gives numbers that are not finite: its weights are damaged, or the wave is")
    return vector_S


def _long_enough(wave_T: Tensor, samples: int) -> Tensor:
    wave_T = check_wave(wave_T)
    return nn.functional.pad(wave_T, (0, max(0, samples - len(wave_T))))


def speaker_fingerprint(encoder: SpeakerEncoder | None) -> str:
    """Identifies an encoder's vectors: a name with its pinned hash, or the hash of the file."""
    if isinstance(encoder, CampPlus):
        return sha256_of(encoder.path)
    return encoder.name if isinstance(encoder, VoiceEncoder) else "none"


def open_speaker(name: str | None) -> SpeakerEncoder | None:
    """Opens `embedded:resemblyzer` or the path of a CAM++ ONNX file; None for None.

    Raises:
        UserError: if the name is neither.
    """
    if name is None or name == "none":
        return None
    if name == EMBEDDED:
        return VoiceEncoder.from_pretrained()
    if str(name).endswith(".onnx") and Path(name).is_file():
        return CampPlus(name)
    raise UserError(f"no speaker encoder {name!r}: expected {EMBEDDED}, a CAM++ .onnx file, or none")
