"""`evaluate cloze` refused models whose tokenizer has no ChatML tokens, such as Llama's, though the
likelihood of a text has nothing to do with turns."""

import json

import pytest
import torch
from backbones import config_of
from talker import CODES
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from lit_moss.errors import UserError
from lit_moss.evaluate import cloze
from lit_moss.evaluate.answers import Answerer
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format, text_tokenizer_fingerprint
from lit_moss.serve.engine import Engine
from lit_moss.serve.model import SpeechModel


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A random backbone whose tokens are bytes and the end of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("plain") / "backbone"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(["<|end_of_text|>", *letters])}, merges=[]))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    torch.manual_seed(3)
    config = config_of("llama", vocab_size=260, num_hidden_layers=4, hidden_size=32, intermediate_size=48)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|end_of_text|>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def split(backbone):
    """A split model on it, as `export` writes one."""
    folder = backbone.parent / "split"
    tokenizer = load_text_tokenizer(backbone)
    form = row_format(tokenizer, 128, eosp=CODES)
    assert form.im_start_id is None
    SplitLM.from_backbone(backbone, 1, 128, row_format=form).save_pretrained(folder, tokenizer)
    ModelRecord(text_tokenizer=text_tokenizer_fingerprint(tokenizer), steps=5).write(folder)
    return folder


@pytest.mark.parametrize("kind", ["backbone", "split"])
def test_texts_are_scored(request, tmp_path, kind):
    items = tmp_path / "pairs.jsonl"
    items.write_text(
        json.dumps({"id": 1, "prompt_text": "It is", "good_text": "dark", "bad_text": "a"}) + "\n"
    )
    model = str(request.getfixturevalue(kind))
    metrics = cloze.run(
        cloze.Config(model, [str(items)], modalities=["text-text"], run_root=str(tmp_path / "runs"))
    )
    assert metrics["pairs/text-text/failed"] == 0
    assert metrics["pairs/text-text/ppl"] > 1


@pytest.mark.parametrize("use", [Engine, Answerer])
def test_what_needs_turns_refuses_them_at_once(split, use):
    with pytest.raises(UserError, match=r"has no <\|im_start\|>"):
        use(SpeechModel.open(str(split), device="cpu"))
