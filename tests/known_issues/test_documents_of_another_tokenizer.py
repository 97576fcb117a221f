"""Folders of documents whose ids are those of another tokenizer than the run's trained it without a word.

Text ids of one backbone's tokenizer trained another backbone, whose table was resized to fit; and held-out
items and transcripts were made with `data.speech_tokenizer` whatever had made the documents' codes.
"""

import json
import shutil

import pytest
import yaml
from decoders import made_up_codec, made_up_manifest
from lm_recipe import backbone_folder, documents_folder, lm_recipe
from recording import fit

from lit_moss.data import UnsupervisedDataModule
from lit_moss.errors import UserError
from lit_moss.hub.tokenizer import NamedTokenizer


def with_other_words(folder, backbone):
    """A backbone of the same sizes, whose ids stand for other bytes."""
    shutil.copytree(backbone, folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    letters = [word for word in vocabulary if not word.startswith("<|")]
    for word, i in zip(letters, [vocabulary[w] for w in reversed(letters)], strict=True):
        vocabulary[word] = i
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def recipe_of(folder, model_backbone, data_backbone):
    path = lm_recipe(folder, 1)
    config = yaml.safe_load(path.read_text())
    config["model"]["init_args"]["backbone"] = str(model_backbone)
    config["data"]["init_args"] |= {"backbone": str(data_backbone), "validation": []}
    config["trainer"].pop("val_check_interval")
    path.write_text(yaml.safe_dump(config))
    return path


@pytest.mark.slow
def test_text_ids_of_another_backbone_are_refused(tmp_path, capsys):
    backbone = backbone_folder(tmp_path / "backbone")
    other = with_other_words(tmp_path / "other", backbone)
    for data_backbone in (other, backbone):
        path = recipe_of(tmp_path / "run", other, data_backbone)
        fit(path.parent, path, expected=2)
        last = capsys.readouterr().err.strip().splitlines()[-1]
        assert "the documents' text ids are of the text tokenizer" in last
        assert str(other) in last


@pytest.mark.slow
def test_a_tokenizer_of_the_same_ids_may_have_other_rules(tmp_path):
    backbone = backbone_folder(tmp_path / "backbone")
    other = tmp_path / "other"
    shutil.copytree(backbone, other)
    content = json.loads((other / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (other / "tokenizer.json").write_text(json.dumps(content))
    path = recipe_of(tmp_path / "run", other, backbone)  # `data.backbone` names the one of the documents
    fit(path.parent, path)


def test_held_out_items_are_made_by_the_tokenizer_of_the_documents(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    backbone = backbone_folder(tmp_path / "backbone")
    codec = str(made_up_codec(tmp_path / "codec", codes=32))
    heldout = [str(made_up_manifest(tmp_path / "clips", clips=3))]

    def data_of(made_by, **options):
        name = f"documents-{made_by.replace(' ', '-')}"
        folder = documents_folder(tmp_path / name, backbone, "unsupervised", 4, speech_tokenizer=made_by)
        options = {"speech_tokenizer": codec, "heldout": heldout} | options
        return UnsupervisedDataModule(train=[str(folder)], backbone=str(backbone), context=64, **options)

    for items in ({"heldout_items": 4}, {"heldout_items": 0, "asr_items": 1}):
        with pytest.raises(UserError, match="the documents were made by made up"):
            data_of("made up", **items).setup("fit")
    data_of("made up", heldout_items=0).setup("fit")  # nothing is made with it
    data_of("made up", heldout=[]).setup("fit")
    data_of(NamedTokenizer(codec).fingerprint).setup("fit")
