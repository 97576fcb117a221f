"""Replies of text and speech in documents and prompts: their targets; the prompt alone decides their form."""

import json

import pytest
import soundfile
import torch
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.data import SFTDataModule
from lit_moss.data.conversation import PAIRS, SPEECH_SYSTEM, Renderer, Turn
from lit_moss.data.documents import read_documents
from lit_moss.data.make_documents import make_documents
from lit_moss.data.prompts import PromptDataModule
from lit_moss.errors import UserError
from lit_moss.llm.backbone import load_text_tokenizer, row_format
from lit_moss.llm.replies import FORMS, ReplyForm, reply_codes, reply_text

HI = Turn("user", "How?", [3, 1, 4])
REPLY = Turn("assistant", "Like this, and like that, so.", [9, 2, 6] * 20)
TURNS = [HI, REPLY, Turn("user", "Oh", [7]), Turn("assistant", "Yes", [8, 8])]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    return str(backbone_folder(tmp_path_factory.mktemp("b") / "backbone"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def codec(tmp_path):
    return str(made_up_codec(tmp_path / "codec", codes=32))


def renderer(backbone, form=FORMS["direct"]):
    tokenizer = load_text_tokenizer(backbone)
    return Renderer(tokenizer, row_format(tokenizer, 128, eosp=32), form)


@pytest.mark.parametrize("name", ["guided", "interleaved"])
@pytest.mark.parametrize("pair", PAIRS)
def test_all_rows_of_a_reply_are_targets_and_the_prompt_is_their_beginning(backbone, name, pair):
    made = renderer(backbone, FORMS[name])
    rows, mask = made.render(TURNS, *PAIRS[pair])
    prompt = made.prompt(TURNS[:1], *PAIRS[pair])
    assert rows[: len(prompt)] == prompt
    assert not any(mask[: len(prompt)])
    end = rows.index(made.row_format.im_end_id, len(prompt)) + 1
    assert all(mask[len(prompt) : end])
    reply = rows[len(prompt) : end]
    is_spoken = pair.endswith("speech")
    assert made.tokenizer.decode(reply_text(reply, made.row_format)) == REPLY.text
    assert reply_codes(reply, made.row_format) == (REPLY.codes if is_spoken else [])
    # sosp of a reply is the model's own row; that of the user's speech is given.
    assert [m for r, m in zip(rows, mask, strict=True) if r == made.row_format.sosp_token_id].count(True) == (
        0 if not is_spoken else 2 if name == "guided" else reply.count(made.row_format.sosp_token_id) + 1
    )


def test_the_prompt_alone_tells_the_form(backbone):
    prompts = {name: renderer(backbone, form).prompt([HI], "text", "speech") for name, form in FORMS.items()}
    assert len({tuple(p) for p in prompts.values()}) == len(set(SPEECH_SYSTEM.values())) == 3
    assert prompts["direct"][-1] == renderer(backbone).row_format.sosp_token_id
    texts = {tuple(renderer(backbone, form).prompt([HI], "text", "text")) for form in FORMS.values()}
    assert len(texts) == 1


def test_a_reply_of_a_guided_form_needs_its_text(backbone):
    with pytest.raises(UserError, match="a turn of assistant has no text"):
        renderer(backbone, FORMS["guided"]).render([HI, Turn("assistant", codes=[1])], "text", "speech")


def conversations(tmp_path):
    for i in range(3):
        torch.manual_seed(i)
        soundfile.write(tmp_path / f"{i}.wav", 0.1 * torch.randn(16_000 * (i + 1)).numpy(), 16_000)
    talks = [
        [{"role": "user", "content": "Hi", "audio_filepath": "0.wav"},
         {"role": "assistant", "content": "Hello, how are you?", "audio_filepath": "2.wav"}],
        [{"role": "user", "content": "Hi"}, {"role": "assistant", "audio_filepath": "1.wav"}],
    ]  # fmt: skip
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def test_documents_of_each_form(tmp_path, backbone, codec, capsys):
    source = conversations(tmp_path)

    def documents(**options):
        return read_documents(make_documents("sft", [str(source)], "train", backbone, codec, None, options))

    plain = documents()
    assert plain.folder == documents(reply_form="direct", interleave_text=5).folder
    assert sorted(plain.meta["options"]) == ["pairs", "train_on"]
    guided, turns = documents(reply_form="guided"), documents(reply_form="interleaved", interleave_text=4)
    ids = [[d.id(i) for i in range(len(d))] for d in (plain, guided, turns)]
    assert ids[0] == [f"talks-1/{pair}" for pair in PAIRS] + ["talks-2/text-speech"]
    assert ids[1] == ids[2] == ids[0][:4]
    assert "4 conversations lack" in capsys.readouterr().err
    form = plain.format
    spoken = ids[0].index("talks-1/text-speech")
    for found in (guided, turns):
        rows = found.rows(spoken)[found.loss_mask(spoken)].tolist()
        tokenizer = load_text_tokenizer(backbone)
        assert tokenizer.decode(reply_text(rows, form)) == "Hello, how are you?"
        assert reply_codes(rows, form) == form.codes(plain.rows(spoken).tolist())
        assert found.rows(ids[0].index("talks-1/text-text")).tolist() == plain.rows(3).tolist()
    assert guided.speech_sec < plain.speech_sec
    assert turns.meta["options"]["interleave_codes"] == 26
    with pytest.raises(UserError, match="reply_form is 'sung'"):
        documents(reply_form="sung")


def test_the_data_module_passes_the_form_on():
    assert SFTDataModule(reply_form="direct").options() == {"pairs": list(PAIRS), "train_on": "assistant"}
    assert SFTDataModule(reply_form="interleaved", interleave_text=5).options() == {
        "pairs": list(PAIRS), "train_on": "assistant", "reply_form": "interleaved", "interleave_text": 5,
        "interleave_codes": 26,
    }  # fmt: skip


def test_prompts_of_each_form(tmp_path, backbone, codec):
    lines = [{"text": "How?", "reply_form": name} for name in FORMS] + [
        {"text": "How?"},
        {"text": "How?", "reply": "text"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    data = PromptDataModule([str(tmp_path / "p.jsonl")], backbone, codec, reply_form="guided")
    data.setup("predict")
    (batch,) = data.predict_dataloader()
    assert [p.form for p in batch] == ["direct", "guided", "interleaved", "guided", "direct"]
    made = [Renderer(data.tokenizer, data.format, ReplyForm(p.form)) for p in batch]
    for prompt, one in zip(batch, made, strict=True):
        assert prompt.rows == one.prompt([Turn("user", "How?")], "text", prompt.reply)
