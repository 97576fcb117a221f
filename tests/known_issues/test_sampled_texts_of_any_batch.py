"""Texts that a task of lm-eval samples depended on the batch: with another `batch_size`, which may be
changed, and after a kill an evaluation had other texts."""

import pytest
import torch
from lm_recipe import backbone_folder

pytest.importorskip("lm_eval", reason="needs the extra `evaluate`")

from lm_eval.api.instance import Instance

from lit_moss.evaluate.lm_eval_model import LitMossLM
from lit_moss.evaluate.text_model import open_text_model

OPTIONS = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    torch.manual_seed(3)
    lm, tokenizer, _ = open_text_model(str(backbone_folder(tmp_path_factory.mktemp("any") / "b")), "cpu")
    with torch.no_grad():
        lm.text_lm_head.weight.normal_(0.0, 0.5)
    return lm, tokenizer


def texts(opened, prompts, batch_size, seed=0):
    model = LitMossLM(*opened, batch_size=batch_size, seed=seed)
    requests = [
        Instance("generate_until", {}, (prompt, OPTIONS), 0, metadata=("task", i, 1))
        for i, prompt in enumerate(prompts)
    ]
    return model.generate_until(requests)


def test_texts_do_not_depend_on_the_batch(opened):
    prompts = ["a", "two words", "another prompt", "b", "a"]
    together = texts(opened, prompts, 5)
    assert [texts(opened, prompts, size) for size in (1, 2)] == [together] * 2
    assert texts(opened, prompts, 5, seed=1) != together
    assert together[0] != together[4]  # the same question asked twice
