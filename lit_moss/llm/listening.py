"""How well a model listens: transcripts of a few held-out utterances, by its own rows.

    prompt   sosp c_1 … c_n eosp          expected  text ids, end
    asr_ppl, asr_accuracy   of the expected rows after the prompt (teacher-forced, one forward)
    asr_wer                 word errors of the greedy reply, over all words of the references

Speaking is learnt long before listening: text after speech is fluent and unrelated at first, a WER of about
1. The step at which it falls is the one to compare.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from lit_moss.llm.branches import Network


class AsrItem(Protocol):
    """An utterance: rows of its speech, the text ids that follow, and the text itself."""

    @property
    def prompt(self) -> Sequence[int]: ...
    @property
    def expected(self) -> Sequence[int]: ...
    @property
    def text(self) -> str: ...


class Listening:
    """Held-out utterances, transcribed at every validation.

    Args:
        items: The utterances.
        decode: Text of text ids.
        word_errors: (errors, words) of a reference and a transcript.
    """

    def __init__(
        self,
        items: Sequence[AsrItem],
        decode: Callable[[list[int]], str],
        word_errors: Callable[[str, str], tuple[int, int]],
    ) -> None:
        self.items, self._decode, self._word_errors = list(items), decode, word_errors

    @torch.no_grad()
    def measure(self, lm: Network, device: Any) -> dict[str, float]:
        """`asr_ppl`, `asr_accuracy`, `asr_wer`; {} without items."""
        if not self.items:
            return {}
        training = lm.training
        lm.eval()
        metrics = self._teacher_forced(lm, device) | {"asr_wer": self._error_rate(lm)}
        lm.train(training)
        return metrics

    def _teacher_forced(self, lm: Network, device: Any) -> dict[str, float]:
        rows, ids, mask = [], [], []
        for number, item in enumerate(self.items):
            own = [*item.prompt, *item.expected]
            rows += own
            ids += [number] * len(own)
            mask += [i >= len(item.prompt) for i in range(len(own))]
        loss = lm.loss(*(torch.tensor([x], device=device) for x in (rows, ids, mask)))
        count = int(loss.text_count)
        return {
            "asr_ppl": math.exp(min(float(loss.text), 80.0)),
            "asr_accuracy": int(loss.text_correct) / max(1, count),
        }

    def _error_rate(self, lm: Network) -> float:
        most = max(len(item.expected) for item in self.items)
        replies = lm.generate([list(item.prompt) for item in self.items], "text", max_new_tokens=most + 8,
                              greedy=True)  # fmt: skip
        errors = words = 0
        for item, reply in zip(self.items, replies, strict=True):
            wrong, total = self._word_errors(item.text, self._decode(self._first_text(lm, reply)))
            errors, words = errors + wrong, words + total
        return errors / max(1, words)

    @staticmethod
    def _first_text(lm: Network, reply: Sequence[int]) -> list[int]:
        """The ids before an end, speech, or anything else that is no word."""
        ids: list[int] = []
        for row in reply:
            if row in lm.stop_ids or row >= lm.format.text_vocab_size or row == lm.format.sosp_token_id:
                break
            ids.append(row)
        return ids
