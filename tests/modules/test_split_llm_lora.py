"""Runs that train adapters: resume to the bit, what is in a checkpoint, and what the next one gets of it."""

import json
from typing import Any

import pytest
import torch
import yaml
from backbones import mixed_rows
from lm_recipe import CODES, lm_recipe
from recording import assert_equal, checkpoints, curves, fit, seen

from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.data.prompts import PromptDataModule
from lit_moss.hub import open_lm, speech_tokenizer_fingerprint
from lit_moss.llm import SplitLM
from lit_moss.llm.lora import Lora, add_adapters, merged
from lit_moss.release.export import export

LORA: dict[str, Any] = {"rank": 4, "alpha": 8}
TIMED = ("train/tflops", "train/memory_gib")


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """The folder of a stage-1 run, which the others start from."""
    folder = tmp_path_factory.mktemp("lora") / "first"
    fit(folder, lm_recipe(folder, 5))
    return folder


def lora_recipe(folder, first, steps, **changes):
    """A recipe beside `first`."""
    options = {"stages": [{"policy": "lora"}], "lora": LORA, "init_from": str(first / "runs/tiny")}
    return lm_recipe(first.parent / folder, steps, **(options | changes))


def run(folder, first, steps, *more, expected=0, **changes):
    config = lora_recipe(folder, first, steps, **changes)
    fit(config.parent, config, *more, expected=expected)
    return config.parent


@pytest.fixture(scope="module")
def adapters(first):
    return run("adapters", first, 10, save_frozen=False)


def newest(folder):
    found = checkpoints(folder)
    return found[max(found)]


@pytest.mark.nightly
def test_a_checkpoint_holds_the_adapters_and_what_trains_alone(adapters, first):
    checkpoint = newest(adapters)
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    (optimizer,) = checkpoint["optimizer_states"]
    groups = {group["name"]: len(group["params"]) for group in optimizer["param_groups"]}
    assert groups == {"lora_trunk": 42, "lora_text_tail": 14, "lora_audio_tail": 14}
    assert len(optimizer["state"]) == len(checkpoint["state_dict"]) == 70
    base = newest(first)["state_dict"]
    assert checkpoint["frozen"]["names"] == sorted(name.removeprefix("lm.") for name in base)
    assert checkpoint["lora"]["scale"] == 2.0
    table = curves(adapters)
    assert table["train/loss"][-1][1] < table["train/loss"][0][1]


@pytest.mark.slow
def test_whoever_opens_the_run_gets_merged_weights(adapters, first):
    checkpoint, base = newest(adapters), newest(first)["state_dict"]
    lm = open_lm(adapters / "runs/tiny")
    wanted = merged(base | checkpoint["state_dict"], checkpoint["lora"])
    found = {f"lm.{name}": value for name, value in lm.state_dict().items()}
    assert found.keys() == base.keys()
    assert_equal(found, {name: wanted[name] for name in found})
    moved = {name for name in found if not torch.equal(found[name], base[name])}
    assert moved == {name for name in found if name.endswith("_proj.weight")}
    # So does the next stage.
    folder = run("next", first, 5, stages=[{"policy": "full"}], lora=None, lr=0.0,
                 init_from=str(adapters / "runs/tiny"))  # fmt: skip
    assert_equal(dict(newest(folder)["state_dict"]), found)


@pytest.mark.nightly
def test_an_exported_run_is_the_model_with_its_adapters_and_can_be_tuned_again(adapters, first):
    model = first.parent / "model"
    export(str(adapters / "runs/tiny"), model)
    plain, live = SplitLM.from_pretrained(model), open_lm(first / "runs/tiny")
    add_adapters(live, Lora(**LORA))
    state = {name.removeprefix("lm."): value for name, value in newest(adapters)["state_dict"].items()}
    live.load_state_dict(live.state_dict() | state)
    rows = mixed_rows(live, 2, 40)
    with torch.no_grad():
        ours, theirs = live(rows), plain(rows)
    for a, b in ((ours.text_logits, theirs.text_logits), (ours.speech_logits, theirs.speech_logits)):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
    for modality in ("text", "speech"):
        replies = [
            lm.generate([70, 71, 72], modality, max_new_tokens=20, greedy=True) for lm in (live, plain)
        ]
        assert replies[0] == replies[1]
    # From the folder, which is all that the next run needs; its frozen weights come from there again.
    folder = run("again", first, 5, save_frozen=False, init_from=str(model), backbone=str(model))
    fit(folder, folder / "conf.yaml", "--ckpt_path", "last", "--trainer.max_steps", "7")
    lm, base = open_lm(folder / "runs/tiny"), plain.state_dict()
    moved = {name for name, value in lm.state_dict().items() if not torch.equal(value, base[name])}
    assert moved == {name for name in base if name.endswith("_proj.weight")}


@pytest.mark.nightly
@pytest.mark.parametrize("same_recipe", [True, False])  # or one of a run without adapters
def test_replies_of_predict_are_those_of_the_merged_model(tmp_path, tiny_encoder, monkeypatch, same_recipe):
    folder, codec = tmp_path / "run", tmp_path / "codec"
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=CODES)).save_pretrained(codec)
    made_by = speech_tokenizer_fingerprint(str(codec))
    options = {"max_new_tokens": 12, "greedy": True, "speech_tokenizer": made_by, "lr": 0.1}
    config = lm_recipe(folder, 5, stages=[{"policy": "lora"}], lora=LORA, **options)
    fit(folder, config)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"text": "abc", "reply": r}) + "\n" for r in ("text", "speech")))
    recipe = yaml.safe_load(config.read_text())
    backbone = str(tmp_path / "backbone")
    data = {"backbone": backbone, "speech_tokenizer": str(codec), "prompts": [str(prompts)]}
    recipe["data"] = {"class_path": "lit_moss.data.PromptDataModule", "init_args": data}
    if not same_recipe:
        recipe["model"]["init_args"]["lora"] = None
        recipe["trainer"]["callbacks"][0]["init_args"]["stages"] = [{"policy": "full"}]
    config.write_text(yaml.safe_dump(recipe))
    monkeypatch.chdir(folder)
    assert main(["predict", "-c", "conf.yaml", "--ckpt_path", "last"]) == 0
    (out,) = folder.glob("runs/tiny/*/predictions.jsonl")
    replies = list(map(json.loads, out.read_text().splitlines()))
    lm = open_lm(folder / "runs/tiny")
    asked = PromptDataModule(**data)
    asked.setup("predict")
    (batch,) = asked.predict_dataloader()
    V, eosp = lm.format.text_vocab_size, lm.format.eosp_row
    borders = {lm.format.sosp_token_id, lm.format.im_end_id, lm.format.end_id}
    base = SplitLM.from_backbone(backbone, 1, 128, row_format=lm.format).eval()
    for prompt, reply in zip(batch, replies, strict=True):
        rows, others = (m.generate(prompt.rows, max_new_tokens=12, greedy=True) for m in (lm, base))
        assert reply["codes"] == [r - V for r in rows if V <= r < eosp]
        assert reply["text"] == asked.tokenizer.decode([r for r in rows if r < V and r not in borders])
        assert rows != others


@pytest.mark.nightly
def test_twenty_steps_equal_parts_with_resumes_between(first):
    options = {"save_frozen": False, "lora": LORA | {"dropout": 0.1}}
    whole = run("whole", first, 20, **options)
    for stop in (5, 10, 20):
        parts = run("parts", first, stop, *(["--ckpt_path", "last"] if stop > 5 else []), **options)
    ours, theirs = (checkpoints(f)["step-0000020.ckpt"] for f in (parts, whole))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step", "frozen", "lora"):
        assert_equal(ours[part], theirs[part], part)
    assert seen(parts) == seen(whole)
    ours, theirs = ({k: v for k, v in curves(f).items() if k not in TIMED} for f in (parts, whole))
    assert ours == theirs


@pytest.mark.slow
def test_frozen_weights_in_bfloat16_and_parts_beside_the_adapters(first):
    config = lora_recipe(
        "half", first, 5, frozen_dtype="bfloat16", lr_factors={"lora_trunk": 2.0},
        lora=LORA | {"parts": ["trunk", "audio_tail"]},
        stages=[{"train": ["lora_*", "audio_embedding", "*_norm"]}],
    )  # fmt: skip
    recipe = yaml.safe_load(config.read_text())
    recipe["trainer"]["precision"] = "bf16-mixed"
    config.write_text(yaml.safe_dump(recipe))
    fit(config.parent, config)
    checkpoint = newest(config.parent)
    state = checkpoint["state_dict"]
    half = {name for name, value in state.items() if value.dtype == torch.bfloat16}
    assert {name for name in state if ".base_layer." in name} < half
    assert not any(".lora_" in name or "audio_embed" in name or "norm" in name for name in half)
    (optimizer,) = checkpoint["optimizer_states"]
    rates = {group["name"]: group["base_lr"] for group in optimizer["param_groups"]}
    assert rates.keys() == {"audio_embedding", "text_norm.no_decay", "audio_norm.no_decay", "lora_trunk",
                            "lora_audio_tail"}  # fmt: skip
    assert rates["lora_trunk"] == 2 * rates["lora_audio_tail"]
    assert {value.dtype for value in open_lm(config.parent / "runs/tiny").state_dict().values()} == {
        torch.float32
    }


@pytest.mark.nightly
def test_adapters_on_a_folder_in_bfloat16_are_float32_and_resume(first):
    model = first.parent / "half_model"
    export(str(first / "runs/tiny"), model, dtype="bfloat16")

    def half(name, steps, *more):
        options = {"frozen_dtype": "bfloat16", "save_frozen": False}
        config = lora_recipe(name, first, steps, init_from=str(model), backbone=str(model), **options)
        recipe = yaml.safe_load(config.read_text())
        recipe["trainer"]["precision"] = "bf16-mixed"
        config.write_text(yaml.safe_dump(recipe))
        fit(config.parent, config, *more)
        return config.parent

    whole = half("half_whole", 10)
    half("half_parts", 5)
    parts = half("half_parts", 10, "--ckpt_path", "last")
    ours, theirs = (checkpoints(folder)["step-0000010.ckpt"] for folder in (parts, whole))
    for part in ("state_dict", "optimizer_states", "frozen", "lora"):
        assert_equal(ours[part], theirs[part], part)
    assert {value.dtype for value in ours["state_dict"].values()} == {torch.float32}
    assert all(".lora_" in name for name in ours["state_dict"])
    assert set(ours["frozen"]["dtypes"].values()) == {"bfloat16", "float32"}
    opened, exported = open_lm(parts / "runs/tiny"), export(str(parts / "runs/tiny"), parts / "out").folder
    base, found = SplitLM.from_pretrained(model).state_dict(), SplitLM.from_pretrained(exported).state_dict()
    moved = {name for name, value in found.items() if not torch.equal(value, base[name].float())}
    assert moved == {name for name in base if name.endswith("_proj.weight")}
    assert_equal(dict(opened.state_dict()), dict(found))


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 0}}, "expected a rank of 1 or more"),
        ({"lora": {"parts": ["tail"]}}, "expected parts of trunk, text_tail, audio_tail"),
        ({"lora": {"modules": ["w1"]}}, "which are no linear layers of trunk, text_tail, audio_tail"),
        ({"lora": None}, "the model has no such adapters: give model.init_args.lora"),
        ({"stages": [{"policy": "stage1"}]}, "no stage of StagedFreezing trains 70 of the 70 tensors"),
        ({"stages": [{"policy": "full"}]}, "tensors that have adapters by model.lora"),
        ({"stages": [{"train": ["lora_trunk"]}]}, "no stage of StagedFreezing trains 28 of the 70"),
        ({"init_from": None, "save_frozen": False}, "model.audio_embed.weight starts at random numbers"),
    ],
)
def test_mistakes_are_one_clear_line(first, capsys, changes, message):
    run("mistake", first, 5, expected=2, **changes)
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last
    assert last.startswith("error: ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"lora": {"rank": 8, "alpha": 8}}, {"lora": None, "stages": [{"policy": "full"}]}]
)
def test_a_run_does_not_resume_with_other_adapters(adapters, first, capsys, changes):
    path = max(adapters.glob("runs/tiny/*/checkpoints/*.ckpt"))
    run("mistake", first, 20, f"--ckpt_path={path}", expected=2, **changes)
    assert "the checkpoint's adapters are {'rank': 4" in capsys.readouterr().err.splitlines()[-1]
