"""Opens speech tokenizers by name, and computes their fingerprints."""

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss import assets
from lit_moss.files import make_once

if TYPE_CHECKING:
    from lit_moss.codec import SpeechTokenizer

_FINGERPRINT_VERSION = 1  # of `lit_moss.codec.encoder.fingerprint`; a change invalidates stored fingerprints


class NamedTokenizer:
    """A speech tokenizer that is opened only when something has to be encoded.

    Args:
        name: Name of the tokenizer, see `open_tokenizer`.
        log_mel: Features of the tokenizer, see `open_tokenizer`.
    """

    def __init__(self, name: str, log_mel: str | None = None) -> None:
        self.name, self.log_mel = name, log_mel

    @cached_property
    def opened(self) -> "SpeechTokenizer":
        """The tokenizer; opened on first use."""
        return open_tokenizer(self.name, self.log_mel)

    @cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the tokenizer, see `speech_tokenizer_fingerprint`."""
        path = assets.resolve(str(tokenizer_path(self.name)))
        files = [path] if path.is_file() else [f for f in sorted(path.iterdir()) if f.is_file()]
        stamps = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
        inputs = json.dumps([_FINGERPRINT_VERSION, self.log_mel, stamps])
        name = f"{hashlib.sha256(inputs.encode()).hexdigest()[:32]}.txt"
        kept = assets.cache_dir() / "fingerprints" / name
        try:
            return make_once(kept, self._write_fingerprint).read_text()
        except OSError:  # the cache only saves time
            return self._compute_fingerprint()

    def _compute_fingerprint(self) -> str:
        from lit_moss.codec.encoder import fingerprint

        return fingerprint(self.opened.encoder)

    def _write_fingerprint(self, file: Path) -> None:
        file.write_text(self._compute_fingerprint())


def open_tokenizer(name: str, log_mel: str | None = None) -> "SpeechTokenizer":
    """Opens a speech tokenizer; the caller's random state does not change.

    Args:
        name: `embedded:whisper-tiny-kmeans`, a checkpoint, a run's folder or RUN_ROOT/NAME (the best
            checkpoint of the newest run), a folder in the released layout, or a hub id.
        log_mel: Features, `causal` or `whisper`; see `SpeechTokenizer.from_pretrained`.

    Raises:
        UserError: if the tokenizer does not exist, or cannot be read.
    """
    import torch

    from lit_moss.codec import SpeechTokenizer

    # Building a network draws random numbers, but a run whose documents are cached must train like one that
    # made them.
    with torch.random.fork_rng():
        return SpeechTokenizer.from_pretrained(tokenizer_path(name), log_mel=log_mel)


def tokenizer_path(name: str) -> Path | str:
    """Path of the best checkpoint if `name` is a run, otherwise `name` itself."""
    path = Path(name)
    if not path.is_dir() or (path / "config.json").is_file():
        return name  # not a run: avoids importing lightning, which takes seconds
    from lit_moss.runs.checkpoints import checkpoint_of

    return checkpoint_of(name, "best") or name


def speech_tokenizer_fingerprint(name: str, log_mel: str | None = None) -> str:
    """16 hex digits of a tokenizer's weights, sizes and features: equal fingerprints mean equal codes.

    A run's checkpoint, the folder that `save_pretrained` writes and the tokenizer in training have the same
    fingerprint. It is cached until the size or time of a file changes: reading gigabytes of weights takes
    seconds.

    Args:
        name: Name of the tokenizer, see `open_tokenizer`.
        log_mel: Features of the tokenizer, see `open_tokenizer`.

    Raises:
        UserError: as in `open_tokenizer`.
    """
    return NamedTokenizer(name, log_mel).fingerprint
