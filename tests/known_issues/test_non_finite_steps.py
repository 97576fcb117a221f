"""A step with a NaN loss or infinite gradients changes nothing and is counted; three in a row end a run.

Before, such a run trained on with NaN weights, rotated its good checkpoints out and ended FINISHED.
"""

import json

import mlflow
import pytest
import torch
import yaml
from decoders import decoder_recipe, made_up_codec
from lm_recipe import lm_recipe
from poison import moved
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, recipe
from vocoders import vocoder_recipe

from callbacks import NonFiniteSteps
from callbacks.non_finite_steps import _average
from lit_moss.errors import UserError
from lit_moss.modules.steps import StepModule

CODEC, DECODER, LM, VOCODER = "tokenizer", "decoder", "language model", "vocoder"


def run(folder, corpus, kind, steps, poison=(), *more, expected=0, extra=(), **trainer):
    """`fit` of a tiny run of a kind; returns what its steps changed, by `Moved`."""
    add = [{"class_path": "poison.Poison", "init_args": p} for p in poison] + list(extra)
    if kind == LM:
        path = lm_recipe(folder, steps, stages=[{"policy": "full"}], extra=add)
    elif kind == CODEC:
        path = recipe(folder, corpus, steps, **{"trainer__callbacks+": add},
                      model__init_args__quantize_from_step=2)  # fmt: skip
    elif kind == VOCODER:
        path = vocoder_recipe(folder, corpus, steps, 2, **{"trainer__callbacks+": add})
    else:
        codec = folder.parent / "codec"
        if not codec.exists():
            made_up_codec(codec)
        path = decoder_recipe(folder, corpus, codec, steps, **{"trainer__callbacks+": add})
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"val_check_interval": 4} | trainer
    # Last: it looks once the averages have moved too.
    config["trainer"]["callbacks"].append(
        {"class_path": "poison.Moved", "init_args": {"path": str(folder / "moved")}}
    )
    path.write_text(yaml.safe_dump(config))
    fit(folder, path, *more, expected=expected)
    return moved(folder / "moved")


def status(folder):
    client = mlflow.MlflowClient(f"sqlite:///{folder}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    return run.info.status


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [CODEC, DECODER, LM, VOCODER])
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(tmp_path, corpus, kind, capsys):
    poison = [{"steps": [3], "what": "loss"}, {"steps": [5], "what": "gradient"}]
    found = run(tmp_path / "run", corpus, kind, 8, poison)
    assert found[3] == found[5] == []
    for step in (0, 1, 2, 4, 6, 7):
        assert {"weights", "moments"} <= set(found[step]), step
        assert ("averages" in found[step]) == (kind in (DECODER, VOCODER))
        assert ("buffers" in found[step]) == (kind == CODEC and step >= 2)
    logged = curves(tmp_path / "run")
    assert [v for _, v in logged["train/skipped_steps"]] == [0, 0, 0, 1, 1, 2, 2, 2]
    assert "not finite" in capsys.readouterr().err
    assert status(tmp_path / "run") == "FINISHED"
    state = checkpoints(tmp_path / "run")["step-0000005.ckpt"]["state_dict"]
    assert all(torch.isfinite(v).all() for v in state.values())


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [CODEC, DECODER, LM])
def test_three_in_a_row_stop_the_run_in_one_line(tmp_path, corpus, kind, capsys):
    folder = tmp_path / "run"
    found = run(folder, corpus, kind, 20, [{"steps": [0, 1, 5, 6, 7, 8, 9]}], expected=2)
    assert [step for step, parts in found.items() if not parts] in ([0, 1, 5, 6, 7], [0, 1, 5, 6])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: step 8: loss or gradients were not finite")
    assert "3 steps in a row" in last
    assert status(folder) == "FAILED"
    (result,) = folder.glob("runs/tiny/*/result.json")
    json.loads(result.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    for state in checkpoints(folder).values():
        assert state["global_step"] <= 8
        assert all(torch.isfinite(v).all() for v in state["state_dict"].values() if v.is_floating_point())
    # The run goes on from its last checkpoint once the cause is gone.
    run(folder, corpus, kind, 12, (), "--ckpt_path", "last")
    assert status(folder) == "FINISHED"


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [CODEC, LM])
@pytest.mark.parametrize("micro", [0, 1])
def test_one_bad_micro_batch_skips_its_whole_step(tmp_path, corpus, kind, micro):
    found = run(
        tmp_path / "run", corpus, kind, 5, [{"steps": [3], "micro": micro}], accumulate_grad_batches=2
    )
    assert found[3] == []
    assert all(found[step] for step in (0, 1, 2, 4))


@pytest.mark.nightly
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision(tmp_path, corpus, precision):
    found = run(tmp_path / "run", corpus, LM, 5, [{"steps": [3], "what": "gradient"}], precision=precision)
    assert found[3] == []
    assert all(found[step] for step in (0, 1, 2, 4))


@pytest.mark.nightly
def test_a_gradient_scaler_that_looks_for_its_scale_does_not_stop_the_run(tmp_path, corpus):
    scaler = {"class_path": "torch.amp.GradScaler", "init_args": {"device": "cpu", "init_scale": 2.0**40}}
    plugin = {"class_path": "lightning.pytorch.plugins.MixedPrecision",
              "init_args": {"precision": "16-mixed", "device": "cpu", "scaler": scaler}}  # fmt: skip
    found = run(tmp_path / "run", corpus, LM, 40, precision=None, plugins=[plugin], val_check_interval=100)
    assert found[0] == found[5] == []
    assert found[39]


@pytest.mark.nightly
def test_a_resumed_run_equals_the_whole_one_with_skipped_steps(tmp_path, corpus):
    poison = [{"steps": [3, 4, 6]}]
    run(tmp_path / "whole", corpus, CODEC, 10, poison)
    run(tmp_path / "parts", corpus, CODEC, 5, poison)
    run(tmp_path / "parts", corpus, CODEC, 10, poison, "--ckpt_path", "last")
    ours, theirs = (checkpoints(tmp_path / f)["step-0000010.ckpt"] for f in ("parts", "whole"))
    for part in ("state_dict", "optimizer_states", "random_states", "global_step"):
        assert_equal(ours[part], theirs[part], part)
    assert (
        curves(tmp_path / "parts")["train/skipped_steps"] == curves(tmp_path / "whole")["train/skipped_steps"]
    )


@pytest.mark.nightly
def test_every_rank_skips_what_one_rank_sees(tmp_path, corpus):
    add = [{"class_path": "poison.Poison", "init_args": {"steps": [1], "rank": 1}},
           {"class_path": "poison.Poison", "init_args": {"steps": [3], "what": "gradient", "rank": 0}},
           {"class_path": "poison.Moved", "init_args": {"path": f"{tmp_path}/run/moved"}}]  # fmt: skip
    path = lm_recipe(tmp_path / "run", 5, stages=[{"policy": "full"}], extra=add)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 2, "strategy": "ddp"}
    path.write_text(yaml.safe_dump(config))
    done = fit_in_process(tmp_path / "run", path)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in (0, 1):
        found = moved(tmp_path / "run" / "moved", rank)
        assert found[1] == found[3] == []
        assert all(found[step] for step in (0, 2, 4))
    assert curves(tmp_path / "run")["train/skipped_steps"][-1][1] == 2.0


@pytest.mark.nightly
def test_weights_that_are_not_finite_are_never_saved(tmp_path, corpus, capsys):
    extra = [{"class_path": "poison.BreakWeights", "init_args": {"step": 5}}]
    run(tmp_path / "run", corpus, LM, 8, extra=extra, expected=2)
    assert "the weights are not finite" in capsys.readouterr().err.strip().splitlines()[-1]
    assert status(tmp_path / "run") == "FAILED"
    assert not checkpoints(tmp_path / "run")


@pytest.mark.nightly
def test_best_is_never_a_score_that_is_not_finite(tmp_path, corpus):
    extra = [{"class_path": "poison.SpoilScore", "init_args": {"step": 4}},
             {"class_path": "callbacks.Checkpoint", "init_args": {"monitor": "val/spoilt"}}]  # fmt: skip
    run(tmp_path / "run", corpus, LM, 8, extra=extra)
    best = checkpoints(tmp_path / "run")["best.ckpt"]
    assert best["global_step"] == 8  # the one of step 4 was NaN
    (result,) = tmp_path.glob("run/runs/tiny/*/result.json")
    assert json.loads(result.read_text())["metrics"]["val/spoilt"] == 1.0


# --- the decision on the device -----------------------------------------------------------------------------


class Tiny(StepModule):
    """A line through points; `adamw` is fused, which decides on the device, also on a CPU."""

    def __init__(self, bad):
        super().__init__()
        self.line, self.bad, self.seen = torch.nn.Linear(3, 1), set(bad), []

    def training_step(self, batch, batch_idx):
        self.count_targets(1)
        loss = self.line(batch).square().mean()
        return loss * float("nan") if batch_idx in self.bad else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.append(self.line.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1, fused=True)


def trainer_of(steps, *callbacks, **options):
    import lightning.pytorch as pl

    options = {"gradient_clip_val": 1.0, "log_every_n_steps": 4, "precision": "bf16-mixed"} | options
    return pl.Trainer(accelerator="cpu", max_steps=steps, callbacks=list(callbacks), logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      **options)  # fmt: skip


def points():
    return torch.utils.data.DataLoader(torch.randn(64, 3), batch_size=2)


def test_fused_adamw_skips_without_asking_the_device(tmp_path):
    torch.manual_seed(0)
    module, guard = Tiny([2, 3, 6]), NonFiniteSteps()
    trainer_of(8, guard).fit(module, points())
    still = [i for i in range(1, 8) if torch.equal(module.seen[i], module.seen[i - 1])]
    assert still == [2, 3, 6]
    assert guard.skipped == 3
    assert isinstance(module.skip_step, torch.Tensor)


def test_after_three_in_a_row_nothing_moves_until_the_host_has_read(tmp_path):
    torch.manual_seed(0)
    module = Tiny([1, 2, 3])
    guard = NonFiniteSteps()
    with pytest.raises(UserError, match="3 steps in a row"):
        trainer_of(8, guard).fit(module, points())
    assert all(torch.equal(w, module.seen[0]) for w in module.seen)


def test_averages_on_the_device_equal_torchs_and_skip():
    from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

    torch.manual_seed(0)
    module = Tiny([])
    ours, theirs = (AveragedModel(module, avg_fn=get_ema_avg_fn(0.9), use_buffers=True) for _ in range(2))
    for step in range(5):
        with torch.no_grad():
            module.line.weight.add_(torch.randn(1, 3))
        module.skip_step = torch.tensor(step in (0, 3))
        _average(ours, AveragedModel.update_parameters, module)
        if step not in (0, 3):
            theirs.update_parameters(module)
        assert_equal(ours.state_dict(), theirs.state_dict())


def test_a_state_saved_before_the_host_had_read_the_row_can_be_resumed():
    guard = NonFiniteSteps()
    guard.load_state_dict({"skipped": 3, "in_row": 3, "empty": 0})
    torch.manual_seed(0)
    module = Tiny([5])
    trainer_of(6, guard).fit(module, points())
    assert not any(torch.equal(module.seen[i], module.seen[i - 1]) for i in range(1, 5))
    assert guard.skipped == 4
