"""Networks of the flow decoder, from codes to the conditions of the velocity network.

    codes -> embedding -> encoder (x4) -> mu ------.
    speaker vector -> projection -------------------+-> `Conditions` of the velocity network
    mel of the prompt, then zeros -----------------'

Parameter names are those of the released `flow.pt`.

Shapes: B batch, N codes, A codes of look-ahead, T frames (= 4 N), M mel bands (80), D encoder width, S size
of a speaker vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec.conformer import UpsampleConformerEncoder
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.stream_cache import Chunks, length_mask, seen_keys
from lit_moss.codec.unet import CausalUNet, Conditions

RATIO = rates.FRAMES_PER_CODE_DECODER
# Natural logarithms of magnitudes deviate by 1.5 to 2.5 in speech; the limit avoids dividing a silent band by
# 0.
LEAST_DEVIATION = 0.1


@dataclass(frozen=True)
class Prompt:
    """Voice prompt: a few seconds of speech to be continued in the same voice.

    Args:
        codes_N: Codes of the speech, int64 (N,).
        mel_MT: Mel of the speech, (80, 4 N).
        speaker_S: Speaker vector (S,), or None.
    """

    codes_N: Tensor
    mel_MT: Tensor
    speaker_S: Tensor | None = None

    def __post_init__(self) -> None:
        expected = (rates.DECODER_MEL_BINS, RATIO * len(self.codes_N))
        if tuple(self.mel_MT.shape) != expected:
            raise ValueError(
                f"the prompt's mel is {tuple(self.mel_MT.shape)} for {len(self.codes_N)} codes, "
                f"expected {expected}"
            )

    @classmethod
    def none(cls, speaker_S: Tensor | None = None) -> "Prompt":
        """An empty prompt, optionally with a speaker vector."""
        codes_N = torch.zeros(0, dtype=torch.long, device="cpu")
        return cls(codes_N, torch.zeros(rates.DECODER_MEL_BINS, 0, device="cpu"), speaker_S)


class CFM(nn.Module):
    """Holds the velocity network, under the name used in the released file."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = CausalUNet(
            config.channels, config.heads, config.head_width, config.blocks, config.mid_stages
        )


class Bands(nn.Module):
    """Normalises mel bands to mean 0 and standard deviation 1 over training clips: (x - mean) / deviation.

    The statistics are buffers, saved with the weights.
    """

    mean_M: Tensor
    deviation_M: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean_M", torch.zeros(rates.DECODER_MEL_BINS))
        self.register_buffer("deviation_M", torch.ones(rates.DECODER_MEL_BINS))

    def set(self, mean_M: Tensor, deviation_M: Tensor) -> None:
        """Sets the statistics; deviations below `LEAST_DEVIATION` are replaced by it."""
        self.mean_M.copy_(mean_M)
        self.deviation_M.copy_(deviation_M.clamp(min=LEAST_DEVIATION))

    def normalised(self, mel_MT: Tensor) -> Tensor:
        """Normalised mel (…, M, T), as the network uses it."""
        return (mel_MT - self.mean_M.to(mel_MT)[:, None]) / self.deviation_M.to(mel_MT)[:, None]

    def restored(self, x_MT: Tensor) -> Tensor:
        """The inverse of `normalised`."""
        return x_MT * self.deviation_M.to(x_MT)[:, None] + self.mean_M.to(x_MT)[:, None]


class FlowNetwork(nn.Module):
    """Encoder, speaker projection and velocity network of the flow decoder.

    Args:
        config: Sizes.
    """

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, rates.DECODER_MEL_BINS)
        self.encoder = UpsampleConformerEncoder(
            config.hidden, config.encoder_heads, config.encoder_inner, config.encoder_layers, config.dropout
        )
        self.encoder_proj = nn.Linear(config.hidden, rates.DECODER_MEL_BINS)
        self.decoder = CFM(config)
        # None for the released layout, whose state dict lacks these tensors.
        self.bands = Bands() if config.normalise == "band" else None

    def normalised(self, mel_MT: Tensor) -> Tensor:
        """Mel (…, M, T) as the network uses it, see `FlowConfig.normalise`."""
        return mel_MT if self.bands is None else self.bands.normalised(mel_MT)

    def restored(self, x_MT: Tensor) -> Tensor:
        """Converts the network's mel (…, M, T) back to natural logarithms."""
        return x_MT if self.bands is None else self.bands.restored(x_MT)

    @property
    def device(self) -> torch.device:
        """Device of the networks."""
        return self.input_embedding.weight.device

    def chunks(self, left_chunks: int | None = None, prompt_codes: int = 0) -> Chunks:
        """Streaming masks at code rate.

        Args:
            left_chunks: History in chunks; None: unlimited.
            prompt_codes: Number of initial codes that always stay visible.
        """
        return Chunks(self.config.chunk_codes, left_chunks, prompt_codes)

    def embed(self, codes_BN: Tensor, lengths_B: Tensor) -> Tensor:
        """Code embeddings (B, N, D), zero at padding."""
        mask_BN = length_mask(lengths_B, codes_BN.shape[1])
        return self.input_embedding(codes_BN.clamp(min=0)) * mask_BN[..., None]

    def encode(
        self,
        codes_BN: Tensor,
        lengths_B: Tensor,
        chunks: Chunks | None = None,
        ahead_BA: Tensor | None = None,
    ) -> Tensor:
        """Encoder output mu of whole utterances, (B, 4 N, M).

        Args:
            codes_BN: Codes, int64 (B, N).
            lengths_B: Number of codes of each item.
            chunks: Streaming masks, see `chunks`; None: full attention.
            ahead_BA: The next three codes (B, A); None: end of the utterance.
        """
        ahead_BAD = None
        if ahead_BA is not None:
            ahead_BAD = self.embed(ahead_BA, torch.full_like(lengths_B, ahead_BA.shape[1]))
        return self.encoder_proj(self.encoder(self.embed(codes_BN, lengths_B), lengths_B, chunks, ahead_BAD))

    def frame_masks(self, lengths_B: Tensor, frames: int, chunks: Chunks | None) -> tuple[Tensor, Tensor]:
        """Masks of real frames, bool (B, 1, T), and of the keys of each frame, bool (B, 1, T or 1, T)."""
        frames_B = RATIO * lengths_B
        seen = seen_keys(frames_B, frames, chunks and chunks.times(RATIO))
        return length_mask(frames_B, frames)[:, None], seen

    def conditions(
        self, mu_BMT: Tensor, lengths_B: Tensor, prompt: Prompt, chunks: Chunks | None
    ) -> Conditions:
        """Conditions of whole utterances that start with `prompt`, which is the same for all items."""
        mask_B1T, seen = self.frame_masks(lengths_B, mu_BMT.shape[-1], chunks)
        prompt_BMT = torch.zeros_like(mu_BMT)
        prompt_BMT[:, :, : prompt.mel_MT.shape[-1]] = self.normalised(prompt.mel_MT.to(mu_BMT))
        speaker_BM = self.speaker_of(prompt).expand(len(mu_BMT), -1)
        return Conditions(mask_B1T.to(mu_BMT), mu_BMT, speaker_BM, prompt_BMT, seen)

    # --- speakers -------------------------------------------------------------------------------------------

    def project_speaker(self, vector_BS: Tensor) -> Tensor:
        """Normalised and projected speaker vectors, (B, M). A zero vector gives the bias."""
        return self.spk_embed_affine_layer(nn.functional.normalize(vector_BS, dim=1, eps=1e-12))

    def speaker_of(self, prompt: Prompt) -> Tensor:
        """The prompt's projected speaker vector (1, M); that of a zero vector if it has none."""
        weight = self.spk_embed_affine_layer.weight
        vector_S = prompt.speaker_S
        if vector_S is None:
            return self.project_speaker(weight.new_zeros(1, self.config.speaker_dim))
        if fault := self.speaker_fault(vector_S):
            raise ValueError(fault)
        return self.project_speaker(vector_S[None].to(weight))

    def speaker_fault(self, vector_S: object) -> str | None:
        """Why this is not a valid speaker vector for this decoder; None if it is valid."""
        got = type(vector_S).__name__
        if isinstance(vector_S, Tensor):
            if vector_S.is_floating_point() and vector_S.shape == (self.config.speaker_dim,):
                return None
            got = f"{vector_S.dtype} of shape {tuple(vector_S.shape)}"
        return f"the speaker vector is {got}, this decoder was built for ({self.config.speaker_dim},) floats"
