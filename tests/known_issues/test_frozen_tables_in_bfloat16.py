"""With `frozen_dtype: bfloat16` and frozen embeddings of speech the residual stream became bfloat16, as both
tables were: the logits were no longer those of the same weights in float32."""

import pytest
import torch
from backbones import config_of, mixed_rows

from lit_moss.llm import SplitLM, stages


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("trained", ["nothing", "audio", "text"])
def test_logits_do_not_depend_on_which_weights_are_frozen_in_bfloat16(joint, trained):
    torch.manual_seed(0)
    lm = SplitLM.from_backbone(config_of("qwen3"), 0 if joint else 2, 40, joint).eval()
    rows = mixed_rows(lm, 2, 30)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for p in lm.parameters():
            if p.ndim > 1:
                p.copy_(p.bfloat16())  # stored so
        before = lm(rows)
        names = {name for name, _ in lm.named_parameters() if trained in name}
        stages.cast(lm, stages.dtypes_of_training(lm, torch.float32, names, torch.bfloat16))
        after = lm(rows)
    assert torch.equal(before.text_logits, after.text_logits)
    assert torch.equal(before.speech_logits, after.speech_logits)
