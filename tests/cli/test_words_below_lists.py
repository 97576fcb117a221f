"""`--trainer.callbacks.CLASS.init_args.KEY VALUE`: words that change an element of a list in a recipe."""

import json

import pytest
import yaml

from lit_moss.cli.defaults import completed
from lit_moss.cli.main import main
from lit_moss.errors import UserError

RATES = "trainer.callbacks.LearningRateSchedule.init_args"


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "a.yaml"
    callbacks = [
        {"class_path": "callbacks.LearningRateSchedule", "init_args": {"warmup_steps": 20}},
        {"class_path": "callbacks.Throughput"},
    ]
    path.write_text(yaml.safe_dump({"trainer": {"callbacks": callbacks, "max_steps": 100}}))
    return str(path)


def changed(words):
    """The callbacks that follow the recipes, and the other words."""
    found = completed(words)
    at = [i for i, word in enumerate(found) if word == "--config"]
    configs = [json.loads(found[i + 1]) for i in at]
    others = [word for i, word in enumerate(found) if i not in at and i - 1 not in at]
    lists = [c["trainer"]["callbacks"] for c in configs if "callbacks" in c.get("trainer", {})]
    return lists[0] if lists else None, others


def test_only_the_named_element_changes(recipe):
    words = [
        "fit",
        "-c",
        recipe,
        f"--{RATES}.warmup_steps",
        "4",
        "--trainer.max_steps",
        "9",
        f"--{RATES}.floor=1e-2",
    ]
    callbacks, others = changed(words)
    assert others == ["fit", "-c", recipe, "--trainer.max_steps", "9"]
    assert callbacks[0]["init_args"]["warmup_steps"] == 4
    assert float(callbacks[0]["init_args"]["floor"]) == 0.01
    assert callbacks[1] == {"class_path": "callbacks.Throughput"}
    assert changed(["fit", "-c", recipe, "--trainer.max_steps", "9"])[0] is None


def test_by_number_and_of_a_class_without_options(recipe):
    callbacks, _ = changed(["fit", "-c", recipe, "--trainer.callbacks.1.init_args.every", "3"])
    assert callbacks[1] == {"class_path": "callbacks.Throughput", "init_args": {"every": 3}}


def test_a_later_recipes_list_counts_and_added_callbacks_stay(recipe, tmp_path):
    more = tmp_path / "b.yaml"
    more.write_text(
        "trainer: {callbacks+: [{class_path: callbacks.Checkpoint, init_args: {every_n_steps: 5}}]}\n"
    )
    word = "--trainer.callbacks.Checkpoint.init_args.every_n_steps"
    callbacks, _ = changed(["fit", "-c", recipe, "-c", str(more), word, "7"])
    assert [c["class_path"].rpartition(".")[2] for c in callbacks] == [
        "LearningRateSchedule", "Throughput", "Checkpoint",
    ]  # fmt: skip
    assert callbacks[2]["init_args"] == {"every_n_steps": 7}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            f"--{RATES.replace('LearningRateSchedule', 'Rates')}.floor",
            "expected one of LearningRateSchedule, Thr",
        ),
        ("--trainer.callbacks.7.init_args.floor", "names 0 elements of the list"),
    ],
)
def test_an_element_that_is_not_there_is_named(recipe, word, message):
    with pytest.raises(UserError, match=message):
        completed(["fit", "-c", recipe, word, "1"])


@pytest.mark.slow
def test_the_shipped_recipe_takes_it(capsys):
    words = [
        f"--{RATES}.warmup_steps",
        "4",
        "--trainer.callbacks.StagedFreezing.init_args.stages.0.policy",
        "full",
    ]
    with pytest.raises(SystemExit):
        main(["fit", "-c", "conf/stage1.yaml", *words, "--print_config"])
    callbacks = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    of = {c["class_path"].rpartition(".")[2]: c.get("init_args") for c in callbacks}
    assert of["LearningRateSchedule"]["warmup_steps"] == 4
    assert of["StagedFreezing"]["stages"][0]["policy"] == "full"
    assert "NonFiniteSteps" in of
