"""`tokenize`: files, folders and manifests in, JSON lines out, exit codes."""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer


@pytest.fixture
def codec(tiny_encoder, tmp_path):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def sounds(tmp_path):
    """a.wav and sub/b.flac, and a file that is none."""
    (tmp_path / "in/sub").mkdir(parents=True)
    noise = np.random.default_rng(0).normal(0, 0.1, 20_000)
    soundfile.write(tmp_path / "in/a.wav", noise, 16_000)
    soundfile.write(tmp_path / "in/sub/b.flac", noise[:9_000], 24_000)
    (tmp_path / "in/notes.txt").write_text("no sound")
    return tmp_path / "in"


def tokenize(codec, out, *audio, options=()):
    code = main(
        [
            "tokenize",
            *map(str, audio),
            "--speech-tokenizer",
            str(codec),
            "--out",
            str(out),
            "--device",
            "cpu",
            *options,
        ]
    )
    return code, [json.loads(line) for line in out.read_text().splitlines()]


def test_files_give_the_codes_of_the_library_in_their_order(codec, sounds, tmp_path, capsys):
    files = [sounds / "sub/b.flac", sounds / "a.wav"]
    code, lines = tokenize(codec, tmp_path / "out/codes.jsonl", *files)
    assert code == 0
    tokenizer = SpeechTokenizer.from_pretrained(codec)
    for file, line in zip(files, lines, strict=True):
        assert line["audio_filepath"] == str(file)
        assert line["codes"] == tokenizer.encode(io.read(file, 16_000), 16_000).tolist()
    assert [line["duration"] for line in lines] == [0.375, 1.25]
    assert "2 files" in capsys.readouterr().out


def test_a_folder_gives_every_sound_file_below_it(codec, sounds, tmp_path):
    _, lines = tokenize(codec, tmp_path / "codes.jsonl", sounds)
    assert [line["audio_filepath"] for line in lines] == [str(sounds / "a.wav"), str(sounds / "sub/b.flac")]


def test_a_manifest_gives_its_parts_of_files(codec, sounds, tmp_path):
    entries = [{"audio_filepath": "a.wav", "offset": 0.5, "duration": 0.25}, {"audio_filepath": "sub/b.flac"}]
    (sounds / "m.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    _, lines = tokenize(codec, tmp_path / "codes.jsonl", sounds / "m.jsonl")
    assert [(line.get("offset"), line["duration"], len(line["codes"])) for line in lines] == [
        (0.5, 0.25, 4),
        (None, 0.375, 5),
    ]


def test_the_batch_does_not_show_in_the_codes(codec, sounds, tmp_path):
    _, small = tokenize(codec, tmp_path / "a.jsonl", sounds, options=["--batch-sec", "0.1"])
    _, large = tokenize(codec, tmp_path / "b.jsonl", sounds)
    assert small == large


def test_a_bad_file_is_named_and_left_out_and_the_exit_code_is_1(codec, sounds, tmp_path, capsys):
    (sounds / "bad.wav").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        tokenize(codec, tmp_path / "codes.jsonl", sounds)
    assert stopped.value.code == 1
    assert "1 left out" in (said := capsys.readouterr().err)
    assert "bad.wav: empty file" in said
    names = [
        json.loads(line)["audio_filepath"] for line in (tmp_path / "codes.jsonl").read_text().splitlines()
    ]
    assert names == [str(sounds / "a.wav"), str(sounds / "sub/b.flac")]


def test_existing_output_is_kept_and_the_exit_code_is_2(codec, sounds, tmp_path, capsys):
    out = tmp_path / "codes.jsonl"
    out.write_text("kept\n")
    assert main(["tokenize", str(sounds), "--speech-tokenizer", str(codec), "--out", str(out)]) == 2
    assert out.read_text() == "kept\n"
    assert "--force" in capsys.readouterr().err
    assert len(tokenize(codec, out, sounds, options=["--force"])[1]) == 2


@pytest.mark.parametrize(
    ("audio", "options", "message"),
    [
        ("none.wav", [], "no file"),
        ("empty", [], "holds no sound files"),
        ("in/a.wav", ["--batch-sec", "0"], "above 0"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(codec, sounds, tmp_path, capsys, audio, options, message):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "codes.jsonl"
    assert (
        main(
            ["tokenize", str(tmp_path / audio), "--speech-tokenizer", str(codec), "--out", str(out), *options]
        )
        == 2
    )
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not out.exists()


def test_a_codec_that_is_none_is_exit_code_2(sounds, tmp_path, capsys):
    assert (
        main(
            [
                "tokenize",
                str(sounds),
                "--speech-tokenizer",
                str(tmp_path / "none"),
                "--out",
                str(tmp_path / "o.jsonl"),
            ]
        )
        == 2
    )
    assert "no pretrained part" in capsys.readouterr().err


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["tokenize", "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    assert all(
        option in said
        for option in ("AUDIO", "--speech-tokenizer", "--out", "--batch-sec", "--device", "--force")
    )
