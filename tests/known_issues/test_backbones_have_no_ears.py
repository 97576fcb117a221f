"""`evaluate cloze` of items with sound on a text backbone asked for a codec, also where one was given."""

import json

import pytest
from lm_recipe import backbone_folder

from lit_moss.errors import UserError
from lit_moss.evaluate.cloze import read_items
from lit_moss.evaluate.cloze_options import Config
from lit_moss.evaluate.cloze_scorer import Scorer


def test_a_backbone_is_named_as_one(tmp_path):
    backbone = str(backbone_folder(tmp_path / "backbone"))
    pair = {"id": "a", "good": "a.wav", "bad": "b.wav", "good_text": "so it is", "bad_text": "no"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(pair))
    pairs = [str(tmp_path / "pairs.jsonl")]
    heard, read = Config(backbone, pairs, codec="any"), Config(backbone, pairs, modalities=["text-text"])
    with pytest.raises(UserError, match=r"is a text backbone.*--modalities \[text-text\]"):
        Scorer(heard)(list(read_items(heard, Scorer(heard))))
    (result,) = Scorer(read)(list(read_items(read, Scorer(read))))
    assert result["good"]["whole"] < 0
