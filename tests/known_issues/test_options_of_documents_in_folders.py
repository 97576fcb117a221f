"""Options of how documents are made were ignored where the entry is a folder of documents.

`data.pairs`, `reply_form`, `train_on`, `speech_share` and others had no effect, and MLflow and the model card
recorded them as true.
"""

import json

import pytest
import yaml
from lm_recipe import backbone_folder, documents_folder, lm_recipe
from recording import fit, mlflow_runs

from lit_moss.data import InterleavedDataModule, MixtureDataModule, SFTDataModule, TranscriptDataModule
from lit_moss.errors import UserError
from lit_moss.release.card import _hyperparameters
from lit_moss.release.training_facts import training_of
from lit_moss.runs.folder import RunFolder

GUIDED = {"pairs": ["speech-speech", "text-speech"], "train_on": "all", "reply_form": "guided"}


def made_with(folder, **options):
    """States other options in a folder of documents."""
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"options": options}))
    return folder


@pytest.fixture
def folder_of(tmp_path):
    def make(kind, **options):
        backbone = backbone_folder(tmp_path / "backbone")
        return made_with(documents_folder(tmp_path / kind, backbone, kind, 8), **options)

    return make


def setup(kind, folder, **options):
    data = kind(train=[str(folder)], backbone=str(folder.parent / "backbone"), context=96, **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairs": ["text-text"]}, r"data.pairs is \['text-text'\], .*sft were made with \['speech-speech'"),
        ({"reply_form": "interleaved"}, "data.reply_form is 'interleaved', .* were made with 'guided'"),
    ],
)
def test_options_of_conversations_are_compared(folder_of, options, message):
    folder = folder_of("sft", **GUIDED)
    with pytest.raises(UserError, match=f"{message}.*: leave {next(iter(options))} out, or make the doc"):
        setup(SFTDataModule, folder, **options)
    setup(SFTDataModule, folder)
    setup(SFTDataModule, folder, **GUIDED | {"pairs": GUIDED["pairs"][::-1]})


def test_so_are_those_of_other_kinds(folder_of):
    interleaved = folder_of("interleaved", speech_share=0.5, alternate=False, document_sec=60.0, seed=1)
    with pytest.raises(UserError, match=r"data.speech_share is 0.2, .* were made with 0.5"):
        setup(InterleavedDataModule, interleaved, speech_share=0.2)
    with pytest.raises(UserError, match=r"data.document_seed is 5, .* were made with 1"):
        setup(InterleavedDataModule, interleaved, document_seed=5)
    with pytest.raises(UserError, match=r"data.tts is 0.0, .* were made with 1.0"):
        setup(TranscriptDataModule, folder_of("transcripts", asr=1.0, tts=1.0), tts=0.0)
    with pytest.raises(
        UserError, match="kind unsupervised, which have no such option: leave speech_share out"
    ):
        setup(InterleavedDataModule, folder_of("unsupervised"), speech_share=0.2)
    part = InterleavedDataModule(train=[str(interleaved)], speech_share=0.2)
    backbone = str(interleaved.parent / "backbone")
    with pytest.raises(UserError, match=r"data.speech_share is 0\.2"):
        MixtureDataModule(parts=[part], backbone=backbone, context=96).setup("fit")


@pytest.mark.slow
def test_a_default_that_the_user_has_written_counts_too(tmp_path, capsys):
    folder = tmp_path / "run"
    path = lm_recipe(folder, 1, kind="sft")
    for name in ("train", "validation"):
        made_with(tmp_path / f"sft-{name}", **GUIDED)
    fit(folder, path, "--data.init_args.reply_form", "direct", expected=2)
    assert "data.reply_form is 'direct', but the documents in" in capsys.readouterr().err
    config = yaml.safe_load(path.read_text())
    data = config["data"]
    part = {"class_path": data["class_path"], "init_args": {"train_on": "assistant"}}
    part["init_args"] |= {key: data["init_args"].pop(key) for key in ("train", "validation")}
    config["data"] = {"class_path": "lit_moss.data.MixtureDataModule", "init_args": data["init_args"]}
    config["data"]["init_args"]["parts"] = [part]
    path.write_text(yaml.safe_dump(config))
    fit(folder, path, expected=2)
    assert "data.train_on is 'assistant', but the documents in" in capsys.readouterr().err
    assert not list(folder.glob("runs/*/*/run.json"))


@pytest.mark.slow
def test_mlflow_the_configuration_and_the_card_state_what_the_documents_state(tmp_path):
    folder = tmp_path / "run"
    path = lm_recipe(folder, 5, kind="sft")
    for name in ("train", "validation"):
        made_with(tmp_path / f"sft-{name}", **GUIDED)
    fit(folder, path, "--run_name", "first")
    (run,) = mlflow_runs(folder).values()
    recorded = {key: run.data.params[f"data.init_args.{key}"] for key in GUIDED}
    assert recorded == {key: str(value) for key, value in GUIDED.items()}
    stored = RunFolder(folder / "runs/tiny/first")
    assert {key: stored.config()["data"]["init_args"][key] for key in GUIDED} == GUIDED
    card = _hyperparameters(training_of(stored).stages)
    assert "| data.reply_form | guided |" in card
    # What is recorded can be run again.
    fit(folder, stored.config_file, "--ckpt_path", "last", "--trainer.max_steps", "6")


def test_nothing_is_recorded_where_documents_differ(folder_of, tmp_path):
    guided = folder_of("sft", **GUIDED)
    direct = documents_folder(tmp_path / "direct", tmp_path / "backbone", "sft", 8, 1)
    data = SFTDataModule(train=[str(guided), str(direct)])
    assert data.stated_options() == {"pairs": None, "train_on": None, "reply_form": None}
    assert SFTDataModule(train=[str(direct)]).stated_options() == {}
    assert SFTDataModule(train=["talks.jsonl"], reply_form="guided").stated_options() == {}
    mixed = SFTDataModule(train=[str(direct), "talks.jsonl"], train_on="all")
    assert mixed.stated_options() == {"train_on": None}
