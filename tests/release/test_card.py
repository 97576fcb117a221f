"""Model cards: what they say comes from the run; no path of the machine is in them."""

import getpass
import math
import os
import re
import socket
from pathlib import Path

import pytest
import yaml
from lm_recipe import backbone_folder, documents_folder

from lit_moss.files import write_json
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.release.card import write_card
from lit_moss.release.public_names import data_name, part_name
from lit_moss.runs.folder import RunFolder


def sections(folder: Path) -> tuple[dict, dict[str, str]]:
    """Header, and title -> text of each section."""
    _, header, body = (folder / "README.md").read_text().split("---\n", 2)
    parts = re.split(r"^## (.*)$", body, flags=re.M)
    return yaml.safe_load(header), dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A working folder with data, two stages of runs and the exported model of the second."""
    place = tmp_path_factory.mktemp("place")
    backbone = backbone_folder(place / "backbone")
    lm = SplitLM.from_backbone(backbone, 1, 128)
    lm.save_pretrained(place / "exported")
    ModelRecord(backbone="embedded:smollm2-135m", stages=["stage1", "sft"], steps=75, averaged=3).write(
        place / "exported"
    )
    documents_folder(place / "data" / "talk" / "train", backbone, "sft", 12)
    (place / "speech").mkdir()
    lines = ['{"audio_filepath": "a.wav", "duration": 1800.0, "lang": "en"}',
             '{"audio_filepath": "b.wav", "duration": 5400.0, "lang": "zh"}']  # fmt: skip
    (place / "speech" / "ljspeech.jsonl").write_text("\n".join(lines) + "\n")
    return place


def begin_run(place: Path, name: str, mlflow_run_id=None, result=True, **changes) -> RunFolder:
    run = RunFolder(place / "runs" / name / "2026-01-01_00-00-00")
    run.path.mkdir(parents=True, exist_ok=True)
    config = {
        "name": name,
        "run_root": "runs",
        "seed_everything": 7,
        "model": {
            "class_path": "lit_moss.modules.SplitLLM",
            "init_args": {"backbone": "embedded:smollm2-135m", "lr": 0.0003, "weight_decay": 0.0,
                          "init_from": None} | changes.pop("model", {}),
        },
        "data": {
            "class_path": "lit_moss.data.SFTDataModule",
            "init_args": {"speech_tokenizer": "embedded:whisper-tiny-kmeans", "context": 96, "workers": 3}
            | changes.pop("data", {}),
        },
        "trainer": {"max_steps": 80, "precision": "bf16-mixed", "callbacks": [
            {"class_path": "callbacks.StagedFreezing", "init_args": {"stages": [{"policy": "full"}]}}]},
    }  # fmt: skip
    run.config_file.write_text(yaml.safe_dump(config))
    run.begin(mlflow_run_id)
    if result:
        metrics = {"val/loss": 2.5, "val/text_accuracy": 0.5, "train/loss": 1.0, "heldout/speech_ppl": None}
        run.write_result(
            {"step": 80, "stopped": None, "run_id": mlflow_run_id, "metrics": metrics,
             "lowest": metrics | {"val/loss": 2.25}, "highest": metrics | {"val/text_accuracy": 0.75}}
        )  # fmt: skip
    return run


@pytest.fixture
def away(monkeypatch, tmp_path):
    """MLflow's address, where nothing answers."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'none.db'}")
    return tmp_path / "none.db"


@pytest.fixture
def two_stages(place):
    begin_run(place, "stage1", data={"train": [str(place / "speech" / "ljspeech.jsonl")]})
    return begin_run(
        place, "sft", model={"init_from": "runs/stage1"},
        data={"train": ["data/talk/train"], "validation": ["/home/alice/secret/manifest.jsonl"]},
    )  # fmt: skip


def test_header_is_what_the_hub_reads(place, two_stages, away):
    from huggingface_hub import ModelCard

    write_card(place / "exported", two_stages)
    header, _ = sections(place / "exported")
    assert header == {
        "license": "unknown",  # of the weights; the backbone's is in the text
        "language": ["en", "zh"],
        "library_name": "lit-moss",
        "pipeline_tag": "audio-to-audio",
        "tags": ["speech-to-speech", "speech", "moss-speech", "arxiv:2510.00499"],
        "base_model": ["HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny"],
    }
    assert ModelCard.load(place / "exported" / "README.md").data.to_dict() == header


def test_stages_data_settings_and_results_come_from_the_runs(place, two_stages, away):
    write_card(place / "exported", two_stages)
    _, text = sections(place / "exported")
    assert "| stage1 | 2026-01-01_00-00-00 | the backbone | full | 80 |" in text["Training"]
    assert "| sft | 2026-01-01_00-00-00 | stage1/2026-01-01_00-00-00 | full | 80 |" in text["Training"]
    assert "step 75 of the last stage, the mean of 3 checkpoints" in text["Training"]
    assert "| stage1 | train | ljspeech | sft | 2 | – | 2 | en, zh |" in text["Data"]
    assert re.search(r"\| sft \| train \| talk/train \| sft \| 12 \| \d+ \| [\d.]+ \| – \|", text["Data"])
    assert "| sft | validation | secret/manifest | sft | – |" in text["Data"]
    assert "| model.lr | 0.0003 | 0.0003 |" in text["Hyperparameters"]
    assert "| model.weight_decay | 0.0 | 0.0 |" in text["Hyperparameters"]
    assert "workers" not in text["Hyperparameters"]
    assert "| sft | val/loss | 2.5 | 2.25 |" in text["Results"]
    assert "| sft | val/text_accuracy | 0.5 | 0.75 |" in text["Results"]
    assert "train/loss" not in text["Results"]
    assert "were not validated" in text["Results"]
    assert (
        "| backbone | embedded:smollm2-135m | HuggingFaceTB/SmolLM2-135M-Instruct | Apache-2.0 |"
        in (text["Licence"])
    )
    assert (
        "| speech tokenizer | embedded:whisper-tiny-kmeans | openai/whisper-tiny | MIT |" in text["Licence"]
    )


def test_sizes_are_those_of_the_stored_tensors(place, two_stages, away):
    write_card(place / "exported", two_stages)
    _, text = sections(place / "exported")
    lm = SplitLM.from_pretrained(place / "exported")
    assert f"| all | {sum(p.numel() for p in lm.parameters()):,} |" in text["Size"]
    trunk = sum(p.numel() for p in lm.model.shared_block.parameters())
    assert f"| shared trunk | {trunk:,} |" in text["Size"]
    assert "Stored as F32 safetensors." in text["Size"]


def test_no_path_user_or_host_is_in_a_card(place, away):
    for name in ("stage1", "sft"):
        run = begin_run(
            place, name,
            model={"init_from": f"{place}/runs/stage1" if name == "sft" else "/scratch/alice/base",
                   "backbone": "/mnt/models/alice/Qwen3-8B", "lora": {"path": "/home/alice/adapters/one"}},
            data={"train": ["/home/alice/train.jsonl", str(place / "data/talk/train"),
                            r"C:\Users\alice\a.jsonl", "s3://alice-bucket/corpora/train.jsonl"],
                  "speech_tokenizer": "../alice/tokenizer"},
        )  # fmt: skip
    write_card(place / "exported", run)
    card = (place / "exported" / "README.md").read_text()
    for word in (str(place), "/home", "/mnt", "/scratch", "alice", "Users", "s3:", socket.gethostname()):
        assert word not in card, word
    assert getpass.getuser() not in re.sub(r"\W\w*root\w*", "", card)  # `root` may be the user here
    assert "Qwen3-8B" in card


@pytest.mark.slow
def test_mlflow_adds_the_commit_and_the_results_of_a_killed_run(place, monkeypatch, tmp_path):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    client = MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    tags = {"mlflow.source.git.commit": "0123abc", "git.dirty": "True", "version.torch": "2.11.0",
            "command": "fit -c /home/alice/x.yaml", "run_folder": "/home/alice/runs/x",
            "machine": "x86_64, 2 cores",
            "mlflow.user": "alice"}  # fmt: skip
    run_id = client.create_run(client.create_experiment("x"), tags=tags).info.run_id
    for step, loss in enumerate([3.0, 1.5, math.nan, 2.0]):
        client.log_metric(run_id, "val/loss", loss, step=step)
    run = begin_run(place, "killed", run_id, result=False)
    write_card(place / "exported", run)
    card, (_, text) = (place / "exported" / "README.md").read_text(), sections(place / "exported")
    assert (
        "commit 0123abc with uncommitted changes; torch 2.11.0. Machine: x86_64, 2 cores." in text["Training"]
    )
    assert "| killed | val/loss | 2 | 1.5 |" in text["Results"]
    assert "alice" not in card


def test_a_card_without_mlflow_makes_no_database(place, two_stages, away):
    run = begin_run(place, "untracked", "0" * 32)
    write_card(place / "exported", run)
    assert not away.exists()
    assert "Commit and versions of libraries: not recorded." in sections(place / "exported")[1]["Training"]


def test_a_card_is_written_where_the_tracking_server_is_away(place, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_card(place / "exported", begin_run(place, "away", "0" * 32))
    assert "| away | val/loss | 2.5 | 2.25 |" in sections(place / "exported")[1]["Results"]


def test_a_folder_without_a_run_says_what_is_not_recorded(place, tmp_path):
    SplitLM.from_pretrained(place / "exported").save_pretrained(tmp_path / "imported")
    write_card(tmp_path / "imported", None)
    header, text = sections(tmp_path / "imported")
    assert header["license"] == "unknown"
    assert "language" not in header
    assert "base_model" not in header
    for title in ("Training", "Data", "Hyperparameters", "Results"):
        assert text[title].strip() == "Not recorded.", title
    assert "not recorded" in text["Licence"]
    assert "small model" in text["Limits"]


def test_a_stated_licence_wins(place, away, tmp_path):
    SplitLM.from_pretrained(place / "exported").save_pretrained(tmp_path / "own")
    ModelRecord(backbone="embedded:smollm2-135m", license="CC-BY-NC-4.0").write(tmp_path / "own")
    write_card(tmp_path / "own", None)
    header, text = sections(tmp_path / "own")
    assert header["license"] == "cc-by-nc-4.0"
    assert "The weights are under CC-BY-NC-4.0." in text["Licence"]


def test_the_python_example_of_the_card_runs(place, two_stages, away, monkeypatch, capsys):
    write_card(place / "exported", two_stages)
    _, text = sections(place / "exported")
    code = re.findall(r"```python\n(.*?)```", text["How to use"], flags=re.S)
    monkeypatch.chdir(place / "exported")
    for block in code:
        exec(compile(block, "README.md", "exec"), {})
    assert code
    assert capsys.readouterr().out.endswith("\n")


def test_a_circle_of_runs_ends(place, away):
    run = begin_run(place, "circle", model={"init_from": "runs/circle"})
    write_card(place / "exported", run)
    assert sections(place / "exported")[1]["Training"].count("| circle |") <= 20


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("data/ljspeech/train.jsonl", "ljspeech/train"),
        ("/data/librispeech/train-clean-100.jsonl", "train-clean-100"),
        ("/home/alice/train.jsonl", "train"),
        ("/home/alice/corpora/ljspeech/train.jsonl", "ljspeech/train"),
        ("embedded:everyday-en", "embedded:everyday-en"),
        ("corpora/voices-v1.2", "voices-v1.2"),
        ("/", "a local folder"),
    ],
)
def test_names_of_data(path, name):
    assert data_name(path) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("embedded:smollm2-135m", "embedded:smollm2-135m"),
        ("runs/stage1", "stage1"),
        ("runs/stage1/first/checkpoints/best.ckpt", "stage1/first/best.ckpt"),
        ("/home/alice/models/Qwen3-8B", "Qwen3-8B"),
    ],
)
def test_names_of_parts(given, name):
    assert part_name(given) == name


def test_cards_of_codecs(tmp_path):
    write_json(tmp_path / "config.json", {"model_type": "whisper"})
    write_card(tmp_path, None)
    assert sections(tmp_path)[0]["pipeline_tag"] == "feature-extraction"
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "flow.pt").write_bytes(b"")
    write_card(tmp_path, None)
    header, text = sections(tmp_path)
    assert header["pipeline_tag"] == "audio-to-audio"
    assert "open_codec" in text["How to use"]
    assert "voice prompt" in text["Limits"]
