"""Starts `python -m lit_moss …` in processes that need not import torch and Lightning again.

A server that has imported them once is forked for each process: that saves 8 s of computing a process, most
of what a tiny run costs. What is started is a process like any other, with its own pid, working folder,
environment and exit code, and may be killed. It has one OpenMP thread, as the tests themselves: a sum in
another order would differ in the last bit. Ranks are started one by one with the variables that torchrun or
SLURM set.
"""

import atexit
import contextlib
import multiprocessing
import multiprocessing.forkserver
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from database import give_database

ROOT = Path(__file__).resolve().parents[1]
# Of a run that starts these tests, or that a test left behind.
OTHERS = ("LIT_MOSS_RUN", "LOCAL_RANK", "RANK", "WORLD_SIZE", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
    "DS_ACCELERATOR": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}
_context = multiprocessing.get_context("forkserver")


class Started:
    """Processes of one command, a rank each."""

    def __init__(self, processes: list[Any], output: Path) -> None:
        self.processes, self._output = processes, output

    @property
    def pid(self) -> int:
        """Process id of rank 0."""
        return self.processes[0].pid

    def wait(self, timeout_sec: float = 300) -> subprocess.CompletedProcess:
        """Exit code and output of rank 0 once all ranks have ended; a code that is not 0 of any rank wins.

        Where one has failed the others have 20 s: they may wait for it for ever.
        """
        deadline = time.monotonic() + timeout_sec
        while any(p.exitcode is None for p in self.processes) and time.monotonic() < deadline:
            if any(p.exitcode for p in self.processes):
                deadline = min(deadline, time.monotonic() + 20)
            time.sleep(0.02)
        late = [p for p in self.processes if p.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        late = [] if any(p.exitcode for p in self.processes if p not in late) else late
        out, err = ((self._output / name).read_text(errors="replace") for name in ("out.0", "err.0"))
        if late:
            raise subprocess.TimeoutExpired("lit_moss", timeout_sec, out, err)
        for rank, process in enumerate(self.processes[1:], 1):
            if process.exitcode:
                err += (self._output / f"err.{rank}").read_text(errors="replace")
        codes = [p.exitcode for p in self.processes]
        return subprocess.CompletedProcess("lit_moss", codes[0] or next(filter(None, codes), 0), out, err)


def start(folder: Path, *words: str, ranks: int = 1, **variables: str) -> Started:
    """Begins `python -m lit_moss WORDS` in `folder`.

    Args:
        folder: Working folder.
        words: Verb and options.
        ranks: Processes on this machine; the recipe's `trainer.devices` must agree.
        variables: Added to the environment.
    """
    if "MLFLOW_TRACKING_URI" not in {**os.environ, **variables}:
        give_database(Path(folder))
    return _start(folder, ["lit_moss", *words], ranks, variables)


def start_script(folder: Path, script: str, *words: str, ranks: int = 1) -> Started:
    """Begins `python SCRIPT WORDS` in `folder`, likewise."""
    return _start(folder, [script, *words], ranks, {})


def _start(folder: Path, command: list[str], ranks: int, variables: dict[str, str]) -> Started:
    environment = {k: v for k, v in os.environ.items() if k not in OTHERS} | ENVIRONMENT | variables
    output = Path(tempfile.mkdtemp(prefix="lit_moss_launch_"))
    each = [{}]
    if ranks > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        each = [
            {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "NODE_RANK": "0",
             "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            for rank in range(ranks)
        ]  # fmt: skip
    _start_server()
    processes = []
    for rank, own in enumerate(each):
        arguments = (command, str(folder), environment | own, str(output), rank)
        process = _context.Process(target=_run, args=arguments)
        process.start()
        processes.append(process)
    return Started(processes, output)


def run(folder: Path, *words: str, ranks: int = 1, **variables: str) -> subprocess.CompletedProcess:
    """The same, to its end."""
    return start(folder, *words, ranks=ranks, **variables).wait()


def _start_server() -> None:
    before = {key: os.environ.get(key) for key in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        _context.set_forkserver_preload(["launch_preload"])
        multiprocessing.forkserver.ensure_running()
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value


def _run(command: list[str], folder: str, environment: dict[str, str], output: str, rank: int) -> None:
    """In the forked process: what `python -m lit_moss`, or `python SCRIPT`, does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    files = [os.open(os.devnull, os.O_RDONLY)]
    files += [os.open(f"{output}/{name}.{rank}", os.O_WRONLY | os.O_CREAT) for name in ("out", "err")]
    for number, file in enumerate(files):
        os.dup2(file, number)
    sys.argv = command
    if command[0] == "lit_moss":
        sys.path.insert(0, folder)  # `python -m` finds modules of its working folder: stages of one's own

    from lit_moss.cli.main import main

    code = 0
    try:
        if command[0] == "lit_moss":
            code = main(command[1:])
        else:
            runpy.run_path(command[0], run_name="__main__")
    finally:
        for file in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                file.flush()
    atexit._run_exitfuncs()  # multiprocessing ends a process without them
    sys.exit(code)
