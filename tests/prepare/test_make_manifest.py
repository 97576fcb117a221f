"""`prepare manifest`: what each kind of corpus becomes, and what happens to corpora that are not in order."""

import argparse
import gzip
import json
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.audio import io
from lit_moss.cli.prepare import manifest as stage
from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.prepare import make_manifest as manifest

RATE_HZ = 16_000


def sound(path: Path, duration_sec: float = 0.5, channels: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).normal(0, 0.1, (round(duration_sec * RATE_HZ), channels))
    soundfile.write(path, samples, RATE_HZ)
    return path


def prepare(kind: str, source: object, out: Path, *options: object) -> list:
    parser = argparse.ArgumentParser()
    stage.add_arguments(parser)
    args = ["--from", kind, str(source), "--out", str(out), *map(str, options)]
    stage.main(parser.parse_args(args))
    return read_manifest(out)


def json_lines(path: Path, *entries: dict) -> Path:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(entry) + "\n" for entry in entries)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out" / "train.jsonl"


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """40 sound files u00 to u39 of half a second."""
    for n in range(40):
        sound(tmp_path / "corpus" / f"u{n:02d}.wav")
    return tmp_path / "corpus"


# Sources.


def test_ljspeech_takes_the_normalised_text_and_falls_back_to_the_raw(tmp_path, out, capsys):
    sound(tmp_path / "wavs" / "a.wav")
    sound(tmp_path / "wavs" / "b.flac", 1.0)
    rows = ["b|Dr. 2|doctor two", "a|raw|", "gone|x|y", "", "b|only raw"]
    (tmp_path / "metadata.csv").write_text("\r\n".join(rows), encoding="utf-8")
    utterances = prepare("ljspeech", tmp_path, out)
    assert [(u.audio.name, u.text) for u in utterances] == [
        ("b.flac", "doctor two"),
        ("a.wav", "raw"),
        ("b.flac", "only raw"),
    ]
    assert {(u.speaker, u.lang) for u in utterances} == {("ljspeech", "en")}
    assert [u.duration_sec for u in utterances] == [1.0, 0.5, 1.0]
    left_out, summary = capsys.readouterr().out.splitlines()
    assert left_out == "left out 1 row without a sound file: gone"
    assert summary == f"{out}: 3 utterances, 0.0 min, 1 speaker, 3 with text"


def test_librispeech_tree_has_speakers_and_texts(tmp_path, out, capsys):
    for name in ("19-198-0001", "19-198-0000", "26-495-0000"):
        speaker, chapter, _ = name.split("-")
        sound(tmp_path / "root" / speaker / chapter / f"{name}.flac")
    sound(tmp_path / "root" / "noise.wav")
    (tmp_path / "root/19/198/19-198.trans.txt").write_text(
        "19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS WORK\n"
    )
    utterances = prepare("librispeech", tmp_path / "root", out)
    assert [(u.id, u.speaker, u.text) for u in utterances] == [
        ("19-198-0000", "19", "NORTHANGER ABBEY"),
        ("19-198-0001", "19", "THIS WORK"),
        ("26-495-0000", "26", None),
    ]
    assert "left out 1 of 4 files" in capsys.readouterr().out


def test_librispeech_download_that_fails_is_a_user_error(tmp_path, out, monkeypatch):
    torchaudio_datasets = pytest.importorskip("torchaudio.datasets")

    def offline(*args, **kwargs):
        raise URLError("no route\nto host")

    monkeypatch.setattr(torchaudio_datasets, "LIBRISPEECH", offline)
    with pytest.raises(UserError, match=r"dev-clean could not be fetched \(URLError.*openslr") as caught:
        prepare("librispeech", tmp_path / "root", out, "--download", "dev-clean")
    assert "\n" not in str(caught.value)


def test_librispeech_download_reads_the_part_alone(tmp_path, out, monkeypatch):
    torchaudio_datasets = pytest.importorskip("torchaudio.datasets")
    sound(tmp_path / "LibriSpeech/test-clean/1/2/1-2-0000.flac")

    def fetch(root, url, download):
        sound(Path(root) / "LibriSpeech" / url / "3/4/3-4-0000.flac")

    monkeypatch.setattr(torchaudio_datasets, "LIBRISPEECH", fetch)
    assert [u.id for u in prepare("librispeech", tmp_path, out, "--download", "dev-clean")] == ["3-4-0000"]


def test_folder_reads_every_depth_in_order_with_texts_beside(tmp_path, out):
    root = tmp_path / "in"
    for name in ("z.ogg", "b/x.wav", "a/y.FLAC", "a/._y.wav"):
        sound(root / name)
    (root / "z.txt").write_text("\ufefftwo\u2028lines\n", encoding="utf-8")
    (root / "b/x.lab").write_text(" from lab ")
    (root / "a/y.txt").write_text("\n")
    utterances = prepare("folder", root, out, "--speaker-from-parent", "--lang", "de")
    assert [(u.id, u.speaker, u.text, u.lang) for u in utterances] == [
        ("y", "a", None, "de"),
        ("x", "b", "from lab", "de"),
        ("z", "in", "two lines", "de"),
    ]


def test_paths_below_the_manifest_are_relative_and_the_lines_repeat(tmp_path, corpus):
    out = tmp_path / "train.jsonl"
    prepare("folder", corpus, out)
    first = out.read_bytes()
    assert json.loads(first.splitlines()[0])["audio_filepath"] == "corpus/u00.wav"
    prepare("folder", corpus, out, "--force")
    assert out.read_bytes() == first


@pytest.fixture
def saved_dataset(tmp_path: Path) -> Path:
    datasets = pytest.importorskip("datasets")
    content = sound(tmp_path / "src" / "x.flac").read_bytes()
    wav = sound(tmp_path / "src" / "y.wav").read_bytes()
    rows = {
        "audio": [
            {"bytes": content, "path": "clip.flac"},
            {"bytes": wav, "path": None},
            {"bytes": content, "path": "other/clip.flac"},
        ],
        "sentence": ["one", " two  words", None],
        "reader": [7, 8, 7],
    }
    features = {
        "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
        "sentence": datasets.Value("string"),
        "reader": datasets.Value("int64"),
    }
    dataset = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    dataset = dataset.cast_column("audio", datasets.Audio(decode=False))
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_hf_writes_the_sound_unchanged_beside_the_manifest(tmp_path, out, saved_dataset, capsys):
    columns = ("--text-column", "sentence", "--speaker-column", "reader")
    utterances = prepare("hf", saved_dataset, out, "--split", "test", *columns)
    assert [(u.id, u.text, u.speaker) for u in utterances] == [
        ("clip", "one", "7"),
        ("0000001", "two words", "8"),
        ("clip-0000002", None, "7"),
    ]
    assert [u.audio.suffix for u in utterances] == [".flac", ".wav", ".flac"]
    assert all(u.audio.parent == out.parent / "train_audio" for u in utterances)
    assert utterances[0].audio.read_bytes() == (tmp_path / "src/x.flac").read_bytes()
    assert capsys.readouterr().out == f"{out}: 3 utterances, 0.0 min, 2 speakers, 2 with text\n"


def test_hf_says_so_when_no_column_is_taken_for_text(out, saved_dataset, capsys):
    assert {u.text for u in prepare("hf", saved_dataset, out, "--split", "test")} == {None}
    assert "no column 'text' among audio, sentence, reader" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "no split 'train' in .*: give --split, one of test"),
        (("--split", "test", "--audio-column", "wave"), "no column 'wave'.*one of audio, sentence, reader"),
        (("--split", "test", "--audio-column", "reader"), "column 'reader' holds no sound"),
    ],
)
def test_hf_names_the_splits_and_columns_that_there_are(out, saved_dataset, options, message):
    with pytest.raises(UserError, match=message):
        prepare("hf", saved_dataset, out, *options)
    assert not out.parent.exists()


def recording(path: Path, **changes: object) -> dict:
    source = {"type": "file", "channels": [0], "source": str(path)}
    return {"id": "rec", "sources": [source], "sampling_rate": RATE_HZ, "num_samples": 0, **changes}


def cut(path: Path, **changes: object) -> dict:
    supervision = {
        "id": "s",
        "recording_id": "rec",
        "start": 0,
        "duration": 1,
        "text": "hi",
        "speaker": "ann",
    }
    spoken = [supervision | {"language": "English"}]
    entry = {
        "id": "c",
        "start": 1.0,
        "duration": 1.5,
        "channel": 0,
        "supervisions": spoken,
        "type": "MonoCut",
    }
    return entry | {"recording": recording(path)} | changes


@pytest.mark.parametrize("name", ["cuts.jsonl", "cuts.jsonl.gz"])
def test_lhotse_cuts_keep_their_part_of_the_file(tmp_path, out, name):
    sound(tmp_path / "long.wav", 3.0)
    # Relative to the manifest, as in a corpus that was moved; the second cut has no supervision.
    cuts = json_lines(
        tmp_path / name, cut(Path("long.wav")), cut(tmp_path / "long.wav", supervisions=[], start=0)
    )
    first, second = prepare("lhotse", cuts, out)
    assert (first.audio, first.offset_sec, first.duration_sec) == (tmp_path / "long.wav", 1.0, 1.5)
    assert (first.text, first.speaker, first.lang) == ("hi", "ann", "en")
    assert (second.offset_sec, second.text, second.speaker, second.lang) == (0.0, None, None, None)


def test_lhotse_supervisions_find_their_recordings_by_name(tmp_path, out):
    sound(tmp_path / "long.wav", 3.0)
    json_lines(tmp_path / "x_recordings_dev.jsonl.gz", recording(tmp_path / "long.wav"))
    supervision = {
        "id": "s",
        "recording_id": "rec",
        "start": 0.5,
        "duration": 2.0,
        "channel": 0,
        "text": "yes",
    }
    source = json_lines(tmp_path / "x_supervisions_dev.jsonl.gz", supervision | {"language": "zh"})
    (u,) = prepare("lhotse", source, out)
    assert (u.audio.name, u.offset_sec, u.duration_sec, u.text, u.lang) == ("long.wav", 0.5, 2.0, "yes", "zh")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"type": "MixedCut"}, "line 1: got ValueError: MixedCut; expected a MonoCut"),
        ({"channel": 1}, "channel 1,"),
        ({"supervisions": [{}, {}]}, "2 supervisions; .*trim_to_supervisions"),
        (
            {"recording": recording(Path("a"), sources=[{"type": "url", "channels": [0]}])},
            r"sources \['url'\]",
        ),
        ({"recording": recording(Path("a"), transforms=[{"name": "Speed"}])}, "transformed"),
        ({"start": "soon"}, "soon"),
        ({"recording": None}, "line 1: got TypeError"),
    ],
)
def test_lhotse_rejects_cuts_that_it_would_read_wrongly(tmp_path, out, changes, message):
    with pytest.raises(UserError, match=message):
        prepare("lhotse", json_lines(tmp_path / "cuts.jsonl", cut(tmp_path / "a.wav", **changes)), out)


def test_a_cut_past_the_end_of_its_file_is_unreadable_and_a_rounded_one_is_cut_to_it(tmp_path, out, capsys):
    path = sound(tmp_path / "long.wav", 2.46)
    (u,) = prepare("lhotse", json_lines(tmp_path / "c.jsonl", cut(path), cut(path, start=2.0)), out)
    assert u.duration_sec == pytest.approx(1.46)
    assert "skipped 1 of 2 as unreadable" in capsys.readouterr().out


# What is not in order.


@pytest.mark.parametrize(
    ("kind", "source", "message"),
    [
        ("ljspeech", ".", "no metadata.csv in .*expected LJ Speech's folder"),
        ("librispeech", ".", "1 sound file in .*, none named SPEAKER-CHAPTER-UTTERANCE.flac"),
        ("librispeech", "gone", "no folder"),
        ("folder", "gone", "no folder .*gone: expected a folder"),
        ("folder", "empty", "no utterances in .*empty"),
        ("hf", "gone", "could not be loaded"),
        ("lhotse", "gone.jsonl", "no file .*gone.jsonl: expected JSON lines"),
        ("lhotse", "sound.wav", "sound.wav, line 1: (not UTF-8 text|no JSON)"),
        ("lhotse", "x_supervisions.jsonl", "no .*x_recordings.jsonl: expected the recordings"),
    ],
)
def test_a_wrong_source_is_named(tmp_path, out, monkeypatch, kind, source, message):
    if kind == "hf":
        pytest.importorskip("datasets")
        monkeypatch.setattr(
            "datasets.load_dataset", lambda *a, **k: (_ for _ in ()).throw(OSError("offline"))
        )
    sound(tmp_path / "sound.wav")
    (tmp_path / "empty").mkdir()
    json_lines(tmp_path / "x_supervisions.jsonl", {"recording_id": "r"})
    with pytest.raises(UserError, match=message) as caught:
        prepare(kind, tmp_path / source, out)
    assert "\n" not in str(caught.value)
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--split", "test"), "--split belongs to --from hf, got --from folder"),
        (("--download", "dev-clean"), "--download belongs to --from librispeech"),
        (("--lang", "English"), "--lang is 'English', expected two small letters"),
        (("--validation-share", "0.2"), "without --validation-out"),
        (("--validation-out", "v.jsonl", "--validation-share", "1"), "between 0 and 1"),
        (("--validation-out", "OUT"), "expected two files"),
        (("--validation-out", "CORPUS"), "exists: give another name$"),
    ],
)
def test_contradicting_options_are_rejected(corpus, out, options, message):
    options = [{"OUT": out, "CORPUS": corpus}.get(option, option) for option in options]
    with pytest.raises(UserError, match=message):
        prepare("folder", corpus, out, *options)
    assert not out.exists()


def test_existing_output_stays_unless_forced(corpus, out):
    out.parent.mkdir()
    out.write_text("mine")
    with pytest.raises(UserError, match=r"exists: give another name, or --force"):
        prepare("folder", corpus, out)
    assert out.read_text() == "mine"
    assert len(prepare("folder", corpus, out, "--force")) == 40


def test_one_bad_file_of_a_small_corpus_is_skipped_and_named(corpus, out, capsys):
    (corpus / "empty.wav").touch()
    assert len(prepare("folder", corpus, out)) == 40
    assert capsys.readouterr().out.splitlines() == [
        f"{out}: 40 utterances, 0.3 min, 0 speakers, 0 with text",
        f"skipped 1 of 41 as unreadable: {corpus / 'empty.wav'}: empty file",
    ]
    with pytest.raises(UserError, match="1 of 41"):
        prepare("folder", corpus, out, "--force", "--max-bad-share", 0)


def test_more_bad_files_stop_it_name_five_and_write_nothing(corpus, out):
    for n in range(7):
        (corpus / f"bad{n}.flac").write_bytes(b"no sound")
    with pytest.raises(
        UserError, match=r"7 of 47 .*bad0.flac.*bad4.flac.*; and 2 more; expected at most 1.00%"
    ):
        prepare("folder", corpus, out)
    assert not out.exists()
    assert len(prepare("folder", corpus, out, "--max-bad-share", 0.2)) == 40


def test_from_100_files_on_the_share_alone_decides(tmp_path, out):
    path = sound(tmp_path / "a.wav", 3.0)
    cuts = [cut(path)] * 198 + [cut(tmp_path / "gone.wav")] * 2
    assert len(prepare("lhotse", json_lines(tmp_path / "c.jsonl", *cuts), out)) == 198
    with pytest.raises(UserError, match="2 of 199"):
        prepare("lhotse", json_lines(tmp_path / "c.jsonl", *cuts[1:]), out, "--force")


def test_a_corpus_of_one_bad_file_is_an_error(tmp_path, out):
    (tmp_path / "a.wav").touch()
    with pytest.raises(UserError, match=r"1 of 1 .*a.wav: empty file"):
        prepare("folder", tmp_path, out)


def test_hf_takes_its_sound_away_again_when_it_stops(tmp_path, out):
    datasets = pytest.importorskip("datasets")
    rows = [{"bytes": b"no sound", "path": "a.wav"}, {"bytes": None, "path": "gone.wav"}]
    datasets.Dataset.from_dict({"audio": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"2 of 2 .*a.wav: no readable sound.*gone.wav: no such file"):
        prepare("hf", tmp_path / "saved", out)
    assert not list(out.parent.iterdir())


def test_a_stream_of_unknown_length_is_unreadable(corpus, out, capsys):
    path = sound(corpus / "piped.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count the samples; 0 is unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(prepare("folder", corpus, out)) == 40
    assert "piped.flac: the header does not state a length" in capsys.readouterr().out


# The validation share.


def test_validation_share_is_disjoint_complete_and_kept_when_files_are_added(corpus, out, capsys):
    validation = out.with_name("val.jsonl")
    options = ("--validation-out", validation, "--validation-share", 0.3)
    training = {u.id for u in prepare("folder", corpus, out, *options)}
    chosen = {u.id for u in read_manifest(validation)}
    assert training | chosen == {f"u{n:02d}" for n in range(40)}
    assert not training & chosen
    assert 4 <= len(chosen) <= 20
    assert [line.partition(" utt")[0] for line in capsys.readouterr().out.splitlines()] == [
        f"{out}: {len(training)}",
        f"{validation}: {len(chosen)}",
    ]
    for n in range(20):
        sound(corpus / f"new{n}.wav")
    assert training < {u.id for u in prepare("folder", corpus, out, "--force", *options)}
    assert chosen < {u.id for u in read_manifest(validation)}


def test_validation_share_that_leaves_a_part_empty_is_an_error(tmp_path, out):
    sound(tmp_path / "in" / "a.wav")
    with pytest.raises(UserError, match=r"leaves . for training, . for validation"):
        prepare("folder", tmp_path / "in", out, "--validation-out", out.with_name("val.jsonl"))
    assert not out.parent.exists()


# The real corpora, and the start of the command line.


def test_real_ljspeech(shared_data, out, capsys):
    utterances = prepare("ljspeech", shared_data / "ljspeech", out)
    assert len(utterances) == 435
    assert capsys.readouterr().out == f"{out}: 435 utterances, 48.1 min, 1 speaker, 435 with text\n"


def test_real_librispeech(shared_data, out, capsys):
    assert len(prepare("librispeech", shared_data / "librispeech", out)) == 251
    assert capsys.readouterr().out == f"{out}: 251 utterances, 52.3 min, 251 speakers, 0 with text\n"


def test_the_options_load_nothing_heavy():
    heavy = "{'torch', 'numpy', 'soundfile', 'datasets', 'tqdm'} & set(sys.modules)"
    code = f"import sys; import lit_moss.cli.prepare; print({heavy} or 'light')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "light"


# Long utterances.


def speech_with_pauses(path: Path, seconds: int, rate_hz: int = 8000) -> np.ndarray:
    """Noise with a pause of 0.3 s in every second."""
    wave = np.random.default_rng(0).normal(0, 0.1, (seconds, rate_hz))
    wave[:, round(0.6 * rate_hz) : round(0.9 * rate_hz)] *= 0.001
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave.ravel(), rate_hz)
    return wave.ravel()


@pytest.mark.parametrize("block_sec", [600.0, 7.0])
def test_max_sec_cuts_at_pauses_and_loses_no_sample(tmp_path, out, capsys, monkeypatch, block_sec):
    monkeypatch.setattr(
        manifest, "CUT_BLOCK_SEC", block_sec
    )  # pieces do not depend on the blocks they are read in
    path = tmp_path / "in" / "long.wav"
    speech_with_pauses(path, 20)
    sound(tmp_path / "in" / "short.wav", 3.0)
    *pieces, short = prepare("folder", tmp_path / "in", out, "--max-sec", 3)
    assert (short.id, short.offset_sec, short.duration_sec) == ("short", 0.0, 3.0)
    assert all(u.duration_sec <= 3.0 and u.text is None for u in pieces)
    assert len({u.id for u in pieces}) == len(pieces)
    # Each is read back at its own place, and together they are the file.
    samples = [io.read(u.audio, 8000, u.offset_sec, u.duration_sec) for u in pieces]
    assert torch.equal(torch.cat(samples), io.read(path, 8000))
    cuts_in_second = [u.offset_sec % 1 for u in pieces[1:]]
    assert all(0.6 < place < 0.9 for place in cuts_in_second)
    assert f"cut 1 utterance longer than 3 s at pauses into {len(pieces)} pieces" in capsys.readouterr().out


def test_max_sec_cuts_inside_a_cut_at_a_rate_whose_samples_are_no_round_times(tmp_path, out):
    samples = np.random.default_rng(0).normal(0, 0.1, 44_100 * 8)
    soundfile.write(tmp_path / "long.wav", samples, 44_100)
    source = json_lines(
        tmp_path / "c.jsonl", cut(tmp_path / "long.wav", start=0.33333, duration=7.1, supervisions=[])
    )
    pieces = prepare("lhotse", source, out, "--max-sec", 2)
    assert pieces[0].offset_sec == 0.33333
    joined = torch.cat([io.read(u.audio, 44_100, u.offset_sec, u.duration_sec) for u in pieces])
    assert torch.equal(joined, io.read(tmp_path / "long.wav", 44_100, 0.33333, 7.1))


def test_max_sec_keeps_long_utterances_with_text_and_names_them(tmp_path, out, capsys):
    sound(tmp_path / "in" / "said.wav", 5.0)
    (tmp_path / "in" / "said.txt").write_text("words without times")
    (u,) = prepare("folder", tmp_path / "in", out, "--max-sec", 2)
    assert (u.offset_sec, u.duration_sec, u.text) == (0.0, 5.0, "words without times")
    kept = "kept 1 utterance longer than 2 s whole, their text cannot be cut without word times: said (5.0 s)"
    assert capsys.readouterr().out.splitlines()[-1] == kept


def test_pieces_of_one_utterance_stay_in_one_part(tmp_path, out):
    for n in range(12):
        sound(tmp_path / "in" / f"u{n:02d}.wav", 5.0)
    validation = out.with_name("val.jsonl")
    options = ("--validation-out", validation, "--validation-share", 0.4, "--max-sec", 2)
    training = {u.audio.name for u in prepare("folder", tmp_path / "in", out, *options)}
    assert not training & {u.audio.name for u in read_manifest(validation)}


def test_a_long_file_that_is_damaged_further_on_is_unreadable(corpus, out, capsys):
    path = sound(corpus / "torn.flac", 5.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(prepare("folder", corpus, out, "--max-sec", 2)) == 40
    assert "skipped 1 of 41 as unreadable" in capsys.readouterr().out


@pytest.mark.parametrize("seconds", ["0", "-3", "nan", "inf", "0.5"])
def test_max_sec_out_of_range_is_rejected(corpus, out, seconds):
    with pytest.raises(UserError, match=r"--max-sec is .*expected seconds, 1 or more"):
        prepare("folder", corpus, out, "--max-sec", seconds)
