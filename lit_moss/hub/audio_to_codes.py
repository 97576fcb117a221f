"""Encodes recordings to JSON lines of codes, in batches.

Memory is limited to one batch and the longest recording. A line is {"audio_filepath": …, "codes": […],
"duration": seconds, "speech_tokenizer": fingerprint}, with an "offset" in seconds for a part of a file.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.corpora.manifest import Utterance
from lit_moss.files import atomic_write, errors_of_writing

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.codec import SpeechTokenizer

_LONGEST_PADDED_SEC = 60.0  # of audio that is computed as one padded batch


@dataclass(frozen=True)
class EncodedAudio:
    """Codes of one recording.

    Args:
        utterance: The recording.
        codes: Codes of the recording; None if it is unreadable.
        seconds: Length of the recording in seconds.
        reason: Why it is unreadable, as `path: reason`; otherwise "".
    """

    utterance: Utterance
    codes: list[int] | None
    seconds: float = 0.0
    reason: str = ""


@dataclass
class EncodingSummary:
    """Summary of a call of `write_codes`.

    Args:
        files: Number of recordings.
        codes: Number of codes of all recordings.
        seconds: Length of all recordings in seconds.
        reasons: Why recordings were skipped, one line each.
    """

    files: int = 0
    codes: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)


def encode_audio(
    utterances: Iterable[Utterance], tokenizer: "SpeechTokenizer", batch_sec: float = 240.0
) -> Iterator[EncodedAudio]:
    """Yields the codes of recordings, in order; unreadable recordings come before the batch they would be in.

    Args:
        utterances: The recordings.
        tokenizer: Computes the codes, on its own device.
        batch_sec: Audio to read before it is computed, in seconds. The codes do not depend on it.
    """
    from lit_moss.audio import io, rates

    batch: list[tuple[Utterance, Tensor]] = []
    batch_samples = 0
    for utterance in utterances:
        try:
            wave_T = io.read(
                utterance.audio,
                rates.TOKENIZER_RATE_HZ,
                utterance.offset_sec,
                utterance.duration_sec,
                channel=utterance.channel,
            )
        except io.UnreadableAudio as error:
            yield EncodedAudio(utterance, None, reason=str(error))
            continue
        batch.append((utterance, wave_T))
        batch_samples += len(wave_T)
        if batch_samples >= batch_sec * rates.TOKENIZER_RATE_HZ:
            yield from _encoded(batch, tokenizer, batch_sec)
            batch, batch_samples = [], 0
    yield from _encoded(batch, tokenizer, batch_sec)


def _encoded(
    batch: Sequence[tuple[Utterance, "Tensor"]], tokenizer: "SpeechTokenizer", batch_sec: float
) -> Iterator[EncodedAudio]:
    from lit_moss.audio import rates

    if not batch:
        return
    waves = [wave_T for _, wave_T in batch]
    all_codes = tokenizer.encode(
        waves, rates.TOKENIZER_RATE_HZ, batch_sec=min(_LONGEST_PADDED_SEC, batch_sec)
    )
    for (utterance, wave_T), codes_N in zip(batch, all_codes, strict=True):
        yield EncodedAudio(utterance, codes_N.tolist(), len(wave_T) / rates.TOKENIZER_RATE_HZ)


def write_codes(
    path: Path, utterances: Sequence[Utterance], tokenizer: "SpeechTokenizer", batch_sec: float = 240.0
) -> EncodingSummary:
    """Encodes recordings and writes their lines to `path`, which appears when all are done.

    Raises:
        UserError: if the file cannot be written; a folder that cannot be created is reported at the start.
    """
    import time

    from tqdm import tqdm

    from lit_moss.codec.encoder import fingerprint

    mark, summary, start = fingerprint(tokenizer.encoder), EncodingSummary(), time.monotonic()
    with (
        errors_of_writing(path),
        atomic_write(path) as partial,
        partial.open("w", encoding="utf-8") as lines,
        tqdm(total=len(utterances), unit="file", disable=None) as bar,
    ):
        for encoded in encode_audio(utterances, tokenizer, batch_sec):
            bar.update()
            if encoded.codes is None:
                summary.reasons.append(encoded.reason)
                continue
            lines.write(json.dumps(code_line(encoded, mark)) + "\n")
            summary.files += 1
            summary.codes += len(encoded.codes)
            summary.seconds += encoded.seconds
            speed = summary.seconds / (time.monotonic() - start)
            bar.set_postfix_str(f"{speed:.0f} x real time", refresh=False)
    return summary


def code_line(encoded: EncodedAudio, speech_tokenizer: str) -> dict[str, Any]:
    """The JSON line of a readable recording.

    Args:
        encoded: The recording and its codes.
        speech_tokenizer: Fingerprint of the tokenizer.
    """
    line: dict[str, Any] = {
        "audio_filepath": str(encoded.utterance.audio),
        "codes": encoded.codes,
        "duration": round(encoded.seconds, 4),
        "speech_tokenizer": speech_tokenizer,
    }
    if encoded.utterance.offset_sec:
        line["offset"] = encoded.utterance.offset_sec
    if encoded.utterance.channel is not None:
        line["channel"] = encoded.utterance.channel
    return line
