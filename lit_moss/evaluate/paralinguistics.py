"""Measures what a codec preserves of a voice besides words: pitch, energy, pauses, rate, speaker, emotion.

A resynthesis has the same timing as the original, so the two are compared frame by frame:

    f0_correlation, f0_rmse_semitones   of log-F0 (WORLD's harvest) over frames voiced in both, without octave
                                        errors
    octave_error    fraction of those frames more than half an octave apart
    voicing_error   fraction of all frames that are voiced in only one
    common_voiced   frames voiced in both / frames voiced in either
    energy_correlation, level_db        of the root mean square of 25 ms in dB (floor -60): correlation, and
                                        level of the copy relative to the original
    duration_ratio  length / original length; of a truncated copy, the existing part is compared
    pause_iou       overlap over union of the pauses (silero-vad), over clips with pauses
    pause_count_ratio, pause_sec_ratio  over all clips, relative to the originals
    rate            words (Chinese: characters) per second of speech without pauses
    rate_ratio, rate_spearman           relative to the original; rank correlation over clips
    similarity      cosine of speaker vectors
    emotion_same    fraction of clips with the original's label, if a classifier is given

The rungs (levels of resynthesis) are those of `evaluate resynthesis`; `files` are copies made elsewhere.
Without a judge, the transcript's words are used for both sides, and rates differ only by the pauses.
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
        codec: Decoder: runs/NAME, a checkpoint, a folder in the released layout. null: only `files` are
            evaluated.
        files: Folder with a file CLIP.wav for each clip, made by any codec. null: none.
        log_mel: Features of the codec's speech tokenizer: causal or whisper. null: as stated by the
            tokenizer.
        vocoder: Vocoder to use instead of the codec's own: griffin-lim, runs/vocoder, a folder, a file
            hift.pt.
        rungs: Levels of resynthesis to evaluate: some of vocoder, codec, stream, files.
        voice_prompt: `list`: each clip's own prompt from the list; `none`: only the clip's speaker vector; a
            sound file: the same prompt for all clips.
        judge: Speech recogniser that counts words for the speaking rate. null: the transcript is used for
            both sides.
        speaker: Speaker encoder for the similarity. null: not computed.
        emotion: Emotion classifier: emotion2vec_plus_large (needs funasr), or package.module:function. null:
            none.
        f0_floor_hz: Minimum pitch to search for, in Hz.
        f0_ceil_hz: Maximum pitch to search for, in Hz.
        language: Language of the clips: en or zh.
        limit: Number of clips, from the first. null: all.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        again: Start over if results exist.
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
    """Measurements of one wave.

    Args:
        f0_F: Pitch in Hz, 0 if unvoiced, see `prosody.f0_hz`.
        energy_F: Energy in dB, see `prosody.energy_db`.
        timing: Stretches of speech.
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
    """Functions that measure waves; None for measures that are disabled."""

    config: Config
    recogniser: judges.SpeechRecogniser | None
    speaker: SpeakerEncoder | None
    emotion: EmotionClassifier | None

    def voice(self, wave16_T: Tensor, text: str) -> Voice:
        """Measurements of samples at 16 kHz with a transcript."""
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
    """Columns that compare a copy with its original."""
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
        UserError: if the clips, the codec or a judge cannot be opened, or no clip can be read.
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
                assert codec is not None  # ensured by Config
                prompt = voice_of(prompt_wave(clip, config.voice_prompt), wave_T, codec)
                copy_T = at_16khz(resynthesize(rung, wave_T, codes_N, codec, prompt).wave_T)
            copy = measures.voice(copy_T, clip.text)
            rows.append({"clip": clip.id, "rung": rung} | compare(original, copy))
        return {"rows": rows}
    except io.UnreadableAudio as error:
        return {FAILED: str(error)}


def _rows(clip: Clip, result: Result, config: Config) -> list[dict[str, Any]]:
    """One row per rung; a failed clip counts as a lost emotion, and is ignored in other measures."""
    if FAILED not in result:
        return result["rows"]
    lost = {"emotion_same": 0} if config.emotion else {}
    return [{"clip": clip.id, "rung": rung, FAILED: result[FAILED], **lost} for rung in config.rungs]


def means(rows: Sequence[dict[str, Any]], rungs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rung -> mean of each measure over the clips that have it; ratios of pauses are over all clips."""
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
    """Markdown: a line per measure with the means of each rung and their 95 % half-widths."""
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
    """A mean with its 95 % interval: Wilson's for fractions of clips, 1.96 standard errors for means."""
    n = len(measured)
    if name == "emotion_same":
        low, high = wilson(sum(measured), n)
        return f"{value:.3f} ({low:.3f} to {high:.3f})"
    half = half_width(measured)
    return f"{value:.3f}" if half is None else f"{value:.3f} ± {half:.3f}"
