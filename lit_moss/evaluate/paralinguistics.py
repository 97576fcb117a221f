"""What of a voice survives the codec besides words: pitch, energy, pauses, rate, speaker, emotion.

A resynthesis has the timing of its original, so the two are compared frame by frame:

    f0_correlation, f0_rmse_semitones   of log-F0 (WORLD's harvest) over frames voiced in both, octave errors
                                        left out
    octave_error    share of those frames more than half an octave apart
    voicing_error   share of all frames voiced on one side alone
    common_voiced   frames voiced in both over frames voiced in either
    energy_correlation, level_db        of the root mean square of 25 ms in dB (floor -60): correlation, and
                                        how much louder the copy is
    duration_ratio  length over the original's; of a copy that is cut off the rest is compared
    pause_iou       overlap over union of the pauses (silero-vad), over clips with any
    pause_count_ratio, pause_sec_ratio  of all clips together, over the original's
    rate            words (Chinese: characters) per second of speech without pauses
    rate_ratio, rate_spearman           over the original's; rank correlation over clips
    similarity      cosine of speaker vectors
    emotion_same    share of clips with the original's label, where a classifier is given

Rungs are those of `evaluate resynthesis`; `files` are copies made elsewhere. Without a judge, both sides have
the transcript's words, and rates differ by the pauses alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.codec.codec import Codec
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker
from lit_moss.devices import moved
from lit_moss.errors import UserError
from lit_moss.evaluate import judges, prosody
from lit_moss.evaluate.clips import Clip, read_clips
from lit_moss.evaluate.emotion import EmotionClassifier, open_emotion
from lit_moss.evaluate.evaluation import FAILED, Evaluation, Result, local_parts, markdown_table, wilson
from lit_moss.evaluate.intervals import half_width
from lit_moss.evaluate.resynthesis import at_16khz, prompt_wave, read_clip, resynthesize, voice_of
from lit_moss.hub import open_codec

Rung = Literal["vocoder", "codec", "stream", "files"]
MEASURES = (
    "f0_correlation", "f0_rmse_semitones", "octave_error", "voicing_error", "common_voiced",
    "energy_correlation", "level_db", "duration_ratio", "pause_iou", "rate", "rate_ratio", "similarity",
)  # fmt: skip


@dataclass
class Config:
    """Options of `evaluate paralinguistics`.

    Args:
        clips: A manifest, or a Seed-TTS-Eval list.
        codec: Decoder: runs/NAME, a checkpoint, a folder in the released layout; null judges `files` alone.
        files: Folder with a CLIP.wav for each clip, made by any codec; null for none.
        log_mel: Features of the codec's speech tokenizer, causal or whisper; null takes what it states.
        vocoder: Vocoder in the place of the codec's own: griffin-lim, runs/vocoder, a folder, a file hift.pt.
        rungs: Some of vocoder, codec, stream, files.
        voice_prompt: `list` uses each clip's own prompt from the list, `none` only the clip's speaker vector;
            a sound file is used for all clips.
        judge: Speech recogniser whose words make the speaking rate; null takes the transcript for both sides.
        speaker: Speaker encoder for the similarity; null leaves it out.
        emotion: Classifier of emotion: emotion2vec_plus_large (needs funasr), or package.module:function;
            null leaves it out.
        f0_floor_hz: Lowest pitch that is looked for.
        f0_ceil_hz: Highest pitch that is looked for.
        language: Language of the clips, en or zh.
        limit: How many clips, from the first; null uses all.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Whether to start over where results exist.
    """

    clips: str
    codec: str | None = None
    files: str | None = None
    log_mel: Literal["causal", "whisper"] | None = None
    vocoder: str | None = None
    rungs: list[Rung] = field(default_factory=lambda: ["vocoder", "codec"])
    voice_prompt: str = "none"
    judge: str | None = None
    speaker: str | None = "embedded:resemblyzer"
    emotion: str | None = None
    f0_floor_hz: float = 40.0
    f0_ceil_hz: float = 800.0
    language: Literal["en", "zh"] = "en"
    limit: int | None = None
    device: str = "auto"
    name: str = "paralinguistics"
    run_root: str = "runs"
    again: bool = False

    def __post_init__(self) -> None:
        if len(set(self.rungs)) < len(self.rungs):
            raise UserError(f"rungs is {self.rungs}, expected each once")
        if not self.rungs or (self.limit is not None and self.limit < 1):
            raise UserError(f"rungs is {self.rungs} and limit {self.limit}, expected one or more of each")
        if not 0 < self.f0_floor_hz < self.f0_ceil_hz <= prosody.RATE_HZ / 4:
            raise UserError(
                f"f0_floor_hz is {self.f0_floor_hz} and f0_ceil_hz {self.f0_ceil_hz}, expected 0 < floor < "
                f"ceil <= {prosody.RATE_HZ // 4}"
            )
        if "files" in self.rungs and self.files is None:
            raise UserError("rung files needs a folder of sound files: give it by files")
        if self.codec is None and set(self.rungs) != {"files"}:
            raise UserError(
                f"rungs {self.rungs} need a codec: give one, or judge files alone (rungs: [files])"
            )


@dataclass(frozen=True)
class Voice:
    """What is measured of one wave.

    Args:
        f0_F: Pitch in Hz, 0 where unvoiced, see `prosody.f0_hz`.
        energy_F: Energy in dB, see `prosody.energy_db`.
        timing: Where there is speech.
        rate: Words or characters per second of speech; None without words or speech.
        vector_S: Speaker vector.
        emotion: Label of the classifier.
    """

    f0_F: Any
    energy_F: Any
    timing: prosody.Timing
    rate: float | None
    vector_S: Tensor | None
    emotion: str | None


@dataclass
class Measures:
    """What measures waves; None for what is left out."""

    config: Config
    recogniser: judges.SpeechRecogniser | None
    speaker: SpeakerEncoder | None
    emotion: EmotionClassifier | None

    def voice(self, wave16_T: Tensor, text: str) -> Voice:
        """Measures of samples at 16 kHz with a transcript."""
        config, timing = self.config, prosody.timing(wave16_T)
        if self.recogniser is not None:
            text = self.recogniser(wave16_T, config.language)
        units = prosody.speech_units(text, config.language)
        return Voice(
            prosody.f0_hz(wave16_T, config.f0_floor_hz, config.f0_ceil_hz),
            prosody.energy_db(wave16_T),
            timing,
            units / timing.net_sec if units and timing.net_sec else None,
            self.speaker(wave16_T) if self.speaker is not None else None,
            self.emotion(wave16_T) if self.emotion is not None else None,
        )


def compare(original: Voice, other: Voice) -> dict[str, Any]:
    """Columns of a copy."""
    pitch = prosody.compare_pitch(original.f0_F, other.f0_F)
    correlation, level_db = prosody.compare_energy(original.energy_F, other.energy_F)
    common_sec, either_sec = prosody.pause_overlap(original.timing, other.timing)
    row: dict[str, Any] = {
        "f0_correlation": pitch.correlation,
        "f0_rmse_semitones": pitch.rmse_semitones,
        "octave_error": pitch.octave_error,
        "voicing_error": pitch.voicing_error,
        "common_voiced": pitch.common_voiced,
        "energy_correlation": correlation,
        "level_db": level_db,
        "duration_ratio": len(other.energy_F) / max(1, len(original.energy_F)),
        "pause_iou": common_sec / either_sec if either_sec else None,
        "pauses": len(other.timing.pauses),
        "pause_sec": other.timing.pause_sec,
        "original_pauses": len(original.timing.pauses),
        "original_pause_sec": original.timing.pause_sec,
        "rate": other.rate,
        "original_rate": original.rate,
        "rate_ratio": other.rate / original.rate if other.rate and original.rate else None,
    }
    if original.vector_S is not None and other.vector_S is not None:
        row["similarity"] = judges.similarity(original.vector_S, other.vector_S)
    if original.emotion is not None:
        row |= {"emotion": other.emotion, "original_emotion": original.emotion}
        row["emotion_same"] = int(other.emotion == original.emotion)
    return row


def run(config: Config) -> dict[str, float]:
    """Compares all clips with their copies; returns and writes the means, named `RUNG/MEASURE`.

    Raises:
        UserError: for clips, a codec or a judge that cannot be opened, and where no clip can be read.
    """
    clips = read_clips(config.clips, config.limit)
    voice = None if config.voice_prompt in ("list", "none") else config.voice_prompt
    local = local_parts(config.judge, config.speaker)
    sources = [config.codec, config.vocoder, config.clips, voice, config.files, *local]
    with Evaluation("paralinguistics", config, sources, config.again) as evaluation:
        if (metrics := evaluation.done()) is not None:
            return metrics
        measures = Measures(
            config,
            judges.open_recogniser(config.judge, config.device) if config.judge else None,
            open_speaker(config.speaker),
            open_emotion(config.emotion, config.device),
        )
        codec = (
            moved(open_codec(config.codec, config.log_mel, config.vocoder), config.device)
            if config.codec
            else None
        )
        results = evaluation.results(
            clips, lambda batch: [result_of(clip, codec, measures) for clip in batch]
        )
        unread = [clip.id for clip, result in zip(clips, results, strict=True) if FAILED in result]
        if len(unread) == len(clips):
            raise UserError(
                f"none of the {len(clips)} clips of {config.clips} can be compared: expected sound files "
                "(--again true tries them again)"
            )
        rows = [
            row for clip, result in zip(clips, results, strict=True) for row in _rows(clip, result, config)
        ]
        found = means(rows, config.rungs)
        flat = {f"{rung}/{name}": value for rung, values in found.items() for name, value in values.items()}
        counts = {"n": len(clips), "failures": len(unread)}
        return evaluation.finish(flat | counts, report(rows, found, config, len(clips), unread), rows)


def result_of(clip: Clip, codec: Codec | None, measures: Measures) -> Result:
    """The rows of a clip, or why it has none."""
    config = measures.config
    try:
        if codec is None:
            wave_T, codes_N = (
                io.read(
                    clip.audio,
                    rates.DECODER_RATE_HZ,
                    clip.offset_sec,
                    clip.duration_sec,
                    channel=clip.channel,
                ),
                None,
            )
        else:
            wave_T, codes_N = read_clip(clip, codec)
        original = measures.voice(at_16khz(wave_T), clip.text)
        rows = []
        for rung in config.rungs:
            if rung == "files":
                copy_T = io.read(Path(config.files or "") / f"{clip.id}.wav", rates.TOKENIZER_RATE_HZ)
            else:
                assert codec is not None  # checked by Config
                prompt = voice_of(prompt_wave(clip, config.voice_prompt), wave_T, codec)
                copy_T = at_16khz(resynthesize(rung, wave_T, codes_N, codec, prompt).wave_T)
            copy = measures.voice(copy_T, clip.text)
            rows.append({"clip": clip.id, "rung": rung} | compare(original, copy))
        return {"rows": rows}
    except io.UnreadableAudio as error:
        return {FAILED: str(error)}


def _rows(clip: Clip, result: Result, config: Config) -> list[dict[str, Any]]:
    """A row for each rung; a clip that failed has lost its emotion, and no other measure."""
    if FAILED not in result:
        return result["rows"]
    lost = {"emotion_same": 0} if config.emotion else {}
    return [{"clip": clip.id, "rung": rung, FAILED: result[FAILED], **lost} for rung in config.rungs]


def means(rows: Sequence[dict[str, Any]], rungs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rung -> mean of each measure over the clips that have it; ratios of pauses are of all clips at once."""
    found: dict[str, dict[str, float]] = {}
    for rung in rungs:
        own = [row for row in rows if row["rung"] == rung]
        values = found[rung] = {}
        for name in (*MEASURES, "emotion_same"):
            measured = _measured(own, name)
            if measured:
                values[name] = sum(measured) / len(measured)
        for ratio, column in (("pause_count_ratio", "pauses"), ("pause_sec_ratio", "pause_sec")):
            whole = sum(_measured(own, f"original_{column}"))
            if whole:
                values[ratio] = sum(_measured(own, column)) / whole
        pairs = [(row["original_rate"], row["rate"]) for row in own if row.get("rate_ratio") is not None]
        correlation = prosody.spearman(*map(list, zip(*pairs, strict=True))) if pairs else None
        if correlation is not None:
            values["rate_spearman"] = correlation
    return found


def report(
    rows: Sequence[dict[str, Any]],
    found: dict[str, dict[str, float]],
    config: Config,
    clips: int,
    unread: list[str],
) -> str:
    """Markdown: a line for each measure with the means of each rung and their 95 % half-width."""
    names = (*MEASURES, "pause_count_ratio", "pause_sec_ratio", "rate_spearman", "emotion_same")
    names = [name for name in names if any(name in values for values in found.values())]
    table = []
    for name in names:
        line: dict[str, Any] = {"measure": name}
        for rung, values in found.items():
            measured = _measured([row for row in rows if row["rung"] == rung], name)
            line[rung] = _cell(values[name], measured, name) if name in values else None
            line[f"n {rung}"] = len(measured) or None
        table.append(line)
    text = (
        f"# Paralinguistics: {config.codec or config.files}\n\n{clips} clips of {config.clips}, "
        f"{len(unread)} failures; ASR {config.judge or 'none (words of the transcripts)'}, speaker encoder "
        f"{config.speaker}, emotion {config.emotion}, pitch {config.f0_floor_hz:g} to "
        f"{config.f0_ceil_hz:g} Hz by harvest, pauses by silero-vad"
    )
    return text + (f"; not readable: {', '.join(unread)}" if unread else "") + f"\n\n{markdown_table(table)}"


def _measured(rows: Sequence[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in rows if row.get(name) is not None]


def _cell(value: float, measured: Sequence[float], name: str) -> str:
    """A mean and its 95 % interval: Wilson's for shares of clips, 1.96 standard errors for means."""
    n = len(measured)
    if name == "emotion_same":
        low, high = wilson(sum(measured), n)
        return f"{value:.3f} ({low:.3f} to {high:.3f})"
    half = half_width(measured)
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"
