"""Synthesizes texts of benchmarks, with embedded voices or servers, and caches the audio."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import torch

from lit_moss.assets import cache_dir
from lit_moss.corpora.manifest import Utterance
from lit_moss.prepare.pronounce import pieces_of, pronounce
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.voice_protocol import CannotSay
from lit_moss.prepare.voices import VoicePool, VoiceSettings

_VOICE_NAMES = ("embedded:", "http://", "https://", "command:")  # prefixes of voice names


class SpokenTexts:
    """Synthesizes texts.

    Args:
        voices: Voices, named as in `prepare synthesize`; the first of each language is used.
    """

    def __init__(self, voices: Sequence[str]) -> None:
        self.voices = tuple(voices)

    @cached_property
    def _pools(self) -> dict[tuple[str, ...], VoicePool]:
        return {}

    def _pool(self, voice: str) -> VoicePool:
        """The voices for a text: its own voice, or those of the options."""
        names = (voice,) if voice.startswith(_VOICE_NAMES) else self.voices
        if names not in self._pools:
            pool = VoicePool(names, VoiceSettings(torch.get_num_threads()))
            pool.open()
            self._pools[names] = pool
        return self._pools[names]

    def said(self, text: str, lang: str, voice: str = "") -> Utterance:
        """The audio of a text spoken by a voice, cached or newly synthesized.

        Args:
            text: Text to speak.
            lang: Language of the text.
            voice: Name of a voice; otherwise the first of `voices` that speaks the language is used.

        Raises:
            CannotSay: if no voice can speak it.
        """
        speaking = self._pool(voice).speaking(lang)
        if not speaking:
            raise CannotSay("no voice for the language", lang)
        parts = pieces_of(text, lang)
        if not parts:
            raise CannotSay("no text")
        storage = Storage(str(cache_dir() / "evaluate" / "spoken"))
        return Utterance(Path(pronounce(storage, speaking[0], parts, lang).path))
