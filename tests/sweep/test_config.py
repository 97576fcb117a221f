"""The sweep's YAML: what is tried, by what, and one line for what is wrong."""

from pathlib import Path

import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import TPESampler

from lit_moss.cli.sweep import read_sweep
from lit_moss.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
LR = "model.init_args.lr"
POLICY = "trainer.callbacks.StagedFreezing.init_args.stages"


def sweep_of(tmp_path, *words, **changes):
    content = {
        "study": "s",
        "base": [str(ROOT / "conf" / "stage1.yaml")],
        "search": {LR: {"low": 1e-5, "high": 1e-2, "log": True}},
        "objectives": {"val/loss": "minimize"},
        "trials": 4,
    }
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in (content | changes).items() if v is not ...}, sort_keys=False)
    )
    return read_sweep(["-c", str(path), *words])[0]


def test_ranges_and_choices_become_distributions(tmp_path):
    search = {
        LR: {"low": 1e-5, "high": 1e-2, "log": True},
        "model.init_args.num_modality_layers": {"low": 0, "high": 12, "step": 4},
        "data.init_args.context": {"choices": [512, 1024]},
        POLICY: {"choices": {"frozen": [{"policy": "stage1"}], "free": [{"policy": "full"}]}},
    }
    assert sweep_of(tmp_path, search=search).distributions() == {
        LR: FloatDistribution(1e-5, 1e-2, log=True),
        "model.init_args.num_modality_layers": IntDistribution(0, 12, step=4),
        "data.init_args.context": CategoricalDistribution([512, 1024]),
        POLICY: CategoricalDistribution(["frozen", "free"]),
    }


def test_a_recipe_is_the_base_with_set_and_drawn_keys(tmp_path):
    search = {LR: {"low": 0.0, "high": 1.0}, POLICY: {"choices": {"free": [{"policy": "full"}]}}}
    sweep = sweep_of(
        tmp_path,
        search=search,
        set={
            "trainer.max_steps": 7,
            "data.init_args.parts.0.init_args.x": 1,
            "data.init_args.seed": "${seed_everything}",
            "run_name": "1",
        },
    )
    config = sweep.recipe({LR: 0.25, POLICY: "free"}, seed=5)
    assert config["model"]["init_args"]["lr"] == 0.25
    assert config["trainer"]["max_steps"] == 7
    assert config["seed_everything"] == 5
    assert config["data"]["init_args"]["parts"][0]["init_args"]["x"] == 1
    freezing = next(
        c for c in config["trainer"]["callbacks"] if c["class_path"] == "callbacks.StagedFreezing"
    )
    assert freezing["init_args"]["stages"] == [{"policy": "full"}]
    assert config["data"]["init_args"]["seed"] == "${seed_everything}"  # resolved by the run
    assert config["run_name"] == "1"  # as it was quoted


def test_a_grid_is_every_combination_in_order(tmp_path):
    search = {LR: {"choices": [1, 2]}, "model.init_args.x": {"choices": ["a", "b", "c"]}}
    sweep = sweep_of(tmp_path, search=search, sampler="grid", trials=...)
    assert sweep.trials == 6
    assert [tuple(point.values()) for point in sweep.grid()] == [
        (1, "a"), (1, "b"), (1, "c"), (2, "a"), (2, "b"), (2, "c"),
    ]  # fmt: skip


def test_the_sampler_takes_a_seed_by_slot(tmp_path):
    sweep = sweep_of(tmp_path)
    assert isinstance(sweep.make_sampler(0), TPESampler)
    a, b, c = (sweep.make_sampler(slot)._rng.rng.random() for slot in (1, 1, 2))
    assert a == b != c


def test_every_key_can_be_given_on_the_command_line(tmp_path):
    words = ["--trials=7", "--set.trainer.max_steps", "9", "--seeds=[3,4]", "--run_root", "elsewhere"]
    words += ["--search.model.init_args.lr", "{low: 1.0e-3, high: 2.0e-3}"]
    sweep = sweep_of(tmp_path, *words, set={"data.init_args.seed": 1})
    assert (sweep.trials, sweep.seeds, sweep.run_root) == (7, [3, 4], "elsewhere")
    assert sweep.set == {"data.init_args.seed": 1, "trainer.max_steps": 9}
    assert sweep.distributions() == {LR: FloatDistribution(1e-3, 2e-3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {}}, "search is empty"),
        ({"search": {LR: {"low": 1}}}, f"search.{LR} is"),
        ({"search": {LR: {"low": "1e-4", "high": 1.0}}}, "write 1.0e-4"),
        ({"search": {LR: {"low": 2.0, "high": 1.0}}}, f"search.{LR}"),
        ({"search": {LR: {"choices": [[1], [2]]}}}, "need names"),
        ({"search": {LR: 3}}, f"search.{LR} is 3"),
        ({"objectives": {"val/loss": "down"}}, "objectives have"),
        ({"objectives": ...}, "no objectives"),
        ({"seeds": [1, 1]}, "seeds are"),
        ({"seeds": 3}, r"seeds is '3', expected a list \[a whole number, …\]"),
        ({"base": "conf/stage1.yaml"}, "base is 'conf/stage1.yaml', expected a list"),
        ({"objectives": "val/loss"}, "objectives is 'val/loss', expected a mapping"),
        ({"trials": "four"}, "trials is 'four', expected a whole number or null"),
        ({"retries": True}, "retries is 'True', expected a whole number"),
        ({"set": 3}, "set is '3', expected a mapping"),
        ({"validation": "first"}, "validation is 'first', expected one of last, best"),
        ({"pruner": 5}, "pruner is '5', expected text or a mapping"),
        ({"pruner": "optuna.pruners.HyperbandPruner"}, "pruner is Hyperband"),
        ({"search": {LR: {"choices": 3}}}, f"search.{LR} is"),
        ({"search": {"modle.init_args.lr": {"low": 0, "high": 1}}}, "no modle in the recipe"),
        ({"trials": ...}, "trials is None"),
        ({"sampler": "optuna.samplers.NoSampler"}, "no class"),
        ({"sampler": "pathlib.Path"}, "is no BaseSampler"),
        ({"sampler": {"class_path": "optuna.samplers.TPESampler", "init_args": {"x": 1}}}, "does not take"),
        ({"sampler": "grid"}, "a grid needs choices"),
        ({"wokers": 2}, "unknown option wokers, expected one of study, base, "),
        (
            {"pruner": "optuna.pruners.MedianPruner", "objectives": {"a": "minimize", "b": "maximize"}},
            "pruner",
        ),
        ({"base": ["no.yaml"]}, "no configuration no.yaml"),
        ({"set": {"trainer.callbacks.NoSuch.x": 1}}, "names 0 elements"),
        ({"set": {"modle.init_args.lr": 1}}, "no modle in the recipe"),
        ({"set": {LR: 1e-3}}, "set names model.init_args.lr, which search gives another value"),
        (
            {"set": {LR: 1e-3}, "search": {"model.init_args": {"choices": {"a": {}, "b": {}}}}},
            "set names model.init_args.lr, which search gives another value",
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path, changes, message):
    def read():
        sweep = sweep_of(tmp_path, **changes)
        sweep.make_sampler(0)
        sweep.make_pruner()

    with pytest.raises(UserError, match=message) as error:
        read()
    assert "\n" not in str(error.value)


def test_large_seeds_and_nested_samplers_are_made(tmp_path):
    inner = {"class_path": "optuna.samplers.RandomSampler"}
    sampler = {
        "class_path": "optuna.samplers.PartialFixedSampler",
        "init_args": {"fixed_params": {LR: 1e-3}, "base_sampler": inner},
    }
    assert sweep_of(tmp_path, seed=20261121).make_sampler(5)
    assert sweep_of(tmp_path, sampler=sampler).make_sampler(0)


def test_recipes_share_nothing(tmp_path):
    sweep = sweep_of(tmp_path, set={"trainer.callbacks": [{"class_path": "callbacks.ExactResume"}]})
    sweep.recipe({LR: 1e-3}, 1)["trainer"]["callbacks"].append("more")
    assert len(sweep.recipe({LR: 1e-3}, 1)["trainer"]["callbacks"]) == 1


def test_the_shipped_sweep_reads():
    sweep, _ = read_sweep(["-c", "conf/sweep/split_depth.yaml"])  # found wherever the command runs
    assert sweep.trials == 5
    assert len(sweep.seeds) == 2
    sweep.recipe({key: spec["choices"][0] for key, spec in sweep.search.items()}, 1)
