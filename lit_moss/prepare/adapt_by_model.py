"""Adapts questions and answers with a language model: asks, validates, asks again, or rejects."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from lit_moss.prepare.adapt_pair import Pair, PairRejected, Side, problem_of, word_limit
from lit_moss.prepare.adapt_prompt import (
    SCHEMA,
    SYSTEM_PROMPT,
    AnswerVerdict,
    PairVerdict,
    QuestionVerdict,
    complaint,
    request_text,
)
from lit_moss.prepare.endpoint import ChatEndpoint, Refused, Reply

_THOUGHT = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)


class Unusable(Exception):  # noqa: N818
    """An answer that does not have the required form, or whose text cannot be spoken."""


@dataclass(frozen=True)
class ModelAdapter:
    """Adapts pairs by asking a language model.

    Args:
        endpoint: The model.
        attempts: Number of times it is asked for a valid answer.
        max_tokens: Maximum length of answers in tokens.
        max_tokens_cap: Upper limit when the maximum length is doubled for answers that were cut off.
    """

    endpoint: ChatEndpoint
    attempts: int
    max_tokens: int
    max_tokens_cap: int

    def adapt(self, question: str, answer: str, context: Sequence[str] = ()) -> Pair:
        """The adapted pair.

        Raises:
            PairRejected: if the model rejects the pair, or gives no usable answer.
            UserError: if the model is not reachable.
        """
        messages = [
            {"role": "system", "content": SYSTEM_PROMPT},
            {"role": "user", "content": request_text(question, answer, context)},
        ]
        problem = ""
        for _ in range(self.attempts):
            reply = self._whole_reply(messages)
            try:
                return verdict(reply.text, question, answer)
            except Unusable as error:
                problem = str(error)
            # Never repeats the same request, whose answer would be the same.
            correction = [{"role": "assistant", "content": reply.text or "(nothing)"},
                    {"role": "user", "content": complaint(problem)}]  # fmt: skip
            messages = [*messages[:2], *correction]
        raise PairRejected("no usable answer of the model", problem)

    def _whole_reply(self, messages: list[dict[str, str]]) -> Reply:
        """A reply that was not cut off; raises the limit until it is complete."""
        limit = self.max_tokens
        while True:
            try:
                reply = self.endpoint.ask(messages, SCHEMA, limit)
            except Refused as error:
                raise PairRejected("refused by the endpoint", str(error)) from error
            if reply.refusal or reply.finish_reason == "content_filter":
                raise PairRejected("refused by the model", reply.refusal or reply.finish_reason)
            if reply.finish_reason != "length":
                return reply
            if limit >= self.max_tokens_cap:
                raise PairRejected("answer of the model longer than max_tokens_cap", limit)
            limit = min(2 * limit, self.max_tokens_cap)


def verdict(text: str, question: str, answer: str) -> Pair:
    """The adapted pair in a model's answer.

    Args:
        text: The answer: JSON, possibly within prose or a code fence.
        question: The question as written.
        answer: The answer as written.

    Raises:
        Unusable: if the answer does not have the required form.
        PairRejected: if the answer rejects the pair.
    """
    first_problem = ""
    for found in json_objects(_THOUGHT.sub("", text)):
        try:
            judged = PairVerdict.model_validate(found)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"])) or "the object"
            first_problem = first_problem or f"{place}: {wrong['msg']}"
            continue
        for name, side in (("question", judged.question), ("answer", judged.answer)):
            if side.state == "REJECT":
                raise PairRejected(f"{name} rejected by the model", judged.quality)
        return Pair(
            _side("question", judged.question, question, word_limit(question)),
            _side("answer", judged.answer, answer, word_limit(question)),
            judged.quality,
        )
    raise Unusable(first_problem or "it has no complete JSON object")


def _side(name: str, judged: QuestionVerdict | AnswerVerdict, written: str, limit: int) -> Side:
    text = judged.text.strip()
    if judged.state == "ADAPT" and not text:
        raise Unusable(f"{name}.text is empty though its state is ADAPT")
    if judged.state != "ADAPT" and text not in ("", written.strip()):
        raise Unusable(f"{name}.text is not empty though its state is {judged.state}")
    said = text or written.strip()
    problem = problem_of(said, limit)
    if problem:
        raise Unusable(f"{name}: {problem}")
    corrected = isinstance(judged, AnswerVerdict) and judged.corrected
    changed = judged.state == "ADAPT"
    return Side("ADAPT" if changed else "PASSTHROUGH", said, judged.style, judged.simplified, corrected)


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """All JSON objects in a text, in order, ignoring the text around them."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            if isinstance(found, dict):
                yield found
        start = text.find("{", end)
