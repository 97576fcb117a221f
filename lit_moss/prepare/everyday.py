"""`embedded:everyday-en`: a small corpus for a machine without any, spoken on first use by a real neural voice.

The voice is `hibari-tts` (an ordinary dependency that carries its model); the sentences lie beside this file. Made once
into the cache, the same to the sample each time, and checked by a hash of what was asked for.
"""

import hashlib
import os
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from lit_moss.assets import cache_dir
from lit_moss.errors import UserError

EVERYDAY = "embedded:everyday-en"
_SENTENCES = Path(__file__).with_name("sentences_en.txt")
_VALIDATION_EVERY = 10  # every tenth sentence is held out
_SPEEDS = (1.0, 0.9, 1.1)  # the voice has one colour; at least its pace varies


def sentences() -> list[str]:
    """The shipped sentences, in order."""
    return [line for line in _SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]


def everyday_corpus(limit: int | None = None) -> Path:
    """Folder with `train.jsonl`, `validation.jsonl` and the sound files; made on first use.

    Args:
        limit: Only the first so many sentences; all if None.

    Raises:
        UserError: if the voice is not installed.
    """
    texts = sentences()[:limit]
    try:
        version = metadata.version("hibari-tts")
    except metadata.PackageNotFoundError as error:
        raise UserError(
            "the embedded corpus needs the voice hibari-tts: pip install 'hibari-tts==0.2.1'"
        ) from error
    asked = hashlib.sha256(
        "\n".join([version, str(_SPEEDS), str(_VALIDATION_EVERY), *texts]).encode()
    ).hexdigest()[:12]
    folder = cache_dir() / "corpora" / f"everyday-en-{asked}"
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            made = Path(scratch) / "made"
            _speak(texts, made)
            try:
                made.rename(folder)
            except OSError:
                if not folder.exists():  # otherwise another process was first, with the same content
                    raise
    return folder


def _speak(texts: list[str], folder: Path) -> None:
    import soundfile
    from hibari import Hibari
    from tqdm import tqdm

    from lit_moss.data.manifest import Utterance, write_manifest

    voice = Hibari(threads=min(4, os.cpu_count() or 1))
    (folder / "audio").mkdir(parents=True)
    parts: dict[str, list[Utterance]] = {"train": [], "validation": []}
    for i, text in enumerate(
        tqdm(texts, desc="speaking the embedded corpus", unit="sentence", file=sys.stderr)
    ):
        wave = voice(text, speed=_SPEEDS[i % len(_SPEEDS)], seed=i)
        path = folder / "audio" / f"everyday-{i:04d}.flac"
        soundfile.write(path, wave, voice.sample_rate)
        part = "validation" if i % _VALIDATION_EVERY == _VALIDATION_EVERY - 1 else "train"
        seconds = len(wave) / voice.sample_rate
        parts[part].append(Utterance(path, 0.0, round(seconds, 4), text, "hibari-heart", "en"))
    for part, utterances in parts.items():
        write_manifest(folder / f"{part}.jsonl", utterances)
