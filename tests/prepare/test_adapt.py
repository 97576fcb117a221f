"""The stage: items in and out, and a model behind a real HTTP server."""

import pytest
from prepare.chat_server import Answer, ChatServer, pair_of, verdict

from lit_moss.errors import UserError
from lit_moss.prepare.adapt import AdaptOptions, AdaptStage
from lit_moss.prepare.storage import Storage

KEY = "sk-very-secret-0123456789"
ITEM = {"id": "a", "question": "Is it **far**?", "answer": "No, it is not.", "source": "s", "licence": "l"}


@pytest.fixture
def stage_of(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TEST_KEY", KEY)

    def make(server=None, **options):
        if server is not None:
            options = {"adapter": "endpoint", "model": "m", "base_url": server.url, "api_key_env": "TEST_KEY",
                       "retries": 2, **options}  # fmt: skip
        stage = AdaptStage(AdaptOptions(**options), Storage(str(tmp_path / "out")))
        stage.open()
        return stage

    return make


def test_item_after_the_rules(stage_of):
    result = stage_of().run([ITEM])
    assert result.items == [
        {
            "id": "a", "source": "s", "licence": "l", "lang": "en", "quality": 5, "adapter": "rules",
            "messages": [
                {"role": "user", "content": "Is it far?", "written": "Is it **far**?", "style": "neutral",
                 "state": "ADAPT", "simplified": False},
                {"role": "assistant", "content": "No, it is not.", "written": "No, it is not.",
                 "style": "neutral",
                 "state": "PASSTHROUGH", "simplified": False, "corrected": False},
            ],
        }
    ]  # fmt: skip
    assert result.counts == {"adapt": 1, "passthrough": 1}


def test_conversation_keeps_its_system_message_and_ends_before_a_pair_that_cannot_be_said(stage_of):
    turns = [("system", "Be *kind*."), ("user", "Hello there!"), ("assistant", "Hello, my friend!"),
             ("user", "Draw me a sheep."), ("assistant", "Here it is."), ("user", "Bye"),
             ("assistant", "See you.")]  # fmt: skip
    result = stage_of().run([{"messages": [{"role": r, "content": c} for r, c in turns]}])
    [item] = result.items
    assert [m["content"] for m in item["messages"]] == ["Be *kind*.", "Hello there!", "Hello, my friend!"]
    assert item["id"].startswith("qa-")
    assert result.counts["conversations cut before a pair that cannot be spoken"] == 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        ({"question": "Hm?", "answer": " "}, "no text"),
        ({"question": "Hm?", "answer": None}, "no text"),
        ({"messages": [{"role": "user", "content": "Hm?"}]}, "no answer"),
        ({"messages": [{"role": "assistant", "content": "Hm?"}]}, "turns do not alternate"),
        ({"question": "Draw a cat.", "answer": "Here."}, "format"),
    ],
)
def test_rejections(stage_of, item, reason):
    result = stage_of().run([item])
    assert ([r.reason for r in result.rejected], result.items) == ([reason], [])


def test_low_quality_is_rejected_with_value_and_threshold(stage_of):
    result = stage_of(min_quality=3).run(
        [{"question": "Can you?", "answer": "I'm sorry, but I can't do that."}]
    )
    assert (result.rejected[0].value, result.rejected[0].threshold) == (2, 3)


def test_item_without_question_is_the_users_mistake(stage_of):
    with pytest.raises(UserError, match="has the keys id, text, expected question and answer"):
        stage_of().run([{"id": "x", "text": "y"}])


def test_rules_depend_on_no_option_of_the_endpoint(tmp_path):
    storage = Storage(str(tmp_path))
    assert (
        AdaptStage(AdaptOptions(model="x"), storage).content()
        == AdaptStage(AdaptOptions(), storage).content()
    )
    asked = AdaptStage(
        AdaptOptions("endpoint", model="x", api_key_env="A", max_requests=3), storage
    ).content()
    assert asked == AdaptStage(AdaptOptions("endpoint", model="x"), storage).content()
    assert "api_key_env" not in asked


@pytest.mark.parametrize(
    "options",
    [{"adapter": "x"}, {"min_quality": 0}, {"attempts": 0}, {"max_tokens_cap": 5}, {"timeout_sec": 0},
     {"max_requests": -1}],
)  # fmt: skip
def test_bad_options(options):
    with pytest.raises(UserError, match=f"{next(iter(options))} is .*expected"):
        AdaptOptions(**options)


def test_endpoint_without_a_model(tmp_path):
    with pytest.raises(UserError, match="model is empty"):
        AdaptStage(AdaptOptions(adapter="endpoint"), Storage(str(tmp_path)))


# A model behind a server.

GOOD = verdict("ADAPT", "PASSTHROUGH", "Is it far?", quality=4)


def one(server, stage_of, item=ITEM, **options):
    result = stage_of(server, **options).run([item])
    return result.items[0] if result.items else result.rejected[0]


def test_verdict_of_a_model_becomes_the_item(stage_of):
    with ChatServer(lambda body, n: Answer(GOOD)) as server:
        item = one(server, stage_of)
    assert pair_of(server.bodies[0]) == {"question": "Is it **far**?", "answer": "No, it is not."}
    assert (item["quality"], item["adapter"]) == (4, "m")
    question, answer = item["messages"]
    assert (question["content"], question["written"], question["state"]) == (
        "Is it far?",
        "Is it **far**?",
        "ADAPT",
    )
    assert (answer["content"], answer["style"], answer["corrected"]) == ("No, it is not.", "happy", True)


@pytest.mark.parametrize(
    "text",
    [
        f"Sure, here is it:\n\n{GOOD}\n\nI hope this helps {{or not}}.",
        f"```json\n{GOOD}\n```",
        f"<think>The form is {{'question'}} or {{}}.</think>\n{GOOD}",
        f"First an example: {{}} and then\n{GOOD}",
    ],
    ids=["prose", "fence", "thought", "other object"],
)
def test_json_is_found_in_what_surrounds_it(stage_of, text):
    with ChatServer(lambda body, n: Answer(text)) as server:
        assert one(server, stage_of)["messages"][0]["content"] == "Is it far?"
    assert len(server.bodies) == 1


WRONG = {
    "style not of the nine": (GOOD.replace("happy", "cheerful"), "answer.style"),
    "missing key": (GOOD.replace(', "simplified": false}, "answer"', '}, "answer"'), "question.simplified"),
    "additional key": (GOOD.replace('"quality"', '"note": 1, "quality"'), "note"),
    "quality out of range": (GOOD.replace('"quality": 4', '"quality": 6'), "quality"),
    "quality as text": (GOOD.replace('"quality": 4', '"quality": "4"'), "quality"),
    "no text though adapted": (verdict("ADAPT"), "question.text is empty"),
    "text though passed": (
        verdict("ADAPT", "PASSTHROUGH", "Is it far?", "Not at all."),
        "answer.text is not empty",
    ),
    "markup left": (verdict("ADAPT", "ADAPT", "Is it far?", "No (not far)."), "brackets"),
    "markup passed": (verdict(), "Markdown"),
    "too long": (verdict("ADAPT", "ADAPT", "Is it far?", "no " * 300), "300 words"),
    "prose alone": ("I would rather not.", "no complete JSON"),
    "nothing": ("", "no complete JSON"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("wrong", "told"), WRONG.values(), ids=list(WRONG))
def test_model_is_told_what_is_wrong_with_its_answer(stage_of, wrong, told):
    with ChatServer(lambda body, n: Answer(wrong if n == 1 else GOOD)) as server:
        assert one(server, stage_of)["messages"][0]["content"] == "Is it far?"
    first, second = server.bodies
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2]["role"] == "assistant"
    assert told in second["messages"][3]["content"]


def test_pair_is_rejected_after_the_attempts(stage_of):
    with ChatServer(lambda body, n: Answer(f"no {n}")) as server:
        rejection = one(server, stage_of, attempts=3)
    assert rejection.reason == "no usable answer of the model"
    assert len(server.bodies) == 3


def test_rejection_by_the_model(stage_of):
    with ChatServer(lambda body, n: Answer(verdict("ADAPT", "REJECT", "Is it far?", quality=1))) as server:
        assert one(server, stage_of).reason == "answer rejected by the model"
    assert len(server.bodies) == 1


def test_refusal_of_the_model(stage_of):
    with ChatServer(lambda body, n: Answer(refusal="I can't.")) as server:
        rejection = one(server, stage_of)
    assert (rejection.reason, rejection.value) == ("refused by the model", "I can't.")


def test_answer_that_was_cut_off_is_asked_for_with_a_higher_limit(stage_of):
    cut = Answer(GOOD[:40], finish_reason="length")
    with ChatServer(lambda body, n: cut if body["max_tokens"] < 400 else Answer(GOOD)) as server:
        assert one(server, stage_of, max_tokens=100, max_tokens_cap=1000)["quality"] == 4
    assert [body["max_tokens"] for body in server.bodies] == [100, 200, 400]


def test_answer_that_is_always_cut_off_is_given_up_at_the_cap(stage_of):
    with ChatServer(lambda body, n: Answer(GOOD[:40], finish_reason="length")) as server:
        rejection = one(server, stage_of, max_tokens=100, max_tokens_cap=300)
    assert "max_tokens_cap" in rejection.reason
    assert [body["max_tokens"] for body in server.bodies] == [100, 200, 300]


def many(n):
    return [{"id": str(i), "question": f"Is it {i}?", "answer": "Yes."} for i in range(n)]


def test_requests_of_a_unit_run_side_by_side_within_the_limit_and_keep_their_order(stage_of):
    wait = Answer(verdict(), wait_sec=0.1)
    with ChatServer(lambda body, n: wait) as server:
        result = stage_of(server, concurrency=3).run(many(9))
    assert [item["id"] for item in result.items] == [str(i) for i in range(9)]
    assert 2 <= server.most_running <= 3


def test_second_run_asks_nothing_and_gives_the_same(stage_of):
    """Also what was rejected, repaired or cut off is not asked for again."""

    def answer(body, n):
        number = pair_of(body)["question"]
        if "1" in number and n == 1:
            return Answer("what?")
        if "2" in number and n == 1:
            return Answer("{", finish_reason="length")
        return Answer(verdict("REJECT") if "3" in number else verdict())

    with ChatServer(answer) as server:
        first = stage_of(server).run(many(5))
        asked = len(server.bodies)
        second = stage_of(server, concurrency=1).run(many(5))
    assert (asked, len(server.bodies)) == (7, 7)
    assert first == second
    assert (len(first.items), len(first.rejected)) == (4, 1)


def test_one_refused_pair_is_rejected_and_all_refused_is_a_mistake_in_the_options(stage_of):
    def answer(body, n):
        bad = "3" in pair_of(body)["question"] or body["model"] == "other"
        return Answer(status=400, message="unknown field response_format") if bad else Answer(verdict())

    with ChatServer(answer) as server:
        result = stage_of(server).run(many(5))
        assert [(r.item["id"], r.reason) for r in result.rejected] == [("3", "refused by the endpoint")]
        assert len(server.bodies) == 5
        with pytest.raises(UserError, match=r"refused all of 5 requests.*response_format"):
            stage_of(server, model="other").run(many(5))


def test_spend_is_limited_and_a_raised_limit_goes_on(stage_of):
    with ChatServer(lambda body, n: Answer(verdict())) as server:
        with pytest.raises(UserError, match="max_requests is 3"):
            stage_of(server, max_requests=3).run(many(5))
        assert len(server.bodies) == 3
        assert len(stage_of(server, max_requests=5).run(many(5)).items) == 5
    assert len(server.bodies) == 5


def test_earlier_turns_are_context(stage_of):
    turns = ["Hello.", "Hi there.", "How are you?", "Fine."]
    messages = [{"role": ("user", "assistant")[i % 2], "content": turn} for i, turn in enumerate(turns)]
    with ChatServer(lambda body, n: Answer(verdict(quality=3 if n == 1 else 5))) as server:
        one(server, stage_of, {"messages": messages})
    assert pair_of(server.bodies[1]) == {"context": turns[:2], "question": turns[2], "answer": turns[3]}


def test_key_is_in_no_file_item_or_fingerprint(stage_of, tmp_path):
    with ChatServer(lambda body, n: Answer(status=422) if n == 1 else Answer(GOOD)) as server:
        stage = stage_of(server)
        results = [stage.run([ITEM]), stage.run([{**ITEM, "question": "Is it near?"}])]
        everything = repr((results, stage.options, stage.content()))
    assert KEY not in everything
    assert all(KEY.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
