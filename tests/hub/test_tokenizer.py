"""One fingerprint of a speech tokenizer, wherever it is opened from, and what a name may be."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import fingerprint
from lit_moss.data import DecoderDataModule
from lit_moss.data.documents import read_documents
from lit_moss.data.make_documents import make_documents
from lit_moss.errors import UserError
from lit_moss.hub import NamedTokenizer, open_tokenizer, speech_tokenizer_fingerprint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def manifest(tmp_path):
    for i in range(3):
        noise = np.random.default_rng(i).normal(0, 0.1, 16_000)
        soundfile.write(tmp_path / f"x-{i}.wav", noise, 16_000)
    path = tmp_path / "m.jsonl"
    path.write_text("".join(f'{{"audio_filepath": "x-{i}.wav", "duration": 1.0}}\n' for i in range(3)))
    return path


def checkpoint(model, path, **settings):
    """A Lightning checkpoint of a tokenizer in training."""
    content = {"state_dict": model.state_dict(), "global_step": 1}
    model.on_save_checkpoint(content)
    content["speech_tokenizer"] |= {"codebook_ready": True} | settings
    torch.save(content, path)
    return path


def test_training_checkpoint_folder_and_verbs_have_one_fingerprint(tiny_encoder, manifest, tmp_path):
    from lit_moss.modules import CodecEncoder

    model = CodecEncoder(init_from=None, encoder=tiny_encoder().config)
    model.encoder.load_state_dict(tiny_encoder().state_dict())
    live = fingerprint(model.encoder)
    file = checkpoint(model, tmp_path / "a.ckpt")
    open_tokenizer(str(file)).save_pretrained(tmp_path / "folder")
    for name in (file, tmp_path / "folder"):
        assert speech_tokenizer_fingerprint(str(name)) == live
        assert fingerprint(open_tokenizer(str(name)).encoder) == live
        out = tmp_path / f"{name.name}.jsonl"
        words = ["tokenize", str(manifest), "--speech-tokenizer", str(name), "--out", str(out)]
        assert main([*words, "--device", "cpu"]) == 0
        assert {json.loads(line)["speech_tokenizer"] for line in out.read_text().splitlines()} == {live}
        data = DecoderDataModule([str(manifest)], speech_tokenizer=str(name), workers=0)
        assert data.frozen.fingerprints == {"speech_tokenizer": live, "speaker_encoder": "none"}
        documents = make_documents(
            "unsupervised", [str(manifest)], "train", str(backbone_folder(tmp_path / "backbone")), str(name)
        )
        assert read_documents(documents).meta["speech_tokenizer"] == live


def test_it_follows_weights_sizes_and_features_but_not_settings_of_training(tiny_encoder):
    encoder = tiny_encoder()
    first = fingerprint(encoder)
    encoder.config = replace(encoder.config, quantize_ema_decay=0.5)
    encoder.ema_weight.add_(1.0)
    assert fingerprint(encoder) == first
    encoder.config = replace(encoder.config, log_mel="whisper")
    whisper = fingerprint(encoder)
    encoder.codebook.weight[3, 5] += 1e-6
    assert len({first, whisper, fingerprint(encoder)}) == 3


def test_it_is_computed_once_until_a_file_changes(tiny_encoder, tmp_path, monkeypatch):
    codec = str(made_up_codec(tmp_path / "codec"))
    first = speech_tokenizer_fingerprint(codec)
    opened = []
    open_it = SpeechTokenizer.from_pretrained
    monkeypatch.setattr(
        SpeechTokenizer, "from_pretrained", lambda *args, **kw: opened.append(args) or open_it(*args, **kw)
    )
    assert NamedTokenizer(codec).fingerprint == first
    assert not opened
    assert speech_tokenizer_fingerprint(codec, "whisper") != first
    made_up_codec(tmp_path / "codec", seed=1)
    assert speech_tokenizer_fingerprint(codec) != first
    assert len(opened) == 2


def test_a_run_opens_its_best_checkpoint(tiny_encoder, tmp_path):
    from lit_moss.modules import CodecEncoder
    from lit_moss.runs.checkpoint_io import AtomicCheckpointIO

    run = tmp_path / "runs" / "tiny" / "one"
    model = CodecEncoder(init_from=None, encoder=tiny_encoder().config)
    plain = checkpoint(model, tmp_path / "a.ckpt")
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text('{"mlflow_run_id": null}')
    with pytest.raises(UserError, match="no whole checkpoint for `best`"):
        open_tokenizer(str(run.parent))
    content = torch.load(plain, weights_only=True)
    AtomicCheckpointIO().save_checkpoint(content, run / "checkpoints" / "best.ckpt")
    names = (str(plain), str(run), str(run.parent))
    assert len({speech_tokenizer_fingerprint(name) for name in names}) == 1


@pytest.mark.slow
def test_the_embedded_name_without_the_hub_is_one_clear_line():
    code = (
        "from lit_moss.codec import SpeechTokenizer\n"
        "from lit_moss.errors import UserError\n"
        "try:\n"
        "    SpeechTokenizer.from_pretrained('embedded:whisper-tiny-kmeans')\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "open it by lit_moss.hub.open_tokenizer" in result.stdout
    assert len(result.stdout.splitlines()) == 1


@pytest.mark.nightly
def test_a_run_is_tagged_with_the_fingerprint_of_what_its_name_opens(tmp_path, corpus, monkeypatch):
    import mlflow
    from recording import fit, recipe

    report = [{"class_path": "callbacks.TokenizerReport"}]
    fit(tmp_path, recipe(tmp_path, corpus, 20, **{"trainer__callbacks+": report}))
    monkeypatch.chdir(tmp_path)
    tag = mlflow.search_runs(search_all_experiments=True)["tags.fingerprint.speech_tokenizer"].item()
    assert tag == speech_tokenizer_fingerprint("runs/tiny")
    open_tokenizer("runs/tiny").save_pretrained(tmp_path / "exported")
    assert tag == speech_tokenizer_fingerprint(str(tmp_path / "exported"))
