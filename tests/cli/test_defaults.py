"""What the command line adds to a recipe: trainer defaults, links, the callbacks of every run."""

import json
from pathlib import Path

import pytest
import yaml
from lightning.pytorch import LightningDataModule

from callbacks import ExactResume, NonFiniteSteps, Progress, SkippedData
from lit_moss.cli.defaults import ALWAYS_ON, arranged, completed, trainer_defaults
from lit_moss.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
RECIPES = [*sorted(ROOT.glob("conf/*.yaml")), *sorted(ROOT.glob("conf/paper/*.yaml"))]
NAMES = [kind.__name__ for kind in ALWAYS_ON]


class OwnData(LightningDataModule):
    """A user's data module, without a seed and without a backbone."""

    def __init__(self, size: int = 3) -> None:
        super().__init__()


def resolved(capsys, *words):
    """The configuration that --print_config shows."""
    with pytest.raises(SystemExit) as stopped:
        main([*map(str, words), "--print_config"])
    assert stopped.value.code in (0, None)
    lines = capsys.readouterr().out.splitlines()
    return yaml.safe_load("\n".join(x for x in lines if "[WARNING]" not in x))  # DeepSpeed's, at its import


def names(config):
    return [c["class_path"].rpartition(".")[2] for c in config["trainer"]["callbacks"]]


def contains(config, part):
    """Whether every value of `part` is in `config`, at the same key."""
    if isinstance(part, dict):
        return all(key in config and contains(config[key], value) for key, value in part.items())
    return config == part


@pytest.mark.slow
@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "conf")))
def test_a_resolved_recipe_is_its_own_values_and_the_defaults(capsys, path):
    own, config = yaml.safe_load(path.read_text()), resolved(capsys, "fit", "-c", path)
    trainer = own.pop("trainer")
    callbacks = trainer.pop("callbacks")
    trainer.pop("strategy", None)  # DeepSpeed's options are shown as a text
    parts = own["data"]["init_args"].pop("parts", [])
    assert contains(config, own)
    assert contains(config["trainer"], trainer_defaults() | trainer)
    for mine, all_of_it in zip(parts, config["data"]["init_args"].get("parts", []), strict=True):
        assert contains(all_of_it, mine)
    for mine, all_of_it in zip(callbacks, config["trainer"]["callbacks"], strict=False):
        assert contains(all_of_it, {k: v for k, v in mine.items() if "stages" not in str(v)})
    assert names(config) == [c["class_path"].rpartition(".")[2] for c in callbacks] + NAMES
    assert config["data"]["init_args"]["seed"] == config["seed_everything"] == 1
    if "backbone" in own["model"]["init_args"]:
        assert config["data"]["init_args"]["backbone"] == own["model"]["init_args"]["backbone"]


def test_linked_keys_follow_the_command_line(capsys):
    words = ["--seed_everything", "5", "--model.init_args.backbone", "other"]
    data = resolved(capsys, "fit", "-c", ROOT / "conf/stage1.yaml", *words)["data"]["init_args"]
    assert (data["seed"], data["backbone"]) == (5, "other")


@pytest.mark.slow
@pytest.mark.parametrize("words", [
    ["--data.init_args.seed", "9", "--data.init_args.backbone", "own"],
    ["--data.seed=9", "--data.backbone=own"],
    ["-c", "own.yaml"],
])  # fmt: skip
def test_a_value_of_the_user_wins_over_a_link(capsys, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text("data: {init_args: {seed: 9, backbone: own}}\n")
    data = resolved(capsys, "fit", "-c", "conf/stage1.yaml", *words)["data"]["init_args"]
    assert (data["seed"], data["backbone"]) == (9, "own")


@pytest.mark.parametrize(
    ("words", "linked"),
    [
        (["-c", "conf/stage1.yaml"], {"seed", "backbone"}),
        (["-c", "conf/codec_encoder.yaml"], {"seed"}),
        (["-c", "conf/stage1.yaml", "-c", "conf/predict/prompts.yaml"], {"backbone"}),
        (["-c", "conf/stage1.yaml", "--data", "test_defaults.OwnData"], set()),
        (["-c", "conf/stage1.yaml", "--data=lit_moss.data.SpeechDataModule"], {"seed"}),
        (["-c", "conf/stage1.yaml", "--data", "gone.Gone"], set()),
        (["-c", "conf/stage1.yaml", "--seed_everything", "false"], {"backbone"}),
        (["-c", "conf/stage1.yaml", "--data.seed", "3"], {"backbone"}),
    ],
)
def test_only_what_the_data_module_takes_is_linked(words, linked):
    more = json.loads(completed(["fit", *words])[-1])
    assert set(more.get("data", {}).get("init_args", {})) == linked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("{callbacks: [{class_path: callbacks.Throughput}]}", ["Throughput", *NAMES]),
        ("{callbacks: {class_path: callbacks.Throughput}}", ["Throughput", *NAMES]),
        ("{callbacks: null}", NAMES),
        ("{callbacks: [{class_path: callbacks.progress.Progress, init_args: {every_n_sec: 1}}]}",
         ["Progress", "ExactResume", "SkippedData", "NonFiniteSteps"]),
    ],
)  # fmt: skip
def test_callbacks_of_every_run_are_added_where_a_recipe_does_not_list_them(
    capsys, tmp_path, trainer, expected
):
    (tmp_path / "more.yaml").write_text(f"trainer: {trainer}\n")
    config = resolved(capsys, "fit", "-c", "conf/stage1.yaml", "-c", tmp_path / "more.yaml")
    assert names(config) == expected
    if expected[0] == "Progress":
        assert config["trainer"]["callbacks"][0]["init_args"]["every_n_sec"] == 1


def test_each_callback_of_every_run_is_there_once_and_the_recipes_own_is_kept():
    own = Progress(every_n_sec=1.0)
    callbacks = arranged([NonFiniteSteps(), own, Progress(), ExactResume()], "fit")
    assert [type(c) for c in callbacks] == [Progress, ExactResume, SkippedData, NonFiniteSteps]
    assert callbacks[0] is own
    assert arranged([], "validate") == []


def test_files_of_the_package_are_found_where_the_working_folder_has_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = completed([
        "predict", "--config=conf/quickstart_lm.yaml", "-c", "conf/predict/prompts.yaml",
        "--data.init_args.prompts", "[conf/predict/prompts.jsonl]", "--name", "conf/none.yaml",
    ])  # fmt: skip
    assert Path(words[1].removeprefix("--config=")).is_file()
    assert Path(words[3]).is_absolute()
    assert Path(words[5].strip("[]")).is_file()
    assert words[7] == "conf/none.yaml"
