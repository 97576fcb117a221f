"""The command line: help is quick, a mistake is one line that names it, configurations merge."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from recording import recipe

from lit_moss import __version__
from lit_moss.cli.main import TRAINER_VERBS, VERBS, main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Every test has a working folder of its own, and leaves the environment as it was."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LIT_MOSS_RUN", "")
    monkeypatch.delenv("LIT_MOSS_RUN")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


# Help.

HEAVY = ("torch", "lightning", "numpy", "mlflow", "soundfile", "jsonargparse")
TELL_HEAVY = f"""
import atexit, sys
atexit.register(lambda: print("loaded", [name for name in {HEAVY} if name in sys.modules], file=sys.stderr))
from lit_moss.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def python(*args):
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    begun = time.monotonic()
    done = subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, timeout=60)
    return done, time.monotonic() - begun


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], [*TRAINER_VERBS, *VERBS]),
        (["--help"], [*TRAINER_VERBS, *VERBS]),
        (["fit", "--help"], ["--config", "--ckpt_path", "--print_config", "--name"]),
        (["tokenize", "--help"], ["AUDIO", "--speech-tokenizer", "--out", "--batch-sec", "--device"]),
        (["prepare", "--help"], ["manifest", "everyday"]),
        (["prepare", "manifest", "--help"], ["--from", "--out", "--validation-share", "--max-sec"]),
    ],
)
def test_help_answers_at_once_and_loads_nothing_heavy(args, named):
    done, _ = python("-c", TELL_HEAVY, *args)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in named)
    assert done.stderr == "loaded []\n"
    assert min(python("-m", "lit_moss", *args)[1] for _ in range(3)) < 1.5


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit_moss {__version__}\n"


# Mistakes.


def error_of(capsys, *argv):
    """The one line of a mistake."""
    code = main([str(word) for word in argv])
    said = capsys.readouterr()
    assert code == 2, said.err
    lines = said.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], said.err
    assert "Traceback" not in said.err
    assert "Traceback" not in said.out
    assert len(lines[-1]) < 700
    return lines[-1]


def test_an_unknown_verb_is_named_with_those_there_are(capsys):
    line = error_of(capsys, "fitt")
    assert "'fitt'" in line
    assert all(verb in line for verb in (*TRAINER_VERBS, *VERBS))


def test_a_missing_config_file_is_named(capsys):
    assert "gone.yaml" in error_of(capsys, "fit", "-c", "gone.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", ["trainer: {max_steps: [1", "a: b: c", "\tmodel: x", "just a text", "- a\n- list"]
)
def test_yaml_that_is_no_configuration_names_the_file(capsys, tmp_path, text):
    (tmp_path / "broken.yaml").write_text(text)
    assert "broken.yaml" in error_of(capsys, "fit", "-c", "broken.yaml")


def test_no_configuration_at_all_says_what_is_missing(capsys):
    line = error_of(capsys, "fit")
    assert "model" in line or "-c" in line


CHANGES = {
    "wrong key in trainer": ({"trainer__max_stepz": 3}, ["max_stepz"]),
    "wrong key in model": ({"model__init_args__head_widht": 3}, ["head_widht"]),
    "wrong key in data": ({"data__init_args__batch_secs": 3}, ["batch_secs"]),
    "wrong key at the top": ({"trainr": {"max_steps": 3}}, ["trainr"]),
    "wrong type in trainer": ({"trainer__max_steps": "many"}, ["max_steps", "many"]),
    "wrong type in model": ({"model__init_args__head_layers": "two"}, ["head_layers", "two"]),
    "wrong type in data": ({"data__init_args__weights": "heavy"}, ["weights", "heavy"]),
    "wrong class of the model": ({"model__class_path": "lit_moss.modules.Gone"}, ["lit_moss.modules.Gone"]),
    "wrong module of the data": ({"data__class_path": "lit_mos.data.Speech"}, ["lit_mos.data.Speech"]),
    "wrong callback": ({"trainer__callbacks": [{"class_path": "callbacks.Gone"}]}, ["callbacks.Gone"]),
    "wrong key in a callback": (
        {"trainer__callbacks": [{"class_path": "callbacks.Checkpoint", "init_args": {"kept": 2}}]}, ["kept"]),
    "unresolvable interpolation": ({"data__init_args__seed": "${gone_key}"}, ["gone_key"]),
    "unset environment variable": ({"data__init_args__seed": "${oc.env:LIT_MOSS_GONE}"}, ["LIT_MOSS_GONE"]),
    "missing manifest": ({"data__init_args__train": ["gone/train.jsonl"]}, ["gone/train.jsonl"]),
    "missing validation manifest": ({"data__init_args__validation": ["gone/val.jsonl"]}, ["gone/val.jsonl"]),
    "contradicting options of the data": ({"data__init_args__weights": [1.0, 2.0]}, ["data.weights"]),
    "bad option of a callback": (
        {"trainer__callbacks": [{"class_path": "callbacks.LearningRateSchedule", "init_args": {"floor": 7}}]},
        ["floor"]),
    "max_epochs": ({"trainer__max_epochs": 3}, ["trainer.max_epochs", "trainer.max_steps"]),
    "max_steps missing": ({"trainer__max_steps": None}, ["trainer.max_steps"]),
    "max_steps endless": ({"trainer__max_steps": -1}, ["trainer.max_steps"]),
    "missing pretrained part": ({"model__init_args__init_from": "gone/whisper/here"}, ["gone/whisper/here"]),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("case", CHANGES)
def test_a_mistake_in_a_configuration_is_named(capsys, tmp_path, corpus, case):
    changes, named = CHANGES[case]
    path = recipe(tmp_path, corpus, 3, **changes)
    if case == "max_steps missing":
        config = yaml.safe_load(path.read_text())
        del config["trainer"]["max_steps"]
        path.write_text(yaml.safe_dump(config))
    line = error_of(capsys, "fit", "-c", path)
    assert all(word in line for word in named)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trainer.max_steps", "many"], ["max_steps", "many"]),
        (["--trainer.max_stepz", "3"], ["max_stepz"]),
        (["--model.head_widht", "3"], ["head_widht"]),
        (["--ckpt_path", "gone.ckpt"], ["gone.ckpt"]),
        (["--ckpt_path", "last"], ["runs/tiny", "last"]),
        (["--ckpt_path", "best"], ["runs/tiny", "best"]),
    ],
)
def test_a_mistake_on_the_command_line_is_named(capsys, tmp_path, corpus, words, named):
    line = error_of(capsys, "fit", "-c", recipe(tmp_path, corpus, 3), *words)
    assert all(word in line for word in named)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_other_trainer_verbs_ask_for_a_checkpoint(capsys, tmp_path, corpus, verb):
    line = error_of(capsys, verb, "-c", recipe(tmp_path, corpus, 3))
    assert verb in line
    assert "--ckpt_path" in line


class Payload:
    """What an attacker's object would do while it is unpickled."""

    def __reduce__(self):
        return (Path.write_text, (Path("mark"), "the payload ran"))


@pytest.mark.slow
@pytest.mark.parametrize("content", ["text", "half", "one bit", "foreign", "malicious"])
def test_a_file_that_is_no_whole_checkpoint_of_ours_is_named_and_runs_nothing(
    capsys, tmp_path, corpus, content
):
    weights = torch.full((1000,), 1.25)
    torch.save(
        {"state_dict": {"w": weights}, "callbacks": Payload() if content == "malicious" else {}}, "a.ckpt"
    )
    data = bytearray(Path("a.ckpt").read_bytes())
    if content == "text":
        data = b"no checkpoint"
    elif content == "half":
        data = data[: len(data) // 2]
    elif content == "one bit":
        data[data.index(weights.numpy().tobytes()) + 1000] ^= 1
    Path("a.ckpt").write_bytes(data)
    assert "a.ckpt" in error_of(capsys, "fit", "-c", recipe(tmp_path, corpus, 3), "--ckpt_path", "a.ckpt")
    assert not Path("mark").exists()


@pytest.mark.slow
def test_a_failed_start_leaves_no_run_behind(capsys, tmp_path, corpus):
    error_of(capsys, "fit", "-c", recipe(tmp_path, corpus, 3, data__init_args__train=["gone.jsonl"]))
    assert not list(tmp_path.glob("runs/tiny/*/run.json"))


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["tokenize", "gone.wav", "--speech-tokenizer", "gone", "--out", "a.jsonl"], "gone.wav"),
        (["prepare", "manifest", "--from", "folder", "gone", "--out", "a.jsonl"], "gone"),
        (["prepare", "manifest", "--from", "folder", ".", "--out", "a.jsonl", "--lang", "English"], "--lang"),
    ],
)
def test_mistakes_of_other_verbs_are_named(capsys, argv, named):
    assert named in error_of(capsys, *argv)


# Configurations.


def printed(capsys, *argv):
    """The resolved configuration that --print_config shows."""
    with pytest.raises(SystemExit) as caught:
        main([str(word) for word in argv])
    assert caught.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.slow
def test_configurations_merge_from_left_to_right_and_words_come_last(capsys, tmp_path, corpus):
    a = recipe(tmp_path, corpus, 3)
    (tmp_path / "b.yaml").write_text(
        "trainer: {max_steps: 5, log_every_n_steps: 7}\ndata: {init_args: {workers: 2}}\n"
    )
    config = printed(capsys, "fit", "-c", a, "-c", "b.yaml", "--print_config")
    assert (config["trainer"]["max_steps"], config["trainer"]["log_every_n_steps"]) == (5, 7)
    assert (config["data"]["init_args"]["workers"], config["data"]["init_args"]["batch_sec"]) == (2, 12)
    assert len(config["trainer"]["callbacks"]) == 9  # NonFiniteSteps is added
    (tmp_path / "b.yaml").write_text("trainer: {max_steps: 5, log_every_n_steps: 7}\n")
    words = ["--trainer.log_every_n_steps", "9"]
    config = printed(capsys, "fit", "-c", "b.yaml", "-c", a, *words, "--print_config")
    assert (config["trainer"]["max_steps"], config["trainer"]["log_every_n_steps"]) == (3, 9)


@pytest.mark.slow
def test_a_later_list_of_callbacks_replaces_and_plus_appends(capsys, tmp_path, corpus):
    a = recipe(tmp_path, corpus, 3)
    (tmp_path / "replace.yaml").write_text("trainer: {callbacks: [{class_path: callbacks.Throughput}]}\n")
    (tmp_path / "append.yaml").write_text(
        "trainer: {callbacks+: [{class_path: callbacks.TokenizerReport}]}\n"
    )
    config = printed(capsys, "fit", "-c", a, "-c", "replace.yaml", "--print_config")
    assert config["trainer"]["callbacks"][0]["class_path"] == "callbacks.Throughput"
    assert len(config["trainer"]["callbacks"]) == 1 + 4  # those of every run
    config = printed(capsys, "fit", "-c", a, "-c", "append.yaml", "--print_config")
    assert [c["class_path"] for c in config["trainer"]["callbacks"]][8:] == [
        "callbacks.TokenizerReport", "callbacks.NonFiniteSteps",
    ]  # fmt: skip


def test_interpolation_takes_keys_and_the_environment(capsys, tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_TEST_STEPS", "17")
    changes = {
        "trainer__max_steps": "${oc.env:LIT_MOSS_TEST_STEPS}",
        "data__init_args__seed": "${seed_everything}",
    }
    config = printed(capsys, "fit", "-c", recipe(tmp_path, corpus, 3, **changes), "--print_config")
    assert config["trainer"]["max_steps"] == 17
    assert config["data"]["init_args"]["seed"] == config["seed_everything"] == 7


@pytest.mark.slow
def test_the_printed_configuration_is_a_configuration(capsys, tmp_path, corpus):
    first = printed(capsys, "fit", "-c", recipe(tmp_path, corpus, 3), "--print_config")
    (tmp_path / "again.yaml").write_text(yaml.safe_dump(first))
    assert printed(capsys, "fit", "-c", "again.yaml", "--print_config") == first


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(ROOT.glob("conf/*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_every_shipped_configuration_parses_with_a_machine(capsys, path, machine):
    config = printed(capsys, "fit", "-c", path, "-c", ROOT / f"conf/trainer/{machine}.yaml", "--print_config")
    assert config["model"]["class_path"] == yaml.safe_load(path.read_text())["model"]["class_path"]
    assert json.dumps(config)
