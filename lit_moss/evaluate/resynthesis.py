"""Speech -> codes -> speech: what is lost on the way, step by step (the paper's table 4).

    original        the recording
    vocoder         its mel through the vocoder
    codec           its codes through decoder and vocoder
    stream          the same, code by code

A row for each clip and rung of this ladder holds:

    wer             errors over words of all clips, both sides without punctuation (`data.transcripts`)
    wer_seed        mean of the clips' error rates by Seed-TTS-Eval's rules: the field's number
    wer_normalised  the same after normalisation of numbers and spellings, see `lit_moss.evaluate.wer`
                    (both also pooled over clips; errors are of characters in Chinese)
    similarity      cosine of speaker vectors with the recording; similarity_prompt: with the voice prompt
    dnsmos          DNSMOS: overall, and its parts for speech (sig) and background (bak)
    utmos           UTMOS22 strong, where its weights are given
    mcd_db          mel-cepstral distance
    roughness       of the log-mel of the wave over the original's, see `judges.mel_roughness`
    rtf             computing time over audio time
    first_sound_sec computing time of a stream to its first sound
    seam_ratio      roughness of a stream at its seams over that inside chunks (1: inaudible)

The speaker encoder that conditions the decoder overestimates the similarity: name another one where there is
one. A clip that cannot be read counts as one of which nothing was recognised; all other means leave it out.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.audio.stream_timing import timed_outputs
from lit_moss.codec.codec import Codec, trimmed
from lit_moss.codec.flow import Prompt
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker
from lit_moss.devices import moved
from lit_moss.errors import UserError
from lit_moss.evaluate import judges, wer
from lit_moss.evaluate.clips import Clip, read_clips
from lit_moss.evaluate.evaluation import FAILED, Evaluation, Result, local_parts
from lit_moss.evaluate.resynthesis_report import MEASURES, means, report
from lit_moss.evaluate.utmos import Utmos
from lit_moss.hub import open_codec

Rung = Literal["original", "vocoder", "codec", "stream"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
COLUMNS = (
    "clip", "rung", "seconds", "errors", "words", *MEASURES, *(f"wer_{mode}" for mode in wer.MODES),
    "reference", "hypothesis", FAILED,
)  # fmt: skip


@dataclass
class Config:
    """Options of `evaluate resynthesis`.

    Args:
        codec: Decoder: runs/NAME, a checkpoint, a folder in the released layout.
        clips: A manifest, or a Seed-TTS-Eval list.
        log_mel: Features of its speech tokenizer, causal or whisper; null takes what it states.
        vocoder: Vocoder in the place of the codec's own: griffin-lim, runs/vocoder, a folder, a file hift.pt.
        rungs: Some of original, vocoder, codec, stream.
        voice_prompt: `list` uses each clip's own prompt from the list, `none` only the clip's speaker vector;
            a sound file is used for all clips.
        judge: Speech recogniser for word errors: embedded:whisper-base, large-v3 (Seed-TTS-Eval's for
            English), paraformer-zh (its own for Chinese; needs funasr), …; null leaves them out.
        speaker: Speaker encoder for the similarity; null leaves it out.
        dnsmos: Whether to judge by DNSMOS (about 2 s per clip and rung).
        utmos: Checkout of SpeechMOS with the weights of UTMOS, see `lit_moss.evaluate.utmos`; null leaves it
            out.
        language: Language of the clips, for word errors.
        steps: Solver steps, 0 for the encoder's own mel; null uses the decoder's own.
        start: Time at which the solver starts, see `FlowConfig`; null uses the decoder's own.
        guidance: Weight of classifier-free guidance; null uses the decoder's own.
        limit: How many clips, from the first; null uses all.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        save_audio: Whether to keep the sound files of all rungs.
        again: Whether to start over where results exist.
    """

    codec: str
    clips: str
    log_mel: Literal["causal", "whisper"] | None = None
    vocoder: str | None = None
    rungs: list[Rung] = field(default_factory=lambda: list(RUNGS))
    voice_prompt: str = "none"
    judge: str | None = "embedded:whisper-base"
    speaker: str | None = "embedded:resemblyzer"
    dnsmos: bool = True
    utmos: str | None = None
    language: Literal["en", "zh"] = "en"
    steps: int | None = None
    start: float | None = None
    guidance: float | None = None
    limit: int | None = None
    device: str = "auto"
    name: str = "resynthesis"
    run_root: str = "runs"
    save_audio: bool = True
    again: bool = False

    def __post_init__(self) -> None:
        if len(set(self.rungs)) < len(self.rungs):
            raise UserError(f"rungs is {self.rungs}, expected each once")
        if not self.rungs or (self.limit is not None and self.limit < 1):
            raise UserError(f"rungs is {self.rungs} and limit {self.limit}, expected one or more of each")

    def sampler_changes(self) -> dict[str, Any]:
        """Fields of `FlowConfig` that differ from the decoder's own."""
        changes = {"steps": self.steps, "start": self.start, "guidance": self.guidance}
        return {name: value for name, value in changes.items() if value is not None}


@dataclass
class Resynthesis:
    """A clip on one rung.

    Args:
        wave_T: Samples at 24 kHz.
        seconds: Computing time.
        first_sec: Computing time to the first sound, for streams.
        seams: Samples at which one piece of a stream ends and the next begins.
    """

    wave_T: Tensor
    seconds: float
    first_sec: float | None = None
    seams: list[int] = field(default_factory=list)


@dataclass
class Judges:
    """What judges the waves; None for what is left out."""

    recogniser: judges.SpeechRecogniser | None
    speaker: SpeakerEncoder | None
    utmos: Utmos | None
    dnsmos: bool
    language: str

    def row(self, clip: Clip, wave16_T: Tensor) -> dict[str, Any]:
        """Columns of a wave at 16 kHz that need no other wave."""
        row: dict[str, Any] = {"reference": clip.text, "hypothesis": ""}
        if self.recogniser and clip.text:
            row["hypothesis"] = self.recogniser(wave16_T, self.language)
            row |= word_errors(clip.text, row["hypothesis"], self.language)
        if self.dnsmos:
            scores = judges.dnsmos_scores(wave16_T)
            row |= {"dnsmos": scores["ovrl"], "dnsmos_sig": scores["sig"], "dnsmos_bak": scores["bak"]}
        if self.utmos is not None:
            row["utmos"] = self.utmos(wave16_T)
        return row


def word_errors(reference: str, hypothesis: str, language: str) -> dict[str, Any]:
    """Columns of the errors: counts, and the clip's rates by each rule."""
    row: dict[str, Any] = dict(zip(("errors", "words"), judges.word_errors(reference, hypothesis, language),
                                   strict=True))  # fmt: skip
    return row | {f"wer_{m}": wer.errors(reference, hypothesis, language, m).rate for m in wer.MODES}


def run(config: Config) -> dict[str, float]:
    """Judges all clips; returns and writes the means of each rung, named `RUNG/MEASURE`.

    Raises:
        UserError: for clips, a codec or a judge that cannot be opened, and where no clip can be read.
    """
    clips = read_clips(config.clips, config.limit)
    voice = None if config.voice_prompt in ("list", "none") else config.voice_prompt
    local = local_parts(config.judge, config.speaker, config.utmos)
    sources = [config.codec, config.vocoder, config.clips, voice, *local]
    with ExitStack() as stack:
        evaluation = stack.enter_context(Evaluation("resynthesis", config, sources, config.again))
        if (metrics := evaluation.done()) is not None:
            return metrics
        if config.judge:
            wer.check_packages(config.language)
        recogniser = judges.open_recogniser(config.judge, config.device) if config.judge else None
        utmos = stack.enter_context(Utmos(config.utmos)) if config.utmos else None
        jury = Judges(recogniser, open_speaker(config.speaker), utmos, config.dnsmos, config.language)
        codec = moved(open_codec(config.codec, config.log_mel, config.vocoder), config.device)
        codec.flow.config = codec.flow.config.sampling(config.sampler_changes())

        def judged(batch: Sequence[Clip]) -> list[Result]:
            return [result_of(clip, codec, config, jury, evaluation.folder) for clip in batch]

        results = evaluation.results(clips, judged)
        unread = [clip.id for clip, result in zip(clips, results, strict=True) if FAILED in result]
        if len(unread) == len(clips):
            raise UserError(
                f"none of the {len(clips)} clips of {config.clips} can be read: expected sound files "
                "(--again true tries them again)"
            )
        rows = [
            row for clip, result in zip(clips, results, strict=True) for row in rows_of(clip, result, config)
        ]
        metrics = means(rows, config.rungs, config.language)
        flat = {f"{rung}/{name}": value for rung, values in metrics.items() for name, value in values.items()}
        text = report(metrics, rows, config, len(clips), unread)
        return evaluation.finish(flat | {"n": len(clips), "failures": len(unread)}, text, rows)


def result_of(clip: Clip, codec: Codec, config: Config, jury: Judges, folder: Path) -> Result:
    """The rows of a clip, or why it has none."""
    try:
        return {"rows": judge(clip, codec, config, jury, folder)}
    except io.UnreadableAudio as error:
        return {FAILED: str(error)}


def rows_of(clip: Clip, result: Result, config: Config) -> list[dict[str, Any]]:
    """A row for each rung; of a clip that cannot be read nothing was recognised."""
    empty = {key: None for key in COLUMNS}
    if FAILED not in result:
        return [empty | row for row in result["rows"]]
    row = empty | {"clip": clip.id, FAILED: result[FAILED], "reference": clip.text}
    if config.judge and clip.text:
        row |= {"hypothesis": "", **word_errors(clip.text, "", config.language)}
    return [row | {"rung": rung} for rung in config.rungs]


def judge(clip: Clip, codec: Codec, config: Config, jury: Judges, folder: Path) -> list[dict[str, Any]]:
    """The rows of one clip, one for each rung.

    Raises:
        UnreadableAudio: if it cannot be read, or is shorter than a code.
    """
    wave_T, codes_N = read_clip(clip, codec)
    prompt_T = prompt_wave(clip, config.voice_prompt)
    prompt = voice_of(prompt_T, wave_T, codec)
    speaker = jury.speaker
    vectors = {} if speaker is None else {"similarity": speaker(at_16khz(wave_T))}
    if speaker is not None and prompt_T is not None:
        vectors["similarity_prompt"] = speaker(at_16khz(prompt_T))
    rows = []
    for rung in config.rungs:
        result = resynthesize(rung, wave_T, codes_N, codec, prompt)
        wave16_T = at_16khz(result.wave_T)
        row = jury.row(clip, wave16_T)
        if speaker is not None:
            own_S = speaker(wave16_T)
            row |= {name: judges.similarity(vector_S, own_S) for name, vector_S in vectors.items()}
        if rung != "original":
            row["mcd_db"] = judges.mel_cepstral_distance(wave_T, result.wave_T)
            row["roughness"] = judges.roughness(wave_T, result.wave_T)
            row["rtf"] = result.seconds * rates.DECODER_RATE_HZ / max(1, len(result.wave_T))
            row["first_sound_sec"] = result.first_sec
            chunk = codec.flow.config.chunk_codes * rates.DECODER_SAMPLES_PER_CODE
            row["seam_ratio"] = judges.seam_ratio(result.wave_T, result.seams, chunk=chunk)
        if config.save_audio:
            (folder / "audio").mkdir(exist_ok=True)
            io.write(folder / "audio" / f"{clip.id}_{rung}.wav", result.wave_T, rates.DECODER_RATE_HZ)
        seconds = round(len(wave_T) / rates.DECODER_RATE_HZ, 3)
        rows.append({"clip": clip.id, "rung": rung, "seconds": seconds} | row)
    return rows


def read_clip(clip: Clip, codec: Codec) -> tuple[Tensor, Tensor | None]:
    """Samples at 24 kHz, and their codes where the codec has a tokenizer.

    Raises:
        UnreadableAudio: if the clip cannot be read, or is shorter than a code.
    """
    span = (clip.offset_sec, clip.duration_sec, None, clip.channel)
    wave_T = io.read(clip.audio, rates.DECODER_RATE_HZ, *span)
    if len(wave_T) < rates.DECODER_SAMPLES_PER_CODE:
        raise io.UnreadableAudio(f"{clip.audio}: shorter than a code of 80 ms")
    if codec.tokenizer is None:
        return wave_T, None
    codes_N = codec.tokenizer.encode(io.read(clip.audio, rates.TOKENIZER_RATE_HZ, *span), 16_000)
    return wave_T, trimmed(codes_N, decoder_mel(wave_T[None])[0])[0]


@torch.no_grad()
def resynthesize(
    rung: Rung, wave_T: Tensor, codes_N: Tensor | None, codec: Codec, prompt: Prompt
) -> Resynthesis:
    """A recording at 24 kHz on one rung; times are of decoding alone, without the tokenizer."""
    if rung == "original":
        return Resynthesis(wave_T, 0.0)
    if rung == "vocoder":
        start = time.perf_counter()
        device = codec.flow.input_embedding.weight.device
        vocoded_T = codec.vocoder(decoder_mel(wave_T[None].to(device)))[0].float().cpu()
        return Resynthesis(vocoded_T, time.perf_counter() - start)
    if codes_N is None:
        raise UserError(f"rung {rung} needs codes: this codec has no tokenizer")
    if rung == "codec":
        start = time.perf_counter()
        decoded_T = codec.decode(codes_N, prompt)
        return Resynthesis(decoded_T, time.perf_counter() - start)
    # Opened before the clock starts: in a conversation the prompt is processed before the first code comes.
    player = codec.stream(prompt)
    pieces, seconds, first_sec = [], 0.0, None
    for samples_T, taken in timed_outputs(player, codes_N.split(1)):
        pieces.append(samples_T)
        seconds += taken
        if len(samples_T) and first_sec is None:
            first_sec = seconds
    ends = torch.tensor([len(piece_T) for piece_T in pieces]).cumsum(dim=0)[:-1]
    seams = [int(end) for end in ends.unique() if end]
    return Resynthesis(torch.cat(pieces), seconds, seconds if first_sec is None else first_sec, seams)


def prompt_wave(clip: Clip, voice_prompt: str) -> Tensor | None:
    """Samples at 24 kHz of the voice prompt of a clip; None for none.

    Raises:
        UserError: if the list has none for this clip, or it cannot be read.
    """
    if voice_prompt == "none":
        return None
    file = clip.prompt if voice_prompt == "list" else Path(voice_prompt)
    if file is None:
        raise UserError(f"clip {clip.id} has no prompt in the list: set voice_prompt to none or a sound file")
    try:
        return io.read(file, rates.DECODER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"prompt of clip {clip.id}: {error}") from error


def voice_of(prompt_T: Tensor | None, wave_T: Tensor, codec: Codec) -> Prompt:
    """The prompt of a decoder: of a voice prompt at 24 kHz, or the recording's speaker vector alone."""
    if prompt_T is not None:
        return codec.prompt(prompt_T, rates.DECODER_RATE_HZ)
    return Prompt.none(None if codec.speaker is None else codec.speaker(at_16khz(wave_T)))


def at_16khz(wave_T: Tensor) -> Tensor:
    """24 kHz -> 16 kHz."""
    return resample(wave_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
