"""Codes of recordings, made once: every kind of document takes them from the same place in the cache.

A file `codes/HASH.npz` holds the codes of one list of utterances by one speech tokenizer. HASH is of the codec's weights
and of each recording's path, place, size and time of change.
"""

import hashlib
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.corpora.manifest import Utterance

_MAX_BAD_SHARE = 0.01
_WAITING_SEC = 240.0  # of speech read before it is encoded; bounds the memory


@dataclass(frozen=True)
class Codes:
    """Codes of a list of utterances.

    Args:
        of: Codes of each one, [] for one that cannot be read.
        bad: Why, of each of those: `path: reason`.
    """

    of: list[list[int]]
    bad: list[str]

    @property
    def unread(self) -> list[int]:
        """Which ones cannot be read; readable speech of any length has at least one code."""
        return [i for i, own in enumerate(self.of) if not own]


def recordings_stamp(utterances: Sequence["Utterance"]) -> str:
    """16 hex digits that change with any of the recordings, by what the file system says of them."""
    digest = hashlib.sha256()
    for u in utterances:
        try:
            state = u.audio.stat()
            stamp = [u.key, u.duration_sec, state.st_size, state.st_mtime_ns]
        except OSError:
            stamp = [u.key, u.duration_sec]
        digest.update(json.dumps(stamp).encode() + b"\0")
    return digest.hexdigest()[:16]


def encode_utterances(
    utterances: Sequence["Utterance"],
    speech_tokenizer: str,
    speech_tokenizer_id: str,
    log_mel: str | None = None,
) -> Codes:
    """Codes of every utterance, from the cache or made now.

    Args:
        utterances: What to encode.
        speech_tokenizer: Name of the tokenizer, see `open_tokenizer`.
        speech_tokenizer_id: Its fingerprint.
        log_mel: Its features, see `open_tokenizer`.

    Raises:
        UserError: if more than 1 % (and more than one) cannot be read.
    """
    from lit_moss import assets
    from lit_moss.audio.io import RULES

    name = hashlib.sha256(
        f"{speech_tokenizer_id} {RULES} {recordings_stamp(utterances)}".encode()
    ).hexdigest()[:16]
    kept = assets.cache_dir() / "codes" / f"{name}.npz"
    if kept.exists():
        with np.load(kept, allow_pickle=False) as file:
            pieces = np.split(file["codes"], np.cumsum(file["lengths"])[:-1]) if len(file["lengths"]) else []
            bad = json.loads(str(file["bad"]))
            if isinstance(bad, dict):  # by name, as earlier versions wrote it
                bad = list(bad.values())
            return _checked(Codes([piece.tolist() for piece in pieces], bad))
    found = _checked(_encode(utterances, speech_tokenizer, log_mel))
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        made = Path(scratch) / "codes.npz"
        flat = np.array([c for own in found.of for c in own], dtype=np.int32)
        lengths = np.array([len(own) for own in found.of], dtype=np.int64)
        np.savez_compressed(made, codes=flat, lengths=lengths, bad=json.dumps(found.bad))
        made.replace(kept)
    return found


def _checked(codes: Codes) -> Codes:
    # Counted by their places: files of several folders may share a name.
    unread, total = len(codes.unread), len(codes.of)
    if unread > max(1, _MAX_BAD_SHARE * total):
        raise UserError(
            f"{unread} of {total} recordings cannot be read, more than {_MAX_BAD_SHARE:.0%}: "
            f"{'; '.join(codes.bad[:3])}"
        )
    return codes


def _encode(utterances: Sequence["Utterance"], speech_tokenizer: str, log_mel: str | None) -> Codes:
    import torch
    from tqdm import tqdm

    from lit_moss.audio import io, rates
    from lit_moss.hub.kmeans import open_tokenizer

    tokenizer = open_tokenizer(speech_tokenizer, log_mel).to("cuda" if torch.cuda.is_available() else "cpu")
    found: list[list[int]] = [[] for _ in utterances]
    bad: list[str] = []
    waiting: list[tuple[int, Any]] = []

    def encode_waiting() -> None:
        codes = tokenizer.encode([wave for _, wave in waiting], rates.TOKENIZER_RATE_HZ) if waiting else []
        for (i, _), own in zip(waiting, codes, strict=True):
            found[i] = own.tolist()
        waiting.clear()

    # By length, so that batches are full of speech and not of padding.
    order = sorted(range(len(utterances)), key=lambda i: utterances[i].duration_sec or 0.0)
    for i in tqdm(order, desc="codes", unit="recording", disable=None):
        u = utterances[i]
        try:
            wave = io.read(u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec)
        except io.UnreadableAudio as error:
            bad.append(str(error))
            continue
        waiting.append((i, wave))
        if sum(len(wave) for _, wave in waiting) >= _WAITING_SEC * rates.TOKENIZER_RATE_HZ:
            encode_waiting()
    encode_waiting()
    if bad:
        print(f"{len(bad)} of {len(utterances)} left out: {'; '.join(bad)}", file=sys.stderr)
    return Codes(found, bad)
