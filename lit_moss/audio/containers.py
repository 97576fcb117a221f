"""Compares the length that a sound file's container states with the actual content of the file.

libsndfile reads a truncated file as far as possible, and only the first of several streams written one after
another, both without an error: part of the audio would then be paired with the complete transcript.

| container | what is compared |
|---|---|
| WAV, RF64, AIFF, CAF, AU | the stated size of the samples must equal the number of bytes that follow |
| W64, NIST | as above, but libsndfile also reads data beyond the stated size |
| OGG (Vorbis, Opus) | the last page of each stream is complete and marked as the last; no page is missing |
| MP3 | all frames are complete, and as many as the Xing, Info or VBRI header states |
| FLAC | one stream, with no frames beyond its samples; missing frames are found by decoding, see `io` |

A program that writes to a pipe cannot state a size. It writes 0 or the largest possible number, and the audio
then extends to the end of the file; where libsndfile does not recognise this, `patches` contains the size.
"""

import io
import mmap
import os
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from lit_moss.audio import flac, mp3

# 2^31 - 1 and 2^32 - 1, 2^31 (arecord), 0x7FFFF000 and 0x7F000000 (sox), and their 64-bit counterparts. Some
# writers subtract the sizes of the headers.
_PIPE_SIZES = (0x7F000000, 0x7FFFF000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
_PIPE_SLACK = 128
# Trailing bytes that are not counted as samples, whatever they are: some writers miscount by their headers.
_TAIL_SLACK = 128
_LARGEST_CUT_CHUNK = 2**26  # maximum stated size in bytes of a chunk that the end of the file cuts off
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")
_W64_TAIL = bytes.fromhex("f3acd3118cd100c04f8edb8a")  # ends every W64 GUID except the first


@dataclass(frozen=True)
class Container:
    """Result of inspecting a file's container.

    Args:
        damage: Why the file must not be used; "" if nothing is wrong.
        patches: (offset, bytes) to read instead of the file's own: sizes that a pipe could not state.
        streams: Offset and length in bytes of each of several streams; empty for a single one.
        begin: Number of bytes to skip at the start: tags that libsndfile cannot read, or after which it
            cannot seek.
        head: Bytes to read before the file's own: a header that an MP3 lacks.
    """

    damage: str = ""
    patches: tuple[tuple[int, bytes], ...] = ()
    streams: tuple[tuple[int, int], ...] = ()
    begin: int = 0
    head: bytes = b""

    @property
    def is_unchanged(self) -> bool:
        """Whether the file can be read without changes."""
        return not (self.patches or self.begin or self.head)


def inspect(path: str | Path) -> Container:
    """Compares what the container states with the content of the file, without decoding.

    Containers unknown to this function, or without samples, are left to libsndfile.

    Raises:
        OSError: if the file cannot be read.
    """
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode) or not status.st_size:
            return Container()
        length, magic = status.st_size, file.read(12)
        for start, layout in _LAYOUTS.items():
            if magic.startswith(start):
                return _chunked(file, length, layout, start)
        if magic[:4] in (b".snd", b"dns."):
            return _au(file, length, magic[:4])
        if magic.startswith(b"NIST_1A"):
            return _nist(file, length)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _of_frames(data)


class PatchedFile(io.RawIOBase):
    """A file opened for reading, with the changes given by its `Container`."""

    def __init__(self, path: str | Path, container: Container) -> None:
        self._file, self._at = open(path, "rb"), 0  # noqa: SIM115 - closed by `close`
        self._patches, self._head, self._begin = container.patches, container.head, container.begin
        self._length = len(self._head) + os.fstat(self._file.fileno()).st_size - self._begin

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fills the buffer as far as possible; returns the number of bytes."""
        content = bytearray(self._head[self._at : self._at + len(buffer)])
        begin = max(0, self._at - len(self._head)) + self._begin
        self._file.seek(begin)
        content += self._file.read(len(buffer) - len(content))
        for at, new in self._patches:
            low, high = max(at, begin), min(at + len(new), begin + len(content))
            if low < high:
                content[low - begin : high - begin] = new[low - at : high - at]
        buffer[: len(content)] = content
        self._at += len(content)
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        self._at = max(0, offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence])
        return self._at

    def tell(self) -> int:
        """As `io.IOBase.tell`."""
        return self._at

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


class PartOfFile(io.RawIOBase):
    """A range of bytes of a file, readable like a separate file.

    Args:
        path: The file.
        begin: Offset of the first byte.
        length: Number of bytes.
    """

    def __init__(self, path: str | Path, begin: int, length: int) -> None:
        self._file, self._begin, self._length = open(path, "rb"), begin, length  # noqa: SIM115
        self._file.seek(begin)

    def readinto(self, buffer: bytearray | memoryview) -> int:
        """Fills the buffer as far as possible; returns the number of bytes."""
        content = self._file.read(max(0, min(len(buffer), self._length - self.tell())))
        buffer[: len(content)] = content
        return len(content)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As `io.IOBase.seek`."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._length}[whence]
        return self._file.seek(self._begin + max(0, base + offset)) - self._begin

    def tell(self) -> int:
        """As `io.IOBase.tell`."""
        return self._file.tell() - self._begin

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
        super().close()


# --- containers that state the size of their samples --------------------------------------------------------


@dataclass(frozen=True)
class _Layout:
    """Layout of a container's chunks.

    Args:
        head: Number of bytes before the first chunk.
        id_bytes: Number of bytes of a chunk's name.
        size: Format of the size that follows the name.
        data: Name of the chunk that contains the samples.
        counted: Number of bytes of its own header that a chunk's size includes.
        lead: Number of bytes in the chunk of samples before the first sample.
        align: Alignment of chunks in bytes.
        size_at: Offset of the field with the size of the whole file; None if it is irrelevant.
    """

    head: int
    id_bytes: int
    size: struct.Struct
    data: bytes
    counted: int = 0
    lead: int = 0
    align: int = 2
    size_at: int | None = None


_RIFF = _Layout(12, 4, struct.Struct("<I"), b"data")
_W64 = _Layout(40, 16, struct.Struct("<Q"), b"data" + _W64_TAIL, counted=24, align=8, size_at=16)
_LAYOUTS = {
    b"RIFF": _RIFF,
    b"RF64": _RIFF,
    b"BW64": _RIFF,
    b"RIFX": _Layout(12, 4, struct.Struct(">I"), b"data"),
    b"FORM": _Layout(12, 4, struct.Struct(">I"), b"SSND", lead=8),
    b"riff\x2e\x91\xcf\x11": _W64,
    b"caff": _Layout(8, 4, struct.Struct(">q"), b"data", lead=4, align=1),
}


def _chunked(file: BinaryIO, length: int, layout: _Layout, magic: bytes) -> Container:
    header = layout.id_bytes + layout.size.size
    at, ds64, seen_data = layout.head, None, False
    while 0 <= at <= length - header:
        file.seek(at)
        name, written = _split(file.read(header), layout)
        body, stated = at + header, written - layout.counted
        if name == b"ds64":
            riff_bytes, data_bytes = struct.unpack("<QQ", file.read(16).ljust(16, b"\0"))
            ds64 = (body, riff_bytes, data_bytes)
        if name == layout.data:
            seen_data = True
            if ds64 is not None:
                stated = ds64[2]
            stated, begin = stated - layout.lead, body + layout.lead
            available = length - begin
            if stated <= 0 and (available <= 0 or _chunks_to_the_end(file, begin, length, layout)):
                return Container()  # no samples
            if stated <= 0 or (stated > available and _of_a_pipe(stated)):
                return Container(patches=_sized(layout, at, length, available, ds64 and ds64[0]))
            if stated > available:
                return Container(_cut_off(stated, available))
            stated += layout.lead
        end = body + max(0, stated)
        at = -(-end // layout.align) * layout.align
        if seen_data and end < length:
            file.seek(end)
            if magic in file.read(layout.align - 1 + len(magic)):
                return Container(_SEVERAL)
        if name == layout.data and layout is not _W64 and not _is_no_sound(file, end, length, layout):
            return Container(_left_over(end - body - layout.lead, length - end))
    return Container()


def _split(head: bytes, layout: _Layout) -> tuple[bytes, int]:
    return head[: layout.id_bytes], layout.size.unpack_from(head, layout.id_bytes)[0]


def _chunks_to_the_end(file: BinaryIO, at: int, length: int, layout: _Layout) -> bool:
    """Whether the file contains only other chunks from here to its end."""
    header = layout.id_bytes + layout.size.size
    while at + header <= length:
        file.seek(at)
        name, written = _split(file.read(header), layout)
        if written < layout.counted or not name[:4].isascii() or not name[:4].decode().isprintable():
            return False
        end = at + header + written - layout.counted
        at = -(-end // layout.align) * layout.align
    return at - layout.align < length <= at


def _is_no_sound(file: BinaryIO, begin: int, length: int, layout: _Layout | None) -> bool:
    """Whether the data after the samples, from `begin` on, is not audio: very few bytes, a constant value, a
    tag, or a chunk (possibly cut off by the end of the file)."""
    file.seek(max(begin, length - 128))
    if file.read(3) == b"TAG":  # ID3v1 is at the very end of a file
        length -= 128
    if length - begin <= _TAIL_SLACK or _is_uniform(file, begin, length):
        return True
    file.seek(begin)
    head = file.read(40)
    if layout is None or head.startswith(_TAGS):
        return head.startswith(_TAGS)
    paddings = (0, -begin % layout.align)  # some writers omit it
    return any(_is_chunk(head[padding:], length - begin - padding, layout) for padding in paddings)


def _is_chunk(head: bytes, left: int, layout: _Layout) -> bool:
    """Whether a chunk begins with these bytes, followed by `left` more bytes in the file.

    Samples may look like the name of a chunk, but rarely like one with a plausible size.
    """
    name, size = _split(head, layout)
    is_name = 0x20 < name[0] < 0x7F and all(not byte or 0x20 <= byte < 0x7F for byte in name)
    is_inside = size <= left - layout.id_bytes - layout.size.size
    return is_name and size >= 0 and (is_inside or (size <= _LARGEST_CUT_CHUNK and 0 not in name))


def _is_uniform(file: BinaryIO, at: int, length: int) -> bool:
    """Whether all bytes in this range are equal: zeros, 0xFF, silence."""
    file.seek(at)
    first = file.read(1)
    file.seek(at)
    blocks = (file.read(min(2**20, length - place)) for place in range(at, length, 2**20))
    return all(block.count(first) == len(block) for block in blocks)


def _sized(
    layout: _Layout, at: int, length: int, available: int, ds64_at: int | None
) -> tuple[tuple[int, bytes], ...]:
    if ds64_at is not None:
        return ((ds64_at, struct.pack("<QQ", length - 8, available)),)
    size = available + layout.lead + layout.counted
    if size >= 256**layout.size.size:  # libsndfile reads to the end of the file by itself
        return ()
    whole = () if layout.size_at is None else ((layout.size_at, layout.size.pack(length)),)
    return (*whole, (at + layout.id_bytes, layout.size.pack(size)))


def _au(file: BinaryIO, length: int, magic: bytes) -> Container:
    number = struct.Struct(">I" if magic == b".snd" else "<I")
    file.seek(4)
    begin, stated = (number.unpack(file.read(4).ljust(4, b"\0"))[0] for _ in range(2))
    available = length - begin
    if available <= 0:
        return Container()
    if not stated or (stated > available and _of_a_pipe(stated)):
        return Container(patches=((8, number.pack(available)),) if available < 2**32 else ())
    file.seek(begin + min(stated, available))
    if file.read(4) == magic:
        return Container(_SEVERAL)
    if stated > available:
        return Container(_cut_off(stated, available))
    is_whole = _is_no_sound(file, begin + stated, length, None)
    return Container("" if is_whole else _left_over(stated, available - stated))


def _nist(file: BinaryIO, length: int) -> Container:
    """NIST SPHERE: a header of lines `name -type value`, the second of which is its size."""
    file.seek(0)
    lines = file.read(4096).split(b"\n")
    try:
        begin = int(lines[1])
        fields = {parts[0]: parts[2] for parts in (line.split(None, 2) for line in lines) if len(parts) == 3}
        numbers = (b"sample_count", b"channel_count", b"sample_n_bytes")
        samples, channels, width = (int(fields[name]) for name in numbers)
    except (ValueError, IndexError, KeyError):
        return Container()
    if not fields.get(b"sample_coding", b"pcm").startswith((b"pcm", b"ulaw", b"alaw")):
        return Container()
    stated, available = samples * channels * width, length - begin
    return Container(_cut_off(stated, available) if stated > available else "")


def _of_a_pipe(stated: int) -> bool:
    return any(abs(stated - size) <= _PIPE_SLACK for size in _PIPE_SIZES)


def _cut_off(stated: int, available: int) -> str:
    return f"cut off: its header states {stated:,} bytes of samples, the file holds {max(0, available):,}"


def _left_over(stated: int, more: int) -> str:
    stated_and_more = f"its header states {stated:,} bytes of samples, {more:,} more follow that are no tags"
    return f"read in part: {stated_and_more}: re-encode it by a program that reads to the end"


_SEVERAL = (
    "several recordings one after another, of which only the first would be read: split or re-encode it"
)

# --- containers of pages and frames -------------------------------------------------------------------------


def _of_frames(data: mmap.mmap) -> Container:
    begin = mp3.end_of_id3(data, 0)
    starts: dict[bytes, Callable[[mmap.mmap, int], Container]] = {b"OggS": _ogg, b"fLaC": _flac}
    inspect_format = starts.get(data[begin : begin + 4])
    if inspect_format is not None:
        return replace(inspect_format(data, begin), begin=begin)
    damage, begin, head = mp3.inspect(data, begin, _SEVERAL)
    return Container(damage, begin=begin, head=head)


def _flac(data: mmap.mmap, begin: int) -> Container:
    return Container(flac.inspect(data, begin, _SEVERAL))


def _ogg(data: mmap.mmap, begin: int) -> Container:
    """Checks the pages (RFC 3533): "OggS", version, flags, granule, serial, number, checksum, lengths."""
    lost = "cut off: the last page of its Ogg stream is missing"
    at, pages, unfinished, in_body, begins = begin, dict[int, int](), set[int](), False, [begin]
    while (at := data.find(b"OggS", at)) >= 0:
        head = data[at : at + 27]
        lengths = data[at + 27 : at + 27 + head[26]] if len(head) == 27 else b""
        end = at + 27 + len(lengths) + sum(lengths)
        if len(head) < 27 or len(lengths) < head[26] or end > len(data):
            return Container("cut off within a page of its Ogg stream")
        flags = head[5]
        serial, number = struct.unpack_from("<II", head, 14)
        if flags & 2:  # first page of a stream; those of multiplexed streams all come at the start
            if in_body:
                if unfinished:
                    return Container(lost)
                pages, in_body = {}, False
                begins.append(at)
            unfinished.add(serial)
        else:
            in_body = True
            if number != pages.get(serial, number - 1) + 1:
                return Container(f"page {pages[serial] + 1} of its Ogg stream is missing")
        pages[serial] = number
        if flags & 4:
            unfinished.discard(serial)
        at = end
    if unfinished:
        return Container(lost)
    ends = [*begins[1:], len(data)]
    streams = tuple((start, end - start) for start, end in zip(begins, ends, strict=True))
    return Container(streams=streams if len(streams) > 1 else ())
