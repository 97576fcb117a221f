"""Measures of speech: recognisers, speaker similarity, DNSMOS, mel-cepstral distance, roughness, seams.

All take waves (T,) in [-1, 1]. The recogniser and DNSMOS need the extra `evaluate`.
"""

import math
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.features import decoder_mel
from lit_moss.data.transcripts import edit_distance, normalise
from lit_moss.errors import UserError, first_line
from lit_moss.hub.whisper import open_whisper

EXTRA = "pip install 'lit-moss[evaluate]'"


class SpeechRecogniser(Protocol):
    """Samples (T,) at 16 kHz and their language -> transcript."""

    def __call__(self, wave_T: Tensor, language: str | None = "en") -> str: ...


def open_recogniser(name: str, device: str = "auto") -> SpeechRecogniser:
    """Opens a speech recogniser by name.

    Args:
        name: `paraformer-zh` or another paraformer of funasr, otherwise a Whisper model, see `Recogniser`.
        device: auto, cpu or cuda.

    Raises:
        UserError: if it does not exist, or its package is not installed.
    """
    return Paraformer(name, device) if name.startswith("paraformer") else Recogniser(name, device)


class Recogniser:
    """Whisper with faster-whisper: greedy, without timestamps, without conditioning on previous text.

    Args:
        name: `embedded:whisper-base`, `embedded:whisper-tiny`, a CTranslate2 folder, or a name such as
            `whisper-large-v3` (downloaded by faster-whisper from the hub).
        device: auto, cpu or cuda.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        # By default it would use all cores. `open_whisper` does not change torch's number of threads.
        self._model = open_whisper(name, device, torch.get_num_threads())

    def __call__(self, wave_T: Tensor, language: str | None = "en") -> str:
        """Transcript of samples at 16 kHz."""
        segments, _ = self._model.transcribe(
            wave_T.numpy(), language=language, beam_size=1, temperature=0.0, without_timestamps=True,
            condition_on_previous_text=False,
        )  # fmt: skip
        return " ".join(segment.text for segment in segments)


class Paraformer:
    """A paraformer of funasr, as in Seed-TTS-Eval for Chinese, without punctuation and VAD.

    Args:
        name: Name of the model, such as `paraformer-zh`; funasr downloads it.
        device: auto, cpu or cuda.

    Raises:
        UserError: if funasr is not installed, or has no such model.
    """

    def __init__(self, name: str, device: str = "auto") -> None:
        self._model = open_funasr(name, device)

    def __call__(self, wave_T: Tensor, language: str | None = "zh") -> str:
        """Transcript of samples at 16 kHz."""
        (result,) = self._model.generate(input=wave_T.numpy(), fs=rates.TOKENIZER_RATE_HZ, batch_size_s=300)
        return result["text"]


def open_funasr(name: str, device: str = "auto") -> Any:
    """Opens a funasr model. funasr is not a dependency; it downloads its models from modelscope.

    Raises:
        UserError: if funasr is not installed, or has no such model.
    """
    try:
        from funasr import AutoModel  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError(f"{name} needs funasr, which is not installed: pip install funasr") from error
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    try:
        return AutoModel(model=name, device=device, ncpu=torch.get_num_threads(), disable_update=True)
    except Exception as error:  # of funasr or the network
        raise UserError(
            f"funasr's {name} cannot be opened ({first_line(error)}): expected the name of a model"
        ) from error


def word_errors(reference: str, hypothesis: str, language: str = "en") -> tuple[int, int]:
    """Number of errors (substitutions, deletions, insertions) and reference words (Chinese: characters)."""
    reference, hypothesis = normalise(reference), normalise(hypothesis)
    if language == "zh":
        expected, recognised = list(reference), list(hypothesis)
    else:
        expected, recognised = reference.split(), hypothesis.split()
    return edit_distance(expected, recognised), len(expected)


def similarity(a_S: Tensor, b_S: Tensor) -> float:
    """Cosine similarity of two speaker vectors."""
    return float(torch.nn.functional.cosine_similarity(a_S, b_S, dim=0))


def dnsmos(wave_T: Tensor) -> float:
    """Overall quality of samples at 16 kHz, 1 to 5, see `dnsmos_scores`."""
    return dnsmos_scores(wave_T)["ovrl"]


def dnsmos_scores(wave_T: Tensor) -> dict[str, float]:
    """DNSMOS P.835 (arXiv:2110.01763) of samples at 16 kHz: `ovrl`, `sig` and `bak`, 1 to 5, using speechmos.

    The package repeats clips shorter than 9 s up to that length.
    """
    try:
        from speechmos import dnsmos as model
    except ImportError as error:
        raise UserError(f"DNSMOS needs speechmos and librosa: {EXTRA}") from error
    wave = np.clip(wave_T.numpy().astype(np.float32), -1, 1)
    scores: Any = model.run(wave, sr=rates.TOKENIZER_RATE_HZ, return_df=False)
    return {name: float(scores[f"{name}_mos"]) for name in ("ovrl", "sig", "bak")}


def mel_cepstral_distance(a_T: Tensor, b_T: Tensor, coefficients: int = 13) -> float:
    """Mean over frames of 10/ln(10) sqrt(2 sum_k (a_k - b_k)^2) in dB, for cepstra 1 to 13.

    The longer wave is truncated. Frames at the same time are compared, without warping: resynthesis does not
    change durations.
    """
    frames = min(len(a_T), len(b_T)) // rates.DECODER_HOP_SAMPLES
    cut = frames * rates.DECODER_HOP_SAMPLES
    a_MF, b_MF = (decoder_mel(x[None, :cut].float())[0] for x in (a_T, b_T))
    return cepstral_distance(a_MF, b_MF, coefficients)


def cepstral_distance(a_MF: Tensor, b_MF: Tensor, coefficients: int = 13) -> float:
    """Mel-cepstral distance of two log-mels (natural logarithm), (bands, frames).

    With ln S = a_0 + sum_k a_k cos(pi k (m + 1/2) / M) the distance of a frame is the root mean square
    difference in dB of the two smoothed spectra without their loudness (Kubichek 1993).
    """
    basis_KM = _cosines(coefficients, len(a_MF))
    a_KF, b_KF = basis_KM @ a_MF, basis_KM @ b_MF
    return float(10 / math.log(10) * (2 * (a_KF - b_KF).square().sum(dim=0)).sqrt().mean())


def roughness(original_T: Tensor, other_T: Tensor) -> float:
    """Roughness of a copy's log-mel relative to the original: 1 is equal, less is smoother.

    Both waves are at 24 kHz; see `mel_roughness`.
    """
    original_MF, other_MF = (decoder_mel(x[None].float())[0] for x in (original_T, other_T))
    return mel_roughness(other_MF) / max(1e-12, mel_roughness(original_MF))


def mel_roughness(mel_MF: Tensor) -> float:
    """Mean squared second difference of a log-mel (bands, frames), along the bands plus along the frames.

        R = mean (m[b-1, f] - 2 m[b, f] + m[b+1, f])^2 + mean (m[b, f-1] - 2 m[b, f] + m[b, f+1])^2

    White noise of variance v on the mel adds 12 v; slopes and a change of loudness add nothing.
    """
    mel_MF = mel_MF.double()
    return float(sum(torch.diff(mel_MF, n=2, dim=dim).square().mean() for dim in (0, 1)))


def seam_ratio(wave_T: Tensor, seams: list[int], reach: int = 8, chunk: int = 9600) -> float | None:
    """Roughness (squared second difference) at the seams of a stream, relative to that within its chunks.

    1 means no difference; a click makes it large. Each seam is compared with sixteen positions in the half
    chunks before and after it, and the logarithms of the ratios are averaged, because clicks are audible
    where speech is quiet.

    Args:
        wave_T: Samples (T,).
        seams: Indices of the samples at which a new piece of the stream begins.
        reach: Number of samples before and after each position to compare.
        chunk: Number of samples of a chunk.

    Returns:
        The ratio; None if no seam is far enough from both ends.
    """
    rough_T = torch.diff(wave_T.double(), n=2).square() + 1e-12
    shares = [sign * (0.1 + 0.05 * n) for n in range(8) for sign in (-1, 1)]
    log_ratios = []
    for seam in seams:
        if chunk <= seam <= len(rough_T) - chunk:
            at_seam = rough_T[seam - reach : seam + reach].mean().log()
            places = [seam + round(share * chunk) for share in shares]
            inside = torch.stack([rough_T[p - reach : p + reach].mean().log() for p in places])
            log_ratios.append(at_seam - inside.mean())
    return float(torch.stack(log_ratios).mean().exp()) if log_ratios else None


@lru_cache(maxsize=4)
def _cosines(coefficients: int, bands: int) -> Tensor:
    k, m = torch.arange(1, coefficients + 1)[:, None], torch.arange(bands)[None]
    return 2 / bands * torch.cos(math.pi * k * (m + 0.5) / bands)
