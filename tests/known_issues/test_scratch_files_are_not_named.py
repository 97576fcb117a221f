"""A line that `sft` or `interleave` cannot read was named by its place in a scratch file, which is removed
before the message can be read; and an utterance without a recording was a traceback where there is no
validation share.
"""

import json

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.interleave import InterleaveOptions, InterleaveStage
from lit_moss.prepare.sft import SftOptions, SftStage
from lit_moss.prepare.storage import Storage

GOOD = {"id": "a", "messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}


@pytest.mark.parametrize(
    ("stage", "lines", "message"),
    [
        (SftStage(SftOptions(), Storage("out")),
         [GOOD, {"id": "b", "messages": GOOD["messages"][:1]}], "at least one of the role assistant"),
        (SftStage(SftOptions(), Storage("out")),
         [GOOD, {"messages": [{"role": "assistant", "content": ""}]}], r"messages\[0\].content"),
        (InterleaveStage(InterleaveOptions(), Storage("out")),
         [{"audio_filepath": "a.wav"}, {"audio_filepath": "b.wav", "text": "\ud83d"}], "text is"),
        (InterleaveStage(InterleaveOptions(), Storage("out")),
         [{"audio_filepath": "a.wav"}, {"text": "no recording"}], "audio_filepath is missing"),
    ],
)  # fmt: skip
def test_the_line_of_the_manifest_is_named(tmp_path, monkeypatch, stage, lines, message):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=rf"{source}, line 2: .*{message}"):
        stage.run_all([str(source)])
