"""Variants of a recipe: what each changes, what it starts from, the tables, a real study of tiny runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from database import give_database
from lm_recipe import lm_recipe

from experiments.studies import variants
from lit_moss.errors import UserError
from lit_moss.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
METRIC = "val/speech_ppl"


def options(tmp_path: Path, **changes) -> variants.Options:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"model": {"init_args": {"lr": 1.0}}, "trainer": {"max_steps": 4}}))
    given = {
        "name": "compared",
        "recipe": [str(recipe)],
        "variants": {"second": {}, "first": {"trainer.max_steps": 2}},
        "metrics": [METRIC],
        "run_root": str(tmp_path / "runs"),
    }
    return variants.Options(**(given | changes))


def test_a_variant_changes_its_keys_and_those_of_all(tmp_path):
    own = options(tmp_path, set={"model.init_args.lr": 2.0}, after={"second": "first"}, seeds=[3])
    first, second = own.recipe_of("first", 3), own.recipe_of("second", 3)
    assert first == {"model": {"init_args": {"lr": 2.0}}, "trainer": {"max_steps": 2}, "seed_everything": 3}
    assert second["model"]["init_args"] == {
        "lr": 2.0,
        "init_from": str(tmp_path / "runs/compared/first-seed-3"),
    }
    assert own.ordered == ["first", "second"]


def test_a_variants_value_counts_and_broader_keys_come_first(tmp_path):
    changes = {"first": {"model.init_args.lr": 5.0}, "second": {"model": {"init_args": {"lr": 6.0, "x": 1}}}}
    own = options(tmp_path, set={"model.init_args.lr": 2.0}, variants=changes)
    assert own.recipe_of("first", 1)["model"]["init_args"] == {"lr": 5.0}
    assert own.recipe_of("second", 1)["model"]["init_args"] == {"lr": 2.0, "x": 1}


def test_a_variant_may_have_a_recipe_of_its_own(tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump({"trainer": {"max_steps": 9}}))
    own = options(tmp_path, recipes={"first": [str(other)]})
    assert own.recipe_of("first", 1)["trainer"]["max_steps"] == 2
    assert "model" not in own.recipe_of("first", 1)


def test_a_run_whose_start_was_trained_on_is_refused(tmp_path):
    own = options(tmp_path, after={"second": "first"})
    start, folder = own.folder("first", 1), own.folder("second", 1)
    start.mkdir(parents=True)
    for step in (2, 2):  # begun, and repeated
        (start / "result.json").write_text(json.dumps({"step": step, "metrics": {}}))
        variants._check_start(folder, start)
    (start / "result.json").write_text(json.dumps({"step": 9, "metrics": {}}))
    with pytest.raises(UserError, match=r"second-seed-1 was begun from step 2 of .*, which is at step 9 now"):
        variants._check_start(folder, start)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"variants": {}}, "variants, seeds and metrics need one entry or more"),
        ({"jobs": 0}, "jobs 1 or more"),
        (
            {"after": {"second": "frist"}},
            "recipes and after name ['frist'], expected variants: second, first",
        ),
        ({"after": {"second": "first", "first": "second"}}, "starts from itself"),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, said):
    with pytest.raises(UserError) as refused:
        options(tmp_path, **changes)
    assert said in str(refused.value)


def test_tables_have_mean_deviation_and_curves(tmp_path):
    own = options(tmp_path, seeds=[1, 2], results=["resynthesis/codec/wer"])

    def run(value: float, wer: float | None) -> variants.Run:
        result = {"step": 4, "stopped": None, "run_id": "x", "metrics": {METRIC: value}}
        return variants.Run(result, {} if wer is None else {"resynthesis/codec/wer": wer})

    runs = {("second", 1): run(2.0, 0.1), ("second", 2): run(4.0, 0.3), ("first", 1): run(5.0, None),
            ("first", 2): run(5.0, None)}  # fmt: skip
    points = {key: {METRIC: [(2, 8.0), (4, run.result["metrics"][METRIC])]} for key, run in runs.items()}
    points["first", 2] = {METRIC: [(2, 6.0)]}
    text = variants.tables(own, runs, points)
    assert "Mean ± standard deviation of 2 seeds." in text
    assert "| second | 4 | 3 ± 1.4 | 0.2 ± 0.14 |" in text
    assert "| first | 4 | 5 ± 0 |  |" in text
    assert f"| {METRIC} | 2 | 4 |" in text
    assert "| second | 8 ± 0 | 3 ± 1.4 |" in text
    assert "| first | 7 ± 1.4 | 5 |" in text


@pytest.mark.nightly
def test_a_study_trains_each_variant_once(tmp_path):
    """Two at a time, one from the weights of another; a second start trains nothing and prints the same."""
    give_database(tmp_path)
    recipe = lm_recipe(tmp_path / "base", 4)
    study = {
        "name": "compared",
        "recipe": [str(recipe)],
        "set": {"trainer.val_check_interval": 2},
        "variants": {"plain": {}, "slow": {"model.init_args.lr": 1e-9}, "second": {}},
        "after": {"second": "plain"},
        "metrics": [METRIC],
        "jobs": 2,
        "threads": 1,
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    command = [sys.executable, "-m", "experiments.studies.variants", "-c", "study.yaml"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def start() -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    text = start()
    runs = tmp_path / "runs/compared"
    logs = {path.name: path.stat().st_mtime_ns for path in runs.glob("*/log.txt")}
    assert sorted(path.name for path in runs.iterdir()) == ["plain-seed-1", "second-seed-1", "slow-seed-1"]
    ppl = {name: RunFolder(runs / f"{name}-seed-1").result()["metrics"][METRIC] for name in study["variants"]}
    assert ppl["second"] < ppl["plain"] < ppl["slow"]
    assert f"| plain | 4 | {ppl['plain']:.4g} |" in text
    assert f"| {METRIC} | 0 | 2 | 4 |" in text
    out = tmp_path / "runs/studies/compared/study/variants"
    assert (out / "variants.png").stat().st_size > 1000
    assert (out / "variants.md").read_text() in text
    assert start().splitlines()[3:] == text.splitlines()[3:]  # after the names of runs
    assert {path.name: path.stat().st_mtime_ns for path in runs.glob("*/log.txt")} == logs
    assert json.loads((runs / "second-seed-1/run.json").read_text())["mlflow_run_id"]
