"""Speaks a text with a voice into a sound file: for utterances and for messages of conversations."""

import json
from dataclasses import dataclass, replace
from hashlib import sha256

import numpy as np

from lit_moss.audio import io
from lit_moss.data.interleave import join_words
from lit_moss.prepare.sentences import split_text
from lit_moss.prepare.spoken import LANGUAGES, spoken, unspeakable
from lit_moss.prepare.storage import Storage, local_copy
from lit_moss.prepare.voice_protocol import CannotSay, Speech, Voice, Wording

PIECE_CHARS = {"en": 350, "zh": 100}  # about 25 s; Kokoro rushes longer ones, or drops their end
_PAUSE_SEC = 0.25  # between the pieces of one text
_LEAST_SEC = 0.1
_LEAST_CHARS = 20  # smaller pieces are not cut to fit a voice
_VERSION = 1  # of how a sound is made; a change makes new files


@dataclass(frozen=True)
class Said:
    """The sound file of a spoken text.

    Args:
        path: Path of the file.
        duration_sec: Exact length in seconds.
        spoken: Text in spoken form.
    """

    path: str
    duration_sec: float
    spoken: str


def pieces_of(text: str, lang: str, max_chars: int | None = None, min_words: int = 5) -> list[str]:
    """Pieces of a text, each for one call of a voice, see `split_text`.

    Args:
        text: Text as written.
        lang: Language of the text.
        max_chars: Maximum number of characters of a piece; None: `PIECE_CHARS`.
        min_words: Minimum number of words of a piece, if adjacent pieces have room.
    """
    return split_text(text, lang, max_chars or PIECE_CHARS.get(lang, PIECE_CHARS["en"]), min_words)


def pronounce(
    storage: Storage, voice: Voice, pieces: list[str], lang: str, speed: float = 1.0, style: str | None = None
) -> Said:
    """Speaks a text into `audio/` of a step; reuses an existing file with the same wording and voice.

    Args:
        storage: Folder of the step.
        voice: Voice that speaks.
        pieces: The written text, cut by `pieces_of`; spoken with pauses in between.
        lang: Language of the text.
        speed: Speed, see `Wording`.
        style: Style, see `Wording`; only passed to voices that support one.

    Raises:
        CannotSay: if a piece cannot be spoken.
    """
    words = [_spoken(piece, lang) for piece in pieces]
    style = style if voice.takes_style else None
    named = json.dumps([_VERSION, voice.content(), words, lang, speed, style], sort_keys=True)
    digest = sha256(named.encode()).hexdigest()
    name = f"audio/{digest[:2]}/{digest[:24]}.flac"
    if storage.exists(name):
        info = io.info(local_copy(storage.path(name)))
        frames, rate_hz = info.frames, info.rate_hz
    else:
        wording = Wording("", lang, speed, style, int(digest[:8], 16))
        speech = _joined([part for text in words for part in _say(voice, replace(wording, text=text))])
        storage.save_sound(name, speech.wave, speech.rate_hz)
        frames, rate_hz = len(speech.wave), speech.rate_hz
    return Said(storage.path(name), frames / rate_hz, join_words(words))


def _spoken(text: str, lang: str) -> str:
    if lang not in LANGUAGES:
        return " ".join(text.split())  # without rules for the language: as written
    if unsaid := unspeakable(text, lang):
        raise CannotSay("unspeakable", unsaid)
    words = spoken(text, lang).strip()
    if not any(map(str.isalpha, words)):
        raise CannotSay("nothing to say", text[:40])
    return words


def _say(voice: Voice, wording: Wording) -> list[Speech]:
    """Speaks a wording, in several parts if the voice cannot speak it at once."""
    try:
        return [_checked(voice.say(wording))]
    except CannotSay as error:
        size = len(wording.text) // 2 + 1
        if not error.too_long or size < _LEAST_CHARS:
            raise
        parts = split_text(wording.text, wording.lang, size, 0)
    return [speech for part in parts for speech in _say(voice, replace(wording, text=part))]


def _checked(speech: Speech) -> Speech:
    wave = speech.wave
    if not np.isfinite(wave).all():
        raise CannotSay("samples that are no numbers")
    seconds, peak = len(wave) / speech.rate_hz, float(np.abs(wave).max(initial=0.0))
    if seconds < _LEAST_SEC or peak < 1e-3:
        raise CannotSay("no sound", round(seconds, 3), _LEAST_SEC)
    return speech if peak <= 1.0 else Speech(wave / peak, speech.rate_hz)


def _joined(parts: list[Speech]) -> Speech:
    rate_hz = parts[0].rate_hz
    pause = np.zeros(round(_PAUSE_SEC * rate_hz), np.float32)
    waves = [wave for part in parts for wave in (pause, part.wave)][1:]
    return Speech(np.concatenate(waves), rate_hz)
