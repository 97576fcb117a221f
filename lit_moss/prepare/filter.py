"""Drops synthesised speech that ASR does not understand, or that sounds wrong (arXiv:2510.00499, 3.2.1).

    sound ─┬─ length, silence, clipping, level   `sound_checks`
           ├─ voice activity                     is it speech at all?
           └─ ASR ─ heard ─┐
    text  ─ spoken form ───┴─ word errors        character errors in Chinese

Both sides are compared in the form of `lit_moss.prepare.scoring`: digits spoken, no punctuation, Chinese
simplified. Items are utterances (`audio_filepath`, `spoken`) or conversations, all of whose messages with a
sound must pass. Short sounds are recognised several at a time; one that fails is recognised again, alone.

ASR has errors too. `prepare filter embedded:everyday-en --out DIR` counts them on a voice that is known to be
good; any manifest with transcripts will do.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from lit_moss.audio import io, rates
from lit_moss.audio.features import Resampler
from lit_moss.corpora.everyday import EVERYDAY, everyday_corpus
from lit_moss.errors import UserError
from lit_moss.hub.whisper import whisper_fingerprint
from lit_moss.prepare import sound_checks
from lit_moss.prepare.channel_note import note_channels
from lit_moss.prepare.items import read_items, speech_sec
from lit_moss.prepare.joined_asr import GAP_SEC, WINDOW_SEC, Heard, JoinedAsr
from lit_moss.prepare.language import text_language
from lit_moss.prepare.scoring import error_counts, scoring_form
from lit_moss.prepare.sound_checks import Fault, Limits
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage
from lit_moss.prepare.storage import Storage, absolute, local_copy

LANGUAGES = ("en", "zh")
_VAD_SAMPLES = 512  # of a frame at 16 kHz


@dataclass(frozen=True)
class FilterOptions:
    """Limits of what is kept.

    Args:
        asr: Whisper that listens: `embedded:whisper-base`, a CTranslate2 folder or a size by name.
        device: auto, cpu or cuda.
        threads: Threads of a worker's ASR.
        compute_type: int8, float32; on CUDA also float16, int8_float16.
        max_wer: Word errors (in Chinese: character errors) over words from which on a sound is dropped.
        min_edits: Fewer errors are forgiven, unless every word is wrong: one of three words is 0.33. The
            paper (3.2.1) forgives none: 1.
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
    compute_type: str = "int8"
    max_wer: float = 0.2
    min_edits: int = 2
    fastest: dict[str, float] = field(default_factory=lambda: {"en": 25.0, "zh": 10.0})
    slowest: dict[str, float] = field(default_factory=lambda: {"en": 6.0, "zh": 1.5})
    slack_sec: float = 1.5
    max_edge_silence_sec: float = 1.5
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
class _Sound:
    """What is known of one sound.

    Args:
        lang: Its language.
        reference: What it should say.
        wave: Samples at 16 kHz; empty where it was not listened to.
        heard: What was recognised; None where it was not listened to.
        edits: Errors of the transcript.
        words: Words of the reference, characters in Chinese.
        fault: The rule that it breaks, None if it passes.
    """

    lang: str
    reference: str
    wave: np.ndarray
    heard: Heard | None = None
    edits: int = 0
    words: int = 0
    fault: Fault | None = None

    @property
    def keys(self) -> Item:
        """For the utterance or message; empty if it was not recognised."""
        if self.heard is None:
            return {}
        return {"heard": self.heard.text, "wer": round(self.edits / self.words, 4), "edits": self.edits}


class FilterStage(Stage):
    """Drops utterances and conversations whose speech differs from its text."""

    name = "filter"
    needs = ("audio_filepath", "messages")
    version = 7
    Options = FilterOptions

    def __init__(self, options: FilterOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: FilterOptions = options

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        return _everyday() if source == EVERYDAY else None

    def content(self) -> dict[str, Any]:
        return super().content() | {"asr": whisper_fingerprint(self.options.asr)}

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        unit: list[Item] = []
        seconds = 0.0
        for item in items:
            own_sec = speech_sec(item)  # 0: not stated; such an item is alone
            item_sec = own_sec + GAP_SEC * len(item.get("messages") or (1,)) if own_sec else WINDOW_SEC
            if unit and seconds + item_sec > WINDOW_SEC:
                yield unit
                unit, seconds = [], 0.0
            unit.append(item)
            seconds += item_sec
        if unit:
            yield unit

    def open(self) -> None:
        from faster_whisper.vad import get_vad_model

        o = self.options
        self._asr = JoinedAsr(o.asr, o.device, o.threads, o.compute_type)
        self._vad = get_vad_model()

    def run(self, unit: Sequence[Item]) -> Result:
        result, counts = Result(), Counter()
        named = [(number, place, part) for number, item in enumerate(unit) for place, part in sounds_of(item)]
        sounds = self._recognised(
            [self._checked(part, language(unit[number], part)) for number, _, part in named]
        )
        for number, item in enumerate(unit):
            own = {name[1]: sound for name, sound in zip(named, sounds, strict=True) if name[0] == number}
            faults = [(place, sound.fault) for place, sound in own.items() if sound.fault]
            for sound in own.values():
                self._count(counts, sound, is_kept=not faults)
            checked = _with_keys(item, own)
            if not own:
                result.rejected.append(Rejection(item, "no sound"))
            elif not faults:
                result.items.append(checked)
            else:
                place, fault = faults[0]
                rejected = checked if place is None else checked | {"failed_message": place}
                result.rejected.append(Rejection(rejected, fault.reason, fault.value, fault.threshold))
        result.counts = dict(counts)
        note_channels((part for _, _, part in named), result)
        return result

    @staticmethod
    def _count(counts: Counter[str], sound: _Sound, is_kept: bool) -> None:
        """Errors and words of all that was recognised, and of what is kept; their ratio is the rate."""
        if sound.heard is None:
            return
        for group in ("all", "kept") if is_kept else ("all",):
            counts[f"{sound.lang} sounds {group}"] += 1
            counts[f"{sound.lang} words {group}"] += sound.words
            counts[f"{sound.lang} edits {group}"] += sound.edits

    def _checked(self, part: Item, lang: str) -> _Sound:
        """An utterance or a message, checked by all rules but the transcript's."""
        sound = _Sound(lang, reference_text(part), np.zeros(0, dtype=np.float32))
        if lang not in LANGUAGES:
            return replace(sound, fault=Fault("language without spoken forms", lang, " or ".join(LANGUAGES)))
        chars = sum(map(str.isalnum, scoring_form(sound.reference, lang)))
        if not chars:
            return replace(sound, fault=Fault("empty reference", 0, 1))
        wave_T, rate_hz = self._read(part)
        for fault in sound_checks.faults(wave_T.numpy(), rate_hz, chars, self.options.limits(lang)):
            return replace(sound, fault=fault)
        resampler = Resampler(rate_hz, rates.TOKENIZER_RATE_HZ)
        sound = replace(sound, wave=torch.cat([resampler.push(wave_T), resampler.flush()]).numpy())
        share, least = self._speech_share(sound.wave), self.options.min_speech_share
        return replace(sound, fault=Fault("not speech", round(share, 3), least)) if share < least else sound

    def _recognised(self, sounds: Sequence[_Sound]) -> list[_Sound]:
        """The sounds with what was heard in them; those with a fault are not listened to."""
        done = list(sounds)
        for lang in LANGUAGES:
            places = [i for i, sound in enumerate(done) if sound.lang == lang and not sound.fault]
            recognised = self._asr.joined([done[i].wave for i in places], lang)
            for i, heard in zip(places, recognised, strict=True):
                done[i] = self._compared(done[i], heard)
                if done[i].fault and len(places) > 1:
                    # Its words may have been taken for a neighbour's.
                    alone = replace(done[i], fault=None)
                    done[i] = self._compared(alone, self._asr.alone(alone.wave, lang))
        return done

    def _compared(self, sound: _Sound, heard: Heard) -> _Sound:
        edits, words = error_counts(sound.reference, heard.text, sound.lang)
        sound = replace(sound, heard=heard, edits=edits, words=words)
        if edits / words < self.options.max_wer or edits < min(self.options.min_edits, words):
            return sound
        name = "character error rate" if sound.lang == "zh" else "word error rate"
        return replace(sound, fault=Fault(name, round(edits / words, 4), self.options.max_wer))

    def _read(self, spoken: Item) -> tuple[torch.Tensor, int]:
        """Samples at the file's own rate, and the rate."""
        path = local_copy(spoken["audio_filepath"])
        rate_hz = io.info(path).rate_hz
        span = (spoken.get("offset") or 0.0, spoken.get("duration"))
        return io.read(path, rate_hz, *span, channel=spoken.get("channel")), rate_hz

    def _speech_share(self, wave: np.ndarray) -> float:
        """Share of the frames between the silent edges in which silero hears a voice."""
        before, sound, _ = sound_checks.edges_sec(sound_checks.frame_levels_db(wave, rates.TOKENIZER_RATE_HZ))
        start = round(before * rates.TOKENIZER_RATE_HZ)
        inner = wave[start : start + round(sound * rates.TOKENIZER_RATE_HZ)]
        padded = np.pad(inner, (0, -len(inner) % _VAD_SAMPLES))
        return float((self._vad(padded) >= 0.5).mean()) if len(padded) else 0.0


def sounds_of(item: Item) -> Iterator[tuple[int | None, Item]]:
    """The utterance with the place None, or the messages that have a sound with their places."""
    if item.get("messages") is None:
        if item.get("audio_filepath"):
            yield None, item
        return
    for place, message in enumerate(item["messages"]):
        if message.get("audio_filepath"):
            yield place, message


def _with_keys(item: Item, sounds: dict[int | None, _Sound]) -> Item:
    """The item with `heard`, `wer` and `edits` of its sounds; an utterance also with `asr_words`."""
    if item.get("messages") is None:
        own = sounds.get(None)
        words = {"asr_words": own.heard.words} if own and own.heard else {}
        return item | own.keys | words if own else item
    messages = [
        message | sounds[place].keys if place in sounds else message
        for place, message in enumerate(item["messages"])
    ]
    return item | {"messages": messages}


def reference_text(spoken: Item) -> str:
    """What the voice was to say: `spoken`, else `written`, else the text itself."""
    for key in ("spoken", "written", "text", "content"):
        if spoken.get(key):
            return str(spoken[key])
    return ""


def language(item: Item, part: Item) -> str:
    """Two letters: what a message or its item states, else what the text looks like."""
    stated = part.get("lang") or item.get("lang")
    return stated[:2].lower() if stated else text_language(reference_text(part))


def _everyday() -> Iterator[Item]:
    """The held-out sentences of the embedded corpus: its voice is known to be good."""
    manifest = str(everyday_corpus() / "validation.jsonl")
    for line in read_items(manifest):
        path = absolute(line.item["audio_filepath"], str(everyday_corpus()))
        yield line.item | {"audio_filepath": path, "source": EVERYDAY, "licence": "Apache-2.0"}
