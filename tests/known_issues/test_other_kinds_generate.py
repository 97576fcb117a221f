"""Kinds that run through transformers' own layers generate what their own forward says.

transformers 5.24 hands its caches an argument that ours refused: every kind but those of own layers failed.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from backbones import other_config
from transformers import AutoModelForCausalLM

from lit_moss.llm import SplitLM
from lit_moss.llm.layers import DecoderLayer

KINDS = (
    "gemma", "phi3", "olmo", "olmo2", "olmoe", "smollm3", "glm", "glm4", "qwen3_moe", "mixtral", "granite",
    "helium", "starcoder2", "ernie4_5", "arcee", "phimoe", "llama",
)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def lm(request):
    changes = {"hidden_act": "gelu"} if request.param == "llama" else {}
    torch.manual_seed(5)
    lm = SplitLM.from_backbone(other_config(request.param, **changes), 2, 40).eval()
    assert not any(isinstance(layer, DecoderLayer) for block in lm.blocks() for layer in block.layers)
    with torch.no_grad():
        lm.audio_lm_head.weight.normal_(0.0, 0.3)
    return lm


def follows(lm, prompt, made):
    """Whether each row is the most likely one, by forwards without a cache."""
    f, rows = lm.format, torch.tensor([prompt + made])
    with torch.no_grad():
        out = lm(rows)
    for i, row in enumerate(made, start=len(prompt) - 1):
        last = int(rows[0, i])
        speaks = last == f.sosp_token_id or (last >= f.text_vocab_size and last != f.eosp_row)
        logits = (out.speech_logits if speaks else out.text_logits)[0, i].clone()
        if speaks:
            logits[f.eosp_token_id + 1 :] = -torch.inf
        else:
            logits[f.modality_pad_token_id] = -torch.inf
        found = logits[row - f.text_vocab_size if speaks else row]
        assert (row >= f.text_vocab_size) == speaks
        torch.testing.assert_close(found, logits.max(), rtol=1e-4, atol=1e-4)
    return True


@pytest.mark.nightly
def test_greedy_rows_are_the_most_likely_ones_alone_and_in_a_batch(lm):
    f = lm.format
    prompts = [[5, 9, 60], [4, 77, 8, 21, 9, f.sosp_token_id], [*f.speech([3, 9]), 7, 80]]
    for prompt, made in zip(prompts, lm.generate(prompts, max_new_tokens=7, greedy=True), strict=True):
        assert made
        assert follows(lm, prompt, made)
        assert made == lm.generate(prompt, max_new_tokens=7, greedy=True)


@pytest.mark.slow
def test_a_saved_model_is_read_again(lm, tmp_path):
    """Gemma's scale of embeddings is in no file, and stayed on the meta device."""
    lm.save_pretrained(tmp_path)
    again = SplitLM.from_pretrained(tmp_path)
    assert not any(t.is_meta for t in (*again.parameters(), *again.buffers()))
    rows = torch.tensor([[5, 9, 60, *lm.format.speech([3, 9]), 7]])
    with torch.no_grad():
        wanted, found = lm(rows), again(rows)
    torch.testing.assert_close(found.text_logits, wanted.text_logits)
    torch.testing.assert_close(found.speech_logits, wanted.speech_logits)


@pytest.mark.slow
def test_varlen_attention_gets_half_precision_under_autocast(lm, monkeypatch):
    """transformers' layers rotate queries and keys in float32 there, which the kernel does not take."""
    from torch.nn.attention import varlen

    def on_cpu(q, k, v, offsets, *_, scale, window_size):
        assert q.dtype == k.dtype == v.dtype == torch.bfloat16
        assert window_size == (-1, 0)
        sizes = offsets.diff().tolist()
        parts = zip(*(x.transpose(0, 1).split(sizes, dim=1) for x in (q, k, v)), strict=True)
        done = [
            F.scaled_dot_product_attention(*one, is_causal=True, scale=scale, enable_gqa=True)
            for one in parts
        ]
        return torch.cat(done, dim=1).transpose(0, 1)

    monkeypatch.setattr(varlen, "varlen_attn", on_cpu)
    rows, ids = torch.arange(5, 35)[None], torch.arange(30)[None] // 10
    monkeypatch.setattr(lm, "attention", "varlen")
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = lm(rows, document_ids=ids).text_logits
        lm.attention = "mask"
        wanted = lm(rows, document_ids=ids).text_logits
    assert (found - wanted).abs().mean() < 0.05 * wanted.std()


@pytest.mark.parametrize("kind", ["gemma", "olmo", "phi3", "mixtral"])
def test_logits_packed_and_alone_are_the_backbones(kind):
    config = other_config(kind)
    torch.manual_seed(5)
    backbone = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32).eval()
    torch.manual_seed(5)
    lm = SplitLM.from_backbone(config, 1, 40).eval()
    rows = torch.randint(4, 190, (2, 12), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = backbone(rows, use_cache=False).logits
        packed = lm(rows.view(1, 24), document_ids=torch.arange(24)[None] // 12).text_logits
    torch.testing.assert_close(packed.view(2, 12, -1), wanted, rtol=1e-4, atol=1e-4)
