"""Texts that an endpoint was not asked for stayed rejected after its address had got their language:
`&lang=` was not among what a run depends on.
"""

import json

import pytest

from lit_moss.prepare.engine import run_step
from lit_moss.prepare.speak import SpeakOptions
from lit_moss.prepare.step import Machine, Step
from lit_moss.prepare.synthesize import SynthesizeOptions
from lit_moss.prepare.voices import VoicePool, VoiceSettings

pytest.importorskip("openai", reason="needs the extra `prepare`")
ADDRESS = "http://127.0.0.1:9/v1?model=m&voice=v&lang="  # nothing is said there


def synthesize(languages):
    return SynthesizeOptions(voices=[ADDRESS + languages])


def speak_users(languages):
    return SpeakOptions(user_voices=[ADDRESS + languages], assistant_voices=[ADDRESS + "en"])


def speak_assistants(languages):
    return SpeakOptions(user_voices=[ADDRESS + "en"], assistant_voices=[ADDRESS + languages])


@pytest.mark.parametrize(
    ("stage", "options_for"),
    [("synthesize", synthesize), ("speak", speak_users), ("speak", speak_assistants)],
)
def test_other_languages_are_another_run(stage, options_for, tmp_path):
    messages = [{"role": "user", "content": "你好。"}, {"role": "assistant", "content": "你好。"}]
    item = {"id": "a", "lang": "zh"} | (
        {"text": "你好。"} if stage == "synthesize" else {"messages": messages}
    )
    source = tmp_path / "source.jsonl"
    source.write_text(json.dumps(item) + "\n")

    def ran(languages: str) -> int:
        out = str(tmp_path / "out")
        result = run_step(Step("x", stage, options_for(languages), (str(source),), out, out), Machine())
        assert result.counts.rejected == {"no voice for the language": 1}
        return result.items_run

    assert [ran("en"), ran("en"), ran("en,fr"), ran("en,fr")] == [1, 0, 1, 0]


def test_the_sounds_of_a_voice_keep_their_names():
    one, two = (VoicePool([ADDRESS + lang], VoiceSettings()) for lang in ("en", "en,zh"))
    assert one.voices[0].content() == two.voices[0].content()
    assert one.content() != two.content()
