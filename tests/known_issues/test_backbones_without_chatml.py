"""A backbone without ChatML tokens, such as Llama's, trained through stage 1 and failed at fine-tuning."""

import warnings

import pytest
from backbones import config_of
from lm_recipe import lm_recipe
from recording import fit
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast


def llama_folder(path):
    """A backbone whose special tokens are Llama 3's."""
    AutoModelForCausalLM.from_config(
        config_of("llama", vocab_size=260, num_hidden_layers=4, hidden_size=32, intermediate_size=48)
    ).save_pretrained(path)
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"]
    words = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    bpe = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[]))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken(w, special=True) for w in special])
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|eot_id|>").save_pretrained(path)


@pytest.mark.slow
def test_training_says_at_its_start_that_conversations_cannot_follow(tmp_path):
    llama_folder(tmp_path / "backbone")
    with pytest.warns(UserWarning, match=r"backbone has no <\|im_start\|> and <\|im_end\|>.*in ChatML"):
        fit(tmp_path / "run", lm_recipe(tmp_path / "run", 1))


@pytest.mark.slow
def test_a_tokenizer_that_has_them_is_passed_over(tmp_path):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        fit(tmp_path / "run", lm_recipe(tmp_path / "run", 1))
    assert not [w for w in said if "im_start" in str(w.message)]
