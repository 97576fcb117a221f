"""Bad files are skipped, counted once each, named, and stop the run above a share."""

import shutil

import pytest
from recording import curves, recipe

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest, write_manifest

pytestmark = pytest.mark.nightly


@pytest.fixture
def broken(tmp_path, corpus):
    """A copy of the corpus in which two of 22 files are bad."""
    folder = tmp_path / "corpus"
    shutil.copytree(corpus, folder)
    utterances = read_manifest(folder / "train.jsonl")
    utterances[3].audio.write_bytes(b"")
    utterances[7].audio.write_text("no sound")
    write_manifest(folder / "train.jsonl", utterances)
    return folder, [utterances[3].id, utterances[7].id]


def test_the_run_goes_on_and_the_count_is_exact(tmp_path, broken, monkeypatch, capsys):
    folder, names = broken
    monkeypatch.chdir(tmp_path)
    config = recipe(tmp_path, folder, 20, data__init_args__max_bad_share=0.5)
    assert main(["fit", "-c", str(config)]) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped ")]
    assert len(told) == 2
    assert all(any(name in line for line in told) for name in names)
    assert curves(tmp_path)["data/skipped"][-1][1] == 2.0


def test_above_the_share_the_run_stops_and_names_them(tmp_path, broken, monkeypatch, capsys):
    folder, names = broken
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(recipe(tmp_path, folder, 20))]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: 2 of 24 utterances cannot be read")
    assert all(name in last for name in names)
