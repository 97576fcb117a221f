"""Stages of a study: each done once, kept with what it was made from, and timed.

    WORK/stages/NAME.json    digests of inputs and output, seconds of computing so far, whether it is done

A stage whose inputs are the same is not run again. A killed one is: fits continue from their checkpoints,
chains of `prepare` from their shards, evaluations from their items; what a function makes is made again. If
an input has changed, the stage and those that read it run again, unless what comes out is the same. A
changed fit gets a folder of its own, so that its predecessor stays.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.files import locked, write_json
from lit_moss.runs.launch import PARENT_VARIABLE, TAGS_VARIABLE, RunError

_PERIOD_SEC = 5.0  # a killed stage loses that much of its time at most
# In a process that ends with the study: a second start never meets the first one's.
_MODULE = (
    "import runpy, sys; from lit_moss.runs.launch import end_with_parent; end_with_parent(); "
    "name = sys.argv[1]; del sys.argv[1]; runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: Its name.
        inputs: Everything it is made from besides other stages: recipe, options; plain values.
        after: Stages that it reads.
        run: Makes it, given the digest of its inputs. Returns what tells its output from another: plain
            values.
        made: Files of it that must be there; it runs again if one is not.
    """

    name: str
    inputs: Any
    after: Sequence[str]
    run: Callable[[str], Any] = field(compare=False)
    made: Sequence[Path] = ()


class Stages:
    """The stages of a study, run in order.

    Args:
        work: Folder of the study's data.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._outputs: dict[str, str] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """One process at a time works on them."""
        self.work.mkdir(parents=True, exist_ok=True)
        with locked(
            self.work / ".lock", lambda path: print(f"waiting for another start of this study ({path})")
        ):
            yield

    def record(self, name: str) -> dict[str, Any]:
        """What is known of a stage; empty before it was begun."""
        try:
            return json.loads(self._file(name).read_text())
        except (OSError, ValueError):
            return {}

    def digest(self, stage: Stage) -> str:
        """8 hex digits of a stage's inputs and of what the stages before it have made.

        Raises:
            UserError: if one of these was not run.
        """
        if missing := [name for name in stage.after if name not in self._outputs]:
            raise UserError(f"stage {stage.name} reads {', '.join(missing)}: expected stages before it")
        return digest_of([stage.name, stage.inputs, [self._outputs[name] for name in stage.after]])

    def run(self, stage: Stage) -> None:
        """Runs a stage unless it is done; see the module."""
        digest, before = self.digest(stage), self.record(stage.name)
        is_there = all(path.exists() for path in stage.made)
        if before.get("done") and before["digest"] == digest and is_there:
            print(f"{stage.name}: done", flush=True)
        else:
            print(f"{stage.name}: {time.strftime('%H:%M:%S')}", flush=True)
            seconds = before.get("seconds", 0.0) if before.get("digest") == digest else 0.0
            with self._timed(stage.name, digest, seconds) as clock:
                output = stage.run(digest)
            self._write(stage.name, digest, clock(), done=True, output=digest_of(output))
            print(f"{stage.name}: done after {clock():.0f} s of computing", flush=True)
        self._outputs[stage.name] = self.record(stage.name)["output"]

    def _file(self, name: str) -> Path:
        return self.work / "stages" / f"{name}.json"

    def _write(self, name: str, digest: str, seconds: float, **more: Any) -> None:
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"digest": digest, "seconds": round(seconds, 1), "done": False} | more)

    @contextmanager
    def _timed(self, name: str, digest: str, seconds: float) -> Iterator[Callable[[], float]]:
        """Adds up the time that a stage takes, kills included."""
        start, ended = time.monotonic(), threading.Event()

        def clock() -> float:
            return seconds + time.monotonic() - start

        def watch() -> None:
            while not ended.wait(_PERIOD_SEC):
                self._write(name, digest, clock())

        thread = threading.Thread(target=watch, daemon=True, name="clock")
        thread.start()
        try:
            yield clock
        finally:
            ended.set()
            thread.join()


def run_verb(words: Sequence[str], log: Path, tags: Mapping[str, str] | None = None) -> None:
    """`python -m lit_moss WORDS` as `run_module` does it."""
    run_module("lit_moss", words, log, tags)


def run_module(module: str, words: Sequence[str], log: Path, tags: Mapping[str, str] | None = None) -> None:
    """`python -m MODULE WORDS` in a process of its own, which ends with this one and writes to a file.

    Args:
        module: Its name.
        words: Its command line.
        log: Where its output is appended.
        tags: MLflow tags of a run that it makes.

    Raises:
        RunError: if it ends with an error; the message has its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        PARENT_VARIABLE: str(os.getpid()),
        TAGS_VARIABLE: json.dumps(dict(tags or {})),
    }
    with log.open("a") as file:
        begin = file.tell()
        code = subprocess.run(
            [sys.executable, "-c", _MODULE, module, *words], stdin=subprocess.DEVNULL, stdout=file,
            stderr=file, env=environment, check=False,
        ).returncode  # fmt: skip
    if code:
        with log.open("rb") as written:
            written.seek(begin)
            lines = [line for line in written.read().decode(errors="replace").splitlines() if line.strip()]
        last = lines[-1][:300] if lines else "no output"
        name = words[0] if module == "lit_moss" else module
        raise RunError(f"{name}: exit code {code}, {last} (log: {log})", killed=code < 0)


def digest_of(value: Any) -> str:
    """8 hex digits of plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def file_digest(*files: Path) -> list[str]:
    """Digests of files' contents."""
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
