"""A task of lm-eval whose `until` is a special token, such as <|im_start|>, got the text after it too: the
harness's own `hf` model ends there."""

import pytest
import torch
from backbones import config_of
from lm_recipe import tokenizer_of_bytes
from transformers import AutoModelForCausalLM

pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from lit_moss.evaluate.lm_eval_model import LitMossLM
from lit_moss.evaluate.text_model import open_text_model

STOP, PROMPT = "<|im_start|>", "What do bees make?"


def answer(model, until):
    options = {"until": until, "max_gen_toks": 12}
    request = Instance("generate_until", {}, (PROMPT, options), 0, metadata=("task", 0, 1))
    return model.generate_until([request], disable_tqdm=True)[0]


@pytest.mark.slow
def test_a_text_ends_before_a_special_token(tmp_path):
    torch.manual_seed(3)
    sizes = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 48}
    model = AutoModelForCausalLM.from_config(
        config_of("llama", vocab_size=259, **sizes, initializer_range=0.15)
    )
    tokenizer = tokenizer_of_bytes()
    tokenizer.add_special_tokens({"additional_special_tokens": [STOP]})
    tokenizer.save_pretrained(tmp_path)
    # The word that would come fourth becomes the special token.
    ids = torch.tensor([tokenizer.encode(PROMPT)])
    made = model.generate(ids, max_new_tokens=12, do_sample=False)[0, ids.shape[1] :].tolist()
    stop, fourth = tokenizer.convert_tokens_to_ids(STOP), made[3]
    with torch.no_grad():
        for table in (model.lm_head.weight, model.model.embed_tokens.weight):
            table[[stop, fourth]] = table[[fourth, stop]].clone()
    model.save_pretrained(tmp_path)
    lm, text_tokenizer, _ = open_text_model(str(tmp_path), "cpu")
    ours = LitMossLM(lm, text_tokenizer)
    theirs = HFLM(pretrained=str(tmp_path), device="cpu", dtype="float32", batch_size=1)
    ended = answer(ours, [STOP])
    assert ended == answer(theirs, [STOP])
    assert answer(ours, []).startswith(ended)
    assert len(answer(ours, [])) > len(ended)
