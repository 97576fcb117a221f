"""What the project says of itself: YAMLs, README, Makefile, Dockerfile, wheel."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from lit_moss.cli import main as cli
from lit_moss.cli.evaluate import BENCHMARKS
from lit_moss.runs.recipes import read_yaml

ROOT = Path(__file__).resolve().parents[1]
YAMLS = sorted((ROOT / "conf").rglob("*.yaml"))
PARTS = ("data", "levers", "trainer", "predict", "sweep", "evaluate", "prepare")
TALK = sorted((ROOT / "conf/talk").glob("*.yaml"))
TALK_SCALES = ("cpu", "gpu", "smoke")  # of the study; its other files are recipes
TALK_BENCHMARKS = {
    "qa": "spoken_qa",
    "gap": "modality_gap",
    "text_cloze": "cloze",
    "probe": "tokenizer_probe",
} | {n: n for n in ("cloze", "resynthesis", "paralinguistics", "text")}
STUDIES = sorted(p for p in (ROOT / "conf/studies").glob("*.yaml") if "variants:" in p.read_text())
RUNS = [
    p for p in YAMLS
    if p.parent.name not in PARTS
    and p not in STUDIES
    and not (p in TALK and (p.stem in (*TALK_SCALES, *TALK_BENCHMARKS) or p.stem.startswith("prepare_")))
]  # fmt: skip


def command_of(path: Path) -> str:
    """The program and verb that run a YAML."""
    if path in TALK and path.stem in TALK_SCALES:
        return "experiments.studies.talk"
    if path in STUDIES:
        return "experiments.studies.variants"
    if path in TALK:
        benchmark = TALK_BENCHMARKS.get(path.stem)
        verb = (
            "prepare" if path.stem.startswith("prepare_") else f"evaluate {benchmark}" if benchmark else "fit"
        )
        return f"lit_moss {verb}"
    verbs = {folder: folder for folder in ("predict", "sweep", "prepare")} | {
        "evaluate": f"evaluate {path.stem}"
    }
    return f"lit_moss {verbs.get(path.parent.name, 'fit')}"


@pytest.fixture
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.stem)
def test_every_yaml_parses_against_the_real_signatures(path, at_root, capsys):
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", str(path), "--print_config"])
    assert done.value.code == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf/sweep").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_sweep_makes_recipes_that_parse(path, at_root, tmp_path, capsys):
    from lit_moss.cli.sweep import read_sweep

    sweep, _ = read_sweep(["-c", str(path)])
    params = {key: next(iter(spec["choices"])) for key, spec in sweep.search.items()}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(sweep.recipe(params, sweep.seeds[0])))
    with pytest.raises(SystemExit) as done:
        cli.main(["fit", "-c", str(recipe), "--print_config"])
    assert done.value.code == 0


@pytest.mark.nightly
@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_every_variant_of_a_study_parses(path, at_root, tmp_path, capsys):
    from experiments.studies import variants
    from lit_moss.cli.yaml_options import OptionsParser

    study, _ = OptionsParser(variants.Options, "variants").read(["-c", str(path)])
    for name in study.variants:
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(yaml.safe_dump(study.recipe_of(name, study.seeds[0])))
        with pytest.raises(SystemExit) as done:
            cli.main(["fit", "-c", str(recipe), "--print_config"])
        assert done.value.code == 0
    for name, file in study.evaluate.items():
        assert study.evaluated_as in read_yaml(file)
        assert name in BENCHMARKS


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "conf/evaluate").glob("*.yaml")), *(p for p in TALK if p.stem in TALK_BENCHMARKS)],
    ids=lambda p: p.stem,
)
def test_every_benchmarks_yaml_has_known_keys(path):
    with pytest.raises(SystemExit) as done:
        cli.main([*command_of(path).split()[1:], "-c", str(path), "--print_config"])
    assert done.value.code == 0


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "conf/prepare").glob("*.yaml")), *(p for p in TALK if p.stem.startswith("prepare_"))],
    ids=lambda p: p.stem,
)
def test_every_chain_has_stages_and_options_that_are_known(path):
    from lit_moss.prepare.chain import Chain, chain_steps

    with pytest.raises(SystemExit) as done:
        cli.main(["prepare", "-c", str(path), "--print_config"])
    assert done.value.code == 0
    for step in chain_steps(Chain(**yaml.safe_load(path.read_text()))):
        step.build()


@pytest.mark.slow
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


@pytest.mark.parametrize("path", sorted((ROOT / "conf/data").glob("*.yaml")), ids=lambda p: p.stem)
def test_data_parts_merge_onto_the_run_that_their_head_names(path, at_root, capsys):
    words = shlex.split(path.read_text().splitlines()[0][2:])[3:]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--print_config"])
    assert done.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]
    asked = yaml.safe_load(path.read_text())["data"]["init_args"]
    for part, own in zip(resolved["parts"], asked["parts"], strict=True):
        assert part["init_args"]["train"] == own["init_args"]["train"]


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted((ROOT / "conf/levers").glob("*.yaml")), ids=lambda p: p.stem)
def test_levers_merge_onto_the_run_that_their_head_names(path, at_root, capsys):
    words = shlex.split(path.read_text().splitlines()[0][2:])[3:]
    with pytest.raises(SystemExit) as done:
        cli.main([*words, "--print_config"])
    assert done.value.code == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    for part, asked in yaml.safe_load(path.read_text()).items():
        found = resolved[part]["init_args"]
        assert {key: found[key] for key in asked["init_args"]} == asked["init_args"]


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: p.stem)
def test_the_head_of_a_yaml_holds_the_command_that_runs_it(path):
    first = path.read_text().splitlines()[0]
    assert first.startswith(f"# python -m {command_of(path)} -c ")
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


@pytest.mark.parametrize("command", ["make test", "make test-nightly"])
def test_ci_runs_the_readmes_test_commands(command):
    assert re.search(rf"^{command}$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert command in readme()


def test_dockerfile_copies_and_calls_what_exists():
    text = (ROOT / "Dockerfile").read_text()
    for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE):
        *sources, _ = line.split()
        for source in sources:
            assert (ROOT / source).exists(), source
    for target in re.findall(r"^RUN make (\S+)$", text, re.MULTILINE):
        assert target.replace(".venv", "$(VENV)") + ":" in (ROOT / "Makefile").read_text()
    assert 'ENTRYPOINT ["python", "-m", "lit_moss"]' in text


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

    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {
        str(p.parent.relative_to(ROOT)).replace(os.sep, ".")
        for top in ("lit_moss", "callbacks")
        for p in (ROOT / top).rglob("*.py")
    }
    assert set(setup["packages"]) == folders | {"lit_moss.conf"}
    assert (ROOT / setup["package-dir"]["lit_moss.conf"]).is_dir()


def test_constraints_name_every_requirement_in_a_version_that_is_allowed():
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [x for x in (ROOT / "constraints.txt").read_text().splitlines() if not x.startswith("#")]
    versions = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    assert len(versions) == len(lines)
    extras = project["optional-dependencies"].values()
    for requirement in map(Requirement, (*project["dependencies"], *(x for extra in extras for x in extra))):
        name = canonicalize_name(requirement.name)
        if name != project["name"]:
            assert requirement.specifier.contains(versions[name], prereleases=True), requirement


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from the sources alone: setuptools takes over what an earlier build has left in build/."""
    folder = tmp_path_factory.mktemp("wheel")
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    for name in names:
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / "source" / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(folder), "./source"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.nightly
@pytest.mark.network
def test_the_wheel_carries_the_packages_and_the_recipes(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"lit_moss", "callbacks", "lit_moss-0.1.0.dist-info"}
    conf = {f"lit_moss/{p.relative_to(ROOT)}" for p in (ROOT / "conf").rglob("*") if p.is_file()}
    texts = {str(p.relative_to(ROOT)) for p in (ROOT / "lit_moss").rglob("*.txt")}
    assert conf | texts | {"lit_moss/cli/main.py", "callbacks/exact_resume.py"} <= set(names)


@pytest.mark.nightly
@pytest.mark.network
def test_an_installed_wheel_finds_its_recipes_from_any_folder(wheel, tmp_path):
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(command, check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = "import callbacks, lit_moss; print(lit_moss.__file__, callbacks.__file__)"
    words = [
        (["-c", where], f"{site}/lit_moss/__init__.py {site}/callbacks/__init__.py"),
        (["-m", "lit_moss", "fit", "-c", "conf/quickstart_lm.yaml", "--print_config"], "max_steps: "),
    ]
    for arguments, expected in words:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert not list(empty.iterdir())


def test_no_stray_files_are_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("needs a checkout of git")
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")[:-1]
    empty = [
        name
        for name in tracked
        if (ROOT / name).is_file()
        and not (ROOT / name).stat().st_size
        and Path(name).name not in ("__init__.py", "py.typed")
    ]
    assert not empty


def test_the_doc_of_an_argument_is_understood_by_itself():
    fragment = re.compile(r"^\s+\w+: (Of\b|See there|The same\b)", re.MULTILINE)
    found = [
        f"{path.relative_to(ROOT)}: {match[0].strip()}"
        for top in ("lit_moss", "callbacks", "experiments")
        for path in sorted((ROOT / top).rglob("*.py"))
        for match in fragment.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found
