"""Decodes JSON lines of codes to sound files, in padded batches or as streams that write while decoding.

Each line is {"codes": […], "id": …}, or has an `audio_filepath`, whose name without extension is used.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.errors import UserError
from lit_moss.records import Record, file_name, json_lines, unique_name

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.codec.codec import Codec
    from lit_moss.codec.flow import Prompt


@dataclass(frozen=True)
class CodeLine:
    """Codes of one utterance.

    Args:
        name: Name of the sound file, without extension.
        codes: The codes.
        speech_tokenizer: Fingerprint of the speech tokenizer that made the codes, "" if unknown.
        where: File and line that it was read from, "" if none.
    """

    name: str
    codes: list[int]
    speech_tokenizer: str = ""
    where: str = ""


def read_code_lines(path: Path) -> list[CodeLine]:
    """Reads the utterances of a JSON lines file; `-` is standard input.

    Raises:
        UserError: if a line is not an utterance; the message names the line.
    """
    lines: list[CodeLine] = []
    names: set[str] = set()
    for record in json_lines(path, '{"codes": [whole numbers], "id": "name"}'):
        codes, name = record.whole_numbers("codes"), _name_of(record)
        for key in ("offset", "duration"):  # as written by `tokenize`
            record.seconds(key)
        speech_tokenizer = record.text("speech_tokenizer") or ""
        lines.append(CodeLine(unique_name(name, names), codes, speech_tokenizer, record.where))
    if not lines:
        raise UserError(f"{path} holds no line: expected JSON lines with codes")
    return lines


def _name_of(record: Record) -> str:
    """The id as a valid file name, otherwise the audio file's name, otherwise the line number."""
    path = record.path("audio_filepath")
    return file_name(record.name("id") or (Path(path).stem if path else "")) or f"{record.number:05d}"


def check_codes(lines: Sequence[CodeLine], codec: "Codec") -> None:
    """Rejects codes that a codec cannot decode.

    Raises:
        UserError: if codes are from another tokenizer or outside the codec's vocabulary; the message names
            the line.
    """
    from lit_moss.codec.encoder import fingerprint

    own = fingerprint(codec.tokenizer.encoder) if codec.tokenizer is not None else ""
    for line in lines:
        where = f"{line.where}: " if line.where else ""
        if line.speech_tokenizer and own and line.speech_tokenizer != own:
            raise UserError(
                f"{where}{line.name} has codes of tokenizer {line.speech_tokenizer}, this decoder was "
                f"trained on those of {own}: tokenize with the decoder's"
            )
        wrong = [code for code in line.codes if not 0 <= code < codec.codes]
        if wrong:
            raise UserError(
                f"{where}{line.name} has code {wrong[0]}, this decoder takes 0 to {codec.codes - 1}: codes "
                "of another tokenizer, or the language model's end mark"
            )


def voice_prompt(codec: "Codec", file: str | Path | None, option: str = "--voice-prompt") -> "Prompt":
    """The voice prompt of a sound file; without a file, the mean voice of the training data.

    Args:
        codec: Codec that will use the voice.
        file: Sound file, or None.
        option: Name of the option, for error messages.

    Raises:
        UserError: if the file cannot be read.
    """
    from lit_moss.audio import io, rates

    if file is None:
        return codec.no_prompt()
    try:
        wave_T = io.read(file, rates.DECODER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"{option} {error}: expected a sound file of some seconds of speech") from error
    return codec.prompt(wave_T, rates.DECODER_RATE_HZ)


def decode_batches(
    codec: "Codec", lines: Sequence[CodeLine], prompt: "Prompt | None", max_codes: int
) -> Iterator[tuple[list[CodeLine], list["Tensor"]]]:
    """Yields groups of similar length with their waves at 24 kHz; grouping does not affect the waves.

    Args:
        codec: Decodes the codes.
        lines: Utterances, in any order.
        prompt: Voice prompt for all utterances.
        max_codes: Maximum number of codes per group, including prompt and padding; a single utterance may
            have more.
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from lit_moss.audio import rates
    from lit_moss.codec.codec import LONGEST_AT_ONCE

    prompt = prompt or codec.no_prompt()
    for group in _groups(lines, len(prompt.codes_N), max_codes):
        if len(group) == 1 or len(group[-1].codes) > LONGEST_AT_ONCE or not group[0].codes:
            yield group, [codec.decode(line.codes, prompt) for line in group]
            continue
        lengths_B = torch.tensor([len(line.codes) for line in group])
        codes_BN = pad_sequence([torch.tensor(line.codes) for line in group], batch_first=True)
        mel_BMT = codec.flow.sample(codes_BN, lengths_B, prompt)
        yield (
            group,
            [
                codec.vocoder(mel_MT[None, :, : rates.FRAMES_PER_CODE_DECODER * n])[0].float().cpu()
                for mel_MT, n in zip(mel_BMT, lengths_B.tolist(), strict=True)
            ],
        )


def _groups(lines: Sequence[CodeLine], prompt_codes: int, max_codes: int) -> list[list[CodeLine]]:
    groups: list[list[CodeLine]] = []
    for line in sorted(lines, key=lambda line: len(line.codes)):
        if not groups or (len(groups[-1]) + 1) * (prompt_codes + len(line.codes)) > max_codes:
            groups.append([])
        groups[-1].append(line)
    return groups


def write_batches(
    codec: "Codec", lines: Sequence[CodeLine], prompt: "Prompt | None", folder: Path, max_codes: int
) -> None:
    """Writes FOLDER/NAME.wav for every utterance, using `decode_batches`."""
    from tqdm import tqdm

    from lit_moss.audio import io, rates
    from lit_moss.files import atomic_write, errors_of_writing

    with tqdm(total=len(lines), unit="file", disable=None) as bar:
        for group, waves in decode_batches(codec, lines, prompt, max_codes):
            for line, wave_T in zip(group, waves, strict=True):
                path = folder / f"{line.name}.wav"
                with errors_of_writing(path), atomic_write(path) as partial:
                    io.write(partial, wave_T, rates.DECODER_RATE_HZ)
            bar.update(len(group))


def write_streams(codec: "Codec", lines: Sequence[CodeLine], prompt: "Prompt | None", folder: Path) -> float:
    """Writes FOLDER/NAME.wav for every utterance, each chunk as soon as it is decoded.

    Returns:
        Mean computing time from an utterance's first code to its first audio, in seconds.
    """
    import soundfile
    import torch
    from tqdm import tqdm

    from lit_moss.audio import rates
    from lit_moss.audio.stream_timing import timed_outputs

    first_sound_sec = []
    for line in tqdm(lines, unit="file", disable=None):
        codes_N = torch.tensor(line.codes, dtype=torch.long)
        elapsed_sec, first_sec = 0.0, None
        path = folder / f"{line.name}.wav"
        try:
            with soundfile.SoundFile(path, "w", rates.DECODER_RATE_HZ, 1) as file:
                for samples_T, seconds in timed_outputs(codec.stream(prompt), codes_N.split(1)):
                    elapsed_sec += seconds
                    if len(samples_T):
                        first_sec = elapsed_sec if first_sec is None else first_sec
                        file.write(samples_T.numpy())
                        file.flush()
        except soundfile.LibsndfileError as error:
            raise UserError(
                f"{path} could not be written ({error}): make room or rights, or give another --out"
            ) from error
        if line.codes:
            first_sound_sec.append(elapsed_sec if first_sec is None else first_sec)
    return sum(first_sound_sec) / max(1, len(first_sound_sec))
