"""The real backbone: invariants 1 and 2, and generation, at three split depths."""

import pytest
import torch

from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import SMOLLM2, load_text_tokenizer, resolve_backbone

pytestmark = [pytest.mark.network, pytest.mark.slow]


@pytest.fixture(scope="module")
def real():
    from transformers import AutoModelForCausalLM

    folder = resolve_backbone(SMOLLM2)
    return (
        folder,
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(),
        load_text_tokenizer(folder),
    )


@pytest.mark.parametrize("depth", [1, 4, 12])
def test_text_logits_before_and_after_stage_1_are_the_backbones(real, depth):
    folder, backbone, tokenizer = real
    rows = torch.tensor([tokenizer.encode("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n")])
    lm = SplitLM.from_backbone(folder, depth, 1152).eval()
    V = backbone.config.vocab_size
    with torch.no_grad():
        wanted = backbone(rows, use_cache=False).logits
        assert torch.equal(lm(rows).text_logits[..., :V], wanted)
    for name, p in lm.named_parameters():
        p.requires_grad_("audio" in name)
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=1e-2)
    speech = torch.tensor([[5, *lm.format.speech(list(range(20)))]])
    lm.train()
    for _ in range(2):
        lm.loss(speech).total.backward()
        optimizer.step()
        optimizer.zero_grad()
    lm.eval()
    with torch.no_grad():
        assert torch.equal(lm(rows).text_logits[..., :V], wanted)


def test_greedy_text_is_transformers_greedy_text(real):
    folder, backbone, tokenizer = real
    lm = SplitLM.from_backbone(folder, 4, 1152).eval()
    prompt = tokenizer.encode(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
    )
    wanted = backbone.generate(torch.tensor([prompt]), max_new_tokens=24, do_sample=False)[
        0, len(prompt) :
    ].tolist()
    rows = lm.generate(prompt, max_new_tokens=24, greedy=True)
    assert rows == wanted
    assert "Paris" in tokenizer.decode(rows)
