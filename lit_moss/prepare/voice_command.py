"""A voice given by a program on this machine.

    command: piper --model en_US.onnx --input_file {text_file} --output_file {out}

The program is run without a shell: the words of the line are its arguments, in which `{text_file}` (a UTF-8
file with the text), `{out}` (the sound file to write: wav), `{lang}`, `{speed}`, `{style}` and `{seed}` are
replaced.
"""

import shlex
import shutil
import subprocess
import tempfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import soundfile

from lit_moss.errors import UserError
from lit_moss.prepare.voice_protocol import CannotSay, Speech, Wording

_MAX_FAILURES = 5  # consecutively, from the first call on: the program does not work at all


class CommandVoice:
    """A voice given by a program, see the module docstring.

    Args:
        line: The command line.
        timeout_sec: Timeout of the program in seconds.

    Raises:
        UserError: if the line cannot be parsed, or lacks `{text_file}` or `{out}`.
    """

    languages = None

    def __init__(self, line: str, timeout_sec: float) -> None:
        try:
            self._words = shlex.split(line)
        except ValueError as error:
            raise UserError(
                f"command: {line!r} cannot be split into words ({error}): close the quotes"
            ) from error
        if "{text_file}" not in line or "{out}" not in line:
            raise UserError(
                f"command: {line!r}, expected a program and its arguments with {{text_file}} and {{out}}"
            )
        self._line, self._timeout_sec, self._failures = line, timeout_sec, 0
        self.takes_style = "{style}" in line
        self.speaker = f"{Path(self._words[0]).stem}-{sha256(line.encode()).hexdigest()[:6]}"

    def content(self) -> dict[str, Any]:
        return {"voice": f"command: {self._line}"}

    def open(self) -> None:
        if shutil.which(self._words[0]) is None:
            raise UserError(f"command: no program {self._words[0]!r}: install it, or give its path")

    def say(self, wording: Wording) -> Speech:
        with tempfile.TemporaryDirectory(prefix="lit_moss_voice_") as folder:
            text_file, out = Path(folder) / "text.txt", Path(folder) / "out.wav"
            text_file.write_text(wording.text + "\n", encoding="utf-8")
            values = {"text_file": text_file, "out": out, "lang": wording.lang, "speed": wording.speed,
                      "style": wording.style or "neutral", "seed": wording.seed}  # fmt: skip
            command = [_replaced(word, values) for word in self._words]
            try:
                done = self._run(command)
                if done.returncode:
                    said = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no message"]
                    raise self._failed(f"exit code {done.returncode}: {said[0][:200]}")
                wave, rate_hz = soundfile.read(str(out), dtype="float32", always_2d=True)
            except subprocess.TimeoutExpired as error:
                raise self._failed(f"over {self._timeout_sec:g} s") from error
            except soundfile.SoundFileError as error:
                raise self._failed("it wrote no sound file to {out}") from error
        self._failures = -1
        return Speech(wave[:, 0], rate_hz)

    def _run(self, command: list[str]) -> "subprocess.CompletedProcess[bytes]":
        """Runs the program and returns its result.

        Raises:
            UserError: if the system cannot start it, e.g. a script whose interpreter is missing.
        """
        try:
            return subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, timeout=self._timeout_sec
            )
        except OSError as error:
            raise UserError(
                f"command: {self._words[0]!r} cannot be started ({error.strerror or error}), expected a "
                "program: try it alone; a script begins with #! and an interpreter that is installed"
            ) from error

    def _failed(self, why: str) -> CannotSay:
        """The error for a failed call.

        Raises:
            UserError: if the program has never worked.
        """
        if self._failures >= 0:
            self._failures += 1
            if self._failures >= _MAX_FAILURES:
                raise UserError(
                    f"command: {self._line!r} failed {self._failures} times of as many ({why}): try it alone"
                )
        return CannotSay("the program failed", why)


def _replaced(word: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        word = word.replace("{" + name + "}", str(value))
    return word
