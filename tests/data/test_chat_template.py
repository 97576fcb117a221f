"""The Jinja template against the renderer of the training: the same string, the same ids."""

from itertools import product

import jinja2
import pytest
import torch
from lm_recipe import tokenizer_of_bytes

from lit_moss.data.chat_template import chat_template, template_fingerprint
from lit_moss.data.conversation import PAIRS, Renderer, Turn, modalities_needed
from lit_moss.llm.backbone import load_text_tokenizer, row_format
from lit_moss.llm.replies import FORMS, ReplyForm, split_reply
from lit_moss.llm.rows import to_grid

TURNS = [
    Turn("user", "What's the time in Zürich, now?", [1, 2, 3]),
    Turn("assistant", "It is 12:30 -- half past twelve.\nAsk again later, won't you, dear friend?", [7] * 60),
    Turn("user", "ok  then – 你好 🙂", [512, 9]),
    Turn("assistant", "Good.", [4, 0]),
]  # fmt: skip
SYSTEM = Turn("system", "Be brief.")


@pytest.fixture(scope="module", params=["bytes", "smollm2"])
def tokenizer(request, tmp_path_factory):
    if request.param == "smollm2":
        return load_text_tokenizer("embedded:smollm2-135m")
    folder = tmp_path_factory.mktemp("bytes")
    tokenizer_of_bytes().save_pretrained(folder)
    return load_text_tokenizer(folder)


def parts_of(tokenizer, rows, row_format):
    """The parts of a turn's rows, as messages have them."""
    return [
        {"type": "text", "text": tokenizer.decode(ids)} if modality == "text"
        else {"type": "audio", "codes": ids}
        for modality, ids in split_reply(rows, row_format)
    ]  # fmt: skip


def messages_of(tokenizer, form, row_format, turns, user, reply):
    messages = []
    for turn in turns:
        needed = modalities_needed(turn.role, user, reply, form)
        if len(needed) == 2:
            ids = tokenizer.encode(turn.text)
            content = parts_of(tokenizer, form.rows(ids, turn.codes, row_format), row_format)
        else:
            content = turn.text if needed == ["text"] else [{"type": "audio", "codes": list(turn.codes)}]
        messages.append({"role": turn.role, "content": content})
    return messages


def rendered(tokenizer, messages, **variables):
    return tokenizer.apply_chat_template(messages, tokenize=False, **variables)


def check(tokenizer, turns, form, pair, system=None, same_ids=True):
    """The template's string and ids against the renderer's, for a whole conversation and for a prompt."""
    ids_of_rows = row_format(tokenizer, 1024, eosp=1000)
    user, reply = PAIRS[pair]
    tokenizer.chat_template = chat_template(tokenizer, form)
    renderer = Renderer(tokenizer, ids_of_rows, form)
    variables = {"reply": reply} | ({} if system is None else {"system": system})
    for prompt in (False, True):
        if prompt:
            turns = turns[:-1]
            rows = renderer.prompt(turns, user, reply, system=system)
        else:
            rows, _ = renderer.render(turns, user, reply, system=system)
        channel = to_grid(torch.tensor(rows), ids_of_rows)[:, 0].tolist()
        messages = messages_of(tokenizer, form, ids_of_rows, turns, user, reply)
        text = rendered(tokenizer, messages, add_generation_prompt=prompt, **variables)
        assert text == tokenizer.decode(channel, skip_special_tokens=False), (pair, form.name)
        again = tokenizer.encode(text, add_special_tokens=False)
        assert (again == channel) == same_ids, (pair, form.name, prompt)


@pytest.mark.nightly
@pytest.mark.parametrize(("pair", "form"), product(PAIRS, FORMS))
def test_rendered_text_and_its_ids_are_those_of_training(tokenizer, pair, form):
    check(tokenizer, TURNS, FORMS[form], pair)
    check(tokenizer, [SYSTEM, *TURNS], FORMS[form], pair)
    check(tokenizer, TURNS[:2], FORMS[form], pair, system="Answer like a pirate's parrot.")


def test_counts_of_interleaved_replies_and_texts_longer_than_their_speech(tokenizer):
    turns = [TURNS[0], Turn("assistant", "one two three four five six seven eight nine ten " * 3, [5] * 4)]
    check(tokenizer, turns, ReplyForm("interleaved", 4, 2), "speech-speech")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Hi\n", "Hi\n\n", "Hi ", "Hi\t", "1", "'s", "ﬁ", "e\u0301", "\u0301e"])
def test_ends_of_texts(tokenizer, text):
    turns = [Turn("user", text), Turn("assistant", text)]
    check(tokenizer, turns, FORMS["direct"], "text-text")


@pytest.mark.parametrize("text", ["\n\nHi", "  Hi", " \nHi"])
def test_text_that_begins_with_white_space_is_the_documented_limit(tokenizer, text):
    # The string is the same; a tokenizer with merges may join it with the line break after the role.
    with_merges = len(tokenizer) > 1000
    turns = [Turn("user", text), Turn("assistant", "Hi")]
    check(tokenizer, turns, FORMS["direct"], "text-text", same_ids=not with_merges)


@pytest.mark.parametrize("text", [" Hi", "\nHi"])
def test_one_leading_space_or_line_break_is_no_limit(tokenizer, text):
    check(tokenizer, [Turn("user", text), Turn("assistant", text)], FORMS["direct"], "text-text")


def test_an_interleaved_reply_cut_inside_a_character_is_a_limit(tokenizer):
    form = ReplyForm("interleaved", 1, 1)
    with pytest.raises(AssertionError):
        check(tokenizer, [TURNS[0], Turn("assistant", "🙂", [1, 2, 3])], form, "text-speech")


def test_a_count_of_codes_stands_for_the_codes(tokenizer):
    tokenizer.chat_template = chat_template(tokenizer)
    codes, count = (
        rendered(tokenizer, [{"role": "user", "content": [{"type": "audio", "codes": codes}]}])
        for codes in ([4, 5, 6], 3)
    )
    assert codes == count


def test_wrong_roles_parts_and_replies_are_errors(tokenizer):
    tokenizer.chat_template = chat_template(tokenizer)
    wrong = {
        "'tool'|turn of tool": {"messages": [{"role": "tool", "content": "Hi"}]},
        "type image": {"messages": [{"role": "user", "content": [{"type": "image"}]}]},
        "reply is song": {"messages": [{"role": "user", "content": "Hi"}], "reply": "song"},
    }
    for message, call in wrong.items():
        with pytest.raises(jinja2.TemplateError, match=message):
            rendered(tokenizer, call.pop("messages"), **call)


def test_a_fingerprint_changes_with_form_and_tokens(tokenizer):
    prints = {template_fingerprint(chat_template(tokenizer, form)) for form in FORMS.values()}
    assert len(prints) == 3
