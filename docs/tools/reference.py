"""Pages of the configuration reference, made from signatures and docstrings while the site is built.

A hook of mkdocs (`hooks: [docs/tools/reference.py]`): the pages are never written to disk, so they cannot be
out of date. Needs the package, but neither a network nor a GPU. To look at the pages without a site:

    python docs/tools/reference.py FOLDER
"""

import argparse
import dataclasses
import importlib
import inspect
import re
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import docstring_parser

UNITS = {
    "sec": "seconds", "hz": "Hz", "steps": "steps", "step": "step", "batches": "batches",
    "batch": "batch number", "samples": "samples", "frames": "frames", "share": "share, 0 to 1",
    "bins": "mel bins", "tokens": "rows", "codes": "codes", "tflops": "TFLOP/s",
}  # fmt: skip
# Parameters whose unit their names do not say.
NAMED_UNITS = {
    "context": "rows", "k": "steps", "w": "steps", "floor": "share of the peak", "epochs": "epochs a round",
}  # fmt: skip


@dataclass(frozen=True)
class Key:
    """One key of a YAML file, or one option.

    Args:
        name: As it is written.
        kind: Its type, in words.
        default: As it is written in YAML; empty where a value must be given.
        unit: Empty where it has none.
        meaning: One line.
        owner: The dataclass that its value may be, if any.
    """

    name: str
    kind: str
    default: str
    unit: str
    meaning: str
    owner: type | None = None


# --- classes ------------------------------------------------------------------------------------------------


def keys_of(cls: type) -> list[Key]:
    """Parameters of a class; those behind `**kwargs` are the ones of the next class that has them by name."""
    found: dict[str, Key] = {}
    for base in cls.__mro__[:-1]:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        # A dataclass takes the fields of those it extends; each documents its own.
        documented = reversed(base.__mro__[:-1]) if dataclasses.is_dataclass(base) else [base]
        meanings = {name: line for owner in documented for name, line in _meanings(owner).items()}
        for parameter in parameters:
            named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if not named or parameter.name in found:
                continue
            default = parameter.default
            if dataclasses.is_dataclass(base):
                default = next(_default(f) for f in dataclasses.fields(base) if f.name == parameter.name)
            found[parameter.name] = Key(
                parameter.name, kind_of(parameter.annotation), value_of(default), unit_of(parameter.name),
                meanings.get(parameter.name, ""), _dataclass_in(parameter.annotation),
            )  # fmt: skip
        if all(p.kind != p.VAR_KEYWORD for p in parameters):
            break
    return list(found.values())


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    missing = field.default is dataclasses.MISSING or field.default == "???"  # OmegaConf's MISSING
    return inspect.Parameter.empty if missing else field.default


def _meanings(cls: type) -> dict[str, str]:
    """Parameter -> its line in the docstring."""
    doc = docstring_parser.parse(cls.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    return {p.arg_name: " ".join((p.description or "").split()) for p in doc.params}


def kind_of(annotation: Any) -> str:
    """A type in words: `str or None`, `"min" or "max"`."""
    if annotation in (inspect.Parameter.empty, Any):
        return "any"
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " or ".join(f'"{a}"' if isinstance(a, str) else str(a) for a in args)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(kind_of, args)))
    if annotation is type(None):
        return "null"
    if origin is not None and args:
        return f"{getattr(origin, '__name__', origin)}[{', '.join(map(kind_of, args))}]"
    return getattr(annotation, "__name__", str(annotation))


def value_of(default: Any) -> str:
    """A default as YAML writes it; empty for none."""
    if default is inspect.Parameter.empty:
        return ""
    if default is None:
        return "null"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, list | tuple):
        return f"[{', '.join(map(value_of, default))}]"
    return f"{default:g}" if isinstance(default, float) and 0 < default < 1e-2 else str(default)


def unit_of(name: str) -> str:
    """By the last word of the name."""
    return NAMED_UNITS.get(name) or (UNITS.get(name.rsplit("_", 1)[-1], "") if "_" in name else "")


def _dataclass_in(annotation: Any) -> type | None:
    options = typing.get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and dataclasses.is_dataclass(o)), None)


# --- pages --------------------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Text for a cell of a table."""
    return text.replace("<", "&lt;").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def table(keys: Sequence[Key], prefix: str = "") -> str:
    """Markdown table of keys."""
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key in keys:
        default = f"`{key.default}`" if key.default else "required"
        kind = f"{key.kind} ({key.unit})" if key.unit else key.kind
        cells = [f"`{prefix}{key.name}`", escaped(kind), escaped(default), escaped(key.meaning)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def section(cls: type, path: str, prefix: str, level: int = 2) -> Iterator[str]:
    """Heading, first paragraph of the docstring, table; then the dataclasses that its keys hold."""
    doc = docstring_parser.parse(cls.__doc__ or "", docstring_parser.DocstringStyle.GOOGLE)
    yield f"{'#' * level} {cls.__name__}"
    yield f"`class_path: {path}`" if path else ""
    yield "\n\n".join(x for x in (doc.short_description, doc.long_description) if x)
    keys = keys_of(cls)
    yield table(keys, prefix) if keys else "It has no keys."
    for key in keys:
        if key.owner is not None:
            yield from section(key.owner, "", f"{prefix}{key.name}.", level + 1)


def page(title: str, head: str, parts: Iterator[str]) -> str:
    """A whole page."""
    return "\n\n".join(x for x in (f"# {title}", head, *parts) if x) + "\n"


def exported(package: str, base: type) -> list[tuple[str, type]]:
    """`package.NAME` and class of every exported subclass of `base`."""
    module = importlib.import_module(package)
    classes = [(f"{package}.{name}", getattr(module, name)) for name in sorted(module.__all__)]
    return [(path, cls) for path, cls in classes if isinstance(cls, type) and issubclass(cls, base)]


def verb_pages() -> Iterator[str]:
    """Options of every verb that LightningCLI does not parse."""
    from lit_moss.cli import main as command_line

    for verb, text in command_line.TRAINER_VERBS.items():
        yield f"## {verb}"
        yield text[0].upper() + text[1:] + "."
        options = f"```text\n{command_line._trainer_help(verb)}\n```"
        yield options if verb == "fit" else "Options as for `fit`."
    for verb, (path, text) in command_line.VERBS.items():
        module = importlib.import_module(path)
        yield f"## {verb}"
        yield text[0].upper() + text[1:] + "."
        yield f"```text\n{(module.__doc__ or '').strip()}\n```"
        if verb == "prepare":
            yield "Keys of chains and their stages are in [Data preparation](prepare.md). Other stages:"
        if "add_arguments" in vars(module):
            parser = argparse.ArgumentParser(prog=f"python -m lit_moss {verb}")
            module.add_arguments(parser)
            yield from parser_tables(parser)
        else:
            yield "Its keys are listed in [Sweeps and benchmarks](studies.md)."


def parser_tables(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Table of a parser's options; its subcommands each with their own."""
    keys = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, stage in action.choices.items():
                yield f"### {parser.prog.rsplit(' ', 1)[-1]} {name}"
                yield f"```text\n{(stage.description or '').strip()}\n```" if stage.description else ""
                yield from parser_tables(stage)
        elif not isinstance(action, argparse._HelpAction):
            keys.append(_option(action))
    if keys:
        yield table(keys)


def _option(action: argparse.Action) -> Key:
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if action.nargs == 0:
        kind, default = "switch", "off"
    else:
        kind = " or ".join(map(str, action.choices)) if action.choices else kind_of(action.type or str)
        kind += ", several" if action.nargs in ("*", "+") else ""
        default = "" if action.required or not action.option_strings else value_of(action.default)
    default = "none" if default in ("null", "[]") else default
    return Key(name, kind, default, "", (action.help or "").replace("%(default)s", default))


def stage_sections() -> Iterator[str]:
    """Keys of a chain, then those of every stage."""
    from lit_moss.prepare.chain import Chain
    from lit_moss.prepare.registry import STAGES, stage_class

    yield from section(Chain, "", "")
    for name, (_, _, summary) in STAGES.items():
        stage = stage_class(name)
        yield f"## {name}"
        yield summary[0].upper() + summary[1:] + "."
        yield f"```text\n{(sys.modules[stage.__module__].__doc__ or '').strip()}\n```"
        keys = keys_of(stage.Options)
        yield table(keys) if keys else "It has no keys."


def benchmark_configs() -> dict[str, type]:
    """Benchmark -> the dataclass of its options."""
    from lit_moss.cli.evaluate import BENCHMARKS

    return {name: importlib.import_module(module).Config for name, module in BENCHMARKS.items()}


def benchmark_sections() -> Iterator[str]:
    """A section for each benchmark of `evaluate`."""
    for name, config in benchmark_configs().items():
        yield f"## evaluate {name}"
        yield f"```text\n{(sys.modules[config.__module__].__doc__ or '').strip()}\n```"
        yield table(keys_of(config))


def pages() -> dict[str, str]:
    """Name of each page, without folder and suffix -> Markdown."""
    from lightning.pytorch import Callback, LightningDataModule, LightningModule

    from lit_moss.sweep.config import Sweep

    def sections(package: str, base: type) -> Iterator[str]:
        for path, cls in exported(package, base):
            yield from section(cls, path, "")

    made_from = "This page is generated from signatures and docstrings."
    values = "Keys are those of `{0}.init_args`, on the command line `--{0}.init_args.KEY`. " + made_from
    return {
        "models": page("Models", values.format("model"), sections("lit_moss.modules", LightningModule)),
        "data": page("Data", values.format("data"), sections("lit_moss.data", LightningDataModule)),
        "callbacks": page(
            "Callbacks",
            "Entries of `trainer.callbacks`; keys are those of `init_args`. A sweep reaches them as "
            f"`trainer.callbacks.NAME.init_args.KEY`. {made_from}",
            sections("callbacks", Callback),
        ),
        "verbs": page("Command line", f"`python -m lit_moss VERB`. {made_from}", verb_pages()),
        "prepare": page(
            "Data preparation",
            "Keys of the YAML files of `prepare -c`, and of its stages, which are also options of "
            f"`prepare STAGE`. {made_from}",
            stage_sections(),
        ),
        "studies": page(
            "Sweeps and benchmarks",
            f"Keys of the YAML files of `sweep` and `evaluate`. {made_from}",
            chain(section(Sweep, "", ""), benchmark_sections()),
        ),
    }


# --- mkdocs -------------------------------------------------------------------------------------------------

PICTURES = "experiments/pictures"  # of results; pages refer to them as a reader of the repository would


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages, and the pictures of results, to the site; called by mkdocs."""
    from mkdocs.structure.files import File

    for name, text in pages().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    root = Path(config.config_file_path).parent
    for picture in sorted((root / PICTURES).glob("*.png")):
        files.append(File.generated(config, f"pictures/results/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Where the pictures of results are in the site; called by mkdocs."""
    return markdown.replace(f"../{PICTURES}/", "pictures/results/")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (folder / f"{name}.md").write_text(re.sub(r"\n{3,}", "\n\n", text), encoding="utf-8")
