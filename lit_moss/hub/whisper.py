"""Opens Whisper models by name, using faster-whisper (CTranslate2)."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.assets import SCHEME, resolve, sha256_of
from lit_moss.errors import UserError, first_line

if TYPE_CHECKING:
    from faster_whisper import WhisperModel

NEEDS = "ASR needs faster-whisper: pip install 'lit-moss[prepare]'"


def open_whisper(
    name: str, device: str = "auto", threads: int = 1, compute_type: str = "default"
) -> "WhisperModel":
    """Opens a Whisper model.

    CTranslate2 sets the number of OpenMP threads of the calling thread, which torch also uses. It is restored
    here, so that a training in the same process keeps its order of summation.

    Args:
        name: `embedded:whisper-base`, `embedded:whisper-tiny`, a CTranslate2 folder, or a size such as
            `large-v3` or `whisper-large-v3` (downloaded by faster-whisper from the Hugging Face hub).
        device: auto, cpu or cuda.
        threads: Number of CPU threads per call; the last bits of a result may depend on it.
        compute_type: CTranslate2's compute type: default (as the weights are stored; float32 on a CPU),
            float32, float16, int8, int8_float16 …

    Raises:
        UserError: if the model does not exist, or cannot be opened.
    """
    import torch

    folder = whisper_folder(name)
    before = torch.get_num_threads()
    try:
        import ctranslate2
        from faster_whisper import WhisperModel

        ctranslate2.set_log_level(logging.ERROR)  # it warns of every float16 model run in float32 on a CPU
        return WhisperModel(str(folder), device=device, compute_type=compute_type, cpu_threads=threads)
    except Exception as error:  # RuntimeError, ValueError, errors of tokenizers
        raise _cannot_open(name, error) from error
    finally:
        torch.set_num_threads(before)


def whisper_folder(name: str) -> Path:
    """The CTranslate2 folder of a Whisper model, downloaded if necessary.

    Args:
        name: Name of the model, see `open_whisper`.

    Raises:
        UserError: if the model does not exist, or cannot be downloaded.
    """
    try:
        from faster_whisper import download_model
    except ImportError as error:
        raise UserError(NEEDS) from error
    if name.startswith(SCHEME):
        return resolve(name)
    if Path(name).exists():
        return Path(name)
    try:
        return Path(download_model(name.removeprefix("whisper-")))
    except Exception as error:  # ValueError, and any network error
        raise _cannot_open(name, error) from error


def whisper_fingerprint(name: str) -> str:
    """16 hex digits of the weights of a Whisper model.

    Raises:
        UserError: if the model does not exist, or cannot be downloaded.
    """
    weights = whisper_folder(name) / "model.bin"
    if not weights.is_file():
        raise _cannot_open(name, FileNotFoundError("there is no model.bin in it"))
    return sha256_of(weights)[:16]


def _cannot_open(name: str, error: Exception) -> UserError:
    return UserError(
        f"Whisper {name!r} cannot be opened ({first_line(error)}): expected embedded:whisper-base, a "
        "CTranslate2 folder or the name of a size such as large-v3"
    )
