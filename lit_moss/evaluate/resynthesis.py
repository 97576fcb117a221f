"""Speech -> codes -> speech: what is lost on the way, step by step (the paper's table 4).

    original        the recording
    vocoder         its mel through the vocoder
    codec           its codes through flow and vocoder
    stream          the same, code by code

A row for each clip and rung of this ladder holds word errors, speaker similarity to the original, DNSMOS,
mel-cepstral distance, real-time factor (computing time over audio time), and for streams the computing time
to the first sound and the roughness of their seams over that inside chunks (1: inaudible). The speaker
encoder that conditions the decoder overestimates the similarity: name another one where there is one.
"""

import csv
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.audio.stream_timing import timed_outputs
from lit_moss.codec.codec import Codec, trimmed
from lit_moss.codec.flow import Prompt
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker
from lit_moss.devices import moved
from lit_moss.errors import UserError
from lit_moss.evaluate import judges
from lit_moss.evaluate.clips import Clip, read_clips
from lit_moss.hub import open_codec
from lit_moss.runs.tracking import Tracker

Rung = Literal["original", "vocoder", "codec", "stream"]
RUNGS: tuple[Rung, ...] = get_args(Rung)
METRICS = ("wer", "similarity", "dnsmos", "mcd_db", "rtf", "first_sound_sec", "seam_ratio")
COLUMNS = ("clip", "rung", "seconds", "errors", "words", *METRICS[1:], "reference", "hypothesis")


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
        judge: Speech recogniser for word errors: embedded:whisper-base, large-v3, …; null leaves them out.
        speaker: Speaker encoder for the similarity; null leaves it out.
        dnsmos: Whether to judge by DNSMOS (about 2 s per clip and rung).
        language: Language of the clips, for word errors.
        steps: Solver steps; null uses the decoder's own.
        start: Time at which the solver starts, see `FlowConfig`; null uses the decoder's own.
        guidance: Weight of classifier-free guidance; null uses the decoder's own.
        limit: How many clips, from the first; null uses all.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        save_audio: Whether to keep the sound files of all rungs.
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
    language: Literal["en", "zh"] = "en"
    steps: int | None = None
    start: float | None = None
    guidance: float | None = None
    limit: int | None = None
    device: str = "auto"
    name: str = "resynthesis"
    run_root: str = "runs"
    save_audio: bool = True

    def __post_init__(self) -> None:
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


def run(config: Config) -> dict[str, dict[str, float]]:
    """Judges all clips; returns and writes the means of each rung.

    Raises:
        UserError: for clips, a codec or a judge that cannot be opened, and where no clip can be read.
    """
    clips = read_clips(config.clips, config.limit)
    codec = moved(open_codec(config.codec, config.log_mel, config.vocoder), config.device)
    codec.flow.config = replace(codec.flow.config, **config.sampler_changes())
    recogniser = judges.Recogniser(config.judge, config.device) if config.judge else None
    speaker = open_speaker(config.speaker)
    folder = new_folder(Path(config.run_root) / config.name)
    tracker = Tracker(config.name, folder.name, config.run_root, system_metrics=False)
    tracker.log_hyperparams(vars(config))
    rows: list[dict[str, Any]] = []
    unread: list[str] = []
    status = "failed"
    try:
        for clip in tqdm(clips, unit="clip", disable=None):
            try:
                rows += judge(clip, codec, config, recogniser, speaker, folder)
            except io.UnreadableAudio as error:
                unread.append(clip.id)
                print(f"left out: {error}", file=sys.stderr, flush=True)
                continue
            _write(folder / "clips.csv", rows)
        if not rows:
            raise UserError(f"none of the {len(clips)} clips of {config.clips} can be read")
        metrics = means(rows, config.rungs)
        text = report(metrics, config, len(clips) - len(unread), unread)
        (folder / "report.md").write_text(text)
        (folder / "result.json").write_text(json.dumps(metrics, indent=1) + "\n")
        _track(tracker, metrics, rows, len(unread), text)
        status = "success"
    finally:
        tracker.finalize(status)
    print(text)
    print(f"{folder}: report.md, clips.csv, result.json")
    return metrics


def _track(
    tracker: Tracker, metrics: dict[str, dict[str, float]], rows: list[dict[str, Any]], unread: int, text: str
) -> None:
    """Logs the means of each rung, the rows and the report to MLflow."""
    named = {f"{rung}/{key}": value for rung, values in metrics.items() for key, value in values.items()}
    tracker.log_metrics(named | {"clips_left_out": float(unread)}, step=0)
    tracker.log_table({key: [row[key] for row in rows] for key in rows[0]}, "clips.json")
    tracker.log_text(text, "report.md")


def new_folder(parent: Path) -> Path:
    """A folder below `parent`, named after the time; two started in the same second get different ones."""
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    for name in chain([stamp], (f"{stamp}-{n}" for n in count(2))):
        try:
            (parent / name).mkdir(parents=True)
            return parent / name
        except FileExistsError:
            continue
    raise AssertionError


def judge(
    clip: Clip, codec: Codec, config: Config, recogniser: "judges.Recogniser | None",
    speaker: SpeakerEncoder | None, folder: Path,
) -> list[dict[str, Any]]:  # fmt: skip
    """The rows of one clip, one for each rung.

    Raises:
        UnreadableAudio: if it cannot be read, or is shorter than a code.
    """
    span = (clip.offset_sec, clip.duration_sec)
    wave_T = io.read(clip.audio, rates.DECODER_RATE_HZ, *span)
    if len(wave_T) < rates.DECODER_SAMPLES_PER_CODE:
        raise io.UnreadableAudio(f"{clip.audio}: shorter than a code of 80 ms")
    codes_N = None
    if codec.tokenizer is not None:
        codes_N = codec.tokenizer.encode(io.read(clip.audio, rates.TOKENIZER_RATE_HZ, *span), 16_000)
        codes_N, _ = trimmed(codes_N, decoder_mel(wave_T[None])[0])
    prompt = _prompt(clip, wave_T, codec, config)
    original_S = speaker(_at_16khz(wave_T)) if speaker is not None else None
    rows = []
    for rung in config.rungs:
        result = resynthesize(rung, wave_T, codes_N, codec, prompt)
        wave16_T = _at_16khz(result.wave_T)
        row = _word_errors(clip, wave16_T, config, recogniser)
        if original_S is not None and speaker is not None:
            row["similarity"] = judges.similarity(original_S, speaker(wave16_T))
        if config.dnsmos:
            row["dnsmos"] = judges.dnsmos(wave16_T)
        if rung != "original":
            row["mcd_db"] = judges.mel_cepstral_distance(wave_T, result.wave_T)
            row["rtf"] = result.seconds * rates.DECODER_RATE_HZ / max(1, len(result.wave_T))
            row["first_sound_sec"] = result.first_sec
            chunk = codec.flow.config.chunk_codes * rates.DECODER_SAMPLES_PER_CODE
            row["seam_ratio"] = judges.seam_ratio(result.wave_T, result.seams, chunk=chunk)
        if config.save_audio:
            (folder / "audio").mkdir(exist_ok=True)
            io.write(folder / "audio" / f"{clip.id}_{rung}.wav", result.wave_T, rates.DECODER_RATE_HZ)
        seconds = round(len(wave_T) / rates.DECODER_RATE_HZ, 3)
        rows.append(
            {key: None for key in COLUMNS} | {"clip": clip.id, "rung": rung, "seconds": seconds} | row
        )
    return rows


def _word_errors(
    clip: Clip, wave16_T: Tensor, config: Config, recogniser: "judges.Recogniser | None"
) -> dict[str, Any]:
    """Columns of the recogniser: what was said, what it understood, and the errors."""
    hypothesis = recogniser(wave16_T, config.language) if recogniser and clip.text else ""
    row: dict[str, Any] = {"reference": clip.text, "hypothesis": hypothesis}
    if recogniser:
        row["errors"], row["words"] = judges.word_errors(clip.text, hypothesis, config.language)
    return row


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


def _prompt(clip: Clip, wave_T: Tensor, codec: Codec, config: Config) -> Prompt:
    if config.voice_prompt == "none":
        return Prompt.none(None if codec.speaker is None else codec.speaker(_at_16khz(wave_T)))
    file = clip.prompt if config.voice_prompt == "list" else Path(config.voice_prompt)
    if file is None:
        raise UserError(f"clip {clip.id} has no prompt in the list: set voice_prompt to none or a sound file")
    try:
        return codec.prompt(io.read(file, rates.DECODER_RATE_HZ), rates.DECODER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"prompt of clip {clip.id}: {error}") from error


def means(rows: list[dict[str, Any]], rungs: Sequence[str]) -> dict[str, dict[str, float]]:
    """Rung -> errors over words, and the plain mean of everything else that was measured."""
    metrics: dict[str, dict[str, float]] = {}
    for rung in rungs:
        own = [row for row in rows if row["rung"] == rung]
        values = metrics[rung] = {}
        words = sum(row["words"] or 0 for row in own)
        if words:
            values["wer"] = sum(row["errors"] for row in own) / words
        for key in METRICS[1:]:
            measured = [row[key] for row in own if row[key] is not None]
            if measured:
                values[key] = sum(measured) / len(measured)
    return metrics


def report(metrics: dict[str, dict[str, float]], config: Config, clips: int, unread: list[str]) -> str:
    """A Markdown table with a line per rung."""
    heads = [key for key in METRICS if any(key in values for values in metrics.values())]
    lines = [
        f"# Resynthesis: {config.codec}",
        "",
        f"{clips} clips of {config.clips}; judge {config.judge}, speaker {config.speaker}, "
        f"voice prompt {config.voice_prompt}"
        + (f"; left out, not readable: {', '.join(unread)}" if unread else ""),
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for rung, values in metrics.items():
        cells = [f"{values[key]:.3f}" if key in values else "" for key in heads]
        lines.append(f"| {rung} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _at_16khz(wave_T: Tensor) -> Tensor:
    return resample(wave_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)
