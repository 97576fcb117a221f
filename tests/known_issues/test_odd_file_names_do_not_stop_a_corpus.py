"""Names that are not UTF-8 stopped a corpus; `.m4a` and `.TXT` were ignored without a word."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.data.documents import read_documents

ODD = "caf\udce9.wav"  # Latin-1 bytes of `café.wav`, as Python names them


def sound(path: Path, seconds: float = 1.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, round(16_000 * seconds))
    with open(os.fsencode(path), "wb") as file:
        soundfile.write(file, samples, 16_000, format="WAV")
    return path


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    try:
        sound(tmp_path / "in" / "d\udcfc" / ODD)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    for name in ("a.wav", "b.wav"):
        sound(tmp_path / "in" / name)
    for name, text in (("a.TXT", "one"), ("b.Lab", "two"), ("d\udcfc/caf\udce9.txt", "three")):
        (tmp_path / "in" / name).write_text(text)
    return tmp_path / "in"


def prepare(source, out, *more):
    return main(["prepare", "manifest", "--from", "folder", str(source), "--out", str(out), *more])


def test_every_sound_and_text_is_read(corpus, tmp_path, capsys):
    assert prepare(corpus, tmp_path / "m.jsonl", "--speaker-from-parent") == 0
    found = read_manifest(tmp_path / "m.jsonl")
    assert {u.id: u.text for u in found} == {"a": "one", "b": "two", "caf\\udce9": "three"}
    (odd,) = (u for u in found if u.text == "three")
    assert os.fsencode(odd.audio) == os.fsencode(corpus) + b"/d\xfc/caf\xe9.wav"
    assert len(io.read(odd.audio, 16_000)) == io.info(odd.audio).frames == 16_000
    odd.key.encode(), odd.id.encode(), str(odd.speaker).encode()
    # The manifest is text that any reader of JSON takes, and is written back the same.
    content = (tmp_path / "m.jsonl").read_bytes()
    assert len([json.loads(line) for line in content.decode().splitlines()]) == 3
    write_manifest(tmp_path / "m.jsonl", found)
    assert (tmp_path / "m.jsonl").read_bytes() == content
    assert "with text" in capsys.readouterr().out


def test_it_goes_through_codes_and_documents(corpus, tmp_path):
    assert prepare(corpus, tmp_path / "m.jsonl") == 0
    codec, backbone = made_up_codec(tmp_path / "codec"), backbone_folder(tmp_path / "backbone")
    words = [
        "prepare",
        "documents",
        str(tmp_path / "m.jsonl"),
        "--kind",
        "unsupervised",
        "--speech-tokenizer",
        str(codec),
    ]
    assert main([*words, "--backbone", str(backbone), "--out", str(tmp_path / "docs")]) == 0
    documents = read_documents(tmp_path / "docs")
    assert "caf\\udce9:caf\\udce9" in {documents.id(i) for i in range(len(documents))}
    out = tmp_path / "codes.jsonl"
    words = ["tokenize", str(corpus), "--speech-tokenizer", str(codec), "--out", str(out)]
    assert main([*words, "--device", "cpu"]) == 0
    assert len(out.read_text(encoding="utf-8").splitlines()) == 3


def test_a_damaged_one_is_named(corpus, tmp_path, capsys):
    (corpus / "d\udcfc" / ODD).write_bytes(b"")
    assert prepare(corpus, tmp_path / "m.jsonl") == 0
    assert "d\\udcfc/caf\\udce9.wav: empty file" in capsys.readouterr().out


def test_files_of_other_kinds_are_counted(tmp_path, capsys):
    for name in ("a.wav", "sub/b.WAV"):
        sound(tmp_path / "in" / name)
    for name in ("a.m4a", "sub/c.M4A", "d.wma", "notes", "a.txt", "lonely.txt", ".hidden"):
        (tmp_path / "in" / name).write_text("x")
    assert prepare(tmp_path / "in", tmp_path / "m.jsonl") == 0
    said = capsys.readouterr().out
    expected = (
        "left out 5 files of other kinds: 2 .m4a, 1 .txt, 1 .wma, 1 without ending; sound is read from .wav"
    )
    assert expected in said
    codec = made_up_codec(tmp_path / "codec")
    words = ["tokenize", str(tmp_path / "in"), "--speech-tokenizer", str(codec), "--device", "cpu"]
    assert main([*words, "--out", str(tmp_path / "codes.jsonl")]) == 0
    assert "2 .m4a" in capsys.readouterr().out


def test_a_folder_of_other_kinds_alone_says_so(tmp_path, capsys):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.m4a").write_text("x")
    assert prepare(tmp_path / "in", tmp_path / "m.jsonl") == 2
    said = capsys.readouterr()
    assert "1 .m4a; sound is read from .wav" in said.out
    assert "no utterances in" in said.err


def test_endings_count_in_any_case(tmp_path):
    from lit_moss.corpora.sources import entry_kind
    from lit_moss.corpora.text import read_sentences
    from lit_moss.evaluate.clips import read_clips

    (tmp_path / "A.TXT").write_text("One. Two.")
    assert entry_kind(tmp_path / "A.TXT") == "text"
    (tmp_path / "B.CSV").write_text("x-1|a|one\n")
    assert read_sentences(tmp_path / "B.CSV") == [("x", "one")]
    (tmp_path / "C.LST").write_text("u|p|p.wav|text\n")
    assert [clip.id for clip in read_clips(tmp_path / "C.LST")] == ["u"]
    sound(tmp_path / "lj" / "wavs" / "x-1.WAV")
    (tmp_path / "lj" / "METADATA.CSV").write_text("x-1|a|one\n")
    words = [
        "prepare",
        "manifest",
        "--from",
        "ljspeech",
        str(tmp_path / "lj"),
        "--out",
        str(tmp_path / "o.jsonl"),
    ]
    assert main(words) == 0
    assert [u.text for u in read_manifest(tmp_path / "o.jsonl")] == ["one"]
