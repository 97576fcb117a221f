"""A foreign check: plain transformers computes the text logits of a saved model."""

import pytest
import torch
from backbones import mixed_rows
from lm_recipe import backbone_folder
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.release.text_path import save_text_model


def train(lm, steps=4):
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    for step in range(steps):
        lm.loss(mixed_rows(lm, 2, 24, seed=step)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    lm.eval()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_its_logits_are_ours_to_the_bit_before_and_after_training(tmp_path, kind):
    lm = SplitLM.from_backbone(backbone_folder(tmp_path / "backbone", kind), 2, 128)
    rows = torch.randint(3, 255, (2, 33), generator=torch.Generator().manual_seed(0))
    seen = []
    for name in ("before", "after"):
        if name == "after":
            train(lm)
        lm.save_pretrained(tmp_path / name, max_shard_size="40KB")
        save_text_model(tmp_path / name, tmp_path / f"{name}-text")
        plain = AutoModelForCausalLM.from_pretrained(tmp_path / f"{name}-text").eval()
        assert type(plain).__name__ == {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}[kind]
        ours = SplitLM.from_pretrained(tmp_path / name)
        with torch.no_grad():
            logits = plain(rows).logits
            assert torch.equal(logits, ours(rows).text_logits)
            assert torch.equal(logits, lm(rows).text_logits)
        seen.append(logits)
    assert not torch.equal(*seen)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "after-text")
    assert tokenizer.convert_tokens_to_ids("<|object_ref_start|>") == lm.format.sosp_token_id


def test_a_model_without_a_split_has_no_text_path(tmp_path):
    SplitLM.from_backbone(backbone_folder(tmp_path / "b"), 0, 128, joint=True).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="joint"):
        save_text_model(tmp_path / "m", tmp_path / "out")
    assert not (tmp_path / "out").exists()
