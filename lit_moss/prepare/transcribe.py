"""Segments of speech -> transcripts, by Whisper (faster-whisper).

Segments are transcribed alone, as voice activity detection cut them: nothing is cut again, nothing glued
together, and no text is a prompt for the next. What Whisper scores itself (mean log-probability, probability
of no speech, of the language, of each word) goes into the items; `check-transcripts` decides what is kept.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.prepare.channel_note import note_channels
from lit_moss.prepare.language import simplified
from lit_moss.prepare.stage import NOT_CONTENT, OF_A_TEXT, Item, Rejection, Result, Stage
from lit_moss.prepare.storage import local_copy

if TYPE_CHECKING:
    from faster_whisper.transcribe import Segment

LONGEST_SEC = 30.0  # what Whisper hears at once
# The clips of a batch are placed this far apart in one array. The distance keeps faster-whisper's repair of
# word times, which looks at the pause before a clip's first word, from seeing another clip; a whole number of
# seconds keeps times exact (it takes offsets in steps of 10 ms, rounded down).
_SLOT_SEC = 40
_RATE_HZ = rates.TOKENIZER_RATE_HZ


@dataclass
class TranscribeOptions:
    """Options of `prepare transcribe`.

    Args:
        model: `embedded:whisper-base` (99 languages), `embedded:whisper-tiny` (English), a CTranslate2
            folder, or a size such as large-v3-turbo, which is fetched.
        language: ISO 639-1 code of all segments; without it an item's `lang` is taken, and where it has none
            the language of each segment is detected (which takes a second pass of the encoder).
        batch: Segments that are transcribed together; only those of one recording are.
        beam_size: Hypotheses of the beam search; 1 is greedy, which was no worse on LJ Speech.
        word_times: Keep the words with their times and probabilities as `asr_words`.
        simplified: Write Chinese in simplified characters; Whisper chooses between the two by chance.
        compute_type: int8, float32; on CUDA also float16, int8_float16.
        threads: Threads of each worker on the CPU.
        device: auto, cpu or cuda.
    """

    model: str = "embedded:whisper-base"
    language: str | None = None
    batch: int = 8
    beam_size: int = 1
    word_times: bool = True
    simplified: bool = True
    compute_type: str = "int8"
    threads: int = 1
    device: str = field(default="auto", metadata=NOT_CONTENT)

    def __post_init__(self) -> None:
        for name in ("batch", "beam_size", "threads"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more")


@dataclass(frozen=True)
class _Clip:
    """One item that is transcribed.

    Args:
        item: The item.
        wave_T: Its samples at 16 kHz.
        language: Stated or detected.
        language_prob: Probability of the detected language; None if it was stated.
    """

    item: Item
    wave_T: np.ndarray
    language: str
    language_prob: float | None


class TranscribeStage(Stage):
    """Adds `text`, `lang`, `lang_prob`, `avg_logprob`, `no_speech_prob`, `asr`, `asr_words` to each item."""

    name = "transcribe"
    version = 3
    summary = "segments -> transcripts, by ASR"
    Options: ClassVar[type] = TranscribeOptions

    options: TranscribeOptions

    def content(self) -> dict[str, Any]:
        """Options, and the fingerprint of the weights."""
        from lit_moss.hub.whisper import whisper_fingerprint

        return super().content() | {"weights": whisper_fingerprint(self.options.model)}

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """The first `batch` consecutive segments of a recording, the next ones, and so on."""
        for _, of_recording in groupby(items, key=lambda item: item.get("audio_filepath")):
            unit: list[Item] = []
            for item in of_recording:
                if not item.get("audio_filepath"):
                    raise UserError(f"{str(item)[:100]}: no audio_filepath, expected recordings or segments")
                unit.append(item)
                if len(unit) == self.options.batch:
                    yield unit
                    unit = []
            if unit:
                yield unit

    def open(self) -> None:
        """Loads the model.

        Raises:
            UserError: if it cannot be opened, or does not know the language.
        """
        from faster_whisper import BatchedInferencePipeline

        from lit_moss.hub.whisper import open_whisper

        options = self.options
        self._model = open_whisper(options.model, options.device, options.threads, options.compute_type)
        self._pipeline = BatchedInferencePipeline(self._model)
        if options.language is not None:
            self._check_language(options.language)

    def run(self, unit: Sequence[Item]) -> Result:
        """Transcribes segments of at most 30 s; longer ones are rejected."""
        result = Result()
        clips = []
        for item in unit:
            seconds, wave_T = _read(item)
            if wave_T is None:
                result.rejected.append(
                    Rejection(item, "longer than Whisper hears", round(seconds, 3), LONGEST_SEC)
                )
            else:
                clips.append(_Clip(item, wave_T, *self._language(item, wave_T)))
                note_channels([item], result)
        transcribed: dict[int, Item] = {}
        for language in sorted({clip.language for clip in clips}):
            of_language = [(i, clip) for i, clip in enumerate(clips) if clip.language == language]
            found = self._transcribe([clip.wave_T for _, clip in of_language], language)
            for (i, clip), segments in zip(of_language, found, strict=True):
                transcribed[i] = self._item(clip, segments)
        result.items = [transcribed[i] for i in sorted(transcribed)]
        return result

    def _language(self, item: Item, wave_T: np.ndarray) -> tuple[str, float | None]:
        stated = self.options.language or item.get("lang")
        if stated:
            return self._check_language(str(stated)), None
        if not self._model.model.is_multilingual:
            return "en", None
        language, probability, _ = self._model.detect_language(audio=wave_T)
        return language, round(float(probability), 4)

    def _check_language(self, language: str) -> str:
        if language not in self._model.supported_languages:
            known = self._model.supported_languages
            expected = ", ".join(known) if len(known) < 9 else f"one of its {len(known)} languages"
            raise UserError(
                f"language {language!r} is not known to {self.options.model}, expected {expected}: correct "
                "it, or take another model"
            )
        return language

    def _transcribe(self, waves: Sequence[np.ndarray], language: str) -> list[list["Segment"]]:
        """Segments of each wave, usually one, with times from its start."""
        array = np.zeros((len(waves) + 1) * _SLOT_SEC * _RATE_HZ, np.float32)
        edges = []
        for slot, wave_T in enumerate(waves, start=1):
            first = slot * _SLOT_SEC * _RATE_HZ
            array[first : first + len(wave_T)] = wave_T
            # Half a sample more: faster-whisper rounds down.
            edges.append({"start": slot * _SLOT_SEC, "end": (first + len(wave_T) + 0.5) / _RATE_HZ})
        segments, _ = self._pipeline.transcribe(
            array, language=language, clip_timestamps=edges, batch_size=len(waves), temperature=0.0,
            beam_size=self.options.beam_size, word_timestamps=self.options.word_times,
            condition_on_previous_text=False,
        )  # fmt: skip
        found: list[list[Segment]] = [[] for _ in waves]
        for segment in segments:
            # `seek` is the start of the segment's clip, in frames of 10 ms.
            slot = segment.seek // (_SLOT_SEC * 100)
            start_sec = slot * _SLOT_SEC
            for word in segment.words or ():
                word.start, word.end = word.start - start_sec, word.end - start_sec
            found[slot - 1].append(segment)
        return found

    def _item(self, clip: _Clip, segments: Sequence["Segment"]) -> Item:
        chinese = clip.language == "zh" and self.options.simplified
        write = simplified if chinese else str
        item = {key: value for key, value in clip.item.items() if key not in OF_A_TEXT} | {
            "text": write("".join(segment.text for segment in segments).strip()),
            "lang": clip.language,
            "avg_logprob": round(min((s.avg_logprob for s in segments), default=0.0), 4),
            "no_speech_prob": round(max((s.no_speech_prob for s in segments), default=1.0), 4),
            "asr": self.options.model,
        }
        if item.get("duration") is None:  # rules on time need it
            item["duration"] = round(len(clip.wave_T) / _RATE_HZ, 6)
        if clip.language_prob is not None:
            item["lang_prob"] = clip.language_prob
        if self.options.word_times:
            longest = len(clip.wave_T) / _RATE_HZ
            item["asr_words"] = [
                [
                    write(word.word.strip()),
                    *_inside(word.start, word.end, longest),
                    round(float(word.probability), 4),
                ]
                for segment in segments
                for word in segment.words or ()
                if word.word.strip()
            ]
        return item


def _read(item: Item) -> tuple[float, np.ndarray | None]:
    """Length in seconds, and samples (T,) at 16 kHz unless the segment is too long.

    Raises:
        UnreadableAudio: if it cannot be read.
    """
    from lit_moss.audio import io

    path = local_copy(str(item["audio_filepath"]))
    offset_sec, seconds = float(item.get("offset") or 0.0), item.get("duration")
    if seconds is None:
        seconds = io.info(path).duration_sec - offset_sec
    if seconds > LONGEST_SEC:
        return float(seconds), None
    wave_T = io.read(path, _RATE_HZ, offset_sec, float(seconds), channel=item.get("channel"))
    # Resampling may round one sample up.
    return float(seconds), wave_T[: round(LONGEST_SEC * _RATE_HZ)].numpy()


def _inside(start_sec: float, end_sec: float, longest_sec: float) -> tuple[float, float]:
    """Times inside the clip, in order; Whisper's own may be 20 ms beyond its end."""
    start = min(max(start_sec, 0.0), longest_sec)
    return round(float(start), 2), round(float(min(max(end_sec, start), longest_sec)), 2)
