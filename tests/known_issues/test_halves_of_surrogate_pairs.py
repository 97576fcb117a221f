r"""A text that was cut inside an emoji (`\ud83d` alone, as JSON may hold it) ended `adapt` of Chinese,
`text`, `synthesize` and `self-answer` in a traceback; now the item is rejected.
"""

import json

import pytest

from lit_moss.prepare.adapt_pair import PairRejected
from lit_moss.prepare.adapt_rules import RuleAdapter
from lit_moss.prepare.document_folders import name_of_text
from lit_moss.prepare.language import simplified
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.synthesize import SynthesizeOptions, SynthesizeStage
from lit_moss.prepare.text import TextOptions, TextStage

HALF = "\ud83d"


def test_a_chinese_pair_is_rejected_as_an_english_one_is():
    for question, answer in (
        (f"今天{HALF}天气怎么样？", "今天天气很好。"),
        (f"Is it {HALF} far?", "No, a mile."),
    ):
        with pytest.raises(PairRejected, match="not speakable"):
            RuleAdapter().adapt(question, answer)
    assert simplified(f"漢{HALF}字") == f"汉{HALF}字"


@pytest.mark.slow
def test_texts_are_rejected_one_by_one(tmp_path):
    bad, good = {"text": f"A broken {HALF} emoji."}, {"text": "The train is late today."}
    (rejected,) = SynthesizeStage(SynthesizeOptions(), Storage(str(tmp_path))).run([bad]).rejected
    assert rejected.reason == "unspeakable"
    source = tmp_path / "a.jsonl"
    source.write_text(json.dumps(bad) + "\n" + json.dumps(good) + "\n")
    stage = TextStage(TextOptions(speech_tokenizer=None), Storage(str(tmp_path / "out")))
    result = stage.run_all([str(source)])
    assert [r.reason for r in result.rejected] == ["half a surrogate pair"]
    assert result.counts["text documents"] == 1
    assert name_of_text(bad) != name_of_text(good)
