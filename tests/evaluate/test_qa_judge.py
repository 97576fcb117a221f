"""The judge of replies against a real HTTP server."""

import json

import pytest
from prepare.chat_server import Answer, ChatServer

from lit_moss.evaluate.qa_judge import Judged, QAJudge, verdict
from lit_moss.prepare.endpoint import Answers, ChatEndpoint, Server


@pytest.mark.parametrize(
    ("text", "right", "unparsable"),
    [
        ('{"analysis": "same", "judgment": "correct"}', True, False),
        ('Sure:\n```json\n{"analysis": "no", "judgment": "Incorrect"}\n```', False, False),
        ('<think>{"judgment": "correct"}</think>{"judgment": "incorrect"}', False, False),
        ('{"judgment": true}', True, False),
        ("It is correct.", False, True),
        ('{"judgment": "perhaps"}', False, True),
        ("", False, True),
        ("__import__('os').abort()", False, True),  # nothing is evaluated
    ],
)
def test_verdicts_are_read_as_json(text, right, unparsable):
    found = verdict(text)
    assert found["right"] is right
    assert found.get("unparsable", False) is unparsable


def test_replies_are_graded_once_and_empty_ones_never(tmp_path):
    def grade(body, n):
        asked = json.loads(body["messages"][1]["content"])
        if asked["reply"] == "odd":
            return Answer("no idea")
        if asked["reply"] == "refused":
            return Answer(status=400)
        right = asked["reply"] in asked["references"]
        return Answer(json.dumps({"analysis": "", "judgment": "correct" if right else "incorrect"}))

    items = [
        Judged(f"i{n}", "Who?", ["me"], reply) for n, reply in enumerate(["me", "you", "odd", "refused", ""])
    ]
    with ChatServer(grade) as server:
        endpoint = ChatEndpoint(Server("m", server.url), Answers(tmp_path / "a.sqlite"), "run")
        judge = QAJudge(endpoint)
        results = judge(items)
        assert [result["right"] for result in results] == [True, False, False, False, False]
        assert ["unparsable" in result for result in results] == [False, False, True, True, False]
        asked = len(server.bodies)
        judge(items[:3])
        assert len(server.bodies) == asked  # answers are kept
    assert asked == 4
    assert server.bodies[0]["temperature"] == 0.0
