"""`predict` took a single question only, although training and serving know conversations."""

import json

import pytest
import soundfile
from lm_recipe import CODES, backbone_folder

from lit_moss.codec import SpeechTokenizer
from lit_moss.data.conversation import Renderer, Turn
from lit_moss.data.prompts import PromptDataModule
from lit_moss.errors import UserError


@pytest.fixture
def prompts(tmp_path, tiny_encoder, speech):
    """Makes the data of lines."""
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=CODES)).save_pretrained(tmp_path / "codec")
    soundfile.write(tmp_path / "a.wav", speech[0].numpy()[:16_000], 16_000)

    def make(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        backbone = backbone_folder(tmp_path / "backbone")
        data = PromptDataModule([str(path)], str(backbone), str(tmp_path / "codec"))
        data.setup("predict")
        return data, [prompt for batch in data.predict_dataloader() for prompt in batch]

    return make


def user(**content):
    return {"role": "user"} | content


def assistant(**content):
    return {"role": "assistant"} | content


def test_turns_are_rendered_in_the_modality_of_the_questions_and_of_the_reply(prompts):
    spoken = {"audio_filepath": "a.wav"}
    text = [user(content="hi"), assistant(content="ho"), user(content="more")]
    speech = [user(content="hi", **spoken), assistant(content="ho", **spoken), user(**spoken)]
    mixed = [user(content="hi", **spoken), assistant(content="ho"), user(content="more")]
    data, (a, b, c) = prompts(
        {"messages": text, "reply": "text"},
        {"messages": speech, "reply": "speech"},
        {"messages": mixed, "reply": "text"},
    )
    renderer = Renderer(data.tokenizer, data.format)
    codes = [row - data.format.text_vocab_size for row in b.rows if row >= data.format.text_vocab_size][:13]
    turns = [Turn("user", codes=codes), Turn("assistant", codes=codes), Turn("user", codes=codes)]
    assert a.rows == renderer.prompt([Turn("user", "hi"), Turn("assistant", "ho"), Turn("user", "more")])
    assert b.rows == renderer.prompt(turns, "speech", "speech")
    assert c.rows == a.rows  # not every question has sound: all are read as text


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"messages": [user(content="a"), assistant(content="b")]}, "a last one of the role user"),
        ({"messages": [user(content="a")], "text": "b"}, "expected either text, audio_filepath or messages"),
        (
            {"messages": [user(content="a"), assistant(content="b"), user(content="c")], "reply": "speech"},
            r"prompts.jsonl, line 1: a turn of assistant has no speech",
        ),
    ],
)
def test_lines_that_are_no_prompt_are_named(prompts, line, message):
    with pytest.raises(UserError, match=message):
        prompts(line)
