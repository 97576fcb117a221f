"""Word times of transcribed utterances, and what they are good for.

    written   "In"    "1990,"               "Dr. Lee"
    spoken    in      nineteen  ninety      doctor  lee      what a voice says: `lit_moss.prepare.spoken`
    aligned   ├──┤    ├────────┤├──────┤    ├──────┤├──┤     by one of `lit_moss.prepare.aligners`
    words     ├──┤    ├────────────────┤    ├──────────┤     the written words, with these times

An aligner gives times for any text, also for one that was never said. So an utterance is judged by how well
they fit: it is used for interleaving, for speech-only documents, or rejected.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lit_moss.audio import io
from lit_moss.errors import UserError
from lit_moss.prepare.aligners import Aligner, Alignment, open_aligner, weights_of
from lit_moss.prepare.forced_alignment import CannotAlign, TimedWord, interpolate
from lit_moss.prepare.known_borders import measure_shift
from lit_moss.prepare.language import is_han
from lit_moss.prepare.spoken import LANGUAGES, spoken_words
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage
from lit_moss.prepare.storage import Storage, local_copy
from lit_moss.prepare.words import split_words

# A Chinese character takes as long as this many Latin letters: English is spoken at about 14 letters a
# second, Chinese at 5 to 6 characters.
LETTERS_PER_HAN = 2.5


@dataclass
class AlignOptions:
    """Options of the stage.

    Args:
        aligner: `tokenizer` (the CTC head of `speech_tokenizer`), `whisper` (word times that `transcribe`
            found), `mms_fa` (torchaudio's; its weights are CC-BY-NC 4.0, for non-commercial use), or a folder
            or hub id of a Hugging Face CTC model such as facebook/wav2vec2-base-960h.
        speech_tokenizer: Checkpoint or run of conf/codec_encoder.yaml, for the aligner `tokenizer`.
        shift_sec: How late the aligner is, in seconds; taken off all times. Empty: measured on speech with
            known borders for the aligner `tokenizer`, which is causal, and 0 for the others.
        lang: Language of items that state none: en or zh.
        interleave_score: Least mean probability of an utterance's letters for interleaving, 0 to 1.
        speech_score: Least mean probability for speech-only documents, 0 to 1.
        longest_word_sec: Longest spoken word in seconds.
        weak_word: A word whose mean probability is below this, or that was not found, is weak.
        max_weak_share: Largest share of weak words, 0 to 1.
        min_letters_per_sec: Fewest letters a second; a Chinese character counts as 2.5.
        max_letters_per_sec: Most letters a second.
        device: auto, cpu or cuda.
    """

    aligner: str = "whisper"
    speech_tokenizer: str | None = None
    shift_sec: float | None = None
    lang: str = "en"
    interleave_score: float = 0.6
    speech_score: float = 0.3
    longest_word_sec: float = 2.0
    weak_word: float = 0.1
    max_weak_share: float = 0.2
    min_letters_per_sec: float = 2.0
    max_letters_per_sec: float = 25.0
    device: str = field(default="cpu", metadata=NOT_CONTENT)

    def __post_init__(self) -> None:
        if self.lang not in LANGUAGES:
            raise UserError(f"lang is {self.lang!r}, expected en or zh")
        for name in ("interleave_score", "speech_score", "weak_word", "max_weak_share"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise UserError(f"{name} is {value}, expected 0 to 1")
        if self.speech_score > self.interleave_score:
            raise UserError(
                f"speech_score {self.speech_score} is above interleave_score {self.interleave_score}: "
                "interleaving needs the better times, so lower the one or raise the other"
            )
        if not 0 <= self.min_letters_per_sec < self.max_letters_per_sec:
            got = f"min_letters_per_sec is {self.min_letters_per_sec}, max_letters_per_sec "
            raise UserError(f"{got}{self.max_letters_per_sec}: expected 0 <= min < max")
        if self.longest_word_sec <= 0:
            raise UserError(f"longest_word_sec is {self.longest_word_sec}, expected more than 0")
        if self.shift_sec is not None and not -1 <= self.shift_sec <= 1:
            raise UserError(f"shift_sec is {self.shift_sec}, expected seconds between -1 and 1")


class AlignStage(Stage):
    """See the module."""

    name = "align"
    needs = ("audio_filepath",)
    version = 6
    summary = "times of words, by CTC"
    Options = AlignOptions
    options: AlignOptions

    def __init__(self, options: AlignOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self._aligner: Aligner | None = None
        self._shift_sec = 0.0

    def content(self) -> dict[str, Any]:
        weights = weights_of(self.options.aligner, self.options.speech_tokenizer)
        return super().content() | {"weights": weights}

    def is_light(self) -> bool:
        return self.options.aligner == "whisper"

    def open(self) -> None:
        o = self.options
        self._aligner = open_aligner(o.aligner, o.speech_tokenizer, o.device)
        if o.shift_sec is not None:
            self._shift_sec = o.shift_sec
        elif o.aligner == "tokenizer":
            self._shift_sec = measure_shift(self._aligner).shift_sec

    def run(self, unit: Sequence[Item]) -> Result:
        assert self._aligner is not None, "open() comes first"
        result = Result()
        for item in unit:
            try:
                aligned, counts = align_item(item, self._aligner, self.options, self._shift_sec)
            except CannotAlign as error:
                result.rejected.append(Rejection(item, error.reason, error.value, error.threshold))
                continue
            result.items.append(aligned)
            for key, value in counts.items():
                result.counts[key] = result.counts.get(key, 0) + value
        return result


def align_item(
    item: Item, aligner: Aligner, options: AlignOptions, shift_sec: float = 0.0
) -> tuple[Item, dict[str, int]]:
    """The item with `words`, `align_score`, `aligner` and `use`, and what is to be counted.

    Args:
        item: The utterance.
        aligner: Finds the words.
        options: Thresholds.
        shift_sec: How late the aligner is.

    Raises:
        CannotAlign: if it is rejected.
        UnreadableAudio: if its sound cannot be read.
    """
    duration_sec = _duration_sec(item)
    if duration_sec <= 0:
        raise CannotAlign("no sound", duration_sec)
    lang = item.get("lang") or options.lang
    words = words_of(str(item.get("text") or ""), lang)
    spoken = [word for _, own in words for word in own]
    if not spoken:
        raise CannotAlign("no letters to align")
    _check_rate(spoken, duration_sec, options)
    alignment = aligner.align({**item, "lang": lang}, spoken)
    score = _check_fit(alignment, options)
    times, interpolated = _written_times(words, alignment.words, duration_sec, shift_sec)
    use = "interleave" if score >= options.interleave_score else "speech"
    counts: dict[str, int] = {
        use: 1,
        "words": len(words),
        "interpolated words": interpolated,
        "letters by wildcard": alignment.wildcards,
    }
    if shift_sec:
        counts[f"shifted by {-1000 * shift_sec:+.0f} ms"] = 1
    timed = [[word, start, end] for (word, _), (start, end) in zip(words, times, strict=True)]
    return (
        item | {"words": timed, "align_score": round(score, 4), "aligner": options.aligner, "use": use},
        counts,
    )


def words_of(text: str, lang: str) -> list[tuple[str, list[str]]]:
    """Written words, each with the words to align for it: none if it is not said, such as an emoji.

    Raises:
        CannotAlign: if the language has no rules for digits and symbols.
    """
    if lang not in LANGUAGES:
        raise CannotAlign("language without spoken forms", lang, " or ".join(LANGUAGES))
    return [
        (written, [part for word in said for part in split_words(word)])
        for written, said in spoken_words(text, lang)
    ]


# --- rules --------------------------------------------------------------------------------------------------


def _check_rate(spoken: Sequence[str], duration_sec: float, options: AlignOptions) -> None:
    letters = sum(LETTERS_PER_HAN if is_han(c) else 1 for word in spoken for c in word)
    rate = letters / duration_sec
    if rate > options.max_letters_per_sec:
        raise CannotAlign("too many letters a second", round(rate, 2), options.max_letters_per_sec)
    if rate < options.min_letters_per_sec:
        raise CannotAlign("too few letters a second", round(rate, 2), options.min_letters_per_sec)


def _check_fit(alignment: Alignment, options: AlignOptions) -> float:
    """Score of an utterance that keeps the rules."""
    words = [word for word in alignment.words if word is not None]
    scores = [word.score for word in words if word.score is not None]
    if not scores:
        raise CannotAlign("no letter of the text is in the aligner's vocabulary")
    score = mean_score(words)
    if score < options.speech_score:
        raise CannotAlign("mean probability of the letters", round(score, 4), options.speech_score)
    longest = max(word.end_sec - word.start_sec for word in words)
    if longest > options.longest_word_sec:
        raise CannotAlign("longest word in seconds", round(longest, 3), options.longest_word_sec)
    missing = alignment.words.count(None)
    share = (missing + sum(s < options.weak_word for s in scores)) / (missing + len(scores))
    if share > options.max_weak_share:
        raise CannotAlign("share of weak words", round(share, 4), options.max_weak_share)
    return score


def mean_score(words: Sequence[TimedWord | None]) -> float:
    """Mean probability of the letters, each weighted by its length; 0 without any."""
    scored = [(word.score, word.weight) for word in words if word is not None and word.score is not None]
    weight = sum(w for _, w in scored)
    return sum(score * w for score, w in scored) / weight if weight else 0.0


# --- times --------------------------------------------------------------------------------------------------


def _written_times(
    words: Sequence[tuple[str, list[str]]],
    spoken: Sequence[TimedWord | None],
    duration_sec: float,
    shift_sec: float,
) -> tuple[list[tuple[float, float]], int]:
    """Start and end of each written word in seconds, and how many are interpolated."""
    times: list[tuple[float, float] | None] = []
    first = 0
    for _, own in words:
        found = [word for word in spoken[first : first + len(own)] if word is not None]
        first += len(own)
        times.append((found[0].start_sec - shift_sec, found[-1].end_sec - shift_sec) if found else None)
    lengths = [sum(map(len, own)) for _, own in words]
    ordered: list[tuple[float, float]] = []
    previous = 0.0
    for start, end in interpolate(times, lengths, duration_sec):
        start = min(max(start, previous), duration_sec)
        ordered.append((round(start, 3), round(min(max(end, start), duration_sec), 3)))
        previous = start
    return ordered, times.count(None)


def _duration_sec(item: Item) -> float:
    if item.get("duration") is not None:
        return float(item["duration"])
    path = local_copy(item["audio_filepath"])
    return io.span_sec(path, io.info(path), item.get("offset") or 0.0, None)
