"""Indications of transcripts of words that were never said, as functions of text, times or scores.

Sources: NeMo's speech data processor and Curator (distinct words, long words, repeated n-grams, characters
per second, stock phrases), Whisper (compression ratio, mean log-probability with no speech, anomalous words).
In texts without spaces, such as Chinese, characters are used as words.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise

from lit_moss.prepare.language import is_unspaced, script_of, words_of
from lit_moss.prepare.stock_phrases import PHRASES

AsrWord = Sequence  # [word, start in seconds, end in seconds, probability]


def distinct_ratio(words: list[str]) -> float:
    """Distinct words / words; for a text without spaces, distinct pairs of characters / pairs."""
    counted = list(pairwise(words)) if is_unspaced(words) else words
    return len(set(counted)) / len(counted) if counted else 1.0


def most_repeats(words: list[str], n: int) -> int:
    """Number of occurrences of the most frequent sequence of n words, without overlaps."""
    counts: dict[tuple[str, ...], int] = {}
    free_from: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - n + 1):
        key = tuple(words[i : i + n])
        if i >= free_from.get(key, 0):
            counts[key], free_from[key] = counts.get(key, 0) + 1, i + n
    return max(counts.values(), default=0)


def zlib_ratio(text: str) -> float:
    """Bytes of the text / compressed bytes: 1.2 to 2 for prose, more for repetitions."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def longest_words(words: list[str]) -> tuple[int, int]:
    """Lengths of the longest and the second longest word in Latin letters, 0 if there is none."""
    lengths = sorted((len(word) for word in words if script_of(word[0]) == "LATIN"), reverse=True)
    longest, following = [*lengths, 0, 0][:2]
    return longest, following


def characters(words: list[str]) -> int:
    """Number of letters, digits, and spaces between words, without punctuation."""
    return len(("" if is_unspaced(words) else " ").join(words))


def spoken_characters(words: list[str]) -> int:
    """As `characters`, but with spaces a digit counts as four: "1984" has some 20 letters when spoken."""
    digits = 0 if is_unspaced(words) else sum(c.isdigit() for word in words for c in word)
    return characters(words) + 3 * digits


def stock_phrase(words: list[str], language: str, more: Sequence[str] = ()) -> str | None:
    """The stock phrase that a text equals, or begins with if it has at least 8 characters (Chinese: 4).

    Args:
        words: Words of the text.
        language: ISO 639-1 code that selects the list of phrases.
        more: Additional phrases.
    """
    found = None
    for phrase in (*PHRASES.get(language, ()), *more):
        of_phrase = words_of(phrase)
        least = 4 if is_unspaced(of_phrase) else 8
        is_prefix = len(phrase) >= least and words[: len(of_phrase)] == of_phrase
        if (words == of_phrase or is_prefix) and len(phrase) > len(found or ""):
            found = phrase
    return found


def anomaly(words: Sequence[AsrWord], with_times: bool) -> float:
    """Whisper's anomaly score of the first eight words.

    A word adds 1 if its probability is below 0.15; 15 times the seconds by which it is shorter than 0.133 s;
    and the seconds by which it is longer than 2 s. (`hallucination_silence_threshold` in openai/whisper)

    Args:
        words: Words with times and probabilities.
        with_times: Also use the lengths; Whisper's "words" in Chinese are characters, which are short.
    """
    score = 0.0
    for _, start, end, probability in [word for word in words if words_of(str(word[0]))][:8]:
        score += probability < 0.15
        if with_times:
            score += 15 * max(0.0, 0.133 - (end - start)) + max(0.0, end - start - 2.0)
    return score
