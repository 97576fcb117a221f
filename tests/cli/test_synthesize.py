"""`synthesize`: codes in, sound files out, batches and streams alike, exit codes."""

import json

import pytest
import soundfile
from decoders import small_flow

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer


@pytest.fixture
def codec(tiny_encoder, tmp_path):
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "codes.jsonl"
    rows = [{"id": "one", "codes": [1] * 12}, {"audio_filepath": "x/two.flac", "codes": [7] * 4},
            {"codes": list(range(20))}, {"id": "one", "codes": []}]  # fmt: skip
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def synthesize(lines, codec, out, *more):
    return main(
        ["synthesize", str(lines), "--codec", str(codec), "--out", str(out), "--device", "cpu", *more]
    )


@pytest.mark.nightly
@pytest.mark.parametrize("more", [[], ["--stream"], ["--batch-codes", "1"]])
def test_files_of_1920_samples_a_code(lines, codec, tmp_path, capsys, more):
    assert synthesize(lines, codec, tmp_path / "out", *more) == 0
    found = {p.stem: soundfile.info(p) for p in (tmp_path / "out").glob("*.wav")}
    assert {name: i.frames // 1920 for name, i in found.items()} == {
        "one": 12,
        "two": 4,
        "00003": 20,
        "one-2": 0,
    }
    assert {i.samplerate for i in found.values()} == {24_000}
    said = capsys.readouterr().out
    assert "4 files" in said
    assert ("first sound after" in said) == ("--stream" in more)


@pytest.mark.slow
def test_codes_of_another_tokenizer_are_refused(codec, speech, tmp_path, capsys):
    """Codes of any tokenizer below the vocabulary were taken, and became noise without a word."""
    io.write(tmp_path / "a.wav", speech[0], 16_000)
    words = [
        "tokenize",
        str(tmp_path / "a.wav"),
        "--speech-tokenizer",
        str(codec),
        "--out",
        str(tmp_path / "a.jsonl"),
    ]
    assert main(words) == 0
    assert synthesize(tmp_path / "a.jsonl", codec, tmp_path / "out") == 0
    row = json.loads((tmp_path / "a.jsonl").read_text())
    (tmp_path / "b.jsonl").write_text(json.dumps(row | {"speech_tokenizer": "0" * 16}) + "\n")
    assert synthesize(tmp_path / "b.jsonl", codec, tmp_path / "none") == 2
    assert "tokenize with the decoder's" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_prompt_gives_another_voice(lines, codec, tmp_path, speech):
    io.write(tmp_path / "voice.wav", speech[0][:32_000], 16_000)
    assert synthesize(lines, codec, tmp_path / "plain") == 0
    assert synthesize(lines, codec, tmp_path / "voiced", "--voice-prompt", str(tmp_path / "voice.wav")) == 0
    assert (tmp_path / "plain/one.wav").read_bytes() != (tmp_path / "voiced/one.wav").read_bytes()


@pytest.mark.slow
def test_existing_files_stay_unless_forced(lines, codec, tmp_path, capsys):
    assert synthesize(lines, codec, tmp_path / "out") == 0
    assert synthesize(lines, codec, tmp_path / "out") == 2
    assert "--force" in capsys.readouterr().err
    assert synthesize(lines, codec, tmp_path / "out", "--force") == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"codes": [1, 2]}\n{"codes": "1 2"}', "line 2"),
        ('{"codes": [1.5]}', "line 1"),
        ("{", "line 1"),
        ("", "holds no line"),
        ('{"id": "x", "codes": [256]}', "x has code 256, this decoder takes 0 to 255"),
    ],
)
def test_what_is_no_list_of_codes_is_one_line_and_makes_nothing(codec, tmp_path, capsys, content, message):
    (tmp_path / "bad.jsonl").write_text(content)
    assert synthesize(tmp_path / "bad.jsonl", codec, tmp_path / "out") == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert message in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [["--voice-prompt", "none.wav"], ["--batch-codes", "0"], ["--device", "moon"]]
)
def test_options_that_cannot_be_are_one_line(lines, codec, tmp_path, capsys, option):
    assert synthesize(lines, codec, tmp_path / "out", *option) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_a_prompt_of_no_length_and_a_file_for_a_folder_are_one_line(lines, codec, tmp_path, speech, capsys):
    io.write(tmp_path / "short.wav", speech[0][:300], 16_000)
    assert synthesize(lines, codec, tmp_path / "out", "--voice-prompt", str(tmp_path / "short.wav")) == 2
    assert synthesize(lines, codec, tmp_path / "short.wav") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_a_codec_that_is_none_is_one_line(lines, tmp_path, capsys):
    assert synthesize(lines, tmp_path / "nothing", tmp_path / "out") == 2
    (tmp_path / "some.ckpt").write_bytes(b"no checkpoint")
    assert synthesize(lines, tmp_path / "some.ckpt", tmp_path / "out") == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2
