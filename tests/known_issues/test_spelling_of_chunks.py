"""Documents made from word times without punctuation, as aligners give them, lost the transcript's."""

from pathlib import Path

import pytest

from lit_moss.corpora.manifest import Utterance
from lit_moss.data.document_builders import _cut_chunks
from lit_moss.data.interleave import document_rng

CHINESE = "今天天气很好，我们去公园吧。你觉得怎么样？我想带上孩子，还有一些水果。"
ENGLISH = "The well-known actor, Mr. Smith, said: \"It's five o'clock!\" Then he left the old house at once."


SAID = "the well known actor mr smith said it's five o'clock then he left the old house at once"


@pytest.mark.parametrize(
    ("text", "words"),
    [(CHINESE, [c for c in CHINESE if c not in "，。？"]), (ENGLISH, SAID.split(" "))],
)
def test_chunks_together_are_the_transcript(text, words):
    times = [[word, 0.4 * i, 0.4 * i + 0.35] for i, word in enumerate(words)]
    duration_sec = 0.4 * len(words)
    utterance = Utterance(Path("a.wav"), 0.0, duration_sec, text, None, None, extra={"words": times})
    chunks = _cut_chunks(utterance, 5 * len(words), document_rng(1, "x"))
    assert len(chunks) > 1
    space = "" if text == CHINESE else " "
    assert space.join(chunk.text for chunk in chunks) == text
