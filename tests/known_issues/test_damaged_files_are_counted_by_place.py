"""Six of ten recordings of one file name in ten folders are damaged: they were counted once, as `audio`."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.data.documents import read_documents
from lit_moss.data.grouping import group
from lit_moss.data.make_documents import make_documents
from lit_moss.errors import UserError
from lit_moss.hub import NamedTokenizer
from lit_moss.hub.code_cache import EncodedUtterances, encode_utterances


def corpus(folder: Path, damaged: int, **entry) -> Path:
    """Manifest of ten recordings `audio.ogg` in ten folders, the first `damaged` of them cut off."""
    rng = np.random.default_rng(0)
    lines = []
    for i in range(10):
        path = folder / f"spk{i}" / "audio.ogg"
        path.parent.mkdir(parents=True)
        soundfile.write(path, rng.normal(0, 0.1, 16_000), 16_000)
        if i < damaged:
            path.write_bytes(path.read_bytes()[:2000])
        lines.append({"audio_filepath": f"spk{i}/audio.ogg", "text": "in being modern", **entry})
    (folder / "dup.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "dup.jsonl"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["unsupervised", "interleaved", "sft"])
def test_the_limit_holds_for_files_of_one_name(tmp_path, capsys, kind):
    manifest, codec = corpus(tmp_path, damaged=6), made_up_codec(tmp_path / "codec")
    backbone = backbone_folder(tmp_path / "backbone")
    words = ["prepare", "documents", str(manifest), "--kind", kind, "--speech-tokenizer", str(codec)]
    assert main([*words, "--backbone", str(backbone), "--out", str(tmp_path / "docs")]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "6 of 10 recordings cannot be read, more than 1%" in said
    assert "spk0/audio.ogg" in said
    assert not (tmp_path / "docs").exists()


def test_unreadable_recordings_of_one_name_are_counted_from_the_cache_too(tmp_path):
    """They were kept by file name, so that six were one."""
    utterances = read_manifest(corpus(tmp_path, damaged=6))
    tokenizer = NamedTokenizer(str(made_up_codec(tmp_path / "codec")))
    for _ in range(2):  # computed, and from the cache
        with pytest.raises(UserError, match="6 of 10 recordings"):
            encode_utterances(utterances, tokenizer)
    assert encode_utterances(utterances[5:], tokenizer).unread == [0]
    assert EncodedUtterances([[], [1], []], ["a", "b"]).unread == [0, 2]


def test_documents_of_files_of_one_name_are_ten_with_choices_of_their_own(tmp_path):
    """They were one document; and where they were ten, all drew the same random numbers by their name."""
    manifest, codec = corpus(tmp_path, damaged=1), made_up_codec(tmp_path / "codec")
    backbone = str(backbone_folder(tmp_path / "backbone"))
    folder = make_documents("interleaved", [str(manifest)], "train", backbone, str(codec), tmp_path / "docs")
    found = read_documents(folder)
    names = [found.id(i) for i in range(len(found))]
    assert len(names) == len(set(names)) == 9
    assert found.meta["skipped"] == ["audio"]
    spoken = {bool((found.rows(i) >= found.format.text_vocab_size).any()) for i in range(len(found))}
    assert spoken == {True, False}


def test_what_belongs_together_is_of_one_folder_unless_the_manifest_says_otherwise(tmp_path):
    utterances = read_manifest(corpus(tmp_path, damaged=0))
    members = [(u, None, 1.0) for u in utterances]
    assert len(list(group(members, 60.0))) == 10
    same = [(replace(u, speaker="ann"), None, 1.0) for u in utterances]
    assert len(list(group(same, 60.0))) == 1
    chapter = [(replace(u, extra={"document": 0}), None, 1.0) for u in utterances]
    assert [name for name, _ in group(chapter, 60.0)] == ["0:audio"]


def test_a_validation_share_of_files_of_one_name_is_drawn(tmp_path, capsys):
    """By the name alone all ten fell into the same part."""
    corpus(tmp_path / "in", damaged=0)
    out, held = tmp_path / "train.jsonl", tmp_path / "validation.jsonl"
    words = ["prepare", "manifest", "--from", "folder", str(tmp_path / "in"), "--out", str(out)]
    assert main([*words, "--validation-out", str(held), "--validation-share", "0.3"]) == 0, (
        capsys.readouterr()
    )
    parts = [{u.audio for u in read_manifest(path)} for path in (out, held)]
    assert len(parts[0]) + len(parts[1]) == len(parts[0] | parts[1]) == 10


def test_ids_of_one_name_get_files_of_their_own(tmp_path):
    """`u`, `u` and one that is called `u-2`: three files."""
    from lit_moss.hub.codes_to_audio import read_code_lines

    rows = [{"id": "u-2", "codes": [1]}, {"id": "u", "codes": [2]}, {"id": "u", "codes": [3]}]
    (tmp_path / "codes.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert len({line.name for line in read_code_lines(tmp_path / "codes.jsonl")}) == 3


def test_ljspeech_refuses_an_id_of_two_files(tmp_path, capsys):
    """The later of `a/x.wav` and `b/x.wav` was taken for every row, silently."""
    for name in ("a/x.wav", "b/x.wav"):
        (tmp_path / "wavs" / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(tmp_path / "wavs" / name, np.zeros(8000), 16_000)
    (tmp_path / "metadata.csv").write_text("x|text|text\n")
    words = ["prepare", "manifest", "--from", "ljspeech", str(tmp_path), "--out", str(tmp_path / "o.jsonl")]
    assert main(words) == 2
    assert "line 1: x names " in capsys.readouterr().err


def test_a_case_of_the_public_collection(tmp_path, capsys):
    """`make_dup.sh` on the recordings beside the project."""
    import subprocess

    from conftest import SHARED

    script = SHARED / "cases" / "make_dup.sh"
    if not script.exists():
        pytest.skip("needs ../shared/cases")
    subprocess.run([str(script)], cwd=tmp_path, check=True)
    write_manifest(tmp_path / "again.jsonl", read_manifest(tmp_path / "dup.jsonl"))
    codec, backbone = made_up_codec(tmp_path / "codec"), backbone_folder(tmp_path / "backbone")
    words = [
        "prepare",
        "documents",
        str(tmp_path / "dup.jsonl"),
        "--kind",
        "interleaved",
        "--speech-tokenizer",
        str(codec),
    ]
    assert main([*words, "--backbone", str(backbone), "--out", str(tmp_path / "docs")]) == 2
    assert "6 of 10 recordings cannot be read" in capsys.readouterr().err
