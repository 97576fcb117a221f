"""Sizes and sampler settings of the flow decoder, given explicitly or derived from a `flow.pt`."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from lit_moss.codec.settings import check_settings
from lit_moss.errors import UserError

# Name of the band means among the tensors of a decoder with `normalise: band`.
BAND_MEAN = "bands.mean_M"


@dataclass(frozen=True)
class FlowConfig:
    """Sizes and settings of the flow decoder. Defaults: the official sizes.

    Args:
        vocab_size: Number of rows of the code embedding; officially 20480, of which 16384 are used.
        hidden: Width of the encoder and the code embedding.
        speaker_dim: Size of a speaker vector: 192 for CAM++, 256 for the embedded encoder.
        encoder_heads: Number of attention heads of the encoder.
        encoder_inner: Width of the encoder's feed-forward layers.
        encoder_layers: Number of encoder layers at code rate; four more follow at frame rate.
        channels: Number of channels of the velocity network.
        heads: Number of attention heads of the velocity network.
        head_width: Width of an attention head of the velocity network.
        blocks: Number of transformer blocks per stage of the velocity network.
        mid_stages: Number of stages between the first and the last.
        chunk_codes: Number of codes of a chunk in streaming masks; 5 is 0.4 s.
        dropout: Dropout of the encoder in training.
        unconditioned_share: Fraction of items trained without conditions, for classifier-free guidance.
        guidance: Weight w of classifier-free guidance; 0 disables it and halves the computation.
        steps: Number of solver steps. 0: the velocity network is not used, and the encoder's output is the
            mel, which it must have been trained to predict (`FlowDecoder.prior_weight`); it uses neither
            speaker nor prompt, so this is for a single voice.
        start: Time at which the solver starts, between noise (0) and the encoder's output: shallow sampling
            as in DiffSinger (arXiv:2105.02446). The released sampler has 0; above 0 the encoder must have
            been trained to predict the mel (`FlowDecoder.prior_weight`).
        predict: Output of the network: `velocity`, as in the released decoder, or `mel`, the clean mel x1,
            whose velocity is (x1 - x) / (1 - t). A velocity target contains the noise of all 80 bands, so it
            needs more `channels`. With `mel` the last step returns the predicted mel whatever `start` is, so
            an undertrained network may lose words that the encoder output has (docs/levers.md).
        normalise: Mels inside the network: `none`, natural logarithms around -6 as in the released decoder,
            or `band`, each band with mean 0 and standard deviation 1 over training clips. Prompts and the
            decoder's output are not normalised in either case.
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
    predict: Literal["velocity", "mel"] = "velocity"
    normalise: Literal["none", "band"] = "none"

    def __post_init__(self) -> None:
        check_settings(self, at_least={"guidance": 0.0, "mid_stages": 0, "steps": 0})
        for name, share in (("dropout", self.dropout), ("unconditioned_share", self.unconditioned_share)):
            if not 0.0 <= share <= 1.0:
                raise UserError(f"{name} is {share}, expected a share from 0 to 1")
        if not 0.0 <= self.start < 1.0:
            raise UserError(f"start is {self.start}, expected 0 or more and below 1")
        if self.hidden % self.encoder_heads or self.hidden % 2:
            raise UserError(
                f"hidden is {self.hidden}, expected an even multiple of encoder_heads, {self.encoder_heads} "
                "(sines and cosines come in pairs)"
            )

    def sampling(self, changes: Mapping[str, Any]) -> "FlowConfig":
        """These settings with some of the sampler's settings changed.

        Raises:
            UserError: if `steps` selects the velocity network of a decoder of which only the encoder was
                trained, or the encoder alone of a decoder that samples from noise.
        """
        changed = replace(self, **changes)
        if changed.steps and not self.steps:
            raise UserError(
                f"steps is {changed.steps}, and this decoder was trained with steps 0, its encoder alone: "
                "leave steps out"
            )
        if self.steps and not changed.steps and not self.start:
            raise UserError(
                "steps is 0, and this decoder samples from noise, with start 0: its encoder's output need "
                "not be a mel; give 1 step or more, or leave steps out"
            )
        return changed

    def sizes_in_shapes(self) -> dict[str, int | str]:
        """The sizes that names and shapes of tensors determine; of the heads, only the total width."""
        return {
            "vocab_size": self.vocab_size,
            "hidden": self.hidden,
            "speaker_dim": self.speaker_dim,
            "encoder_heads": self.encoder_heads,
            "encoder_inner": self.encoder_inner,
            "encoder_layers": self.encoder_layers,
            "channels": self.channels,
            "blocks": self.blocks,
            "mid_stages": self.mid_stages,
            "heads * head_width": self.heads * self.head_width,
            "normalise": self.normalise,
        }


def sizes_of_tensors(tensors: Mapping[str, Tensor]) -> FlowConfig:
    """Sizes of a `flow.pt`, from its shapes. The velocity network's heads are assumed to be 64 wide, as
    officially, or a single head if that is impossible. Band statistics among the tensors mean `normalise:
    band`.

    Raises:
        UserError: if the tensors are not those of a flow decoder.
    """
    unet = "decoder.estimator."

    def count(prefix: str) -> int:
        depth = prefix.count(".")
        return len({name.split(".")[depth] for name in tensors if name.startswith(prefix)})

    try:
        heads, head_width = tensors["encoder.encoders.0.self_attn.pos_bias_u"].shape
        inner = tensors[unet + "down_blocks.0.1.0.attn1.to_q.weight"].shape[0]
        return FlowConfig(
            vocab_size=tensors["input_embedding.weight"].shape[0],
            hidden=heads * head_width,
            speaker_dim=tensors["spk_embed_affine_layer.weight"].shape[1],
            encoder_heads=heads,
            encoder_inner=tensors["encoder.encoders.0.feed_forward.w_1.weight"].shape[0],
            encoder_layers=count("encoder.encoders."),
            channels=tensors[unet + "final_proj.weight"].shape[1],
            heads=1 if inner % 64 else inner // 64,
            head_width=inner if inner % 64 else 64,
            blocks=count(unet + "down_blocks.0.1."),
            mid_stages=count(unet + "mid_blocks."),
            normalise="band" if BAND_MEAN in tensors else "none",
        )
    except KeyError as error:
        raise UserError(f"no flow decoder: it holds no tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"no flow decoder: a tensor has another number of axes ({error})") from error
