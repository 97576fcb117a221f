"""Texts of benchmarks as sound: spoken by embedded voices or servers, and kept in the cache."""

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

_VOICE_NAMES = ("embedded:", "http://", "https://", "command:")  # how names of voices begin


class SpokenTexts:
    """Speaks texts.

    Args:
        voices: Who speaks, named as in `prepare synthesize`; of each language the first.
    """

    def __init__(self, voices: Sequence[str]) -> None:
        self.voices = tuple(voices)

    @cached_property
    def _pools(self) -> dict[tuple[str, ...], VoicePool]:
        return {}

    def _pool(self, voice: str) -> VoicePool:
        """The voices that speak a text; those of the options, or the text's own."""
        names = (voice,) if voice.startswith(_VOICE_NAMES) else self.voices
        if names not in self._pools:
            pool = VoicePool(names, VoiceSettings(torch.get_num_threads()))
            pool.open()
            self._pools[names] = pool
        return self._pools[names]

    def said(self, text: str, lang: str, voice: str = "") -> Utterance:
        """A text spoken by a voice, from the cache or now.

        Args:
            text: What is said.
            lang: Its language.
            voice: A voice's name; anything else takes the first of `voices` that speaks the language.

        Raises:
            CannotSay: if no voice can say it.
        """
        speaking = self._pool(voice).speaking(lang)
        if not speaking:
            raise CannotSay("no voice for the language", lang)
        parts = pieces_of(text, lang)
        if not parts:
            raise CannotSay("no text")
        storage = Storage(str(cache_dir() / "evaluate" / "spoken"))
        return Utterance(Path(pronounce(storage, speaking[0], parts, lang).path))
