"""`synthesize` on a manifest of recordings, such as one with transcripts, wrote the recordings' paths,
offsets and speakers over those of the sounds that it had made; `speak` left offset, codes and word errors of
a message's earlier recording beside the new sound. A recipe then trained on the old sound, or on a part of
the new one.
"""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.prepare.speak import SpeakOptions, SpeakStage
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.synthesize import SynthesizeOptions, SynthesizeStage

pytestmark = pytest.mark.slow

OLD = {
    "audio_filepath": "/old/a.wav", "offset": 2.0, "duration": 1.0, "speaker": "someone", "codes": 12,
    "heard": "well", "wer": 0.5, "edits": 1, "spoken": "old",
}  # fmt: skip
TEXT = "The train is late today."


def is_of_its_sound(part: dict) -> bool:
    frames = soundfile.info(part["audio_filepath"])
    length_sec = frames.frames / frames.samplerate
    return np.isclose(part["duration"], length_sec) and "offset" not in part and "codes" not in part


def test_synthesised_utterances_are_of_the_new_sound(tmp_path):
    stage = SynthesizeStage(SynthesizeOptions(), Storage(str(tmp_path)))
    stage.open()
    words = {"words": [["The", 0.0, 0.2]], "asr_words": [["The", 0.0, 0.2, 0.9]], "use": "speech"}
    chunks = {"chunks": [[0, 1, 0.0, 1.0, "The"]], "written": "another text", "score": 4.0, "chapter": 3}
    (made,) = stage.run([{"id": "u", "text": TEXT, **OLD, **words, **chunks}]).items
    assert is_of_its_sound(made)
    assert (made["speaker"], made["spoken"], made["written"]) == ("hibari-heart", TEXT, TEXT)
    assert made.keys().isdisjoint({"heard", "wer", "edits", "words", "asr_words", "chunks", "use"})
    assert (made["score"], made["chapter"]) == (4.0, 3)  # what is of the text stays


def test_spoken_messages_are_of_the_new_sound(tmp_path):
    voices = ["embedded:hibari"]
    stage = SpeakStage(SpeakOptions(voices, voices, respeak=True), Storage(str(tmp_path)))
    stage.open()
    messages = [{"role": "user", "content": "Is it late?", **OLD, "written": "Is it **late**?"},
                {"role": "assistant", "content": TEXT, **OLD}]  # fmt: skip
    (made,) = stage.run([{"id": "c", "lang": "en", "messages": messages}]).items
    assert all(map(is_of_its_sound, made["messages"]))
    assert made["messages"][0]["written"] == "Is it **late**?"  # of the text, by `adapt`
    assert "heard" not in json.dumps(made)


def test_conversations_kept_as_text_have_no_sound(tmp_path):
    voices = ["embedded:hibari"]
    stage = SpeakStage(SpeakOptions(voices, voices, respeak=True, keep_text=True), Storage(str(tmp_path)))
    messages = [{"role": "user", "content": "几点了？", **OLD}, {"role": "assistant", "content": "十点。"}]
    (made,) = stage.run([{"id": "c", "lang": "zh", "messages": messages}]).items
    assert [m.keys() for m in made["messages"]] == [{"role", "content"}] * 2
