"""Held-out utterances for the language model to transcribe, see `lit_moss.llm.listening`."""

import re
from collections.abc import Sequence
from typing import Any

from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.corpora.sources import entry_kind, locate
from lit_moss.data.interleave import asr_prompt, ended, text_ids
from lit_moss.data.transcripts import edit_distance, normalise
from lit_moss.hub.code_cache import encode_utterances
from lit_moss.hub.tokenizer import NamedTokenizer
from lit_moss.llm.listening import AsrItem
from lit_moss.llm.rows import audio_vocab_for

_WORD = re.compile(r"[a-z0-9']+|\S")  # a word in Latin letters, or a Chinese character
_LEAST_WORDS = 2  # a single word says little about listening


def make_asr_items(
    sources: Sequence[str],
    text_tokenizer: Any,
    tokenizer: NamedTokenizer,
    items: int,
    prompt: str = "",
) -> list[AsrItem]:
    """The shortest transcribed utterances of two or more words in these manifests, in manifest order.

    Only these are encoded; among equally long utterances the first is chosen.

    Args:
        sources: Manifests, or embedded corpora, whose validation part is used; other files are ignored.
        text_tokenizer: Tokenizer of the text rows.
        tokenizer: Speech tokenizer.
        items: Maximum number of items.
        prompt: Text before the speech.
    """
    from lit_moss.llm.backbone import row_format

    utterances: list[Utterance] = []
    for path in dict.fromkeys(locate(source, "validation") for source in sources):
        if entry_kind(path) == "speech":
            utterances += [u for u in read_manifest(path) if len(_words(u.text or "")) >= _LEAST_WORDS]
    # If a length is missing, it is estimated from the text: reading every file's header would take long.
    lengths = [u.duration_sec or len(u.text or "") / 14 for u in utterances]
    chosen = sorted(sorted(range(len(utterances)), key=lambda i: lengths[i])[:items])
    if not chosen:
        return []
    utterances = [utterances[i] for i in chosen]
    codes = tokenizer.opened.config.quantize_vocab_size
    rows = row_format(text_tokenizer, audio_vocab_for(codes), eosp=codes)
    made = []
    for u, own in zip(utterances, encode_utterances(utterances, tokenizer).codes, strict=True):
        text = (u.text or "").strip()
        if own:
            ids = ended(text_ids(text_tokenizer, rows, text), rows)
            made.append(AsrItem(asr_prompt(prompt, own, text_tokenizer, rows), ids, text))
    return made


def word_errors(reference: str, transcript: str) -> tuple[int, int]:
    """Number of word errors and number of reference words, both normalised; for Chinese, of characters."""
    expected, recognised = _words(reference), _words(transcript)
    return edit_distance(expected, recognised), len(expected)


def _words(text: str) -> list[str]:
    return _WORD.findall(normalise(text))
