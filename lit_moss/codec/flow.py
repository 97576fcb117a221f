"""The flow-matching decoder: codes -> 80-band mel spectrogram at 50 frames a second.

    codes -> embedding -> encoder (x4) -> mu -----.
    speaker vector -> projection ------------------+-> velocity network, 10 Euler steps from noise -> mel
    prompt's mel, then zeros ---------------------'

arXiv:2510.00499, section 2.2 (the decoder of CosyVoice 2, arXiv:2412.10117, at 12.5 codes a second). The
networks are in `flow_network`, the solver is in `flow_sampler`, the training target in `flow_training`.

Shapes: B batch, N codes, T frames (= 4 N), M mel bands (80).
"""

from pathlib import Path

import torch
from torch import Tensor

from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_network import RATIO, FlowNetwork, Prompt
from lit_moss.codec.flow_sampler import Sampler, fixed_noise
from lit_moss.codec.flow_stream import HISTORY_CHUNKS, FlowStream
from lit_moss.codec.state_dicts import LoadReport, load_fitting, read_state_dict

__all__ = ["HISTORY_CHUNKS", "Flow", "FlowConfig", "Prompt"]


class Flow(FlowNetwork):
    """Decodes codes to mels, as whole utterances or as a stream.

    Args:
        config: Sizes and sampler settings. To change sampler settings, assign another `config`.
    """

    @property
    def sampler(self) -> Sampler:
        """The solver with the configured settings."""
        config = self.config
        return Sampler(config.guidance, config.steps, config.start, config.predict)

    @torch.no_grad()
    def sample(
        self,
        codes_BN: Tensor,
        lengths_B: Tensor | None = None,
        prompt: Prompt | None = None,
        streaming: bool = False,
        left_chunks: int | None = None,
    ) -> Tensor:
        """Mel of whole utterances, (B, M, 4 N), zero after the end of an item.

        Args:
            codes_BN: Codes, int64 (B, N).
            lengths_B: Number of codes of each item; None: all have N.
            prompt: Speech to continue and its speaker vector, for all items.
            streaming: Use chunk-causal masks, with the same results as `stream`.
            left_chunks: History of the chunk-causal masks in chunks; None: unlimited.
        """
        prompt = Prompt.none() if prompt is None else prompt
        batch, before = len(codes_BN), len(prompt.codes_N)
        if lengths_B is None:
            lengths_B = torch.full((batch,), codes_BN.shape[1], device=self.device)
        codes_BN = torch.cat([prompt.codes_N.expand(batch, -1).to(codes_BN), codes_BN], dim=1).to(self.device)
        lengths_B = lengths_B.to(self.device) + before
        chunks = self.chunks(left_chunks, before) if streaming else None
        mu_BMT = self.encode(codes_BN, lengths_B, chunks).float().transpose(1, 2)
        conditions = self.conditions(mu_BMT, lengths_B, prompt, chunks)
        noise_BMT = fixed_noise(0, mu_BMT.shape[-1], self.device).to(mu_BMT).expand(batch, -1, -1)
        mel_BMT = self.sampler.solve(self.decoder.estimator, noise_BMT, conditions)
        return (self.restored(mel_BMT) * conditions.mask_B1T)[:, :, RATIO * before :]

    def stream(self, prompt: Prompt | None = None, left_chunks: int | None = HISTORY_CHUNKS) -> FlowStream:
        """A stream for one utterance; see `FlowStream`."""
        return FlowStream(self, self.sampler, Prompt.none() if prompt is None else prompt, left_chunks)

    def load_official(self, path: str | Path) -> LoadReport:
        """Loads a released `flow.pt` (MOSS-Speech's or CosyVoice 2's); skips tensors with other shapes.

        Raises:
            UserError: if the file is not a plain state dict, or none of its tensors fits.
        """
        return load_fitting(self, read_state_dict(path), str(path))
