"""Transcripts of held-out utterances by the language model."""

import math
from dataclasses import dataclass

import pytest
import torch
from backbones import config_of

from lit_moss.corpora.manifest import Utterance, write_manifest
from lit_moss.data.listening import make_asr_items, word_errors
from lit_moss.llm import SplitLM
from lit_moss.llm.listening import Listening
from lit_moss.llm.rows import RowFormat

V, CODES = 60, 30
FORM = RowFormat(V, 40, 50, CODES, 51, 35, end_id=52)


@dataclass
class Item:
    prompt: list[int]
    expected: list[int]
    text: str


def decode(ids):
    return " ".join(f"w{i}" for i in ids)


def item(code, ids):
    return Item([50, *[V + code] * 4, V + CODES], [*ids, 52], decode(ids))


@pytest.mark.slow
@pytest.mark.parametrize("learnt", [False, True])
def test_a_model_that_learnt_the_transcripts_makes_no_errors(learnt):
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=2, hidden_size=32, intermediate_size=64,
                       initializer_range=0.1)  # fmt: skip
    lm = SplitLM.from_backbone(config, 1, 40, row_format=FORM)
    items = [item(1, [3, 4, 5]), item(2, [6, 3]), item(9, [8, 8, 7, 2])]
    if learnt:
        optimizer = torch.optim.Adam(lm.parameters(), 1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            documents = [[*i.prompt, *i.expected] for i in items]
            rows = [row for document in documents for row in document]
            ids = [number for number, document in enumerate(documents) for _ in document]
            lm.loss(torch.tensor([rows]), torch.tensor([ids])).total.backward()
            optimizer.step()
    lm.train()
    before = torch.get_rng_state()
    found = Listening(items, decode, word_errors).measure(lm, "cpu")
    assert lm.training
    assert torch.equal(before, torch.get_rng_state())
    assert set(found) == {"asr_ppl", "asr_accuracy", "asr_wer"}
    if learnt:
        assert found["asr_wer"] == 0
        assert found["asr_accuracy"] == 1
        assert found["asr_ppl"] < 1.2
    else:
        assert found["asr_wer"] > 0.5
        assert found["asr_ppl"] > 10
    assert Listening([], decode, word_errors).measure(lm, "cpu") == {}


def test_perplexity_is_that_of_the_text_after_the_speech():
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=2, hidden_size=32, intermediate_size=64)
    lm = SplitLM.from_backbone(config, 1, 40, row_format=FORM).eval()
    one = item(1, [3, 4, 5])
    logits = lm(torch.tensor([[*one.prompt, *one.expected]])).text_logits[0]
    log_p = logits[len(one.prompt) - 1 : -1].log_softmax(-1)
    nll = -log_p[torch.arange(4), torch.tensor(one.expected)].mean()
    found = Listening([one], decode, word_errors).measure(lm, "cpu")
    assert found["asr_ppl"] == pytest.approx(math.exp(float(nll.detach())), rel=1e-4)


def test_word_errors_of_pairs():
    assert word_errors("The cat sat.", "the cat sat") == (0, 3)
    assert word_errors("the cat sat", "a cat") == (2, 3)
    assert word_errors("\u4eca\u5929 ok", "\u660e\u5929 ok") == (1, 3)
    assert word_errors("one two", "") == (2, 2)


def test_items_are_the_shortest_with_two_words(tmp_path, tiny_encoder, monkeypatch):
    import numpy as np
    import soundfile
    from lm_recipe import tokenizer_of_bytes

    from lit_moss.codec import SpeechTokenizer
    from lit_moss.hub.tokenizer import NamedTokenizer
    from lit_moss.llm.backbone import load_text_tokenizer

    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "tokenizer")
    tokenizer_of_bytes().save_pretrained(tmp_path / "text")
    found = []
    for i, text in enumerate(["One", "two three", "four five six", None, "seven eight"]):
        path = tmp_path / f"{i}.wav"
        seconds = (0.3, 0.9, 0.4, 0.2, 0.5)[i]
        soundfile.write(path, np.random.default_rng(i).normal(0, 0.1, round(16000 * seconds)), 16000)
        found.append(Utterance(path, 0.0, seconds, text))
    write_manifest(tmp_path / "m.jsonl", found)
    text_tokenizer = load_text_tokenizer(tmp_path / "text")
    sources = [str(tmp_path / "m.jsonl")] * 2  # parts of a mixture may name the same manifest
    items = make_asr_items(sources, text_tokenizer, NamedTokenizer(str(tmp_path / "tokenizer")), 2, "Write: ")
    assert [i.text for i in items] == ["four five six", "seven eight"]
    assert [text_tokenizer.decode(i.expected[:-1]) for i in items] == [i.text for i in items]
    assert text_tokenizer.decode([r for r in items[0].prompt[:7]]) == "Write: "
    assert len(items[0].prompt) == 7 + 5 + 2
