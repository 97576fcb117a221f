"""Asks a model questions in any pair of modalities, and transcribes its spoken replies.

question ─ text ───────────────────┐
         └ audio (or a voice) ─ codes ─ prompt ─ language model ─┬─ own text
                                                                 └─ codes ─ codec ─ audio ─ ASR
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from tqdm import tqdm

from lit_moss.audio import io, rates
from lit_moss.audio.features import resample
from lit_moss.codec.encoder import fingerprint
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.conversation import PAIRS, Modality, Renderer, Turn
from lit_moss.errors import UserError
from lit_moss.evaluate import judges
from lit_moss.evaluate.evaluation import FAILED, Result
from lit_moss.evaluate.questions import Question
from lit_moss.evaluate.spoken_texts import SpokenTexts
from lit_moss.evaluate.utmos import Utmos
from lit_moss.hub.recordings import Compute, RecordingCache
from lit_moss.llm.replies import FormName, ReplyForm, reply_codes, reply_text
from lit_moss.prepare.voice_protocol import CannotSay
from lit_moss.records import file_name
from lit_moss.serve.model import DEFAULT_VOICE, SpeechModel

PIECE_SEC = 30.0  # maximum input of Whisper
_CUT_SEC = 5.0  # a piece ends at the quietest position of its last seconds
_FRAME_SAMPLES = 320  # 20 ms
_SILENCE = 1e-3  # peak, -60 dB of full scale: no speech
REPLY_VOICE = "reply"


@dataclass(frozen=True)
class ReplyOptions:
    """Options for generating replies.

    Args:
        form: Form of spoken replies. None: that of the model's training.
        max_new_tokens: Maximum number of rows of a reply; a code of speech is one row (80 ms).
        greedy: Choose the most likely rows; otherwise sample with the settings of the released model.
        seed: Seed of the sampling.
    """

    form: FormName | None = None
    max_new_tokens: int = 500
    greedy: bool = True
    seed: int = 1


@dataclass(frozen=True)
class Ask:
    """A question in one pair of modalities.

    Args:
        id: Unique id.
        question: The question.
        pair: A key of `PAIRS`, such as speech-text.
        rows: Rows of the prompt, or None.
        fault: Why there is no prompt.
        kept_as: Name of the reply's sound file, without extension; "": the file is not kept.
    """

    id: str
    question: Question
    pair: str
    rows: Sequence[int] | None
    fault: str = ""
    kept_as: str = ""


@dataclass
class Ears:
    """Evaluates the audio of replies.

    Args:
        name: Name of the speech recogniser, see `judges.Recogniser`.
        device: auto, cpu or cuda.
        dnsmos: Whether to compute DNSMOS.
        utmos: UTMOS, or None if its weights are not given.
    """

    name: str
    device: str = "auto"
    dnsmos: bool = False
    utmos: Utmos | None = None

    @cached_property
    def recogniser(self) -> judges.Recogniser:
        """The recogniser, opened for the first audio."""
        return judges.Recogniser(self.name, self.device)

    def transcript(self, wave_T: Tensor, lang: str) -> str:
        """Transcript of samples at 16 kHz; "" for silence, for which Whisper would hallucinate text.

        Args:
            wave_T: Samples (T,).
            lang: Language of the speech; it is never guessed.
        """
        said = [self.recogniser(piece_T, lang) for piece_T in pieces(wave_T) if _is_audible(piece_T)]
        return " ".join(" ".join(said).split())

    def judge(self, wave_T: Tensor, lang: str) -> Result:
        """Transcript and quality scores of samples at 16 kHz."""
        found: Result = {"transcript": self.transcript(wave_T, lang)}
        if _is_audible(wave_T):
            if self.dnsmos:
                found["dnsmos"] = judges.dnsmos(wave_T)
            if self.utmos is not None:
                found["utmos"] = self.utmos(wave_T)
        return found


def pieces(wave_T: Tensor) -> Iterator[Tensor]:
    """Yields samples at 16 kHz in pieces of at most 30 s, cut where they are quietest."""
    longest = round(PIECE_SEC * rates.TOKENIZER_RATE_HZ)
    while len(wave_T) > longest:
        first = longest - round(_CUT_SEC * rates.TOKENIZER_RATE_HZ)
        frames_FS = wave_T[first:longest].unfold(0, _FRAME_SAMPLES, _FRAME_SAMPLES)
        quietest = int(frames_FS.square().sum(dim=1).argmin())
        cut = first + quietest * _FRAME_SAMPLES + _FRAME_SAMPLES // 2
        yield wave_T[:cut]
        wave_T = wave_T[cut:]
    yield wave_T


def _is_audible(wave_T: Tensor) -> bool:
    return len(wave_T) > 0 and float(wave_T.abs().max()) > _SILENCE


@dataclass
class Answerer:
    """Asks a model questions.

    Args:
        model: The model.
        options: Options of replies.
        ears: Evaluates spoken replies. None: they are not transcribed.
        voices: Voices for questions without audio, named as in `prepare synthesize`.
        folder: Folder for the audio of replies.
    """

    model: SpeechModel
    options: ReplyOptions = field(default_factory=ReplyOptions)
    ears: Ears | None = None
    voices: Sequence[str] = ("embedded:hibari",)
    folder: Path | None = None

    def __post_init__(self) -> None:
        form = self.model.record.form
        if self.options.form is not None and self.options.form != form.name:
            form = ReplyForm(self.options.form)
        self.renderer = Renderer(self.model.text_tokenizer, self.model.lm.format, form)

    @property
    def form(self) -> ReplyForm:
        """Form of spoken replies."""
        return self.renderer.form

    def check(self, pairs: Sequence[str]) -> None:
        """Checks that all that the given pairs need is available, and opens the recogniser of spoken replies.

        Raises:
            UserError: if a speech tokenizer, a decoder or the recogniser is missing.
        """
        users, replies = ({PAIRS[pair][side] for pair in pairs} for side in (0, 1))
        if "speech" in users and self.model.speech_tokenizer is None:
            raise UserError(f"{self.model.name} has no speech tokenizer: give its codec (--codec)")
        if "speech" in replies and self.model.codec is None:
            raise UserError(f"{self.model.name} has no decoder for spoken replies: give its codec (--codec)")
        if "speech" in replies and self.ears is not None:
            _ = self.ears.recogniser

    # --- questions ------------------------------------------------------------------------------------------

    @cached_property
    def _spoken(self) -> SpokenTexts:
        return SpokenTexts(self.voices)

    def sound_of(self, question: Question) -> Utterance:
        """The audio of a question; synthesized (and cached) if it has none.

        Raises:
            CannotSay: if no voice can speak it.
        """
        if question.audio is not None:
            return Utterance(question.audio.absolute())
        return self.said(question.question, question.lang, question.voice)

    def said(self, text: str, lang: str, voice: str = "") -> Utterance:
        """A text spoken by a voice, see `SpokenTexts.said`."""
        return self._spoken.said(text, lang, voice)

    def sounds_of(self, questions: Sequence[Question]) -> list[Utterance | str]:
        """The audio of each question, or why there is none."""
        found: list[Utterance | str] = []
        silent = sum(question.audio is None for question in questions)
        bar = tqdm(questions, desc="spoken questions", unit="question", disable=None if silent > 1 else True)
        for question in bar:
            try:
                found.append(self.sound_of(question))
            except CannotSay as error:
                found.append(f"cannot be spoken ({error})")
        return found

    @cached_property
    def _codes(self) -> RecordingCache:
        """The cache of the speech tokenizer's codes, shared with training."""
        assert self.model.speech_tokenizer is not None
        mark = fingerprint(self.model.speech_tokenizer.encoder)

        @contextmanager
        def network() -> Iterator[Compute]:
            yield self.encode

        return RecordingCache("codes", mark, pa.int32(), network)

    def encode(self, waves: list[Tensor]) -> list[Tensor]:
        """Codes of waves at 16 kHz."""
        assert self.model.speech_tokenizer is not None
        return self.model.speech_tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)

    def encoded(self, sounds: Sequence[Utterance | str]) -> list[list[int] | str]:
        """Codes of each recording, cached or newly computed, or why there are none.

        Each call writes a cache file: pass all recordings at once.
        """
        entries = iter(self._codes.entries([sound for sound in sounds if isinstance(sound, Utterance)]))
        found: list[list[int] | str] = []
        for sound in sounds:
            if isinstance(sound, str):
                found.append(sound)
                continue
            entry = next(entries)
            codes = [] if entry.values is None else entry.values.tolist()
            found.append(codes or entry.reason or f"{sound.audio}: no codes")
        return found

    # --- prompts --------------------------------------------------------------------------------------------

    def asks(
        self, questions: Sequence[Question], pairs: Sequence[str], keep_sounds: int = 0, prefix: str = ""
    ) -> list[Ask]:
        """All questions in all pairs; those of a pair are sorted by the length of their prompts.

        Args:
            questions: The questions.
            pairs: Keys of `PAIRS`.
            keep_sounds: Number of questions, from the first, whose reply audio is kept.
            prefix: Prefix of the file names.
        """
        kept = {question.id for question in questions[:keep_sounds]}
        codes: list[list[int] | str] = []
        if any(PAIRS[pair][0] == "speech" for pair in pairs):
            codes = self.encoded(self.sounds_of(questions))
        found: list[Ask] = []
        for pair in pairs:
            user, reply = PAIRS[pair]
            asks = []
            for i, question in enumerate(questions):
                content: str | list[int] = codes[i] if user == "speech" else question.question
                rows, fault = self._prompt(content, user, reply)
                sound = (
                    f"{pair}/{file_name(question.id)}" if question.id in kept and reply == "speech" else ""
                )
                asks.append(Ask(f"{prefix}{pair}/{question.id}", question, pair, rows, fault, sound))
            found += sorted(asks, key=lambda ask: len(ask.rows or ()))
        return found

    def _prompt(
        self, content: str | list[int], user: Modality, reply: Modality
    ) -> tuple[list[int] | None, str]:
        """Rows of a prompt, or None and why there are none."""
        if user == "speech" and isinstance(content, str):
            return None, content
        if not content:
            return None, "no question in text"
        turn = Turn("user", text=content) if isinstance(content, str) else Turn("user", codes=content)
        rows = self.renderer.prompt([turn], user, reply)
        most = self.model.lm.config.max_context
        if most is not None and len(rows) >= most:
            return None, f"a prompt of {len(rows)} rows, the backbone has positions for {most}"
        return rows, ""

    # --- replies --------------------------------------------------------------------------------------------

    def answer(self, asks: Sequence[Ask]) -> list[Result]:
        """Generates replies for a batch with one or several pairs; a reply does not depend on its batch.

        Returns:
            For each: `rows` (their number), `ended` (whether the model ended the reply), `text`, and for
            spoken replies `codes`, `seconds`, `transcript`, and the requested quality scores.
        """
        able = [ask for ask in asks if ask.rows is not None]
        lm, options = self.model.lm, self.options
        replies: list[list[int]] = []
        if able:
            replies = lm.generate(
                [list(ask.rows or ()) for ask in able],
                max_new_tokens=options.max_new_tokens,
                greedy=options.greedy,
                generator=torch.Generator().manual_seed(options.seed),
            )
        rows_of = {ask.id: rows for ask, rows in zip(able, replies, strict=True)}
        return [
            self._result(ask, rows_of[ask.id]) if ask.id in rows_of else {FAILED: ask.fault} for ask in asks
        ]

    def _result(self, ask: Ask, rows: list[int]) -> Result:
        f = self.model.lm.format
        text = self.model.text_tokenizer.decode(reply_text(rows, f), skip_special_tokens=True).strip()
        ended = bool(rows) and rows[-1] in self.model.lm.stop_ids
        result: Result = {"rows": len(rows), "ended": ended, "text": text}
        if PAIRS[ask.pair][1] == "text":
            return result
        codes = reply_codes(rows, f)
        wave24_T = self.decoded(codes)
        result |= {"codes": codes, "seconds": round(len(wave24_T) / rates.DECODER_RATE_HZ, 3)}
        if ask.kept_as and self.folder is not None and len(wave24_T):
            self.keep(wave24_T, rates.DECODER_RATE_HZ, ask.kept_as)
        if self.ears is not None:
            result |= self.ears.judge(at_16khz(wave24_T), ask.question.lang)
        return result

    def decoded(self, codes: Sequence[int]) -> Tensor:
        """Audio of codes at 24 kHz, in the voice of replies."""
        codec = self.model.codec
        assert codec is not None
        voice = REPLY_VOICE if REPLY_VOICE in self.model.voices else DEFAULT_VOICE
        return codec.decode(list(codes), self.model.voices[voice])

    def keep(self, wave_T: Tensor, rate_hz: int, name: str) -> None:
        """Writes audio to the folder as FLAC."""
        assert self.folder is not None
        path = self.folder / f"{name}.flac"
        path.parent.mkdir(parents=True, exist_ok=True)
        io.write(path, wave_T.clamp(-1, 1), rate_hz)


def at_16khz(wave24_T: Tensor) -> Tensor:
    """Resamples from 24 kHz to 16 kHz."""
    if not len(wave24_T):
        return wave24_T
    return resample(wave24_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)


def open_answerer(
    model: str, codec: str | None, device: str, log_mel: str | None, reply_voice: str | None,
    options: ReplyOptions, ears: Ears | None, voices: Sequence[str],
) -> Answerer:  # fmt: skip
    """Opens a model to ask questions.

    Args:
        model: Name of the model, see `SpeechModel.open`.
        codec: Name of the codec, see `SpeechModel.open`.
        device: auto, cpu or cuda.
        log_mel: Features of the speech tokenizer, see `SpeechModel.open`.
        reply_voice: Sound file of the voice of replies. None: the codec's own voice.
        options: Options of replies.
        ears: Evaluates spoken replies, or None.
        voices: Voices for questions without audio.
    """
    prompts = {REPLY_VOICE: reply_voice} if reply_voice else None
    opened = SpeechModel.open(model, codec, device, log_mel=log_mel, voices=prompts)
    return Answerer(opened, options, ears, voices)
