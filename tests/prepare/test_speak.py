"""`prepare speak` for conversations: one voice for a user, one for the assistant, whole or not at all."""

import json

import pytest
import soundfile

from lit_moss.errors import UserError
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.speak import SpeakOptions
from lit_moss.prepare.step import Machine, Step


def run(conversations: list[dict], folder, **options):
    source = folder.with_suffix(".jsonl")
    source.write_text(
        "".join(json.dumps(c, ensure_ascii=False) + "\n" for c in conversations), encoding="utf-8"
    )
    step = Step("speak", "speak", SpeakOptions(**options), (str(source),), str(folder), str(folder))
    counts = run_step(step, Machine()).counts.counts
    items, rejected = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("manifest.jsonl", "rejected.jsonl")
    )
    return items, rejected, counts


def turns(*contents: str, system: str | None = None) -> list[dict]:
    roles = ("user", "assistant")
    spoken = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *spoken] if system else spoken


HIBARI = {"user_voices": ["embedded:hibari"], "assistant_voices": ["embedded:hibari"]}


def test_every_message_but_the_systems_has_a_sound_of_what_it_says(tmp_path):
    messages = turns(
        "How far is 12 km?",
        "It is about 7.5 miles.",
        "Thank you very much.",
        "Not at all.",
        system="Be brief.",
    )
    messages[1]["style"] = "happy"
    item = {"id": "c1", "messages": messages, "quality": 5, "source": "own", "licence": "CC0-1.0"}
    [spoken], rejected, counts = run([item], tmp_path / "out", **HIBARI)
    assert not rejected
    assert {k: spoken[k] for k in ("id", "quality", "source", "licence", "lang")} == {
        "id": "c1", "quality": 5, "source": "own", "licence": "CC0-1.0", "lang": "en",
    }  # fmt: skip
    assert spoken["messages"][0] == messages[0]
    for before, after in zip(messages[1:], spoken["messages"][1:], strict=True):
        assert before.items() <= after.items()
        info = soundfile.info(tmp_path / "out" / after["audio_filepath"])
        assert after["duration"] == info.frames / info.samplerate
        assert after["speaker"] == "hibari-heart"
    assert [m["spoken"] for m in spoken["messages"][1:3]] == [
        "How far is twelve kilometers?",
        "It is about seven point five miles.",
    ]
    assert counts == {"messages whose voice takes no style": 1}


def test_a_long_answer_is_one_sound_of_all_its_pieces(tmp_path):
    sentence = "This is one of the many sentences of a long answer. "
    [spoken], _, _ = run(
        [{"id": "c", "messages": turns("Go on, please.", sentence * 4)}],
        tmp_path / "out",
        max_chars=120,
        **HIBARI,
    )
    answer = spoken["messages"][1]
    assert answer["spoken"] == (sentence * 4).strip()
    [once], _, _ = run(
        [{"id": "c", "messages": turns("Go on, please.", sentence)}], tmp_path / "one", **HIBARI
    )
    one = once["messages"][1]["duration"]
    assert 4 * 0.85 * one < answer["duration"] < 4 * (one + 0.5)


def test_a_conversation_that_cannot_be_spoken_is_rejected_as_a_whole_or_kept_as_text(tmp_path):
    messages = turns("What is this?", "It is 世界 in Chinese 🎉.")
    item = {"id": "c", "messages": messages, "lang": "en"}
    items, [rejected], _ = run([item], tmp_path / "out", **HIBARI)
    assert not items
    assert rejected["item"] == item
    assert (rejected["reason"], rejected["value"][:11]) == ("unspeakable", "messages[1]")
    [kept], rejected, counts = run([item], tmp_path / "text", keep_text=True, **HIBARI)
    assert not rejected
    assert kept == item
    assert counts == {"conversations kept as text": 1}


def test_what_is_no_conversation_stops_the_run(tmp_path):
    with pytest.raises(UserError, match="no messages"):
        run([{"id": "c", "text": "A text."}], tmp_path / "out", **HIBARI)
    with pytest.raises(UserError, match="expected role"):
        run([{"id": "c", "messages": [{"role": "user"}]}], tmp_path / "out2", **HIBARI)


@pytest.mark.nightly
@pytest.mark.network
def test_users_have_many_voices_and_keep_them_and_the_assistant_has_one(tmp_path):
    conversations = [
        {"id": f"en{i}", "messages": turns("Good morning to you.", "Hello.", "Good bye.", "Bye.")}
        for i in range(4)
    ]
    conversations += [
        {"id": f"zh{i}", "messages": turns("你好，请问现在几点？", "现在三点。", "谢谢你。", "不客气。")}
        for i in range(4)
    ]
    spoken, rejected, _ = run(conversations, tmp_path / "out")
    assert not rejected
    users = {}
    for item in spoken:
        speakers = [m["speaker"] for m in item["messages"]]
        assert speakers[0] == speakers[2]
        assert (
            speakers[1] == speakers[3] == ("hibari-heart" if item["lang"] == "en" else "kokoro-zf_xiaoxiao")
        )
        assert speakers[0] != speakers[1]
        users.setdefault(item["lang"], set()).add(speakers[0])
    assert len(users["en"]) > 1
    assert len(users["zh"]) > 1
