"""Adapts questions and answers to conversations that can be spoken (paper 3.2.1, appendix A).

    {"question", "answer"} ─┐                         ┌─ {"messages": [{"role", "content", "written", …}, …],
    {"messages"} ───────────┴─ pair by pair ─ adapter ┤   "quality", "adapter"}
                               (rules, or a model)    └─ rejected, with a reason

`content` is what is said; digits and units stay in it and are converted to words by the stage `speak`.
`written` is the text before adaptation. Messages that already have audio are left as they are.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from lit_moss.assets import cache_dir
from lit_moss.errors import UserError
from lit_moss.prepare.adapt_pair import Pair, PairRejected, Side
from lit_moss.prepare.language import text_language
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, item_id

RECORDED = "messages left as they are, since they have a sound"
OTHER = "rejected for their language"
_UNIT_ITEMS = 16  # items whose requests run in parallel
_ALL_REFUSED_OF = 4  # this many rejected requests, and no others, mean a mistake in the options


@dataclass
class AdaptOptions:
    """Options of `prepare adapt`.

    Args:
        adapter: `rules` works offline; `endpoint` asks a language model.
        min_quality: Minimum quality, 1 to 5, of the pairs to keep.
        model: Name of the model that the endpoint serves. Answers are cached by this name.
        base_url: Address of an OpenAI-compatible server up to /v1; null: that of OpenAI.
        api_key_env: Environment variable that contains the endpoint's API key.
        temperature: Sampling temperature; 0: the most likely answer; null: the server's default.
        max_tokens: Maximum length of the model's answers in tokens; doubled for answers that were cut off.
        max_tokens_cap: Upper limit of the doubling.
        token_limit: Request field with the maximum length; some models only accept max_completion_tokens.
        response_format: json_schema; json_object or none for servers that do not support it. Answers are
            always validated.
        attempts: Number of times the model is asked for a valid answer before a pair is dropped.
        timeout_sec: Maximum time to wait for an answer, in seconds.
        retries: Number of retries of a request after 429, 5xx or a timeout.
        concurrency: Number of concurrent requests per worker.
        max_requests: Maximum number of requests of the step, over all its workers on this machine and all
            resumed runs; null: unlimited.
        max_tokens_total: Maximum number of tokens of the step, as counted by the server; null: unlimited.
    """

    adapter: Literal["rules", "endpoint"] = "rules"
    min_quality: int = 2
    model: str = ""
    base_url: str | None = field(default=None, metadata=NOT_CONTENT)
    api_key_env: str = field(default="OPENAI_API_KEY", metadata=NOT_CONTENT)
    temperature: float | None = 0.0
    max_tokens: int = 2048
    max_tokens_cap: int = 16384
    token_limit: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    attempts: int = 3
    timeout_sec: float = field(default=120.0, metadata=NOT_CONTENT)
    retries: int = field(default=5, metadata=NOT_CONTENT)
    concurrency: int = field(default=8, metadata=NOT_CONTENT)
    max_requests: int | None = field(default=None, metadata=NOT_CONTENT)
    max_tokens_total: int | None = field(default=None, metadata=NOT_CONTENT)

    def __post_init__(self) -> None:
        if self.adapter not in ("rules", "endpoint"):
            raise UserError(f"adapter is {self.adapter!r}, expected rules or endpoint")
        if not 1 <= self.min_quality <= 5:
            raise UserError(f"min_quality is {self.min_quality}, expected 1 to 5")
        for name in ("max_tokens", "attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}, expected 1 or more")
        for name in ("retries", "max_requests", "max_tokens_total"):
            if (getattr(self, name) or 0) < 0:
                raise UserError(f"{name} is {getattr(self, name)}, expected 0 or more")
        if self.max_tokens_cap < self.max_tokens:
            raise UserError(
                f"max_tokens_cap is {self.max_tokens_cap}, expected max_tokens ({self.max_tokens}) or more"
            )
        if self.timeout_sec <= 0:
            raise UserError(f"timeout_sec is {self.timeout_sec}, expected seconds, more than 0")


class Adapter(Protocol):
    """Adapts pairs so that they can be spoken."""

    def adapt(self, question: str, answer: str, context: Sequence[str] = ()) -> Pair:
        """The adapted pair; `context` contains the earlier turns.

        Raises:
            PairRejected: if the pair cannot be adapted.
        """
        ...


class AdaptStage(Stage):
    """Adapts conversations for speech; a conversation ends before its first pair that cannot be adapted."""

    name: ClassVar[str] = "adapt"
    version: ClassVar[int] = 5
    summary: ClassVar[str] = "questions and answers -> speakable conversations"
    Options: ClassVar[type] = AdaptOptions

    options: AdaptOptions

    def __init__(self, options: AdaptOptions, storage: Any) -> None:
        super().__init__(options, storage)
        self._adapter: Adapter | None = None
        if options.adapter == "endpoint":
            self._server()  # reports mistakes before any worker starts

    def content(self) -> dict[str, Any]:
        """The options; those of an endpoint only if one is used, with a hash of the prompt."""
        if self.options.adapter == "rules":
            return {"adapter": "rules", "min_quality": self.options.min_quality}
        from lit_moss.prepare.adapt_prompt import SCHEMA, SYSTEM_PROMPT

        prompt = hashlib.sha256(f"{SYSTEM_PROMPT}{SCHEMA}".encode()).hexdigest()[:16]
        return {**super().content(), "prompt": prompt}

    def notes(self, counts: Mapping[str, float], examples: Mapping[str, str]) -> list[str]:
        lines = super().notes(counts, examples)
        if recorded := int(counts.get(RECORDED, 0)):
            lines.append(f"{RECORDED}: {recorded}, e.g. in {examples[RECORDED]}")
        if other := int(counts.get(OTHER, 0)):
            lines.append(
                f"{OTHER}: {other}, e.g. {examples[OTHER]}: only English and Chinese are adapted; for "
                "conversations in another language leave adapt out"
            )
        return lines

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        """Single items for the rules, groups of items for an endpoint."""
        size = _UNIT_ITEMS if self.options.adapter == "endpoint" else 1
        unit: list[Item] = []
        for item in items:
            unit.append(item)
            if len(unit) == size:
                yield unit
                unit = []
        if unit:
            yield unit

    def is_light(self) -> bool:
        return self.options.adapter == "rules"

    def open(self) -> None:
        """Loads the rules or opens the endpoint."""
        if self.options.adapter == "rules":
            from lit_moss.prepare.adapt_rules import RuleAdapter

            self._adapter = RuleAdapter()
            return
        from lit_moss.prepare.adapt_by_model import ModelAdapter
        from lit_moss.prepare.endpoint import Answers, ChatEndpoint

        o = self.options
        answers = Answers(cache_dir() / "adapt" / "answers.sqlite")
        endpoint = ChatEndpoint(
            self._server(), answers, self.storage.folder, o.max_requests, o.max_tokens_total
        )
        self._adapter = ModelAdapter(endpoint, o.attempts, o.max_tokens, o.max_tokens_cap)

    def run(self, unit: Sequence[Item]) -> Result:
        """Adapts the conversations of a unit; their requests run in parallel."""
        if self.options.adapter == "rules" or len(unit) == 1:
            results = [self._adapt(item) for item in unit]
        else:
            pool = ThreadPoolExecutor(self.options.concurrency)
            try:
                results = list(pool.map(self._adapt, unit))
            finally:
                pool.shutdown(cancel_futures=True)  # no more requests after an error
        whole = Result()
        for result in results:
            whole.items += result.items
            whole.rejected += result.rejected
            for name, number in result.counts.items():
                whole.counts[name] = whole.counts.get(name, 0) + number
            whole.examples = result.examples | whole.examples
        refused = [r for r in whole.rejected if r.reason == "refused by the endpoint"]
        if len(refused) == len(unit) >= _ALL_REFUSED_OF:
            raise UserError(f"the endpoint refused all of {len(unit)} requests ({refused[0].value}): check "
                            "model, "
                            "token_limit, temperature and response_format")  # fmt: skip
        return whole

    def _server(self) -> Any:
        from lit_moss.prepare.endpoint import Server

        o = self.options
        return Server(o.model, o.base_url, o.api_key_env, o.temperature, o.token_limit, o.response_format,
                      o.timeout_sec, o.retries)  # fmt: skip

    def _adapt(self, item: Item) -> Result:
        assert self._adapter is not None, "open() comes first"
        messages, counts, examples = [], {}, {}
        quality, context = 5, []
        try:
            for turn in _turns(item):
                if isinstance(turn, dict):
                    messages.append(turn)
                    continue
                question, answer = (message["content"] for message in turn)
                if not all(map(_has_sound, turn)):
                    pair = self._adapter.adapt(question, answer, context)
                    if pair.quality < self.options.min_quality:
                        raise PairRejected("quality", pair.quality, self.options.min_quality)
                    quality = min(quality, pair.quality)
                    turn = (_adapted(turn[0], pair.question), _adapted(turn[1], pair.answer))
                messages += turn
                context += [question, answer]
        except PairRejected as error:
            if not context:
                result = Result(rejected=[Rejection(item, error.reason, error.value, error.threshold)])
                if error.reason == "language":
                    result.counts[OTHER] = 1
                    result.examples[OTHER] = f"{_id(item)} ({error.value})"
                return result
            counts["conversations cut before a pair that cannot be spoken"] = 1
        if not context:
            return Result(rejected=[Rejection(item, "no answer")])
        if recorded := sum(map(_has_sound, messages)):
            counts[RECORDED], examples[RECORDED] = recorded, _id(item)
        for message in messages:
            if "state" in message:
                counts[message["state"].lower()] = counts.get(message["state"].lower(), 0) + 1
        kept = {key: value for key, value in item.items() if key not in ("question", "answer", "messages")}
        adapter = "rules" if self.options.adapter == "rules" else self.options.model
        text = " ".join(m["content"] for m in messages)
        made = {"id": _id(item), **kept, "lang": item.get("lang") or text_language(text),
                "messages": messages, "quality": quality, "adapter": adapter}  # fmt: skip
        return Result([made], counts=counts, examples=examples)


def _turns(item: Item) -> Iterator[Item | tuple[Item, Item]]:
    """Yields (question, answer) pairs of messages, in order, and the system messages unchanged.

    A final question without an answer is ignored.

    Raises:
        UserError: if the item is not a conversation.
        PairRejected: if a turn has no text, or a question no answer.
    """
    messages = item.get("messages")
    if messages is None:
        messages = [
            {"role": "user", "content": item.get("question")},
            {"role": "assistant", "content": item.get("answer")},
        ]
        if (
            not all(isinstance(m["content"], str | None) for m in messages)
            or not {"question", "answer"} & item.keys()
        ):
            raise UserError(
                f"item {item_id(item) or '?'} has the keys {', '.join(item)}, expected question and answer "
                "(strings), or messages"
            )
    question: Item | None = None
    for message in messages:
        role, content = message.get("role"), message.get("content")
        if not isinstance(content, str) or not content.strip():
            raise PairRejected("no text", str(role))
        if role == "system":
            yield {"role": "system", "content": content}
        elif role == "user" and question is None:
            question = message
        elif role == "assistant" and question is not None:
            yield question, message
            question = None
        else:
            raise PairRejected("turns do not alternate", str(role))


def _has_sound(message: Item) -> bool:
    """Whether a message is spoken already: another text would not be that of its sound."""
    return message["role"] != "system" and bool(message.get("audio_filepath"))


def _adapted(message: Item, side: Side) -> Item:
    if _has_sound(message):
        return message
    role = message["role"]
    adapted: Item = {"role": role, "content": side.text, "written": message["content"], "style": side.style,
                     "state": side.state, "simplified": side.simplified}  # fmt: skip
    return {**adapted, "corrected": side.corrected} if role == "assistant" else adapted


def _id(item: Item) -> str:
    if item.get("id") not in (None, ""):
        return str(item["id"])
    content = repr((item.get("question"), item.get("answer"), item.get("messages")))
    return "qa-" + hashlib.sha256(content.encode("utf-8", "backslashreplace")).hexdigest()[:12]
