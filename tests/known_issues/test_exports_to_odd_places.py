"""Exports that wrote all weights and failed then: through a link, into the working folder, of a run that was
moved up to a shallow one."""

from pathlib import Path

import pytest
from model_folders import run_folder

from lit_moss.errors import UserError
from lit_moss.files import folder_to_make
from lit_moss.release.export import export
from lit_moss.release.import_model import import_model
from lit_moss.release.training_facts import Stage
from lit_moss.runs.folder import RunFolder


def test_a_link_to_an_empty_folder_is_filled_and_stays_a_link(tmp_path):
    run = run_folder(tmp_path)
    (tmp_path / "disk").mkdir()
    link = tmp_path / "models"
    link.symlink_to(tmp_path / "disk")
    made = export(str(run), link)
    assert made.folder == link  # as it was asked for
    assert link.is_symlink()
    assert (tmp_path / "disk/config.json").is_file()
    export(str(run), link, force=True)
    assert link.is_symlink()
    imported = import_model(link, tmp_path / "b")
    assert imported.folder == tmp_path / "b"
    again = tmp_path / "again"
    again.symlink_to(tmp_path / "b")
    export(str(run), again, force=True)
    import_model(link, again, force=True)
    assert again.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} >= {"disk", "models", "b", "again"}
    assert not list(tmp_path.glob("*.partial-*"))


def test_links_keep_what_is_no_model(tmp_path):
    run = run_folder(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for force in (False, True):
        with pytest.raises(UserError, match="mine"):
            export(str(run), tmp_path / "link", force=force)
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("out", [".", "..", "../here", "link"])
def test_the_working_folder_is_refused_before_anything_is_written(tmp_path, monkeypatch, out):
    run = run_folder(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    if out == "link":
        out = str(tmp_path / "link")
        Path(out).symlink_to(tmp_path / "here")
    for make in (export, import_model):
        with pytest.raises(UserError, match="is the working folder or above it, expected a folder inside"):
            make(str(run), out)
    assert list((tmp_path / "here").iterdir()) == []


def test_links_in_a_circle_are_one_line(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "b")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(UserError, match="cannot be found"):
        folder_to_make(tmp_path / "a")


def test_a_run_in_a_shallow_folder_has_facts():
    config = {"run_root": "runs", "data": {"init_args": {"train": ["data/x"]}}}
    for folder in ("/run", "/mnt/run", "/mnt/a/run", "/mnt/a/b/run"):
        stage = Stage(RunFolder(Path(folder)), config)
        assert [data.name for data in stage.data] == ["x"]
