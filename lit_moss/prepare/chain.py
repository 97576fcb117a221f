"""A chain of steps, each of which reads the output of earlier steps.

    out/
      vad/         manifest.jsonl  rejected.jsonl  stage.json
      transcribe/  …
      interleave/  interleaved/  unsupervised/     folders of token documents
      statistics.md

Repeating the call after a kill continues the chain; after it is complete, it only reports the result again.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from lit_moss.corpora.questions import QUESTIONS, questions_file
from lit_moss.errors import UserError, without_secrets
from lit_moss.prepare.engine import MANIFEST, REJECTED, run_step
from lit_moss.prepare.registry import STAGES, stage_class
from lit_moss.prepare.statistics import record, statistics_table
from lit_moss.prepare.step import Machine, Step, StepResult
from lit_moss.prepare.storage import Storage, absolute, is_remote, refusals_to_write

_OF_A_STEP = ("stage", "input")  # keys of a step that are not options of its stage


@dataclass
class Chain:
    """Options of `prepare -c FILE`.

    Args:
        out: Folder of all steps: a path, or an address that fsspec opens (s3://…).
        steps: Name of a step -> options of its stage. `stage: NAME` if the step has another name than its
            stage; `input: [NAME, …]` if it reads other steps than the previous one, or files.
        sources: Input of the first step: sound files, folders, manifests, texts.
        name: MLflow experiment.
        root: If given, sound files in manifests must be below this folder.
        source_name: Name of the corpus, stored as `source` in items without one; for the report.
        licence: Licence of the corpus, stored as `licence` in items without one.
        max_bad_share: Fraction of unreadable items, 0 to 1, above which a step fails.
        track: Record statistics in MLflow.
        workers: Number of processes, each with the stage's models; with Ray, of actors. It does not affect
            results.
        engine: `local`, or `ray` (extra `scale`).
        shard_items: Number of items per shard; null: a 64th of all, 16 to 1024.
        ray_address: Address of the Ray cluster; null: starts Ray on this machine.
        ray_gpus: Number of GPUs per actor.
        ray_memory_gb: Memory that Ray reserves per actor, in GB; null: none.
    """

    out: str
    steps: dict[str, Any]
    sources: list[str] = field(default_factory=list)
    name: str = "prepare"
    root: str | None = None
    source_name: str | None = None
    licence: str | None = None
    max_bad_share: float = 0.01
    track: bool = True
    workers: int = 1
    engine: Literal["local", "ray"] = "local"
    shard_items: int | None = None
    ray_address: str | None = None
    ray_gpus: float = 0.0
    ray_memory_gb: float | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or (self.shard_items is not None and self.shard_items < 1):
            raise UserError(
                f"workers is {self.workers} and shard_items {self.shard_items}, expected 1 or more"
            )
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share is {self.max_bad_share}, expected 0 to 1")

    @property
    def stated(self) -> tuple[tuple[str, str], ...]:
        """Keys to add to items that lack them."""
        keys = {"source": self.source_name, "licence": self.licence}
        return tuple((key, value) for key, value in keys.items() if value is not None)

    @property
    def machine(self) -> Machine:
        """The settings of where and how steps are run."""
        return Machine(**{f.name: getattr(self, f.name) for f in fields(Machine)})


def run_chain(chain: Chain) -> list[StepResult]:
    """Runs all steps that are not complete yet; prints and records their results.

    Raises:
        UserError: if a step or option is invalid, before anything is run; and as in `run_step`.
    """
    out, steps = _out(chain), chain_steps(chain)
    for step in steps:
        step.build()  # reports wrong options now, not after hours
    results: list[StepResult] = []
    for step in steps:
        results.append(_run(step, chain))
        print(statistics_table(results[-1:], header=len(results) == 1), flush=True)
    with refusals_to_write("statistics.md", out):
        Storage(out).write("statistics.md", _statistics(results).encode())
    if chain.track:
        record(chain.name, out, _settings(chain, steps), results)
    return results


def run_alone(stage: str, options: Any, chain: Chain) -> StepResult:
    """Runs a single stage; its files are directly in `chain.out`.

    Raises:
        UserError: as in `run_step`.
    """
    out = _out(chain)
    sources = tuple(_source(s) for s in chain.sources)
    step = Step(stage, stage, options, sources, out, out, _root(chain), chain.max_bad_share, chain.stated)
    result = _run(step, chain)
    print(statistics_table([result]), flush=True)
    if chain.track:
        record(chain.name, out, {stage: asdict(options)}, [result])
    return result


def _run(step: Step, chain: Chain) -> StepResult:
    result = run_step(step, chain.machine)
    if not result.counts.items_in and stage_class(step.stage).reads == "previous":
        raise UserError(
            f"step {step.name}: no items in {', '.join(step.sources)}: what an earlier step has left out is "
            f"in {REJECTED} beside its manifest"
        )
    return result


def chain_steps(chain: Chain) -> list[Step]:
    """The steps of a chain in order.

    Raises:
        UserError: if a stage, input or option does not exist.
    """
    out = _out(chain)
    steps: list[Step] = []
    nested = _nested(chain.steps)
    for name, content in nested.items():
        stage = content.get("stage", name)
        if not isinstance(stage, str):
            raise UserError(f"step {name}: stage is {stage!r}, expected one of {', '.join(STAGES)}")
        options = step_options(name, stage, {k: v for k, v in content.items() if k not in _OF_A_STEP})
        later = nested.keys() - {step.name for step in steps}
        sources = _inputs(chain, steps, later, name, stage, content.get("input"))
        folder = absolute(name, out)
        steps.append(
            Step(name, stage, options, sources, folder, out, _root(chain), chain.max_bad_share, chain.stated)
        )
    if not steps:
        raise UserError(f"no steps: expected some of {', '.join(STAGES)}")
    return steps


def step_options(name: str, stage: str, content: Mapping[str, Any]) -> Any:
    """An instance of the stage's `Options`.

    Raises:
        UserError: if an option does not exist, or a value has the wrong type.
    """
    options = stage_class(stage).Options
    known = [f.name for f in fields(options)]
    if wrong := sorted(set(content) - set(known)):
        raise UserError(f"step {name} has no option {', '.join(wrong)}, expected some of {', '.join(known)}")
    try:
        return TypeAdapter(options).validate_python(dict(content))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        shown = without_secrets(repr(first["input"]))
        raise UserError(f"step {name}: {key} is {shown}: {first['msg']}") from error


def _nested(steps: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Steps with their options; `vad.threshold: 0.4` is an option of the step `vad`."""
    nested: dict[str, dict[str, Any]] = {}
    for key, content in steps.items():
        name, _, option = str(key).partition(".")
        if not isinstance(key, str) or not name or "/" in key:
            raise UserError(
                f"a step is named {key!r}, expected a name for a folder, such as that of its stage"
            )
        if option:
            if name not in nested:
                raise UserError(
                    f"{key}: no step {name!r}, expected one of those before it: {', '.join(nested) or 'none'}"
                )
            nested[name][option] = content
        elif content is None or isinstance(content, dict):
            nested[key] = dict(content or {})
        else:
            raise UserError(f"step {key} is {content!r}, expected its options {{key: value, …}}")
    return nested


def _inputs(
    chain: Chain,
    before: Sequence[Step],
    later: Set[str],
    name: str,
    stage: str,
    given: str | list[str] | None,
) -> tuple[str, ...]:
    """The inputs of a step; `later` contains the step itself and all steps after it."""
    manifest_of = {step.name: absolute(MANIFEST, step.folder) for step in before}
    if given is None:
        if stage_class(stage).reads == "all" and before:
            return tuple(manifest_of.values())
        if not before:
            return tuple(_source(source) for source in chain.sources)
        return (manifest_of[before[-1].name],)
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not inputs or not all(isinstance(i, str) for i in inputs):
        raise UserError(f"step {name}: input is {given!r}, expected names of steps, or files")
    sources: list[str] = []
    for source in inputs:
        if source == "sources":
            sources += map(_source, chain.sources)
        elif source in later:
            raise UserError(
                f"step {name}: input {source} is not before it, expected an earlier step or a file"
            )
        else:
            sources.append(manifest_of.get(source) or _source(source))
    return tuple(sources)


def _source(source: str) -> str:
    """The absolute path of a source, if it is a local file or folder.

    Raises:
        UserError: as in `_check_address`.
    """
    _check_address("a source", source)
    if source == QUESTIONS:
        return str(questions_file())
    if ":" in source and not Path(source).exists():
        return source  # an address, or the name of an embedded corpus
    return absolute(source, ".")


def _check_address(what: str, address: str) -> None:
    """Rejects addresses with passwords, because addresses are stored in MLflow and manifests.

    Raises:
        UserError: if the address contains a password.
    """
    if is_remote(address) and "@" in address.partition("://")[2].partition("/")[0]:
        raise UserError(
            f"{what} is {without_secrets(address)}, with a user or password: expected an address without, "
            "and the credentials where the store's library reads them, such as the environment"
        )


def _out(chain: Chain) -> str:
    _check_address("out", chain.out)
    out = absolute(chain.out, ".")
    if not is_remote(out):
        existing = next(path for path in (Path(out), *Path(out).parents) if path.exists())
        if not existing.is_dir():
            raise UserError(f"out is {chain.out!r} and {existing} is a file: expected a folder")
    return out


def _root(chain: Chain) -> str | None:
    if chain.root is None:
        return None
    root = absolute(chain.root, ".")
    if not is_remote(root) and not Path(root).is_dir():
        raise UserError(f"root is {chain.root!r}, which is no folder: expected the folder of the sound files")
    return root


def _settings(chain: Chain, steps: Sequence[Step]) -> dict[str, Any]:
    return {
        "sources": chain.sources,
        **{step.name: {"stage": step.stage, **asdict(step.options)} for step in steps},
    }


def _statistics(results: Sequence[StepResult]) -> str:
    rejected = [
        f"| {r.step} | {reason} | {n} |" for r in results for reason, n in sorted(r.counts.rejected.items())
    ]
    # Without times, so that the file is the same however often the chain was interrupted.
    lines = ["# What was prepared", "", statistics_table(results, times=False), ""]
    if rejected:
        lines += ["| step | rejected because of | items |", "|---|---|---|", *rejected, ""]
    return "\n".join(lines)
