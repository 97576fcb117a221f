"""`prepare speak`: a text file becomes a corpus, and an interrupted call goes on."""

import pytest
import soundfile

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest


@pytest.mark.slow
def test_sentences_become_sounds_and_manifests_and_are_not_spoken_twice(tmp_path, capsys):
    text = tmp_path / "meta.csv"
    text.write_text("A-1|Dr. Who|Doctor who.\nA-2|Two.|Two.\n\nA-3|x|The third one.\n")
    out = tmp_path / "corpus"
    command = ["prepare", "speak", str(text), "--out", str(out), "--validation", "1"]
    assert main(command) == 0
    assert "3 utterances" in capsys.readouterr().out
    train, validation = (read_manifest(out / f"{part}.jsonl") for part in ("train", "validation"))
    assert [(u.id, u.text) for u in train] == [("A-1", "Doctor who."), ("A-2", "Two.")]
    assert [u.id for u in validation] == ["A-3"]
    for u in [*train, *validation]:
        info = soundfile.info(u.audio)
        assert info.samplerate == 24_000
        assert u.duration_sec == pytest.approx(info.duration, abs=1e-4)
        assert u.duration_sec > 0.3
    kept = {f: f.read_bytes() for f in (out / "audio").iterdir()}
    manifest = (out / "train.jsonl").read_text()
    (out / "audio" / "A-2.flac").unlink()  # as if the call had been cut off
    assert main(command) == 0
    assert {f: f.read_bytes() for f in (out / "audio").iterdir()} == kept
    assert (out / "train.jsonl").read_text() == manifest
    text.write_text("A-1|Dr. Who|Doctor who.\nA-2|Two.|Another text.\n\nA-3|x|The third one.\n")
    assert main(command) == 0
    again = {f: f.read_bytes() for f in (out / "audio").iterdir()}
    assert {f.stem for f in kept if again[f] != kept[f]} == {"A-2"}  # spoken anew, for it says something else


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "has 0 sentences"),
        ("a|b\na|c\nd|e\n", "each once"),
        ("../x|b\nc|d\n", "plain"),
        ("a,b\n", "no `|`"),
    ],
)
def test_bad_text_is_one_line(tmp_path, capsys, content, said):
    text = tmp_path / "meta.csv"
    text.write_text(content)
    assert main(["prepare", "speak", str(text), "--out", str(tmp_path / "o"), "--validation", "1"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
