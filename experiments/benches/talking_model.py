"""Models for the server benchmarks: opened by name, or with random weights in several sizes."""

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, Qwen3Config

from lit_moss.audio import rates
from lit_moss.audio.streams import Stream
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.hift import HiFT, HiFTConfig
from lit_moss.codec.vocoder import HiFTVocoder
from lit_moss.devices import moved
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, resolve_backbone, row_format
from lit_moss.serve.model import SpeechModel

_TINY_ENCODER = EncoderConfig(
    num_mel_bins=80, d_model=64, encoder_attention_heads=2, encoder_ffn_dim=128, quantize_position=2,
    quantize_vocab_size=64,
)  # fmt: skip
_TINY_FLOW = FlowConfig(
    vocab_size=64, hidden=32, speaker_dim=8, encoder_heads=2, encoder_inner=64, encoder_layers=2, channels=16,
    heads=2, head_width=16, blocks=1, mid_stages=2, steps=2,
)  # fmt: skip
# The width of Whisper-tiny, and the flow decoder of conf/flow_decoder.yaml.
_SMALL_ENCODER = EncoderConfig(
    num_mel_bins=80, d_model=384, encoder_attention_heads=6, encoder_ffn_dim=1536, quantize_position=2,
    quantize_vocab_size=1024,
)  # fmt: skip
_SMALL_FLOW = FlowConfig(
    vocab_size=1024, hidden=256, speaker_dim=256, encoder_heads=4, encoder_inner=1024, encoder_layers=3,
    channels=128, heads=2, head_width=64, blocks=1, mid_stages=6, start=0.8, steps=6, dropout=0.0,
)  # fmt: skip


def random_model(size: str, device: str, vocoder: str = "griffin-lim") -> SpeechModel:
    """A model for measuring times, whose output has no meaning.

    Args:
        size: `tiny`, `small` (SmolLM2-135M with tails of four layers, an encoder of Whisper-tiny's width, the
            flow decoder of conf/flow_decoder.yaml), or `official` (the released shapes, bfloat16, for a GPU).
        device: `cpu` or `cuda`.
        vocoder: `griffin-lim`, or `hift` with random weights.
    """
    folder = resolve_backbone("embedded:smollm2-135m")
    text_tokenizer = load_text_tokenizer(folder)
    torch.manual_seed(0)
    with torch.device(device):
        if size == "official":
            lm = official_lm(text_tokenizer)
            encoder, flow, hift = EncoderConfig(), FlowConfig(speaker_dim=192), HiFTConfig()
        elif size == "tiny":
            form = row_format(text_tokenizer, 128, eosp=_TINY_ENCODER.quantize_vocab_size)
            config = LlamaConfig(
                hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
                num_key_value_heads=2, vocab_size=form.text_vocab_size, initializer_range=0.2,
            )  # fmt: skip
            lm = SplitLM.from_backbone(config, 1, 128, row_format=form)
            encoder, flow, hift = _TINY_ENCODER, _TINY_FLOW, HiFTConfig(32, 24)
        else:
            codes = _SMALL_ENCODER.quantize_vocab_size
            form = row_format(text_tokenizer, 1152, eosp=codes)
            lm = SplitLM.from_backbone(folder, 4, 1152, row_format=form)
            encoder, flow, hift = _SMALL_ENCODER, _SMALL_FLOW, HiFTConfig(128, 128)
        tokenizer = SpeechTokenizer(CausalEncoder(encoder))
        made = HiFTVocoder(HiFT(hift)) if vocoder == "hift" else None
        codec = Codec(tokenizer, Flow(flow), made, voice=torch.zeros(flow.speaker_dim))
    with torch.no_grad():  # so that replies have full length
        for branch in lm.branches:
            ends = [*lm.stop_ids, lm.format.sosp_token_id]
            ends = ends if "text" in branch.predicts else [lm.format.eosp_row - branch.first_row]
            branch.head.weight[ends] = 0.0
    lm = moved(lm, device).eval()
    return SpeechModel(size, lm, text_tokenizer, tokenizer, moved(codec, device))


def official_lm(text_tokenizer: Any, empty: bool = False) -> SplitLM:
    """Random weights in the released shape: Qwen3-8B with a speech tail of four layers, bfloat16.

    Args:
        text_tokenizer: Text tokenizer that defines the ids of the row format.
        empty: Create the model on the meta device, without weights.
    """
    config = Qwen3Config(
        hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
        num_key_value_heads=8, head_dim=128, vocab_size=151_680, max_position_embeddings=40960,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6}, tie_word_embeddings=False,
    )  # fmt: skip
    form = row_format(text_tokenizer, 16512, 151_680, eosp=16384)
    return SplitLM.from_backbone(config, 4, 16512, dtype=torch.bfloat16, row_format=form, empty=empty)


def question(seconds: float, seed: int, rate_hz: int = rates.DECODER_RATE_HZ) -> Tensor:
    """A voice-like tone (n,) with a slow tremolo, different for each seed."""
    t = torch.arange(round(seconds * rate_hz)) / rate_hz
    pitch_hz = 100 + 13 * (seed % 11)
    tones = [0.2 / k * torch.sin(2 * torch.pi * k * pitch_hz * t) for k in range(1, 8)]
    return torch.stack(tones).sum(0) * (0.6 + 0.4 * torch.sin(2 * torch.pi * (3 + seed % 3) * t))


@dataclass
class TimedVocoder:
    """A vocoder that records the computing time of each stream until its first samples.

    Args:
        inner: Vocoder that is measured.
        first_sec: Seconds for each stream that has returned samples.
    """

    inner: Any
    first_sec: list[float] = field(default_factory=list)

    def __call__(self, mel_BMT: Tensor) -> Tensor:
        return self.inner(mel_BMT)

    def to(self, device: str | torch.device) -> "TimedVocoder":
        """Moves the vocoder to a device; returns self."""
        self.inner.to(device)
        return self

    def stream(self) -> Stream[Tensor, Tensor]:
        """Starts a stream of the vocoder whose time is recorded."""
        return _TimedStream(self.inner.stream(), self.first_sec)


class _TimedStream:
    def __init__(self, inner: Stream[Tensor, Tensor], first_sec: list[float]) -> None:
        self._inner, self._first_sec, self._sec = inner, first_sec, 0.0

    def push(self, piece: Tensor) -> Tensor:
        began = time.monotonic()
        samples = self._inner.push(piece)
        self._sec += time.monotonic() - began
        if samples.shape[-1] and self._sec > 0:
            self._first_sec.append(self._sec)
            self._sec = float("-inf")
        return samples

    def flush(self) -> Tensor:
        return self._inner.flush()
