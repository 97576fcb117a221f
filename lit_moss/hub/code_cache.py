"""Codes of recordings by a named speech tokenizer, stored in the cache (see `recordings`)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pyarrow as pa

from lit_moss.audio import rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.corpora.readers import first_few
from lit_moss.errors import UserError
from lit_moss.hub.recordings import Compute, RecordingCache, local_device
from lit_moss.hub.tokenizer import NamedTokenizer


@dataclass(frozen=True)
class EncodedUtterances:
    """Codes of a list of utterances.

    Args:
        codes: Codes of each utterance, [] for an unreadable one.
        reasons: Why utterances are unreadable, as `path: reason` each.
    """

    codes: list[list[int]]
    reasons: list[str]

    @property
    def unread(self) -> list[int]:
        """Indices of the unreadable utterances; readable speech of any length has at least one code."""
        return [i for i, codes in enumerate(self.codes) if not codes]


def code_cache(
    tokenizer: NamedTokenizer, device: str = "auto", keep_on_device: bool = False
) -> RecordingCache:
    """The cache of a tokenizer's codes; the tokenizer is opened only if some are missing.

    Args:
        tokenizer: The tokenizer.
        device: Device to compute on; `auto`: the GPU if there is one.
        keep_on_device: Leave the tokenizer on the device, for many small lists in a row.
    """

    @contextmanager
    def encoding() -> Iterator[Compute]:
        opened = tokenizer.opened.to(local_device(device))
        try:
            yield lambda waves: opened.encode(waves, rates.TOKENIZER_RATE_HZ)
        finally:
            if not keep_on_device:
                opened.to("cpu")

    return RecordingCache("codes", tokenizer.fingerprint, pa.int32(), encoding)


def encode_utterances(
    utterances: Sequence[Utterance], tokenizer: NamedTokenizer, max_bad_share: float = 0.01
) -> EncodedUtterances:
    """Codes of every utterance, from the cache or newly computed.

    Args:
        utterances: Parts of recordings.
        tokenizer: The tokenizer.
        max_bad_share: Maximum fraction of unreadable utterances; a single one is always allowed.

    Raises:
        UserError: if more utterances are unreadable.
    """
    most = max(1, max_bad_share * len(utterances))
    entries = code_cache(tokenizer).entries(utterances, most)
    codes = [[] if entry.values is None else entry.values.tolist() for entry in entries]
    reasons = [entry.reason for entry in entries if entry.reason]
    encoded = EncodedUtterances(codes, reasons)
    # Counted by index: files of different folders may share a name.
    unread, total = len(encoded.unread), len(codes)
    if unread > most:
        raise UserError(
            f"{unread} of {total} recordings cannot be read, more than {max_bad_share:.0%} "
            f"(max_bad_share): {first_few(reasons)}: repair or remove them, or raise max_bad_share"
        )
    return encoded
