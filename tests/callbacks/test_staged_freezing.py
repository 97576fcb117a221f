"""What trains in which stage: policies, patterns, the table, and stages as a function of the step."""

import copy
from types import SimpleNamespace

import pytest
import torch
from backbones import config_of

from callbacks import LearningRateSchedule, StagedFreezing
from callbacks.freezing import apply_freezing, trained_names
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.lora import Lora, add_adapters
from lit_moss.modules import SplitLLM

AUDIO = {"audio_embedding", "audio_tail", "audio_norm", "audio_head"}
TEXT = {"text_embedding", "text_tail", "text_norm", "text_head"}
TRUNK = {"trunk.0", "trunk.1", "trunk.2"}
ADAPTERS = {"lora_trunk", "lora_text_tail", "lora_audio_tail"}
NORMS = {"text_norm", "audio_norm"}
TWO = [{"policy": "stage1", "until_step": 3}, {"policy": "full"}]


def run_of(*callbacks, lm=None, joint=False):
    """Trainer and module as the callbacks see them, without Lightning's loop."""
    module = SplitLLM(weight_decay=0.5, lr=0.1)
    if lm is None:
        torch.manual_seed(2)
        config = config_of(
            "llama", vocab_size=96, hidden_size=16, intermediate_size=24, num_attention_heads=2
        )
        lm = SplitLM.from_backbone(config, 0 if joint else 2, 40, joint)
    module.lm = lm
    trainer = SimpleNamespace(
        callbacks=callbacks, max_steps=8, global_step=0, world_size=1, strategy=object(),
        logger=None, is_global_zero=True, precision_plugin=object(),
    )  # fmt: skip
    module._trainer = trainer
    trained = module.ever_trained()
    for name, p in lm.named_parameters():
        p.requires_grad_(name in trained)
    trainer.optimizers = [module.configure_optimizers()]
    for callback in callbacks:
        getattr(callback, "on_fit_start", lambda *_: None)(trainer, module)
    return trainer, module


def train(trainer, module, until, note=None):
    """Steps with gradients that depend on the step alone."""
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
        for callback in trainer.callbacks:
            callback.on_before_optimizer_step(trainer, module, optimizer)
        before = {n: p.detach().clone() for n, p in module.lm.named_parameters()}
        optimizer.step()
        if note:
            note({n for n, p in module.lm.named_parameters() if not torch.equal(before[n], p)})
    trainer.global_step = until


def parts_that_train(trainer, module, step):
    names = trained_names(trainer, module, step)
    found = {part for part, named in module.parts().items() if any(n in names for n, _ in named)}
    whole = {part for part, named in module.parts().items() if all(n in names for n, _ in named)}
    assert found == whole
    return found


@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ({"policy": "stage1"}, AUDIO),
        ({"policy": "full"}, AUDIO | TEXT | TRUNK),
        ({"policy": "layerwise"}, AUDIO | TEXT | TRUNK),
        ({"policy": "shared"}, AUDIO | TRUNK),
        ({"policy": "listening", "layers": 2}, {"audio_embedding", "trunk.0", "trunk.1"}),
        ({"train": ["trunk.1", "*_norm"]}, {"trunk.1", "text_norm", "audio_norm"}),
        ({"train": ["trunk"], "freeze": ["trunk.0"]}, {"trunk.1", "trunk.2"}),
        ({"policy": "full", "freeze": ["text_*"]}, AUDIO | TRUNK),
        ({"train": ["text_lm_head.*"]}, {"text_head"}),
        ({"train": ["model.shared_block.layers.2.*"]}, {"trunk.2"}),
    ],
)
def test_policies_and_patterns(stage, trained):
    trainer, module = run_of(StagedFreezing([stage]))
    assert parts_that_train(trainer, module, 0) == trained
    assert {g["name"].removesuffix(".no_decay") for g in trainer.optimizers[0].param_groups} == trained


def test_without_a_split_the_trunk_is_all_layers_and_codes_are_words():
    trainer, module = run_of(StagedFreezing([{"policy": "full"}]), joint=True)
    assert parts_that_train(trainer, module, 0) == {f"trunk.{i}" for i in range(5)} | TEXT - {"text_tail"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "trained"),
    [
        ({"policy": "lora"}, ADAPTERS),
        ({"train": ["lora_*", "audio_embedding", "*_norm"]}, ADAPTERS | {"audio_embedding", *NORMS}),
        ({"policy": "lora", "freeze": ["lora_text_tail"]}, ADAPTERS - {"lora_text_tail"}),
        ({"policy": "stage1"}, AUDIO),
        ({"policy": "shared"}, AUDIO | TRUNK),
    ],
)
def test_adapters_are_parts_of_their_own(stage, trained):
    rates = LearningRateSchedule(warmup_steps=0, kind="constant", groups={"lora_trunk": 0.5})
    trainer, module = run_of(
        StagedFreezing([stage]), *([rates] if "lora_trunk" in trained else []), lm=adapted()
    )
    assert list(module.parts())[-3:] == ["lora_trunk", "lora_audio_tail", "lora_text_tail"]
    assert parts_that_train(trainer, module, 0) == trained
    groups = {g["name"].removesuffix(".no_decay"): g for g in trainer.optimizers[0].param_groups}
    assert groups.keys() == trained
    train(trainer, module, 2)
    if "lora_trunk" in trained:
        assert groups["lora_trunk"]["lr"] == 0.05
        assert groups["lora_audio_tail"]["lr"] == 0.1


def adapted():
    torch.manual_seed(2)
    config = config_of("llama", vocab_size=96, hidden_size=16, intermediate_size=24, num_attention_heads=2)
    lm = SplitLM.from_backbone(config, 2, 40)
    add_adapters(lm, Lora(rank=2))
    return lm


def test_the_policy_of_adapters_needs_adapters():
    with pytest.raises(
        UserError, match=r"trains lora_\*, but the model has no such adapters: give model.init"
    ):
        run_of(StagedFreezing([{"policy": "lora"}]))


def test_parameters_cut_out_of_a_part_rest_alone():
    trainer, module = run_of(StagedFreezing([{"train": ["audio_tail"], "freeze": ["*k_proj*"]}]))
    start = copy.deepcopy(module.lm.state_dict())
    train(trainer, module, 2)
    for name, value in module.lm.state_dict().items():
        assert torch.equal(value, start[name]) == ("audio_block" not in name or "k_proj" in name), name


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([], "no stages"),
        (
            [{"policy": "stage3"}],
            "no freezing policy 'stage3', expected one of stage1, full, shared, layerwise",
        ),
        ([{"policy": "full", "train": ["*"]}], "expected policy"),
        ([{"freeze": ["*"]}], "expected policy"),
        ([{"policy": "full", "untill_step": 3}], "expected policy"),
        ([{"policy": "full", "until_step": 3}], "must have no until_step"),
        ([{"policy": "stage1"}, {"policy": "full"}], "needs an until_step"),
        (
            [{"policy": "stage1", "until_step": 5}, {"policy": "full", "until_step": 5}, {"policy": "full"}],
            "rising",
        ),
    ],
)
def test_stages_that_make_no_sense_are_refused_when_built(stages, message):
    with pytest.raises(UserError, match=message):
        StagedFreezing(stages)


@pytest.mark.parametrize("stage", [{"train": ["tail"]}, {"policy": "full", "freeze": ["trunk.7"]}])
def test_a_pattern_without_a_match_is_an_error_before_the_optimizer_is_made(stage):
    later = [{"policy": "stage1", "until_step": 1000}, stage]
    with pytest.raises(UserError, match="fits nothing, expected one of the parts text_embedding, trunk"):
        run_of(StagedFreezing(later))


def test_what_moves_at_each_step_and_that_decay_leaves_the_frozen_alone():
    trainer, module = run_of(StagedFreezing(TWO))
    moved = []
    train(trainer, module, 5, moved.append)
    names = {n for n, _ in module.lm.named_parameters()}
    audio = {n for n in names if "audio" in n}
    assert moved == [audio] * 3 + [names] * 2


def test_the_speech_tail_trains_though_it_equals_the_text_tail_by_value():
    trainer, module = run_of(StagedFreezing([{"policy": "stage1"}]))
    state = module.lm.state_dict()
    pairs = [(n, n.replace("audio_block", "text_block")) for n in state if "audio_block" in n]
    assert pairs
    assert all(torch.equal(state[a], state[b]) for a, b in pairs)
    train(trainer, module, 1)
    assert not any(torch.equal(state[a], state[b]) for a, b in pairs)


def test_parameters_that_wait_have_no_moments_and_no_gradient():
    trainer, module = run_of(StagedFreezing(TWO))
    train(trainer, module, 3)
    state = trainer.optimizers[0].state
    for name, p in module.lm.named_parameters():
        assert (p in state and len(state[p]) > 0) == ("audio" in name)
        assert (p.grad is None) == ("audio" not in name)


def test_freezing_again_drops_the_last_gradient():
    stages = [{"policy": "full", "until_step": 2}, {"policy": "stage1"}]
    trainer, module = run_of(StagedFreezing(stages))
    moved = []
    train(trainer, module, 4, moved.append)
    assert all("audio" in n for n in moved[2] | moved[3])
    assert all((p.grad is None) == ("audio" not in n) for n, p in module.lm.named_parameters())


def test_never_trained_parameters_get_no_group():
    trainer, _ = run_of(StagedFreezing([{"policy": "stage1"}]))
    assert {g["name"].removesuffix(".no_decay") for g in trainer.optimizers[0].param_groups} == AUDIO


def test_ever_trained_is_the_union_of_the_stages():
    freezing = StagedFreezing([{"policy": "stage1", "until_step": 1}, {"train": ["trunk.2"]}])
    _, module = run_of(freezing)
    found = {
        part
        for part, named in module.parts().items()
        if {n for n, _ in named} <= freezing.ever_trained(module.parts())
    }
    assert found == AUDIO | {"trunk.2"}


@pytest.mark.slow
@pytest.mark.parametrize("rates_first", [True, False])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resume_at_any_step_goes_on_as_if_never_stopped(stop, rates_first):
    def callbacks():
        pair = [LearningRateSchedule(2, total_steps=8), StagedFreezing(TWO)]
        return pair if rates_first else pair[::-1]

    whole, module = run_of(*callbacks())
    train(whole, module, 6)
    first, before = run_of(*callbacks())
    train(first, before, stop)
    again, after = run_of(*callbacks(), lm=copy.deepcopy(before.lm))
    again.optimizers[0].load_state_dict(first.optimizers[0].state_dict())
    again.global_step = stop
    train(again, after, 6)
    for name, value in module.lm.state_dict().items():
        assert torch.equal(value, after.lm.state_dict()[name]), name
    ours, theirs = again.optimizers[0].state_dict(), whole.optimizers[0].state_dict()
    assert ours["param_groups"] == theirs["param_groups"]
    for number, state in theirs["state"].items():
        assert all(torch.equal(ours["state"][number][k], v) for k, v in state.items())


def test_the_rate_of_a_part_that_thaws_is_there_in_its_first_step():
    """Also where the schedule stands before the freezing in the list."""
    for order in (1, -1):
        trainer, module = run_of(*[LearningRateSchedule(0, kind="constant"), StagedFreezing(TWO)][::order])
        moved = []
        train(trainer, module, 4, moved.append)
        assert any("shared_block" in n for n in moved[3])


def test_without_a_schedule_rates_are_the_base_rates():
    trainer, module = run_of(StagedFreezing(TWO))
    train(trainer, module, 1)
    rates = {g["name"]: g["lr"] for g in trainer.optimizers[0].param_groups}
    assert all(rate == (0.1 if "audio" in name else 0.0) for name, rate in rates.items())
    train(trainer, module, 4)
    assert {g["lr"] for g in trainer.optimizers[0].param_groups} == {0.1}


def test_the_table_counts_and_joins_layers_of_one_state():
    freezing = StagedFreezing([{"train": ["trunk", "audio_*"], "freeze": ["trunk.0"]}])
    trainer, module = run_of(freezing)
    parts = module.parts()
    table = freezing.table(parts, trained_names(trainer, module, 0), 0).splitlines()
    lines = {" ".join(line.split()[:-2]): line.split()[-2:] for line in table[2:]}
    counts = {k: [int(n.replace(",", "")) for n in v] for k, v in lines.items()}
    layer = sum(p.numel() for _, p in parts["trunk.0"])
    assert counts["trunk 0"] == [layer, 0]
    assert counts["trunk 1-2"] == [2 * layer, 2 * layer]
    assert counts["audio_head"] == [16 * 40, 16 * 40]
    assert counts["text_head"] == [16 * 96, 0]
    total = sum(p.numel() for p in module.lm.parameters())
    trained = sum(free for _, free in counts.values())
    assert sum(count for count, _ in counts.values()) == total
    assert table[0] == f"step 0, stage 1 of 1: {trained / total:.1%} of {total:,} parameters train"


def test_a_module_without_parts_is_told_so():
    with pytest.raises(UserError, match="has no parts to freeze"):
        trained_names(SimpleNamespace(callbacks=[]), SimpleNamespace(), 0)


def test_under_deepspeed_a_pattern_through_a_part_is_refused():
    stages = [{"train": ["audio_tail"], "freeze": ["*k_proj*"], "until_step": 2}, {"policy": "stage1"}]
    trainer, module = run_of(StagedFreezing(stages))
    trainer.strategy = type("DeepSpeedStrategy", (), {})()
    with pytest.raises(UserError, match="audio_tail can only be frozen as a whole"):
        apply_freezing(trainer, module, trained_names(trainer, module, 0))
