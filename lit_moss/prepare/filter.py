"""Drops synthesised speech that ASR does not understand, or that sounds wrong (arXiv:2510.00499, 3.2.1).

    sound ─┬─ length, silence, clipping, level   `sound_checks`
           ├─ voice activity                     is it speech at all?
           └─ ASR ─ heard ─┐
    text  ─ spoken form ───┴─ word errors        character errors in Chinese

Both sides are compared in the form of `lit_moss.prepare.spoken`: digits spoken, no punctuation, Chinese
simplified. Items are utterances (`audio_filepath`, `spoken`) or conversations, all of whose messages with a
sound must pass.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lit_moss.audio import io, rates
from lit_moss.audio.features import Resampler
from lit_moss.errors import UserError
from lit_moss.hub.whisper import open_whisper
from lit_moss.prepare import sound_checks
from lit_moss.prepare.sound_checks import Fault, Limits
from lit_moss.prepare.spoken import error_counts, scoring_form
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, item_id
from lit_moss.prepare.storage import Storage, local_copy

LANGUAGES = ("en", "zh")
_VAD_SAMPLES = 512  # of a frame at 16 kHz
_WINDOW_SEC = 30.0  # Whisper's


@dataclass(frozen=True)
class FilterOptions:
    """Limits of what is kept.

    Args:
        asr: Whisper that listens: `embedded:whisper-base`, a CTranslate2 folder or a size by name.
        device: auto, cpu or cuda.
        threads: Threads of a worker's ASR.
        max_wer: Word errors (in Chinese: character errors) over words from which on a sound is dropped.
        min_edits: Fewer errors are forgiven, unless every word is wrong: one of three words is 0.33.
        fastest: Most letters or Chinese characters a second, by language.
        slowest: Fewest of them; with less, the sound holds something else as well.
        slack_sec: Added to the longest time of a text.
        max_edge_silence_sec: Longest silence before and after the speech, each.
        max_clipped_share: Share of samples cut off at the peak, 0 to 1.
        min_level_db: Quietest speech, dB of full scale.
        max_level_db: Loudest speech.
        min_speech_share: Share of the time between the edges that is speech by silero's VAD, 0 to 1.
    """

    asr: str = "embedded:whisper-base"
    device: str = field(default="auto", metadata=NOT_CONTENT)
    threads: int = 1
    max_wer: float = 0.2
    min_edits: int = 2
    fastest: dict[str, float] = field(default_factory=lambda: {"en": 25.0, "zh": 10.0})
    slowest: dict[str, float] = field(default_factory=lambda: {"en": 6.0, "zh": 1.5})
    slack_sec: float = 1.5
    max_edge_silence_sec: float = 1.0
    max_clipped_share: float = 0.001
    min_level_db: float = -40.0
    max_level_db: float = -6.0
    min_speech_share: float = 0.4

    def __post_init__(self) -> None:
        if self.max_wer <= 0 or self.min_edits < 1 or self.threads < 1:
            raise UserError(
                f"max_wer is {self.max_wer}, min_edits {self.min_edits}, threads {self.threads}: expected "
                "max_wer above 0, the others 1 or more"
            )
        if self.min_level_db >= self.max_level_db:
            raise UserError(
                f"min_level_db is {self.min_level_db}, expected less than max_level_db {self.max_level_db}"
            )
        for lang in LANGUAGES:
            slow, fast = self.slowest.get(lang), self.fastest.get(lang)
            if slow is None or fast is None or not 0 < slow < fast:
                raise UserError(
                    f"slowest and fastest of {lang!r} are {slow} and {fast}: expected both, above 0"
                )

    def limits(self, lang: str) -> Limits:
        """Of the sounds of one language."""
        return Limits(
            chars_per_sec=(self.slowest[lang], self.fastest[lang]),
            slack_sec=self.slack_sec,
            edge_silence_sec=self.max_edge_silence_sec,
            clipped_share=self.max_clipped_share,
            level_db=(self.min_level_db, self.max_level_db),
        )


@dataclass(frozen=True)
class _Heard:
    """What came of one sound.

    Args:
        lang: Its language.
        keys: For the utterance or message: `heard`, `wer`, `edits`; fewer if it was not recognised.
        words: Words of the reference, characters in Chinese; 0 if it was not recognised.
        fault: The rule that it breaks, None if it passes.
    """

    lang: str
    keys: Item
    words: int = 0
    fault: Fault | None = None


class FilterStage(Stage):
    """Drops utterances and conversations whose speech differs from its text."""

    name = "filter"
    summary = "drop speech that ASR does not understand"
    Options = FilterOptions

    def __init__(self, options: FilterOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self._asr: Any = None

    def open(self) -> None:
        from faster_whisper.vad import get_vad_model

        self._asr = open_whisper(self.options.asr, self.options.device, self.options.threads)
        self._vad = get_vad_model()

    def run(self, unit: Sequence[Item]) -> Result:
        result, counts = Result(), Counter()
        for item in unit:
            checked, all_heard = self._check(item)
            failed = next(((place, heard.fault) for place, heard in all_heard.items() if heard.fault), None)
            for heard in all_heard.values():
                self._count(counts, heard, kept=failed is None)
            if not all_heard:
                result.rejected.append(Rejection(item, "no sound"))
            elif failed is None:
                result.items.append(checked)
            else:
                place, fault = failed
                named = checked if place is None else checked | {"failed_message": place}
                result.rejected.append(Rejection(named, fault.reason, fault.value, fault.threshold))
        result.counts = dict(counts)
        return result

    def _check(self, item: Item) -> tuple[Item, dict[int | None, _Heard]]:
        """The item with what was heard in it, and what came of each sound.

        Sounds are named by their message's place; the only one of an utterance by None.
        """
        if item.get("messages") is None:
            if not item.get("audio_filepath"):
                return item, {}
            heard = self._listen(item, language(item))
            return item | heard.keys, {None: heard}
        messages, all_heard = [], {}
        for place, message in enumerate(item["messages"]):
            if message.get("audio_filepath"):
                all_heard[place] = self._listen(message, language(item | message))
                message = message | all_heard[place].keys
            messages.append(message)
        return item | {"messages": messages}, all_heard

    @staticmethod
    def _count(counts: Counter[str], heard: _Heard, kept: bool) -> None:
        """Errors and words of all that was recognised, and of what is kept; their ratio is the rate."""
        for group in ("all", "kept") if kept else ("all",):
            counts[f"{heard.lang} sounds, {group}"] += 1
            counts[f"{heard.lang} words, {group}"] += heard.words
            counts[f"{heard.lang} edits, {group}"] += heard.keys.get("edits", 0)

    def _listen(self, spoken: Item, lang: str) -> _Heard:
        """Checks an utterance or a message of a conversation."""
        reference = reference_text(spoken)
        form = scoring_form(reference, lang)
        chars = sum(map(str.isalnum, form))
        if not chars:
            return _Heard(lang, {}, fault=Fault("empty reference", 0, 1))
        wave_T, rate_hz = self._read(spoken)
        for fault in sound_checks.faults(wave_T.numpy(), rate_hz, chars, self.options.limits(lang)):
            return _Heard(lang, {}, fault=fault)
        resampler = Resampler(rate_hz, rates.TOKENIZER_RATE_HZ)
        wave = torch.cat([resampler.push(wave_T), resampler.flush()]).numpy()
        share = self._speech_share(wave)
        if share < self.options.min_speech_share:
            return _Heard(lang, {}, fault=Fault("not speech", round(share, 3), self.options.min_speech_share))
        heard = self._recognise(wave, lang)
        edits, words = error_counts(reference, heard, lang)
        wer = edits / words
        keys = {"heard": heard, "wer": round(wer, 4), "edits": edits}
        wrong = wer >= self.options.max_wer and edits >= min(self.options.min_edits, words)
        name = "character error rate" if lang == "zh" else "word error rate"
        return _Heard(lang, keys, words, Fault(name, round(wer, 4), self.options.max_wer) if wrong else None)

    def _read(self, spoken: Item) -> tuple[torch.Tensor, int]:
        """Samples at the file's own rate, and the rate."""
        path = local_copy(spoken["audio_filepath"])
        rate_hz = io.info(path).rate_hz
        return io.read(path, rate_hz, spoken.get("offset") or 0.0, spoken.get("duration")), rate_hz

    def _speech_share(self, wave: np.ndarray) -> float:
        """Share of the frames between the silent edges in which silero hears a voice."""
        before, sound, _ = sound_checks.edges_sec(sound_checks.frame_levels_db(wave, rates.TOKENIZER_RATE_HZ))
        start = round(before * rates.TOKENIZER_RATE_HZ)
        inner = wave[start : start + round(sound * rates.TOKENIZER_RATE_HZ)]
        padded = np.pad(inner, (0, -len(inner) % _VAD_SAMPLES))
        return float((self._vad(padded) >= 0.5).mean()) if len(padded) else 0.0

    def _recognise(self, wave: np.ndarray, lang: str) -> str:
        """Transcript of samples at 16 kHz."""
        # Beyond one window its time stamps say where the next one begins; without them it would begin in the
        # middle of a word.
        one_window = len(wave) <= _WINDOW_SEC * rates.TOKENIZER_RATE_HZ
        segments, _ = self._asr.transcribe(
            wave, language=lang, beam_size=1, temperature=0.0, without_timestamps=one_window,
            condition_on_previous_text=False,
        )  # fmt: skip
        return " ".join(segment.text.strip() for segment in segments)


def reference_text(spoken: Item) -> str:
    """What the voice was to say: `spoken`, else `written`, else the text itself."""
    for key in ("spoken", "written", "text", "content"):
        if spoken.get(key):
            return str(spoken[key])
    return ""


def language(item: Item) -> str:
    """Language of an item.

    Raises:
        UserError: if it is another one than English or Chinese.
    """
    lang = str(item.get("lang") or "")[:2].lower()
    if lang not in LANGUAGES:
        raise UserError(
            f"item {item_id(item)} has lang {item.get('lang')!r}, expected en or zh: errors are counted in "
            "spoken forms, which these two languages have"
        )
    return lang
