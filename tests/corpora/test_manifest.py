"""Speech manifests: what is read is what was written, and a bad line is named."""

import json

import pytest

from lit_moss.corpora.manifest import Utterance, fingerprint, read_manifest, write_manifest
from lit_moss.errors import UserError


def lines(folder, *entries):
    path = folder / "m.jsonl"
    path.write_text(
        "".join((e if isinstance(e, str) else json.dumps(e)) + "\n" for e in entries), encoding="utf-8"
    )
    return path


def test_every_field_survives_writing_and_reading(tmp_path):
    extra = {"snr": 3, "x": {"y": [1]}}
    utterances = [
        Utterance(tmp_path / "a.flac"),
        Utterance(tmp_path / "sub" / "b.wav", 1.5, 2.25, 'Grüße, 你好 "quoted"', "ann", "de", extra),
        Utterance(tmp_path / "a.flac", 0.1, 1e-3, ""),
    ]
    path = tmp_path / "m.jsonl"
    assert write_manifest(path, utterances) == 3
    assert read_manifest(path) == utterances
    assert [u.extra for u in read_manifest(path)] == [u.extra for u in utterances]


def test_the_lines_are_nemos(tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Utterance(tmp_path / "w" / "a.flac", 0.5, 3.2, "hi", "ljs", "en", {"id": 7})])
    written = {"audio_filepath": "w/a.flac", "offset": 0.5, "duration": 3.2, "text": "hi", "speaker": "ljs"}
    assert json.loads(path.read_text()) == written | {"lang": "en", "id": 7}


def test_paths_below_the_manifest_move_with_it_and_others_stay(tmp_path):
    old, new, elsewhere = tmp_path / "old", tmp_path / "new", tmp_path / "elsewhere" / "b.wav"
    write_manifest(old / "m.jsonl", [Utterance(old / "a.wav"), Utterance(elsewhere)])
    old.rename(new)
    assert [u.audio for u in read_manifest(new / "m.jsonl")] == [new / "a.wav", elsewhere]


def test_a_relative_manifest_gives_absolute_paths(tmp_path, monkeypatch):
    lines(tmp_path, {"audio_filepath": "a.wav"})
    monkeypatch.chdir(tmp_path)
    assert read_manifest("m.jsonl")[0].audio == tmp_path / "a.wav"


def test_missing_and_null_keys_are_none_and_blank_lines_are_nothing(tmp_path):
    path = lines(
        tmp_path,
        "",
        {"audio_filepath": "a.wav"},
        "  ",
        {"audio_filepath": "b.wav", "duration": None, "text": None},
    )
    for u in read_manifest(path):
        assert (u.offset_sec, u.duration_sec, u.text, u.speaker, u.lang, u.extra) == (
            0.0,
            None,
            None,
            None,
            None,
            {},
        )


def test_windows_line_ends_are_line_ends(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_bytes(b'{"audio_filepath": "a.wav"}\r\n{"audio_filepath": "b.wav"}\r\n')
    assert [u.audio.name for u in read_manifest(path)] == ["a.wav", "b.wav"]


def test_cuts_of_one_file_have_names_of_their_own(tmp_path):
    assert Utterance(tmp_path / "long.wav").id == "long"
    assert Utterance(tmp_path / "long.wav", 12.3456).id == "long@12.346"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{oops", "line 2: no JSON"),
        ("[1, 2]", "line 2: got .*expected an object with an audio_filepath"),
        ('"text"', "line 2: got"),
        ({"text": "no file"}, "line 2: audio_filepath is missing, expected the path"),
        ({"audio_filepath": 7}, "line 2: audio_filepath is 7, expected the path"),
        ({"audio_filepath": "a.wav", "offset": -0.1}, r"line 2: offset is -0\.1, expected seconds"),
        ({"audio_filepath": "a.wav", "duration": "3"}, "line 2: duration is '3', expected seconds"),
        ({"audio_filepath": "a.wav", "duration": True}, "line 2: duration is True"),
        ({"audio_filepath": "a.wav", "duration": float("nan")}, "line 2: duration is nan"),
        ({"audio_filepath": "a.wav", "offset": float("inf")}, "line 2: offset is inf"),
        ({"audio_filepath": "a.wav", "text": ["a"]}, r"line 2: text is \['a'\], expected a string"),
        ({"audio_filepath": "a.wav", "speaker": 19}, "line 2: speaker is 19, expected a string"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, message):
    path = lines(tmp_path, {"audio_filepath": "good.wav"}, line)
    with pytest.raises(UserError, match=message) as caught:
        read_manifest(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_and_an_empty_file_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no manifest .*gone\.jsonl"):
        read_manifest(tmp_path / "gone.jsonl")
    with pytest.raises(UserError, match="no manifest"):
        read_manifest(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"empty\.jsonl has no lines"):
        read_manifest(tmp_path / "empty.jsonl")


def test_a_binary_file_is_named(tmp_path):
    (tmp_path / "sound.flac").write_bytes(b"fLaC\x00\xff\xfe\x80")
    with pytest.raises(UserError, match=r"sound\.flac"):
        read_manifest(tmp_path / "sound.flac")


def test_a_manifest_that_is_not_finished_leaves_the_old_one_whole(tmp_path):
    path = tmp_path / "m.jsonl"
    write_manifest(path, [Utterance(tmp_path / "old.wav")])
    before = path.read_bytes()

    def breaking():
        yield Utterance(tmp_path / "new.wav")
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="broke"):
        write_manifest(path, breaking())
    assert path.read_bytes() == before


def test_fingerprint_tells_contents_and_order_of_manifests_apart(tmp_path):
    a, b, split = tmp_path / "a", tmp_path / "b", tmp_path / "ab"
    a.write_text('{"audio_filepath": "1"}\n')
    b.write_text('{"audio_filepath": "2"}\n')
    split.write_bytes(a.read_bytes() + b.read_bytes())
    (tmp_path / "copy").write_bytes(a.read_bytes())
    found = [fingerprint(paths) for paths in ([a], [b], [a, b], [b, a], [split])]
    assert len(set(found)) == len(found)
    assert fingerprint([tmp_path / "copy"]) == found[0]
    assert len(found[0]) == 16
