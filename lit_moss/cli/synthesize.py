"""Codes -> sound files: JSON lines with `codes` (what `tokenize` or a model writes) -> DIR/ID.wav.

Each line is {"codes": […], "id": …} or has an `audio_filepath`, whose name is then taken. Any length: more
than 60 s are decoded as a stream. With --stream every file grows chunk by chunk, as in a conversation, and
the time to the first sound is told.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.cli.options import add_log_mel_argument
from lit_moss.errors import UserError
from lit_moss.records import Record, file_name, json_lines, unique_name

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.codec.codec import Codec
    from lit_moss.codec.flow import Prompt


@dataclass(frozen=True)
class Line:
    """One utterance to make.

    Args:
        name: Of its file, without ending.
        codes: Its codes.
        speech_tokenizer: Fingerprint of their speech tokenizer, "" if unknown.
        where: File and line it was read from, "" if none.
    """

    name: str
    codes: list[int]
    speech_tokenizer: str = ""
    where: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of the verb."""
    parser.add_argument(
        "codes", type=Path, metavar="JSONL", help="JSON lines with codes; - for standard input"
    )
    parser.add_argument(
        "--codec", required=True, help="decoder run (runs/NAME), checkpoint, folder in the released layout"
    )
    add_log_mel_argument(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder of the sound files")
    parser.add_argument(
        "--voice-prompt",
        metavar="FILE",
        help="speech whose voice is taken, at most 10 s of it (default: the mean voice of the training)",
    )
    parser.add_argument("--stream", action="store_true", help="write each file chunk by chunk")
    parser.add_argument(
        "--batch-codes", type=int, default=750, help="codes computed at once, padding included (default 750)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda (default auto)")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def main(args: argparse.Namespace) -> None:
    """Makes all files; one that exists is an error before anything is computed."""
    from lit_moss.audio import rates
    from lit_moss.devices import moved
    from lit_moss.hub import open_codec

    lines = read_lines(args.codes)
    if args.batch_codes < 1:
        raise UserError(f"--batch-codes is {args.batch_codes}, expected 1 or more")
    targets = [args.out / f"{line.name}.wav" for line in lines]
    existing = [path for path in targets if path.exists()]
    if existing and not args.force:
        raise UserError(f"{existing[0]} exists: give another --out, or --force to overwrite")
    codec = moved(open_codec(args.codec, args.log_mel), args.device)
    _check_codes(lines, codec)
    prompt = _prompt(codec, args.voice_prompt)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {args.out} cannot be made ({error.strerror}): expected a folder") from error
    begun = time.monotonic()
    first = _stream(codec, lines, prompt, args.out) if args.stream else None
    if first is None:
        _batched(codec, lines, prompt, args.out, args.batch_codes)
    taken = time.monotonic() - begun
    seconds = sum(len(line.codes) for line in lines) * rates.SECONDS_PER_CODE
    latency = f", first sound after {first:.2f} s" if first is not None else ""
    print(f"{args.out}: {len(lines)} files, {seconds / 60:.1f} min, {taken:.1f} s "
          f"({seconds / taken:.1f} x real time){latency}")  # fmt: skip


def read_lines(path: Path) -> list[Line]:
    """Utterances of a JSON lines file.

    Raises:
        UserError: with the number of the line, for one that is no utterance.
    """
    found: list[Line] = []
    names: set[str] = set()
    for record in json_lines(path, '{"codes": [whole numbers], "id": "name"}'):
        codes, name = record.whole_numbers("codes"), _file_name(record)
        for key in ("offset", "duration"):  # as `tokenize` writes them
            record.seconds(key)
        found.append(
            Line(unique_name(name, names), codes, record.text("speech_tokenizer") or "", record.where)
        )
    if not found:
        raise UserError(f"{path} holds no line: expected JSON lines with codes")
    return found


def _file_name(record: Record) -> str:
    """The id with what a file's name cannot hold replaced, else the sound file's name, else the line."""
    path = record.path("audio_filepath")
    return file_name(record.name("id") or (Path(path).stem if path else "")) or f"{record.number:05d}"


def _check_codes(lines: list[Line], codec: "Codec") -> None:
    from lit_moss.codec.encoder import fingerprint

    vocabulary = codec.codes
    own = fingerprint(codec.tokenizer.encoder) if codec.tokenizer is not None else ""
    for line in lines:
        where = f"{line.where}: " if line.where else ""
        if line.speech_tokenizer and own and line.speech_tokenizer != own:
            raise UserError(
                f"{where}{line.name} has codes of tokenizer {line.speech_tokenizer}, this decoder was trained on those "
                f"of {own}: tokenize with the decoder's"
            )
        bad = [code for code in line.codes if not 0 <= code < vocabulary]
        if bad:
            raise UserError(
                f"{where}{line.name} has code {bad[0]}, this decoder takes 0 to {vocabulary - 1}: codes of "
                "another tokenizer, or the language model's end mark"
            )


def _prompt(codec: "Codec", file: str | None) -> "Prompt":
    from lit_moss.audio import io, rates

    if file is None:
        return codec.no_prompt()
    try:
        wave = io.read(file, rates.DECODER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"--voice-prompt {error}: expected a sound file of some seconds of speech") from error
    return codec.prompt(wave, rates.DECODER_RATE_HZ)


def _batched(codec: "Codec", lines: list[Line], prompt: "Prompt | None", out: Path, budget: int) -> None:
    from tqdm import tqdm

    from lit_moss.audio import io, rates

    with tqdm(total=len(lines), unit="file", disable=None) as bar:
        for group, waves in decode_batches(codec, lines, prompt, budget):
            for line, wave in zip(group, waves, strict=True):
                io.write(out / f"{line.name}.wav", wave, rates.DECODER_RATE_HZ)
            bar.update(len(group))


def decode_batches(
    codec: "Codec", lines: list[Line], prompt: "Prompt | None", budget: int
) -> Iterator[tuple[list[Line], list["Tensor"]]]:
    """Groups of similar length with their waves at 24 kHz; an item's wave does not depend on its group."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from lit_moss.audio import rates
    from lit_moss.codec.codec import LONGEST_AT_ONCE

    prompt = prompt or codec.no_prompt()
    before = len(prompt.codes_N)
    groups: list[list[Line]] = []
    for line in sorted(lines, key=lambda one: len(one.codes)):
        if not groups or (len(groups[-1]) + 1) * (before + len(line.codes)) > budget:
            groups.append([])
        groups[-1].append(line)
    for group in groups:
        if len(group) == 1 or len(group[-1].codes) > LONGEST_AT_ONCE or not group[0].codes:
            yield group, [codec.decode(line.codes, prompt) for line in group]
            continue
        lengths = torch.tensor([len(line.codes) for line in group])
        codes_BN = pad_sequence([torch.tensor(line.codes) for line in group], batch_first=True)
        mel_BMT = codec.flow.sample(codes_BN, lengths, prompt)
        yield (
            group,
            [
                codec.vocoder(mel[None, :, : rates.FRAMES_PER_CODE_DECODER * n])[0].float().cpu()
                for mel, n in zip(mel_BMT, lengths.tolist(), strict=True)
            ],
        )


def _stream(codec: "Codec", lines: list[Line], prompt: "Prompt | None", out: Path) -> float:
    """Writes chunk by chunk; the mean time from the first code to the first sound in seconds.

    All codes are there at once, so this is computing time.
    """
    import soundfile
    from tqdm import tqdm

    from lit_moss.audio import rates

    waits = []
    for line in tqdm(lines, unit="file", disable=None):
        player, begun, wait = codec.stream(prompt), time.monotonic(), None
        with soundfile.SoundFile(out / f"{line.name}.wav", "w", rates.DECODER_RATE_HZ, 1) as file:
            for code in line.codes:
                samples = player.push([code])
                if len(samples):
                    wait = time.monotonic() - begun if wait is None else wait
                    file.write(samples.numpy())
                    file.flush()
            file.write(player.flush().numpy())
        if line.codes:
            waits.append(time.monotonic() - begun if wait is None else wait)
    return sum(waits) / max(1, len(waits))
