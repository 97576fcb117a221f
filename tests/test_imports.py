"""Imports point down the list of layers, form no circle, and are drawn as they are."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_spec = importlib.util.spec_from_file_location("draw_imports", ROOT / "docs" / "tools" / "imports.py")
graph = importlib.util.module_from_spec(_spec)
sys.modules["draw_imports"] = graph  # dataclasses look their module up
_spec.loader.exec_module(graph)


@pytest.fixture(scope="module")
def imports():
    return graph.imports_of(ROOT)


@pytest.mark.slow
def test_no_import_points_up(imports):
    wrong = [f"{i.source}:{i.line} imports {i.target} ({i.kind})" for i in graph.upward(imports)]
    assert not wrong, "\n".join(wrong)


def test_no_files_import_one_another_in_a_circle(imports):
    assert graph.circles(imports) == []


def test_only_the_command_line_imports_callbacks(imports):
    users = {i.source for i in imports if graph.layer_of(i.target) == "callbacks"}
    users = {name for name in users if graph.layer_of(name) not in ("cli", "callbacks", "experiments")}
    assert not users


def test_every_folder_of_the_package_is_a_listed_room():
    folders = {p.parent.name for p in (ROOT / "lit_moss").glob("*/*.py")}
    assert folders <= set(graph.LAYERS)


@pytest.mark.parametrize("layer", ["audio", "codec", "llm"])
def test_mathematics_imports_no_lightning_mlflow_or_optuna(layer):
    """Neither itself nor by way of another of our modules."""
    heavy = {"lightning", "mlflow", "optuna"}
    outside = graph.outside_imports(ROOT, below=True)
    wrong = {name: names & heavy for name, names in outside.items() if graph.layer_of(name) == layer}
    assert not {name: names for name, names in wrong.items() if names}


def test_only_the_command_line_parses_arguments():
    """`argparse.Namespace` is free: Lightning's loggers take parameters in it."""
    users = {
        name
        for name, path in graph.modules_of(ROOT).items()
        for dotted, _, _ in graph.references(path, name)
        if dotted.partition(".")[0] in ("argparse", "jsonargparse") and dotted != "argparse.Namespace"
    }
    assert not {name for name in users if graph.layer_of(name) not in ("cli", "experiments")}


def test_the_drawing_in_the_docs_is_current(imports):
    drawing = graph.draw(imports, title=graph.title_of(imports))
    assert graph.PICTURE.read_text(encoding="utf-8") == drawing, "run `python docs/tools/imports.py`"


# The reader, on a small project.

FILES = {
    "lit_moss/audio/a.py": "from lit_moss.data import b\n",
    "lit_moss/data/__init__.py": "",
    "lit_moss/data/b.py": "def f():\n    from .c import x\n    import lit_moss.errors\n",
    "lit_moss/data/c.py": '"""lit_moss.cli.main is named, not imported."""\nx = "lit_moss.data.b:f"\n',
    "lit_moss/cli/main.py": 'VERBS = {"fit": "lit_moss.cli.fit"}\nCLASS = "callbacks.Checkpoint"\n',
    "lit_moss/cli/fit.py": "",
    "lit_moss/errors.py": "import typing\nif typing.TYPE_CHECKING:\n    from lit_moss.data.b import f\n",
    "callbacks/__init__.py": "",
}


@pytest.fixture
def project(tmp_path):
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_imports_in_functions_strings_and_for_type_checkers_are_read(project):
    pairs = {(i.source, i.target): i.kind for i in graph.imports_of(project)}
    assert pairs == {
        ("lit_moss.audio.a", "lit_moss.data.b"): "import",
        ("lit_moss.data.b", "lit_moss.data.c"): "import",
        ("lit_moss.data.b", "lit_moss.errors"): "import",
        ("lit_moss.data.c", "lit_moss.data.b"): "string",
        ("lit_moss.cli.main", "lit_moss.cli.fit"): "string",
        ("lit_moss.cli.main", "callbacks"): "string",
        ("lit_moss.errors", "lit_moss.data.b"): "type",
    }


def test_imports_for_type_checkers_may_close_a_circle_but_not_point_up(project):
    imports = graph.imports_of(project)
    assert [(i.source, i.target) for i in graph.upward(imports)] == [
        ("lit_moss.audio.a", "lit_moss.data.b"),
        ("lit_moss.errors", "lit_moss.data.b"),
    ]
    assert graph.circles(imports) == [["lit_moss.data.b", "lit_moss.data.c"]]


def test_what_a_module_reaches_is_added_to_what_it_imports(project):
    assert graph.outside_imports(project, below=True)["lit_moss.audio.a"] == {"typing"}
    assert graph.outside_imports(project)["lit_moss.audio.a"] == set()
