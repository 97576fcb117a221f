"""The message of a reached limit named `max_requests`, which `evaluate spoken_qa` does not have."""

import pytest
from prepare.chat_server import Answer, ChatServer

from lit_moss.errors import UserError
from lit_moss.evaluate.qa_judge import Judged
from lit_moss.evaluate.spoken_qa import Config, open_judge

pytest.importorskip("openai", reason="needs the extra `prepare`")


def test_it_is_named_as_the_verb_names_it_and_what_was_answered_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    items = [Judged(str(n), f"question {n}?", ["yes"], "yes") for n in range(3)]
    with ChatServer(lambda body, n: Answer('{"analysis": "", "judgment": "correct"}')) as server:

        def judge(most):
            config = Config("m", judge="j", judge_url=server.url, judge_max_requests=most)
            return open_judge(config, tmp_path)

        limited = judge(2)
        assert limited is not None
        limited(items[:2])
        with pytest.raises(
            UserError, match="judge_max_requests is 2 and 2 are spent: raise judge_max_requests "
        ):
            limited(items[2:])
        raised = judge(3)
        assert raised is not None
        assert [result["right"] for result in raised(items)] == [True] * 3
    assert len(server.bodies) == 3
