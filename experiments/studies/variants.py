"""Compares variants of a recipe: the same data and number of steps, with some keys changed.

    python -m experiments.studies.variants -c conf/studies/listening.yaml [--KEY VALUE …]

    variants   plain: {}                                      one run for each variant and seed
               text: {model.init_args.init_codes: text}
    after      aligned: first_layers                          `aligned` starts from that variant's weights
    evaluate   resynthesis: conf/talk/resynthesis.yaml        a benchmark of each run

Repeat the command to continue after an interruption. Writes variants.md and variants.png, with the metrics at
every validation, to RUN_ROOT/studies/NAME/study/variants, and to the study's MLflow run.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from experiments.studies.command import run_study
from experiments.studies.compare import Curve, curves, picture, spread
from experiments.studies.evaluations import run_benchmark
from experiments.studies.parallel import run_all
from lit_moss.errors import UserError
from lit_moss.evaluate.evaluation import markdown_table
from lit_moss.files import atomic_write
from lit_moss.runs.folder import Result, RunFolder
from lit_moss.runs.launch import run_fit
from lit_moss.runs.mlflow_access import open_client
from lit_moss.runs.recipes import read_recipe, read_yaml, set_key
from lit_moss.runs.study_run import study_run
from lit_moss.runs.tracking import Tracker


@dataclass
class Options:
    """Options of the study.

    Args:
        name: Name of the study, and of the MLflow experiment of its runs.
        recipe: YAML files of the recipe, merged from left to right as by `fit -c`.
        variants: Name -> keys of the recipe that the variant changes; {}: none.
        metrics: Metrics of the fits that are compared; the first four are plotted.
        set: Keys that are changed in all variants; a variant's own value of a key takes precedence.
        recipes: Variant -> YAML files of its recipe, if it is not based on `recipe`.
        after: Variant -> variant whose latest weights it starts from (`model.init_from`).
        evaluate: Benchmark -> YAML file of `evaluate`; run on each variant that no other variant starts from.
        evaluated_as: Key of these YAML files that is set to the folder of the run: `model`, `codec` or
            `tokenizer`.
        evaluate_set: Keys of these YAML files that are changed.
        results: Metrics of the benchmarks that are compared, as BENCHMARK/METRIC.
        seeds: Seeds; each variant is run once per seed.
        jobs: Maximum number of concurrent runs.
        threads: Number of threads of each run; null: default of torch.
        run_root: Folder of all runs' files.
    """

    name: str
    recipe: list[str]
    variants: dict[str, dict[str, Any]]
    metrics: list[str]
    set: dict[str, Any] = field(default_factory=dict)
    recipes: dict[str, list[str]] = field(default_factory=dict)
    after: dict[str, str] = field(default_factory=dict)
    evaluate: dict[str, str] = field(default_factory=dict)
    evaluated_as: str = "model"
    evaluate_set: dict[str, Any] = field(default_factory=dict)
    results: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [1])
    jobs: int = 1
    threads: int | None = None
    run_root: str = "runs"

    def __post_init__(self) -> None:
        if not self.variants or not self.seeds or not self.metrics or self.jobs < 1:
            raise UserError(
                "variants, seeds and metrics need one entry or more, and jobs 1 or more; got "
                f"{len(self.variants)}, {len(self.seeds)}, {len(self.metrics)} and {self.jobs}"
            )
        named = {*self.recipes, *self.after, *self.after.values()}
        if unknown := sorted(named - self.variants.keys()):
            raise UserError(
                f"recipes and after name {unknown}, expected variants: {', '.join(self.variants)}"
            )
        for name in self.variants:
            seen = [name]
            while (before := self.after.get(seen[-1])) is not None:
                if before in seen:
                    raise UserError(f"after: {before} starts from itself ({' after '.join([*seen, before])})")
                seen.append(before)

    @property
    def ordered(self) -> list[str]:
        """Variants, each after the one it starts from."""
        order: list[str] = []

        def add(name: str) -> None:
            if name in self.after:
                add(self.after[name])
            if name not in order:
                order.append(name)

        for name in self.variants:
            add(name)
        return order

    def folder(self, variant: str, seed: int) -> Path:
        """Folder of a run."""
        return Path(self.run_root).absolute() / self.name / f"{variant.replace('_', '-')}-seed-{seed}"

    def recipe_of(self, variant: str, seed: int) -> dict[str, Any]:
        """Builds the recipe of a run."""
        config = read_recipe(self.recipes.get(variant, self.recipe))
        config["seed_everything"] = seed
        changes = self.set | self.variants[variant]  # the variant's own value takes precedence
        for key in sorted(changes, key=lambda key: key.count(".")):  # `data` before the keys in it
            set_key(config, key, changes[key])
        if variant in self.after:
            set_key(config, "model.init_args.init_from", str(self.folder(self.after[variant], seed)))
        return config


@dataclass
class Run:
    """Results of a run.

    Args:
        result: Result of the fit.
        measured: Metrics of its benchmarks, as BENCHMARK/METRIC.
    """

    result: Result
    measured: dict[str, Any]


def main(words: Sequence[str]) -> int:
    """Runs what is missing and prints the tables; returns 2 for user errors, 1 if a run failed."""
    return run_study(words, Options, "python -m experiments.studies.variants", __doc__, _run)


def _run(options: Options) -> str:
    for name in options.variants:  # to find mistakes before the first run
        options.recipe_of(name, options.seeds[0])
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    study = study_run(options.name, Path(options.run_root).absolute())
    state = "interrupted"
    try:
        runs = _all(options, {"mlflow.parentRunId": str(study.run_id)})
        text = _report(options, runs, study)
        state = "success"
    finally:
        study.finalize(state)
    return text + f"{study.run_dir}/variants: variants.md, variants.png"


def _all(options: Options, tags: Mapping[str, str]) -> dict[tuple[str, int], Run]:
    keys = [(name, seed) for seed in options.seeds for name in options.ordered]
    runs = {key: partial(_one, options, *key, tags) for key in keys}
    after = {key: (options.after[key[0]], key[1]) for key in keys if key[0] in options.after}
    return run_all(runs, after, options.jobs)


def _one(options: Options, name: str, seed: int, tags: Mapping[str, str]) -> Run:
    folder = options.folder(name, seed)
    print(f"{folder.name}", flush=True)
    own = {**tags, "variant": name, "seed": str(seed)}
    if name in options.after:
        _check_start(folder, options.folder(options.after[name], seed))
    result = run_fit(options.recipe_of(name, seed), folder, own)
    measured: dict[str, Any] = {}
    for benchmark, file in options.evaluate.items() if name not in options.after.values() else ():
        recipe = read_yaml(file) | options.evaluate_set | {options.evaluated_as: str(folder)}
        found = run_benchmark(
            benchmark, recipe, folder / f"{benchmark}.yaml", folder / f"{benchmark}.log",
            folder / "evaluations" / benchmark, (options.name, options.run_root), own,
        )  # fmt: skip
        measured |= {f"{benchmark}/{key}": value for key, value in found.items()}
    return Run(result, measured)


def _check_start(folder: Path, start: Path) -> None:
    """Raises an error if a run began from other weights than `start` has now; records the step otherwise."""
    result = RunFolder(start).result()
    step, record = result["step"] if result else None, folder / "started_from.json"
    begun = json.loads(record.read_text())["step"] if record.exists() else step
    if begun != step:
        raise UserError(
            f"{folder} was begun from step {begun} of {start}, which is at step {step} now: give another "
            "name, or remove the folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(record) as partial:
        partial.write_text(json.dumps({"run": start.name, "step": step}))


def _report(options: Options, runs: Mapping[tuple[str, int], Run], study: Tracker) -> str:
    client = open_client()
    points = {
        key: curves(client, client.get_run(str(run.result["run_id"])), options.metrics)
        for key, run in runs.items()
    }
    text = tables(options, runs, points)
    out = study.run_dir / "variants"
    out.mkdir(exist_ok=True)
    (out / "variants.md").write_text(text, encoding="utf-8")
    seeds = options.seeds
    drawn = {
        name if len(seeds) == 1 else f"{name}, seed {seed}": points[name, seed]
        for name in options.variants
        for seed in seeds
    }
    picture(drawn, options.metrics[:4], out / "variants.png")
    study.log_folder(out, "variants")
    return text


def tables(
    options: Options,
    runs: Mapping[tuple[str, int], Run],
    points: Mapping[tuple[str, int], Mapping[str, Curve]],
) -> str:
    """Markdown tables: last values of each variant, then each metric of the fits at every validation.

    Args:
        options: Options of the study.
        runs: (variant, seed) -> run.
        points: (variant, seed) -> metric -> curve.
    """
    last = []
    for name in options.variants:
        own = [runs[name, seed] for seed in options.seeds]
        row: dict[str, Any] = {"variant": name, "steps": own[0].result["step"]}
        for metric in options.metrics:
            row[metric] = spread([run.result["metrics"].get(metric) for run in own])
        for metric in options.results:
            row[metric] = spread([run.measured.get(metric) for run in own])
        last.append(row)
    parts = [f"Mean ± standard deviation of {len(options.seeds)} seeds.\n" * (len(options.seeds) > 1)]
    parts.append(markdown_table(last))
    for metric in options.metrics:
        found = [dict(of[metric]) for of in points.values()]
        steps = sorted({step for curve in found for step in curve})
        rows: list[dict[str, str]] = []
        for name in options.variants:
            of_seeds = [dict(points[name, seed][metric]) for seed in options.seeds]
            rows.append(
                {metric: name} | {str(s): spread([curve.get(s) for curve in of_seeds]) for s in steps}
            )
        if len(steps) > 1:
            parts.append(markdown_table(rows))
    return "\n".join(part for part in parts if part)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
