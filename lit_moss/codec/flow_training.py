"""Training targets of the flow decoder: random draws, the network's prediction and the true value.

Conditional flow matching (`flow_matching`) with prompts (half of the items are given their first frames) and
dropped conditions (for a fifth of the items, for classifier-free guidance), as in CosyVoice 2
(arXiv:2412.10117).

Shapes: B batch, N codes, T frames (= 4 N), M mel bands, S size of a speaker vector.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lit_moss.codec import flow_matching
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_network import RATIO, FlowNetwork
from lit_moss.codec.stream_cache import length_mask
from lit_moss.codec.unet import Conditions


@dataclass(frozen=True)
class FlowBatch:
    """Codes with their mels.

    Args:
        codes_BN: Codes, int64 (B, N).
        lengths_B: Number of codes of each item, int64 (B,).
        mel_BMT: Mel (B, M, T), exactly 4 frames per code.
        speaker_BS: Speaker vectors (B, S).
    """

    codes_BN: Tensor
    lengths_B: Tensor
    mel_BMT: Tensor
    speaker_BS: Tensor

    def __post_init__(self) -> None:
        expected = RATIO * self.codes_BN.shape[1]
        if self.mel_BMT.shape[-1] != expected:
            raise ValueError(
                f"{self.mel_BMT.shape[-1]} mel frames for {self.codes_BN.shape[1]} codes, expected "
                f"{expected}: trim both"
            )


@dataclass(frozen=True)
class Draws:
    """All random values of one loss.

    Args:
        t_B11: Times (B, 1, 1), after the cosine mapping.
        z_BMT: Noise (B, M, T).
        keep_B: True for items that keep their conditions, bool (B,).
        prefix_B: Number of initial frames that are given as a prompt, int64 (B,).
    """

    t_B11: Tensor
    z_BMT: Tensor
    keep_B: Tensor
    prefix_B: Tensor


@dataclass(frozen=True)
class FlowPrediction:
    """Inputs of the losses: velocities, or mels if the network predicts mels.

    Args:
        predicted_BMT: Output of the network, float32.
        target_BMT: Velocity of the path, or the (normalised) mel.
        mask_B1T: 1 at real frames.
        mu_BMT: Output of the encoder, before conditions are dropped, float32.
        mel_BMT: Mel, normalised if the network's mels are.
        weight_B: Weight of each item's errors; None: 1.
    """

    predicted_BMT: Tensor
    target_BMT: Tensor
    mask_B1T: Tensor
    mu_BMT: Tensor
    mel_BMT: Tensor
    weight_B: Tensor | None = None

    def loss(self) -> Tensor:
        """Mean weighted squared error over real frames and bands; ()."""
        if self.weight_B is None:
            return flow_matching.loss(self.predicted_BMT, self.target_BMT, self.mask_B1T)
        return self.squared_errors().sum() / (self.mask_B1T.sum() * self.predicted_BMT.shape[1])

    def squared_errors(self) -> Tensor:
        """Sum of weighted squared errors over the real frames of each item, (B,)."""
        errors_B = flow_matching.squared_errors(self.predicted_BMT, self.target_BMT, self.mask_B1T)
        return errors_B if self.weight_B is None else errors_B * self.weight_B

    def prior_loss(self) -> Tensor:
        """Mean squared distance between the encoder's output and the mel; ()."""
        return flow_matching.loss(self.mu_BMT, self.mel_BMT, self.mask_B1T)

    def prior_errors(self) -> Tensor:
        """Sum of squared distances of encoder output and mel over the real frames of each item, (B,)."""
        return flow_matching.squared_errors(self.mu_BMT, self.mel_BMT, self.mask_B1T)


def draw(
    config: FlowConfig,
    mel_BMT: Tensor,
    frames_B: Tensor | Sequence[int],
    max_prefix: float = 0.3,
    prefixes: random.Random | None = None,
    generator: torch.Generator | None = None,
) -> Draws:
    """Draws the random values of a loss.

    Half of the items get a prompt: their first n frames, with n uniform from 0 to `max_prefix` times their
    length. The order of the draws is that of the released training code: prefixes from Python's generator,
    then times, noise and dropped conditions from torch's.

    Args:
        config: Configuration of the decoder.
        mel_BMT: Mel of the batch; gives shape, dtype and device.
        frames_B: Number of frames of each item; pass Python ints to avoid waiting for a GPU.
        max_prefix: Maximum length of a prompt as a fraction of the item.
        prefixes: Generator of the prompt lengths. Default: Python's global generator.
        generator: Generator of the other draws. Default: torch's global generator.
    """
    chance, prefix = prefixes or random, []
    for frames in frames_B.tolist() if isinstance(frames_B, Tensor) else frames_B:
        without = chance.random() < 0.5
        prefix.append(0 if without else chance.randint(0, int(max_prefix * frames)))
    # A generator only draws on its own device: one on the CPU works for every device.
    device = mel_BMT.device if generator is None else generator.device
    like = {"device": device, "dtype": mel_BMT.dtype, "generator": generator}
    t_B11 = flow_matching.cosine_time(torch.rand(len(mel_BMT), 1, 1, **like))
    z_BMT = torch.randn(mel_BMT.shape, **like)
    keep_B = torch.rand(len(mel_BMT), **like) > config.unconditioned_share
    prefix_B = torch.tensor(prefix, dtype=torch.long, device="cpu")
    drawn = (t_B11, z_BMT, keep_B, prefix_B)
    return Draws(*(x.to(mel_BMT.device, non_blocking=True) for x in drawn))


def velocities(
    network: FlowNetwork,
    batch: FlowBatch,
    draws: Draws,
    streaming: bool = False,
    most_weight: float = 1.0,
) -> FlowPrediction:
    """The network's prediction (velocity or mel) and the true value, at the drawn times.

    Args:
        network: The decoder.
        batch: Training batch.
        draws: Random values, as returned by `draw`.
        streaming: Use chunk-causal masks in the encoder and the velocity network.
        most_weight: Maximum weight of the error of a predicted mel, see `flow_matching.mel_weight`.
    """
    chunks = network.chunks() if streaming else None
    target_BMT, frames = network.normalised(batch.mel_BMT), batch.mel_BMT.shape[-1]
    mu_BMT = network.encode(batch.codes_BN, batch.lengths_B, chunks).transpose(1, 2)
    mask_B1T, seen = network.frame_masks(batch.lengths_B, frames, chunks)
    mask_B1T = mask_B1T.to(target_BMT.dtype)
    conditions = Conditions(
        mask_B1T,
        mu_BMT,
        network.project_speaker(batch.speaker_BS),
        target_BMT * length_mask(draws.prefix_B, frames)[:, None],
        seen,
    ).where(draws.keep_B.to(target_BMT.dtype))
    y_BMT, u_BMT = flow_matching.path(target_BMT, draws.z_BMT, draws.t_B11)
    t_B = draws.t_B11[:, 0, 0]
    predicted_BMT = network.decoder.estimator(y_BMT, t_B, conditions).float()
    if network.config.predict == "velocity":
        return FlowPrediction(predicted_BMT, u_BMT, mask_B1T, mu_BMT.float(), target_BMT)
    weight_B = flow_matching.mel_weight(t_B, most_weight)
    return FlowPrediction(predicted_BMT, target_BMT, mask_B1T, mu_BMT.float(), target_BMT, weight_B)


def prior_loss(network: FlowNetwork, batch: FlowBatch, streaming: bool = False) -> Tensor:
    """Mean squared distance of encoder output and mel, (), without running the velocity network.

    Args:
        network: The decoder.
        batch: Training batch.
        streaming: Use chunk-causal masks.
    """
    chunks = network.chunks() if streaming else None
    mu_BMT = network.encode(batch.codes_BN, batch.lengths_B, chunks).transpose(1, 2).float()
    mask_B1T, _ = network.frame_masks(batch.lengths_B, mu_BMT.shape[-1], chunks)
    return flow_matching.loss(mu_BMT, network.normalised(batch.mel_BMT), mask_B1T.to(mu_BMT.dtype))
