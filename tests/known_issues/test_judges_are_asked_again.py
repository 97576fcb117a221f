"""`evaluate spoken_qa --again true` took the judge's verdicts of before, also those that are none."""

import pytest
from prepare.chat_server import Answer, ChatServer

from lit_moss.evaluate.qa_judge import Judged
from lit_moss.evaluate.spoken_qa import Config, open_judge

pytest.importorskip("openai", reason="needs the extra `prepare`")


def test_again_asks_the_judge_again(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    item = Judged("a", "question?", ["yes"], "yes")
    said = ["I cannot say", '{"analysis": "", "judgment": "correct"}']
    with ChatServer(lambda body, n: Answer(said[min(n, 2) - 1])) as server:

        def verdict(**options):
            judge = open_judge(Config("m", judge="j", judge_url=server.url, **options), tmp_path)
            assert judge is not None
            return judge([item])[0]

        assert verdict().get("unparsable")
        assert verdict().get("unparsable")  # what a killed evaluation has paid for is kept
        assert len(server.bodies) == 1
        assert verdict(again=True, judge_max_requests=1)["right"]  # nor does it count what was spent before
        assert len(server.bodies) == 2
