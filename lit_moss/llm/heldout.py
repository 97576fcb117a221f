"""Perplexity and cloze accuracy on held-out items, in text and in speech.

Cloze (paper, section on pre-training evaluation, after spoken StoryCloze): given the true next sentence and a
random one, the model should assign the true one the higher mean log-probability per row. Chance is 0.5.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lit_moss.llm.branches import Modality, Network
from lit_moss.llm.rows import RowFormat


@dataclass(frozen=True)
class ClozeItem:
    """A context and two continuations, as rows.

    Args:
        modality: `text` or `speech`.
        context: Rows of one or two sentences. Speech: sosp and the codes, as one stretch without eosp.
        true: Rows of the next sentence. Speech: its codes and eosp.
        other: Rows of a sentence from elsewhere, of similar length.
    """

    modality: Modality
    context: list[int]
    true: list[int]
    other: list[int]


class HeldOut:
    """Held-out items, packed once and evaluated at every validation.

    Args:
        items: Cloze items of both modalities; perplexity is computed on the context and its true
            continuation.
        row_format: Row format: ids of text and speech.
        batch_rows: Maximum number of rows of a packed sequence.
    """

    def __init__(self, items: Sequence[ClozeItem], row_format: RowFormat, batch_rows: int = 2048) -> None:
        self.items, self.format = list(items), row_format
        self._batches: list[list[tuple[int, bool, list[int]]]] = []  # (item, is true, rows)
        used = batch_rows
        for i, item in enumerate(self.items):
            for true, ending in ((True, item.true), (False, item.other)):
                rows = [*item.context, *ending]
                if used + len(rows) > batch_rows:
                    self._batches.append([])
                    used = 0
                self._batches[-1].append((i, true, rows))
                used += len(rows)

    @torch.no_grad()
    def measure(self, lm: Network, device: Any) -> dict[str, float]:
        """Returns `text_ppl`, `text_cloze`, `speech_ppl` and `speech_cloze`.

        A modality without items has no values.
        """
        training = lm.training
        lm.eval()
        V = self.format.text_vocab_size
        score: dict[tuple[int, bool], float] = {}
        nll = {"text": 0.0, "speech": 0.0}
        count = {"text": 0, "speech": 0}
        for batch in self._batches:
            rows = torch.tensor([r for *_, part in batch for r in part], device=device)[None]
            ids = torch.repeat_interleave(torch.arange(len(batch)), torch.tensor([len(p) for *_, p in batch]))
            nll_L = lm.loss(rows, ids[None].to(device)).nll_BL[0].double().cpu()
            start = 0
            for i, true, part in batch:
                item = self.items[i]
                own_L = nll_L[start : start + len(part)]
                score[i, true] = float(own_L[len(item.context) :].mean())
                if true:
                    # sosp in a speech item is a text row that no text teaches the model to predict: not
                    # counted.
                    is_speech = torch.tensor(part) >= V
                    counted = is_speech if item.modality == "speech" else ~is_speech
                    counted[0] = False
                    nll[item.modality] += float(own_L[counted].sum())
                    count[item.modality] += int(counted.sum())
                start += len(part)
        lm.train(training)
        metrics: dict[str, float] = {}
        for modality in ("text", "speech"):
            items = [i for i, item in enumerate(self.items) if item.modality == modality]
            if items:
                metrics[f"{modality}_ppl"] = math.exp(min(nll[modality] / max(1, count[modality]), 80.0))
                # Equal scores, such as those of a zero head before its first step, count as half right.
                right = sum(
                    0.5 * ((score[i, True] < score[i, False]) + (score[i, True] <= score[i, False]))
                    for i in items
                )
                metrics[f"{modality}_cloze"] = right / len(items)
        return metrics
