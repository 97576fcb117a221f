"""Speech in, codes out, speech back: tokenizer, flow, vocoder and speaker vector as one.

codec = Codec.from_pretrained(folder)
codes = codec.encode(wave, sample_rate_hz)
wave = codec.decode(codes, prompt=codec.prompt(other_wave, sample_rate_hz))          # 24 kHz
player = codec.stream(prompt); player.push(codes); player.flush()                    # as codes come
"""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_moss.assets import resolve
from lit_moss.audio import rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.flow import HISTORY_CHUNKS, Flow, FlowConfig, Prompt
from lit_moss.codec.hift import HiFT, HiFTConfig
from lit_moss.codec.settings import read_settings
from lit_moss.codec.speaker import CampPlus, SpeakerEncoder, VoiceEncoder, open_speaker
from lit_moss.codec.state_dicts import load_fitting, read_state_dict
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder, Vocoder
from lit_moss.errors import UserError

# 60 s: full masks over more take memory that grows with the square, so longer ones are decoded as a stream.
LONGEST_AT_ONCE = 750


class Codec:
    """The whole codec.

    Args:
        tokenizer: Wave -> codes; None for a codec that only decodes.
        flow: Codes -> mel.
        vocoder: Mel -> wave.
        speaker: Wave -> speaker vector, None for none.
        voice: Speaker vector (S,) of what is made without a prompt; None takes zeros, which a trained flow
            has not seen.
    """

    def __init__(
        self,
        tokenizer: SpeechTokenizer | None,
        flow: Flow,
        vocoder: Vocoder | None = None,
        speaker: SpeakerEncoder | None = None,
        voice: Tensor | None = None,
    ) -> None:
        self.tokenizer, self.flow = tokenizer, flow.eval()
        self.vocoder: Vocoder = vocoder or GriffinLim()
        if speaker is not None and speaker.dim != flow.config.speaker_dim:
            raise UserError(
                f"the speaker encoder gives {speaker.dim} values, the flow was built for "
                f"{flow.config.speaker_dim}: give the encoder it was trained with"
            )
        if voice is not None and (fault := flow.speaker_fault(voice)):
            raise UserError(f"voice: {fault}")
        self.speaker, self.voice = speaker, voice

    @classmethod
    def from_pretrained(cls, folder: str | Path, log_mel: str | None = None) -> "Codec":
        """Codec of a folder in the official layout.

        `model.safetensors` with `config.json` (tokenizer), `flow/flow.pt`, and, where they are there,
        `flow/hift.pt` (else Griffin-Lim), `flow/campplus.onnx` or the encoder that `flow/config.json` names.
        Sizes come from the tensors' shapes, and from `flow/config.json` where ours wrote it.

        Args:
            folder: See above.
            log_mel: Features of the tokenizer, see `SpeechTokenizer.from_pretrained`.

        Raises:
            UserError: if a part is missing, damaged (numbers that are not finite included), or is more than
                plain tensors.
        """
        path = resolve(str(folder))
        if not (path / "flow" / "flow.pt").is_file():
            raise UserError(
                f"{folder} has no flow/flow.pt: expected a codec in the official layout (model.safetensors, "
                "config.json, flow/flow.pt, flow/hift.pt)"
            )
        tokenizer = None
        if (path / "model.safetensors").is_file():
            tokenizer = SpeechTokenizer.from_pretrained(path, log_mel=log_mel)
        tensors = read_state_dict(path / "flow" / "flow.pt")
        written = path / "flow" / "config.json"
        config = read_settings(written)
        sizes = flow_sizes(tensors)
        if "flow" in config:
            sizes = _written_sizes(config["flow"], sizes, written)
        flow = Flow(sizes)
        report = load_fitting(flow, tensors, str(path / "flow" / "flow.pt"))
        if report.kept or report.reshaped:
            raise UserError(f"{path / 'flow' / 'flow.pt'} does not fit its own sizes: {report}")
        vocoder: Vocoder = GriffinLim()
        if (path / "flow" / "hift.pt").is_file():
            vocoder = HiFTVocoder(load_hift(path / "flow" / "hift.pt"))
        speaker_file = path / "flow" / "campplus.onnx"
        speaker = open_speaker(str(speaker_file) if speaker_file.is_file() else config.get("speaker"))
        voice = _voice(config.get("voice"), flow.config.speaker_dim, written)
        return cls(tokenizer, flow, vocoder, speaker, voice)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the official layout, and `flow/config.json` with what shapes do not tell."""
        folder = Path(folder)
        (folder / "flow").mkdir(parents=True, exist_ok=True)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        _save(self.flow, folder / "flow" / "flow.pt")
        if isinstance(self.vocoder, HiFTVocoder):
            _save(self.vocoder.hift, folder / "flow" / "hift.pt")
        if isinstance(self.speaker, CampPlus):
            shutil.copyfile(self.speaker.path, folder / "flow" / "campplus.onnx")
        speaker = self.speaker.name if isinstance(self.speaker, VoiceEncoder) else None
        voice = None if self.voice is None else self.voice.tolist()
        config = {"flow": self.flow.to_official(), "speaker": speaker, "voice": voice}
        (folder / "flow" / "config.json").write_text(json.dumps(config, indent=2) + "\n")

    def to(self, device: str | torch.device) -> "Codec":
        """Moves the networks; returns self."""
        if self.tokenizer is not None:
            self.tokenizer.to(device)
        self.flow.to(device)
        self.vocoder.to(device)
        return self

    @property
    def codes(self) -> int:
        """Number of codes: the tokenizer's, else the rows of the flow's embedding (a few more)."""
        if self.tokenizer is not None:
            return min(self.tokenizer.config.quantize_vocab_size, self.flow.config.vocab_size)
        return self.flow.config.vocab_size

    # --- wave -> codes --------------------------------------------------------------------------------------

    def encode(self, wave: Tensor | Sequence[Tensor], sample_rate_hz: int) -> Tensor | list[Tensor]:
        """See `SpeechTokenizer.encode`."""
        return self._needed().encode(wave, sample_rate_hz)

    def _needed(self) -> SpeechTokenizer:
        if self.tokenizer is None:
            raise UserError("this codec has no tokenizer: its folder holds no model.safetensors")
        return self.tokenizer

    @torch.no_grad()
    def prompt(self, wave_T: Tensor, sample_rate_hz: int, max_sec: float = 10.0) -> Prompt:
        """Prompt of a voice: its codes, its mel, its speaker vector; at most `max_sec` of it.

        Codes and mel are cut to whole chunks (0.4 s), so that the first sound after a prompt comes as soon as
        without one; the speaker vector is of all.

        Raises:
            UserError: if there is less than 0.1 s of it.
        """
        wave_T = wave_T[: round(max_sec * sample_rate_hz)]
        if len(wave_T) < 0.1 * sample_rate_hz:
            raise UserError(
                f"a prompt of {len(wave_T) / sample_rate_hz:.2f} s, expected some seconds of speech"
            )
        wave24_T = resample(wave_T.float(), sample_rate_hz, rates.DECODER_RATE_HZ)
        codes_N = self._needed().encode(wave_T, sample_rate_hz)
        codes_N, mel_MT = trimmed(codes_N, decoder_mel(wave24_T[None])[0])
        codes = len(codes_N) - len(codes_N) % self.flow.config.chunk_codes
        vector = None
        if self.speaker is not None:
            vector = self.speaker(resample(wave24_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ))
        return Prompt(codes_N[:codes], mel_MT[:, : codes * rates.FRAMES_PER_CODE_DECODER], vector)

    # --- codes -> wave --------------------------------------------------------------------------------------

    @torch.no_grad()
    def decode(
        self,
        codes: Tensor | Sequence[int],
        prompt: Prompt | None = None,
        streaming: bool = False,
        left_chunks: int | None = HISTORY_CHUNKS,
    ) -> Tensor:
        """Codes -> speech.

        Args:
            codes: int64 (n,).
            prompt: Voice to speak in, see `prompt`; None takes the training's mean voice, if it is known.
            streaming: Chunk-causal masks: the mel of `stream`. Without, each frame sees the whole.
            left_chunks: History of these masks in chunks of 0.4 s, None for all, as in `stream`.

        Returns:
            float32 (1920 n,) at 24 kHz. More than 60 s are decoded as a stream, in bounded memory.

        Raises:
            ValueError: on codes that are none.
        """
        codes_N = self._checked(codes)
        if not len(codes_N):
            return torch.zeros(0, device="cpu")
        if len(codes_N) > LONGEST_AT_ONCE:
            player = self.stream(prompt, left_chunks)
            pieces = [player.push(piece) for piece in codes_N.split(100)]
            return torch.cat([*pieces, player.flush()])
        mel_BMT = self.flow.sample(
            codes_N[None], prompt=prompt or self.no_prompt(), streaming=streaming, left_chunks=left_chunks
        )
        return audible(self.vocoder(mel_BMT)[0])

    def stream(self, prompt: Prompt | None = None, left_chunks: int | None = HISTORY_CHUNKS) -> "Player":
        """A stream of one utterance; `left_chunks` bounds its history, see `FlowStream`."""
        return Player(self, prompt or self.no_prompt(), left_chunks)

    def no_prompt(self) -> Prompt:
        """Nothing to continue, in the mean voice of the training."""
        return Prompt.none(self.voice)

    def _checked(self, codes: Tensor | Sequence[int]) -> Tensor:
        codes_N = codes if isinstance(codes, Tensor) else torch.as_tensor(codes, device="cpu")
        if codes_N.ndim != 1 or (len(codes_N) and codes_N.dtype.is_floating_point):
            raise ValueError(
                f"got {codes_N.dtype} of shape {tuple(codes_N.shape)}, expected codes int64 (n,)"
            )
        codes_N = codes_N.long().cpu()
        vocabulary = self.codes
        if len(codes_N) and not (int(codes_N.min()) >= 0 and int(codes_N.max()) < vocabulary):
            raise ValueError(
                f"codes from {int(codes_N.min())} to {int(codes_N.max())}, expected 0 to {vocabulary - 1}"
            )
        return codes_N


def audible(wave_T: Tensor) -> Tensor:
    """Samples on the CPU, float32.

    Raises:
        UserError: if one is not finite.
    """
    wave_T = wave_T.float().cpu()
    if not bool(wave_T.isfinite().all()):
        raise UserError(
            "the decoder gives samples that are not finite: the weights of the flow or of the vocoder are "
            "damaged, or the prompt is"
        )
    return wave_T


def _written_sizes(written: Any, shapes: FlowConfig, path: Path) -> FlowConfig:
    """`flow` of `flow/config.json`; sizes that the shapes of `flow.pt` tell have to be theirs."""
    if not isinstance(written, dict):
        raise UserError(f"{path}: flow is a {type(written).__name__}, expected settings by name")
    unknown = sorted(set(map(str, written)) - {f.name for f in fields(FlowConfig)})
    if unknown:
        raise UserError(f"{path} is damaged: flow has {unknown[0]!r}, expected settings of FlowConfig")
    try:
        found = FlowConfig(**written)
    except UserError as error:
        raise UserError(f"{path}: flow.{error}") from error
    told = ("vocab_size", "hidden", "speaker_dim", "encoder_heads", "encoder_inner", "encoder_layers",
            "channels", "blocks", "mid_stages")  # fmt: skip
    pairs = [(name, getattr(found, name), getattr(shapes, name)) for name in told]
    pairs.append(("heads * head_width", found.heads * found.head_width, shapes.heads * shapes.head_width))
    for name, ours, theirs in pairs:
        if ours != theirs:
            raise UserError(f"{path}: flow.{name} is {ours}, flow.pt was made with {theirs}: get both again")
    return found


def _voice(found: Any, width: int, path: Path) -> Tensor | None:
    if found is None or found == []:
        return None
    numbers = isinstance(found, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in found
    )
    if not numbers or len(found) != width:
        got = f"a list of {len(found)}" if isinstance(found, list) else repr(found)[:40]
        raise UserError(f"{path}: voice is {got}, expected {width} finite numbers (speaker_dim) or null")
    return torch.tensor(found, dtype=torch.float32, device="cpu")


def trimmed(codes_N: Tensor, mel_MT: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and mel of the same time: frames = 4 min(floor(frames / 4), codes)."""
    codes = min(mel_MT.shape[-1] // rates.FRAMES_PER_CODE_DECODER, len(codes_N))
    return codes_N[:codes], mel_MT[:, : rates.FRAMES_PER_CODE_DECODER * codes]


class Player:
    """Codes as they come -> samples at 24 kHz, 1920 a code in all.

    The first samples come with the eighth code: five of a chunk, three of look-ahead. (Behind a `Prompt` that
    is no whole number of chunks, some codes sooner or later.)
    """

    def __init__(self, codec: Codec, prompt: Prompt, left_chunks: int | None) -> None:
        self._codec = codec
        self._flow, self._vocoder = codec.flow.stream(prompt, left_chunks), codec.vocoder.stream()

    @torch.no_grad()
    def push(self, codes: Tensor | Sequence[int]) -> Tensor:
        """Next codes, int64 (n,), any number -> new samples, float32 (l,)."""
        mel_1MT = self._flow.push(self._codec._checked(codes))
        if not mel_1MT.shape[-1]:
            return torch.zeros(0, device="cpu")
        return audible(self._vocoder.push(mel_1MT)[0])

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance: the samples left, float32 (l,)."""
        rest = self._flow.flush()
        pieces = [self._vocoder.push(rest)] if rest.shape[-1] else []
        return audible(torch.cat([*pieces, self._vocoder.flush()], dim=1)[0])


def flow_sizes(tensors: dict[str, Tensor]) -> FlowConfig:
    """Sizes as far as shapes tell them; the width of the velocity network's heads is 64 as officially.

    Raises:
        UserError: if the tensors are no flow's.
    """
    try:

        def count(prefix: str) -> int:
            places = prefix.count(".")
            return len({name.split(".")[places] for name in tensors if name.startswith(prefix)})

        heads, head = tensors["encoder.encoders.0.self_attn.pos_bias_u"].shape
        unet = "decoder.estimator."
        inner = tensors[unet + "down_blocks.0.1.0.attn1.to_q.weight"].shape[0]
        return FlowConfig(
            vocab_size=tensors["input_embedding.weight"].shape[0], hidden=heads * head,
            speaker_dim=tensors["spk_embed_affine_layer.weight"].shape[1], encoder_heads=heads,
            encoder_inner=tensors["encoder.encoders.0.feed_forward.w_1.weight"].shape[0],
            encoder_layers=count("encoder.encoders."), channels=tensors[unet + "final_proj.weight"].shape[1],
            heads=max(1, inner // 64), head_width=min(64, inner), blocks=count(unet + "down_blocks.0.1."),
            mid_stages=count(unet + "mid_blocks."),
        )  # fmt: skip
    except KeyError as error:
        raise UserError(f"no flow decoder: it holds no tensor {error}") from error
    except (ValueError, IndexError) as error:
        raise UserError(f"no flow decoder: a tensor has another number of axes ({error})") from error


def load_hift(path: str | Path) -> HiFT:
    """HiFT of a `hift.pt`, sizes from its shapes.

    Raises:
        UserError: if it is no whole HiFT.
    """
    tensors = read_state_dict(path)
    try:
        channels = tensors["conv_pre.bias"].shape[0]
        pitch = tensors["f0_predictor.classifier.weight"].shape[1]
    except (KeyError, IndexError) as error:
        raise UserError(f"{path} is no HiFT vocoder: it holds no tensor {error}") from error
    hift = HiFT(HiFTConfig(channels, pitch))
    report = load_fitting(hift, tensors, str(path))
    if report.kept or report.reshaped:
        raise UserError(f"{path} does not fit its own sizes: {report}")
    return hift


def _save(module: nn.Module, path: Path) -> None:
    """A plain state dict, written whole or not at all."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    torch.save(tensors, partial)
    partial.replace(path)
