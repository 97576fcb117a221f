"""A recording that the system refused (no right to read it, a disk that failed) stayed unreadable when the
cause was gone: its reason was kept under its path, size and time of change, which a `chmod` does not alter.
The message did not say why either.
"""

import errno
import json
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch

from lit_moss.audio import containers, io
from lit_moss.corpora.manifest import read_manifest
from lit_moss.hub import recordings
from lit_moss.hub.recordings import RecordingCache, recordings_stamp
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.items import ManifestFolder
from lit_moss.prepare.shards import UNREADABLE
from lit_moss.prepare.stage import Result, Stage, WholeStage
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.storage import Storage

RATE_HZ = 16_000
ERRORS = ("EACCES", "EIO", "EMFILE", "ESTALE")


@pytest.fixture
def manifest(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    recordings._said.clear()
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", np.full(RATE_HZ + i, 0.1), RATE_HZ)
    lines = [json.dumps({"audio_filepath": f"{i}.wav"}) + "\n" for i in range(4)]
    (tmp_path / "m.jsonl").write_text("".join(lines))
    return tmp_path / "m.jsonl"


@pytest.fixture
def refuse(monkeypatch):
    """Names the files that the system refuses from here on, and the error: root may read any file."""
    refused: set[str] = set()
    code = errno.EACCES
    inspect, read_through, access = containers.inspect, io._read_through, os.access

    def checked(function):
        def call(path, *args):
            if str(path) in refused:
                raise OSError(code, os.strerror(code), str(path))
            return function(path, *args)

        return call

    def may(path, mode, **options):
        return access(path, mode, **options) and not (str(path) in refused and code == errno.EACCES)

    monkeypatch.setattr(containers, "inspect", checked(inspect))
    monkeypatch.setattr(io, "_read_through", checked(read_through))
    monkeypatch.setattr(os, "access", may)

    def set_to(name, *paths):
        nonlocal code
        code = getattr(errno, name)
        io._inspected.cache_clear()
        refused.clear()
        refused.update(map(str, paths))

    return set_to


@pytest.fixture
def cache():
    """A cache of lengths, the number of recordings of each of its calls, and how often it was opened."""
    calls, opened = [], []

    @contextmanager
    def network():
        opened.append(1)
        yield lambda waves: calls.append(len(waves)) or [torch.tensor([len(w)]) for w in waves]

    return RecordingCache("lengths", "x", pa.int32(), network), calls, opened


@pytest.mark.parametrize("name", ERRORS)
def test_the_message_says_why(manifest, refuse, name):
    refuse(name, manifest.parent / "2.wav")
    with pytest.raises(
        io.RefusedAudio, match=rf"2\.wav: cannot be read now \({os.strerror(getattr(errno, name))}"
    ):
        io.read(manifest.parent / "2.wav", RATE_HZ)


def test_damage_and_missing_files_are_no_refusals(tmp_path):
    (tmp_path / "words.wav").write_text("no sound")
    (tmp_path / "cut.wav").write_bytes(b"RIFF\xff\xff\0\0WAVEfmt ")
    (tmp_path / "empty.wav").touch()
    for name in ("words.wav", "cut.wav", "empty.wav", "gone.wav", "words.wav/below.wav", "."):
        with pytest.raises(io.UnreadableAudio) as caught:
            io.read(tmp_path / name, RATE_HZ)
        assert not isinstance(caught.value, io.RefusedAudio), name


@pytest.mark.parametrize("name", ERRORS)
def test_codes_of_a_refused_recording_are_computed_once_it_can_be_read(
    manifest, refuse, cache, capsys, monkeypatch, name
):
    codes, calls, _ = cache
    utterances = read_manifest(manifest)
    refuse(name, utterances[2].audio)
    entries = codes.entries(utterances)
    assert [e.values is None for e in entries] == [False, False, True, False]
    assert entries[2].is_refused
    assert "1 of 4 left out: " in capsys.readouterr().err
    refuse(name)
    monkeypatch.setattr(recordings, "_STARTED_NS", time.time_ns())  # another run
    assert [int(e.values[0]) for e in codes.entries(utterances)] == [RATE_HZ + i for i in range(4)]
    assert calls == [3, 1]  # the others were kept


def test_ranks_of_a_run_see_the_same_recordings(manifest, refuse, cache):
    """A server that is away for a moment must not give two ranks two corpora."""
    codes, _, _ = cache
    utterances = read_manifest(manifest)
    refuse("ESTALE", utterances[2].audio)
    codes.entries(utterances)
    refuse("ESTALE")
    assert [e.values is None for e in codes.entries(utterances)] == [False, False, True, False]


def test_no_network_is_opened_for_what_stays_refused(manifest, refuse, cache, monkeypatch):
    codes, calls, opened = cache
    utterances = read_manifest(manifest)
    refuse("EACCES", utterances[2].audio)
    for _ in range(2):
        assert codes.entries(utterances)[2].reason
        monkeypatch.setattr(recordings, "_STARTED_NS", time.time_ns())
    assert (calls, opened) == ([3], [1])


def test_what_an_earlier_run_has_left_out_is_said_once(manifest, cache, capsys):
    codes, _, _ = cache
    (manifest.parent / "1.wav").write_bytes(b"no sound")
    utterances = read_manifest(manifest)
    codes.entries(utterances)
    codes.entries(utterances)
    assert capsys.readouterr().err.count("1.wav") == 1
    recordings._said.clear()  # another run
    for _ in range(2):
        codes.entries(utterances)
    said = capsys.readouterr().err
    assert "1 of 4 left out, as before: " in said
    assert said.count("1.wav") == 1


def test_documents_are_made_anew_when_a_right_is_given(manifest, refuse):
    utterances = read_manifest(manifest)
    before = recordings_stamp(utterances)
    refuse("EACCES", utterances[0].audio)
    refused = recordings_stamp(utterances)
    refuse("EACCES")
    assert refused != before
    assert recordings_stamp(utterances) == before  # of a readable file nothing is new


@dataclass
class Options:
    """None."""


class Lengths(Stage):
    """Reads its recordings."""

    name = "lengths"
    Options = Options
    needs = ("audio_filepath",)

    def run(self, unit):
        (item,) = unit
        return Result([item | {"samples": len(io.read(item["audio_filepath"], RATE_HZ))}])


class WholeLengths(WholeStage):
    name = "whole lengths"
    Options = Options

    def run_all(self, sources):
        return Result(counts={"runs": 1})


def step(manifest, kind: str) -> Step:
    folder = str(manifest.parent / "out")
    return Step(kind, f"{__name__}.{kind}", Options(), (str(manifest),), folder, folder, max_bad_share=0.5)


@pytest.mark.parametrize("name", ERRORS)
def test_a_shard_with_a_refused_recording_is_run_again_once_it_can_be_read(manifest, refuse, name):
    machine, bad = Machine(shard_items=2), manifest.parent / "3.wav"
    refuse(name, bad)
    first = run_step(step(manifest, "Lengths"), machine)
    assert (first.items_run, first.counts.rejected) == (4, {UNREADABLE: 1})
    assert run_step(step(manifest, "Lengths"), machine).items_run == 0  # still refused
    refuse(name)
    again = run_step(step(manifest, "Lengths"), machine)
    assert (again.items_run, again.counts.rejected, again.counts.items_out) == (2, {}, 4)
    assert run_step(step(manifest, "Lengths"), machine).items_run == 0


def test_damage_is_not_tried_again(manifest):
    (manifest.parent / "3.wav").write_bytes(b"no sound")
    assert run_step(step(manifest, "Lengths"), Machine()).counts.rejected == {UNREADABLE: 1}
    assert run_step(step(manifest, "Lengths"), Machine()).items_run == 0


def test_a_stage_of_all_items_is_run_again_when_a_right_is_given(manifest, refuse):
    refuse("EACCES", manifest.parent / "3.wav")
    assert run_step(step(manifest, "WholeLengths"), Machine()).items_run == 4
    assert run_step(step(manifest, "WholeLengths"), Machine()).items_run == 0
    refuse("EACCES")
    assert run_step(step(manifest, "WholeLengths"), Machine()).items_run == 4


def test_stamps_of_readable_files_are_what_they_were(manifest):
    """Finished shards of earlier versions stay finished."""
    folder = ManifestFolder(Storage(str(manifest.parent)), str(manifest.parent / "out"))
    status = (manifest.parent / "0.wav").stat()
    item = {"audio_filepath": str(manifest.parent / "0.wav")}
    assert folder.stamps(item) == f"{status.st_size} {status.st_mtime_ns}".encode()
