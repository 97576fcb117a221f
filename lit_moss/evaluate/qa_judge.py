"""Grades replies with a language model on a server: does a reply mean one of the reference answers?

The judge's answer is parsed as JSON, never executed. An answer that cannot be parsed counts as wrong and is
listed in the report: ignoring such items would raise the score.
"""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from lit_moss.evaluate.evaluation import Result
from lit_moss.prepare.adapt_by_model import json_objects
from lit_moss.prepare.endpoint import ChatEndpoint, Refused

MAX_TOKENS = 1024
_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_VERDICTS = {"correct": True, "incorrect": False, "true": True, "false": False}
SCHEMA: dict[str, Any] = {
    "title": "Judgment",
    "type": "object",
    "properties": {
        "analysis": {"type": "string"},
        "judgment": {"type": "string", "enum": ["correct", "incorrect"]},
    },
    "required": ["analysis", "judgment"],
    "additionalProperties": False,
}
PROMPT = """You grade answers to questions. You get JSON with a question, its reference answers and a reply.
The reply is correct if its final answer means the same as at least one reference. Ignore punctuation, the
spelling and language of names, and whether numbers are digits or words; the reply may come from speech
recognition. A reply without a final answer, or one that contradicts it, is incorrect.
Answer with one JSON object: {"analysis": "one short reason", "judgment": "correct" or "incorrect"}."""


@dataclass(frozen=True)
class Judged:
    """A reply to be graded.

    Args:
        id: Unique name.
        question: The question.
        answers: Reference answers.
        reply: The reply.
    """

    id: str
    question: str
    answers: Sequence[str]
    reply: str


@dataclass(frozen=True)
class QAJudge:
    """A language model that grades replies.

    Args:
        endpoint: Endpoint of the model.
        parallel: Number of concurrent requests.
    """

    endpoint: ChatEndpoint
    parallel: int = 8

    def __call__(self, items: Sequence[Judged]) -> list[Result]:
        """For each reply: `right` and `why`, and `unparsable` if there was no verdict.

        Raises:
            UserError: if the model is not reachable.
        """
        with ThreadPoolExecutor(self.parallel) as pool:
            return list(pool.map(self._judge, items))

    def _judge(self, item: Judged) -> Result:
        if not item.reply.strip():
            return {"right": False, "why": "empty reply"}
        asked = {"question": item.question, "references": list(item.answers), "reply": item.reply}
        messages = [
            {"role": "system", "content": PROMPT},
            {"role": "user", "content": json.dumps(asked, ensure_ascii=False)},
        ]
        try:
            reply = self.endpoint.ask(messages, SCHEMA, MAX_TOKENS)
        except Refused as error:
            return {"right": False, "unparsable": True, "why": f"refused: {error}"}
        return verdict(reply.text or reply.refusal)


def verdict(text: str) -> Result:
    """The verdict in a judge's answer: `right` and `why`, and `unparsable` if there is none."""
    for found in json_objects(_THOUGHT.sub("", text)):
        right = _VERDICTS.get(str(found.get("judgment")).strip().lower())
        if right is not None:
            return {"right": right, "why": str(found.get("analysis", ""))}
    return {"right": False, "unparsable": True, "why": " ".join(text.split())[:300]}
