"""Reference pages, drawings and names in the documentation are those of the code."""

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import typing
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "CONTRIBUTING.md"])
CODE = ("lit_moss", "callbacks", "experiments", "conf", "tests", "docs")


def tool(name):
    """A script of docs/tools, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def reference():
    return tool("reference")


def classes(reference):
    from lightning.pytorch import Callback, LightningDataModule, LightningModule

    return [
        cls
        for package, base in (
            ("lit_moss.modules", LightningModule),
            ("lit_moss.data", LightningDataModule),
            ("callbacks", Callback),
        )
        for _, cls in reference.exported(package, base)
    ]


def test_the_same_pages_come_out_twice(reference):
    pages = reference.pages()
    assert pages == reference.pages()
    assert set(pages) == {"models", "data", "callbacks", "verbs", "prepare", "studies"}


def test_the_keys_of_a_class_are_those_of_the_command_line(reference):
    from jsonargparse import ArgumentParser

    assert len(classes(reference)) >= 20
    for cls in classes(reference):
        parser = ArgumentParser()
        accepted = {name.split(".")[0] for name in parser.add_class_arguments(cls, as_group=False)}
        assert {key.name for key in reference.keys_of(cls)} == accepted, cls


def test_every_key_has_a_meaning(reference):
    from lit_moss.sweep.config import Sweep

    missing = [
        f"{cls.__module__}.{cls.__name__}.{key.name}"
        for cls in [*classes(reference), *reference.benchmark_configs().values(), Sweep]
        for key in reference.keys_of(cls)
        if not key.meaning
    ]
    assert not missing


def test_every_verb_and_stage_has_its_section(reference):
    from lit_moss.cli.main import TRAINER_VERBS, VERBS

    page = reference.pages()["verbs"]
    for verb in TRAINER_VERBS | VERBS:
        assert f"\n## {verb}\n" in page
    for stage in ("manifest", "documents", "speak", "kmeans-tokenizer", "everyday"):
        assert f"\n### prepare {stage}\n" in page


def test_types_and_defaults_as_they_are_written(reference):
    assert reference.kind_of(typing.Literal["min", "max"]) == '"min" or "max"'
    assert reference.kind_of(list[str] | None) == "list[str] or null"
    assert [reference.value_of(x) for x in (None, True, 4e-4, 0.0, ["a"], inspect.Parameter.empty)] == [
        "null", "true", "0.0004", "0.0", "[a]", "",
    ]  # fmt: skip
    assert reference.unit_of("batch_sec") == "seconds"


def test_the_drawings_are_current():
    drawings = tool("drawings")
    for name, draw in drawings.DRAWINGS.items():
        kept = (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8")
        assert draw().svg() == kept, f"run python docs/tools/drawings.py: {name}.svg is of an earlier state"


# --- names in the pages -------------------------------------------------------------------------------------


def named(pattern: str) -> list[tuple[Path, str]]:
    return [(page, hit) for page in PAGES for hit in re.findall(pattern, page.read_text(encoding="utf-8"))]


def test_paths_named_in_the_pages_exist():
    paths = named(rf"(?<![\w/.-])((?:{'|'.join(CODE)})/[\w./-]*[\w/])")
    assert len(paths) > 30
    for page, path in paths:
        assert (ROOT / path).exists(), f"{page.relative_to(ROOT)}: {path}"


def test_dotted_names_in_the_pages_exist():
    names = named(
        r"(?<![\w/.-])((?:lit_moss|callbacks|experiments)(?:\.[A-Za-z_]\w*)+)(?<!\.md)(?<!\.NAME)\b"
    )
    # A file, and events of the websocket.
    others = {"lit_moss.json", "lit_moss.codes.delta", "lit_moss.response.timing"}
    assert len(names) > 30
    for page, name in names:
        assert name in others or resolves(name), f"{page.relative_to(ROOT)}: {name}"


def resolves(name: str) -> bool:
    """Whether a module, or an attribute of one, has this name."""
    parts = name.split(".")
    for stop in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:stop]))
        except ModuleNotFoundError:
            continue
        for part in parts[stop:]:
            known = {*getattr(found, "__annotations__", ())}
            if not hasattr(found, part) and part not in known:
                return False
            found = getattr(found, part, None)
        return True
    return False


@pytest.mark.slow
def test_members_of_classes_named_in_the_pages_exist():
    """`SplitLM.loss`: a method, field or attribute of a class of that name, or of one of its bases."""
    known = members_of_classes()
    checked = 0
    for page, name, member in (
        (page, *hit) for page, hit in named(r"`(?:[a-z_.]+\.)?([A-Z]\w+)\.([a-z_]\w*)\b(?!\.)")
    ):
        if name in known:
            checked += 1
            assert member in known[name], f"{page.relative_to(ROOT)}: {name}.{member}"
    assert checked > 15


def members_of_classes() -> dict[str, set[str]]:
    members: dict[str, set[str]] = {}
    bases: dict[str, list[str]] = {}
    for top in ("lit_moss", "callbacks"):
        for path in (ROOT / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ClassDef):
                    members.setdefault(node.name, set()).update(members_of(node))
                    bases.setdefault(node.name, []).extend(ast.unparse(b).split(".")[-1] for b in node.bases)
    for name in members:
        above, seen = list(bases[name]), {name}  # a class may have the name of its base
        while above:
            base = above.pop()
            if base not in seen:
                seen.add(base)
                members[name] |= members.get(base, set())
                above += bases.get(base, [])
    return members


def members_of(node: ast.ClassDef) -> set[str]:
    names = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store):
            names.add(inner.attr)
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            names.add(inner.id)
    return names


def test_variables_of_the_environment_are_listed():
    listed = (ROOT / "docs" / "reference" / "environment.md").read_text(encoding="utf-8")
    code = [*(ROOT / "lit_moss").rglob("*.py"), *(ROOT / "callbacks").rglob("*.py")]
    used = {name for path in code for name in re.findall(r"LIT_MOSS_[A-Z_]+", path.read_text())}
    assert used
    assert used <= set(re.findall(r"LIT_MOSS_[A-Z_]+", listed))


def test_embedded_parts_are_listed():
    from lit_moss.assets import EMBEDDED

    page = (ROOT / "docs" / "machines.md").read_text()
    listed = {
        name
        for line in re.findall(r"^\| (`[^|]*) \|", page, re.MULTILINE)
        for name in re.findall(r"`([\w-]+)`", line)
    }
    code = "\n".join(path.read_text() for path in (ROOT / "lit_moss").rglob("*.py"))
    short = {"questions"}  # stands for questions-en-zh
    assert {*EMBEDDED, *re.findall(r'"embedded:([a-z0-9-]+)"', code)} - short <= listed
