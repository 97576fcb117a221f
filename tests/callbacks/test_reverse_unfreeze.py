"""Layer-wise unfreezing: rates of appendix D in the optimizer, layers at rest until their step, refusals."""

import copy
from types import SimpleNamespace

import pytest
import torch
from backbones import config_of

from callbacks import LearningRateSchedule, ReverseUnfreeze, SchedulePicture, StagedFreezing
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.modules import SplitLLM
from lit_moss.schedule import layerwise_lr, rate_factor

LAYERS, K, W, T = 4, 2, 3, 12  # trunk layers; layer 0 begins at step 6


def run_of(*callbacks, lm=None, tails=1, max_steps=T):
    module = SplitLLM(weight_decay=0.5, lr=0.1)
    if lm is None:
        torch.manual_seed(2)
        config = config_of(
            "llama", vocab_size=96, hidden_size=16, intermediate_size=24, num_attention_heads=2
        )
        lm = SplitLM.from_backbone(config, tails, 40)
    module.lm = lm
    trainer = SimpleNamespace(
        callbacks=callbacks, max_steps=max_steps, global_step=0, world_size=1, strategy=object(),
        logger=None, is_global_zero=True, precision_plugin=object(),
    )  # fmt: skip
    module._trainer = trainer
    trainer.optimizers = [module.configure_optimizers()]
    for callback in callbacks:
        callback.on_fit_start(trainer, module)
    return trainer, module


def train(trainer, module, until, note=None):
    """Steps with gradients that depend on the step alone; `note` gets what moved and the rates."""
    (optimizer,) = trainer.optimizers
    for callback in trainer.callbacks:
        callback.on_train_start(trainer, module)
    for step in range(trainer.global_step, until):
        trainer.global_step = step
        for callback in trainer.callbacks:
            callback.on_train_batch_start(trainer, module, None, 0)
        g = torch.Generator().manual_seed(step)
        for p in module.lm.parameters():
            gradient = torch.randn(p.shape, generator=g)
            p.grad = gradient if p.requires_grad else None
        before = {n: p.detach().clone() for n, p in module.lm.named_parameters()}
        optimizer.step()
        if note:
            moved = {n for n, p in module.lm.named_parameters() if not torch.equal(before[n], p)}
            note((moved, {g["name"]: g["lr"] for g in optimizer.param_groups}))
    trainer.global_step = until


def test_a_layer_moves_by_0_until_its_step_and_then_at_the_rate_of_appendix_d():
    trainer, module = run_of(ReverseUnfreeze(K, W))
    seen = []
    train(trainer, module, T, seen.append)
    for step, (moved, rates) in enumerate(seen):
        for layer in range(LAYERS):
            wanted = layerwise_lr(step, layer, LAYERS, K, W, T, 0.1)
            assert rates[f"trunk.{layer}"] == rates[f"trunk.{layer}.no_decay"] == wanted
            names = {n for n, _ in module.parts()[f"trunk.{layer}"]}
            begins = (LAYERS - 1 - layer) * K
            assert moved & names == (names if step > begins else set())  # at its own step the rate is 0
        others = {n for n, _ in module.lm.named_parameters() if "shared_block" not in n}
        assert others <= moved


def test_a_resting_layer_costs_no_gradient_and_gathers_no_moments():
    trainer, module = run_of(ReverseUnfreeze(K, W))
    train(trainer, module, 4)
    for layer, begun in enumerate([False, False, True, True]):
        for _, p in module.parts()[f"trunk.{layer}"]:
            assert p.requires_grad == begun
            assert (len(trainer.optimizers[0].state.get(p, {})) > 0) == begun


@pytest.mark.parametrize(("others", "step"), [("cosine", 0), ("cosine", 7), ("constant", 7)])
def test_other_parts_follow_the_stages_peak_from_step_0(others, step):
    callback = ReverseUnfreeze(K, W, others=others, floor=0.2)
    trainer, _ = run_of(callback)
    for group in trainer.optimizers[0].param_groups:
        if not group["name"].startswith("trunk."):
            assert callback.rate(step, group) == 0.1 * rate_factor(others, step, 0, T, 0.2)


def test_eta_max_and_floor_are_the_trunks_peak_and_end():
    callback = ReverseUnfreeze(K, W, eta_max=0.03, floor=0.5)
    trainer, _ = run_of(callback)
    group = next(g for g in trainer.optimizers[0].param_groups if g["name"] == "trunk.3")
    assert [callback.rate(s, group) for s in (0, 1, 3, T)] == pytest.approx([0, 0.01, 0.03, 0.015], abs=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("stop", [1, 2, 5, 6, 9])
def test_a_resume_at_any_step_goes_on_as_if_never_stopped(stop):
    whole, module = run_of(ReverseUnfreeze(K, W))
    train(whole, module, T)
    first, before = run_of(ReverseUnfreeze(K, W))
    train(first, before, stop)
    again, after = run_of(ReverseUnfreeze(K, W), lm=copy.deepcopy(before.lm))
    again.optimizers[0].load_state_dict(first.optimizers[0].state_dict())
    again.global_step = stop
    train(again, after, T)
    for name, value in module.lm.state_dict().items():
        assert torch.equal(value, after.lm.state_dict()[name]), name
    ours, theirs = again.optimizers[0].state_dict(), whole.optimizers[0].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][number][k], v) for k, v in state.items())


def test_with_staged_freezing_both_must_let_a_layer_train():
    stages = [{"policy": "stage1", "until_step": 5}, {"policy": "layerwise"}]
    for order in (1, -1):
        trainer, module = run_of(*[ReverseUnfreeze(K, W), StagedFreezing(stages)][::order])
        seen = []
        train(trainer, module, 8, seen.append)
        layers = [{n.split(".")[3] for n in moved if "shared_block" in n} for moved, _ in seen]
        assert layers == [set()] * 5 + [{"1", "2", "3"}, {"1", "2", "3"}, {"0", "1", "2", "3"}]


@pytest.mark.parametrize(
    ("options", "total", "message"),
    [
        ({"k": 2, "w": 3}, 9, "needs more than 9 steps, got 9"),
        ({"k": 2, "w": 3, "total_steps": 8}, 100, "needs more than 9 steps, got 8"),
        ({}, 12, "needs more than 17000 steps"),
        ({"k": 2, "w": 3}, -1, "needs the run's length"),
    ],
)
def test_a_run_that_is_too_short_is_refused(options, total, message):
    with pytest.raises(UserError, match=message):
        run_of(ReverseUnfreeze(**options), max_steps=total)


@pytest.mark.parametrize("options", [{"k": -1}, {"w": -1}, {"floor": 2}, {"eta_max": -1.0}])
def test_impossible_numbers_are_refused(options):
    with pytest.raises(UserError, match="expected 0 or more"):
        ReverseUnfreeze(**options)


def test_two_that_set_rates_are_refused():
    with pytest.raises(UserError, match="keep one of them"):
        run_of(LearningRateSchedule(0), ReverseUnfreeze(K, W))


def test_a_split_without_a_trunk_is_refused():
    with pytest.raises(UserError, match="no trunk layers"):
        run_of(ReverseUnfreeze(K, W), tails=5)


def test_the_picture_shows_the_rates_that_the_run_will_have():
    callback = ReverseUnfreeze(K, W)
    trainer, module = run_of(callback)
    figure = SchedulePicture(points=T).figure(trainer, module, callback)
    seen = []
    train(trainer, module, T, seen.append)
    (axes,) = figure.axes
    assert len(axes.lines) == len(module.parts())
    drawn = {tuple(line.get_data()[1][:T]) for line in axes.lines}
    ran = {tuple(rates[name] for _, rates in seen) for name in seen[0][1]}
    assert drawn == ran
