"""What the project says of itself: YAMLs, README, Makefile, Dockerfile, imports."""

import ast
import os
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lit_moss.cli import main as cli

ROOT = Path(__file__).resolve().parents[1]
YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))
RUNS = [p for p in YAMLS if p.parent.name not in ("trainer", "predict", "sweep", "evaluate")]


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_yaml_parses_against_the_real_signatures(path, at_root, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", str(path), "--print_config"])
    assert done.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] > 0


@pytest.mark.parametrize("path", sorted((ROOT / "conf/sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_makes_recipes_that_parse(path, at_root, tmp_path, capsys):
    from lit_moss.sweep.config import read_sweep

    sweep = read_sweep(str(path))
    params = {key: next(iter(spec["choices"])) for key, spec in sweep.search.items()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sweep.recipe(params, sweep.seeds[0])))
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", str(recipe), "--print_config"])
    assert done.value.code == 0


@pytest.mark.parametrize("path", sorted((ROOT / "conf/evaluate").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_benchmarks_yaml_has_known_keys(path):
    from importlib import import_module

    from lit_moss.cli.evaluate import BENCHMARKS, read_config

    read_config(import_module(BENCHMARKS[path.stem]).Config, path, [])


@pytest.mark.parametrize("machine", sorted((ROOT / "conf/trainer").glob("*.yaml")), ids=lambda p: p.stem)
def test_machine_parts_merge_onto_a_run(machine, at_root, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", "conf/quickstart.yaml", "-c", str(machine), "--print_config"])
    assert done.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    asked = yaml.safe_load(machine.read_text())
    assert resolved["trainer"]["precision"] == asked["trainer"]["precision"]
    assert resolved["data"]["init_args"]["workers"] == asked["data"]["init_args"]["workers"]
    assert resolved["trainer"]["max_steps"] == 350 or resolved["name"] == "quickstart"


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_the_head_of_a_yaml_holds_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    verb = {"predict": "predict", "sweep": "sweep", "evaluate": f"evaluate {path.stem}"}
    assert first.startswith(f"# python -m lit_moss {verb.get(path.parent.name, 'fit')} -c ")
    assert str(path.relative_to(ROOT)) in first
    for word in shlex.split(first[2:]):
        if word.endswith(".yaml"):
            assert (ROOT / word).is_file()


def readme() -> str:
    return (ROOT / "README.md").read_text()


def test_paths_named_in_the_readme_exist():
    named = re.findall(r"`((?:lit_moss|callbacks|experiments|conf|tests)/[\w./-]*)`", readme())
    assert len(named) >= 8
    for path in named:
        assert (ROOT / path).exists(), path


def test_commands_of_the_readme_are_known():
    commands = re.findall(r"^(?:\$ )?((?:make|python -m) .*)$", readme(), re.MULTILINE)
    assert len(commands) >= 6
    makefile = (ROOT / "Makefile").read_text()
    for command in commands:
        words = shlex.split(command.split("  #")[0])
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), command
        elif words[2] == "lit_moss":
            assert words[3] in cli.VERBS | cli.TRAINER_VERBS, command
            for before, word in pairwise(words):
                if before == "-c":
                    assert (ROOT / word).is_file(), command
        else:
            assert (ROOT / (words[2].replace(".", "/") + ".py")).is_file(), command


def test_ci_runs_the_readmes_test_command():
    assert re.search(r"^make test$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert "make test" in readme()


def test_dockerfile_copies_and_calls_what_exists():
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    for target in re.findall(r"^RUN make (\S+)$", text, re.MULTILINE):
        assert target.replace(".venv", "$(VENV)") + ":" in (ROOT / "Makefile").read_text()
    assert 'ENTRYPOINT ["python", "-m", "lit_moss"]' in text


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("package", ["audio", "codec", "llm"])
def test_the_maths_imports_no_lightning_mlflow_or_optuna(package):
    for path in (ROOT / "lit_moss" / package).glob("*.py"):
        heavy = {name for name in imports(path) if name.split(".")[0] in ("lightning", "mlflow", "optuna")}
        assert not heavy, f"{path.name}: {heavy}"


def test_imports_go_one_way():
    lower = {"audio": ("codec", "data", "modules", "prepare"), "speech_tokenizer": ("modules",), "data": ("modules",)}
    for package, above in lower.items():
        for path in (ROOT / "lit_moss" / package).glob("*.py"):
            if path.name.startswith("verb_"):
                continue
            wrong = {n for n in imports(path) if n.startswith(tuple(f"lit_moss.{a}" for a in above))}
            assert not {n for n in wrong if "prepare.everyday" not in n}, f"{path}: {wrong}"


def test_nothing_but_tests_and_the_log_speaks_of_shared_data():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files:
        path = ROOT / name
        if name.startswith("tests/") or name == "experiments/LOG.md" or not path.is_file():
            continue
        if path.suffix in (".py", ".md", ".yaml", ".toml") or path.name in ("Makefile", "Dockerfile"):
            assert "../shared" not in path.read_text(), name


def test_packages_in_pyproject_are_all_there_are():
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        str(p.parent.relative_to(ROOT)).replace(os.sep, ".")
        for top in ("lit_moss", "callbacks", "experiments")
        for p in (ROOT / top).rglob("*.py")
    }
    found |= {str(p.parent.relative_to(ROOT)).replace(os.sep, ".") for p in YAMLS}
    assert listed == found


@pytest.mark.slow
@pytest.mark.network
def test_the_wheel_carries_the_packages_and_conf(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(tmp_path), str(ROOT)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    import zipfile

    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "lit_moss/cli/main.py",
        "callbacks/exact_resume.py",
        "experiments/contract/check.py",
        "conf/quickstart.yaml",
        "conf/paper/codec_encoder.yaml",
        "lit_moss/prepare/sentences_en.txt",
    ):
        assert name in names
