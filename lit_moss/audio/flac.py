"""Compares the number of samples that a FLAC file's header states with the frames in the file.

libsndfile reads no further than the header states. The last frame states its position in samples, so the
comparison needs no decoding. Source: RFC 9639, sections 8.2 (STREAMINFO) and 9.1 (frame header).
"""

import mmap
from typing import NamedTuple

_REACH = 2**20  # bytes from the end to search for the last two frames, unless longer frames are stated
_TOTAL = 2**36 - 1
# Samples of a frame by code; 0 if one or two further bytes state the number.
_SIZES = (0, 192, *(576 << i for i in range(4)), 0, 0, *(256 << i for i in range(8)))


class _Frame(NamedTuple):
    first: int  # sample
    stop: int


def inspect(data: mmap.mmap, begin: int, several: str) -> str:
    """Damage of the stream that begins at `begin`; "" if none is found without decoding.

    Args:
        data: The file.
        begin: Offset of `fLaC`.
        several: Damage to report if there are several recordings one after another.
    """
    # The marker and the header of the required metadata block: 8 bytes that do not occur by chance.
    again = (data.find(b"fLaC" + last + b"\x00\x00\x22", begin + 4) for last in (b"\x00", b"\x80"))
    if any(at >= 0 for at in again):
        return several
    stated = int.from_bytes(data[begin + 18 : begin + 26], "big") & _TOTAL
    held = _samples(data, begin) if stated else 0  # 0: not stated by the header
    if held <= stated:
        return ""
    return (
        f"read in part: its header states {stated:,} samples, its frames hold {held:,}: re-encode it by a "
        "program that counts them, such as flac"
    )


def _samples(data: mmap.mmap, begin: int) -> int:
    """The sample after the last frame; 0 if no two consecutive frames are found near the end.

    Bytes within a frame may look like a header: a frame is accepted if it continues the previous one, or is
    the first.
    """
    smallest, largest = (int.from_bytes(data[begin + at : begin + at + 2], "big") for at in (8, 10))
    reach = max(_REACH, 3 * int.from_bytes(data[begin + 15 : begin + 18], "big"))
    first = _after_metadata(data, begin)
    sync = data[first : first + 2]
    if sync not in (b"\xff\xf8", b"\xff\xf9") or (sync == b"\xff\xf8" and smallest != largest):
        return 0
    stops: dict[int, int] = {}  # first sample -> sample after the last, of possible frames
    at = len(data)
    while (at := data.rfind(sync, max(first, len(data) - reach), at)) >= 0:
        frame = _frame(data[at : at + 16], largest)
        if frame is None:
            continue
        if frame.stop in stops:
            return stops[frame.stop]
        if at == first:
            return frame.stop
        stops[frame.first] = frame.stop
    return 0


def _after_metadata(data: mmap.mmap, begin: int) -> int:
    at, last = begin + 4, False
    while not last and at + 4 <= len(data):
        last = data[at] >= 0x80
        at += 4 + int.from_bytes(data[at + 1 : at + 4], "big")
    return at


def _frame(head: bytes, block: int) -> _Frame | None:
    """The frame with this header; None if it is not a valid header.

    Args:
        head: 16 bytes, the maximum length of a header.
        block: Number of samples of each frame except the last, in a stream with frames of constant length.
    """
    if len(head) < 16:
        head = head.ljust(16, b"\xff")
    size_code, rate_code, channels = head[2] >> 4, head[2] & 15, head[3] >> 4
    if not size_code or rate_code == 15 or channels > 10 or head[3] & 1:
        return None
    number, at = _number(head)
    if not at:
        return None
    size = _SIZES[size_code]
    if not size:
        size = int.from_bytes(head[at : at + size_code - 5], "big") + 1
        at += size_code - 5
    at += {12: 1, 13: 2, 14: 2}.get(rate_code, 0)
    if at >= len(head) or _crc8(head[:at]) != head[at]:
        return None
    first = number if head[1] & 1 else number * block
    return _Frame(first, first + size)


def _number(head: bytes) -> tuple[int, int]:
    """The number of the frame or of its first sample, and its end in the header; (0, 0) if it is invalid."""
    lead = head[4]
    ones = 8 - (~lead & 0xFF).bit_length()  # as in UTF-8: the number of bytes
    if ones == 1 or ones > 7:
        return 0, 0
    rest = head[5 : 4 + max(1, ones)]
    if any(byte >> 6 != 2 for byte in rest):
        return 0, 0
    number = lead & (0xFF >> (ones + 1))
    for byte in rest:
        number = number << 6 | byte & 63
    return number, 5 + len(rest)


def _crc8(content: bytes) -> int:
    crc = 0
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ (0x107 if crc & 0x80 else 0)
    return crc
