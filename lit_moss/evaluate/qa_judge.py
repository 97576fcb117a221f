"""Whether a reply means one of the reference answers, by a language model behind a server.

The answer is parsed as JSON, never evaluated. One that cannot be parsed counts as wrong and is named in the
report: leaving such items out would raise the score.
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
    """What is judged.

    Args:
        id: Unique name.
        question: The question.
        answers: Reference answers.
        reply: What was replied.
    """

    id: str
    question: str
    answers: Sequence[str]
    reply: str


@dataclass(frozen=True)
class QAJudge:
    """A language model that grades.

    Args:
        endpoint: The model.
        parallel: Requests at once.
    """

    endpoint: ChatEndpoint
    parallel: int = 8

    def __call__(self, items: Sequence[Judged]) -> list[Result]:
        """`right`, `why`, and `unparsable` where no verdict was given, for each of some replies.

        Raises:
            UserError: if the model cannot be asked.
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
    """The verdict in a judge's answer: `right` and `why`, and `unparsable` where there is none."""
    for found in json_objects(_THOUGHT.sub("", text)):
        right = _VERDICTS.get(str(found.get("judgment")).strip().lower())
        if right is not None:
            return {"right": right, "why": str(found.get("analysis", ""))}
    return {"right": False, "unparsable": True, "why": " ".join(text.split())[:300]}
