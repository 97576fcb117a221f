"""Lets the backbone answer text prompts, so that a speech model learns to say what its text model would.

    question, or messages ─ chat template ─ backbone ─ answer ─ filters ─ messages with the answer

An item may contain `examples`, pairs of question and answer that are put before the prompt for the backbone,
but are not part of the result. Prompts are answered in batches of consecutive items, which are the stage's
units: the last bits of the logits depend on the other prompts of the batch, which are thus the same for any
number of workers. The random numbers of an answer depend only on the seed and its prompt.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from lit_moss.assets import sha256_of
from lit_moss.corpora.conversations import ROLES
from lit_moss.corpora.facts import has_answer
from lit_moss.devices import has_fast_bf16, moved
from lit_moss.errors import UserError
from lit_moss.llm.backbone import load_text_tokenizer, resolve_backbone
from lit_moss.llm.replies import reply_text
from lit_moss.llm.sampling import Sampling
from lit_moss.prepare import answer_checks as checks
from lit_moss.prepare.stage import NOT_CONTENT, Item, Rejection, Result, Stage, item_id
from lit_moss.prepare.storage import Storage
from lit_moss.records import printable

_AUDIO_IDS = 1024  # of the speech head, which is not used
_SOUND_KEYS = ("audio_filepath", "offset", "duration", "channel", "speaker", "lang")
_GRAM = {"en": 4, "zh": 8}  # words, or characters, of a repeated sequence


@dataclass(frozen=True)
class SelfAnswerOptions:
    """Options of `prepare self-answer`: how prompts are answered, and which answers are kept.

    Args:
        backbone: Text model with a chat template: a folder, a hub id, or `embedded:smollm2-135m`.
        system: System prompt for items without one; "": that of the chat template.
        max_new_tokens: Maximum length of an answer in tokens.
        temperature: Sampling temperature; 0: the most likely token.
        top_k: Number of most likely tokens to choose from; 0: all. No effect at temperature 0.
        top_p: Probability mass of the most likely tokens to choose from. No effect at temperature 0.
        repetition_penalty: Divisor of the logits of tokens that occur in prompt or answer; 1: none.
        seed: Seed of the sampling.
        batch: Number of prompts answered together.
        dtype: Data type of the weights: float32, bfloat16, or auto: bfloat16 if that is faster on the device.
            Few answers depend on it.
        device: auto, cpu or cuda.
        unfinished: What to do with an answer that reaches max_new_tokens: cut (after its last complete
            sentence) or reject.
        min_words: Minimum length of an answer in words; a Chinese character counts as one word.
        max_words: Maximum length of an answer in words; a Chinese character counts as one word.
        max_repeated: Maximum fraction of an answer, 0 to 1, in repeated sequences of 4 words or 8 Chinese
            characters.
        refusals: Keep answers that refuse, or that mention being a language model.
        sentences: Maximum number of sentences of an answer, which is cut after them; null: unlimited.
        wrong: What to do with an answer that contains none of the item's right `answers`: drop or keep. Items
            without `answers` are not checked.
    """

    backbone: str = "embedded:smollm2-135m"
    system: str = ""
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 20
    top_p: float = 0.95
    repetition_penalty: float = 1.0
    seed: int = 1
    batch: int = 16
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    device: str = field(default="auto", metadata=NOT_CONTENT)
    unfinished: Literal["cut", "reject"] = "cut"
    min_words: int = 3
    max_words: int = 200
    max_repeated: float = 0.2
    refusals: bool = False
    sentences: int | None = None
    wrong: Literal["drop", "keep"] = "drop"

    def __post_init__(self) -> None:
        if min(self.max_new_tokens, self.batch, self.min_words) < 1 or self.max_words < self.min_words:
            raise UserError(
                f"max_new_tokens is {self.max_new_tokens}, batch {self.batch}, min_words {self.min_words}, "
                f"max_words {self.max_words}: expected 1 or more, and max_words not below min_words"
            )
        if self.sentences is not None and self.sentences < 1:
            raise UserError(f"sentences is {self.sentences}, expected 1 or more, or null for all")
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        """The sampling options for tokens."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.repetition_penalty)


class SelfAnswerStage(Stage):
    """Converts prompts to conversations that end with the backbone's answer."""

    name = "self-answer"
    version = 2
    Options = SelfAnswerOptions

    def __init__(self, options: SelfAnswerOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self._lm: Any = None
        self._tokenizer: Any = None

    def content(self) -> dict[str, Any]:
        return super().content() | {"backbone": _fingerprint(self.options.backbone)}

    def units(self, items: Iterable[Item]) -> Iterator[list[Item]]:
        items = iter(items)
        while unit := list(islice(items, self.options.batch)):
            yield unit

    def open(self) -> None:
        import torch

        from lit_moss.llm import SplitLM

        dtype = self.options.dtype
        if dtype == "auto":
            dtype = "bfloat16" if has_fast_bf16(self.options.device) else "float32"
        self._tokenizer = load_text_tokenizer(self.options.backbone)
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{self.options.backbone} has no chat template: expected an instruction-tuned text model"
            )
        # Not split: both tails are empty, and text is generated by the backbone's own layers and head.
        lm = SplitLM.from_backbone(
            self.options.backbone, 0, audio_vocab_size=_AUDIO_IDS, dtype=getattr(torch, dtype)
        )
        self._lm = moved(lm.eval(), self.options.device)

    def run(self, unit: Sequence[Item]) -> Result:
        result = Result(counts={"answers cut at their last sentence": 0, "new tokens": 0})
        prompts: list[tuple[Item, list[Item], list[int]]] = []
        for item in unit:
            messages = prompt_messages(item)
            if halves := [m for m in messages if printable(m["content"]) != m["content"]]:
                shown = printable(halves[0]["content"])[:80]
                result.rejected.append(Rejection(item, "half a surrogate pair", shown))
                continue
            begin = int(messages[0]["role"] == "system")
            ids = self._prompt_ids([*messages[:begin], *example_messages(item), *messages[begin:]])
            if self._too_long(ids):
                result.rejected.append(
                    Rejection(item, "prompt too long", len(ids), self._lm.config.max_context)
                )
            else:
                prompts.append((item, messages, ids))
        answers = self._answers([ids for _, _, ids in prompts])
        for (item, messages, _), rows in zip(prompts, answers, strict=True):
            result.counts["new tokens"] += len(rows)
            self._judge(item, messages, rows, result)
        return result

    def _prompt_ids(self, messages: list[Item]) -> list[int]:
        if self.options.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.options.system}, *messages]
        # Reasoning models (Qwen3) would spend the answer on reasoning; other templates ignore this option.
        text = self._tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def _too_long(self, ids: list[int]) -> bool:
        most = self._lm.config.max_context
        return most is not None and len(ids) + self.options.max_new_tokens > most

    def _answers(self, prompts: list[list[int]]) -> list[list[int]]:
        import torch

        if not prompts:
            return []
        return self._lm.generate(
            prompts,
            "text",
            max_new_tokens=self.options.max_new_tokens,
            text=self.options.sampling,
            generator=torch.Generator().manual_seed(self.options.seed),
        )

    def _judge(self, item: Item, messages: list[Item], rows: list[int], result: Result) -> None:
        """Adds the answer to the result's items, or to its rejections."""
        options, stopped = self.options, bool(rows) and rows[-1] in self._lm.stop_ids
        answer = self._tokenizer.decode(reply_text(rows, self._lm.format), skip_special_tokens=True).strip()
        if options.sentences and (begin := checks.first_sentences(answer, options.sentences)):
            answer, stopped = begin, True
        answered = item | {"messages": [*messages, {"role": "assistant", "content": answer}]}

        def reject(reason: str, value: float | str, threshold: float | str | None = None) -> None:
            result.rejected.append(Rejection(answered, reason, value, threshold))

        if self._lm.format.sosp_token_id in rows:
            return reject("not text", "sosp")
        if not stopped:
            finished = checks.finished_part(answer)
            if options.unfinished == "reject" or not finished:
                return reject("unfinished", len(rows), options.max_new_tokens)
            result.counts["answers cut at their last sentence"] += 1
            answer = finished
            answered["messages"] = [*messages, {"role": "assistant", "content": answer}]
        words = checks.units_of(answer)
        if not options.min_words <= len(words) <= options.max_words:
            limit = options.min_words if len(words) < options.min_words else options.max_words
            return reject("length", len(words), limit)
        asked = checks.language_of(messages[-1]["content"]) or str(item.get("lang") or "")
        lang = checks.language_of(answer)
        if lang != asked or (lang == "en" and not checks.is_english(words)):
            return reject("language", lang if lang != asked else "other", asked)
        repeated = checks.repeated_share(words, _GRAM[lang])
        if repeated > options.max_repeated:
            return reject("repetition", round(repeated, 3), options.max_repeated)
        if not options.refusals and checks.is_refusal(answer):
            return reject("refusal", answer[:80])
        if options.wrong == "drop" and item.get("answers") and not has_answer(answer, item["answers"]):
            return reject("wrong answer", answer[:80], " | ".join(item["answers"]))
        for key in ("question", "answer", "examples"):  # now in the messages; an existing answer is replaced
            answered.pop(key, None)
        result.items.append(answered | {"lang": item.get("lang") or lang})


def example_messages(item: Item) -> list[Item]:
    """The examples of an item as messages.

    Raises:
        UserError: if they are not pairs of texts.
    """
    examples = item.get("examples") or []
    if not isinstance(examples, list) or not all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in examples
    ):
        raise UserError(
            f"item {item_id(item) or str(item)[:60]}: examples is {str(examples)[:60]!r}, expected a list of "
            "[question, answer]"
        )
    return [
        {"role": role, "content": text}
        for pair in examples
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def prompt_messages(item: Item) -> list[Item]:
    """Messages up to the last user message, with their audio; an existing final answer is left out.

    Raises:
        UserError: if the item has neither a `question` nor messages with a user message.
    """
    if isinstance(item.get("question"), str) and item["question"].strip():
        return [{"role": "user", "content": item["question"].strip()}]
    messages = []
    for message in item.get("messages") or []:
        role, content = message.get("role"), message.get("content")
        if role not in ROLES or not isinstance(content, str):
            raise UserError(
                f"item {item_id(item) or str(item)[:60]}: a message has role {role!r} and content "
                f"{content!r}: expected one of {', '.join(ROLES)}, and text"
            )
        sound = {key: message[key] for key in _SOUND_KEYS if message.get(key) is not None}
        messages.append({"role": role, "content": content} | (sound if message.get("audio_filepath") else {}))
    while messages and messages[-1]["role"] != "user":
        messages.pop()
    if not messages:
        raise UserError(
            f"item {item_id(item) or str(item)[:60]} has no prompt: expected a `question`, or `messages` "
            "with one of the user"
        )
    return messages


def _fingerprint(backbone: str) -> str:
    """16 hex digits of a backbone's weights, tokenizer and chat template."""
    folder = resolve_backbone(backbone)
    digest = hashlib.sha256()
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".json", ".jinja", ".safetensors", ".model", ".txt"):
            digest.update(f"{path.name} {sha256_of(path)}".encode())
    return digest.hexdigest()[:16]
