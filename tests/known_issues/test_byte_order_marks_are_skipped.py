"""Files saved with a UTF-8 byte order mark read as files without: in every reader of text."""

import gzip
import io as std_io
import json
import sys

import numpy as np
import pytest
import soundfile

from lit_moss.corpora.conversations import read_conversations
from lit_moss.corpora.manifest import read_manifest
from lit_moss.corpora.sources import entry_kind
from lit_moss.corpora.text import read_named_sentences, read_sentences, read_texts
from lit_moss.errors import UserError
from lit_moss.evaluate.clips import read_clips
from lit_moss.hub.codes_to_audio import read_code_lines
from lit_moss.runs.recipes import read_yaml

MARK = "\ufeff"


@pytest.fixture
def write(tmp_path):
    """Writes the text with a mark before the file, and one before a later line, as `cat a b` makes it."""

    def marked(name: str, text: str):
        path = tmp_path / name
        opener = gzip.open if name.endswith(".gz") else open
        with opener(path, "wt", encoding="utf-8", newline="") as file:
            file.write(MARK + text.replace("\n", "\n" + MARK, 1))
        return path

    return marked


def test_every_reader_of_text(write):
    table = write("bom.csv", "LJ001-0001|a|a sentence one\nLJ001-0002|b|a sentence two\n")
    assert [name for name, _ in read_sentences(table)] == ["LJ001", "LJ001"]
    assert [name for name, _ in read_texts(table)] == ["LJ001-0"]
    assert [name for name, _ in read_named_sentences(table)] == ["LJ001-0001", "LJ001-0002"]
    text = write("a.txt", "One.\nTwo.")
    assert list(read_texts(text)) == [("a-0", "One.\nTwo.")]
    assert [s for _, s in read_named_sentences(text)] == ["One.", "Two."]
    lines = write("a.jsonl", '{"text": "x"}\n{"text": "y"}\n')
    assert [t for _, t in read_texts(lines)] == ["x", "y"]
    clips = write("meta.lst", "a|p|p.wav|text\nb|p|p.wav|text\n")
    assert [clip.id for clip in read_clips(clips)] == ["a", "b"]


def test_every_reader_of_json_lines(write):
    manifest = write("m.jsonl", '{"audio_filepath": "a.wav"}\n{"audio_filepath": "b.wav"}\n')
    assert [u.id for u in read_manifest(manifest)] == ["a", "b"]
    assert entry_kind(manifest) == "speech"
    chat = write("c.jsonl", '{"messages": [{"role": "assistant", "content": "x"}]}\n')
    assert entry_kind(chat) == "messages"
    assert len(read_conversations(chat)) == 1
    assert [line.codes for line in read_code_lines(write("k.jsonl", '{"codes": [1]}\n{"codes": [2]}'))] == [
        [1],
        [2],
    ]


def test_standard_input(monkeypatch):
    content = f'{MARK}{{"codes": [1], "id": "x"}}\n'
    monkeypatch.setattr(sys, "stdin", std_io.TextIOWrapper(std_io.BytesIO(content.encode())))
    assert [line.name for line in read_code_lines("-")] == ["x"]
    monkeypatch.setattr(sys, "stdin", std_io.StringIO(content))
    assert [line.name for line in read_code_lines("-")] == ["x"]


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_and_ljspeech_and_transcripts(write, tmp_path, name):
    from lit_moss.cli.main import main

    (tmp_path / "wavs").mkdir()
    for path in ("wavs/x-1.wav", "wavs/1-2-3.flac"):
        soundfile.write(tmp_path / path, np.zeros(16_000), 16_000)
    recording = {"sources": [{"type": "file", "channels": [0], "source": "wavs/x-1.wav"}]}
    cut = {"type": "MonoCut", "start": 0, "duration": 1.0, "channel": 0, "recording": recording}
    write("metadata.csv", "x-1|said|said\n")
    (tmp_path / "wavs" / "1-2.trans.txt").write_text(f"{MARK}1-2-3 HELLO\n", encoding="utf-8")
    (tmp_path / "wavs" / "x-1.txt").write_text(f"{MARK}said\n", encoding="utf-8")
    sources = [
        ("lhotse", write(name, json.dumps(cut) + "\n"), [None]),
        ("ljspeech", tmp_path, ["said"]),
        ("librispeech", tmp_path / "wavs", ["HELLO"]),
        ("folder", tmp_path / "wavs", [None, "said"]),
    ]
    for kind, source, texts in sources:
        out = tmp_path / f"{kind}.jsonl"
        assert main(["prepare", "manifest", "--from", kind, str(source), "--out", str(out)]) == 0
        assert [u.text for u in read_manifest(out)] == texts


def test_configurations(tmp_path, tiny_encoder):
    from lit_moss.codec import SpeechTokenizer

    (tmp_path / "a.yaml").write_text(MARK + "model: 1\n", encoding="utf-8")
    assert read_yaml(tmp_path / "a.yaml") == {"model": 1}
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    config = tmp_path / "codec" / "config.json"
    config.write_text(MARK + config.read_text(), encoding="utf-8")
    assert SpeechTokenizer.from_pretrained(tmp_path / "codec").config.quantize_vocab_size == 256


def test_the_yaml_of_a_run(tmp_path, capsys):
    from lit_moss.cli.main import main

    (tmp_path / "run.yaml").write_text(MARK + "name: marked\ntrainer:\n  max_steps: 3\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "-c", "conf/codec_encoder.yaml", "-c", str(tmp_path / "run.yaml"), "--print_config"])
    assert ended.value.code == 0
    assert "name: marked" in capsys.readouterr().out


def test_several_marks_at_once(tmp_path):
    (tmp_path / "a.csv").write_text(f"{MARK}{MARK}LJ001-0001|a|one\n", encoding="utf-8")
    assert [name for name, _ in read_sentences(tmp_path / "a.csv")] == ["LJ001"]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl"])
def test_utf16_without_a_mark_is_named(tmp_path, name, encoding):
    """Its bytes are UTF-8, too: a zero byte before or after each letter went into the text."""
    (tmp_path / name).write_bytes('x-1|{"text": "one"}\n'.encode(encoding))
    with pytest.raises(UserError, match=f"{name}, line 1: .*zero bytes, as UTF-16.*expected .*convert it"):
        list(read_texts(tmp_path / name))
