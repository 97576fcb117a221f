"""Stages and chains of stages, whose options are those of the stage classes."""

import inspect
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, field, fields, make_dataclass
from typing import Any, get_type_hints

from lit_moss.prepare.registry import stage_class

_WITHOUT_VALUE = ("-h", "--help", "--print_config")


def run_chain_of(words: Sequence[str]) -> None:
    """Runs `prepare -c FILE [SOURCE …] [--KEY VALUE …]`.

    Raises:
        UserError: for mistakes of the user.
    """
    from lit_moss.cli.yaml_options import OptionsParser
    from lit_moss.prepare.chain import Chain, run_chain

    parser = OptionsParser(Chain, "python -m lit_moss prepare", Chain.__doc__)
    parser.usage = "python -m lit_moss prepare -c FILE [SOURCE …] [--KEY VALUE …]"
    chain, _ = parser.read(_with_sources(words))
    with _stopped_by_sigterm():
        run_chain(chain)


def run_stage(name: str, words: Sequence[str]) -> None:
    """Runs `prepare STAGE SOURCE … --out DIR [--KEY VALUE …]`.

    Raises:
        UserError: for mistakes of the user.
    """
    from lit_moss.cli.yaml_options import OptionsParser
    from lit_moss.prepare.chain import Chain, run_alone

    stage = stage_class(name)
    both = _joined(stage.Options, Chain)
    module = sys.modules[stage.__module__]
    command = f"python -m lit_moss prepare {name}"
    parser = OptionsParser(both, command, module.__doc__)
    parser.usage = f"{command} SOURCE … --out DIR [--KEY VALUE …] [-c FILE]"
    values, _ = parser.read(_with_sources(words))
    given = vars(values)
    options = stage.Options(**{f.name: given[f.name] for f in fields(stage.Options)})
    shared = {f.name: given[f.name] for f in fields(Chain) if f.name != "steps"}
    with _stopped_by_sigterm():
        run_alone(name, options, Chain(**shared, steps={}))


@contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """On SIGTERM (from a job scheduler), ends workers and the MLflow run as after an error; exit code 143."""

    def stop(number: int, _: object) -> None:
        print("stopped by SIGTERM: what is done stays, the same call goes on", file=sys.stderr)
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _with_sources(words: Sequence[str]) -> list[str]:
    """Treats words that are neither options nor values as sources: `-c FILE a.wav b.wav --out DIR`."""
    sources, rest, left = [], [], list(words)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            sources.append(word)
            continue
        rest.append(word)
        if "=" not in word and word not in _WITHOUT_VALUE and left:
            rest.append(left.pop(0))
    return [*rest, "--sources", json.dumps(sources)] if sources else rest


def _joined(options: type, chain: type) -> type:
    """A dataclass with the options of a stage and those common to all steps."""
    own = {f.name for f in fields(options)}
    shared = [f for f in fields(chain) if f.name != "steps"]
    if both := own & {f.name for f in shared}:
        raise AssertionError(f"{options} has options of all stages: {sorted(both)}")
    types = get_type_hints(chain) | get_type_hints(options)
    required, optional = [], []
    for f in [*shared, *fields(options)]:
        default: dict[str, Any] = {}
        if f.default is not MISSING:
            default["default"] = f.default
        elif f.default_factory is not MISSING:
            default["default_factory"] = f.default_factory
        (optional if default else required).append((f.name, types[f.name], field(**default)))
    joined = make_dataclass("Options", [*required, *optional])
    joined.__doc__ = f"Options.\n\nArgs:\n{_help(chain, {'steps'})}{_help(options, set())}"
    return joined


def _help(options: type, without: set[str]) -> str:
    """The lines below `Args:` of a docstring, indented by four spaces."""
    lines = inspect.cleandoc(options.__doc__ or "").partition("Args:\n")[2].splitlines()
    kept, skipping = [], False
    for line in lines:
        if not line.strip():
            break
        if not line.startswith("     "):
            skipping = line.strip().partition(":")[0] in without
        if not skipping:
            kept.append(line)
    return "".join(line + "\n" for line in kept)
