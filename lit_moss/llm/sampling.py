"""How the next id is drawn from logits.

    logits ─ repetition penalty ─ / temperature ─ top-k ─ softmax ─ top-p ─ draw

Shapes: B sequences, V ids of a head.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_moss.errors import UserError

# Below it the divided logits would be infinite, and their softmax not a number.
_LEAST_TEMPERATURE = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How one channel's next id is drawn; the released demo's values.

    Args:
        temperature: Divides the logits; 0 is greedy: the most likely id, the lowest on ties.
        top_k: Ids to choose from; 0 for all.
        top_p: Probability mass to choose from.
        repetition_penalty: Logits of ids already in the channel are divided by it (multiplied where
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
    """Sampling as a user asks for it: what is None is as in the released demo, but temperature 0 alone is
    `GREEDY`, without a penalty."""
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
    """One id a sequence (B,): repetition penalty, temperature, top-k, top-p, then a draw; or the first
    maximum.

    Args:
        logits_BV: float32.
        sampling: How to draw.
        seen_BV: True for ids that the penalty falls on.
        generator: Source of the draws where they are not given, on any device.
        draws_B: Uniform numbers in [0, 1).
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
    top, ids = logits_BV.topk(k, dim=-1)  # sorted, so that top-p is a running sum
    probabilities = top.softmax(-1)
    # The id that crosses top_p still counts.
    sums = probabilities.cumsum(-1)
    kept = (sums - probabilities < sampling.top_p) & (probabilities > 0)
    sums = (probabilities * kept).cumsum(-1)
    # The first id whose sum lies above the draw; torch.multinomial has one generator for all sequences.
    drawn = (sums <= draws_B[:, None] * sums[:, -1:]).sum(-1)
    drawn = torch.minimum(drawn, kept.sum(-1) - 1)  # rounding
    # Where the logits are not numbers nothing is kept; on a GPU an index of -1 would end the process.
    drawn = drawn.clamp_min(0)
    return ids.gather(1, drawn[:, None])[:, 0]
