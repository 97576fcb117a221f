"""Reads and writes sound files with soundfile: wav, flac, ogg, mp3, opus.

Supports any sample rate and channel count, whole files and parts of them. All audio of the project is read
here, so damage is detected here: containers that state a wrong length (see `containers`), streams that decode
to less than they state, parts beyond the end of their file, samples that are not audio.
"""

import errno
import math
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from lit_moss.audio import containers, waves
from lit_moss.audio.chained import ChainedFile
from lit_moss.audio.features import Resampler
from lit_moss.records import printable

EXTENSIONS = (".wav", ".flac", ".ogg", ".opus", ".mp3")
# Version of the rules for damage: codes computed under another version are computed again.
RULES = 3
END_SLACK_SEC = 0.1  # a part may end this much after its file: corpora round their times
BLOCK_FRAMES = 2**19  # samples per channel that are decoded at once
_WRITTEN_SAMPLES = 2**16  # samples that are encoded at once
RATES_HZ = (1_000, 1_000_000)  # a header with a rate outside is damaged
Opened = soundfile.SoundFile | ChainedFile
_UNKNOWN_FRAMES = 2**62  # libsndfile returns 2^63 - 1 for a stream of unknown length
_SYSTEM_ERROR = 2  # libsndfile's code for a failed system call
# Errors caused by the path itself. Others concern permissions, disks, networks or limits, and may be
# temporary.
_OF_THE_PATH = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class UnreadableAudio(Exception):  # noqa: N818
    """A sound file that cannot be used; the message contains the file and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class RefusedAudio(UnreadableAudio):
    """A sound file that the system does not allow to be read: missing permissions, too many open files, a
    failing disk or server. The file may be intact, so nothing permanent may be derived from this error."""


@dataclass(frozen=True)
class AudioInfo:
    """Information in a file's header.

    Args:
        frames: Number of samples per channel.
        rate_hz: Sample rate in Hz.
        channels: Number of channels.
    """

    frames: int
    rate_hz: int
    channels: int

    @property
    def duration_sec(self) -> float:
        """Length in seconds."""
        return self.frames / self.rate_hz


def is_refused(path: str | Path) -> bool:
    """Whether the system prevents a file from being read completely, see `RefusedAudio`."""
    try:
        _read_through(path)
    except OSError as error:
        return bool(_refusal(path, error))
    return False


def info(path: str | Path, probe: bool = True) -> AudioInfo:
    """Length, sample rate and number of channels, without decoding.

    Args:
        path: Sound file.
        probe: Search for the last sample of a FLAC file, whose container does not state where it ends.

    Raises:
        UnreadableAudio: if the file is missing, empty, not a sound file, states no length, or is damaged as
            far as can be detected without decoding.
    """
    with _opened(path) as file:
        _check_length_known(path, file.frames)
        if file.frames == 0:
            raise UnreadableAudio(f"{path}: no samples")
        if probe:
            _probe(path, file)
        return AudioInfo(file.frames, file.samplerate, file.channels)


def span_sec(path: str | Path, file: AudioInfo, offset_sec: float, duration_sec: float | None) -> float:
    """Length in seconds of a part of a file; the part may end `END_SLACK_SEC` after the file.

    Raises:
        UnreadableAudio: if the part is empty, or outside of the file.
    """
    left_sec = file.duration_sec - offset_sec
    wanted_sec = left_sec if duration_sec is None else duration_sec
    if not (offset_sec >= 0 and left_sec > 0 and 0 < wanted_sec <= left_sec + END_SLACK_SEC):
        part = (
            f"from {offset_sec:.2f} s on"
            if duration_sec is None
            else f"of {wanted_sec:.2f} s at {offset_sec:.2f} s"
        )
        raise UnreadableAudio(f"{path}: a cut {part} is not inside its {file.duration_sec:.2f} s")
    return min(wanted_sec, left_sec)


def read(
    path: str | Path,
    rate_hz: int,
    offset_sec: float = 0.0,
    duration_sec: float | None = None,
    longest_sec: float | None = None,
    channel: int | None = None,
) -> Tensor:
    """Resampled samples of one channel: float32 (T,) in [-1, 1].

    Where no channel is given, the first one is used, as in the released tokenizer; a line on stderr reports
    a silent first channel next to one that is not. The file is decoded and resampled in blocks, so that
    memory holds little more than the result. The samples equal those of decoding the whole file at once, bit
    for bit; for an MP3 longer than a block, within 6e-8 (libsndfile's decoder rounds differently after a
    seek, and soundfile seeks after each block).

    Args:
        path: Sound file.
        rate_hz: Sample rate of the result in Hz.
        offset_sec: Start within the file in seconds.
        duration_sec: Length in seconds; None: to the end of the file.
        longest_sec: Maximum length in seconds; None: unlimited.
        channel: Number of the channel, from 0; None: the first one.

    Raises:
        UnreadableAudio: if the file is missing, empty or damaged, has no such channel, the part is outside of
            it (see `span_sec`), or samples are not finite or far beyond [-1, 1].
    """
    pieces = list(read_blocks(path, rate_hz, offset_sec, duration_sec, longest_sec, channel))
    pieces = [piece for piece in pieces if len(piece)] or pieces[:1]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def read_blocks(
    path: str | Path,
    rate_hz: int,
    offset_sec: float = 0.0,
    duration_sec: float | None = None,
    longest_sec: float | None = None,
    channel: int | None = None,
) -> Iterator[Tensor]:
    """Yields the samples that `read` returns, in blocks (n,) of any length; memory does not grow with the
    file.

    Args:
        path: Sound file.
        rate_hz: Sample rate of the result in Hz.
        offset_sec: Start within the file in seconds.
        duration_sec: Length in seconds; None: to the end of the file.
        longest_sec: Maximum length in seconds; None: unlimited.
        channel: Number of the channel, from 0; None: the first one.

    Raises:
        UnreadableAudio: as in `read`; a file that ends too early is only detected after its last block.
    """
    index = channel or 0
    with _opened(path) as file:
        if not 0 <= index < file.channels:
            raise UnreadableAudio(f"{path}: no channel {index}: it has {file.channels}, counted from 0")
        start, wanted, least = _span(path, file, offset_sec, duration_sec)
        if wanted < file.frames:  # for a whole file, the decoded samples are counted
            _probe(path, file)
        if longest_sec is not None:
            wanted = min(wanted, round(longest_sec * file.samplerate))
        if start:
            _skip(file, start)
        resampler, got = Resampler(file.samplerate, rate_hz), 0
        peaks = np.zeros(file.channels, np.float32)
        while got < wanted:
            block = file.read(min(BLOCK_FRAMES, wanted - got), dtype="float32", always_2d=True)
            if not len(block):
                break
            got += len(block)
            wave_T = torch.from_numpy(np.ascontiguousarray(block[:, index]))
            reason = waves.level_fault(wave_T)
            if reason:
                raise UnreadableAudio(f"{path}: {reason}")
            if file.channels > 1:
                peaks = np.maximum(peaks, np.abs(block).max(axis=0))
            yield resampler.push(wave_T)
        yield resampler.flush()
        if got < min(wanted, least):
            _read_through(path)
    if not got:
        raise UnreadableAudio(f"{path}: no samples at {offset_sec:.3f} s")
    # A damaged stream ends early without an error; its header states the length.
    if got < min(wanted, least):
        raise UnreadableAudio(f"{path}: {got} samples decoded of {wanted} that the header states")
    if channel is None:
        _note_silence(path, peaks)


_PROBE_SEC = 10.0  # length of a part in which channels are compared
_QUIETEST_RMS = 10 ** (-50 / 20)  # a quieter channel counts as silent
_LEAST_OWN_SHARE = 0.5  # of the energy of a channel, that the first one lacks


def channels_differ(path: str | Path) -> bool:
    """Whether a file has a channel whose sound is not in the first one, such as a speaker on the other side.

    Compared are up to three parts of 10 s. A channel y differs from the first one, x, if its level is above
    -50 dB of full scale and 1 - (x·y)² / (|x|² |y|²), the share of its energy that no multiple of x explains,
    is above one half. So channels that are equal but for their level do not differ.

    Returns:
        False for a file of one channel, and for one that cannot be read.
    """
    try:
        status = os.stat(path)
        return _channels_differ(str(path), status.st_size, status.st_mtime_ns)
    except (OSError, ValueError):
        return False


# Parts of one recording are asked for one after another.
@lru_cache(maxsize=4096)
def _channels_differ(path: str, size: int, modified_ns: int) -> bool:
    try:
        with _opened(path) as file:
            if file.channels < 2 or not 0 < file.frames < _UNKNOWN_FRAMES:
                return False
            length = round(_PROBE_SEC * file.samplerate)
            starts = (0, file.frames // 2 - length // 2, file.frames - length)
            at = 0
            for start in sorted({max(0, start) for start in starts}):
                file.seek(start) if file.seekable() else _skip(file, max(0, start - at))
                block = file.read(length, dtype="float32", always_2d=True)
                at = start + len(block)
                if len(block) and _has_own_sound(block.astype(np.float64)):
                    return True
    except UnreadableAudio:
        pass
    return False


def _has_own_sound(block_TC: np.ndarray) -> bool:
    first_T = block_TC[:, 0]
    first_energy = first_T @ first_T
    for other_T in block_TC.T[1:]:
        energy = other_T @ other_T
        if not energy > len(block_TC) * _QUIETEST_RMS**2:
            continue
        common = (first_T @ other_T) ** 2 / (first_energy * energy) if first_energy else 0.0
        if 1 - common > _LEAST_OWN_SHARE:
            return True
    return False


def write(path: str | Path, wave: Tensor, rate_hz: int) -> None:
    """Writes samples (T,) in [-1, 1]. The extension selects the format; uncompressed formats get 16 bits.

    Raises:
        ValueError: if the wave is not a float tensor (T,).
        OSError: if the file cannot be created or the disk is full; libsndfile does not distinguish the two.
    """
    wave = torch.as_tensor(wave)
    if wave.ndim != 1 or not wave.dtype.is_floating_point:
        raise ValueError(f"got {wave.dtype} of shape {tuple(wave.shape)}, expected float samples (T,)")
    # soundfile has no format of this name: Opus is stored in Ogg.
    container, subtype = ("OGG", "OPUS") if Path(path).suffix.lower() == ".opus" else (None, None)
    samples = wave.detach().cpu().numpy()
    try:
        with soundfile.SoundFile(_name(path), "w", rate_hz, 1, subtype, format=container) as file:
            # In blocks: for a wave of 90 s in one call, libsndfile's Vorbis encoder overflows its stack.
            for first in range(0, len(samples), _WRITTEN_SAMPLES):
                file.write(samples[first : first + _WRITTEN_SAMPLES])
    except soundfile.SoundFileError as error:
        raise OSError(f"{path}: {error}") from error


@contextmanager
def _opened(path: str | Path) -> Iterator[Opened]:
    """Opens a file and checks its container; errors of libsndfile and of the system become
    `UnreadableAudio`."""
    try:
        status = os.stat(path)
        container = _inspected(str(path), status.st_size, status.st_mtime_ns)
        if container.damage:
            raise UnreadableAudio(f"{path}: {container.damage}")
        with ExitStack() as stack:
            if container.streams:
                yield _plausible(path, stack.enter_context(ChainedFile(path, container.streams)))
                return
            source: Any = _name(path)
            if not container.is_unchanged:
                source = stack.enter_context(containers.PatchedFile(path, container))
            yield _plausible(path, stack.enter_context(soundfile.SoundFile(source)))
    except (soundfile.SoundFileError, OSError, TypeError) as error:
        if why := _refusal(path, error):
            raise RefusedAudio(f"{path}: cannot be read now ({why})") from error
        raise UnreadableAudio(f"{path}: {_why(path, error)}") from error


def _refusal(path: str | Path, error: Exception) -> str:
    """Why the system refuses to read the file, if the error says so; otherwise ""."""
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno and error.errno not in _OF_THE_PATH else ""
    try:
        _read_through(path)
    except OSError as again:
        return _refusal(path, again)
    return "an error of the system" if getattr(error, "code", None) == _SYSTEM_ERROR else ""


def _read_through(path: str | Path) -> None:
    """Reads all bytes, because libsndfile does not distinguish the end of a file from a failing disk.

    Raises:
        OSError: if the file cannot be read to its end.
    """
    with open(path, "rb", buffering=0) as file:
        while file.read(2**20):
            pass


def _name(path: str | Path) -> Any:
    """The path as bytes: a file name need not be UTF-8. (soundfile accepts bytes; its type hints do not say
    so.)"""
    return os.fsencode(path)


# Parts of one long file are read one after another.
@lru_cache(maxsize=1024)
def _inspected(path: str, size: int, modified_ns: int) -> containers.Container:
    return containers.inspect(path)


def _skip(file: Opened, frames: int) -> None:
    """Moves to a sample; decodes everything before it if libsndfile cannot seek (GSM 6.10, G.72x)."""
    if file.seekable():
        file.seek(frames)
        return
    while frames and (got := len(file.read(min(BLOCK_FRAMES, frames), dtype="float32"))):
        frames -= got


def _probe(path: str | Path, file: Opened) -> None:
    if file.format == "FLAC" and 0 < file.frames < _UNKNOWN_FRAMES:
        status = os.stat(path)
        if not _has_last_sample(str(path), status.st_size, status.st_mtime_ns):
            raise UnreadableAudio(f"{path}: cut off: its last samples cannot be decoded")


@lru_cache(maxsize=1024)
def _has_last_sample(path: str, size: int, modified_ns: int) -> bool:
    """Seeks to the last sample, using libFLAC's binary search."""
    with _opened(path) as file:
        try:
            file.seek(file.frames - 1)
            return len(file.read(1)) == 1
        except soundfile.SoundFileError:
            _read_through(path)
            return False


def _plausible(path: str | Path, file: Opened) -> Opened:
    low, high = RATES_HZ
    if not low <= file.samplerate <= high:
        raise UnreadableAudio(f"{path}: a sampling rate of {file.samplerate} Hz, expected {low} to {high:,}")
    return file


def _span(
    path: str | Path, file: Opened, offset_sec: float, duration_sec: float | None
) -> tuple[int, int, int]:
    """First sample, number of samples, and the minimum number with which the part counts as complete."""
    rate_hz = file.samplerate
    if not math.isfinite((offset_sec + (duration_sec or 0.0)) * rate_hz):
        raise UnreadableAudio(f"{path}: a cut at {offset_sec:g} s is not inside it")
    start = round(offset_sec * rate_hz)
    if duration_sec is None or file.frames < _UNKNOWN_FRAMES:
        _check_length_known(path, file.frames)
        if not file.frames:
            raise UnreadableAudio(f"{path}: no samples")
        span_sec(path, AudioInfo(file.frames, rate_hz, file.channels), offset_sec, duration_sec)
        left = max(0, file.frames - start)
        wanted = left if duration_sec is None else min(round(duration_sec * rate_hz), left)
        return start, wanted, wanted
    wanted = round(duration_sec * rate_hz)
    return start, wanted, wanted - round(END_SLACK_SEC * rate_hz)


_folders_noted: set[Path] = set()


def _note_silence(path: str | Path, peaks: np.ndarray) -> None:
    """Warns of a silent first channel next to others that are not: once per folder, at most ten times."""
    folder = Path(path).parent
    if len(peaks) < 2 or peaks[0] > 1e-4 or peaks[1:].max() < 1e-3:  # -80 and -60 dB of full scale
        return
    if folder not in _folders_noted and len(_folders_noted) < 10:
        _folders_noted.add(folder)
        other = int(peaks[1:].argmax()) + 2
        print(
            f"{path}: its first channel is silent, channel {other} is not; only the first is read: mix the "
            "channels, or put the speech into the first (shown once per folder)",
            file=sys.stderr,
            flush=True,
        )


def _check_length_known(path: str | Path, frames: int) -> None:
    if frames >= _UNKNOWN_FRAMES:
        raise UnreadableAudio(f"{path}: the header does not state a length; re-encode the file")


def _why(path: str | Path, error: Exception) -> str:
    if not os.path.exists(path):  # False for names too long for the file system, where Path raises an error
        return "no such file"
    if os.path.isdir(path):
        return "a folder, expected a sound file"
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return "empty file"
    return f"no readable sound ({str(error).split(': ', 1)[-1].strip()})"
