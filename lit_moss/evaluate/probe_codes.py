"""Opens the codes of utterances for `evaluate tokenizer_probe` by name.

    embedded:whisper-tiny-kmeans, runs/NAME, …   a speech tokenizer, see `lit_moss.hub.open_tokenizer`
    FILE.jsonl                                   codes of any codec, in a file
    shuffled:NAME                                control: each utterance gets the codes of another one

The first line of a file describes its codes; each further line contains those of an utterance:

    {"frame_rate_hz": 50, "num_codes": 500}
    {"id": "LJ001-0001", "codes": [3, 141, …]}

`id` is the name of an utterance (of its sound file, without suffix) or the path of its file; `tokenize`
writes `audio_filepath` instead. Codes of several codebooks must be interleaved into one list, with disjoint
numbers; `frame_rate_hz` is then that of the list.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lit_moss.audio import rates
from lit_moss.corpora.manifest import Utterance
from lit_moss.errors import UserError
from lit_moss.hub.code_cache import code_cache
from lit_moss.hub.tokenizer import NamedTokenizer
from lit_moss.records import json_lines

SHUFFLED = "shuffled:"


@dataclass(frozen=True)
class CodeSource:
    """Source of codes.

    Args:
        name: Name of the codes, see the module docstring.
        num_codes: Number of codes; they are 0 to `num_codes` - 1.
        frame_rate_hz: Codes per second of speech.
        shuffled: Whether utterances exchange their codes.
    """

    name: str
    num_codes: int
    frame_rate_hz: float
    shuffled: bool
    _tokenizer: NamedTokenizer | None
    _of_file: dict[str, list[int]]

    @property
    def bits_per_second(self) -> float:
        """Bit rate for equally frequent codes: log2(num_codes) times the frame rate."""
        return math.log2(self.num_codes) * self.frame_rate_hz

    def codes(self, utterances: Sequence[Utterance], seed: int = 0) -> list[list[int]]:
        """Codes of each utterance; [] if it is unreadable or missing in the file.

        Args:
            utterances: Utterances; if `shuffled`, they exchange their codes within this list.
            seed: Seed of the exchange.
        """
        if self._tokenizer is None:
            found = [self._of_file.get(u.key) or self._of_file.get(u.id) or [] for u in utterances]
        else:
            entries = code_cache(self._tokenizer).entries(utterances)
            found = [[] if entry.values is None else entry.values.tolist() for entry in entries]
        return exchanged(found, seed) if self.shuffled else found


def open_codes(name: str, log_mel: str | None = None) -> CodeSource:
    """Opens codes by name.

    Args:
        name: Name of the codes, see the module docstring.
        log_mel: Features of a speech tokenizer, see `open_tokenizer`.

    Raises:
        UserError: if the tokenizer or file does not exist, or the file has another format.
    """
    plain = name.removeprefix(SHUFFLED)
    shuffled = plain != name
    if plain.endswith(".jsonl"):
        num_codes, rate_hz, of_file = _read_file(Path(plain))
        return CodeSource(name, num_codes, rate_hz, shuffled, None, of_file)
    tokenizer = NamedTokenizer(plain, log_mel)
    size = tokenizer.opened.config.quantize_vocab_size
    return CodeSource(name, size, rates.CODE_RATE_HZ, shuffled, tokenizer, {})


def exchanged(codes: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Moves codes to another utterance, along one random cycle: no utterance keeps its own.

    Empty ones stay in place. A single utterance loses its codes.
    """
    places = [i for i, own in enumerate(codes) if own]
    order = torch.randperm(len(places), generator=torch.Generator().manual_seed(seed)).tolist()
    cycle = [places[i] for i in order]
    moved = [list[int]() for _ in codes]
    if len(cycle) > 1:
        for here, there in zip(cycle, [*cycle[1:], cycle[0]], strict=True):
            moved[here] = codes[there]
    return moved


def entropy_bits(codes: Sequence[Sequence[int]]) -> float:
    """Entropy of the code frequencies in bits per code; log2(num_codes) if all are equally frequent."""
    counts = Counter(code for own in codes for code in own)
    total = counts.total()
    return -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0


def _read_file(path: Path) -> tuple[int, float, dict[str, list[int]]]:
    if not path.is_file():
        raise UserError(f"no file of codes {path}: expected JSON lines, see evaluate tokenizer_probe --help")
    records = list(json_lines(path, "an object with codes"))
    head = records[0].content if records else {}
    num_codes, rate_hz = head.get("num_codes"), head.get("frame_rate_hz")
    if type(num_codes) is not int or num_codes < 2 or not isinstance(rate_hz, int | float) or not rate_hz > 0:
        raise UserError(
            f"the first line of {path} is {json.dumps(head)[:80]}, expected "
            '{"frame_rate_hz": 12.5, "num_codes": 1024}: codes per second, and how many there are'
        )
    found: dict[str, list[int]] = {}
    for record in records[1:]:
        codes = record.content.get("codes")
        if not isinstance(codes, list) or not all(type(c) is int and 0 <= c < num_codes for c in codes):
            raise record.error("codes", f"a list of whole numbers from 0 to {num_codes - 1}")
        name = record.content.get("id") or record.content.get("audio_filepath")
        if not isinstance(name, str):
            raise record.error("id", "the name of an utterance")
        offset_sec = record.seconds("offset") or 0.0
        found[name + (f"@{offset_sec:.3f}" if offset_sec else "")] = codes
    return num_codes, float(rate_hz), found
