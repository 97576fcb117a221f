"""What a sweep is: the YAML of `python -m lit_moss sweep`."""

import copy
import hashlib
import importlib
import inspect
import json
import math
from dataclasses import dataclass, field, fields
from itertools import product
from typing import Any, cast

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

_KINDS: dict[str, tuple[type, ...]] = {
    "study": (str,),
    "base": (list,),
    "search": (dict,),
    "objectives": (dict,),
    "set": (dict,),
    "trials": (int, type(None)),
    "seeds": (list,),
    "seed": (int,),
    "validation": (str,),
    "storage": (str,),
    "heartbeat_sec": (int,),
    "retries": (int,),
    "run_root": (str,),
}


@dataclass
class Sweep:
    """One study.

    Args:
        study: Its name, also the runs' and their MLflow experiment's.
        base: YAMLs of a run, merged from left to right.
        set: Keys changed in every trial (see `lit_moss.runs.recipes.set_key`).
        search: Key -> `{choices: [...]}`, `{choices: {name: value, ...}}`, or `{low, high}` with `step` or
            `log: true`; whole numbers where both ends are.
        objectives: Metric of a run's validations -> minimize or maximize.
        validation: Which of them counts: the `last`, or the `best` (with one objective only: two may be best
            at different steps, which is no model that exists).
        trials: How many; None is the whole grid.
        seeds: `seed_everything` of a trial's runs; a trial's value is the mean over them.
        seed: Of the sampler.
        sampler: `grid` (every combination of the choices, in order), or an Optuna sampler as `class_path` and
            `init_args`; TPE by default.
        pruner: An Optuna pruner; it sees the objective at every validation. None never prunes. Not Hyperband:
            its brackets hang on numbers that a retried trial does not keep.
        storage: Database of the study.
        heartbeat_sec: How often a worker says that it lives; silent for three times that, it is dead.
        retries: How often the trial of a worker that died is queued again.
        run_root: Folder of all runs' files.
    """

    study: str
    base: list[str]
    search: dict[str, dict[str, Any]]
    objectives: dict[str, str]
    set: dict[str, Any] = field(default_factory=dict)
    trials: int | None = None
    seeds: list[int] = field(default_factory=lambda: [1])
    seed: int = 1
    sampler: Any = "optuna.samplers.TPESampler"
    pruner: Any = None
    validation: str = "last"
    storage: str = "sqlite:///sweeps.db"
    heartbeat_sec: int = 20
    retries: int = 3
    run_root: str = "runs"

    def __post_init__(self) -> None:
        for key, kinds in _KINDS.items():
            value = getattr(self, key)
            if not isinstance(value, kinds) or isinstance(value, bool):
                raise UserError(f"{key} is {value!r}, expected {kinds[0].__name__}")
        self.sampler = self.sampler or "optuna.samplers.TPESampler"
        if not self.search:
            raise UserError("search is empty: expected keys and what to try for them")
        wrong = sorted({d for d in self.objectives.values() if d not in ("minimize", "maximize")})
        if wrong or not self.objectives:
            raise UserError(f"objectives have {wrong or 'no metric'}, expected METRIC: minimize or maximize")
        if self.validation not in ("last", "best"):
            raise UserError(f"validation is {self.validation!r}, expected last or best")
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
                "pruner is Hyperband, which counts retried trials anew: take SuccessiveHalvingPruner"
            )
        if not self.seeds or len({*self.seeds}) != len(self.seeds):
            raise UserError(f"seeds are {self.seeds}, expected each once")
        self.distributions()
        if self.sampler == "grid":
            size = len(self.grid())
            if self.trials not in (None, size):
                raise UserError(f"trials is {self.trials}, the grid has {size} points: leave trials out")
            self.trials = size
        if self.trials is None or self.trials < 1:
            raise UserError(f"trials is {self.trials}, expected how many")
        self._base = read_recipe(self.base)  # once: who edits a file while it runs does not mix trials
        self.recipe({key: _sample(d) for key, d in self.distributions().items()}, self.seeds[0])

    def distributions(self) -> dict[str, BaseDistribution]:
        """Key -> what Optuna draws from."""
        return {key: _distribution(key, spec) for key, spec in self.search.items()}

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the choices, the last key fastest."""
        choices = []
        for key, spec in self.search.items():
            if "choices" not in spec:
                raise UserError(f"search.{key} is {spec}: a grid needs choices")
            choices.append(list(spec["choices"]))
        return [dict(zip(self.search, point, strict=True)) for point in product(*choices)]

    def fingerprint(self) -> str:
        """Of what makes trials comparable; how many, where and by whom may change."""
        asked = [self.search, self.objectives, self.seeds, self.sampler, self.seed, self.recipe({}, 0)]
        if self.validation != "last":  # absent from the fingerprints of studies begun before it existed
            asked.append(self.validation)
        return hashlib.sha256(json.dumps(asked, default=str).encode()).hexdigest()[:16]

    def make_sampler(self, slot: int) -> BaseSampler:
        """The sampler of the slot-th trial: a function of seed and slot, so that a sweep that was killed goes
        on as one that was not."""
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


def read_sweep(path: str, **changed: Any) -> Sweep:
    """The sweep of a YAML; keys given by name (not None) replace its own.

    Raises:
        UserError: one line for what is wrong.
    """
    content = read_recipe([path]) | {key: value for key, value in changed.items() if value is not None}
    known = {f.name for f in fields(Sweep)}
    unknown = sorted(content.keys() - known)
    missing = sorted({"study", "base", "search", "objectives"} - content.keys())
    if unknown or missing:
        raise UserError(
            f"{path}: {'unknown ' + unknown[0] if unknown else 'no ' + missing[0]}, expected "
            f"{', '.join(sorted(known))}"
        )
    return Sweep(**content)


def make(spec: Any, kind: type, what: str, **defaults: Any) -> Any:
    """An object of `class_path` and `init_args`; `defaults` it takes and that are not given are added."""
    if not isinstance(spec, str | dict):
        raise UserError(f"{what} is {spec!r}, expected a class, or class_path and init_args")
    spec = {"class_path": spec} if isinstance(spec, str) else dict(spec)
    module, _, name = str(spec.get("class_path", "")).rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what}: no class {spec.get('class_path')!r} ({error})") from error
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise UserError(f"{what}: {spec['class_path']} is no {kind.__name__}")
    given = {
        key: make(value, object, f"{what}.{key}")
        if isinstance(value, dict) and "class_path" in value
        else value
        for key, value in dict(spec.get("init_args") or {}).items()
    }
    takes = inspect.signature(found).parameters
    given |= {key: value for key, value in defaults.items() if key in takes and key not in given}
    try:
        return found(**given)
    except ImportError as error:
        raise UserError(f"{what}: {spec['class_path']} needs another package: {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{what}: {spec['class_path']} does not take {given}: {error}") from error


def _sample(d: BaseDistribution) -> Any:
    return d.choices[0] if isinstance(d, CategoricalDistribution) else cast(Any, d).low


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
        raise UserError(f"search.{key} is {spec}, expected numbers (YAML reads 1e-4 as a word: write 1.0e-4)")
    try:
        if all(isinstance(e, int) for e in ends):
            return IntDistribution(spec["low"], spec["high"], bool(spec.get("log")), spec.get("step") or 1)
        return FloatDistribution(
            float(spec["low"]), float(spec["high"]), bool(spec.get("log")), spec.get("step")
        )
    except ValueError as error:
        raise UserError(f"search.{key}: {error}") from error
