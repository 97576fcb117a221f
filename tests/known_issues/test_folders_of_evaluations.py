"""The name of an evaluation's folder missed what codecs are opened from and what tasks read.

A retrained `best.ckpt` or corrected questions gave the old report, a run with `best.ckpt` alone was refused,
and a raised limit of the judge began a new folder, so that all that was answered was lost.
"""

import hashlib
import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from database import give_database

from lit_moss.errors import UserError
from lit_moss.evaluate import modality_gap, spoken_qa, text
from lit_moss.evaluate.evaluation import NEUTRAL, Evaluation, identity
from lit_moss.evaluate.task_files import files_of_tasks
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.folder import RunFolder


def save(run, name, step):
    content = {"state_dict": {}, "global_step": step, "pytorch-lightning_version": "2.6"}
    AtomicCheckpointIO().save_checkpoint(content, run.checkpoints / name)


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "runs/codec/first")
    run.checkpoints.mkdir(parents=True)
    run.begin("aaaa")
    return run


@pytest.mark.parametrize("named", ["run", "name"])
def test_best_weights_and_the_newest_state_of_a_run_count(run, named, capfd):
    source = run.path if named == "run" else run.path.parent
    with pytest.raises(UserError, match="no checkpoint yet"):
        identity(source)
    capfd.readouterr()
    save(run, "best.ckpt", 4)
    found = [identity(source)]
    assert "starting it again" not in capfd.readouterr().err
    save(run, "step-0000008.ckpt", 8)
    found.append(identity(source))
    save(run, "best.ckpt", 6)
    found.append(identity(source))
    save(run, "step-0000012.ckpt", 12)
    found.append(identity(source))
    assert len({str(one) for one in found}) == 4
    assert found[-1] == identity(source)
    (run.checkpoints / "best.ckpt").unlink()
    assert identity(source) == identity(run.checkpoints / "step-0000012.ckpt")


def test_of_a_run_with_a_damaged_state_the_best_weights_count(run):
    save(run, "best.ckpt", 4)
    (run.checkpoints / "step-0000008.ckpt").write_bytes(b"cut off")
    assert identity(run.path) == identity(run.checkpoints / "best.ckpt")


def test_folders_of_models_and_names_count_as_before(tmp_path):
    (tmp_path / "model/codec").mkdir(parents=True)
    files = [tmp_path / "model/codec/b.bin", tmp_path / "model/config.json"]
    for file in files:
        file.write_text(file.name)
    facts = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    assert identity(tmp_path / "model") == [str(tmp_path / "model"), *facts]
    assert identity("embedded:smollm2-135m") == ["embedded:smollm2-135m"]


# --- options ------------------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    return tmp_path


def folder_of(benchmark, config):
    with Evaluation(benchmark, config, config.sources) as evaluation:
        return evaluation.folder.name


def test_limits_of_the_judge_and_kept_sounds_do_not_change_it(here):
    config = spoken_qa.Config("m", judge="j")
    changed = {"judge_max_requests": 100, "judge_api_key_env": "OTHER", "keep_sounds": 3}
    names = [folder_of("spoken_qa", replace(config, **{k: v})) for k, v in changed.items()]
    assert {*names, folder_of("spoken_qa", replace(config, **changed))} == {folder_of("spoken_qa", config)}
    assert folder_of("spoken_qa", replace(config, judge="k")) not in names
    gap = modality_gap.Config("m")
    assert folder_of("modality_gap", gap) == folder_of("modality_gap", replace(gap, keep_sounds=3))


@pytest.mark.parametrize(
    ("name", "config"), [("spoken_qa", spoken_qa.Config("m")), ("modality_gap", modality_gap.Config("m"))]
)
def test_folders_of_default_options_are_found_as_before(here, name, config):
    kept = {key: value for key, value in asdict(config).items() if key not in NEUTRAL}
    facts = [name, kept, [identity(source) for source in config.sources if source]]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    assert folder_of(name, config) == f"{name}-{digest}"


# --- tasks --------------------------------------------------------------------------------------------------


def test_data_code_and_yamls_that_a_task_names_count(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (
        "data/q.jsonl",
        "data/a1.jsonl",
        "data/a2.jsonl",
        "tasks/own.json",
        "tasks/code.py",
        "test/x",
    ):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("{}\n")
    Path("tasks/base").write_text("dataset_path: json\ndataset_kwargs: {data_files: {test: data/q.jsonl}}\n")
    Path("tasks/mine.yaml").write_text("task: mine\ninclude: base\ntest_split: test\n")
    Path("tasks/group.yaml").write_text(
        "group: g\ntask:\n"
        "  - {task: a, dataset_path: json, dataset_kwargs: {data_files: 'data/a*.jsonl', split: test}}\n"
        "  - {task: b, custom_dataset: !function code.rows, dataset_kwargs: {file: own.json}}\n"
        "  - {task: c, dataset_path: gone/hub}\n"
    )
    Path("tasks/loop.yaml").write_text("include: loop.yaml\n")
    Path("tasks/broken.yaml").write_text("task: [1")

    def names(*sources):
        return sorted(str(Path(file).relative_to(tmp_path)) for file in files_of_tasks(sources))

    assert names("tasks/mine.yaml") == ["data/q.jsonl", "tasks/base"]
    assert names("tasks/group.yaml") == ["data/a1.jsonl", "data/a2.jsonl", "tasks/code.py", "tasks/own.json"]
    # What the folder holds counts with it.
    assert names("tasks") == ["data/a1.jsonl", "data/a2.jsonl", "data/q.jsonl"]
    assert names("tasks/loop.yaml") == names("tasks/broken.yaml") == []


def test_a_corrected_question_is_another_evaluation(here, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")
    Path("q.jsonl").write_text('{"question": "x"}\n')
    Path("mine.yaml").write_text("task: mine\ndataset_path: json\ndataset_kwargs: {data_files: q.jsonl}\n")
    monkeypatch.setattr(Evaluation, "done", lambda self: {"folder": self.folder.name})
    config = text.Config("m", tasks=["mine.yaml"])
    first = text.run(config)
    assert text.run(config) == first
    Path("q.jsonl").write_text('{"question": "corrected"}\n')
    assert text.run(config) != first


def test_loading_the_code_of_a_task_is_no_change(tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")
    monkeypatch.setattr("sys.dont_write_bytecode", False)
    folder = tmp_path / "tasks"
    shutil.copytree(text.TASKS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    before = identity(folder)
    text.load_tasks(["everyday_choices"], [str(folder)])
    assert list(folder.rglob("*.pyc"))
    assert identity(folder) == before
