"""UTMOS22 strong (arXiv:2204.02152) from a copy of github.com/tarepan/SpeechMOS and its weights.

That repository and the package of DNSMOS are both imported as `speechmos`: UTMOS runs in a process of its
own, whose path begins with the copy. It has no mask for lengths, so sounds are judged one by one.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.errors import UserError

_MODEL = Path("speechmos") / "utmos22" / "strong" / "model.py"
# Weights are read as data. A line of the input names a sound file, a line of the output is its score.
_PROGRAM = """
import json, sys
sys.path.insert(0, sys.argv[1])
import soundfile, torch
from speechmos.utmos22.strong.model import UTMOS22Strong
model = UTMOS22Strong()
model.load_state_dict(torch.load(sys.argv[2], map_location="cpu", weights_only=True))
model.eval()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    wave, rate_hz = soundfile.read(json.loads(line), dtype="float32")
    with torch.inference_mode():
        print(json.dumps(float(model(torch.from_numpy(wave)[None], rate_hz)[0])), flush=True)
"""


class Utmos:
    """Naturalness 1 to 5 of speech; trained on English mostly.

    Args:
        folder: Copy of the repository.
        weights: `utmos22_strong_step7459_v1.pt`.

    Raises:
        UserError: if either is missing.
    """

    def __init__(self, folder: str, weights: str) -> None:
        if not (Path(folder) / _MODEL).is_file() or not Path(weights).is_file():
            raise UserError(
                f"UTMOS needs {Path(folder) / _MODEL} and {weights}: give a copy of "
                "github.com/tarepan/SpeechMOS as utmos_folder, and its weights as utmos_weights"
            )
        self._words = [str(Path(folder).absolute()), str(Path(weights).absolute())]
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, wave_T: Tensor) -> float:
        """Score of samples at 16 kHz.

        Raises:
            UserError: if the process ends instead of answering.
        """
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *self._words],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8",
            )  # fmt: skip
            self._answer()
        assert self._process.stdin is not None
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/sound.wav"
            io.write(path, wave_T.clamp(-1, 1), rates.TOKENIZER_RATE_HZ)
            try:
                self._process.stdin.write(json.dumps(path) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError as error:
                raise self._ended() from error
            return float(self._answer())

    def _answer(self) -> Any:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise self._ended()
        return json.loads(line)

    def _ended(self) -> UserError:
        return UserError(
            "UTMOS ended without an answer (its message is above): check utmos_folder, utmos_weights"
        )

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            self._process.wait(timeout=30)
            self._process = None
