"""Draws the next id from logits.

    logits ─ repetition penalty ─ / temperature ─ top-k ─ softmax ─ top-p ─ draw

Shapes: B sequences, V ids of a head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_moss.errors import UserError

# At lower temperatures the divided logits would be infinite and their softmax NaN.
_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """Sampling options of one channel. Defaults: those of the released demo.

    Args:
        temperature: Divisor of the logits. 0: greedy, the most likely id, the lowest id on ties.
        top_k: Number of most likely ids to choose from; 0: all.
        top_p: Probability mass of the most likely ids to choose from.
        repetition_penalty: Logits of ids that occurred in the channel are divided by it (multiplied if
            negative).
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise UserError(
                f"{self}: expected temperature >= 0, top_k >= 0, top_p in (0, 1], repetition_penalty > 0"
            )


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


def sampling_of(
    temperature: float | None = None,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float | None = None,
) -> Sampling:
    """Sampling from a user's options: None means the released demo's value, but temperature 0 with no other
    options is `GREEDY`, without a repetition penalty."""
    base = GREEDY if temperature == 0 else Sampling()
    given = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def sample(
    logits_BV: Tensor,
    sampling: Sampling,
    seen_BV: Tensor | None,
    generator: torch.Generator | None = None,
    draws_B: Tensor | None = None,
) -> Tensor:
    """Draws one id per sequence (B,): repetition penalty, temperature, top-k, top-p, then a draw, or for
    greedy sampling the first maximum.

    Args:
        logits_BV: Logits (B, V), float32.
        sampling: Sampling options.
        seen_BV: bool (B, V), True for ids to which the repetition penalty applies, or None.
        generator: Source of randomness if `draws_B` is None, on any device.
        draws_B: Uniform numbers (B,) in [0, 1), or None.
    """
    if sampling.repetition_penalty != 1.0 and seen_BV is not None:
        penalised = torch.where(
            logits_BV < 0, logits_BV * sampling.repetition_penalty, logits_BV / sampling.repetition_penalty
        )
        logits_BV = torch.where(seen_BV, penalised, logits_BV)
    if sampling.temperature == 0:
        return logits_BV.argmax(dim=-1)
    if draws_B is None:
        device = logits_BV.device if generator is None else generator.device
        draws_B = torch.rand(len(logits_BV), generator=generator, device=device).to(logits_BV.device)
    logits_BV = logits_BV / max(sampling.temperature, _LEAST_TEMPERATURE)
    k = min(sampling.top_k or logits_BV.shape[1], logits_BV.shape[1])
    top, ids = logits_BV.topk(k, dim=-1)  # sorted, so that top-p is a cumulative sum
    probabilities = top.softmax(-1)
    # The id that crosses top_p is kept.
    sums = probabilities.cumsum(-1)
    kept = (sums - probabilities < sampling.top_p) & (probabilities > 0)
    sums = (probabilities * kept).cumsum(-1)
    # The first id whose cumulative sum exceeds the draw; torch.multinomial has one generator for all
    # sequences.
    drawn = (sums <= draws_B[:, None] * sums[:, -1:]).sum(-1)
    drawn = torch.minimum(drawn, kept.sum(-1) - 1)  # guards against rounding
    # If the logits are NaN, nothing is kept; on a GPU an index of -1 would abort the process.
    drawn = drawn.clamp_min(0)
    return ids.gather(1, drawn[:, None])[:, 0]
