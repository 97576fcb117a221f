"""`chat` in the terminal: one question, one answer."""

import pytest
import soundfile
import talker
import torch

from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.serve.conversation import Conversation
from lit_moss.serve.model import SpeechModel


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("once")
    talker.model_folder(folder / "tiny")
    io.write(folder / "question.wav", talker.wave(1.0), 24_000)
    return folder


def chat(folder, *words):
    return main(
        ["chat", "--model", str(folder / "tiny"), "--device", "cpu", "--max-new-tokens", "20", *words]
    )


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["answer.wav", "answer.flac"])
@pytest.mark.parametrize("asked", ["once", "text"])
def test_spoken_answer_is_written_and_its_times_are_printed(folder, capsys, name, asked):
    question = ["--once", str(folder / "question.wav")] if asked == "once" else ["--text", "What is rain?"]
    out = folder / f"{asked}_{name}"
    assert chat(folder, *question, "--out", str(out), "--seed", "1") == 0
    file = soundfile.info(out)
    assert (file.samplerate, file.frames) == (24_000, 20 * 1920)
    printed = capsys.readouterr().out
    for words in (str(out), "1.6 s of speech", "first sound after", "real-time factor", "cut at 20 rows"):
        assert words in printed


@pytest.mark.slow
def test_same_seed_gives_the_same_answer_and_another_one_another(folder):
    sounds = []
    for n, seed in enumerate(("1", "1", "2")):
        out = folder / f"seed_{n}.wav"
        assert chat(folder, "--text", "What is rain?", "--out", str(out), "--seed", seed) == 0
        sounds.append(soundfile.read(out)[0].tolist())
    assert sounds[0] == sounds[1] != sounds[2]


@pytest.mark.slow
def test_answer_in_text_is_printed(folder, capsys):
    assert chat(folder, "--once", str(folder / "question.wav"), "--temperature", "0") == 0
    text, line = capsys.readouterr().out.rsplit("\n", 2)[:2]
    assert text.strip()
    assert "20 rows" in line


@pytest.mark.slow
def test_rows_of_an_answer_are_those_of_the_demo_unless_more_are_asked_for(folder, capsys, monkeypatch):
    asked = []

    def noted(session, options):
        asked.append((options.max_new_tokens, session.engine.limits.max_new_tokens))
        return torch.zeros(0), "nothing"

    monkeypatch.setattr("lit_moss.cli.chat._listen", noted)
    for words in ([], ["--max-new-tokens", "2500"]):
        question = ["--model", str(folder / "tiny"), "--device", "cpu", "--text", "Hi"]
        assert main(["chat", *question, *words]) == 0
    assert asked == [(500, 2000), (2500, 2500)]


@pytest.mark.slow
def test_answer_without_temperature_is_the_greedy_one(folder, capsys):
    assert chat(folder, "--text", "What is rain?", "--temperature", "0") == 0
    printed = capsys.readouterr().out.rsplit("\n", 2)[0]
    model = SpeechModel.open(str(folder / "tiny"), device="cpu")
    conversation = Conversation(model.renderer)
    conversation.add(conversation.text_message("user", "What is rain?"))
    rows = model.lm.generate(conversation.prompt("text"), max_new_tokens=20, greedy=True)
    assert printed.rstrip("\n") == conversation.text_of(rows).rstrip("\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--once", "{folder}/question.wav", "--max-turn-sec", "0.5"], "more than 0.5 s"),
        (["--text", "Hi", "--reply", "speech"], "--reply speech needs --out FILE"),
        (["--text", "Hi", "--reply", "text", "--out", "a.wav"], "--out needs an answer in speech"),
        (["--text", " ", "--out", "a.wav"], "--text is empty"),
        (["--text", "Hi", "--out", "a.txt"], "expected a name that ends in .wav"),
        (["--text", "Hi", "--out", "{folder}/question.wav"], "question.wav exists"),
        (["--once", "{folder}/missing.wav", "--out", "a.wav"], "missing.wav: no such file"),
        (["--once", "{folder}", "--out", "a.wav"], "a folder, expected a sound file"),
        (["--text", "Hi", "--voice", "anna", "--out", "a.wav"], "expected NAME=FILE"),
        (["--text", "Hi", "--voice", "anna={folder}/none.wav"], "anna=FILE: {folder}/none.wav: no such"),
        (["--text", "Hi", "--device", "tpu"], "--device is 'tpu', expected auto, cpu or cuda"),
        (["--text", "Hi", "--temperature", "-1"], "--temperature is -1.0, expected 0 or more"),
        (["--out", "a.wav"], "need a question"),
        (["--text", "Hi", "--unknown"], "unrecognized arguments: --unknown"),
    ],
)
def test_mistakes_are_one_line(folder, capsys, words, expected):
    assert chat(folder, *(word.replace("{folder}", str(folder)) for word in words)) == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert expected.replace("{folder}", str(folder)) in error


@pytest.mark.slow
def test_nothing_is_printed_but_the_answer(folder, capfd):
    """transformers warns of a split model's type, and draws a bar while it reads a backbone."""
    assert chat(folder, "--text", "What is rain?", "--temperature", "0") == 0
    assert capfd.readouterr().err == ""
