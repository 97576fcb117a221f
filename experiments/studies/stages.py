"""Stages of a study: each is run once, recorded with a digest of its inputs, and timed.

    WORK/stages/NAME.json    digests of inputs and output, times of computing, whether it is done

A stage whose inputs are unchanged is not run again. A killed stage is: fits continue from their checkpoints,
chains of `prepare` from their shards, evaluations from their items; the output of plain functions is computed
again. If an input has changed, the stage and those that read it run again, unless its output is the same as
before. A changed fit gets a new folder, so that the previous one is kept.
"""

import hashlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_moss.errors import UserError
from lit_moss.files import locked, write_json
from lit_moss.runs.launch import PARENT_VARIABLE, TAGS_VARIABLE, RunError

Span = tuple[float, float]  # begin and end, in seconds since 1970
_PERIOD_SEC = 5.0  # a killed stage loses at most this much of its recorded time
# Runs in a process that ends with the study, so that a second start never meets processes of the first.
_MODULE = (
    "import runpy, sys; from lit_moss.runs.launch import end_with_parent; end_with_parent(); "
    "name = sys.argv[1]; del sys.argv[1]; runpy.run_module(name, run_name='__main__', alter_sys=True)"
)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Args:
        name: Name of the stage.
        inputs: Everything that determines the output besides other stages (recipe, options), as plain values.
        after: Names of the stages that it reads.
        run: Function that runs the stage, given the digest of its inputs. Returns plain values that identify
            its output.
        made: Files that the stage creates; it runs again if one is missing.
    """

    name: str
    inputs: Any
    after: Sequence[str]
    run: Callable[[str], Any] = field(compare=False)
    made: Sequence[Path] = ()


@dataclass(frozen=True)
class Planned:
    """A stage that is built after those that it reads, because its recipe may contain their folders.

    Args:
        name: Name of the stage.
        after: Names of the stages that it reads.
        build: Function that builds the stage.
        alone: Whether no other stage may run at the same time.
    """

    name: str
    after: Sequence[str]
    build: Callable[[], Stage] = field(compare=False)
    alone: bool = True


class Stages:
    """The stages of a study.

    Args:
        work: Folder of the study's data.
    """

    def __init__(self, work: Path) -> None:
        self.work = work
        self._outputs: dict[str, str] = {}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lets only one process at a time work on the stages."""
        self.work.mkdir(parents=True, exist_ok=True)
        with locked(
            self.work / ".lock", lambda path: print(f"waiting for another start of this study ({path})")
        ):
            yield

    def record(self, name: str) -> dict[str, Any]:
        """What is recorded about a stage; empty if it has never been started."""
        try:
            return json.loads(self._file(name).read_text())
        except (OSError, ValueError):
            return {}

    def digest(self, stage: Stage) -> str:
        """8 hex digits of a stage's inputs and of the outputs of the stages that it reads.

        Raises:
            UserError: if one of these has not been run.
        """
        if self._missing(stage.after):
            raise UserError(self._reads_missing(stage.name, stage.after))
        return digest_of([stage.name, stage.inputs, [self._outputs[name] for name in stage.after]])

    def run_all(self, plans: Sequence[Planned], at_once: int = 1) -> None:
        """Runs stages in order, several at the same time if they do not read each other.

        Args:
            plans: Stages to run.
            at_once: Maximum number of stages that run at the same time.

        Raises:
            UserError: if a stage reads one that is not among the stages.
            Exception: that of the first stage that fails; other running stages end with this process.
        """
        waiting, running = list(plans), dict[str, Planned]()
        ended: queue.Queue[tuple[str, Exception | None]] = queue.Queue()

        def work(name: str, stage: Stage) -> None:
            try:
                self.run(stage)
            except Exception as error:
                ended.put((name, error))
            else:
                ended.put((name, None))

        while waiting or running:
            for plan in list(waiting):
                if len(running) >= at_once or any(other.alone for other in running.values()):
                    break
                if self._missing(plan.after):
                    continue
                if plan.alone and running:
                    break  # starting other stages now would delay it
                waiting.remove(plan)
                running[plan.name] = plan
                # A daemon thread, since the end of this process does not wait for it.
                threading.Thread(target=work, args=(plan.name, plan.build()), daemon=True).start()
            if not running:
                raise UserError(self._reads_missing(waiting[0].name, waiting[0].after))
            name, error = ended.get()
            if error is not None:
                raise error
            del running[name]

    def run(self, stage: Stage) -> None:
        """Runs a stage unless it is done; see the module docstring."""
        digest, before = self.digest(stage), self.record(stage.name)
        is_there = all(path.exists() for path in stage.made)
        if before.get("done") and before["digest"] == digest and is_there:
            print(f"{stage.name}: done", flush=True)
        else:
            print(f"{stage.name}: {time.strftime('%H:%M:%S')}", flush=True)
            spans = before.get("spans", []) if before.get("digest") == digest else []
            with self._timed(stage.name, digest, spans) as now:
                output = stage.run(digest)
            self._write(stage.name, digest, now(), done=True, output=digest_of(output))
            print(f"{stage.name}: done after {seconds_of(now()):.0f} s of computing", flush=True)
        self._outputs[stage.name] = self.record(stage.name)["output"]

    def seconds(self, names: Sequence[str]) -> float:
        """Time during which at least one of these stages was computed, in seconds."""
        return seconds_of([span for name in names for span in self.record(name).get("spans", [])])

    def _missing(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name not in self._outputs]

    def _reads_missing(self, name: str, after: Sequence[str]) -> str:
        return f"stage {name} reads {', '.join(self._missing(after))}: expected stages before it"

    def _file(self, name: str) -> Path:
        return self.work / "stages" / f"{name}.json"

    def _write(self, name: str, digest: str, spans: Sequence[Span], **more: Any) -> None:
        file = self._file(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"digest": digest, "spans": spans, "done": False} | more)

    @contextmanager
    def _timed(self, name: str, digest: str, before: list[Span]) -> Iterator[Callable[[], list[Span]]]:
        """Records when a stage is computed, also if it is killed."""
        begin, start, ended = time.time(), time.monotonic(), threading.Event()

        def spans() -> list[Span]:
            return [*before, (round(begin, 1), round(begin + time.monotonic() - start, 1))]

        def watch() -> None:
            while not ended.wait(_PERIOD_SEC):
                self._write(name, digest, spans())

        self._write(name, digest, before)  # from here on, the output of an earlier run is no longer valid
        thread = threading.Thread(target=watch, daemon=True, name="clock")
        thread.start()
        try:
            yield spans
        finally:
            ended.set()
            thread.join()


def seconds_of(spans: Iterable[Span]) -> float:
    """Seconds covered by at least one span."""
    total, until = 0.0, float("-inf")
    for begin, end in sorted((begin, end) for begin, end in spans):
        total += max(0.0, end - max(begin, until))
        until = max(until, end)
    return total


def run_verb(
    words: Sequence[str], log: Path, tags: Mapping[str, str] | None = None, threads: int | None = None
) -> None:
    """Runs `python -m lit_moss WORDS`, see `run_module`."""
    run_module("lit_moss", words, log, tags, threads)


def run_module(
    module: str,
    words: Sequence[str],
    log: Path,
    tags: Mapping[str, str] | None = None,
    threads: int | None = None,
) -> None:
    """Runs `python -m MODULE WORDS` in its own process, which ends with this one; its output goes to a file.

    Args:
        module: Name of the module.
        words: Command line of the module.
        log: File that the output is appended to.
        tags: MLflow tags of a run that the module creates.
        threads: OMP_NUM_THREADS of the process; None: unchanged.

    Raises:
        RunError: if it ends with an error; the message contains its last line.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        PARENT_VARIABLE: str(os.getpid()),
        TAGS_VARIABLE: json.dumps(dict(tags or {})),
    }
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
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
        raise RunError(f"{name}: exit code {code}, {last} (log: {log})", killed=code < 0 or code == 143)


def digest_of(value: Any) -> str:
    """8 hex digits that identify plain values."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]


def file_digest(*files: Path) -> list[str]:
    """Digests of the contents of files."""
    return [hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in files]
