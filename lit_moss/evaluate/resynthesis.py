"""Speech -> codes -> speech: what is lost on the way, step by step (the paper's table 4).

    original        the recording
    vocoder         its mel through the vocoder
    codec           its codes through flow and vocoder
    stream          the same, code by code

A row a clip and rung: word errors, speaker similarity to the original, DNSMOS, mel-cepstral distance,
real-time factor (computing time by audio time), for streams the computing time to the first sound and the
roughness of their seams by that inside chunks (1 is none to be heard). A
similarity by the encoder that conditions the decoder flatters it: name another where you have one.
"""

import csv
import json
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from omegaconf import MISSING
from torch import Tensor
from tqdm import tqdm

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.codec import Codec, trimmed
from lit_moss.codec.flow import Prompt
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker
from lit_moss.devices import moved
from lit_moss.errors import UserError
from lit_moss.evaluate import judges
from lit_moss.evaluate.clips import Clip, read_clips
from lit_moss.hub import open_codec
from lit_moss.runs.tracking import Tracker

LANGUAGES = ("en", "zh")
RUNGS = ("original", "vocoder", "codec", "stream")
METRICS = ("wer", "similarity", "dnsmos", "mcd_db", "rtf", "first_sound_sec", "seam_ratio")


@dataclass
class Config:
    """Options of `evaluate resynthesis`.

    Args:
        codec: Decoder: runs/NAME, a checkpoint, a folder in the released layout.
        log_mel: Features of its speech tokenizer, causal or whisper; empty takes what it states.
        clips: A manifest, or a Seed-TTS-Eval list.
        rungs: Which of original, vocoder, codec, stream.
        prompt: `list` takes each clip's own from the list, `none` gives the clip's speaker vector alone, else
            a sound file for all.
        judge: ASR judge: embedded:whisper-base, large-v3, …; empty leaves word errors out.
        speaker: Speaker encoder of the similarity.
        dnsmos: Whether to judge by DNSMOS (some 2 s a clip and rung).
        language: en or zh.
        steps: Solver steps; empty takes the decoder's own, as for `start` and `guidance`.
        start: Time at which the solver starts, see `FlowConfig`.
        guidance: Weight of classifier-free guidance.
        limit: First so many clips, all if empty.
        device: auto, cpu or cuda.
        name: MLflow experiment, and folder below `run_root`.
        run_root: Folder of all runs' files.
        save_audio: Whether to keep the made sound files.
    """

    codec: str = MISSING
    log_mel: str | None = None
    clips: str = MISSING
    rungs: list[str] = field(default_factory=lambda: list(RUNGS))
    prompt: str = "none"
    judge: str | None = "embedded:whisper-base"
    speaker: str | None = "embedded:resemblyzer"
    dnsmos: bool = True
    language: str = "en"
    steps: int | None = None
    start: float | None = None
    guidance: float | None = None
    limit: int | None = None
    device: str = "auto"
    name: str = "resynthesis"
    run_root: str = "runs"
    save_audio: bool = True


@dataclass
class Made:
    """A clip on one rung.

    Args:
        wave_T: At 24 kHz.
        seconds: Computing time.
        first_sec: Computing time to the first sound, for streams.
        seams: Where the pieces of a stream meet.
    """

    wave_T: Tensor
    seconds: float
    first_sec: float | None = None
    seams: list[int] = field(default_factory=list)


def run(config: Config) -> dict[str, dict[str, float]]:
    """Judges all clips; returns and writes the means of each rung.

    Raises:
        UserError: for a rung it does not know, or clips it cannot read.
    """
    for rung in config.rungs:
        if rung not in RUNGS:
            raise UserError(f"rungs has {rung!r}, expected some of {', '.join(RUNGS)}")
    if not config.rungs or (config.limit is not None and config.limit < 1):
        raise UserError(f"rungs is {config.rungs} and limit {config.limit}, expected one or more of each")
    if config.language not in LANGUAGES:
        raise UserError(f"language is {config.language!r}, expected one of {', '.join(LANGUAGES)}")
    clips = read_clips(config.clips, config.limit)
    codec = moved(open_codec(config.codec, config.log_mel), config.device)
    sampler = {name: getattr(config, name) for name in ("steps", "start", "guidance")}
    codec.flow.config = replace(codec.flow.config, **{k: v for k, v in sampler.items() if v is not None})
    recogniser = judges.Recogniser(config.judge, config.device) if config.judge else None
    speaker = open_speaker(config.speaker)
    folder = new_folder(Path(config.run_root) / config.name)
    tracker = Tracker(config.name, folder.name, config.run_root, system_metrics=False)
    tracker.log_hyperparams(vars(config))
    rows: list[dict[str, Any]] = []
    status, unread = "failed", []
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
        found = means(rows, config.rungs)
        text = report(found, config, len(clips) - len(unread), unread)
        (folder / "report.md").write_text(text)
        (folder / "result.json").write_text(json.dumps(found, indent=1) + "\n")
        tracker.log_metrics(
            {f"{r}/{k}": v for r, values in found.items() for k, v in values.items()}
            | {"clips_left_out": float(len(unread))},
            step=0,
        )
        tracker.log_table({key: [row[key] for row in rows] for key in rows[0]}, "clips.json")
        tracker.log_text(text, "report.md")
        status = "success"
    finally:
        tracker.finalize(status)
    print(text)
    print(f"{folder}: report.md, clips.csv, result.json")
    return found


def new_folder(parent: Path) -> Path:
    """A folder below `parent`, named by the time; two begun in the same second get one each."""
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
    """The rows of one clip.

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
        made = make(rung, wave_T, codes_N, codec, prompt)
        wave16_T = _at_16khz(made.wave_T)
        heard = recogniser(wave16_T, config.language) if recogniser and clip.text else ""
        errors, words = judges.word_errors(clip.text, heard, config.language)
        row: dict[str, Any] = {
            "clip": clip.id, "rung": rung, "seconds": round(len(wave_T) / rates.DECODER_RATE_HZ, 3),
            "errors": errors if recogniser else None, "words": words if recogniser else None,
            "similarity": None, "dnsmos": None, "mcd_db": None, "rtf": None, "first_sound_sec": None,
            "seam_ratio": None,
            "said": clip.text, "heard": heard,
        }  # fmt: skip
        if original_S is not None and speaker is not None:
            row["similarity"] = judges.similarity(original_S, speaker(wave16_T))
        if config.dnsmos:
            row["dnsmos"] = judges.dnsmos(wave16_T)
        if rung != "original":
            row["mcd_db"] = judges.mel_cepstral_distance(wave_T, made.wave_T)
            row["rtf"] = made.seconds * rates.DECODER_RATE_HZ / max(1, len(made.wave_T))
            row["first_sound_sec"] = made.first_sec
            chunk = codec.flow.config.chunk_codes * rates.DECODER_SAMPLES_PER_CODE
            row["seam_ratio"] = judges.seam_ratio(made.wave_T, made.seams, chunk=chunk)
        if config.save_audio:
            (folder / "audio").mkdir(exist_ok=True)
            io.write(folder / "audio" / f"{clip.id}_{rung}.wav", made.wave_T, rates.DECODER_RATE_HZ)
        rows.append(row)
    return rows


@torch.no_grad()
def make(rung: str, wave_T: Tensor, codes_N: Tensor | None, codec: Codec, prompt: Prompt) -> Made:
    """A recording at 24 kHz on one rung; times cover decoding alone, not the tokenizer."""
    if rung == "original":
        return Made(wave_T, 0.0)
    if rung == "vocoder":
        begun = time.perf_counter()
        device = codec.flow.input_embedding.weight.device
        made_T = codec.vocoder(decoder_mel(wave_T[None].to(device)))[0].float().cpu()
        return Made(made_T, time.perf_counter() - begun)
    if codes_N is None:
        raise UserError(f"rung {rung} needs codes: this codec has no tokenizer")
    begun, first, seams = time.perf_counter(), None, []
    if rung == "codec":
        made_T = codec.decode(codes_N, prompt)
    else:
        player, pieces = codec.stream(prompt), []
        begun = time.perf_counter()  # the prompt is taken in before the first code comes
        for code in codes_N.split(1):
            pieces.append(player.push(code))
            if len(pieces[-1]) and first is None:
                first = time.perf_counter() - begun
        pieces.append(player.flush())
        made_T = torch.cat(pieces)
        ends = torch.tensor([len(piece) for piece in pieces]).cumsum(dim=0)[:-1]
        seams = [int(end) for end in ends.unique() if end]
        first = time.perf_counter() - begun if first is None else first
    seconds = time.perf_counter() - begun
    return Made(made_T, seconds, first, seams)


def _prompt(clip: Clip, wave_T: Tensor, codec: Codec, config: Config) -> Prompt:
    if config.prompt == "none":
        return Prompt.none(None if codec.speaker is None else codec.speaker(_at_16khz(wave_T)))
    file = clip.prompt if config.prompt == "list" else Path(config.prompt)
    if file is None:
        raise UserError(f"clip {clip.id} has no prompt in the list: set prompt to none or to a sound file")
    try:
        return codec.prompt(io.read(file, rates.DECODER_RATE_HZ), rates.DECODER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"prompt of clip {clip.id}: {error}") from error


def means(rows: list[dict[str, Any]], rungs: list[str]) -> dict[str, dict[str, float]]:
    """Of each rung: errors over words, and the plain mean of everything else that was measured."""
    found: dict[str, dict[str, float]] = {}
    for rung in rungs:
        own = [row for row in rows if row["rung"] == rung]
        values = found[rung] = {}
        words = sum(row["words"] or 0 for row in own)
        if words:
            values["wer"] = sum(row["errors"] for row in own) / words
        for key in METRICS[1:]:
            measured = [row[key] for row in own if row[key] is not None]
            if measured:
                values[key] = sum(measured) / len(measured)
    return found


def report(found: dict[str, dict[str, float]], config: Config, clips: int, unread: list[str]) -> str:
    """Markdown."""
    heads = [key for key in METRICS if any(key in values for values in found.values())]
    lines = [
        f"# Resynthesis: {config.codec}",
        "",
        f"{clips} clips of {config.clips}; judge {config.judge}, speaker {config.speaker}, "
        f"prompt {config.prompt}" + (f"; left out, not readable: {', '.join(unread)}" if unread else ""),
        "",
        f"| | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
    ]
    for rung, values in found.items():
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
