"""Train a little, export, import, fine-tune from it, export: the same tensors and replies throughout."""

import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lm_recipe import CODES, lm_recipe
from model_folders import codec_folder
from recording import fit

from lit_moss.cli.main import main
from lit_moss.data.conversation import PAIRS, Renderer, Turn
from lit_moss.hub import open_lm, speech_tokenizer_fingerprint
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer

ROOT = Path(__file__).resolve().parents[2]
FULL = [{"policy": "full"}]


def export(run, out, *more):
    assert main(["export", str(run), "--out", str(out), *map(str, more)]) == 0


def weights(folder):
    return SplitLM.from_pretrained(folder).state_dict()


def changed(ours, theirs):
    a, b = weights(ours), weights(theirs)
    assert a.keys() == b.keys()
    return {name for name in a if not torch.equal(a[name], b[name])}


def replies(lm, folder):
    """16 greedy rows in each pair of modalities."""
    renderer = Renderer(load_text_tokenizer(folder), lm.format)
    turns = [Turn("user", "abc", [1, 4, 13])]
    prompts = [renderer.prompt(turns, *pair) for pair in PAIRS.values()]
    return lm.eval().generate(prompts, max_new_tokens=16, greedy=True)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A run of a few steps, and what is made of it: exported, and imported again."""
    top = tmp_path_factory.mktemp("round")
    codec = codec_folder(top / "codec", CODES)
    options = {"kind": "sft", "stages": FULL, "speech_tokenizer": speech_tokenizer_fingerprint(str(codec))}
    fit(top / "first", lm_recipe(top / "first", 5, **options))
    export(top / "first/runs/tiny", top / "exported", "--codec", codec)
    words = ["import", str(top / "exported"), "--out", str(top / "imported")]
    assert main(words) == 0
    return top, options


def second(top, options, name, **changes):
    """A run from the imported folder, which is also given as the backbone; exported."""
    imported = str(top / "imported")
    config = lm_recipe(top / name, 5, **options | {"backbone": imported, "init_from": imported} | changes)
    fit(top / name, config)
    export(top / name / "runs/tiny", top / f"{name}-exported", "--codec", top / "imported/codec")
    return top / f"{name}-exported"


@pytest.mark.slow
def test_export_and_import_keep_tensors_and_replies(first):
    top, _ = first
    assert not changed(top / "imported", top / "exported")
    lm = open_lm(top / "first/runs/tiny")
    expected = replies(lm, top / "exported")
    assert len(expected) == 4
    for folder in ("exported", "imported"):
        assert replies(SplitLM.from_pretrained(top / folder), top / folder) == expected


@pytest.mark.nightly
def test_what_fine_tuning_does_not_train_comes_out_as_it_went_in(first):
    top, options = first
    still = second(top, options, "still", lr=0.0)
    assert not changed(still, top / "imported")
    lm = SplitLM.from_pretrained(still)
    assert replies(lm, still) == replies(SplitLM.from_pretrained(top / "imported"), top / "imported")
    part = second(top, options, "part", stages=[{"policy": "stage1"}], save_frozen=False)
    assert changed(part, top / "imported")
    assert all("audio" in name for name in changed(part, top / "imported"))
    whole = second(top, options, "whole")
    assert changed(whole, top / "imported") == weights(whole).keys()
    assert replies(open_lm(top / "whole/runs/tiny"), whole) == replies(SplitLM.from_pretrained(whole), whole)
    # The imported folder's weights are links to the exported files, mapped in training: unharmed.
    assert not changed(top / "imported", top / "exported")


@pytest.mark.nightly
def test_documents_of_another_codec_and_codecs_of_another_size_are_refused(first, tmp_path, capsys):
    top, options = first
    shutil.copytree(top / "backbone", tmp_path / "backbone")
    other = lm_recipe(tmp_path / "run", 5, init_from=str(top / "imported"),
                      **options | {"speech_tokenizer": "0123456789abcdef"})  # fmt: skip
    fit(tmp_path / "run", other, expected=2)
    error = capsys.readouterr().err
    assert f"speech tokenizer {options['speech_tokenizer']}" in error
    assert "this one is 0123456789abcdef" in error
    # Without a record the number of codes shows it.
    shutil.copytree(top / "imported", tmp_path / "bare")
    (tmp_path / "bare/lit_moss.json").unlink()
    shutil.rmtree(tmp_path / "bare/codec")
    codec_folder(tmp_path / "codec", codes=2 * CODES)
    words = ["--codec", str(tmp_path / "codec"), "--out", str(tmp_path / "out")]
    assert main(["import", str(tmp_path / "bare"), *words]) == 2
    assert f"has {CODES} codes (eosp_token_id of its config.json)" in capsys.readouterr().err


@pytest.mark.nightly
def test_the_recipe_needs_one_path(first, corpus, tmp_path):
    """conf/finetune/full.yaml on a small corpus; text tokenizer and codec are those of the folder."""
    top, _ = first
    (tmp_path / "run").mkdir()
    train, validation = (str(corpus / f"{part}.jsonl") for part in ("train", "validation"))
    fit(
        tmp_path / "run",
        ROOT / "conf/finetune/full.yaml",
        *("--model.init_args.init_from", str(top / "imported")),
        *("--data.init_args.train", f"[{train}]", "--data.init_args.validation", f"[{validation}]"),
        *("--trainer.max_steps", "3", "--trainer.val_check_interval", "3", "--trainer.accelerator", "cpu"),
        *(
            "--data.init_args.heldout_items",
            "2",
            "--data.init_args.context",
            "512",
            "--trainer.precision",
            "32-true",
        ),
    )
    run = next((tmp_path / "run/runs/finetune").iterdir())
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["speech_tokenizer"] == str(top / "imported/codec")
    assert config["data"]["init_args"]["backbone"] == str(top / "imported")
    export(run, tmp_path / "out", "--codec", top / "imported/codec")
    assert changed(tmp_path / "out", top / "imported")
