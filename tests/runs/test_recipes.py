"""Recipes found, merged and changed by keys."""

from pathlib import Path

import pytest
import yaml

from lit_moss.errors import UserError
from lit_moss.runs.recipes import find_recipe, read_recipe, read_yaml, set_key

ROOT = Path(__file__).resolve().parents[2]


def test_keys_reach_into_lists_by_number_and_by_class():
    config = read_recipe([ROOT / "conf" / "stage1.yaml"])
    set_key(config, "model.init_args.lr", 1.0)
    set_key(config, "model.init_args.betas", [0.9, 0.99])
    set_key(config, "trainer.callbacks.StagedFreezing.init_args.stages.0.policy", "full")
    set_key(config, "data.init_args.parts.1.init_args.document_sec", 5)
    assert config["model"]["init_args"]["lr"] == 1.0
    assert config["model"]["init_args"]["betas"] == [0.9, 0.99]
    assert config["trainer"]["callbacks"][0]["init_args"]["stages"] == [{"policy": "full"}]
    assert config["data"]["init_args"]["parts"][1]["init_args"]["document_sec"] == 5


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("modell.init_args.lr", "no modell in the recipe, expected one of name"),
        ("trainer.callbacks.Nothing.x", "names 0 elements of the list, expected one of StagedFreezing"),
        ("trainer.callbacks.77.x", "names 0 elements"),
        ("trainer.max_steps.x", "is 150"),
    ],
)
def test_a_key_that_leads_nowhere_is_one_line(key, said):
    with pytest.raises(UserError, match=said):
        set_key(read_recipe([ROOT / "conf" / "stage1.yaml"]), key, 1)


def test_recipes_merge_from_left_to_right(tmp_path):
    (tmp_path / "more.yaml").write_text(
        yaml.safe_dump({"model": {"init_args": {"lr": 5.0}}, "name": "other", "run_name": "${name}"})
    )
    config = read_recipe([ROOT / "conf" / "stage1.yaml", tmp_path / "more.yaml"])
    assert config["name"] == "other"
    assert config["model"]["init_args"]["lr"] == 5.0
    assert config["model"]["init_args"]["backbone"] == "embedded:smollm2-135m"
    assert config["run_name"] == "${name}"  # not resolved


def test_a_recipe_is_looked_up_here_and_then_among_those_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = find_recipe("conf/stage1.yaml")
    assert shipped.is_absolute()
    assert read_yaml("conf/stage1.yaml")["name"] == "stage1"
    assert read_recipe(["conf/paper/stage1.yaml"])["name"] == "paper_stage1"
    for name in ("stage1.yaml", "other/conf/stage1.yaml", "conf/none.yaml", tmp_path / "conf/stage1.yaml"):
        assert find_recipe(name) == Path(name)
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/stage1.yaml").write_text("name: own\n")
    assert read_yaml("conf/stage1.yaml") == {"name": "own"}
