"""A file that was cut off, or that holds streams written one after another, was read in part, silently.

libsndfile reads what is left, or the first stream: half of the sound was paired with the whole transcript. A
container that states more than the file holds, or holds several recordings, makes the file unreadable, by
name, in every reader; streams of Ogg, which may follow each other, are read as one recording. Sizes of a
program that writes to a pipe (0, 0x7FFFFFFF, 0xFFFFFFFF) mean "unknown": such a file is read to its end.
"""

import io as stdlib_io
import json
import struct

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.audio import containers, io
from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer

RATE_HZ = 16_000
# Format and subtype of soundfile by the name that the container gets here.
KINDS = {
    "wav": ("WAV", "PCM_16"), "wav_float": ("WAV", "FLOAT"), "wav_adpcm": ("WAV", "IMA_ADPCM"),
    "wav_big_endian": ("WAV", "PCM_16"), "wavex": ("WAVEX", "PCM_24"), "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "aifc": ("AIFF", "FLOAT"), "au": ("AU", "PCM_16"),
    "au_little_endian": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"), "nist": ("NIST", "PCM_16"),
    "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip
ENDIAN = {"wav_big_endian": "BIG", "au_little_endian": "LITTLE"}
SHORTEST_CUT = ("flac", "ogg", "opus", "mp3")  # one byte less is noticed in these as well
CONCATENATED = ["mp3", "flac", "wav", "rf64", "w64", "aiff", "au", "caf"]


def sound(sec: float = 1.5, seed: int = 0) -> np.ndarray:
    times = np.arange(round(sec * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).normal(0, 0.02, len(times))
    return (0.3 * np.sin(2 * np.pi * (220 + 40 * seed) * times) + noise).astype(np.float32)


def content(kind: str, samples: np.ndarray | None = None) -> bytes:
    form, subtype = KINDS[kind]
    if subtype not in soundfile.available_subtypes(form):
        pytest.skip(f"this libsndfile has no {subtype}")
    buffer = stdlib_io.BytesIO()
    samples = sound() if samples is None else samples
    soundfile.write(buffer, samples, RATE_HZ, subtype, ENDIAN.get(kind), form)
    return buffer.getvalue()


def kept(tmp_path, name: str, data: bytes):
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_file_is_whole(tmp_path, kind):
    path = kept(tmp_path, kind, content(kind))
    assert containers.inspect(path) == containers.Container()
    read = io.read(path, RATE_HZ)
    with soundfile.SoundFile(path) as file:
        expected = file.read(dtype="float32")
    assert torch.equal(read, torch.from_numpy(expected))
    assert io.info(path).frames == len(expected)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.99, "one byte"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_that_was_cut_off_is_named(tmp_path, kind, share):
    data = content(kind)
    path = kept(tmp_path, kind, data[: -1 if share == "one byte" else int(share * len(data))])
    with pytest.raises(io.UnreadableAudio, match=f"{kind}: "):
        io.info(path)
    with pytest.raises(io.UnreadableAudio, match=f"{kind}: "):
        io.read(path, RATE_HZ)
    with pytest.raises(io.UnreadableAudio, match=f"{kind}: "):
        io.read(path, RATE_HZ, duration_sec=len(sound()) / RATE_HZ)


def test_a_cut_between_two_pages_or_frames_is_noticed(tmp_path):
    for kind, mark in (("ogg", b"OggS"), ("opus", b"OggS"), ("mp3", b"\xff\xf3"), ("flac", b"\xff\xf8\xc4")):
        data = content(kind, sound(6.0))
        path = kept(tmp_path, kind, data[: data.rfind(mark)])
        for read in (io.info, lambda path: io.read(path, RATE_HZ)):
            with pytest.raises(io.UnreadableAudio, match=kind):
                read(path)


def test_a_missing_page_in_the_middle_is_noticed(tmp_path):
    data = content("ogg", sound(20.0))
    starts = [i for i in range(len(data)) if data[i : i + 4] == b"OggS"]
    path = kept(tmp_path, "hole.ogg", data[: starts[3]] + data[starts[4] :])
    with pytest.raises(io.UnreadableAudio, match="page 3 of its Ogg stream is missing"):
        io.info(path)


@pytest.mark.parametrize("same", [True, False], ids=["same", "other"])
@pytest.mark.parametrize("kind", CONCATENATED)
def test_files_written_one_after_the_other_are_named(tmp_path, kind, same):
    first, second = content(kind), content(kind, sound(0.7, seed=1))
    path = kept(tmp_path, kind, first + (first if same else second))
    for read in (io.info, lambda path: io.read(path, RATE_HZ)):
        with pytest.raises(io.UnreadableAudio, match="several recordings one after another"):
            read(path)


@pytest.mark.parametrize("kind", ["ogg", "opus"])
def test_ogg_streams_one_after_the_other_are_read_as_one(tmp_path, kind):
    samples = [sound(1.5), sound(0.7, seed=1), sound(1.1, seed=2)]
    data = [content(kind, one) for one in samples]
    each = [io.read(kept(tmp_path, f"{i}.{kind}", d), RATE_HZ) for i, d in enumerate(data)]
    path = kept(tmp_path, f"chain.{kind}", b"".join(data))
    whole = torch.cat(each)
    assert io.info(path).frames == len(whole)
    assert torch.equal(io.read(path, RATE_HZ), whole)
    part = io.read(path, RATE_HZ, 1.25, 1.5)  # begins in the first stream and ends in the third
    first = io.read(tmp_path / f"0.{kind}", RATE_HZ, 1.25)
    assert torch.equal(part, torch.cat([first, each[1], each[2]])[:24_000])
    with pytest.raises(io.UnreadableAudio, match="not inside"):
        io.read(path, RATE_HZ, 1.0, 3.0)
    cut = kept(tmp_path, f"cut.{kind}", data[0][: data[0].rfind(b"OggS")] + data[1])
    with pytest.raises(io.UnreadableAudio, match="the last page of its Ogg stream is missing"):
        io.info(cut)


def test_ogg_streams_of_different_rates_are_named(tmp_path):
    other = stdlib_io.BytesIO()
    soundfile.write(other, sound(), 22_050, format="OGG", subtype="VORBIS")
    path = kept(tmp_path, "mixed.ogg", content("ogg") + other.getvalue())
    with pytest.raises(io.UnreadableAudio, match="of different rates or channels"):
        io.read(path, RATE_HZ)


def test_mp3_streams_without_a_header_that_counts_frames(tmp_path):
    """They are read whole by libsndfile, tags between them too; a cut within a frame is noticed."""
    data = content("mp3", sound(3.0))
    bare = data[data.find(b"\xff\xf3", 4) :]  # without the Xing frame
    tag = b"ID3\x04\x00\x00\x00\x00\x00\x0a" + bytes(10)
    one, two = kept(tmp_path, "one.mp3", bare), kept(tmp_path, "two.mp3", tag + bare + tag + bare)
    assert len(io.read(two, RATE_HZ)) >= 1.9 * len(io.read(one, RATE_HZ))
    kept(tmp_path, "tagged.mp3", tag + data + b"TAG" + bytes(125))
    assert len(io.read(tmp_path / "tagged.mp3", RATE_HZ)) == 3 * RATE_HZ
    with pytest.raises(io.UnreadableAudio, match="cut off within its last MP3 frame"):
        io.read(kept(tmp_path, "cut.mp3", bare[:-10]), RATE_HZ)


def with_sizes(kind: str, size: int) -> bytes:
    """A file as a pipe leaves it: the size of the samples, and of the whole, are `size`."""
    data = bytearray(content(kind))

    def put(at: int, form: str) -> None:
        bits = 8 * struct.calcsize(form)
        value = size & (2**bits - 1)
        data[at : at + bits // 8] = struct.pack(form.replace("q", "Q"), value)

    if kind.startswith("wav"):
        put(4, ">I" if kind == "wav_big_endian" else "<I")
        put(data.find(b"data") + 4, ">I" if kind == "wav_big_endian" else "<I")
    elif kind == "rf64":
        put(20, "<Q")
        put(28, "<Q")
        put(36, "<Q")
    elif kind == "w64":
        put(16, "<Q")
        put(data.find(b"data") + 16, "<Q")
    elif kind in ("aiff", "aifc"):
        put(4, ">I")
        put(data.find(b"SSND") + 4, ">I")
        put(data.find(b"COMM") + 10, ">I")
    elif kind.startswith("au"):
        put(8, "<I" if kind == "au_little_endian" else ">I")
    elif kind == "caf":
        put(data.find(b"data") + 4, ">q")
    return bytes(data)


PIPE_SIZES = {"zero": 0, "2^31-1": 0x7FFFFFFF, "2^32-1": 0xFFFFFFFF, "sox": 0x7FFFF000, "all_ones": -1}


@pytest.mark.slow
@pytest.mark.parametrize("size", PIPE_SIZES)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*SHORTEST_CUT, "nist", "wav_adpcm")])
def test_sizes_of_a_pipe_mean_to_the_end_of_the_file(tmp_path, kind, size):
    path = kept(tmp_path, kind, with_sizes(kind, PIPE_SIZES[size]))
    whole = io.read(kept(tmp_path, "whole", content(kind)), RATE_HZ)
    assert io.info(path).frames == len(whole)
    assert torch.equal(io.read(path, RATE_HZ), whole)
    assert torch.equal(io.read(path, RATE_HZ, 0.5, 0.25), whole[8000:12_000])


@pytest.mark.parametrize("kind", ["wav", "rf64", "w64", "aiff", "au", "caf"])
def test_a_file_without_samples_has_none(tmp_path, kind):
    for tail in (b"", b"LIST\4\0\0\0abcd") if kind == "wav" else (b"",):
        path = kept(tmp_path, kind, content(kind, np.zeros(0, np.float32)) + tail)
        for read in (io.info, lambda path: io.read(path, RATE_HZ)):
            with pytest.raises(io.UnreadableAudio, match=kind):
                read(path)


def test_chunks_after_the_samples_may_be_cut(tmp_path):
    data = content("wav") + b"LIST" + struct.pack("<I", 4000) + b"INFOINAM"
    assert len(io.read(kept(tmp_path, "a.wav", data), RATE_HZ)) == len(sound())


@pytest.fixture
def folder(tmp_path):
    """Four good files; one cut off and one of two recordings of each kind that has an extension of ours."""
    (tmp_path / "in").mkdir()
    for name in ("good.wav", "good.flac"):
        kept(tmp_path / "in", name, content(name.partition(".")[2]))
    for kind in ("wav", "flac", "ogg", "opus", "mp3"):
        data = content(kind)
        kept(tmp_path / "in", f"cut.{kind}", data[: len(data) * 2 // 3])
        kept(tmp_path / "in", f"{'good' if kind in ('ogg', 'opus') else 'twice'}.{kind}", data + data)
    return tmp_path / "in"


def test_tokenize_leaves_them_out_by_name(folder, tmp_path, tiny_encoder, capsys):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    out = tmp_path / "codes.jsonl"
    with pytest.raises(SystemExit) as stopped:
        main(
            [
                "tokenize",
                str(folder),
                "--speech-tokenizer",
                str(tmp_path / "codec"),
                "--out",
                str(out),
                "--device",
                "cpu",
            ]
        )
    assert stopped.value.code == 1
    assert "8 left out: " in capsys.readouterr().err
    names = [json.loads(line)["audio_filepath"] for line in out.read_text().splitlines()]
    assert names == [str(folder / f"good.{kind}") for kind in ("flac", "ogg", "opus", "wav")]


def test_prepare_manifest_counts_them(folder, tmp_path, capsys):
    out = tmp_path / "m.jsonl"
    command = ["prepare", "manifest", "--from", "folder", str(folder), "--out", str(out)]
    assert main([*command, "--max-bad-share", "0.9"]) == 0
    assert "skipped 8 of 12 as unreadable" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 4
    assert main([*command, "--force"]) == 2
    assert "8 of 12" in capsys.readouterr().err


def bare_mp3(samples: np.ndarray, **how) -> bytes:
    """An MP3 without its first frame, which states how many follow."""
    buffer = stdlib_io.BytesIO()
    soundfile.write(buffer, samples, 44_100, "MPEG_LAYER_III", format="MP3", **how)
    data = buffer.getvalue()
    return data[data.find(data[:2], 4) :] if b"Xing" in data[:80] or b"Info" in data[:80] else data


LOUD, SILENT = 0.3 * np.random.default_rng(0).normal(size=44_100 * 4), np.zeros(44_100 * 4)
TAG = b"ID3\x04\x00\x00\x00\x00\x20\x00" + bytes(4096)


@pytest.mark.parametrize("loud_first", [True, False])
@pytest.mark.parametrize("tag", [b"", TAG], ids=["plain", "tagged"])
def test_an_mp3_that_states_no_length_is_read_whole(tmp_path, loud_first, tag):
    """libsndfile guesses by the first frames: 1.7 s of 8 were read, or all refused as too short."""
    samples = np.concatenate([LOUD, SILENT] if loud_first else [SILENT, LOUD])
    data = tag + bare_mp3(samples, bitrate_mode="VARIABLE", compression_level=0.5)
    path = kept(tmp_path, "a.mp3", data)
    read = io.read(path, 44_100)
    assert io.info(path).frames == len(read)
    assert 0 <= len(read) - len(samples) < 3 * 1152
    loud = (read[:176_400], read[-176_400:])[:: 1 if loud_first else -1]
    assert loud[0].square().mean() > 100 * loud[1].square().mean()
    torch.testing.assert_close(io.read(path, 44_100, 5.0, 1.0), read[220_500:264_600], rtol=0, atol=1e-5)
    with pytest.raises(io.UnreadableAudio, match="not inside its"):
        io.read(path, 44_100, 0.0, 9.0)


def test_an_mp3_of_constant_bit_rate_that_states_no_length_is_read_whole(tmp_path):
    for level in (0.1, 0.9):
        data = bare_mp3(LOUD, bitrate_mode="CONSTANT", compression_level=level)
        assert 0 <= len(io.read(kept(tmp_path, "a.mp3", data), 44_100)) - len(LOUD) < 3 * 1152
        twice = kept(tmp_path, "twice.mp3", data + data)
        assert len(io.read(twice, 44_100)) >= 2 * len(LOUD)


def test_an_mp3_broken_in_the_middle_is_named(tmp_path):
    data = bare_mp3(LOUD)
    for middle in (bytes(500), b"\x55" * 3000):
        path = kept(tmp_path, "a.mp3", data[: len(data) // 2] + middle + data[len(data) // 2 :])
        with pytest.raises(io.UnreadableAudio, match=r"a\.mp3: broken at byte"):
            io.info(path)


def test_flac_behind_a_tag_can_be_read_in_parts(tmp_path):
    """libsndfile cannot seek in it, so that it was taken for cut off."""
    path = kept(tmp_path, "a.flac", TAG + content("flac") + b"TAG" + bytes(125))
    whole = io.read(kept(tmp_path, "b.flac", content("flac")), RATE_HZ)
    assert io.info(path).frames == len(whole)
    assert torch.equal(io.read(path, RATE_HZ), whole)
    assert torch.equal(io.read(path, RATE_HZ, 0.5, 0.25), whole[8000:12_000])
    data = TAG + content("flac")
    with pytest.raises(io.UnreadableAudio, match=r"cut\.flac"):
        io.info(kept(tmp_path, "cut.flac", data[: len(data) * 2 // 3]))


def test_parts_of_files_in_which_libsndfile_cannot_seek(tmp_path):
    buffer = stdlib_io.BytesIO()
    soundfile.write(buffer, sound(), RATE_HZ, "GSM610", format="WAV")
    path = kept(tmp_path, "gsm.wav", buffer.getvalue())
    assert torch.equal(io.read(path, RATE_HZ, 0.5, 0.25), io.read(path, RATE_HZ)[8000:12_000])


@pytest.mark.parametrize("offset", [1e308, 1e300])
def test_times_that_no_number_of_samples_holds(tmp_path, offset):
    path = kept(tmp_path, "a.wav", content("wav"))
    for span in ((offset, None), (offset, 1.0), (0.0, offset)):
        with pytest.raises(io.UnreadableAudio, match=r"a\.wav: a cut .* inside"):
            io.read(path, RATE_HZ, *span)


@pytest.mark.parametrize("name", ["x/" * 3000 + "a.wav", "y" * 300 + ".wav"])
def test_names_that_no_file_can_have(tmp_path, name):
    """`Path.exists` raises on them."""
    with pytest.raises(io.UnreadableAudio, match="no such file"):
        io.read(tmp_path / name, RATE_HZ)
