"""A file whose header states fewer samples than it holds was read in part, silently.

A recorder that writes its header before the end leaves such files: half of the sound was paired with the
whole transcript. What may follow the samples (chunks, tags, padding) is no such thing.
"""

import io as stdlib_io
import struct

import numpy as np
import pytest
import soundfile

from lit_moss.audio import containers, io

RATE_HZ, HELD, STATED = 16_000, 32_000, 16_000
NOISE = np.random.default_rng(0).normal(0, 0.2, HELD).clip(-1, 1).astype(np.float32)
ID3V1 = b"TAG" + b"A song".ljust(125, b"\0")
APE = b"APETAGEX" + bytes(24) + b"Title\0words" * 40
LIST = b"LIST" + struct.pack("<I", 400) + b"INFOINAM".ljust(400, b"a")


def content(form: str, samples: np.ndarray = NOISE, subtype: str = "PCM_16", **how) -> bytearray:
    buffer = stdlib_io.BytesIO()
    soundfile.write(buffer, samples, RATE_HZ, subtype, format=form, **how)
    return bytearray(buffer.getvalue())


def half_stated(form: str) -> bytes:
    """A file of 32,000 samples whose header states 16,000."""
    data, size = content(form), 2 * STATED
    if form in ("WAV", "WAVEX"):
        struct.pack_into("<I", data, data.find(b"data") + 4, size)
    elif form == "RF64":
        struct.pack_into("<Q", data, data.find(b"ds64") + 16, size)
    elif form == "AIFF":
        struct.pack_into(">I", data, data.find(b"SSND") + 4, size + 8)
        struct.pack_into(">I", data, data.find(b"COMM") + 10, STATED)
    elif form == "AU":
        struct.pack_into(">I", data, 8, size)
    elif form == "CAF":
        struct.pack_into(">q", data, data.find(b"data") + 4, size + 4)
    else:
        data[21] &= 0xF0
        struct.pack_into(">I", data, 22, STATED)
    return bytes(data)


@pytest.mark.parametrize("tail", [b"", ID3V1, bytes(4000)], ids=["plain", "tagged", "padded"])
@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "AIFF", "AU", "CAF", "FLAC"])
def test_a_header_that_states_half_of_the_samples_is_named(tmp_path, form, tail):
    path = tmp_path / "half"
    path.write_bytes(half_stated(form) + tail)
    unit = (
        "16,000 samples, its frames hold 32,000" if form == "FLAC" else "32,000 bytes of samples, .* follow"
    )
    for read in (io.info, lambda path: io.read(path, RATE_HZ)):
        with pytest.raises(io.UnreadableAudio, match=f"half: read in part: its header states {unit}"):
            read(path)


TAILS = {
    "nothing": b"",
    "pad byte": b"\0",
    "a few bytes": bytes(range(1, 100)),
    "zeros": bytes(5000),
    "0xFF": b"\xff" * 5000,
    "ID3v1": ID3V1,
    "APE": APE,
    "ID3v2": b"ID3\x04\0\0\0\0\x0f\x76" + b"\x01frames" * 300,
    "zeros and ID3v1": bytes(1000) + ID3V1,
    "chunk": LIST,
    "cut chunk": b"LIST" + struct.pack("<I", 4000) + b"INFOINAM".ljust(700, b"a"),
    "chunks": b"bext"
    + struct.pack("<I", 602)
    + bytes(602)
    + LIST
    + b"id3 "
    + struct.pack("<I", 300)
    + bytes(300),
    "chunk and ID3v1": LIST + ID3V1,
}


@pytest.mark.parametrize("tail", TAILS)
def test_what_may_follow_the_samples_is_no_damage(tmp_path, tail):
    for form in ("WAV", "AIFF", "AU", "FLAC"):
        if form != "WAV" and "chunk" in tail:
            continue
        path = tmp_path / form
        path.write_bytes(bytes(content(form)) + TAILS[tail])
        assert not containers.inspect(path).damage, form


def test_chunks_after_an_odd_number_of_bytes(tmp_path):
    """With the byte of padding that the format asks for, and without, as some write it."""
    samples = NOISE[:8001]
    data = content("WAV", samples, "PCM_U8")
    assert len(data) % 2 == 0  # padded
    for name, whole in (("padded.wav", data + LIST), ("unpadded.wav", data[:-1] + LIST)):
        (tmp_path / name).write_bytes(whole)
        assert len(io.read(tmp_path / name, RATE_HZ)) == len(samples)


def test_aiff_chunks_after_the_samples(tmp_path):
    tail = b"NAME" + struct.pack(">I", 200) + b"a" * 200 + b"ID3 " + struct.pack(">I", 300) + b"\x01" * 300
    (tmp_path / "a.aiff").write_bytes(bytes(content("AIFF")) + tail)
    assert len(io.read(tmp_path / "a.aiff", RATE_HZ)) == HELD


def test_an_au_file_with_an_annotation_is_whole(tmp_path):
    data = content("AU")
    begin = struct.unpack_from(">I", data, 4)[0]
    struct.pack_into(">I", data, 4, begin + 400)
    (tmp_path / "a.au").write_bytes(data[:begin] + b"An annotation.".ljust(400, b"\0") + data[begin:])
    assert len(io.read(tmp_path / "a.au", RATE_HZ)) == HELD


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_S8"])
@pytest.mark.parametrize("samples", [1, 100, 4095, 4096, 4097, 30_000])
def test_whole_flac_files_of_any_length_are_whole(tmp_path, samples, subtype):
    path = tmp_path / "a.flac"
    for level in (0.0, 0.6, 1.0):
        data = content("FLAC", NOISE[:samples], subtype, compression_level=level)
        path.write_bytes(data)
        assert not containers.inspect(path).damage
        if samples > 1:
            data[21] &= 0xF0
            struct.pack_into(">I", data, 22, samples - 1)
            path.write_bytes(data)
            assert "read in part" in containers.inspect(path).damage


def test_damaged_heads_of_flac_frames_are_no_crash(tmp_path):
    rng, path = np.random.default_rng(0), tmp_path / "a.flac"
    data = content("FLAC")
    for _ in range(100):
        damaged = bytearray(data)
        for at in rng.integers(len(data), size=rng.integers(1, 100)):
            damaged[at] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(data) + 1)])
        containers.inspect(path)
