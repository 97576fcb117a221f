"""UTMOS22 strong (arXiv:2204.02152) from a local checkout: predicted naturalness, 1 to 5.

    folder       a checkout of github.com/tarepan/SpeechMOS (v1.2.0)
    folder/*.pt  the only weight file, utmos22_strong_step7459_v1.pt

Its package is called `speechmos`, like the one that computes DNSMOS. It therefore runs in a separate process,
which never sees the other package.
"""

import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import torch
from torch import Tensor

from lit_moss.errors import UserError

_WORKER = Path(__file__).with_name("utmos_worker.py")


class Utmos:
    """Samples (T,) at 16 kHz -> score; a context manager that ends the process.

    One clip per call: the model has no mask, and padding would change its score.

    Args:
        folder: Checkout with weights, see the module docstring.

    Raises:
        UserError: if there is no checkout, or not exactly one weight file.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder)
        weights = sorted(path.rglob("*.pt"))
        if not (path / "speechmos" / "utmos22").is_dir() or len(weights) != 1:
            raise UserError(
                f"{folder} has {len(weights)} .pt files, expected a checkout of tarepan/SpeechMOS with one: "
                "the weights of utmos22_strong"
            )
        self._folder, self._log = path, tempfile.TemporaryFile("w+")  # noqa: SIM115  closed by __exit__
        # -P: modules in this folder have the names of other packages.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER), str(path), str(weights[0]), str(torch.get_num_threads())],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
        )  # fmt: skip

    def __call__(self, wave_T: Tensor) -> float:
        """Score of samples at 16 kHz.

        Raises:
            UserError: if the model cannot be loaded or run.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(np.int64(len(wave_T)).tobytes() + wave_T.float().numpy().tobytes())
            stdin.flush()
            answer = stdout.read(8)
        except BrokenPipeError:
            answer = b""
        if len(answer) < 8:
            self._log.seek(0)
            lines = self._log.read().strip().splitlines() or ["it ended without a word"]
            raise UserError(f"UTMOS of {self._folder} cannot be run ({lines[-1]}): expected SpeechMOS v1.2.0")
        return float(np.frombuffer(answer)[0])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._log.close()
