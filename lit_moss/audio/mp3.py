"""Counts the frames of an MP3 file and compares them with its header (Xing, Info, VBRI).

Sources: ISO/IEC 11172-3 and 13818-3 for the frame header, id3.org for the tags, LAME for the Xing frame.
"""

import mmap
import re
import struct

_RATES_HZ = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
# kbit/s by (MPEG 1, layer), index 1 to 14.
_KBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_NO_KIND = (0, 0, 0)
_NOT_ZERO = re.compile(rb"[^\0]")
# An empty tag, by which libsndfile recognises an MP3 that is not read from a file.
_ID3 = b"ID3\x03\x00\x00\x00\x00\x00\x0aTIT2" + bytes(6)


def inspect(data: mmap.mmap, begin: int, several: str) -> tuple[str, int, bytes]:
    """Damage of the frames from `begin` on, and the bytes that libsndfile should read.

    libsndfile guesses the length of a file without a Xing or Info header from its first frames, and reads no
    further: with a variable bit rate it may omit most of the file. Such a file gets a header with the counted
    frames.

    Args:
        data: The file.
        begin: Offset at which its first frame is expected, after an ID3 tag.
        several: Damage to report if there are several recordings one after another.

    Returns:
        Damage ("" if there is none or this is not an MP3), offset to begin at, and header to insert before
        it.
    """
    # Uses a pattern: for a file of zeros (space reserved for a download) a loop took 0.2 s per megabyte.
    begin = sound.start() if (sound := _NOT_ZERO.search(data, begin)) else len(data)
    at, frames, sound_begin, sound_end = begin, 0, begin, begin
    stated: tuple[int, int] | None = None
    kind = _frame(data, begin)[1]
    if kind == _NO_KIND:
        return "", 0, b""
    while at < len(data):
        size, own = _frame(data, at)
        if not size:
            after = end_of_id3(data, at)
            after = after if after > at else _next_frame(data, at, kind)
            if after < len(data) and not data[at : at + 8].startswith(
                (b"ID3", b"TAG", b"APETAGEX", b"LYRICS")
            ):
                return f"broken at byte {at:,}: no MP3 frame begins there", 0, b""
            at = after
            continue
        if own != kind:
            return several, 0, b""
        if at + size > len(data):
            return "cut off within its last MP3 frame", 0, b""
        header = _stated(data, at)
        if header is not None:
            if frames or stated is not None:
                return several, 0, b""
            stated, sound_begin = header, at
        else:
            frames += 1
        at += size
        sound_end = at
    if stated is not None and (damage := _compared(stated, frames, sound_end - sound_begin, several)):
        return damage, 0, b""
    counted = stated is not None and stated[0] and not _is_vbri(data, begin)
    head = b"" if counted or not frames else _counting_frame(data[begin : begin + 4], frames)
    return ("", begin, _ID3 + head) if head else ("", 0, b"")


def _counting_frame(head: bytes, frames: int) -> bytes:
    """A frame without audio whose Xing header states the number of following frames; empty if impossible."""
    for bits in range(1, 15):
        own = bytes([head[0], head[1] | 1, bits << 4 | head[2] & 0b1100, head[3]])
        size, (version, layer, _) = _frame(own, 0)
        if layer == 3 and size >= 64:
            side = (17 if head[3] >> 6 == 3 else 32) if version == 3 else (9 if head[3] >> 6 == 3 else 17)
            return (own + bytes(side) + b"Xing" + struct.pack(">II", 1, frames)).ljust(size, b"\0")
    return b""


def _compared(stated: tuple[int, int], frames: int, size: int, several: str) -> str:
    stated_frames, stated_bytes = stated
    # Some encoders count the frame of the header itself; then the number of bytes decides.
    if frames + 1 < stated_frames or (frames + 1 == stated_frames and size < stated_bytes):
        return f"cut off: its header states {stated_frames:,} MP3 frames, the file holds {frames:,}"
    return several if stated_frames and frames > stated_frames + 1 else ""


def end_of_id3(data: mmap.mmap, at: int) -> int:
    """End of the ID3v2 tags that begin here; `at` if there are none."""
    while data[at : at + 3] == b"ID3" and len(data) >= at + 10:
        head = data[at : at + 10]
        size = sum((head[6 + i] & 0x7F) << (7 * (3 - i)) for i in range(4))
        at += 10 + size + (10 if head[5] & 0x10 else 0)
    return at


def _frame(data: mmap.mmap | bytes, at: int) -> tuple[int, tuple[int, int, int]]:
    """Length in bytes of the frame that begins here, and (version, layer, rate in Hz); zeros if none."""
    head = data[at : at + 4]
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE0 != 0xE0:
        return 0, _NO_KIND
    version, layer = head[1] >> 3 & 3, 4 - (head[1] >> 1 & 3)
    bits, rate, padding = head[2] >> 4, head[2] >> 2 & 3, head[2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return 0, _NO_KIND
    rate_hz, bit_rate = _RATES_HZ[version][rate], 1000 * _KBITS[version == 3, layer][bits - 1]
    if layer == 1:
        size = (12 * bit_rate // rate_hz + padding) * 4
    else:
        size = (72 if layer == 3 and version != 3 else 144) * bit_rate // rate_hz + padding
    return size, (version, layer, rate_hz)


def _next_frame(data: mmap.mmap, at: int, kind: tuple[int, int, int]) -> int:
    """First position after `at` with two consecutive frames of this kind; otherwise the end of the file."""
    while (at := data.find(b"\xff", at + 1)) >= 0:
        size, own = _frame(data, at)
        if size and own == kind and _frame(data, at + size)[1] == kind:
            return at
    return len(data)


def _stated(data: mmap.mmap, at: int) -> tuple[int, int] | None:
    """Frames and bytes stated by a Xing, Info or VBRI header (0: unknown); None without a header."""
    head = data[at : at + 4]
    mono, mpeg1 = head[3] >> 6 == 3, head[1] & 8
    place = at + 4 + ((17 if mono else 32) if mpeg1 else (9 if mono else 17))
    if data[place : place + 4] in (b"Xing", b"Info") and data[place + 4 : place + 7] == b"\0\0\0":
        flags = data[place + 7]
        numbers = [n for (n,) in struct.iter_unpack(">I", data[place + 8 : place + 16].ljust(8, b"\0"))]
        frames = numbers.pop(0) if flags & 1 else 0
        return frames, numbers[0] if flags & 2 else 0
    if _is_vbri(data, at):
        size, frames = struct.unpack(">II", data[at + 46 : at + 54].ljust(8, b"\0"))
        return frames, size
    return None


def _is_vbri(data: mmap.mmap, at: int) -> bool:
    """Whether the frame contains Fraunhofer's header, which libsndfile does not read."""
    return data[at + 36 : at + 40] == b"VBRI"
