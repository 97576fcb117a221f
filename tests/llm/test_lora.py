"""Low-rank adapters: no effect at zero, gradients of the merged weights, generation, names, merging."""

import sys

import pytest
import torch
from backbones import config_of, mixed_rows, other_config

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM, stages
from lit_moss.llm.lora import (
    BLOCKS,
    Lora,
    add_adapters,
    check_resumed,
    check_trained,
    merged,
    plain_state,
    without_adapters,
)
from lit_moss.llm.parts import named_parts
from lit_moss.llm.single_row import runs_on

KINDS = ("qwen3", "qwen2", "llama")


def split(kind, **changes):
    torch.manual_seed(0)
    return SplitLM.from_backbone(config_of(kind, **changes), 2, 40).eval()


def adapted(kind, size=0.05, lora=None, **changes):
    """A model whose adapters are no longer zero."""
    lm = split(kind, **changes)
    add_adapters(lm, lora or Lora(rank=3, alpha=7.0))
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if ".lora_B." in name:
                p.copy_(size * torch.randn(p.shape, generator=g))
    return lm


def merged_copy(lm, kind, **changes):
    plain = split(kind, **changes)
    plain.load_state_dict(dict(plain_state(lm)))
    return plain


@pytest.mark.slow
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_new_adapters_and_adapters_switched_off_leave_the_base_to_the_bit(kind, autocast):
    lm = split(kind)
    rows = mixed_rows(lm, 2, 30)
    ids = torch.tensor([[0] * 11 + [1] * 19, [0] * 30])

    def outputs():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = lm(rows, ids)
            return out.text_logits, out.speech_logits, lm.loss(rows, ids).total

    base = outputs()
    add_adapters(lm, Lora(rank=3))
    assert all(map(torch.equal, outputs(), base))
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if ".lora_B." in name:
                p.fill_(0.05)
    required = {name: p.requires_grad for name, p in lm.named_parameters()}
    assert not any(map(torch.equal, outputs(), base))
    with without_adapters(lm):
        assert all(map(torch.equal, outputs(), base))
    assert {name: p.requires_grad for name, p in lm.named_parameters()} == required
    assert not any(map(torch.equal, outputs(), base))


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_merged_weights(kind, checkpointing):
    """d/dA and d/dB through W + (alpha / r) B A, by autograd on plain matrix products."""
    lm = adapted(kind).double().train()
    for name, p in lm.named_parameters():
        p.requires_grad_(".lora_" in name)
    lm.checkpoint_activations(checkpointing)
    rows, ids = mixed_rows(lm, 2, 30), torch.tensor([[0] * 11 + [1] * 19, [0] * 30])
    loss = lm.loss(rows, ids).total
    loss.backward()

    plain = split(kind).double().train()
    leaves = {
        name: p.detach().clone().requires_grad_() for name, p in lm.named_parameters() if ".lora_" in name
    }
    weights = {}
    for name, p in lm.named_parameters():
        if name not in leaves:
            stem = name.removesuffix(".base_layer.weight")
            b, a = (leaves.get(f"{stem}.lora_{x}.default.weight") for x in "BA")
            low = 0 if a is None or b is None else (7.0 / 3) * (b @ a)
            weights[name.replace(".base_layer", "")] = p.detach() + low
    out = torch.func.functional_call(plain, weights, (rows, ids), {"with_loss": True})
    wanted = dict(zip(leaves, torch.autograd.grad(out.total, list(leaves.values())), strict=True))
    torch.testing.assert_close(loss, out.total, rtol=1e-6, atol=0)
    found = {name: p.grad for name, p in lm.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()  # frozen weights get none
    for name, grad in wanted.items():
        assert (found[name] - grad).norm() <= 1e-6 * grad.norm(), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_generated_with_the_adapters(kind):
    lm = adapted(kind)
    plain, base = merged_copy(lm, kind), split(kind)
    assert not any(runs_on(layer) for block in lm.blocks() for layer in block.layers)
    assert all(runs_on(layer) for block in plain.blocks() for layer in block.layers)
    for modality in ("text", "speech"):
        prompt = [5, 9, 17, 30]
        rows, wanted, without = (
            m.generate(prompt, modality, max_new_tokens=24, greedy=True) for m in (lm, plain, base)
        )
        assert rows == wanted != without


def test_adapters_on_one_part_leave_the_others_paths_fast_and_unchanged():
    lm, base = adapted("llama", lora=Lora(rank=2, parts=["audio_tail"])), split("llama")
    rows = mixed_rows(lm, 1, 20)
    with torch.no_grad():
        assert torch.equal(lm(rows).text_logits, base(rows).text_logits)
        assert not torch.equal(lm(rows).speech_logits, base(rows).speech_logits)
    assert [part for part in named_parts(lm) if part.startswith("lora")] == ["lora_audio_tail"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_model_is_the_merged_one_without_peft(kind, tmp_path, monkeypatch):
    lm = adapted(kind)
    lm.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    plain = SplitLM.from_pretrained(tmp_path)
    assert list(plain.state_dict()) == list(split(kind).state_dict())
    rows = mixed_rows(lm, 2, 30)
    with torch.no_grad():
        ours, theirs = lm(rows), plain(rows)
    for a, b in ((ours.text_logits, theirs.text_logits), (ours.speech_logits, theirs.speech_logits)):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
        assert torch.equal(a.argmax(-1), b.argmax(-1))


def checkpoint_of(lm, lora):
    """As a run's checkpoint has it."""
    state = {f"lm.{name}": value for name, value in lm.state_dict().items()}
    return {"state_dict": state, "lora": lora.record(), "split_config": lm.config.to_dict()}


def test_weights_of_a_checkpoint_are_sums_computed_in_float32():
    lora = Lora(rank=3, alpha=7.0, modules=["q_proj", "down_proj"])
    checkpoint = checkpoint_of(adapted("llama", lora=lora), lora)
    state = {name: value.bfloat16() if ".base_layer." in name else value
             for name, value in checkpoint["state_dict"].items()}  # fmt: skip
    weights = merged(state, checkpoint["lora"])
    assert list(weights) == [f"lm.{name}" for name in split("llama").state_dict()]
    stem = "lm.model.audio_block.layers.1.mlp.down_proj"
    w, a, b = (state[f"{stem}.{x}.weight"] for x in ("base_layer", "lora_A.default", "lora_B.default"))
    found = weights[f"{stem}.weight"]
    assert found.dtype == torch.float32
    assert torch.allclose(found.double(), w.double() + 7.0 / 3 * (b.double() @ a.double()), atol=1e-7)
    assert weights["lm.text_lm_head.weight"] is state["lm.text_lm_head.weight"]
    halves = merged({name: value.bfloat16() for name, value in state.items()}, checkpoint["lora"])
    assert {value.dtype for value in halves.values()} == {torch.bfloat16}
    assert merged(state, None) is state


def test_only_one_tensor_is_read_at_a_time():
    lora = Lora(rank=3, parts=["trunk"])
    checkpoint = checkpoint_of(adapted("llama", lora=lora), lora)
    read = []

    class Files(dict):
        def __getitem__(self, name):
            read.append(name)
            return super().__getitem__(name)

    weights = merged(Files(checkpoint["state_dict"]), checkpoint["lora"])
    assert not read
    name = "lm.model.shared_block.layers.0.mlp.up_proj.weight"
    assert weights[name].shape == (96, 64)
    assert len(read) == 3
    assert read[0] == name.replace(".weight", ".base_layer.weight")


@pytest.mark.parametrize("frozen", [False, True])
def test_the_next_stage_takes_over_merged_weights(frozen, monkeypatch):
    lora = Lora(rank=3, alpha=7.0)
    lm = adapted("qwen3", lora=lora)
    checkpoint = checkpoint_of(lm, lora)
    if frozen:
        trained = {name for name, _ in lm.named_parameters() if ".lora_" in name}
        left_out = stages.leave_out_frozen(checkpoint["state_dict"], trained)
        assert left_out.keys() == split("qwen3").state_dict().keys()
        assert len(checkpoint["state_dict"]) == len(trained)
        checkpoint["frozen"] = {"backbone": "b", **stages.hash_record(left_out)}
    monkeypatch.setitem(sys.modules, "peft", None)
    found = split("qwen3")
    stages.load_initial_weights(found, checkpoint, "there")
    monkeypatch.undo()
    wanted = plain_state(lm)
    assert all(torch.equal(value, wanted[name]) for name, value in found.state_dict().items())
    if frozen:
        other = split("qwen3")
        other.model.text_norm.weight.data += 1
        with pytest.raises(UserError, match="give the same backbone"):
            stages.load_initial_weights(other, checkpoint, "there")


def test_frozen_weights_come_back_under_the_names_of_the_model_with_adapters():
    lora = Lora(rank=3)
    lm = adapted("llama", lora=lora)
    checkpoint = checkpoint_of(lm, lora)
    whole = dict(checkpoint["state_dict"])
    trained = {name for name, _ in lm.named_parameters() if ".lora_" in name}
    left_out = stages.leave_out_frozen(checkpoint["state_dict"], trained)
    checkpoint["frozen"] = {"backbone": "b", **stages.hash_record(left_out)}
    stages.add_frozen(checkpoint, lm.state_dict())
    assert checkpoint["state_dict"].keys() == whole.keys()
    assert all(torch.equal(value, whole[name]) for name, value in checkpoint["state_dict"].items())


def test_layers_of_other_kinds_get_adapters_too():
    config = other_config("phi3")  # transformers' own layers, with joined projections
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(config, 1, 40).eval()
    rows = mixed_rows(lm, 1, 12)
    with torch.no_grad():
        base = lm(rows).text_logits
        add_adapters(lm, Lora(rank=2, modules=["qkv_proj", "gate_up_proj"]))
        assert torch.equal(lm(rows).text_logits, base)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 and dropout 0.0: expected a rank of 1 or more"),
        ({"dropout": 1.0}, "dropout from 0 to below 1"),
        ({"parts": ["trunk", "tail"]}, "expected parts of trunk, text_tail, audio_tail"),
        ({"parts": []}, "at least one module"),
        ({"modules": []}, "at least one module"),
        ({"modules": ["q_proj", "w1"]}, r"modules \['w1'\], which are no linear layers of trunk.*down_proj"),
    ],
)
def test_mistakes_in_the_options(options, message):
    with pytest.raises(UserError, match=message) as error:
        add_adapters(split("llama"), Lora(**options))
    assert "\n" not in str(error.value)


def test_a_backbone_without_these_layers_is_refused():
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(other_config("phi3"), 1, 40)
    with pytest.raises(
        UserError, match=r"\['q_proj', 'k_proj', 'v_proj', 'gate_proj', 'up_proj'\].*qkv_proj"
    ):
        add_adapters(lm, Lora())


def test_adapters_without_peft_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"needs peft: pip install 'lit-moss\[finetune\]'"):
        add_adapters(split("llama"), Lora())


def test_adapters_that_never_train_and_weights_that_train_under_them_are_refused():
    lm = adapted("llama", lora=Lora(rank=2, parts=["trunk", "audio_tail"]))
    names = [name for name, _ in lm.named_parameters()]
    adapters = {name for name in names if ".lora_" in name}
    check_trained(names, adapters | {"model.audio_embed.weight"})
    check_trained([name for name in names if ".lora_" not in name], set())
    with pytest.raises(UserError, match="no stage of StagedFreezing trains 28 of the 70 "):
        check_trained(names, {name for name in adapters if "shared_block" in name})
    with pytest.raises(UserError, match=r"trains 35 tensors that have adapters .*give policy lora"):
        check_trained(names, set(names))


def test_a_run_resumes_with_the_adapters_it_has():
    record = Lora().record()
    check_resumed(record, Lora(dropout=0.1))
    check_resumed(None, None)
    for stored, now in (
        (record, None),
        (None, Lora()),
        (record, Lora(rank=8)),
        (record, Lora(parts=["trunk"])),
    ):
        with pytest.raises(UserError, match=r"the checkpoint's adapters are .*resume with the same"):
            check_resumed(stored, now)


def test_blocks_are_those_of_the_model():
    parts = named_parts(split("llama"))
    for part, prefix in BLOCKS.items():
        found = [named for name, named in parts.items() if name.split(".")[0] == part]
        assert found
        assert all(name.startswith(prefix) for named in found for name, _ in named)


def test_a_model_without_a_split_has_adapters_in_its_trunk():
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(config_of("llama"), 0, 40, joint=True)
    add_adapters(lm, Lora(rank=2))
    assert [part for part in named_parts(lm) if part.startswith("lora")] == ["lora_trunk"]
    with pytest.raises(UserError, match="no linear layers of audio_tail in this model: its layers have none"):
        add_adapters(SplitLM.from_backbone(config_of("llama"), 0, 40, True), Lora(parts=["audio_tail"]))
