"""Hugging Face datasets: lists and NaN became transcripts, and colliding file names overwrote each other."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from lit_moss.cli.main import main
from lit_moss.corpora.manifest import read_manifest

datasets = pytest.importorskip("datasets")


@pytest.fixture
def dataset(tmp_path):
    """Saves columns beside sound: a function (text, speaker=None, names=None) -> folder."""

    def save(text, speaker=None, names=None, features=None) -> Path:
        audio = []
        for i in range(len(text)):
            soundfile.write(tmp_path / "a.wav", np.full(1600, 0.01 * (i + 1)), 16_000)
            name = names[i] if names else f"u{i}.wav"
            audio.append({"bytes": (tmp_path / "a.wav").read_bytes(), "path": name})
        columns = {"audio": audio, "text": text} | ({"speaker": speaker} if speaker else {})
        made = datasets.Dataset.from_dict(columns)
        if features:
            made = made.cast_column("text", features)
        made.save_to_disk(tmp_path / "saved")
        return tmp_path / "saved"

    return save


def prepare(source, tmp_path, *more):
    return main(
        ["prepare", "manifest", "--from", "hf", str(source), "--out", str(tmp_path / "o.jsonl"), *more]
    )


@pytest.mark.parametrize(
    "text",
    [
        [["a b", "c"], ["d"], []],
        [1.5, float("nan"), 2.0],
        [1, 2, 3],
        [True, False, True],
        [{"en": "a"}, {"en": "b"}, {"en": "c"}],
        [None, None, None],
        [b"a", b"b", b"c"],
    ],
)
def test_a_column_without_strings_is_refused_by_name(dataset, tmp_path, capsys, text):
    assert prepare(dataset(text), tmp_path) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: column 'text' holds ")
    assert "expected strings" in said
    assert "--text-column" in said
    assert not (tmp_path / "o.jsonl").exists()
    assert not (tmp_path / "o_audio").exists()


def test_the_other_columns_can_be_taken_without_text(dataset, tmp_path):
    assert prepare(dataset([1.5, 2.5]), tmp_path, "--text-column", "none") == 0
    assert [u.text for u in read_manifest(tmp_path / "o.jsonl")] == [None, None]


def test_a_column_of_strings_of_any_width_may_have_holes(dataset, tmp_path):
    source = dataset(["a", None, ""], features=datasets.Value("large_string"))
    assert prepare(source, tmp_path) == 0
    assert [u.text for u in read_manifest(tmp_path / "o.jsonl")] == ["a", None, None]


def test_a_speaker_is_a_string_or_a_whole_number(dataset, tmp_path, capsys):
    assert prepare(dataset(["a", "b"], [0, 7]), tmp_path, "--speaker-column", "speaker") == 0
    assert [u.speaker for u in read_manifest(tmp_path / "o.jsonl")] == ["0", "7"]
    source = dataset(["a", "b"], [0.5, float("nan")])
    assert prepare(source, tmp_path, "--speaker-column", "speaker", "--force") == 2
    assert "column 'speaker' holds float64" in capsys.readouterr().err


@pytest.mark.parametrize(
    "names",
    [
        ["u-0000002.wav", "u.wav", "u.wav"],
        ["u.wav", "u.wav", "u-0000001.wav"],
        ["a/u.wav", "b/u.wav", "u-0000001.wav", "u-0000001-2.wav", "u.flac", "u-0000004.wav"],
        ["x" * 300 + ".wav", "x" * 300 + ".wav"],
    ],
)
def test_colliding_names_keep_their_own_sound_and_text(dataset, tmp_path, names):
    texts = [f"text {i}" for i in range(len(names))]
    assert prepare(dataset(texts, names=names), tmp_path) == 0
    found = read_manifest(tmp_path / "o.jsonl")
    assert len({u.audio for u in found}) == len(names)
    for i, u in enumerate(found):
        assert u.text == f"text {i}"
        assert soundfile.read(u.audio)[0][0] == pytest.approx(0.01 * (i + 1), abs=1e-3)
