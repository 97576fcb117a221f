"""A complete speech codec: speech tokenizer, flow decoder, vocoder and speaker encoder in one object.

codec = Codec.from_pretrained(folder)
codes = codec.encode(wave, sample_rate_hz)
wave = codec.decode(codes, prompt=codec.prompt(other_wave, sample_rate_hz))          # 24 kHz
player = codec.stream(prompt); player.push(codes); player.flush()                    # as codes arrive
"""

import copy
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.audio import rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.audio.streams import ClosedByFlush, Stream, run_stream
from lit_moss.audio.waves import check_wave
from lit_moss.codec.codec_folder import read_decoder, write_decoder
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_network import Prompt
from lit_moss.codec.flow_stream import HISTORY_CHUNKS
from lit_moss.codec.speaker import SpeakerEncoder
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.codec.vocoder import GriffinLim, Vocoder
from lit_moss.errors import UserError

# 60 s. Longer utterances are decoded as a stream: the memory of full attention masks grows quadratically.
LONGEST_AT_ONCE = 750


class Codec:
    """A complete speech codec.

    Args:
        tokenizer: Wave -> codes; None: the codec only decodes.
        flow: Codes -> mel.
        vocoder: Mel -> wave.
        speaker: Wave -> speaker vector, or None.
        voice: Speaker vector (S,) to use for decoding without a prompt. None: zeros, which a trained flow has
            not seen.

    Raises:
        UserError: if the speaker encoder or the voice does not fit the flow.
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
    def from_pretrained(
        cls, folder: str | Path, log_mel: str | None = None, vocoder: Vocoder | None = None
    ) -> "Codec":
        """Loads a codec from a folder in the official layout.

        The folder contains `model.safetensors` with `config.json` (tokenizer), `flow/flow.pt`, and optionally
        `vocoder/` or `flow/hift.pt` (otherwise Griffin-Lim is used), `flow/campplus.onnx` or the encoder that
        `flow/config.json` names. Sizes are taken from the shapes of the tensors, and from `flow/config.json`,
        which `save_pretrained` writes.

        Args:
            folder: Folder with the files above.
            log_mel: Features of the tokenizer, see `SpeechTokenizer.from_pretrained`.
            vocoder: Used instead of the folder's vocoder.

        Raises:
            UserError: if a part is missing or damaged (including non-finite numbers), or contains anything
                but plain tensors.
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
        decoder = read_decoder(path, vocoder)
        return cls(tokenizer, decoder.flow, decoder.vocoder, decoder.speaker, decoder.voice)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes the official layout, plus `vocoder/` and `flow/config.json`.

        `flow/config.json` has the settings that shapes do not show.
        """
        folder = Path(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        write_decoder(folder, self.flow, self.vocoder, self.speaker, self.voice)

    def to(self, device: str | torch.device) -> "Codec":
        """Moves the networks; returns self."""
        if self.tokenizer is not None:
            self.tokenizer.to(device)
        self.flow.to(device)
        self.vocoder.to(device)
        return self

    @property
    def codes(self) -> int:
        """Number of codes: the tokenizer's, otherwise the rows of the flow's embedding (slightly more)."""
        if self.tokenizer is not None:
            return min(self.tokenizer.config.quantize_vocab_size, self.flow.config.vocab_size)
        return self.flow.config.vocab_size

    # --- wave -> codes --------------------------------------------------------------------------------------

    def encode(self, wave: Tensor | Sequence[Tensor], sample_rate_hz: int) -> Tensor | list[Tensor]:
        """Encodes waves, see `SpeechTokenizer.encode`."""
        return self._tokenizer_or_error().encode(wave, sample_rate_hz)

    def _tokenizer_or_error(self) -> SpeechTokenizer:
        if self.tokenizer is None:
            raise UserError("this codec has no tokenizer: its folder holds no model.safetensors")
        return self.tokenizer

    @torch.no_grad()
    def prompt(self, wave_T: Tensor, sample_rate_hz: int, max_sec: float = 10.0) -> Prompt:
        """Makes a voice prompt from a recording's first `max_sec` seconds: codes, mel and speaker vector.

        Codes and mel are cut to whole chunks (0.4 s), so that a stream with a prompt has the same initial
        delay as one without. The speaker vector is computed from the uncut excerpt.

        Args:
            wave_T: Samples (T,) in [-1, 1].
            sample_rate_hz: Sample rate in Hz.
            max_sec: Maximum length to use, in seconds.

        Raises:
            UserError: if the recording has less than 0.1 s, or the decoder has a single voice
                (`FlowConfig.steps` 0).
            ValueError: if the samples are invalid, see `check_wave`.
        """
        if not self.flow.config.steps:
            raise UserError(
                "a voice prompt, and this decoder has steps 0, its encoder alone, which speaks in the one "
                "voice of its training: leave the prompt out"
            )
        wave_T = check_wave(wave_T)[: round(max_sec * sample_rate_hz)]
        if len(wave_T) < 0.1 * sample_rate_hz:
            raise UserError(
                f"a prompt of {len(wave_T) / sample_rate_hz:.2f} s, expected some seconds of speech"
            )
        wave24_T = resample(wave_T, sample_rate_hz, rates.DECODER_RATE_HZ)
        codes_N = self._tokenizer_or_error().encode(wave_T, sample_rate_hz)
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
        """Decodes codes to speech.

        Args:
            codes: Codes, int64 (n,).
            prompt: Voice prompt, see `prompt`. None: the mean voice of the training data, if it is known.
            streaming: Use chunk-causal masks, which give the mel of `stream`; otherwise every frame attends
                to all frames.
            left_chunks: History of the chunk-causal masks in chunks of 0.4 s, as in `stream`. None:
                unlimited.

        Returns:
            Samples at 24 kHz, float32 (1920 n,). More than 60 s are decoded as a stream, with bounded memory.

        Raises:
            ValueError: if the codes are not valid for this codec.
            UserError: if samples are not finite.
        """
        codes_N = check_codes(codes, self.codes)
        if not len(codes_N):
            return torch.zeros(0, device="cpu")
        if len(codes_N) > LONGEST_AT_ONCE:
            return run_stream(self.stream(prompt, left_chunks), codes_N.split(100))
        mel_BMT = self.flow.sample(
            codes_N[None], prompt=prompt or self.no_prompt(), streaming=streaming, left_chunks=left_chunks
        )
        return check_audible(self.vocoder(mel_BMT)[0])

    def stream(self, prompt: Prompt | None = None, left_chunks: int | None = HISTORY_CHUNKS) -> "Player":
        """A stream for one utterance, see `Player`; `left_chunks` limits its history, see `FlowStream`."""
        return Player(self, prompt or self.no_prompt(), left_chunks)

    def no_prompt(self) -> Prompt:
        """An empty prompt with the mean voice of the training data."""
        return Prompt.none(self.voice)


def check_codes(codes: Tensor | Sequence[int], vocabulary: int) -> Tensor:
    """Converts codes to int64 (n,) on the CPU.

    Raises:
        ValueError: if they are not integers from 0 to `vocabulary` - 1, or have more than one dimension.
    """
    codes_N = codes if isinstance(codes, Tensor) else torch.as_tensor(codes, device="cpu")
    if codes_N.ndim != 1 or (len(codes_N) and codes_N.dtype.is_floating_point):
        raise ValueError(f"got {codes_N.dtype} of shape {tuple(codes_N.shape)}, expected codes int64 (n,)")
    codes_N = codes_N.long().cpu()
    if len(codes_N) and not (int(codes_N.min()) >= 0 and int(codes_N.max()) < vocabulary):
        raise ValueError(
            f"codes from {int(codes_N.min())} to {int(codes_N.max())}, expected 0 to {vocabulary - 1}"
        )
    return codes_N


def check_audible(wave_T: Tensor) -> Tensor:
    """The samples as float32 on the CPU.

    Raises:
        UserError: if a sample is not finite.
    """
    wave_T = wave_T.float().cpu()
    if not bool(wave_T.isfinite().all()):
        raise UserError(
            "the decoder gives samples that are not finite: the weights of the flow or of the vocoder are "
            "damaged, or the prompt is"
        )
    return wave_T


def trimmed(codes_N: Tensor, mel_MT: Tensor) -> tuple[Tensor, Tensor]:
    """Cuts codes and mel to the same duration: 4 min(floor(frames / 4), codes) frames."""
    codes = min(mel_MT.shape[-1] // rates.FRAMES_PER_CODE_DECODER, len(codes_N))
    return codes_N[:codes], mel_MT[:, : rates.FRAMES_PER_CODE_DECODER * codes]


class Player(ClosedByFlush):
    """A `Stream` from codes to samples at 24 kHz, 1920 per code in total.

    The first samples arrive with the eighth code: five codes of a chunk and three of look-ahead. (With a
    `Prompt` that is not a whole number of chunks, a few codes earlier or later.)

    Args:
        codec: The codec that decodes.
        prompt: Voice prompt to continue.
        left_chunks: History in chunks, see `FlowStream`.
    """

    def __init__(self, codec: Codec, prompt: Prompt, left_chunks: int | None) -> None:
        self._codec, self._vocabulary = codec, codec.codes
        self._flow = codec.flow.stream(prompt, left_chunks)
        self._vocoder: Stream[Tensor, Tensor] = codec.vocoder.stream()
        self._is_new = True

    def copy(self) -> "Player":
        """Another stream with the same prompt, which is not computed again; call before the first `push`."""
        assert self._is_new
        copied = copy.copy(self)
        copied._flow, copied._vocoder = self._flow.copy(), self._codec.vocoder.stream()
        return copied

    @torch.no_grad()
    def push(self, codes: Tensor | Sequence[int]) -> Tensor:
        """Pushes codes, int64 (n,), any number; returns new samples, float32 (l,).

        Raises:
            ValueError: if the codes are not valid for this codec.
            UserError: if samples are not finite.
        """
        self._check_open()
        self._is_new = False
        mel_1MT = self._flow.push(check_codes(codes, self._vocabulary))
        if not mel_1MT.shape[-1]:
            return torch.zeros(0, device="cpu")
        return check_audible(self._vocoder.push(mel_1MT)[0])

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance and returns the remaining samples, float32 (l,)."""
        self._close()
        mel_1MT = self._flow.flush()
        pieces = [self._vocoder.push(mel_1MT)] if mel_1MT.shape[-1] else []
        return check_audible(torch.cat([*pieces, self._vocoder.flush()], dim=1)[0])
