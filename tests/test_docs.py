"""Commands of the documentation: all of them are run, or, where a block's title says what it needs, parsed.

A page's fenced blocks, in order:

    ```bash                         run, at a small size, in a folder of the page (the tutorial has one)
    ```bash title="needs a GPU"     parsed alone: options, recipes and their keys, targets, extras
    ```yaml title="data/x.yaml"     written to that file; so is ```text with such a title
    ```python                       parsed; what it imports must exist
    ```python title="x.py"          and written to that file
"""

import argparse
import ast
import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, is_dataclass
from pathlib import Path
from typing import Any

import launch
import pytest
import yaml
from lm_recipe import backbone_folder

from lit_moss.cli import main as cli
from lit_moss.cli.prepare import _is_text_to_speak as is_text_to_speak
from lit_moss.cli.prepare.stages import _with_sources as with_sources
from lit_moss.cli.yaml_options import OptionsParser
from lit_moss.prepare import registry
from lit_moss.prepare.chain import Chain, chain_steps

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
TUTORIAL = [page for page in PAGES if page.parent.name == "tutorial"]
# How the title of a block begins that is not run.
REASON = re.compile(r"needs |starts a server|job\.sh, needs ")
FENCE = re.compile(
    r"^(?P<indent> *)```(?:\{ \.)?(?P<language>[\w-]*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```",
    re.MULTILINE | re.DOTALL,
)
COMMAND = re.compile(r"^(?:\w+=\S+ )*(?:make|python|mlflow|pip) ")
# Lines that are left of what a page's commands make.
KEPT = {
    "data/everyday/train.jsonl": 16,
    "data/everyday/validation.jsonl": 6,
    "data/text.txt": 60,
    "data/codes.jsonl": 2,
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    title: str
    body: str

    @property
    def commands(self) -> list[str]:
        """Logical lines, without comments and empty ones."""
        lines = self.body.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def blocks(page: Path) -> list[Block]:
    found = []
    for fence in FENCE.finditer(page.read_text()):
        indent = len(fence["indent"])
        body = "".join(line[indent:] for line in fence["body"].splitlines(keepends=True))
        title = re.search(r'title="([^"]*)"', fence["rest"])
        found.append(Block(fence["language"], title[1] if title else "", body))
    return found


def is_run(block: Block) -> bool:
    return block.language == "bash" and not block.title


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# --- parsed -------------------------------------------------------------------------------------------------


def not_run(page: Path) -> Iterator[str]:
    """Commands that are parsed alone. The README's blocks have no titles, and some of them are output."""
    for block in blocks(page):
        if page.name == "README.md":
            yield from (c for c in block.commands if block.language in ("", "bash") and COMMAND.match(c))
        elif block.language == "bash" and block.title:
            yield from block.commands


@pytest.mark.slow
@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=name_of)
def test_commands_that_are_not_run_parse(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    for command in not_run(page):
        code = 0
        try:
            code = check(shlex.split(command, comments=True))
        except SystemExit as end:
            code = end.code
        except Exception as error:
            raise AssertionError(f"{name_of(page)}: {command}") from error
        printed = capsys.readouterr()
        assert not code, f"{name_of(page)}: {command}\n{printed.err}"


def check(words: list[str]) -> int:
    """Exit code of a command's parser; raises if what the command names does not exist."""
    while words and re.fullmatch(r"\w+=.*", words[0]):  # variables
        words = words[1:]
    if words[0] == "make":
        target = words[1].replace(".venv", "$(VENV)")
        assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"no target {words[1]}"
    elif "lit_moss" in words:
        return check_verb([word.removeprefix("/app/") for word in words[words.index("lit_moss") + 1 :]])
    elif words[:2] == ["python", "-m"]:
        check_program(words[2], words[3:])
    elif words[0] == "pip":
        listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        extras = {
            extra for word in words for found in re.findall(r"\[(.*)\]", word) for extra in found.split(",")
        }
        assert extras <= set(listed), extras
    return 0


class ParsedError(Exception):
    """Ends a program behind its command line."""


def check_program(module: str, words: list[str]) -> None:
    """Raises or exits if a study or a bench does not take these options."""
    options = getattr(importlib.import_module(module), "Options", None)
    if is_dataclass(options):
        OptionsParser(options, module).read(words)
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise ParsedError

    sys.modules.pop(module)  # runpy warns of a program that is imported
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(argparse.ArgumentParser, "parse_args", parse_only)
        patched.setattr(sys, "argv", [module, *words])
        with pytest.raises(ParsedError):
            runpy.run_module(module, run_name="__main__")


def check_verb(words: list[str]) -> int:
    if not words or words[0].startswith("-") or words == ["."]:
        return 0
    verb, rest = words[0], words[1:]
    of_chains = verb == "prepare" and (rest[0].startswith("-") or rest[0] in registry.STAGES)
    if of_chains and not is_text_to_speak(rest):
        if "-c" in rest:
            check_chain(rest)
        return cli.main([verb, *rest, "--print_config"])
    if verb in {*cli.TRAINER_VERBS, *cli.YAML_VERBS} - {"prepare"}:
        return cli.main([verb, *rest, "--print_config"])
    module = importlib.import_module(cli.VERBS[verb][0])
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    parser.parse_args(rest)
    return 0


def check_chain(words: list[str]) -> None:
    """Raises if a step of `prepare -c FILE …` has an option that is not known."""
    chain, _ = OptionsParser(Chain, "prepare").read(with_sources(words))
    assert chain_steps(chain)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_run_or_says_what_it_needs(page):
    for block in blocks(page):
        assert block.language, f"a block without language, so nobody checks it: {block.body[:60]!r}"
        if block.language in ("bash", "sh", "shell", "console"):
            assert block.language == "bash", f"{block.language}: write bash"
            assert not block.title or REASON.match(block.title), block.title


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_of_the_docs_imports_what_exists(page):
    for block in blocks(page):
        if block.language != "python":
            continue
        for node in ast.walk(ast.parse(block.body)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                for alias in node.names:
                    if not hasattr(module, alias.name):
                        importlib.import_module(f"{node.module}.{alias.name}")
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    importlib.import_module(alias.name)


@pytest.mark.nightly
@pytest.mark.network
def test_the_readmes_python_runs():
    (block,) = (block for block in blocks(ROOT / "README.md") if block.language == "python")
    names: dict[str, Any] = {}
    exec(compile(block.body, "README.md", "exec"), names)
    assert names["codes"].shape == (13,)
    assert names["rows"].shape == (1, 15)
    assert float(names["loss"].total) > 0


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_named_in_the_docs_exist(page):
    for path in re.findall(r"`((?:lit_moss|callbacks|experiments|conf|tests)/[\w./-]*)`", page.read_text()):
        assert (ROOT / path).exists(), path


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Leaves tags of Python objects alone."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)
    listed: list[str] = []

    def gather(entry) -> None:
        if isinstance(entry, str):
            listed.append(entry)
        for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
            gather(part)

    gather(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    assert len(set(listed)) == len(listed)
    assert {str(page.relative_to(ROOT / "docs")) for page in PAGES} <= set(listed)


# --- run ----------------------------------------------------------------------------------------------------

# What makes a run small, by the class of its model; merged onto the recipe after all else.
SMALL = {
    "CodecEncoder": {
        "model": {"init_args": {"codebook_size": 64, "quantize_from_step": 1, "kmeans_batches": 1}},
        "data": {"init_args": {"batch_sec": 12, "validation_batch_sec": 12, "max_sec": 10, "workers": 0}},
    },
    "FlowDecoder": {
        "model": {"init_args": {"flow": {"vocab_size": 64}}},
        "data": {"init_args": {"batch_sec": 12, "validation_batch_sec": 12, "max_sec": 10, "workers": 0}},
    },
    "Vocoder": {
        "model": {"init_args": {"net": {"channels": 16, "inner": 32, "blocks": 2}}},
        "data": {"init_args": {"batch_sec": 1.6, "crop_sec": 0.4, "max_sec": 10, "workers": 0}},
    },
    "SplitLLM": {
        "model": {"init_args": {"num_modality_layers": 1}},
        "data": {"init_args": {"context": 384, "workers": 0}},
        "trainer": {"limit_val_batches": 2},
    },
}
# A state after every step, so that a later stage has one to start from.
STATES = [{"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 1, "keep": 1}}]
STEPS = 2


class Reader:
    """Follows pages in a folder, as their reader does, but with a small model and little data.

    Args:
        folder: Working folder; it gets `conf`.
        steps: Steps of a run; None keeps those of the command or its recipe.
    """

    def __init__(self, folder: Path, steps: int | None = STEPS) -> None:
        self.folder, self.steps = folder, steps
        (folder / "conf").symlink_to(ROOT / "conf")
        self.backbone = str(backbone_folder(folder / "backbone"))

    def follow(self, page: Path) -> None:
        for block in blocks(page):
            if block.title.startswith("data/") or (block.language == "python" and block.title):
                self.write(block)
            elif is_run(block):
                for command in block.commands:
                    self.run(command, name_of(page))

    def write(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.body)
        content = yaml.safe_load(block.body) if path.suffix == ".yaml" else None
        if content and "study" in content:
            content["base"].append(self.small("SplitLLM", False))
            content["set"] |= {"trainer.max_steps": 2, "trainer.val_check_interval": 1}
            content["trials"] = 1
            path.write_text(yaml.safe_dump(content))

    def small(self, kind: str, is_fit: bool) -> str:
        """A YAML for `-c`."""
        content = yaml.safe_load(yaml.safe_dump(SMALL[kind]))
        trainer = content.setdefault("trainer", {}) | {"precision": "32-true", "accelerator": "cpu"}
        if kind == "SplitLLM":
            content["model"]["init_args"]["backbone"] = self.backbone
            content["data"]["init_args"]["heldout_items"] = 2
        if is_fit and self.steps:
            trainer |= {"max_steps": self.steps, "val_check_interval": self.steps}
            if kind == "SplitLLM":
                trainer["callbacks+"] = STATES
        content["trainer"] = trainer
        path = self.folder / f"small_{kind}_{is_fit}.yaml"
        path.write_text(yaml.safe_dump(content))
        return path.name

    def smaller(self, words: list[str]) -> list[str]:
        """Options that are added to a verb's."""
        if words[0] in cli.TRAINER_VERBS and "-c" in words:
            recipe = yaml.safe_load((self.folder / words[words.index("-c") + 1]).read_text())
            kind = recipe["model"]["class_path"].rpartition(".")[2]
            if words[0] == "predict":  # whose data are prompts
                model = {"backbone": self.backbone, "num_modality_layers": "1", "max_new_tokens": "4"}
                options = [w for key, value in model.items() for w in (f"--model.init_args.{key}", value)]
                return [*options, "--trainer.precision", "32-true"]
            # Layer-wise unfreezing refuses a run that ends before all layers train.
            more = ["--trainer.max_steps", "16"] if "layerwise" in words[2] and self.steps else []
            return ["-c", self.small(kind, words[0] == "fit"), *more]
        if words[:2] == ["prepare", "documents"]:
            return ["--backbone", self.backbone]
        if words[:2] == ["prepare", "-c"]:
            steps = yaml.safe_load((self.folder / words[2]).read_text())["steps"]
            with_backbone = [name for name, options in steps.items() if "backbone" in (options or {})]
            return [w for name in with_backbone for w in (f"--steps.{name}.backbone", self.backbone)]
        if words[:2] == ["evaluate", "resynthesis"]:
            return ["--limit", "1", "--rungs", "[original, codec]"]
        return []

    def run(self, command: str, page: str) -> None:
        variables = {}
        words = shlex.split(command, comments=True)
        while re.fullmatch(r"\w+=\S*", words[0]):
            key, _, variables[key] = words.pop(0).partition("=")
        if words[:3] == ["python", "-m", "lit_moss"]:
            done = launch.run(self.folder, *words[3:], *self.smaller(words[3:]), **variables)
        elif words[:2] == ["python", "-m"]:
            script = ROOT / (words[2].replace(".", "/") + ".py")
            done = launch.start_script(self.folder, str(script), *words[3:]).wait()
        else:
            environment = os.environ | {
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
            }
            done = subprocess.run(["bash", "-c", command], cwd=self.folder, env=environment,
                                  capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}"
        for name, lines in KEPT.items():
            path = self.folder / name
            if path.exists():
                path.write_text("".join(path.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.nightly
@pytest.mark.network
def test_the_tutorial_runs_chapter_by_chapter(tmp_path):
    reader = Reader(tmp_path)
    for page in TUTORIAL:
        reader.follow(page)
    for file in ("data/replies/speech-to-speech.wav", "data/compare/compare.md", "runs/studies/rates/study"):
        assert (tmp_path / file).exists(), file


OTHERS = [page for page in PAGES if page not in TUTORIAL and any(map(is_run, blocks(page)))]


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.parametrize("page", OTHERS, ids=name_of)
def test_commands_of_a_page_run(page, tmp_path):
    # The page on resuming names checkpoints by their steps.
    Reader(tmp_path, None if page.name == "tracking.md" else STEPS).follow(page)
