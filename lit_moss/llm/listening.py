"""Measures listening: the model transcribes a few held-out utterances.

    prompt   sosp c_1 … c_n eosp          expected  text ids, end
    asr_ppl, asr_accuracy   on the expected rows after the prompt (teacher-forced, one forward)
    asr_wer                 word errors of the greedy replies / number of reference words

A model learns to speak long before it learns to listen: at first the text after speech is fluent but
unrelated, with a WER of about 1. Compare runs by the step at which the WER falls.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_moss.llm.branches import Network


@dataclass(frozen=True)
class AsrItem:
    """An utterance to transcribe.

    Args:
        prompt: Rows up to the end of its speech.
        expected: The following text ids, with the id that ends the document.
        text: Transcript of the utterance.
    """

    prompt: list[int]
    expected: list[int]
    text: str


class Listening:
    """Held-out utterances, transcribed at every validation.

    Args:
        items: The utterances.
        decode: Converts text ids to text.
        word_errors: Returns (errors, words) for a reference and a transcript.
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
        """Returns `asr_ppl`, `asr_accuracy` and `asr_wer`; empty without items."""
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
        """The leading text ids of a reply, up to its end or the start of speech."""
        ids: list[int] = []
        for row in reply:
            if row in lm.stop_ids or row >= lm.format.text_vocab_size or row == lm.format.sosp_token_id:
                break
            ids.append(row)
        return ids
