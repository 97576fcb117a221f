"""A part that ends after its file was read as far as the file goes, and paired with its whole transcript.

What `prepare manifest` leaves out (more than 0.1 s beyond the end, or starting after it), every reader leaves
out, counts and names.
"""

import collections
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from decoders import small_flow

from callbacks import SkippedData
from lit_moss.audio import io
from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import SpeechDataModule
from lit_moss.data.decoder_data import DecoderDataModule
from lit_moss.errors import UserError
from lit_moss.hub import NamedTokenizer
from lit_moss.hub.code_cache import encode_utterances
from lit_moss.hub.kmeans import make_kmeans_tokenizer

RATE_HZ = 16_000
SECONDS = 2.0
# offset, duration -> whether it is inside 2 s, give or take 0.1 s at the end.
SPANS = [
    (0.0, 2.0, True), (0.0, None, True), (1.0, 1.0, True), (1.0, 1.09, True), (1.9, 0.2, True),
    (1.0, 30.0, False), (0.0, 988.89, False), (1.0, 1.2, False), (2.0, None, False), (3.0, 0.5, False),
    (3.0, None, False), (0.5, 0.0, False), (-0.5, 1.0, False),
]  # fmt: skip
FORMATS = ["wav", "flac", "ogg", "mp3"]


@pytest.fixture(params=FORMATS)
def sound(tmp_path, request):
    path = tmp_path / f"a.{request.param}"
    noise = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE_HZ)).astype(np.float32)
    soundfile.write(path, noise, RATE_HZ)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("offset_sec", "duration_sec", "inside"), SPANS)
def test_read_takes_parts_inside_the_file_alone(sound, offset_sec, duration_sec, inside):
    if inside:
        wave = io.read(sound, RATE_HZ, offset_sec, duration_sec)
        wanted_sec = min(SECONDS - offset_sec, duration_sec or SECONDS)
        assert len(wave) == round(wanted_sec * RATE_HZ)
    else:
        with pytest.raises(io.UnreadableAudio, match=rf"{sound.name}: .* is not inside its 2\.00 s"):
            io.read(sound, RATE_HZ, offset_sec, duration_sec)


def test_a_most_is_no_promise(sound):
    assert len(io.read(sound, RATE_HZ, longest_sec=30.0)) == round(SECONDS * RATE_HZ)
    assert torch.equal(io.read(sound, RATE_HZ, 0.5, longest_sec=0.5), io.read(sound, RATE_HZ, 0.5, 0.5))


@pytest.fixture
def manifest(tmp_path):
    """Three good parts of 2 s, and three beyond the end of their file."""
    noise = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE_HZ))
    names = ("a", "b", "c", "long", "late", "after")
    for name in names:
        soundfile.write(tmp_path / f"{name}.wav", noise, RATE_HZ)
    spans = {"long": (0.0, 12.0), "late": (1.0, 3.0), "after": (2.5, None)}
    path = tmp_path / "m.jsonl"
    with path.open("w") as file:
        for name in names:
            offset, duration = spans.get(name, (0.0, None))
            entry = {"audio_filepath": f"{name}.wav", "offset": offset, "duration": duration, "text": name}
            file.write(json.dumps(entry) + "\n")
    return path


@pytest.fixture
def codec(tiny_encoder, tmp_path):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


def names_of(reasons) -> list[str]:
    return sorted(
        name for name in ("a.wav", "b.wav", "c.wav", "long", "late", "after") if name in str(reasons)
    )


@pytest.mark.parametrize("kind", ["speech", "decoder"])
def test_training_skips_them_by_name(manifest, codec, kind, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(manifest.parent / "cache"))
    if kind == "speech":
        data = SpeechDataModule(train=[str(manifest)], workers=0)
    else:
        data = DecoderDataModule(train=[str(manifest)], workers=0, speech_tokenizer=str(codec), cache=False)
    data.setup("fit")
    skipped, read = dict(data.skipped), []
    for _, batch in zip(range(data.order.batches_per_epoch), data.train_dataloader(), strict=False):
        skipped |= dict(line.split("\t") for line in batch.skipped)
        read += batch.ids
    assert set(read) == {"a", "b", "c"}
    assert names_of(skipped.values()) == ["after", "late", "long"]
    assert len(skipped) == 3


def test_they_stop_a_run_above_the_share(manifest):
    data = SpeechDataModule(train=[str(manifest)], workers=0)
    data.setup("fit")
    trainer = SimpleNamespace(datamodule=data, logger=None, global_step=0, world_size=1, is_global_zero=True)
    counter = SkippedData()
    batches = zip(range(10), data.train_dataloader(), strict=False)
    with pytest.raises(UserError, match=r"[23] of 6 utterances cannot be read"):
        collections.deque(counter.on_train_batch_end(trainer, None, None, b, i) for i, b in batches)


def test_what_setup_cannot_read_stops_a_run_that_never_validates(tmp_path):
    """Lengths that a manifest does not state are read at the start; six of ten left out passed unseen."""
    for i in range(10):
        soundfile.write(tmp_path / f"{i}.wav", np.random.default_rng(0).normal(0, 0.1, 16_000), RATE_HZ)
        if i < 6:
            (tmp_path / f"{i}.wav").write_bytes((tmp_path / f"{i}.wav").read_bytes()[:2000])
    (tmp_path / "m.jsonl").write_text("".join(f'{{"audio_filepath": "{i}.wav"}}\n' for i in range(10)))
    data = SpeechDataModule(train=[str(tmp_path / "m.jsonl")], workers=0)
    data.setup("fit")
    trainer = SimpleNamespace(datamodule=data, logger=None, global_step=0, world_size=1, is_global_zero=True)
    with pytest.raises(UserError, match=r"6 of 10 utterances cannot be read.*0\.wav: cut off"):
        SkippedData().on_train_start(trainer, None)
    (tmp_path / "m.jsonl").write_text('{"audio_filepath": "0.wav"}\n')
    with pytest.raises(UserError, match=r"no utterance of .*, 1 cannot be read: .*0\.wav: cut off"):
        SpeechDataModule(train=[str(tmp_path / "m.jsonl")], workers=0).setup("fit")


def test_tokenize_leaves_them_out_by_name(manifest, codec, tmp_path, capsys):
    out = tmp_path / "codes.jsonl"
    command = ["tokenize", str(manifest), "--speech-tokenizer", str(codec), "--out", str(out)]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--device", "cpu"])
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert "3 left out" in error
    assert names_of(error) == ["after", "late", "long"]
    assert len(out.read_text().splitlines()) == 3


def test_codes_of_documents_stop_above_the_share(manifest, codec, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(manifest.parent / "cache"))
    with pytest.raises(UserError, match="3 of 6 recordings cannot be read") as stopped:
        encode_utterances(read_manifest(manifest), NamedTokenizer(str(codec)))
    assert names_of(stopped.value) == ["after", "late", "long"]


def test_a_codebook_is_made_of_the_others(manifest, capfd):
    make_kmeans_tokenizer(manifest, size=2, layers=1)
    assert names_of(capfd.readouterr().err) == ["after", "late", "long"]


@pytest.mark.nightly
def test_evaluation_leaves_them_out_by_name(manifest, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Codec(None, small_flow()).save_pretrained(tmp_path / "decoder")
    (tmp_path / "c.yaml").write_text("judge: null\nspeaker: null\ndnsmos: false\nrungs: [original]\n")
    keys = ["--codec", str(tmp_path / "decoder"), "--clips", str(manifest)]
    assert main(["evaluate", "resynthesis", "-c", "c.yaml", *keys]) == 0
    assert names_of(capsys.readouterr().err) == ["after", "late", "long"]


def test_public_cases_of_sound_files():
    with pytest.raises(io.UnreadableAudio, match=r"trunc\.wav"):
        io.read(case("trunc.wav"), RATE_HZ)
    assert len(io.read(case("twice.ogg"), RATE_HZ)) == 2 * 30_393  # both streams


def test_public_case_of_a_part_beyond_the_end():
    for utterance in read_manifest(case("past.jsonl")):
        with pytest.raises(io.UnreadableAudio, match="twice"):
            io.read(utterance.audio, RATE_HZ, utterance.offset_sec, utterance.duration_sec)


def case(name: str) -> Path:
    path = Path(__file__).resolve().parents[3] / "shared/cases" / name
    if not path.is_file():
        pytest.skip("needs the inputs of ../shared/cases")
    return path
