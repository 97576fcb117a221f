"""Signs that a transcript was never said: what is measured, each a pure function of text, times or scores.

Sources: NeMo's speech data processor and Curator (distinct words, long words, repeated n-grams, characters
per second, stock phrases), Whisper (compression ratio, mean log-probability with no speech, anomalous words).
In texts without spaces, such as Chinese, characters take the place of words.
"""

import zlib
from collections.abc import Sequence
from itertools import pairwise

from lit_moss.prepare.language import is_unspaced, script_of, words_of
from lit_moss.prepare.stock_phrases import PHRASES

AsrWord = Sequence  # [word, start in seconds, end in seconds, probability]


def distinct_ratio(words: list[str]) -> float:
    """Distinct words over words; of a text without spaces, distinct pairs of characters over pairs."""
    counted = list(pairwise(words)) if is_unspaced(words) else words
    return len(set(counted)) / len(counted) if counted else 1.0


def most_repeats(words: list[str], n: int) -> int:
    """How often the most frequent sequence of n words occurs, occurrences that overlap counted once."""
    counts: dict[tuple[str, ...], int] = {}
    free_from: dict[tuple[str, ...], int] = {}
    for i in range(len(words) - n + 1):
        key = tuple(words[i : i + n])
        if i >= free_from.get(key, 0):
            counts[key], free_from[key] = counts.get(key, 0) + 1, i + n
    return max(counts.values(), default=0)


def zlib_ratio(text: str) -> float:
    """Bytes of the text over its compressed bytes: 1.2 to 2 in prose, more in repetitions."""
    content = text.encode()
    return len(content) / len(zlib.compress(content))


def longest_words(words: list[str]) -> tuple[int, int]:
    """Lengths of the longest and the next longest word in Latin letters, 0 where there is none."""
    lengths = sorted((len(word) for word in words if script_of(word[0]) == "LATIN"), reverse=True)
    longest, following = [*lengths, 0, 0][:2]
    return longest, following


def characters(words: list[str]) -> int:
    """Letters, digits, and the spaces between words, without punctuation."""
    return len(("" if is_unspaced(words) else " ").join(words))


def spoken_characters(words: list[str]) -> int:
    """As `characters`, with four for each digit of a text with spaces: "1984" is some 20 letters aloud."""
    digits = 0 if is_unspaced(words) else sum(c.isdigit() for word in words for c in word)
    return characters(words) + 3 * digits


def stock_phrase(words: list[str], language: str, more: Sequence[str] = ()) -> str | None:
    """The stock phrase that a text is, or begins with if the phrase has 8 characters or more (4 in Chinese).

    Args:
        words: Of the text.
        language: ISO 639-1 code: whose list is taken.
        more: Further phrases.
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

    A word adds 1 if its probability is below 0.15, 15 times the seconds that it is shorter than 0.133 s, and
    the seconds that it is longer than 2 s. (`hallucination_silence_threshold` in openai/whisper)

    Args:
        words: Words with times and probabilities.
        with_times: Count the lengths too; Whisper's "words" of Chinese are characters, which are short.
    """
    score = 0.0
    for _, start, end, probability in [word for word in words if words_of(str(word[0]))][:8]:
        score += probability < 0.15
        if with_times:
            score += 15 * max(0.0, 0.133 - (end - start)) + max(0.0, end - start - 2.0)
    return score
