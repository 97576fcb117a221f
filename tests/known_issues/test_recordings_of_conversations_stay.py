"""`prepare speak` replaced the recordings of conversations that were spoken already by a voice's sound, and
`adapt` and `self-answer` before it dropped them, without a word.
"""

import json

import numpy as np
import pytest
import soundfile

from lit_moss.prepare.adapt import AdaptOptions, AdaptStage
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.self_answer import prompt_messages
from lit_moss.prepare.speak import SpeakOptions
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.storage import Storage

VOICES = {"user_voices": ["embedded:hibari"], "assistant_voices": ["embedded:hibari"]}
PERSON = {"role": "user", "content": "Is it late?", "audio_filepath": "person.wav", "offset": 0.5}
WORDLESS = {"role": "user", "audio_filepath": "person.wav"}
REPLY = {"role": "assistant", "content": "It is ten past four."}


@pytest.fixture
def speak(tmp_path):
    soundfile.write(tmp_path / "person.wav", np.sin(np.arange(16_000) / 10) * 0.1, 16_000)

    def run(conversations, **options):
        source = tmp_path / "conversations.jsonl"
        source.write_text("".join(json.dumps(c, ensure_ascii=False) + "\n" for c in conversations), "utf-8")
        out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        step = Step("speak", "speak", SpeakOptions(**VOICES, **options), (str(source),), str(out), str(out))
        counts = run_step(step, Machine()).counts
        items, rejected = (
            [json.loads(line) for line in (out / name).read_text("utf-8").splitlines()]
            for name in ("manifest.jsonl", "rejected.jsonl")
        )
        return items, rejected, counts.counts

    return run


@pytest.mark.slow
def test_only_messages_without_a_sound_are_spoken(speak, tmp_path, capsys):
    [item], rejected, counts = speak([{"id": "c", "messages": [PERSON, REPLY]}])
    person, reply = item["messages"]
    assert person == PERSON | {"audio_filepath": str(tmp_path / "person.wav")}
    assert reply["speaker"] == "hibari-heart"
    assert not rejected
    assert counts == {"messages that keep their sound": 1}
    said = "speak: messages that keep their sound: 1, e.g. in c (respeak: true speaks these too)"
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_respeak_speaks_all_messages(speak):
    [item], _, counts = speak([{"id": "c", "messages": [PERSON, REPLY]}], respeak=True)
    assert [m["speaker"] for m in item["messages"]] == ["hibari-heart"] * 2
    assert "offset" not in item["messages"][0]
    assert not counts


def test_conversations_of_recordings_need_no_voice_and_no_text(speak, tmp_path):
    path = str(tmp_path / "person.wav")
    german = {"role": "user", "content": "Ist es spät?", "audio_filepath": "person.wav"}
    items, rejected, counts = speak(
        [
            {"id": "de", "lang": "de", "messages": [german, german | {"role": "assistant"}]},
            {"id": "wordless", "messages": [WORDLESS, WORDLESS | {"role": "assistant"}]},
        ]
    )
    assert not rejected
    assert [[m["audio_filepath"] for m in item["messages"]] for item in items] == [[path] * 2] * 2
    assert "lang" not in items[1]
    assert counts == {"messages that keep their sound": 4}


def test_recordings_stay_where_the_rest_is_kept_as_text(speak, tmp_path):
    chinese = {"role": "assistant", "content": "十点。"}
    [item], _, counts = speak([{"id": "c", "lang": "zh", "messages": [PERSON, chinese]}], keep_text=True)
    assert item["messages"] == [PERSON | {"audio_filepath": str(tmp_path / "person.wav")}, chinese]
    assert counts == {"conversations kept as text": 1, "messages that keep their sound": 1}


def test_adapt_leaves_messages_with_a_sound_as_they_are(tmp_path):
    stage = AdaptStage(AdaptOptions(), Storage(str(tmp_path)))
    stage.open()
    answer = {"role": "assistant", "content": "It is **ten** past four."}
    result = stage.run([{"id": "c", "messages": [PERSON, answer]}])
    assert result.items[0]["messages"][0] == PERSON
    assert result.items[0]["messages"][1]["content"] == "It is ten past four."
    spoken = {"id": "d", "messages": [PERSON, answer | {"audio_filepath": "reply.wav"}]}
    assert stage.run([spoken]).items[0]["messages"] == spoken["messages"]
    assert result.counts["messages left as they are, since they have a sound"] == 1


def test_prompts_keep_their_sound_for_the_backbones_answer():
    assert prompt_messages({"id": "c", "messages": [PERSON, REPLY]}) == [PERSON]
