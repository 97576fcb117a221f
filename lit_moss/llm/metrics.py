"""Metrics computed from losses: of one training batch, or of all batches of a validation.

    loss = (w_t nll_text + w_s nll_speech) / targets   ppl = exp(nll / targets of the head)   accuracy

Names are `text_loss`, `speech_ppl` …; a head without targets has no values.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from lit_moss.llm.losses import SplitLoss

_SUMS = ("text_nll", "text_count", "text_correct", "speech_nll", "speech_count", "speech_correct")


def batch_metrics(loss: SplitLoss, targets: Mapping[str, int]) -> dict[str, Tensor]:
    """Metrics of one batch, scalar tensors on the device.

    Args:
        loss: Loss of the batch.
        targets: Head (`text`, `speech`) -> number of its targets, as known on the host.
    """
    metrics = {"text_targets": loss.text_count.float(), "speech_targets": loss.speech_count.float()}
    for name, mean, count, correct in (
        ("text", loss.text, loss.text_count, loss.text_correct),
        ("speech", loss.speech, loss.speech_count, loss.speech_correct),
    ):
        if targets[name]:
            metrics |= {f"{name}_loss": mean, f"{name}_ppl": mean.exp(), f"{name}_accuracy": correct / count}
    return metrics


class LossSums:
    """Sums over the batches of a validation, kept on the device.

    Args:
        device: Device of the losses.
        weights: Modality -> weight of its targets in `loss`, as in training. Default: 1.
    """

    def __init__(self, device: torch.device, weights: Mapping[str, float] | None = None) -> None:
        self._weights = dict(weights or {})  # a plain dict: the module is deep-copied for averaged weights
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=device) for name in _SUMS}

    def add(self, loss: SplitLoss) -> None:
        """Adds the losses of a batch."""
        values = (
            loss.text * loss.text_count,
            loss.text_count,
            loss.text_correct,
            loss.speech * loss.speech_count,
            loss.speech_count,
            loss.speech_correct,
        )
        for name, value in zip(_SUMS, values, strict=True):
            self._sums[name] += value

    def metrics(self, over_ranks: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Metrics of all batches.

        Args:
            over_ranks: Returns the sum of a tensor over all ranks.
        """
        sums = {name: float(over_ranks(value)) for name, value in self._sums.items()}
        metrics: dict[str, float] = {}
        targets = sums["text_count"] + sums["speech_count"]
        if targets:
            weighted = (self._weights.get(name, 1.0) * sums[f"{name}_nll"] for name in ("text", "speech"))
            metrics["loss"] = sum(weighted) / targets
        for name in ("text", "speech"):
            if count := sums[f"{name}_count"]:
                mean = sums[f"{name}_nll"] / count
                metrics |= {
                    f"{name}_loss": mean,
                    f"{name}_ppl": float(torch.tensor(mean).exp()),
                    f"{name}_accuracy": sums[f"{name}_correct"] / count,
                }
        return metrics
