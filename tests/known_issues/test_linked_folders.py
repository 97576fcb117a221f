"""Symbolic links to folders were not followed: speakers that a corpus has as links vanished silently. Hidden
folders were read though hidden files are left out. And `..` in a manifest that is reached by a link was
resolved by name alone: sounds that exist were reported missing.
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import soundfile

from lit_moss.cli.main import main
from lit_moss.corpora import folders
from lit_moss.corpora.conversations import read_conversations
from lit_moss.corpora.folders import files_below, sound_files
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.text_sources import read_text_source


def sound(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(8000, 0.1), 16_000)
    return path


def below(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in files_below(folder)]


@pytest.fixture
def corpus(tmp_path):
    """Speakers `a` and `b`, of whom `b` is a link to another disk."""
    sound(tmp_path / "in" / "a" / "1.wav")
    sound(tmp_path / "disk" / "bob" / "2.wav")
    sound(tmp_path / "disk" / "bob" / "deep" / "3.wav")
    (tmp_path / "in" / "b").symlink_to(tmp_path / "disk" / "bob")
    return tmp_path / "in"


def test_linked_folders_are_read(corpus, tmp_path):
    assert below(corpus) == ["a/1.wav", "b/2.wav", "b/deep/3.wav"]
    words = ["prepare", "manifest", "--from", "folder", str(corpus), "--out", str(tmp_path / "m.jsonl")]
    assert main([*words, "--speaker-from-parent"]) == 0
    assert [u.speaker for u in read_manifest(tmp_path / "m.jsonl")] == ["a", "b", "deep"]


def test_links_in_a_circle_end(corpus, tmp_path):
    (corpus / "a" / "up").symlink_to(corpus)
    (tmp_path / "disk" / "bob" / "me").symlink_to(tmp_path / "disk" / "bob")
    (tmp_path / "disk" / "bob" / "back").symlink_to(corpus / "a")
    (corpus / "self").symlink_to(corpus / "self")
    assert below(corpus) == ["a/1.wav", "b/2.wav", "b/deep/3.wav", "self"]


def test_a_folder_is_read_once_and_without_a_link_where_that_is_possible(corpus, tmp_path):
    (corpus / "0-first").symlink_to(corpus / "a")
    (corpus / "z-again").symlink_to(tmp_path / "disk" / "bob")
    (corpus / "z-deep").symlink_to(tmp_path / "disk" / "bob" / "deep")
    assert below(corpus) == ["a/1.wav", "b/2.wav", "b/deep/3.wav"]


def test_hidden_folders_are_left_out(corpus):
    for name in (".cache/x.ogg", "a/.ipynb_checkpoints/y.wav", ".z.wav"):
        (corpus / name).parent.mkdir(exist_ok=True)
        (corpus / name).write_bytes(b"x")
    (corpus / ".linked").symlink_to(corpus / "a")
    assert len(below(corpus)) == 3
    hidden = corpus.rename(corpus.parent / ".in")  # named by the user, it is read
    assert len(below(hidden)) == 3


def test_the_order_is_that_of_the_paths(corpus):
    for name in ("a/9.wav", "a.wav", "a-b/1.wav", "B/1.wav"):
        sound(corpus / name)
    found = files_below(corpus)
    assert found == sorted(found)
    assert sound_files(corpus) == (found, [])


def test_a_link_to_nothing_is_counted(corpus, tmp_path, capsys):
    (corpus / "gone.wav").symlink_to(tmp_path / "away.wav")
    (corpus / "speaker").symlink_to(tmp_path / "unplugged")
    words = ["prepare", "manifest", "--from", "folder", str(corpus), "--out", str(tmp_path / "m.jsonl")]
    assert main([*words, "--max-bad-share", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "skipped 1 of 4 as unreadable" in said
    assert "left out 1 file of other kinds: 1 without ending" in said


def test_a_folder_that_cannot_be_read_is_one_line(corpus, tmp_path, monkeypatch, capsys):
    scandir = os.scandir

    def refusing(path):
        if str(path) == str(corpus / "a"):
            raise PermissionError(13, os.strerror(13), str(path))
        return scandir(path)

    monkeypatch.setattr(folders.os, "scandir", refusing)
    words = ["prepare", "manifest", "--from", "folder", str(corpus), "--out", str(tmp_path / "m.jsonl")]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: folder {corpus / 'a'} cannot be read (Permission denied)")
    assert not (tmp_path / "m.jsonl").exists()


def test_folders_of_texts_follow_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "t.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "4_5").symlink_to(tmp_path / "disk")
    assert [(i["id"], i["score"]) for i in read_text_source(str(tmp_path / "in"))] == [("4_5/t-1", 4.0)]


# --- `..` ---------------------------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path):
    """A manifest with `../x.wav`, in a folder that is reached by a link: `near/m.jsonl`."""
    sound(tmp_path / "disk" / "x.wav")
    (tmp_path / "disk" / "lists").mkdir()
    line = {"audio_filepath": "../x.wav", "text": "x"}
    message = {"role": "assistant", "audio_filepath": "../x.wav"}
    (tmp_path / "disk" / "lists" / "m.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "disk" / "lists" / "c.jsonl").write_text(json.dumps({"messages": [message]}) + "\n")
    (tmp_path / "near").symlink_to(tmp_path / "disk" / "lists")
    return tmp_path / "near"


def paths(folder: Path) -> set[str]:
    """What every reader of manifests finds."""
    ((_, messages),) = read_conversations(folder / "c.jsonl")
    (item,) = resolved_items([str(folder / "m.jsonl")])
    return {
        str(read_manifest(folder / "m.jsonl")[0].audio),
        str(messages[0].recording.audio),
        item["audio_filepath"],
    }


def test_sounds_beside_the_folder_that_a_link_leads_to_are_found(linked, tmp_path):
    assert paths(linked) == {str(tmp_path / "disk" / "x.wav")}


def test_without_a_link_on_the_way_paths_stay_as_they_were(linked, tmp_path):
    """The whole corpus behind a link keeps its name: the cache of codes knows recordings by their paths."""
    (tmp_path / "all").symlink_to(tmp_path / "disk")
    assert paths(tmp_path / "all" / "lists") == {str(tmp_path / "all" / "x.wav")}
    assert paths(tmp_path / "disk" / "lists") == {str(tmp_path / "disk" / "x.wav")}


def test_what_prepare_has_written_is_found_where_a_step_is_a_link(tmp_path):
    """It writes paths by their names: `../speak/x.wav` of a step that was moved to another disk."""
    sound(tmp_path / "out" / "speak" / "x.wav")
    (tmp_path / "disk" / "filter").mkdir(parents=True)
    (tmp_path / "disk" / "filter" / "m.jsonl").write_text('{"audio_filepath": "../speak/x.wav"}\n')
    (tmp_path / "out" / "filter").symlink_to(tmp_path / "disk" / "filter")
    (item,) = resolved_items([str(tmp_path / "out" / "filter" / "m.jsonl")])
    assert item["audio_filepath"] == str(tmp_path / "out" / "speak" / "x.wav")


def test_missing_sounds_are_named_as_before(tmp_path):
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "sub/../gone.wav"}\n')
    assert read_manifest(tmp_path / "m.jsonl")[0].audio == tmp_path / "gone.wav"


def test_a_manifest_of_a_folder_that_is_none_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        sound_files(tmp_path / "gone")
