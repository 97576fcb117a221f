"""Models are opened with the parts of their training, or not at all."""

import json

import pytest
from decoders import made_up_codec, small_flow
from talker import CODES, model_folder

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.encoder import fingerprint
from lit_moss.data.chat_template import chat_template, template_fingerprint
from lit_moss.errors import UserError
from lit_moss.hub.model_folder import RECORD, ModelRecord
from lit_moss.serve.model import SpeechModel


@pytest.fixture
def folder(tmp_path):
    return model_folder(tmp_path / "tiny")


def opened(folder, codec=None, log_mel=None):
    return SpeechModel.open(str(folder), None if codec is None else str(codec), "cpu", log_mel=log_mel)


def codec_of(path, codes, seed=0):
    tokenizer = SpeechTokenizer.from_pretrained(made_up_codec(path, codes, seed=seed))
    Codec(tokenizer, small_flow(vocab_size=256)).save_pretrained(path)
    return path


@pytest.mark.slow
def test_codec_with_another_number_of_codes_is_refused_without_a_record(folder, tmp_path):
    with pytest.raises(UserError, match=r"has 64 codes .*has 32: give the codec of the training"):
        opened(folder, codec_of(tmp_path / "small", 32))


@pytest.mark.slow
def test_decoder_without_all_codes_is_refused(folder, tmp_path):
    Codec(None, small_flow(vocab_size=40)).save_pretrained(tmp_path / "decoder")
    with pytest.raises(UserError, match=r"has 64 codes .*decoder has 40"):
        opened(folder, tmp_path / "decoder")


@pytest.mark.slow
def test_another_speech_tokenizer_is_refused_and_both_are_named(folder, tmp_path):
    own = fingerprint(SpeechTokenizer.from_pretrained(folder / "codec").encoder)
    ModelRecord(speech_tokenizer=own, speech_tokenizer_name="ours").write(folder)
    assert opened(folder).codec is not None
    other = codec_of(tmp_path / "other", CODES, seed=1)
    given = fingerprint(SpeechTokenizer.from_pretrained(other).encoder)
    with pytest.raises(UserError, match=rf"{own} \(ours\), .*other has {given}"):
        opened(folder, other)


@pytest.mark.slow
def test_other_features_of_the_same_tokenizer_are_a_matter_of_an_option(folder):
    config = json.loads((folder / "codec" / "config.json").read_text())
    tokenizer = SpeechTokenizer.from_pretrained(folder / "codec")
    trained, other = tokenizer.config.log_mel, {"causal": "whisper", "whisper": "causal"}
    assert config
    ModelRecord(speech_tokenizer=fingerprint(tokenizer.encoder, other[trained])).write(folder)
    with pytest.raises(UserError, match=f"--log-mel {other[trained]}"):
        opened(folder)
    assert opened(folder, log_mel=other[trained]).speech_tokenizer is not None


@pytest.mark.slow
def test_another_template_is_refused_and_both_are_named(folder):
    model = opened(folder)
    ours = template_fingerprint(chat_template(model.text_tokenizer, model.record.form))
    ModelRecord(template=ours).write(folder)
    assert opened(folder).record.template == ours
    # Spoken replies of another form have another system prompt.
    ModelRecord(template=ours, reply_form={"reply_form": "guided"}).write(folder)
    with pytest.raises(UserError, match=rf"template {ours}, this one is \w{{16}}"):
        opened(folder)
    ModelRecord(template="0123456789abcdef").write(folder)
    with pytest.raises(UserError, match=f"template 0123456789abcdef, this one is {ours}"):
        opened(folder)


def test_template_of_an_imported_folder_is_its_own(folder):
    own = template_fingerprint("{{ messages }}\r\n")
    (folder / "chat_template.jinja").write_bytes(b"{{ messages }}\r\n")
    ModelRecord(template=own, source="someone/model").write(folder)
    assert opened(folder).record.template == own
    (folder / "chat_template.jinja").write_text("changed")
    with pytest.raises(UserError, match=f"template {own}, this one is"):
        opened(folder)
    assert (folder / RECORD).is_file()
