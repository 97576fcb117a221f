"""The language model's stages in training: resume to the bit, what moves and what does not, checkpoints."""

import hashlib

import pytest
import torch
from lm_recipe import backbone_folder, lm_recipe
from recording import assert_equal, checkpoints, curves, fit, seen

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.modules import SplitLLM
from lit_moss.modules.text_distill import TextDistill

UNFREEZE = {"class_path": "callbacks.ReverseUnfreeze", "init_args": {"k": 4, "w": 3, "total_steps": 20}}
STAGES = {
    "stage1": {},
    "full": {"stages": [{"policy": "full"}]},
    "shared": {"stages": [{"policy": "shared"}]},
    "layerwise": {"stages": [{"policy": "layerwise"}], "rates": UNFREEZE},
    "stage1 then full": {"stages": [{"policy": "stage1", "until_step": 7}, {"policy": "full"}]},
    "sft": {"stages": [{"policy": "full"}], "kind": "sft"},
    "no split": {"stages": [{"policy": "full"}], "joint": True},
    "frozen left out": {"save_frozen": False},
}


def text_digest(state: dict) -> dict[str, str]:
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in state.items() if "audio" not in k}


@pytest.mark.nightly
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_steps_equal_parts_with_resumes_between(tmp_path, stage):
    """Resumed at 5 and 10: in the middle of each stage of the staged ones."""
    fit(tmp_path / "whole", lm_recipe(tmp_path / "whole", 20, **STAGES[stage]))
    for stop in (5, 10, 20):
        more = ["--ckpt_path", "last"] if stop > 5 else []
        fit(tmp_path / "parts", lm_recipe(tmp_path / "parts", stop, **STAGES[stage]), *more)
    ours, theirs = (checkpoints(tmp_path / f)["step-0000020.ckpt"] for f in ("parts", "whole"))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_equal(ours[part], theirs[part], part)
    assert curves_of(tmp_path / "parts") == curves_of(tmp_path / "whole")
    assert seen(tmp_path / "parts") == seen(tmp_path / "whole")
    assert (
        curves_of(tmp_path / "whole")["train/loss"][-1][1] < curves_of(tmp_path / "whole")["train/loss"][0][1]
    )


def curves_of(folder):
    timed = ("train/tflops", "train/memory_gib")
    return {k: v for k, v in curves(folder).items() if k not in timed}


def run(folder, steps=8, **options) -> dict:
    config = lm_recipe(folder, steps, **options)
    fit(folder, config)
    return torch.load(sorted(folder.glob("runs/tiny/*/checkpoints/*.ckpt"))[-1], weights_only=True)


@pytest.fixture(scope="module")
def stage1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage1") / "run"
    return folder, run(folder, 10)


@pytest.mark.slow
def test_invariant_2_stage_1_leaves_every_text_parameter_and_text_logits_as_they_were(stage1):
    folder, checkpoint = stage1
    state = {k.removeprefix("lm."): v for k, v in checkpoint["state_dict"].items()}
    backbone = backbone_folder(folder.parent / "backbone")
    start = SplitLM.from_backbone(backbone, 1, 128).eval()
    assert text_digest(state) == text_digest(start.state_dict())
    trained = SplitLM.from_backbone(backbone, 1, 128).eval()
    trained.load_state_dict(state)
    rows = torch.arange(3, 60)[None]
    with torch.no_grad():
        assert torch.equal(start(rows).text_logits, trained(rows).text_logits)
        assert not torch.equal(start(rows).speech_logits, trained(rows).speech_logits)


def test_the_speech_tail_trains_although_it_starts_as_a_copy(stage1):
    _, checkpoint = stage1
    state = checkpoint["state_dict"]
    for name in [k for k in state if "audio_block" in k]:
        assert not torch.equal(state[name], state[name.replace("audio_block", "text_block")]), name


def test_never_trained_parameters_are_not_in_the_optimizer(stage1):
    _, checkpoint = stage1
    (optimizer,) = checkpoint["optimizer_states"]
    names = {g["name"].removesuffix(".no_decay") for g in optimizer["param_groups"]}
    assert names == {"audio_embedding", "audio_tail", "audio_norm", "audio_head"}


@pytest.mark.slow
def test_frozen_weights_left_out_are_checked_and_come_back(tmp_path, capsys):
    folder = tmp_path / "run"
    checkpoint = run(folder, 5, save_frozen=False)
    assert all("audio" in k for k in checkpoint["state_dict"])
    fit(folder, lm_recipe(folder, 10, save_frozen=False), "--ckpt_path", "last")
    other = tmp_path / "other" / "run"
    config = lm_recipe(other, 10, save_frozen=False)
    from safetensors.torch import load_file, save_file

    weights = other.parent / "backbone" / "model.safetensors"
    tensors = load_file(weights)
    tensors["model.norm.weight"] += 0.5
    save_file(tensors, weights, metadata={"format": "pt"})
    found = sorted(folder.glob("runs/tiny/*/checkpoints/step-0000010.ckpt"))[0]
    capsys.readouterr()
    fit(other, config, f"--model.init_args.init_from={found}", expected=2)
    assert "give the same backbone" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.nightly
@pytest.mark.parametrize("policy", ["full", "shared"])
def test_stage_2_starts_from_stage_1s_checkpoint(stage1, tmp_path, policy):
    folder, checkpoint = stage1
    config = lm_recipe(
        tmp_path / "run",
        3,
        stages=[{"policy": policy}],
        init_from=str(folder / "runs/tiny"),
        lr=0.0,
        backbone=str(folder.parent / "backbone"),
    )
    fit(tmp_path / "run", config)
    kept = sorted((tmp_path / "run").glob("runs/tiny/*/checkpoints/*.ckpt"))
    assert [path.name for path in kept] == ["last.ckpt"]  # every 5 steps, and it ended at 3
    config = lm_recipe(
        tmp_path / "run",
        5,
        stages=[{"policy": policy}],
        init_from=str(folder / "runs/tiny"),
        lr=0.0,
        backbone=str(folder.parent / "backbone"),
    )
    fit(tmp_path / "run", config)
    (path,) = (tmp_path / "run").glob("runs/tiny/*/checkpoints/step-0000005.ckpt")
    assert_equal(dict(torch.load(path, weights_only=True)["state_dict"]), dict(checkpoint["state_dict"]))


@pytest.mark.slow
def test_invariant_5_a_layer_does_not_move_until_its_step(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 20, stages=[{"policy": "layerwise"}], rates=UNFREEZE))
    states = {n: c["state_dict"] for n, c in checkpoints(folder).items()}
    start = SplitLM.from_backbone(folder.parent / "backbone", 1, 128).state_dict()
    # Trunk of 3 layers: 2 from step 0, 1 from step 4, 0 from step 8. At a step whose rate is 0
    # (u = 0) nothing moves.
    moved = {
        step: {
            i
            for i in range(3)
            if not torch.equal(states[f"step-{step:07d}.ckpt"][f"lm.{key(i)}"], start[key(i)])
        }
        for step in (5, 10, 15)
    }
    assert moved == {5: {2}, 10: {0, 1, 2}, 15: {0, 1, 2}}


def key(layer):
    return f"model.shared_block.layers.{layer}.mlp.up_proj.weight"


def test_curves_start_before_the_first_step(stage1):
    folder, _ = stage1
    found = curves(folder)
    assert found["val/speech_ppl"][0][0] == 0
    assert found["val/text_ppl"][0][1] > 0
    assert {"train/rows_per_sec", "train/tflops", "train/trainable_parameters"} <= set(raw_names(folder))


def raw_names(folder):
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    (found,) = client.search_runs([experiment.experiment_id])
    return found.data.metrics


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"stages": [{"policy": "stage3"}]}, "no freezing policy"),
        ({"stages": [{"train": ["no_such_part"]}]}, "fits nothing"),
        ({"stages": [{"policy": "stage1"}, {"policy": "full"}]}, "needs an until_step"),
        ({"lr_factors": {"tail": 2.0}}, "lr_factors names"),
        ({"num_modality_layers": 9}, "expected 0 to the backbone's 4 layers"),
        ({"init_from": "nowhere.ckpt"}, "no nowhere.ckpt"),
        (
            {"rates": {"class_path": "callbacks.ReverseUnfreeze", "init_args": {"k": 50, "w": 5}}},
            "needs more than",
        ),
    ],
)
def test_mistakes_are_one_clear_line(tmp_path, capsys, options, part):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 5, **options), expected=2)
    last = capsys.readouterr().err.splitlines()[-1]
    assert part in last
    assert last.startswith("error: ")


@pytest.mark.nightly
def test_attention_that_is_not_reset_sees_the_documents_before(tmp_path):
    values = {}
    for name, reset in (("apart", True), ("as_one", False)):
        options = {"stages": [{"policy": "full"}], "reset_attention": reset, "lr": 0.0}
        fit(tmp_path / name, lm_recipe(tmp_path / name, 3, **options))
        values[name] = curves(tmp_path / name)
    first = {name: found["train/loss"][0][1] for name, found in values.items()}
    assert first["apart"] != first["as_one"] == pytest.approx(first["apart"], rel=0.05)
    assert values["apart"]["val/loss"] != values["as_one"]["val/loss"]


def test_attention_that_is_not_reset_excludes_what_reads_documents_alone():
    with pytest.raises(UserError, match="reset_attention false with"):
        SplitLLM(reset_attention=False, distill=TextDistill())
