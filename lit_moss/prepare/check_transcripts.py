"""Drops transcripts of words that were never said, by rules on text, length and ASR scores.

No model runs here, so thresholds can be changed without repeating ASR. Rules are applied in a fixed order;
the first one that is violated is the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from lit_moss.errors import UserError
from lit_moss.prepare import transcript_rules as measure
from lit_moss.prepare.language import is_unspaced, script_share, simplified, words_of
from lit_moss.prepare.stage import Item, Rejection, Result, Stage
from lit_moss.records import is_number

OTHER = "other"  # key of a threshold by language: all languages not listed


def _longest_word_limits() -> dict:
    return {OTHER: 25, **dict.fromkeys(("fi", "de", "nl", "sv", "da", "no", "hu", "et", "is", "tr"), 35)}


@dataclass
class CheckTranscriptsOptions:
    """Options of `prepare check-transcripts`. A threshold of null disables its rule.

    Args:
        languages: Languages to keep; empty: all.
        min_lang_prob: Minimum probability of a detected language.
        min_script_share: Minimum fraction of words in the script of the language.
        max_characters_per_sec: By language: maximum number of letters, digits and spaces per second.
        min_characters_per_sec: Minimum number of letters, digits and spaces per second; with fewer, text is
            missing.
        min_characters_from_sec: Segments shorter than this many seconds have no minimum: they may be one
            word.
        min_distinct: Minimum fraction of distinct words (for Chinese: of pairs of characters).
        min_distinct_from_words: Texts with fewer words may repeat words: "no no no".
        min_distinct_from_characters: As min_distinct_from_words, in characters, for texts without spaces.
        max_repeats: Maximum number of occurrences of a sequence of words.
        repeat_words: Length of such a sequence in words.
        repeat_characters: Length of such a sequence in characters, for texts without spaces.
        max_zlib_ratio: Maximum number of text bytes per compressed byte.
        max_zlib_ratio_from_bytes: Texts with fewer bytes are not checked, since their ratio says little.
        max_word_letters: By language: maximum length of a word in Latin letters.
        max_word_ratio: Maximum ratio of the lengths of the longest and the second longest word.
        max_word_ratio_from_letters: Words with fewer letters are not checked for this ratio.
        stock_phrases: Drop caption formulas ("thanks for watching") if the ASR is unsure, since people do say
            "thank you".
        more_stock_phrases: By language: additional phrases.
        stock_min_logprob: Minimum mean log-probability of a stock phrase to be kept.
        stock_max_no_speech: Maximum no-speech probability of a stock phrase to be kept.
        stock_min_sec: Minimum length in seconds of a segment with a stock phrase to be kept.
        min_logprob: Minimum mean log-probability; a text below it is dropped if its no-speech probability is
            also above `max_no_speech`.
        max_no_speech: Maximum no-speech probability, see `min_logprob`.
        max_anomaly: Whisper's anomaly score of the first eight words at which a text is dropped.
    """

    languages: list[str] = field(default_factory=list)
    min_lang_prob: float | None = 0.7
    min_script_share: float | None = 0.5
    max_characters_per_sec: dict | None = field(
        default_factory=lambda: {OTHER: 25, "en": 25, "zh": 10, "yue": 10, "ja": 15, "ko": 12}
    )
    min_characters_per_sec: float | None = 2.0
    min_characters_from_sec: float = 2.0
    min_distinct: float | None = 0.4
    min_distinct_from_words: int = 10
    min_distinct_from_characters: int = 16
    max_repeats: int | None = 3
    repeat_words: int = 5
    repeat_characters: int = 8
    max_zlib_ratio: float | None = 3.0
    max_zlib_ratio_from_bytes: int = 100
    max_word_letters: dict | None = field(default_factory=_longest_word_limits)
    max_word_ratio: float | None = 3.0
    max_word_ratio_from_letters: int = 20
    stock_phrases: bool = True
    more_stock_phrases: dict = field(default_factory=dict)
    stock_min_logprob: float = -0.7
    stock_max_no_speech: float = 0.4
    stock_min_sec: float = 0.5
    min_logprob: float | None = -1.0
    max_no_speech: float = 0.6
    max_anomaly: float | None = 3.0

    def __post_init__(self) -> None:
        for name in ("max_characters_per_sec", "max_word_letters"):
            limits = getattr(self, name)
            if limits is not None and OTHER not in limits:
                raise UserError(f"{name} is {limits}, expected a number for {OTHER!r} in it: add one")
            for language, limit in (limits or {}).items():
                if not is_number(limit):
                    raise UserError(f"{name} of {language!r} is {limit!r}, expected a number")
        for language, phrases in self.more_stock_phrases.items():
            if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
                got = f"more_stock_phrases of {language!r} is {phrases!r}"
                raise UserError(f"{got}, expected a list of phrases: [{str(phrases)[:40]!r}]")
        for name in ("repeat_words", "repeat_characters"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more")


class CheckTranscriptsStage(Stage):
    """Passes items on, or rejects them with reason, value and threshold."""

    name = "check-transcripts"
    summary = "drop transcripts of what was never said"
    Options: ClassVar[type] = CheckTranscriptsOptions

    options: CheckTranscriptsOptions

    def is_light(self) -> bool:
        return True

    def run(self, unit: Sequence[Item]) -> Result:
        """Applies the rules to each item."""
        result = Result()
        for item in unit:
            finding = check_transcript(item, self.options)
            if finding is None:
                result.items.append(item)
            else:
                result.rejected.append(Rejection(item, *finding))
        return result


Finding = tuple[str, float | str, float | str | None]  # reason, value, threshold


@dataclass(frozen=True)
class _Transcript:
    """An item as seen by the rules; values that it does not state are None, and no rule checks them.

    Args:
        text: Text of the transcript.
        words: Words of the text, see `words_of`.
        language: ISO 639-1 code; "" if unknown.
        seconds: Length in seconds.
        lang_prob: Probability of the detected language.
        logprob: Mean log-probability of the text.
        no_speech: No-speech probability.
        asr_words: Words with times and probabilities.
    """

    text: str
    words: list[str]
    language: str
    seconds: float | None
    lang_prob: float | None
    logprob: float | None
    no_speech: float | None
    asr_words: list

    @property
    def is_unspaced(self) -> bool:
        """Whether characters are used as words."""
        return is_unspaced(self.words)


def check_transcript(item: Item, options: CheckTranscriptsOptions) -> Finding | None:
    """The first rule that an item violates: reason, value, threshold; None if there is none."""
    text = str(item.get("text") or "")
    transcript = _Transcript(
        text,
        words_of(text),
        str(item.get("lang") or ""),
        item.get("duration"),
        item.get("lang_prob"),
        item.get("avg_logprob"),
        item.get("no_speech_prob"),
        item.get("asr_words") or [],
    )
    for rule in _RULES:
        finding = rule(transcript, options)
        if finding is not None:
            reason, value, threshold = finding
            return reason, round(value, 4) if isinstance(value, float) else value, threshold
    return None


def _language(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.languages and t.language not in o.languages:
        return "language", t.language or "unknown", ", ".join(o.languages)
    return None


def _no_text(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    return None if t.words else ("no text", t.text, "letters or digits")


def _silence(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.min_logprob is None or t.logprob is None or t.no_speech is None:
        return None
    if t.logprob < o.min_logprob and t.no_speech > o.max_no_speech:
        return (
            "probably no speech",
            f"log-prob {t.logprob}, no speech {t.no_speech}",
            (f"log-prob {o.min_logprob}, no speech {o.max_no_speech}"),
        )
    return None


def _stock_phrase(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if not o.stock_phrases:
        return None
    words = words_of(simplified(t.text)) if t.language == "zh" else t.words
    phrase = measure.stock_phrase(words, t.language, o.more_stock_phrases.get(t.language, ()))
    if phrase is None:
        return None
    if t.seconds is not None and t.seconds < o.stock_min_sec:
        return "stock phrase", f"{phrase} in {t.seconds:.2f} s", f"{o.stock_min_sec} s"
    if t.logprob is not None and t.logprob < o.stock_min_logprob:
        return "stock phrase", f"{phrase}, log-prob {t.logprob}", f"log-prob {o.stock_min_logprob}"
    if t.no_speech is not None and t.no_speech > o.stock_max_no_speech:
        return "stock phrase", f"{phrase}, no speech {t.no_speech}", f"no speech {o.stock_max_no_speech}"
    return None


def _lang_prob(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.min_lang_prob is None or t.lang_prob is None or t.lang_prob >= o.min_lang_prob:
        return None
    return "probability of the language", t.lang_prob, o.min_lang_prob


def _script(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    share = script_share(t.words, t.language) if t.language else None
    if o.min_script_share is None or share is None or share >= o.min_script_share:
        return None
    return "script of the text", share, o.min_script_share


def _distinct(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    least = o.min_distinct_from_characters if t.is_unspaced else o.min_distinct_from_words
    if o.min_distinct is None or len(t.words) < least:
        return None
    ratio = measure.distinct_ratio(t.words)
    return ("distinct words", ratio, o.min_distinct) if ratio <= o.min_distinct else None


def _repeats(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.max_repeats is None:
        return None
    repeats = measure.most_repeats(t.words, o.repeat_characters if t.is_unspaced else o.repeat_words)
    return ("repeated words", repeats, o.max_repeats) if repeats > o.max_repeats else None


def _zlib(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.max_zlib_ratio is None or len(t.text.encode()) < o.max_zlib_ratio_from_bytes:
        return None
    ratio = measure.zlib_ratio(t.text)
    return ("compression of the text", ratio, o.max_zlib_ratio) if ratio > o.max_zlib_ratio else None


def _long_word(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    longest, following = measure.longest_words(t.words)
    if o.max_word_letters is not None:
        limit = o.max_word_letters.get(t.language, o.max_word_letters[OTHER])
        if longest >= limit:
            return "longest word", longest, limit
    if o.max_word_ratio is None or longest < o.max_word_ratio_from_letters or not following:
        return None
    ratio = longest / following
    return ("longest word over the next", ratio, o.max_word_ratio) if ratio >= o.max_word_ratio else None


def _too_fast(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.max_characters_per_sec is None or not t.seconds:
        return None
    limit = o.max_characters_per_sec.get(t.language, o.max_characters_per_sec[OTHER])
    rate = measure.characters(t.words) / t.seconds
    return ("characters per second", rate, limit) if rate > limit else None


def _too_slow(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.min_characters_per_sec is None or not t.seconds or t.seconds < o.min_characters_from_sec:
        return None
    rate = measure.spoken_characters(t.words) / t.seconds
    if rate >= o.min_characters_per_sec:
        return None
    return "characters per second", rate, o.min_characters_per_sec


def _anomaly(t: _Transcript, o: CheckTranscriptsOptions) -> Finding | None:
    if o.max_anomaly is None:
        return None
    score = measure.anomaly(t.asr_words, with_times=not t.is_unspaced)
    return ("anomalous words", score, o.max_anomaly) if score >= o.max_anomaly else None


_RULES: tuple[Callable[[_Transcript, CheckTranscriptsOptions], Finding | None], ...] = (
    _language,
    _no_text,
    _distinct,
    _repeats,
    _zlib,
    _long_word,
    _too_fast,
    _stock_phrase,
    _silence,
    _lang_prob,
    _script,
    _too_slow,
    _anomaly,
)
