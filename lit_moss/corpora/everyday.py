"""Embedded corpora: everyday sentences, spoken on first use by neural voices from the package index.

`embedded:everyday-en` has one voice, that of `hibari-tts` (a dependency that includes its model; about 60
times real time). `embedded:everyday-en-voices` has twelve voices of Kokoro-82M (about twice real time: a
quarter of an hour for all sentences). The sentences are in `sentences_en.txt` in this package. A corpus is
generated once, into a folder of the cache named by a hash of its inputs; its samples are the same each time.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_moss.assets import KOKORO_VOICES, cache_dir
from lit_moss.corpora.voices import RATE_HZ, HibariVoice, Kokoro, Phonemes, hibari_version
from lit_moss.files import atomic_write, make_once

EVERYDAY, VOICES = "embedded:everyday-en", "embedded:everyday-en-voices"
_SENTENCES = Path(__file__).with_name("sentences_en.txt")
_VALIDATION_EVERY = 10  # every tenth sentence is held out
_SPEEDS = (1.0, 0.9, 1.1)  # alternating: a single voice varies in nothing but its pace


@dataclass(frozen=True)
class Voice:
    """One voice, or several voices that take turns.

    Args:
        speak: (text, sentence number) -> samples at 24 kHz.
        speaker: Sentence number -> name of the speaker.
    """

    speak: Callable[[str, int], np.ndarray]
    speaker: Callable[[int], str]


def sentences() -> list[str]:
    """Returns the included sentences, in order."""
    return [line for line in _SENTENCES.read_text(encoding="utf-8").splitlines() if line.strip()]


def everyday_corpus(limit: int | None = None, name: str = EVERYDAY) -> Path:
    """Returns the folder with `train.jsonl`, `validation.jsonl` and the audio files; generated on first use.

    Args:
        limit: Number of sentences, from the first; None: all.
        name: `EVERYDAY` or `VOICES`.

    Raises:
        UserError: if the voice is not installed or cannot be downloaded.
    """
    texts = sentences()[:limit]
    version = hibari_version()
    voices = KOKORO_VOICES if name == VOICES else ("heart",)
    inputs = json.dumps([version, voices, _SPEEDS, _VALIDATION_EVERY, texts])
    label = name.removeprefix("embedded:")
    folder = cache_dir() / "corpora" / f"{label}-{hashlib.sha256(inputs.encode()).hexdigest()[:12]}"
    named = [(f"everyday-{i:04d}", text) for i, text in enumerate(texts)]
    held_out = range(_VALIDATION_EVERY - 1, len(texts), _VALIDATION_EVERY)
    return make_once(
        folder,
        lambda made: speak_all(named, made, _kokoro() if name == VOICES else hibari(), held_out),
    )


def hibari() -> Voice:
    """The voice of `hibari-tts`, about 60 times real time on 2 cores."""
    voice = HibariVoice(threads=min(4, os.cpu_count() or 1))
    return Voice(
        lambda text, i: voice.speak(text, speed=_SPEEDS[i % len(_SPEEDS)], seed=i), lambda i: voice.speaker
    )


def _kokoro() -> Voice:
    """Twelve of Kokoro's English voices, taking turns, all with American pronunciation."""
    kokoro, phonemes = Kokoro(), Phonemes()

    def speak(text: str, i: int) -> np.ndarray:
        tokens = kokoro.tokens(phonemes.english(text))
        return kokoro.speak(tokens, KOKORO_VOICES[i % len(KOKORO_VOICES)])

    return Voice(speak, lambda i: f"kokoro-{KOKORO_VOICES[i % len(KOKORO_VOICES)]}")


def speak_all(
    named: Sequence[tuple[str, str]], folder: Path, voice: Voice, held_out: Collection[int]
) -> None:
    """Speaks sentences into `folder`: `audio/NAME.flac`, `train.jsonl`, `validation.jsonl`.

    Existing audio files of the same text are kept, so that an interrupted call continues where it stopped.

    Args:
        named: Name and text of each sentence.
        folder: Output folder; created if it does not exist.
        voice: Voice that speaks them.
        held_out: Numbers of the sentences that go into the validation manifest.
    """
    import soundfile
    from tqdm import tqdm

    from lit_moss.corpora.manifest import Utterance, write_manifest

    (folder / "audio").mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[Utterance]] = {"train": [], "validation": []}
    for i, (name, text) in enumerate(tqdm(named, desc="speaking", unit="sentence", file=sys.stderr)):
        path = folder / "audio" / f"{name}.flac"
        samples = _samples_of(path, text)
        if not samples:
            wave = voice.speak(text, i)
            samples = len(wave)
            with (
                atomic_write(path) as partial,
                soundfile.SoundFile(partial, "w", RATE_HZ, 1, format="FLAC") as file,
            ):
                file.comment = text
                file.write(wave)
        part = "validation" if i in held_out else "train"
        parts[part].append(Utterance(path, 0.0, round(samples / RATE_HZ, 4), text, voice.speaker(i), "en"))
    for part, utterances in parts.items():
        write_manifest(folder / f"{part}.jsonl", utterances)


def _samples_of(path: Path, text: str) -> int:
    """Number of samples of an audio file whose comment is this text; 0 if there is none."""
    import soundfile

    if not path.exists():
        return 0
    with soundfile.SoundFile(path) as file:
        return file.frames if file.comment == text else 0
