"""Recordings of any length -> segments of speech.

    file ─ blocks at 16 kHz ─ probability of speech, one for each 32 ms ─ segments
             bounded memory     112,500 numbers an hour                     once, at the end

A voice activity model states how likely each frame is speech; only these numbers are kept, so memory does not
grow with the file. Segments are found when all of them are known:

1. silero's rule: speech begins at `threshold` and ends where probabilities stay below `neg_threshold` for
   `min_silence_sec`; what is shorter than `min_speech_sec` is no speech;
2. pieces with less than `join_gap_sec` between them are joined;
3. what is longer than `max_speech_sec` is cut at its longest silence in the second half before that limit,
   or, where no frame is below `neg_threshold`, at the frame that is least likely to be speech;
4. each segment gets `pad_sec` on both sides, at most up to the middle of the gap to the next.

Segments do not overlap. Without any pause, step 3 may cut a word.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import file_digest
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import fsspec
import numpy as np

from lit_moss.audio import io, rates
from lit_moss.errors import UserError
from lit_moss.prepare.channel_note import note_channels
from lit_moss.prepare.stage import OF_A_TEXT, Item, Rejection, Result, Stage
from lit_moss.prepare.storage import Storage, is_remote, local_copy
from lit_moss.prepare.vad_models import FRAME_SAMPLES, SpeechModel, import_silero, load, model_fingerprint

RATE_HZ = rates.TOKENIZER_RATE_HZ
NEG_BELOW = 0.15  # silero's own distance between the two thresholds
# What is true of a whole recording, and not of a part of it.
_OF_THE_WHOLE = ("text", "codes", "asr", "asr_words", "avg_logprob", "no_speech_prob", *OF_A_TEXT)


@dataclass
class VadOptions:
    """What counts as speech, and how long its segments are.

    Args:
        model: silero (silero-vad, in the package), or pyannote (gated weights, needs pyannote.audio).
        pyannote_model: Name of a segmentation model on Hugging Face, or a local file, for model pyannote.
        threshold: Probability from which speech begins, 0 to 1.
        neg_threshold: Probability below which it ends; None for threshold - 0.15.
        min_speech_sec: Shorter speech between two silences is ignored.
        min_silence_sec: Silence that ends speech.
        join_gap_sec: Pieces of speech with a shorter gap between them are joined.
        max_speech_sec: Longest segment, with its margins.
        pad_sec: Margin on both sides of a segment.
        min_segment_sec: Shorter segments, with their margins, are rejected.
        little_speech_share: Recordings with a smaller share of speech are counted as having little.
    """

    model: Literal["silero", "pyannote"] = "silero"
    pyannote_model: str = "pyannote/segmentation-3.0"
    threshold: float = 0.5
    neg_threshold: float | None = None
    min_speech_sec: float = 0.25
    min_silence_sec: float = 0.1
    join_gap_sec: float = 0.5
    max_speech_sec: float = 30.0
    pad_sec: float = 0.3
    min_segment_sec: float = 1.0
    little_speech_share: float = 0.05

    def __post_init__(self) -> None:
        if self.model not in ("silero", "pyannote"):
            raise UserError(f"model is {self.model!r}, expected silero or pyannote")
        if not 0 < self.threshold < 1:
            raise UserError(f"threshold is {self.threshold}, expected a probability between 0 and 1")
        if not 0 < self.quiet_below <= self.threshold:
            raise UserError(
                f"neg_threshold is {self.neg_threshold}, expected more than 0 and at most the threshold "
                f"{self.threshold}"
            )
        for name in ("min_speech_sec", "min_silence_sec", "join_gap_sec", "pad_sec", "min_segment_sec"):
            value = getattr(self, name)
            if not 0 <= value < float("inf"):
                raise UserError(f"{name} is {value}, expected seconds, 0 or more")
        if not 0 <= self.little_speech_share <= 1:
            raise UserError(f"little_speech_share is {self.little_speech_share}, expected a share, 0 to 1")
        least = 2 * (self.pad_sec + max(self.min_segment_sec, 0.5))
        if not least <= self.max_speech_sec < float("inf"):
            raise UserError(
                f"max_speech_sec is {self.max_speech_sec}, expected {least:g} or more: twice pad_sec and "
                "min_segment_sec"
            )

    @property
    def quiet_below(self) -> float:
        """Probability below which speech ends."""
        return max(self.threshold - NEG_BELOW, 0.01) if self.neg_threshold is None else self.neg_threshold


@dataclass(frozen=True)
class Segment:
    """A segment of speech.

    Args:
        start: First sample at 16 kHz, with the margin.
        end: The sample after the last one.
        speech_samples: Its length without margins.
        probability: Mean probability of speech, without margins.
    """

    start: int
    end: int
    speech_samples: int
    probability: float


class VadStage(Stage):
    """Finds the segments of speech in recordings; see the head of this file.

    An item is a recording, or a part of one by `offset` and `duration`. Its segments are items with `offset`
    and `duration` in the same file, `document` (the recording's name, the same for all its segments),
    `speech_prob` (mean probability) and `speech_share` (share of the recording that is speech). Text and
    words of the whole recording are left out.
    """

    name = "vad"
    version = 3
    needs = ("audio_filepath",)
    Options = VadOptions
    options: VadOptions

    def __init__(self, options: VadOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self._model: SpeechModel | None = None

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        """Items of a sound file, or of all sound files below a folder; None for a manifest.

        Raises:
            UserError: if there is no sound file.
        """
        if source.lower().endswith(".jsonl"):
            return None
        return _recordings(source)

    def content(self) -> dict[str, Any]:
        """See `Stage.content`."""
        options = super().content()
        if self.options.model == "silero":
            del options["pyannote_model"]
        return options | {"fingerprint": model_fingerprint(self.options.model, self.options.pyannote_model)}

    def open(self) -> None:
        """Loads the model."""
        self._model = load(self.options.model, self.options.pyannote_model)

    def run(self, unit: Sequence[Item]) -> Result:
        """Segments of one recording.

        Raises:
            UnreadableAudio: if it cannot be read to its end.
        """
        if self._model is None:
            raise RuntimeError("run before open: no model is loaded")
        (item,) = unit
        path = local_copy(item["audio_filepath"])
        offset_sec, duration_sec = item.get("offset") or 0.0, item.get("duration")
        channel = item.get("channel")
        probabilities, samples = speech_probabilities(self._model, path, offset_sec, duration_sec, channel)
        segments = find_segments(probabilities, samples, self.options)
        sides = Result()
        note_channels([item], sides)
        if sides.counts:
            item = item | {"channel": 0}  # so that later steps need not say it again
        result = self._result(item, segments, samples, _document(item, path))
        result.counts |= sides.counts
        result.examples = sides.examples
        return result

    def _result(self, item: Item, segments: list[Segment], samples: int, document: str) -> Result:
        share = sum(s.speech_samples for s in segments) / samples
        made = [_segment_item(item, s, share, document) for s in segments]
        least_sec = self.options.min_segment_sec
        kept = [i for i in made if i["duration"] >= least_sec]
        rejected = [
            Rejection(i, "segment too short", i["duration"], least_sec)
            for i in made
            if i["duration"] < least_sec
        ]
        if not segments:
            rejected.append(Rejection(item, "no speech", 0.0, self.options.threshold))
        counts = {
            "recordings": 1,
            "recordings_without_speech": int(not segments),
            "recordings_with_little_speech": int(share < self.options.little_speech_share),
            "recording_sec": samples / RATE_HZ,
            "speech_sec": share * samples / RATE_HZ,
        }
        return Result(kept, rejected, counts, speech_sec_in=samples / RATE_HZ)


def speech_probabilities(
    model: SpeechModel,
    path: str | Path,
    offset_sec: float = 0.0,
    duration_sec: float | None = None,
    channel: int | None = None,
) -> tuple[np.ndarray, int]:
    """Probability of speech of each frame of 32 ms: float32 (frames,), and the number of samples at 16 kHz.

    The last frame is filled up with zeros, so there are ceil(samples / 512) frames.

    Raises:
        UnreadableAudio: see `lit_moss.audio.io.read`.
    """
    stream, pieces, samples = model.stream(), [], 0
    for block_T in io.read_blocks(path, RATE_HZ, offset_sec, duration_sec, channel=channel):
        samples += len(block_T)
        pieces.append(stream.push(block_T.numpy()))
    pieces.append(stream.flush())
    return np.concatenate(pieces), samples


def find_segments(probabilities: np.ndarray, samples: int, options: VadOptions) -> list[Segment]:
    """Segments of speech, in order, without overlap.

    Args:
        probabilities: (frames,), see `speech_probabilities`.
        samples: Length of the recording at 16 kHz.
        options: The rule.
    """
    pieces = import_silero().get_speech_timestamps_from_probs(
        probabilities.tolist(),
        threshold=options.threshold,
        neg_threshold=options.quiet_below,
        min_speech_duration_ms=1000 * options.min_speech_sec,
        min_silence_duration_ms=1000 * options.min_silence_sec,
        speech_pad_ms=0,
        audio_length_samples=samples,
    )
    # Silero's borders are those of frames, but for the end of the recording.
    frames = [(p["start"] // FRAME_SAMPLES, -(-p["end"] // FRAME_SAMPLES)) for p in pieces]
    cut = [
        part
        for start, end in _join(frames, options.join_gap_sec * RATE_HZ / FRAME_SAMPLES)
        for part in _cut(start, end, probabilities, options)
    ]
    bounds = [(start * FRAME_SAMPLES, min(end * FRAME_SAMPLES, samples)) for start, end in cut]
    padded = _pad(bounds, round(options.pad_sec * RATE_HZ), samples)
    return [
        Segment(start, end, bound[1] - bound[0], float(probabilities[slice(*part)].mean(dtype=np.float64)))
        for (start, end), bound, part in zip(padded, bounds, cut, strict=True)
    ]


Spans = list[tuple[int, int]]


def _join(pieces: Spans, gap_frames: float) -> Spans:
    joined: Spans = []
    for start, end in pieces:
        if joined and start - joined[-1][1] < gap_frames:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _cut(start: int, end: int, probabilities: np.ndarray, options: VadOptions) -> Spans:
    """Parts of a piece that are short enough, in frames; the silence at a cut belongs to neither side."""
    longest = int((options.max_speech_sec - 2 * options.pad_sec) * RATE_HZ / FRAME_SAMPLES)
    least = -int(-options.min_segment_sec * RATE_HZ // FRAME_SAMPLES)
    parts: Spans = []
    while end - start > longest:
        low = start + longest // 2
        high = max(low + 1, min(start + longest, end - least))  # so that what is left is not too short
        edges = np.flatnonzero(
            np.diff(probabilities[low:end] < options.quiet_below, prepend=False, append=False)
        )
        begins, stops = edges[::2] + low, edges[1::2] + low
        stops, begins = stops[begins < high], begins[begins < high]
        if len(begins):
            at = int((stops - begins).argmax())
            part_end, next_start = int(begins[at]), int(stops[at])
        else:
            part_end = next_start = low + int(probabilities[low:high].argmin())
        parts.append((start, part_end))
        start = next_start
    return [*parts, (start, end)] if start < end else parts


def _pad(bounds: Spans, pad: int, samples: int) -> Spans:
    middles = [(left[1] + right[0]) // 2 for left, right in pairwise(bounds)]
    lows, highs = [0, *middles], [*middles, samples]
    return [
        (max(low, start - pad), min(high, end + pad))
        for (start, end), low, high in zip(bounds, lows, highs, strict=False)
    ]


def _segment_item(item: Item, segment: Segment, share: float, document: str) -> Item:
    start_sec = segment.start / RATE_HZ
    length_sec = (segment.end - segment.start) / RATE_HZ
    if item.get("duration") is not None:  # samples at 16 kHz may end a fraction of a sample later
        length_sec = min(length_sec, item["duration"] - start_sec)
    made = {key: value for key, value in item.items() if key not in _OF_THE_WHOLE} | {
        "offset": round((item.get("offset") or 0.0) + start_sec, 6),
        "duration": round(length_sec, 6),
        "document": document,
        "speech_prob": round(segment.probability, 4),
        "speech_share": round(share, 4),
    }
    if item.get("id") not in (None, ""):
        made["id"] = f"{item['id']}@{start_sec:.3f}"
    return made


def _document(item: Item, path: Path) -> str:
    """Name of the recording: the one that it has, else its file's with a hash of the file, and the offset.

    Files of several folders often share a name. Their paths are not used: they differ between machines.
    """
    if item.get("document"):
        return str(item["document"])
    with path.open("rb") as file:
        digest = file_digest(file, "sha256").hexdigest()[:8]
    stem = Path(item["audio_filepath"]).stem
    offset = item.get("offset") or 0.0
    return f"{stem}-{digest}" + (f"@{offset:.3f}" if offset else "")


def _recordings(source: str) -> Iterator[Item]:
    if is_remote(source):
        yield from ({"audio_filepath": address} for address in _stored_sounds(source))
        return
    from lit_moss.corpora.inputs import utterances_of

    for u in utterances_of([source]):
        item: Item = {"audio_filepath": str(u.audio.absolute())}
        with suppress(io.UnreadableAudio):  # found again, and counted, when it is read
            item["duration"] = round(io.info(u.audio).duration_sec, 6)
        yield item


def _stored_sounds(source: str) -> list[str]:
    """Addresses of a stored sound file, or of all sound files below a stored folder, sorted."""
    try:
        system, inner = fsspec.url_to_fs(source)
        names = sorted(system.find(inner))
    except (OSError, ImportError, ValueError) as error:
        why = str(error) or type(error).__name__
        raise UserError(f"{source} cannot be read ({why}): expected a sound file or a folder") from error
    sounds = [system.unstrip_protocol(name) for name in names if name.lower().endswith(io.EXTENSIONS)]
    if not sounds:
        raise UserError(f"{source} holds no sound files: expected some of {', '.join(io.EXTENSIONS)}")
    return sounds
