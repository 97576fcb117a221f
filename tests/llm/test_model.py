import copy
import hashlib
import json

import pytest
import torch
import torch.nn.functional as F
from backbones import backbone_of, config_of, folder_of, mixed_rows

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.layout import targets

KINDS = ("qwen3", "qwen2", "llama")


def digest(lm, part):
    state = {k: v for k, v in lm.state_dict().items() if ("audio" in k) == (part == "speech")}
    return {k: hashlib.sha256(v.numpy().tobytes()).hexdigest() for k, v in state.items()}


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    folder, backbone = folder_of(tmp_path_factory.mktemp(request.param), request.param)
    return folder, backbone


@pytest.mark.slow
@pytest.mark.parametrize("depth", [0, 1, 2, 5])
def test_invariant_1_text_logits_equal_the_backbones_to_the_bit(pair, depth):
    folder, backbone = pair
    lm = SplitLM.from_backbone(folder, num_modality_layers=depth, audio_vocab_size=40).eval()
    rows = torch.randint(0, 199, (3, 37), generator=torch.Generator().manual_seed(depth))
    with torch.no_grad():
        ours, theirs = lm(rows).text_logits, backbone(rows, use_cache=False).logits
    assert torch.equal(ours, theirs)


def test_tied_backbone_is_untied_and_still_equal(tmp_path):
    folder, backbone = folder_of(tmp_path, "llama", tie_word_embeddings=True)
    lm = SplitLM.from_backbone(folder, 2, 40)
    rows = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(lm(rows).text_logits, backbone(rows, use_cache=False).logits)
    assert lm.text_lm_head.weight.data_ptr() != lm.model.embed_tokens.weight.data_ptr()


def test_the_speech_tail_starts_as_a_copy_and_is_none_of_the_text_tail(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40)
    for (name, a), b in zip(
        lm.model.text_block.named_parameters(), lm.model.audio_block.parameters(), strict=True
    ):
        assert torch.equal(a, b), name
        assert a.data_ptr() != b.data_ptr()
    assert torch.equal(lm.model.text_norm.weight, lm.model.audio_norm.weight)


def test_names_and_shapes_at_official_size(contract):
    manifest = json.loads((contract / "moss_speech_lm_manifest.json").read_text())
    config = config_of(
        "qwen3",
        vocab_size=151680,
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
    )
    config.head_dim = 128
    with torch.device("meta"):
        lm = SplitLM.from_backbone(config, num_modality_layers=4, audio_vocab_size=16512)
    assert {k: list(v.shape) for k, v in lm.state_dict().items()} == {
        t["name"]: t["shape"] for t in manifest["tensors"]
    }
    assert lm.format.eosp_token_id == 16384


# --- packing ------------------------------------------------------------------------------------------------


def packed(lm, lengths, seed=0):
    rows = mixed_rows(lm, 1, sum(lengths), seed)
    ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]
    return rows, ids


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["segments", "mask"])
def test_invariant_3_packed_equals_separate(pair, kernel):
    lm = SplitLM.from_backbone(pair[0], 2, 40).eval()
    lm.attention = kernel
    lengths = [1, 13, 30, 2, 18]
    rows, ids = packed(lm, lengths)
    with torch.no_grad():
        out = lm(rows, document_ids=ids)
        start = 0
        for n in lengths:
            alone = lm(rows[:, start : start + n])
            for a, b in ((out.text_logits, alone.text_logits), (out.speech_logits, alone.speech_logits)):
                assert (a[:, start : start + n] - b).abs().max() < 1e-5 * b.abs().max().clamp_min(1)
            start += n


@pytest.mark.parametrize("kernel", ["segments", "mask"])
def test_invariant_3_another_document_a_leaves_document_b_untouched_to_the_bit(pair, kernel):
    lm = SplitLM.from_backbone(pair[0], 2, 40)
    lm.attention = kernel
    lengths = [17, 25]
    rows, ids = packed(lm, lengths)
    changed = rows.clone()
    changed[:, :17] = packed(lm, lengths, seed=9)[0][:, :17]
    outs = [lm(r, document_ids=ids) for r in (rows, changed)]
    assert torch.equal(outs[0].text_logits[:, 17:], outs[1].text_logits[:, 17:])
    assert torch.equal(outs[0].speech_logits[:, 17:], outs[1].speech_logits[:, 17:])
    assert not torch.equal(outs[0].text_logits[:, :17], outs[1].text_logits[:, :17])


@pytest.mark.parametrize("kernel", ["segments", "mask"])
def test_one_attention_document_reads_a_sequence_as_one_and_keeps_the_targets(pair, kernel):
    lm = SplitLM.from_backbone(pair[0], 2, 40).eval()
    lm.attention = kernel
    lengths = [17, 25]
    rows, ids = packed(lm, lengths)
    with torch.no_grad():
        as_one = lm.loss(rows, ids, attention_ids=torch.zeros_like(ids))
        whole, apart = lm.loss(rows), lm.loss(rows, ids)
    last = sum(lengths) - 1
    assert int(as_one.text_count + as_one.speech_count) == last - 1  # the second document's first row is none
    counted = torch.ones(sum(lengths), dtype=torch.bool)
    counted[17] = False
    torch.testing.assert_close(as_one.nll_BL[0, counted], whole.nll_BL[0, counted])
    torch.testing.assert_close(as_one.nll_BL[0, :17], apart.nll_BL[0, :17])
    assert (as_one.nll_BL[0, 18:] - apart.nll_BL[0, 18:]).abs().max() > 1e-3


def test_batched_packs_equal_each_alone(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40).eval()
    one, two = packed(lm, [5, 20, 7], 1), packed(lm, [16, 16], 2)
    with torch.no_grad():
        both = lm(torch.cat([one[0], two[0]]), document_ids=torch.cat([one[1], two[1]])).speech_logits
        for b, (rows, ids) in enumerate((one, two)):
            torch.testing.assert_close(
                both[b : b + 1], lm(rows, document_ids=ids).speech_logits, rtol=1e-5, atol=1e-5
            )


# --- losses -------------------------------------------------------------------------------------------------


def plain_loss(lm, rows, ids=None, mask=None):
    """The definition, written out: full logits, one row after the other."""
    out, V = lm(rows, document_ids=ids), lm.format.text_vocab_size
    sums = {"text": [], "speech": []}
    for b in range(len(rows)):
        for i in range(1, rows.shape[1]):
            if ids is not None and (ids[b, i] != ids[b, i - 1] or ids[b, i] < 0):
                continue
            if mask is not None and not mask[b, i]:
                continue
            r = int(rows[b, i])
            logits = out.text_logits[b, i - 1] if r < V else out.speech_logits[b, i - 1]
            sums["text" if r < V else "speech"].append(
                -F.log_softmax(logits.float(), -1)[r if r < V else r - V]
            )
    return sums


def test_losses_equal_their_definition_and_so_do_gradients(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    rows, ids = packed(lm, [9, 14, 7])
    ids[:, -3:] = -1
    mask = torch.rand(rows.shape, generator=torch.Generator().manual_seed(3)) < 0.8
    plain = plain_loss(lm, rows, ids, mask)
    everything = torch.stack(plain["text"] + plain["speech"]).mean()
    everything.backward()
    expected = {n: p.grad.clone() for n, p in lm.named_parameters() if p.grad is not None}
    lm.zero_grad()
    loss = lm.loss(rows, document_ids=ids, loss_mask=mask)
    loss.total.backward()
    assert int(loss.text_count) == len(plain["text"])
    assert int(loss.speech_count) == len(plain["speech"])
    torch.testing.assert_close(loss.text, torch.stack(plain["text"]).mean().detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        loss.speech, torch.stack(plain["speech"]).mean().detach(), rtol=1e-6, atol=1e-6
    )
    torch.testing.assert_close(loss.total, everything, rtol=1e-6, atol=1e-6)
    for name, p in lm.named_parameters():
        if name in expected:
            torch.testing.assert_close(p.grad, expected[name], rtol=2e-4, atol=2e-6, msg=name)
    assert torch.equal(loss.nll_BL != 0, targets(rows, ids, mask))


@pytest.mark.parametrize("kind", ["text", "speech"])
def test_invariant_8_gradients_stay_on_their_side(pair, kind):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    rows = mixed_rows(lm, 2, 24)
    wanted = (rows < lm.format.text_vocab_size) == (kind == "text")
    lm.loss(rows, loss_mask=wanted).total.backward()
    other = "audio_block" if kind == "text" else "text_block"
    own = "text_block" if kind == "text" else "audio_block"
    grads = {n: p.grad for n, p in lm.named_parameters()}
    for name, grad in grads.items():
        if other in name:
            assert grad is None or not grad.any(), name
        if own in name:
            assert grad is not None, name
            assert grad.any(), name


def test_a_frozen_head_and_trunk_get_no_gradient_but_pass_it_on(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    for name, p in lm.named_parameters():
        p.requires_grad_("audio" in name)
    lm.loss(mixed_rows(lm, 2, 24)).total.backward()
    for name, p in lm.named_parameters():
        assert (p.grad is not None) == ("audio" in name), name
    assert lm.model.audio_embed.weight.grad.any()


def test_weights_per_modality(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40)
    rows = mixed_rows(lm, 2, 24)
    base = lm.loss(rows)
    lm.text_weight, lm.speech_weight = 0.25, 2.0
    n_text, n_speech = base.text_count, base.speech_count
    expected = (0.25 * base.text * n_text + 2.0 * base.speech * n_speech) / (n_text + n_speech)
    torch.testing.assert_close(lm.loss(rows).total, expected)


def test_chunks_of_the_head_change_nothing(pair, monkeypatch):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    rows = mixed_rows(lm, 2, 30)
    whole = lm.loss(rows)
    whole.total.backward()
    grad = lm.text_lm_head.weight.grad.clone()
    lm.zero_grad()
    monkeypatch.setattr("lit_moss.llm.losses.CHUNK_ELEMENTS", {"cpu": 199 * 4})
    parts = lm.loss(rows)
    parts.total.backward()
    torch.testing.assert_close(parts.total, whole.total, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lm.text_lm_head.weight.grad, grad, rtol=1e-4, atol=1e-6)


def test_a_batch_without_speech_or_without_any_target(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    text = torch.arange(10)[None]
    loss = lm.loss(text)
    assert int(loss.speech_count) == 0
    assert float(loss.speech) == 0
    loss.total.backward()
    nothing = lm.loss(text, loss_mask=torch.zeros_like(text, dtype=torch.bool))
    assert float(nothing.total) == 0


# --- no split, options --------------------------------------------------------------------------------------


def test_without_a_split_one_softmax_covers_both(pair):
    folder, backbone = pair
    lm = SplitLM.from_backbone(folder, 0, 40, joint=True).train()
    rows = mixed_rows(lm, 2, 20)
    out = lm(rows)
    logits = torch.cat([out.text_logits, out.speech_logits], -1)
    expected = F.cross_entropy(logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten())
    torch.testing.assert_close(lm.loss(rows).total, expected, rtol=1e-5, atol=1e-6)
    text = rows.clamp(max=150)
    with torch.no_grad():
        assert torch.equal(lm(text).text_logits, backbone(text, use_cache=False).logits)
    assert not any("audio" in name for name, _ in lm.named_parameters())


def test_activation_checkpointing_changes_nothing(pair):
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    rows, ids = packed(lm, [9, 14])
    grads = []
    for on in (False, True):
        lm.checkpoint_activations(on)
        lm.zero_grad()
        lm.loss(rows, document_ids=ids).total.backward()
        grads.append({n: p.grad.clone() for n, p in lm.named_parameters()})
    for name in grads[0]:
        assert torch.equal(grads[0][name], grads[1][name]), name


@pytest.mark.nightly
@pytest.mark.parametrize(("pair", "stage1"), [("qwen3", True), ("llama", False)], indirect=["pair"])
def test_compiled_layers_agree(pair, stage1):
    """Stage 1 in bf16 takes the frozen projections' own path; a compilation takes 10 to 30 s."""
    torch.compiler.reset()
    lm = SplitLM.from_backbone(pair[0], 2, 40).train()
    for name, p in lm.named_parameters():
        p.requires_grad_("audio" in name or not stage1)
    rows, ids = packed(lm, [9, 14])
    compiled = copy.deepcopy(lm)
    compiled.compile_layers()
    losses, grads = [], []
    for model in (lm, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=stage1):
            losses.append(model.loss(rows, document_ids=ids).total)
        losses[-1].backward()
        grads.append(model.model.audio_embed.weight.grad)
    near = 2e-2 if stage1 else 1e-5
    torch.testing.assert_close(losses[0], losses[1], rtol=near, atol=near)
    assert (grads[0] - grads[1]).norm() <= (0.1 if stage1 else 1e-4) * grads[0].norm()
    assert {k for k, _ in compiled.named_parameters()} == {k for k, _ in lm.named_parameters()}


# --- folders ------------------------------------------------------------------------------------------------


def test_saved_and_loaded_is_the_same(pair, tmp_path):
    lm = SplitLM.from_backbone(pair[0], 2, 40).eval()
    lm.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = SplitLM.from_pretrained(tmp_path)
    rows = mixed_rows(lm, 2, 12)
    with torch.no_grad():
        a, b = lm(rows), again(rows)
    assert torch.equal(a.text_logits, b.text_logits)
    assert torch.equal(a.speech_logits, b.speech_logits)
    assert again.format == lm.format
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields["model_type"] == "moss_speech"
    assert fields["num_shared_layers"] + fields["num_modality_layers"] == fields["num_hidden_layers"]


def test_the_released_config_is_read(tmp_path):
    from lit_moss.llm.config import SplitConfig

    released = {
        "model_type": "moss_speech",
        "architectures": ["MossSpeechForCausalLM"],
        "num_hidden_layers": 36,
        "num_shared_layers": 32,
        "num_modality_layers": 4,
        "vocab_size": 151680,
        "audio_vocab_size": 16512,
        "sosp_token_id": 151646,
        "eosp_token_id": 16384,
        "modality_pad_token_id": 151667,
        "audio_pad_token_id": 512,
        "channels": 2,
        "tie_word_embeddings": False,
        "hidden_size": 4096,
        "max_position_embeddings": 40960,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
    }
    (tmp_path / "config.json").write_text(json.dumps(released))
    config = SplitConfig.from_json(tmp_path / "config.json")
    assert config.backbone.model_type == "qwen3"
    assert config.num_shared_layers == 32
    assert config.sosp_token_id == 151646
    assert config.backbone.rope_parameters["rope_theta"] == 1000000


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["no config", "no weights", "other shape", "no json"])
def test_a_damaged_folder_is_one_clear_line(pair, tmp_path, damage):
    SplitLM.from_backbone(pair[0], 2, 40).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    if damage == "no config":
        config.unlink()
    elif damage == "no weights":
        (tmp_path / "model.safetensors").unlink()
    elif damage == "no json":
        config.write_text("{")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"audio_vocab_size": 50}))
    with pytest.raises(UserError) as error:
        SplitLM.from_pretrained(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("depth", [-1, 6])
def test_a_split_depth_outside_the_backbone_is_refused(depth):
    with pytest.raises(UserError, match="expected 0 to the backbone's 5 layers"):
        SplitLM.from_backbone(config_of("llama"), depth, 40)


def test_a_model_of_other_parts_is_refused():
    from transformers import GPT2Config

    with pytest.raises(UserError, match="cannot be split"):
        SplitLM.from_backbone(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50), 1, 40)


def test_a_config_gives_random_weights():
    assert SplitLM.from_backbone(config_of("qwen3"), 1, 40)(torch.tensor([[1, 2]])).speech_logits.shape == (
        1,
        2,
        40,
    )
    assert backbone_of("qwen3").num_parameters() > 0
