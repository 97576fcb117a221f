"""The flow-matching decoder: codes -> 80-band mel spectrogram at 50 frames a second.

    codes -> embedding -> encoder (x4) -> mu -----.
    speaker vector -> projection ------------------+-> velocity network, 10 Euler steps from noise -> mel
    prompt's mel, then zeros ---------------------'

arXiv:2510.00499 section 2.2 (decoder of CosyVoice 2, arXiv:2412.10117, at 12.5 codes a second). Parameter
names are those of the released `flow.pt`.

Shapes: B batch, N codes, T frames (= 4 N), M mel bands (80), D encoder width, S width of speaker vectors.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lit_moss.audio import rates
from lit_moss.codec import flow_matching
from lit_moss.codec.conformer import LOOKAHEAD_CODES, UpsampleConformerEncoder
from lit_moss.codec.settings import check_settings
from lit_moss.codec.state_dicts import LoadReport, load_fitting, read_state_dict
from lit_moss.codec.stream_cache import StreamCache, length_mask, seen_keys
from lit_moss.codec.unet import CausalUNet
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.codec.flow_stream import FlowStream

RATIO = rates.FRAMES_PER_CODE_DECODER
NOISE_FRAMES = 15_000
# A stream's history: 10 s at 0.4 s a chunk.
HISTORY_CHUNKS = 25


@dataclass(frozen=True)
class FlowConfig:
    """Sizes and choices of the decoder. Defaults are the official size.

    Args:
        vocab_size: Rows of the code embedding; 20480 officially, of which 16384 are used.
        hidden: Width of encoder and code embedding.
        speaker_dim: Values of a speaker vector: 192 for CAM++, 256 for the embedded encoder.
        encoder_heads: Attention heads of the encoder.
        encoder_inner: Width of its feed-forward layers.
        encoder_layers: Layers at code rate; four more follow at frame rate.
        channels: Channels of the velocity network.
        heads: Its attention heads.
        head_width: Their width.
        blocks: Transformers a stage.
        mid_stages: Stages between the first and the last.
        chunk_codes: Codes of a chunk in streaming masks; 5 is 0.4 s.
        dropout: Of the encoder, in training.
        unconditioned_share: Share of items trained without condition, for guidance.
        guidance: Weight w of classifier-free guidance; 0 turns it off and halves the work.
        steps: Solver steps.
        start: Time at which the solver starts, on the way from noise to the encoder's output instead of at
            the noise: shallow sampling as in DiffSinger (arXiv:2105.02446). 0 is the released sampler; above
            0 the encoder must have learnt the mel (`FlowDecoder.prior_weight`).
    """

    vocab_size: int = 20480
    hidden: int = 512
    speaker_dim: int = 192
    encoder_heads: int = 8
    encoder_inner: int = 2048
    encoder_layers: int = 6
    channels: int = 256
    heads: int = 8
    head_width: int = 64
    blocks: int = 4
    mid_stages: int = 12
    chunk_codes: int = 5
    dropout: float = 0.1
    unconditioned_share: float = 0.2
    guidance: float = 0.7
    steps: int = 10
    start: float = 0.0

    def __post_init__(self) -> None:
        check_settings(self, at_least={"guidance": 0.0, "mid_stages": 0})
        for name in ("dropout", "unconditioned_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"{name} is {getattr(self, name)}, expected a share from 0 to 1")
        if not 0.0 <= self.start < 1.0:
            raise UserError(f"start is {self.start}, expected 0 or more and below 1")
        if self.hidden % self.encoder_heads or self.hidden % 2:
            raise UserError(
                f"hidden {self.hidden} is no multiple of encoder_heads {self.encoder_heads}, or odd: "
                "sines and cosines come in pairs"
            )

    @classmethod
    def from_official(cls, config: dict[str, Any]) -> "FlowConfig":
        """From the released decoder's nested configuration (`encoder`, `estimator`, `cfm`)."""
        encoder, unet, cfm = config["encoder"], config["estimator"], config["cfm"]
        if len(unet["channels"]) != 1:
            raise ValueError(f"estimator.channels is {unet['channels']}, only one resolution is supported")
        if (encoder["upsample_stride"], config["mel"]) != (RATIO, rates.DECODER_MEL_BINS):
            raise ValueError("expected upsample_stride 4 and 80 mel bands")
        return cls(
            vocab_size=config["vocab_size"], hidden=config["hidden"], speaker_dim=config["spk_embed_dim"],
            encoder_heads=encoder["attention_heads"], encoder_inner=encoder["linear_units"],
            encoder_layers=encoder["num_blocks"], channels=unet["channels"][0], heads=unet["num_heads"],
            head_width=unet["attention_head_dim"], blocks=unet["n_blocks"], mid_stages=unet["num_mid_blocks"],
            chunk_codes=encoder["static_chunk_size"], dropout=encoder["dropout_rate"],
            unconditioned_share=cfm["training_cfg_rate"], guidance=cfm["inference_cfg_rate"],
        )  # fmt: skip


@dataclass(frozen=True)
class Prompt:
    """Speech to continue in the voice of: a few seconds of it.

    Args:
        codes_N: Its codes, int64 (N,).
        mel_MT: Its mel, (80, 4 N).
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
        """No speech to continue, perhaps a speaker vector."""
        codes_N = torch.zeros(0, dtype=torch.long, device="cpu")
        return cls(codes_N, torch.zeros(rates.DECODER_MEL_BINS, 0, device="cpu"), speaker_S)


@dataclass(frozen=True)
class Draws:
    """All that is random about one loss.

    Args:
        t_B11: Times, after the cosine.
        z_BMT: Noise.
        keep_B: Which items keep their condition, bool.
        prefix_B: Frames of the target that are given as prompt, int64.
    """

    t_B11: Tensor
    z_BMT: Tensor
    keep_B: Tensor
    prefix_B: Tensor


@dataclass(frozen=True)
class Velocities:
    """What a loss is computed from.

    Args:
        found_BMT: The network's velocity, float32.
        true_BMT: The path's.
        mask_B1T: 1 at real frames.
        mu_BMT: The encoder's output, before conditions are dropped, float32.
    """

    found_BMT: Tensor
    true_BMT: Tensor
    mask_B1T: Tensor
    mu_BMT: Tensor


@lru_cache(maxsize=4)
def _noise_buffer(device: torch.device) -> Tensor:
    if device.type != "cpu":
        return _noise_buffer(torch.device("cpu")).to(device)
    generator = torch.Generator("cpu").manual_seed(0)  # the same numbers on every device
    shape = (1, rates.DECODER_MEL_BINS, NOISE_FRAMES)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32)


def fixed_noise(first: int, frames: int, device: torch.device | None = None) -> Tensor:
    """The sampler's starting noise for frames `first` on, counted from the prompt's first: (1, M, frames).

    The same for every call, so that a stream continues what it began. It repeats after 15,000 frames (5 min).
    A device other than the CPU keeps the whole of it (5 MB): a chunk then copies nothing there.
    """
    buffer, found = _noise_buffer(device or torch.device("cpu")), []
    while frames > 0:
        start = first % NOISE_FRAMES
        found.append(buffer[:, :, start : start + frames])
        first, frames = first + found[-1].shape[-1], frames - found[-1].shape[-1]
    return torch.cat(found, dim=-1) if found else buffer[:, :, :0]


class CFM(nn.Module):
    """Holds the velocity network under the released file's name."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.estimator = CausalUNet(
            config.channels, config.heads, config.head_width, config.blocks, config.mid_stages
        )


class Flow(nn.Module):
    """Codes -> mel."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.config = config
        self.input_embedding = nn.Embedding(config.vocab_size, config.hidden)
        self.spk_embed_affine_layer = nn.Linear(config.speaker_dim, rates.DECODER_MEL_BINS)
        self.encoder = UpsampleConformerEncoder(
            config.hidden, config.encoder_heads, config.encoder_inner, config.encoder_layers,
            config.chunk_codes, config.dropout,
        )  # fmt: skip
        self.encoder_proj = nn.Linear(config.hidden, rates.DECODER_MEL_BINS)
        self.decoder = CFM(config)

    # --- parts ----------------------------------------------------------------------------------------------

    def embed(self, codes_BN: Tensor, lengths_B: Tensor) -> Tensor:
        """Code embeddings, zero at padding: (B, N, D)."""
        mask_BN = length_mask(lengths_B, codes_BN.shape[1])
        return self.input_embedding(codes_BN.clamp(min=0)) * mask_BN[..., None]

    def speaker(self, vector_BS: Tensor) -> Tensor:
        """Speaker vectors, normalised and projected: (B, M). A zero vector stays zero: the bias."""
        return self.spk_embed_affine_layer(nn.functional.normalize(vector_BS, dim=1, eps=1e-12))

    def encode(
        self, codes_BN: Tensor, lengths_B: Tensor, streaming: bool = False, zero_padding: bool = False,
        ahead_BA: Tensor | None = None, left_chunks: int | None = None, kept_codes: int = 0,
    ) -> Tensor:  # fmt: skip
        """Codes -> mu (B, 4 N, M); see `UpsampleConformerEncoder.forward` for the options."""
        ahead = None
        if ahead_BA is not None:
            ahead = self.embed(ahead_BA, torch.full_like(lengths_B, ahead_BA.shape[1]))
        hidden_BTD = self.encoder(
            self.embed(codes_BN, lengths_B),
            lengths_B,
            streaming,
            ahead,
            zero_padding,
            left_chunks,
            kept_codes,
        )
        return self.encoder_proj(hidden_BTD)

    def seen(
        self, lengths_B: Tensor, frames: int, streaming: bool, left_chunks: int | None = None, kept: int = 0
    ) -> Tensor:
        """Frames that each frame of the velocity network sees: bool (B, 1, T or 1, T)."""
        chunk = self.config.chunk_codes * RATIO if streaming else None
        return seen_keys(lengths_B, frames, chunk, left_chunks, kept)

    # --- training -------------------------------------------------------------------------------------------

    def draw(
        self,
        target_BMT: Tensor,
        frames_B: Tensor | Sequence[int],
        max_prefix: float = 0.3,
        prefixes: random.Random | None = None,
        generator: torch.Generator | None = None,
    ) -> Draws:
        """The random part of a loss.

        Half of the items get a prompt: their first n frames, n uniform from 0 to `max_prefix` of them.
        Order of the draws as in the released training code: prefixes by Python's generator, then times,
        noise, dropped conditions by torch's; `prefixes` and `generator` stand in for the global ones.
        """
        chance, prefix = prefixes or random, []
        # Given as plain numbers, a GPU is not waited for.
        for frames in frames_B.tolist() if isinstance(frames_B, Tensor) else frames_B:
            none = chance.random() < 0.5
            prefix.append(0 if none else chance.randint(0, int(max_prefix * frames)))
        # A generator draws on its own device alone: one of the CPU serves every device.
        device = target_BMT.device if generator is None else generator.device
        like = {"device": device, "dtype": target_BMT.dtype, "generator": generator}
        t_B11 = flow_matching.cosine_time(torch.rand(len(target_BMT), 1, 1, **like))
        z_BMT = torch.randn(target_BMT.shape, **like)
        keep_B = torch.rand(len(target_BMT), **like) > self.config.unconditioned_share
        prefix_B = torch.tensor(prefix, dtype=torch.long, device="cpu")
        drawn = (t_B11, z_BMT, keep_B, prefix_B)
        return Draws(*(x.to(target_BMT.device, non_blocking=True) for x in drawn))

    def velocity(
        self, codes_BN: Tensor, lengths_B: Tensor, target_BMT: Tensor, speaker_BS: Tensor, draws: Draws,
        streaming: bool = False, zero_padding: bool = False,
    ) -> "Velocities":  # fmt: skip
        """The network's velocity and the true one.

        Args:
            codes_BN: Codes.
            lengths_B: Codes of each item.
            target_BMT: Mel of exactly 4 frames a code.
            speaker_BS: Speaker vectors.
            draws: See `draw`.
            streaming: Chunk-causal masks in encoder and velocity network.
            zero_padding: See `encode`.
        """
        frames = RATIO * codes_BN.shape[1]
        if target_BMT.shape[-1] != frames:
            raise ValueError(
                f"{target_BMT.shape[-1]} mel frames for {codes_BN.shape[1]} codes, expected {frames}: "
                "trim both"
            )
        mu_BMT = self.encode(codes_BN, lengths_B, streaming, zero_padding).transpose(1, 2)
        speaker_BM = self.speaker(speaker_BS)
        frames_B = RATIO * lengths_B
        mask_B1T = length_mask(frames_B, frames)[:, None].to(target_BMT.dtype)
        prompt_BMT = target_BMT * length_mask(draws.prefix_B, frames)[:, None]
        y_BMT, u_BMT = flow_matching.path(target_BMT, draws.z_BMT, draws.t_B11)
        keep_B = draws.keep_B.to(target_BMT.dtype)
        found_BMT = self.decoder.estimator(
            y_BMT, mask_B1T, mu_BMT * keep_B[:, None, None], draws.t_B11[:, 0, 0],
            speaker_BM * keep_B[:, None], prompt_BMT * keep_B[:, None, None],
            self.seen(frames_B, frames, streaming),
        )  # fmt: skip
        return Velocities(found_BMT.float(), u_BMT, mask_B1T, mu_BMT.float())

    def loss(
        self, codes_BN: Tensor, lengths_B: Tensor, target_BMT: Tensor, speaker_BS: Tensor, draws: Draws,
        streaming: bool = False, zero_padding: bool = False,
    ) -> Tensor:  # fmt: skip
        """Mean squared velocity error over real frames and bands: scalar. Arguments as in `velocity`."""
        found = self.velocity(codes_BN, lengths_B, target_BMT, speaker_BS, draws, streaming, zero_padding)
        return flow_matching.loss(found.found_BMT, found.true_BMT, found.mask_B1T)

    # --- sampling -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self, codes_BN: Tensor, lengths_B: Tensor | None = None, prompt: Prompt | None = None,
        streaming: bool = False, finalize: bool = True, left_chunks: int | None = None,
        noise: Tensor | None = None, guidance: float | None = None, steps: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Mel of whole utterances: (B, M, 4 N), zero behind an item's end.

        Args:
            codes_BN: Codes.
            lengths_B: Codes of each item, None if all are N.
            prompt: Speech to continue and a speaker vector, for all items.
            streaming: Chunk-causal masks: the numbers that `stream` gives.
            finalize: False takes the last three codes as look-ahead alone: (B, M, 4 (N - 3)).
            left_chunks: History of the streaming masks in chunks, None for all.
            noise: Starting noise (1, M, at least T with the prompt); None is the fixed one.
            guidance: None is the configured weight.
            steps: None is the configured number.
        """
        prompt = Prompt.none() if prompt is None else prompt
        device, batch = self.input_embedding.weight.device, len(codes_BN)
        if lengths_B is None:
            lengths_B = torch.full((batch,), codes_BN.shape[1], device=device)
        before = len(prompt.codes_N)
        codes_BN = torch.cat([prompt.codes_N.expand(batch, -1).to(codes_BN), codes_BN], dim=1).to(device)
        lengths_B = lengths_B.to(device) + before
        ahead_BA = None
        if not finalize:
            if batch > 1 or codes_BN.shape[1] - before <= LOOKAHEAD_CODES:
                raise ValueError("finalize=False takes one item of more than three codes")
            codes_BN, ahead_BA = codes_BN[:, :-LOOKAHEAD_CODES], codes_BN[:, -LOOKAHEAD_CODES:]
            lengths_B = lengths_B - LOOKAHEAD_CODES
        mu_BTM = self.encode(codes_BN, lengths_B, streaming, True, ahead_BA, left_chunks, before)
        mu_BMT = mu_BTM.float().transpose(1, 2)
        frames = mu_BMT.shape[-1]
        frames_B = RATIO * lengths_B
        prompt_BMT = torch.zeros_like(mu_BMT)
        prompt_BMT[:, :, : RATIO * before] = prompt.mel_MT.to(mu_BMT)
        seen = self.seen(frames_B, frames, streaming, left_chunks, RATIO * before)
        x = fixed_noise(0, frames, device) if noise is None else noise[:, :, :frames]
        mask_B1T = length_mask(frames_B, frames)[:, None].to(mu_BMT)
        speaker_BM = self.speaker_of(prompt).expand(batch, -1)
        mel_BMT = self.solve(
            x.to(mu_BMT).expand(batch, -1, -1), mask_B1T, mu_BMT, speaker_BM, prompt_BMT, seen,
            self.config.guidance if guidance is None else guidance, steps or self.config.steps, None,
        )  # fmt: skip
        return (mel_BMT * mask_B1T)[:, :, RATIO * before :]

    def stream(self, prompt: Prompt | None = None, left_chunks: int | None = HISTORY_CHUNKS) -> "FlowStream":
        """A stream of one utterance; see `FlowStream`."""
        from lit_moss.codec.flow_stream import FlowStream

        return FlowStream(self, Prompt.none() if prompt is None else prompt, left_chunks)

    def speaker_of(self, prompt: Prompt) -> Tensor:
        """The prompt's speaker vector, projected; that of a zero vector if it has none: (1, M)."""
        weight = self.spk_embed_affine_layer.weight
        vector = prompt.speaker_S
        if vector is None:
            return self.speaker(weight.new_zeros(1, self.config.speaker_dim))
        if fault := self.speaker_fault(vector):
            raise ValueError(fault)
        return self.speaker(vector[None].to(weight))

    def speaker_fault(self, vector_S: Any) -> str | None:
        """Why this is no speaker vector for this decoder; None if it is one."""
        got = type(vector_S).__name__
        if isinstance(vector_S, Tensor):
            if vector_S.is_floating_point() and vector_S.shape == (self.config.speaker_dim,):
                return None
            got = f"{vector_S.dtype} of shape {tuple(vector_S.shape)}"
        return f"the speaker vector is {got}, this decoder was built for ({self.config.speaker_dim},) floats"

    def solve(
        self, x_BMT: Tensor, mask_B1T: Tensor, mu_BMT: Tensor, speaker_BM: Tensor, prompt_BMT: Tensor,
        seen: Tensor | None, guidance: float, steps: int, caches: list[StreamCache] | None,
    ) -> Tensor:  # fmt: skip
        """Euler steps with guidance, conditioned and unconditioned items as one batch: mel (B, M, T).

        `caches` are a stream's, one a step. Everything but the network's insides is float32: under autocast
        a time of bfloat16 would turn its embedding by 0.9 radians.
        """
        batch, double = len(x_BMT), guidance != 0.0

        def twice(x: Tensor, zero: bool) -> Tensor:
            return torch.cat([x, torch.zeros_like(x) if zero else x]) if double else x

        mask, mu, speaker, prompt = (
            twice(mask_B1T, False), twice(mu_BMT, True), twice(speaker_BM, True), twice(prompt_BMT, True)
        )  # fmt: skip
        if seen is not None and len(seen) > 1:
            seen = twice(seen, False)

        def velocity(x: Tensor, step: int, t: float) -> Tensor:
            x = twice(x, False)
            cache = None if caches is None else caches[step]
            if cache is not None:
                cache.begin(x.shape[-1], x.device)
            v = self.decoder.estimator(
                x, mask, mu, x.new_full((len(x),), t), speaker, prompt,
                seen if cache is None else cache.seen, cache,
            )  # fmt: skip
            return flow_matching.guided(v[:batch], v[batch:], guidance) if double else v

        start = self.config.start
        if start:
            x_BMT, _ = flow_matching.path(mu_BMT, x_BMT, x_BMT.new_full((1, 1, 1), start))
        return flow_matching.euler(velocity, x_BMT, flow_matching.schedule(steps, start))

    # --- files ----------------------------------------------------------------------------------------------

    def load_official(self, path: str | Path) -> LoadReport:
        """Weights of a released `flow.pt` (ours or CosyVoice 2's), skipping tensors of another shape.

        Raises:
            UserError: if it cannot be read as a plain state dict, or nothing of it fits.
        """
        return load_fitting(self, read_state_dict(path), str(path))

    def to_official(self) -> dict[str, Any]:
        """Our configuration as plain types."""
        return asdict(self.config)
