"""The keys of a sweep's YAML, and what is derived from them: distributions, samplers, recipes of trials."""

import copy
import hashlib
import importlib
import inspect
import json
import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler, PartialFixedSampler, RandomSampler

from lit_moss.errors import UserError
from lit_moss.runs.recipes import read_recipe, set_key


@dataclass
class Sweep:
    """Configuration of a study.

    Args:
        study: Name of the study, of the folder of its runs, and of their MLflow experiment.
        base: Recipe files of a run, merged from left to right.
        search: Key of the recipe -> `{choices: [...]}`, `{choices: {name: value, ...}}`, or `{low, high}`
            with `step` or `log: true`; whole numbers if both bounds are.
        objectives: Metric of a run's validations -> `minimize` or `maximize`.
        set: Keys of the recipe to change in every trial, such as `model.init_args.lr`, or
            `trainer.callbacks.Checkpoint.init_args.keep` for an element of a list, given by its class.
        trials: Number of trials; null: the whole grid.
        seeds: Values of `seed_everything` for the runs of a trial; the value of a trial is the mean over
            them.
        seed: Seed of the sampler.
        sampler: `grid` (every combination of the choices, in order), or an Optuna sampler as `class_path` and
            `init_args`.
        pruner: An Optuna pruner; it gets the objective at every validation. Null: no pruning. Hyperband is
            rejected, because its brackets depend on trial numbers, which change if a trial is retried.
        validation: The validation of a run to use: the `last`, or the `best` (only with a single objective:
            two may be best at different steps, and no checkpoint has both values).
        storage: Database of the study.
        heartbeat_sec: Interval between signs of life of a worker, in seconds; after three times that without
            one, the worker is considered dead.
        retries: Number of times the trial of a dead worker is queued again.
        run_root: Folder of all runs' files.
    """

    study: str
    base: list[str]
    search: dict[str, Any]
    objectives: dict[str, str]
    set: dict[str, Any] = field(default_factory=dict)
    trials: int | None = None
    seeds: list[int] = field(default_factory=lambda: [1])
    seed: int = 1
    sampler: str | dict[str, Any] = "optuna.samplers.TPESampler"
    pruner: str | dict[str, Any] | None = None
    validation: Literal["last", "best"] = "last"
    storage: str = "sqlite:///sweeps.db"
    heartbeat_sec: int = 20
    retries: int = 3
    run_root: str = "runs"

    def __post_init__(self) -> None:
        self.set = self.set or {}  # `set:` without entries is null
        if not self.search:
            raise UserError("search is empty: expected keys and what to try for them")
        wrong = sorted({d for d in self.objectives.values() if d not in ("minimize", "maximize")})
        if wrong or not self.objectives:
            raise UserError(f"objectives have {wrong or 'no metric'}, expected METRIC: minimize or maximize")
        if self.validation == "best" and len(self.objectives) > 1:
            raise UserError(
                f"validation: best with {len(self.objectives)} objectives, whose best steps may differ: "
                "expected one objective, or validation: last"
            )
        if len(self.objectives) > 1 and self.pruner:
            raise UserError(
                f"pruner with {len(self.objectives)} objectives: Optuna prunes by one alone, take it out"
            )
        if "Hyperband" in str(self.pruner):
            raise UserError(
                "pruner is Hyperband, which gives a retried trial another bracket: use "
                "SuccessiveHalvingPruner"
            )
        if not self.seeds or len({*self.seeds}) != len(self.seeds):
            raise UserError(f"seeds are {self.seeds}, expected each once")
        if "seed_everything" in {*self.search, *self.set}:
            raise UserError(
                "search or set names seed_everything, which every run takes from seeds: give seeds"
            )
        lost = sorted(s for s in self.set for key in self.search if f"{s}.".startswith(f"{key}."))
        if lost:
            raise UserError(
                f"set names {', '.join(lost)}, which search gives another value in every trial: "
                "expected each key in one of them"
            )
        self.distributions()
        if self.sampler == "grid":
            size = len(self.grid())
            if self.trials not in (None, size):
                raise UserError(f"trials is {self.trials}, the grid has {size} points: leave trials out")
            self.trials = size
        if self.trials is None or self.trials < 1:
            raise UserError(f"trials is {self.trials}, expected how many")
        self._base = read_recipe(self.base)  # once: editing a file during the sweep has no effect
        self.recipe({key: _first_value(d) for key, d in self.distributions().items()}, self.seeds[0])

    def distributions(self) -> dict[str, BaseDistribution]:
        """Key -> the distribution that Optuna draws from."""
        return {key: _distribution(key, spec) for key, spec in self.search.items()}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices; the last key varies fastest."""
        choices = []
        for key, spec in self.search.items():
            if "choices" not in spec:
                raise UserError(f"search.{key} is {spec}: a grid needs choices")
            choices.append(list(spec["choices"]))
        return [dict(zip(self.search, point, strict=True)) for point in product(*choices)]

    def fingerprint(self) -> str:
        """16 hex digits of all that trials have in common, without their number and the machines."""
        settings = [self.search, self.objectives, self.seeds, self.sampler, self.seed, self.recipe({}, 0)]
        if self.validation != "last":  # not in the fingerprints of studies started before the option existed
            settings.append(self.validation)
        return hashlib.sha256(json.dumps(settings, default=str).encode()).hexdigest()[:16]

    def make_sampler(self, slot: int) -> BaseSampler:
        """The sampler for the trial of a slot.

        It depends only on seed and slot, so that a resumed sweep draws the same as an uninterrupted one.
        """
        if self.sampler == "grid":
            return PartialFixedSampler(self.grid()[slot % len(self.grid())], RandomSampler(seed=self.seed))
        return make(self.sampler, BaseSampler, "sampler", seed=(1_000_003 * self.seed + slot) % 2**32)

    def make_pruner(self) -> BasePruner:
        """The pruner."""
        return make(self.pruner, BasePruner, "pruner") if self.pruner else NopPruner()

    def recipe(self, params: dict[str, Any], seed: int) -> dict[str, Any]:
        """The YAML of one run of a trial."""
        config = copy.deepcopy(self._base)
        for key, value in self.set.items():
            set_key(config, key, value)
        for key, value in params.items():
            choices = self.search[key].get("choices")
            set_key(config, key, choices[value] if isinstance(choices, dict) else value)
        config["seed_everything"] = seed
        if "trainer" not in config or "max_steps" not in config["trainer"]:
            raise UserError(f"{', '.join(self.base)}: no trainer.max_steps, expected a YAML that `fit` takes")
        return config


def make(spec: str | dict[str, Any], kind: type, what: str, **defaults: Any) -> Any:
    """Creates an object from a class path.

    Args:
        spec: A `class_path`, or a mapping with `class_path` and `init_args`.
        kind: Required base class.
        what: Purpose of the object, for messages, such as `sampler`.
        defaults: Arguments to add if the class accepts them and `spec` does not contain them.

    Raises:
        UserError: one line if the class does not exist, has the wrong base class, or rejects its arguments.
    """
    spec = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    module, _, name = str(spec.get("class_path", "")).rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what}: no class {spec.get('class_path')!r} ({error})") from error
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise UserError(f"{what}: {spec['class_path']} is no {kind.__name__}")
    given = {
        key: make(value, object, f"{what}.{key}")
        if isinstance(value, dict) and "class_path" in value
        else value
        for key, value in dict(spec.get("init_args") or {}).items()
    }
    parameters = inspect.signature(cls).parameters
    given |= {key: value for key, value in defaults.items() if key in parameters and key not in given}
    try:
        return cls(**given)
    except ImportError as error:
        raise UserError(f"{what}: {spec['class_path']} needs another package: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {spec['class_path']} does not take {given}: {error}") from error


def _first_value(d: BaseDistribution) -> Any:
    """Any value of a distribution."""
    if isinstance(d, CategoricalDistribution):
        return d.choices[0]
    assert isinstance(d, IntDistribution | FloatDistribution)
    return d.low


def _distribution(key: str, spec: Any) -> BaseDistribution:
    if isinstance(spec, dict) and set(spec) == {"choices"} and isinstance(spec["choices"], list | dict):
        choices = list(spec["choices"])
        if choices and all(c is None or isinstance(c, bool | int | float | str) for c in choices):
            return CategoricalDistribution(choices)
        raise UserError(
            f"search.{key}: choices are {choices}, expected some; lists and mappings need names, "
            "{name: value}"
        )
    if not isinstance(spec, dict) or not {"low", "high"} <= set(spec) <= {"low", "high", "step", "log"}:
        raise UserError(f"search.{key} is {spec}, expected choices, or low and high (step, log)")
    ends = [spec["low"], spec["high"], *([spec["step"]] if spec.get("step") else [])]
    if not all(isinstance(e, int | float) and math.isfinite(e) for e in ends):
        raise UserError(f"search.{key} is {spec}, expected numbers (YAML reads 1e-4 as text: write 1.0e-4)")
    try:
        if all(isinstance(e, int) for e in ends):
            return IntDistribution(spec["low"], spec["high"], bool(spec.get("log")), spec.get("step") or 1)
        return FloatDistribution(
            float(spec["low"]), float(spec["high"]), bool(spec.get("log")), spec.get("step")
        )
    except ValueError as error:
        raise UserError(f"search.{key}: {error}") from error
