"""Registered models: versions, aliases, their runs; one copy of the weights, and nothing pickled."""

import json
from pathlib import Path

import pytest
from database import give_database
from spoken_model import spoken_model

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.release.registry import register
from lit_moss.runs.mlflow_access import open_client


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return spoken_model(tmp_path_factory.mktemp("registry") / "model")


@pytest.fixture
def client(tmp_path, monkeypatch):
    """MLflow's default, a database in the working folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    give_database(tmp_path)
    return open_client()


def model_id(version) -> str:
    """Id of the model that a version is."""
    return version.source.removeprefix("models:/")


def stored(client, version) -> Path:
    """Folder of a version's artifacts."""
    location = client.get_logged_model(model_id(version)).artifact_location
    return Path(location.removeprefix("file://"))


def test_a_version_holds_the_folder_byte_for_byte(model, client):
    assert register(model, "talker", "champion") == 1
    version = client.get_model_version_by_alias("talker", "champion")
    assert int(version.version) == 1
    assert version.status == "READY"
    files = {f.relative_to(model): f.read_bytes() for f in model.rglob("*") if f.is_file()}
    copied = stored(client, version) / "model"
    assert {f.relative_to(copied): f.read_bytes() for f in copied.rglob("*") if f.is_file()} == files


@pytest.mark.slow
def test_export_registers_and_names_the_version(model, client, tmp_path, capsys):
    words = ["export", str(model), "--out", str(tmp_path / "out"), "--force"]
    assert main([*words, "--register", "talker", "--alias", "champion"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "talker version 1 (champion)"
    assert main([*words, "--register", "talker"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "talker version 2"
    assert int(client.get_model_version_by_alias("talker", "champion").version) == 1


def test_weights_are_copied_once_and_never_through_a_temporary_folder(model, client, tmp_path, monkeypatch):
    largest = max(f.stat().st_size for f in model.rglob("*"))
    assert largest > 2**16
    written = []
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    remove = __import__("shutil").rmtree

    def watched(path, *args, **kwargs):
        written.extend(f.stat().st_size for f in Path(path).rglob("*") if f.is_file())
        remove(path, *args, **kwargs)

    monkeypatch.setattr("shutil.rmtree", watched)
    monkeypatch.setattr("tempfile._rmtree", watched, raising=False)
    register(model, "talker")
    assert max(written, default=0) < 2**16
    copies = [f for f in tmp_path.rglob("*.safetensors") if f.stat().st_size == largest]
    assert len(copies) == 1


def test_nothing_is_pickled_and_no_path_of_the_machine_is_stored(model, client, tmp_path):
    register(model, "talker")
    folder = stored(client, client.get_model_version("talker", "1"))
    names = {f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()}
    assert not {n for n in names if n.endswith((".pkl", ".pickle", ".joblib"))}
    texts = [f for f in folder.rglob("*") if f.is_file() and f.suffix not in (".safetensors", ".pt")]
    for file in texts:
        content = file.read_text()
        assert str(tmp_path) not in content, file
        assert str(model.parent) not in content, file
        assert str(Path(__file__).parents[2]) not in content, file


def test_the_next_version_takes_the_alias(model, client):
    assert [register(model, "talker", "champion"), register(model, "talker", "champion")] == [1, 2]
    assert client.get_model_version_by_alias("talker", "champion").version in (2, "2")


def test_the_model_belongs_to_the_run_of_its_weights(client, tmp_path):
    experiment = client.create_experiment("sft")
    run_id = client.create_run(experiment, run_name="first").info.run_id
    client.set_terminated(run_id)
    before = client.get_run(run_id).info
    register(spoken_model(tmp_path / "model", codec=False, run_id=run_id), "talker")
    version = client.get_model_version("talker", "1")
    assert version.run_id == run_id
    assert [m.model_id for m in client.get_run(run_id).outputs.model_outputs] == [model_id(version)]
    logged = client.get_logged_model(model_id(version))
    assert logged.source_run_id == run_id
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "talker", "version": version.version}]
    after = client.get_run(run_id).info
    assert (after.status, after.end_time) == ("FINISHED", before.end_time)


@pytest.mark.slow
@pytest.mark.parametrize("run_id", ["", "0" * 32])
def test_without_that_run_there_is_a_new_one(client, tmp_path, run_id):
    register(spoken_model(tmp_path / "model", codec=False, run_id=run_id), "talker")
    run = client.get_run(client.get_model_version("talker", "1").run_id)
    assert run.info.status == "FINISHED"
    assert client.get_experiment(run.info.experiment_id).name == "talker"


def test_a_bad_alias_is_refused_before_anything_is_copied(model, client, tmp_path):
    with pytest.raises(UserError, match="cannot register 'talker'"):
        register(model, "talker", "v7")  # MLflow keeps such names for versions
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_bad_name_is_one_line(model, client):
    with pytest.raises(UserError) as error:
        register(model, "a/b:c")
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_language_model_is_refused(client, tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "llama"})
    with pytest.raises(UserError, match="is no language model"):
        register(tmp_path, "talker")


def test_a_server_that_is_away_is_one_line(model, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match="cannot register 'talker'") as error:
        register(model, "talker")
    assert "secret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_failed_copy_leaves_no_version(model, client, monkeypatch, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    write_json(broken / "config.json", {"model_type": "moss_speech"})
    (broken / "model.safetensors").symlink_to(tmp_path / "gone")
    with pytest.raises(UserError, match="cannot register 'talker'"):
        register(broken, "talker")
    assert client.search_model_versions("name='talker'") == []
    statuses = {m.status.value for m in client.search_logged_models(["1"])}
    assert statuses == {"FAILED"}
