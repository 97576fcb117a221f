"""Options of `chat` and `export` that were forgotten without a word, or ended in a traceback or only after
minutes."""

import os
from unittest.mock import Mock

import pytest

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.llm.sampling import sampling_of
from lit_moss.serve.conversation import Conversation
from lit_moss.serve.replies import ReplyOptions

CHAT = ["chat", "--model", "no-such-model"]  # what is wrong is said before it is opened


def error_of(capsys, words):
    assert main(words) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    "words",
    [
        ["--temperature", "0"],
        ["--instructions", "Be brief."],
        ["--seed", "0"],
        ["--reply", "text"],
        ["--out", "a.wav"],
        ["--force"],
        ["--temperature", "0.6", "--seed", "3"],
    ],
)
def test_options_of_a_question_need_one(capsys, words):
    line = error_of(capsys, [*CHAT, *words])
    assert "options that need a question" in line
    assert all(word in line for word in words if word.startswith("--"))


@pytest.mark.parametrize("option", ["--text", "--instructions"])
def test_bytes_that_are_not_utf_8_are_one_line(capsys, option):
    question = ["--text", "Hi"] if option == "--instructions" else []
    text = os.fsdecode(b"caf\xe9")  # as Python reads it from the command line
    line = error_of(capsys, [*CHAT, *question, option, text])
    assert f"{option} holds" in line
    assert "UTF-8" in line


def test_half_a_surrogate_pair_is_no_turn():
    with pytest.raises(UserError, match="is not Unicode"):
        Conversation(Mock()).text_message("user", "caf\ud83d")
    with pytest.raises(UserError, match="is not Unicode"):
        Conversation(Mock(), "caf\ud83d")


@pytest.mark.parametrize("seed", [99999999999999999999999, 2**63, -(2**63) - 1])
def test_a_seed_beyond_the_generators_is_said_before_the_model_is_opened(capsys, seed):
    assert f"seed is {seed}, expected" in error_of(capsys, [*CHAT, "--text", "Hi", f"--seed={seed}"])
    with pytest.raises(UserError, match="seed is"):
        ReplyOptions(seed=seed)


def test_the_smallest_and_the_largest_seed_are_taken():
    for seed in (-(2**63), 0, 2**63 - 1):
        assert ReplyOptions(seed=seed).seed == seed


def test_temperature_that_is_not_given_is_that_of_the_demo():
    assert sampling_of(None).temperature == 0.6  # as the help of --temperature says


@pytest.mark.parametrize(
    ("words", "expected"), [(["--alias", "champion"], "--register NAME"), (["--public"], "--push-to-hub")]
)
def test_options_of_publishing_need_a_place(capsys, tmp_path, words, expected):
    line = error_of(capsys, ["export", "no-such-run", "--out", str(tmp_path / "out"), *words])
    assert expected in line
    assert words[0] in line


@pytest.mark.parametrize(
    "words", [["--port", "9"], ["--host", "::1", "--insecure"], ["--idle-sec", "5"], ["--cors-origin", "a"]]
)
def test_options_of_the_server_are_not_for_one_question(capsys, words):
    line = error_of(capsys, [*CHAT, "--text", "Hi", *words])
    assert "options of the server" in line
    assert all(word in line for word in words if word.startswith("--"))
