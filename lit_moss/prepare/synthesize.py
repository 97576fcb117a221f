"""Texts -> utterances, by text to speech.

    text ─ score ─ cut at sentences ─ spoken form ─ a voice of the pool ─ audio/…flac, one line a piece
                                                                          written, spoken, speaker, duration

A text has one voice, drawn by its id, or one for each piece. Numbers, abbreviations and symbols are spoken;
a piece with signs that nothing can say is rejected, and what follows it in its text is another `document`, so
that none has a hole; `text_id` then names the text. Sounds are named by what was said and by whom: a killed
run uses those that are there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from lit_moss.data.interleave import document_rng
from lit_moss.errors import UserError
from lit_moss.prepare.document_folders import name_of_text
from lit_moss.prepare.language import text_language
from lit_moss.prepare.pronounce import pieces_of, pronounce
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, without_sound
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.text_sources import check_min_score, checked_scale, read_text_source
from lit_moss.prepare.voice_protocol import CannotSay, Voice
from lit_moss.prepare.voices import VoicePool, VoiceSettings
from lit_moss.records import printable


@dataclass(frozen=True)
class SynthesizeOptions:
    """Options of `prepare synthesize`.

    Args:
        voices: Pool of voices: embedded:hibari, embedded:kokoro/NAME (en or zh for all of a language), an
            address http(s)://HOST/v1?model=M&voice=V, or `command: PROGRAM {text_file} {out}`.
        voice_per: Whether a voice is drawn for each text or for each utterance of it.
        min_speed: Slowest pace; 1 is the voice's own. It is drawn together with the voice.
        max_speed: Fastest pace.
        min_score: Texts with a lower `score` are left out, 0 to 5; texts without a score are kept.
        max_chars: Characters of an utterance at most; null for 350 in English and 100 in Chinese.
        min_words: Sentences of fewer words (characters in Chinese) are joined with a neighbour.
        seed: Seed of the choice of voices and paces.
        threads: Threads of an embedded voice's model, per worker.
        api_key_env: Environment variable with the key of endpoints.
        timeout_sec: Seconds after which an endpoint or a program has failed.
    """

    voices: list[str] = field(default_factory=lambda: ["embedded:hibari"])
    voice_per: Literal["text", "utterance"] = "text"
    min_speed: float = 1.0
    max_speed: float = 1.0
    min_score: float = 3.0
    max_chars: int | None = None
    min_words: int = 5
    seed: int = 1
    threads: int = 1
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=NOT_CONTENT)
    timeout_sec: float = field(default=120.0, metadata=NOT_CONTENT)

    def __post_init__(self) -> None:
        if self.voice_per not in ("text", "utterance"):
            raise UserError(f"voice_per is {self.voice_per!r}, expected text or utterance")
        check_speeds(self.min_speed, self.max_speed)
        check_min_score(self.min_score)
        if self.min_words < 0 or self.threads < 1 or (self.max_chars is not None and self.max_chars < 20):
            raise UserError(
                f"min_words is {self.min_words}, threads {self.threads} and max_chars {self.max_chars}, "
                "expected at least 0, 1 and 20"
            )


def check_speeds(least: float, most: float) -> None:
    """Checks a range of paces.

    Raises:
        UserError: if it is none, or one that voices cannot follow.
    """
    if not 0.5 <= least <= most <= 2.0:
        raise UserError(
            f"min_speed is {least} and max_speed {most}, expected 0.5 to 2, the smaller one first"
        )


class SynthesizeStage(Stage):
    """See the module."""

    name = "synthesize"
    version = 6
    Options = SynthesizeOptions

    def __init__(self, options: SynthesizeOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: SynthesizeOptions = options
        settings = VoiceSettings(options.threads, options.api_key_env, options.timeout_sec)
        self._pool = VoicePool(options.voices, settings)

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        return read_text_source(source)

    def content(self) -> dict[str, Any]:
        return super().content() | {"voices": self._pool.content()}

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        for item in checked_scale(items, self.options.min_score):
            yield [item]

    def open(self) -> None:
        self._pool.open()

    def run(self, unit: Sequence[Item]) -> Result:
        item, result = unit[0], Result()
        text, score = item.get("text"), item.get("score")
        if not isinstance(text, str) or not text.strip():
            return Result(rejected=[Rejection(item, "no text")])
        if score is not None and score < self.options.min_score:
            return Result(rejected=[Rejection(item, "score", score, self.options.min_score)])
        lang = item.get("lang") or text_language(text)
        stated = item.get("id")
        name = sha256(printable(text).encode()).hexdigest()[:16] if stated is None else printable(str(stated))
        rng = document_rng(self.options.seed, name)
        voice, speed = self._draw(lang, rng)
        if voice is None:
            return Result(rejected=[Rejection(item, "no voice for the language", lang)])
        own = ("id", "text", "written", "lang", "document")
        carried = {k: v for k, v in without_sound(item).items() if k not in own}
        source = document = name_of_text(item)
        holes = 0
        for number, piece in enumerate(pieces_of(text, lang, self.options.max_chars, self.options.min_words)):
            if number and self.options.voice_per == "utterance":
                voice, speed = self._draw(lang, rng)
                assert voice is not None
            common = {"id": f"{name}-{number:04d}", "document": document, "lang": lang, **carried}
            if holes:
                common["text_id"] = source  # what is held out is held out whole
            try:
                said = pronounce(self.storage, voice, [piece], lang, speed)
            except CannotSay as error:
                rejected = Rejection({**common, "text": piece}, error.reason, error.value, error.threshold)
                result.rejected.append(rejected)
                holes += 1
                document = f"{source}+{holes}"
                continue
            result.items.append(
                {
                    "audio_filepath": said.path,
                    "duration": said.duration_sec,
                    "text": piece,
                    "written": piece,
                    "spoken": said.spoken,
                    "speaker": voice.speaker,
                    **common,
                }
            )
        return result

    def _draw(self, lang: str, rng: np.random.Generator) -> tuple[Voice | None, float]:
        voice = self._pool.draw(lang, rng)
        return voice, draw_speed(self.options.min_speed, self.options.max_speed, rng)


def draw_speed(least: float, most: float, rng: np.random.Generator) -> float:
    """A pace between two, in hundredths."""
    return round(float(rng.uniform(least, most)), 2)
