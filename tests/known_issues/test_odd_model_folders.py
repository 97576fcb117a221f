"""Folders of models: records whose fields are of another kind ended in an AttributeError, and the command of
a card, `serve --model .`, served a model of the name `.`."""

import json

import pytest
from talker import model_folder

from lit_moss.errors import UserError
from lit_moss.hub.model_folder import RECORD, ModelRecord
from lit_moss.serve.model import SpeechModel


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("reply_form", "direct"),
        ("reply_form", {"reply_form": "interleaved", "interleave_text": "13"}),
        ("text_tokenizer", 5),
        ("template", None),
        ("stages", "sft"),
        ("stages", [1]),
        ("steps", "10"),
        ("license", ["MIT"]),
    ],
)
def test_a_field_of_another_kind_is_named(tmp_path, key, value):
    (tmp_path / RECORD).write_text(json.dumps({"backbone": "b", key: value}))
    with pytest.raises(UserError, match=f"{RECORD} has {key} "):
        ModelRecord.read(tmp_path)


def test_whole_records_and_fields_of_later_versions_are_read(tmp_path):
    record = ModelRecord(
        "a", "b", "c", "d", {"reply_form": "interleaved", "interleave_text": 5}, "e", ["f"], 7
    )
    record.write(tmp_path)
    assert ModelRecord.read(tmp_path) == record
    content = json.loads((tmp_path / RECORD).read_text()) | {"later": [1]}
    content["reply_form"]["later"] = "x"
    (tmp_path / RECORD).write_text(json.dumps(content))
    assert ModelRecord.read(tmp_path).form == record.form


@pytest.mark.slow
def test_a_model_has_the_name_of_its_folder_however_it_is_given(tmp_path, monkeypatch):
    folder = model_folder(tmp_path / "mine")
    (tmp_path / "current").symlink_to(folder)
    monkeypatch.chdir(folder / "codec")
    names = {given: SpeechModel.open(given, device="cpu").name for given in ("..", f"{tmp_path}/current/")}
    monkeypatch.chdir(folder)
    names["."] = SpeechModel.open(".", device="cpu").name
    assert names == {"..": "mine", ".": "mine", f"{tmp_path}/current/": "current"}
