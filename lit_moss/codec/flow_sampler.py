"""Sampler of the flow decoder: from noise to mel, by Euler steps with guidance along the network's velocity,
or towards the mel that it predicts.

The equations are in `flow_matching`. Shapes: B batch, M mel bands, T frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.codec import flow_matching
from lit_moss.codec.stream_cache import StreamCache
from lit_moss.codec.unet import CausalUNet, Conditions

NOISE_FRAMES = 15_000


@lru_cache(maxsize=4)
def _noise_buffer(device: torch.device) -> Tensor:
    if device.type != "cpu":
        return _noise_buffer(torch.device("cpu")).to(device)
    generator = torch.Generator("cpu").manual_seed(0)  # the same numbers on every device
    shape = (1, rates.DECODER_MEL_BINS, NOISE_FRAMES)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


def fixed_noise(first: int, frames: int, device: torch.device | None = None) -> Tensor:
    """Initial noise (1, M, frames) for frames from `first` on, counted from the start of the prompt.

    It is the same for every call, so that a stream is consistent with a whole utterance, and repeats after
    15,000 frames (5 min). On devices other than the CPU all of it is kept (5 MB), so that a chunk copies
    nothing.
    """
    buffer, pieces = _noise_buffer(device or torch.device("cpu")), []
    while frames > 0:
        start = first % NOISE_FRAMES
        pieces.append(buffer[:, :, start : start + frames])
        first, frames = first + pieces[-1].shape[-1], frames - pieces[-1].shape[-1]
    return torch.cat(pieces, dim=-1) if pieces else buffer[:, :, :0]


@dataclass(frozen=True)
class Sampler:
    """Settings of the solver, see `FlowConfig`.

    Args:
        guidance: Weight of classifier-free guidance; 0 disables it.
        steps: Number of Euler steps; with 0 the encoder's output is the mel.
        start: Time of the first step.
        predict: Output of the network: `velocity` or `mel`.
    """

    guidance: float
    steps: int
    start: float = 0.0
    predict: Literal["velocity", "mel"] = "velocity"

    def solve(
        self,
        estimator: CausalUNet,
        noise_BMT: Tensor,
        conditions: Conditions,
        caches: Sequence[StreamCache] | None = None,
    ) -> Tensor:
        """Mel (B, M, T), normalised if the network's mels are.

        Conditioned and unconditioned items form one batch of the velocity network. Everything outside the
        network is float32: under autocast, a time in bfloat16 would rotate its embedding by 0.9 radians.

        Args:
            estimator: The velocity network.
            noise_BMT: Start of the path (B, M, T).
            conditions: Conditions of the B items.
            caches: State of a stream whose next chunk these frames are, one cache per step; None: whole
                utterances.
        """
        if not self.steps:
            return conditions.mu_BMT
        batch, guided = len(noise_BMT), self.guidance != 0.0
        all_conditions = conditions.with_unconditioned() if guided else conditions

        def predicted(x_BMT: Tensor, step: int, t: float) -> Tensor:
            x = torch.cat([x_BMT, x_BMT]) if guided else x_BMT
            cache = None if caches is None else caches[step]
            if cache is not None:
                cache.begin(x.shape[-1], x.device)
            v = estimator(x, x.new_full((len(x),), t), all_conditions, cache)
            # Guidance of mels equals guidance of their velocities, which are linear in the mels.
            return flow_matching.guided(v[:batch], v[batch:], self.guidance) if guided else v

        x_BMT = noise_BMT
        if self.start:
            t_111 = noise_BMT.new_full((1, 1, 1), self.start)
            x_BMT, _ = flow_matching.path(conditions.mu_BMT, noise_BMT, t_111)
        solver = flow_matching.euler if self.predict == "velocity" else flow_matching.euler_to_mel
        return solver(predicted, x_BMT, flow_matching.schedule(self.steps, self.start))
