"""Replies of text and speech: their rows, and back."""

import random

import pytest
import torch
from backbones import config_of

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.replies import DIRECT, FORMS, ReplyForm, reply_codes, reply_text, split_reply
from lit_moss.llm.rows import RowFormat

# audio_pad 512 is a legal code, as in the released model.
FORMAT = RowFormat(1000, 640, 990, 600, 991, 512, im_start_id=992, im_end_id=993, end_id=994)
SOSP, EOSP, END = FORMAT.sosp_token_id, FORMAT.eosp_row, FORMAT.im_end_id


def test_the_forms_spelled_out():
    text, codes = [1, 2, 3, 4, 5], [10, 11, 512, 13, 14, 15, 16]
    rows = [1000 + c for c in codes]
    assert FORMS["direct"].rows(text, codes, FORMAT) == [SOSP, *rows, EOSP]
    assert FORMS["guided"].rows(text, codes, FORMAT) == [*text, SOSP, *rows, EOSP]
    # The text ends: the rest of the codes is one stretch.
    assert ReplyForm("interleaved", 2, 2).rows(text, codes, FORMAT) == [
        *(1, 2, SOSP, *rows[:2], EOSP),
        *(3, 4, SOSP, *rows[2:4], EOSP),
        *(5, SOSP, *rows[4:], EOSP),
    ]
    # The codes end: the rest of the text follows.
    assert ReplyForm("interleaved", 1, 4).rows(text, codes, FORMAT) == [
        *(1, SOSP, *rows[:4], EOSP),
        *(2, SOSP, *rows[4:], EOSP),
        *(3, 4, 5),
    ]
    assert (FORMS["interleaved"].text, FORMS["interleaved"].codes) == (13, 26)


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("seed", range(20))
def test_text_and_codes_come_back(name, seed):
    rng = random.Random(seed)
    text = [rng.randrange(990) for _ in range(rng.randrange(1, 60))]
    codes = [rng.choice([512, rng.randrange(600)]) for _ in range(rng.randrange(1, 150))]
    form = ReplyForm(name, rng.randrange(1, 20), rng.randrange(1, 40))
    rows = [*form.rows(text, codes, FORMAT), END]
    assert reply_codes(rows, FORMAT) == codes
    assert reply_text(rows, FORMAT) == (text if form.has_text else [])
    parts = split_reply(rows, FORMAT)
    rebuilt = [r for kind, ids in parts for r in (ids if kind == "text" else FORMAT.speech(ids))]
    assert [*rebuilt, END] == rows
    if name == "interleaved" and len(text) > form.text and len(codes) > form.codes:
        assert [(kind, len(ids)) for kind, ids in parts[:2]] == [("text", form.text), ("speech", form.codes)]


def test_a_reply_that_was_cut_off_and_one_with_unused_ids():
    assert split_reply([1, SOSP, 1010, 1011], FORMAT) == [("text", [1]), ("speech", [10, 11])]
    assert split_reply([SOSP, 1010, 1639, 1011, EOSP, END], FORMAT) == [("speech", [10]), ("speech", [11])]
    assert split_reply([SOSP, EOSP, END], FORMAT) == split_reply([], FORMAT) == []
    assert split_reply([SOSP, 1001, EOSP, SOSP, 1002, EOSP], FORMAT) == [("speech", [1]), ("speech", [2])]


def test_wrong_forms_are_named():
    with pytest.raises(UserError, match="reply_form is 'sung', expected direct, guided, interleaved"):
        ReplyForm("sung")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="interleave_codes is 0"):
        ReplyForm("interleaved", codes=0)
    assert DIRECT.options() == {}
    assert ReplyForm("guided", 1, 2).options() == {"reply_form": "guided"}


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["guided", "interleaved"])
def test_generation_makes_what_was_trained(name):
    """A model that has learned one reply by heart writes it after a prompt that ends in text."""
    torch.manual_seed(0)
    form = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
    lm = SplitLM.from_backbone(config_of("qwen3", initializer_range=0.02), 2, 40, row_format=form)
    text, codes = [(7 * i) % 180 for i in range(7)], [(5 * i) % 32 for i in range(15)]
    prompt = [191, 20, 21]
    reply = [*ReplyForm(name, 3, 5).rows(text, codes, form), 192]
    optimizer = torch.optim.AdamW(lm.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        lm.loss(torch.tensor([prompt + reply])).total.backward()
        optimizer.step()
    lm.eval()
    assert lm.generate(prompt, modality="text", max_new_tokens=100, greedy=True) == reply
    assert reply_text(reply, form) == text
    assert reply_codes(reply, form) == codes
