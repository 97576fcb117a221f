"""Runs a step: a stage on its sources, shard by shard, in local processes or on a Ray cluster.

    sources ─ plan_shards ─┬─ worker: run_shard ─ parts/part-00000.*
                           ├─ worker: run_shard ─ parts/part-00001.*  ─ joined in order ─ manifest.jsonl
                           └─ …                                                          rejected.jsonl
                                                                                         stage.json

To continue a killed step, repeat the call: finished shards are kept, and unfinished ones continue after their
last unit. The output files are identical for any number of workers, with or without Ray.
"""

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lit_moss.errors import UserError
from lit_moss.files import PARTIAL, locked
from lit_moss.prepare.items import FileName, Item, forget_stamps, read_items, speech_sec
from lit_moss.prepare.shards import (
    UNREADABLE,
    Shard,
    ShardCounts,
    fingerprint_of,
    is_to_be_tried_again,
    plan_shards,
    remove_logs,
    shard_counts,
    to_line,
)
from lit_moss.prepare.stage import Stage, WholeStage
from lit_moss.prepare.step import Machine, Step, StepResult, Worker, set_threads
from lit_moss.prepare.storage import Storage, is_inside, refusals_to_write

MANIFEST, REJECTED, STATE, TIMING = "manifest.jsonl", "rejected.jsonl", "stage.json", "timing.json"
_QUICK_ITEMS = 10_000  # for a light stage, which one process runs in a few seconds
_MARKER = "step.json"  # marks a step's folder, whose contents may be replaced


def run_step(step: Step, machine: Machine) -> StepResult:
    """Runs a step, or the part of it that is not complete yet.

    Raises:
        UserError: if a source or option is wrong, the folder is not a step's or cannot be written, or there
            are too many unreadable items.
    """
    start = time.monotonic()
    forget_stamps()
    stage, storage = step.build(), Storage(step.folder)
    with refusals_to_write(f"step {step.name}", step.folder), _step_lock(step):
        _claim(step, storage)
        sources = _manifests(stage, step, storage)
        if isinstance(stage, WholeStage):
            counts, ran = _run_whole(stage, step, sources, storage)
        else:
            counts, ran = _run_shards(stage, step, sources, storage, machine)
        seconds = time.monotonic() - start
        if ran.items_in:
            timing = {"seconds": round(seconds, 3), "items": ran.items_in, "workers": machine.workers}
            storage.write(TIMING, json.dumps(timing).encode() + b"\n")
        for line in stage.notes(counts.counts, counts.examples) if ran.items_in else ():
            print(f"{step.name}: {line}", file=sys.stderr, flush=True)
    _check_unreadable(step, counts)
    speech = ran.speech_sec_in or ran.speech_sec_out
    return StepResult(step.name, step.stage, counts, seconds, ran.items_in, speech)


@contextmanager
def _step_lock(step: Step) -> Iterator[None]:
    """Lets one process at a time work on a local step; on remote storage, all write the same content."""
    if Storage(step.folder).is_remote:
        yield
        return
    folder = Path(step.folder)
    with locked(folder.with_name(f".{folder.name}.lock"), _say_waiting):
        yield


def _say_waiting(lock: Path) -> None:
    print(f"waiting for another process that runs this step ({lock})", flush=True)


def _claim(step: Step, storage: Storage) -> None:
    """Marks the folder as belonging to the step.

    Raises:
        UserError: if it contains something else.
    """
    if storage.exists(_MARKER):
        before = json.loads(storage.read(_MARKER)).get("stage")
        if before != step.stage:
            raise UserError(
                f"{step.folder} was made by the stage {before}, expected {step.stage}: give another folder"
            )
        return
    if not storage.is_remote and any(PARTIAL not in name for name in _names(step.folder)):
        raise UserError(
            f"{step.folder} exists and was not made by prepare: give another folder, or remove it"
        )
    storage.write(_MARKER, json.dumps({"stage": step.stage}).encode() + b"\n")


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.exists(folder) else []


def _manifests(stage: Stage | WholeStage, step: Step, storage: Storage) -> list[str]:
    """The step's sources as manifests; other sources are converted to a manifest in the step's folder.

    Raises:
        UserError: if there is no source, a source is given twice, or there are no items.
    """
    if not step.sources:
        raise UserError(f"step {step.name}: no sources, expected a manifest or another input of {step.stage}")
    _check_once(step)
    manifests = []
    for number, source in enumerate(step.sources):
        items = stage.read_source(source)
        if items is None and _is_stated(stage, step, source):
            manifests.append(source)
            continue
        name = f"input-{number}.jsonl"
        with storage.writer(name) as file:
            empty = True
            for item in _read(stage, step, source) if items is None else items:
                lacking = {k: v for k, v in step.stated if isinstance(item.get(k), FileName | None)}
                own = {k: v for k, v in item.items() if k not in lacking}
                file.write(to_line(step.manifest_folder.written(lacking | own)))
                empty = False
        if empty:
            raise UserError(f"{source} has nothing for the stage {step.stage}: check the path")
        manifests.append(storage.path(name))
    return manifests


def _is_stated(stage: Stage | WholeStage, step: Step, manifest: str) -> bool:
    """Whether a manifest can be read as it is: a step of the chain made it, or no key has to be added."""
    if not step.stated or stage.reads == "all":
        return True
    if is_inside(manifest, step.work) and Storage(os.path.dirname(manifest)).exists(_MARKER):
        return True
    return all(line.item.get(key) is not None for line in read_items(manifest) for key, _ in step.stated)


def _read(stage: Stage | WholeStage, step: Step, manifest: str) -> Iterator[Item]:
    for line in read_items(manifest):
        yield step.manifest_folder.resolved(line.item, manifest, line.number, stage.needs)


def _check_once(step: Step) -> None:
    """Rejects items that occur twice; use the weights of recipes to train on items several times."""
    files: set[str] = set()
    for source in step.sources:
        file = os.path.realpath(source) if os.path.exists(source) else source
        if file in files:
            got = f"step {step.name}: source {source} is given twice"
            raise UserError(f"{got}, expected each source once: leave one out")
        files.add(file)


# --- stages that run unit by unit ---------------------------------------------------------------------------


def _run_shards(
    stage: Stage, step: Step, sources: Sequence[str], storage: Storage, machine: Machine
) -> tuple[ShardCounts, ShardCounts]:
    shards = plan_shards(stage, sources, step.manifest_folder, machine.shard_items)
    fingerprint = fingerprint_of(stage)
    finished = {shard.number: shard_counts(storage, shard, fingerprint) for shard in shards}
    for shard in shards:
        counts = finished[shard.number]
        if counts is not None and is_to_be_tried_again(shard, counts, step.manifest_folder):
            finished[shard.number] = None
    todo = [shard for shard in shards if finished[shard.number] is None]
    state = sha256(json.dumps([fingerprint, [s.digest for s in shards]]).encode()).hexdigest()[:16]
    if todo:
        total = sum(shard.items for shard in todo)
        with tqdm(total=total, desc=step.name, unit=" items", disable=None) as bar:
            _run_todo(step, stage, todo, machine, bar.update)
    ran, counts = ShardCounts(), ShardCounts()
    for shard in shards:
        done = finished[shard.number] or shard_counts(storage, shard, fingerprint)
        if done is None:
            raise RuntimeError(f"step {step.name}: {shard.name} was run and is not there")
        counts.add(done)
        if finished[shard.number] is None:
            ran.add(done)
    if todo or _state(storage) != state or not storage.exists(MANIFEST):
        _join(storage, shards)
        storage.remove_partials()
        remove_logs(storage, shards)
        _write_state(step, storage, counts, state)
    return counts, ran


def _run_todo(
    step: Step, stage: Stage, todo: Sequence[Shard], machine: Machine, update: Callable[[int], Any]
) -> None:
    if machine.engine == "ray":
        from lit_moss.prepare.ray_engine import run_on_ray

        run_on_ray(step, todo, machine, update)
    elif machine.workers == 1 or len(todo) == 1 or _is_quick(stage, todo):
        worker = Worker(step, stage)
        with _one_thread():
            for shard in todo:
                worker.run(shard, update)
    else:
        _run_pool(step, todo, machine.workers, update)


_worker: Worker | None = None


def _start_worker(step: Step, parent: Connection) -> None:
    global _worker
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    set_threads(1)
    _worker = Worker(step)


def _end_with(parent: Connection) -> None:
    """Ends a worker when its parent was killed or stopped; otherwise it would continue to write."""
    parent.poll(None)  # until the other end is closed
    os._exit(1)


def _run_in_pool(shard: Shard) -> int:
    assert _worker is not None
    _worker.run(shard)
    return shard.items


def _is_quick(stage: Stage, todo: Sequence[Shard]) -> bool:
    """Whether one process is faster, since a worker needs some seconds for imports."""
    return stage.is_light() and sum(shard.items for shard in todo) <= _QUICK_ITEMS


def _run_pool(step: Step, todo: Sequence[Shard], workers: int, update: Callable[[int], Any]) -> None:
    """Uses spawned processes; forked ones would inherit locks of torch, CTranslate2 and onnxruntime."""
    workers, context, waiting = min(workers, len(todo)), get_context("spawn"), iter(todo)
    theirs, ours = context.Pipe(duplex=False)
    with (
        _threads_of_children(1),
        ProcessPoolExecutor(workers, context, _start_worker, (step, theirs)) as pool,
    ):
        running: set[Future[int]] = set()
        try:
            while True:
                # Only a few are submitted in advance: a large corpus has many shards.
                while len(running) < 2 * workers and (shard := next(waiting, None)) is not None:
                    with _no_interrupts_for_children():
                        running.add(pool.submit(_run_in_pool, shard))
                if not running:
                    return
                ready, running = wait(running, return_when=FIRST_COMPLETED)
                for future in ready:
                    update(future.result())
        except BrokenProcessPool as error:
            raise UserError(
                f"step {step.name}: a worker was killed, by the system if memory ran out: start again with "
                "fewer --workers; what is done stays"
            ) from error
        finally:
            if running:
                ours.close()  # ends the workers: a shard may take hours
                pool.shutdown(wait=False, cancel_futures=True)
            # Idle workers end by themselves; if they were ended by the pipe, they would leave semaphores.


@contextmanager
def _no_interrupts_for_children() -> Iterator[None]:
    """Makes processes started here ignore Ctrl-C, which a terminal sends to all; this process ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Uses one thread, as in a worker, so that one worker and several write the same bytes."""
    import torch

    before = torch.get_num_threads()
    set_threads(1)
    try:
        yield
    finally:
        set_threads(before)


@contextmanager
def _threads_of_children(count: int) -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(count)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _join(storage: Storage, shards: Sequence[Shard]) -> None:
    for name, ending in ((REJECTED, ".rejected.jsonl"), (MANIFEST, ".jsonl")):
        with storage.writer(name) as file:
            for shard in shards:
                file.write(storage.read(shard.name + ending))


# --- stages that need all items -----------------------------------------------------------------------------


def _run_whole(
    stage: WholeStage, step: Step, sources: Sequence[str], storage: Storage
) -> tuple[ShardCounts, ShardCounts]:
    folder, digest = step.manifest_folder, sha256(fingerprint_of(stage).encode())
    counts = ShardCounts()
    for source in sources:
        for line in read_items(source):
            item = folder.resolved(line.item, source, line.number, stage.needs)
            digest.update(line.content + folder.stamps(item))
            counts.items_in += 1
            counts.speech_sec_in += speech_sec(item)
        if stage.reads == "all":
            digest.update(_state_beside(source))
    state = digest.hexdigest()[:16]
    if _state(storage) == state:
        done = ShardCounts(**json.loads(storage.read(STATE))["counts"])
        # The user may have removed a folder of documents to free space.
        if all(map(storage.exists, [MANIFEST, *stage.files_made(done.counts)])):
            return done, ShardCounts()
    _clear(step, storage, keep=sources)
    if storage.is_remote:
        storage.write(STATE, b'{"state": null}\n')  # from here on, the content is another run's
    result = stage.run_all(sources)
    counts.items_out = len(result.items)
    counts.speech_sec_out = sum(map(speech_sec, result.items))
    counts.counts, counts.examples = result.counts, result.examples
    with storage.writer(REJECTED) as file:
        for rejection in result.rejected:
            counts.rejected[rejection.reason] = counts.rejected.get(rejection.reason, 0) + 1
            line = asdict(rejection) | {"step": step.name, "item": folder.written(rejection.item)}
            file.write(to_line(line))
    with storage.writer(MANIFEST) as file:
        file.writelines(to_line(folder.written(item)) for item in result.items)
    _write_state(step, storage, counts, state)
    return counts, counts


def _clear(step: Step, storage: Storage, keep: Sequence[str]) -> None:
    """Removes what an earlier run with other inputs left in the step's folder."""
    if storage.is_remote:
        return
    # First: a kill must not leave it next to incomplete content.
    Path(step.folder, STATE).unlink(missing_ok=True)
    for path in Path(step.folder).iterdir():
        if path.name != _MARKER and str(path) not in keep:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# --- state --------------------------------------------------------------------------------------------------


def _state(storage: Storage) -> str | None:
    return json.loads(storage.read(STATE))["state"] if storage.exists(STATE) else None


def _state_beside(manifest: str) -> bytes:
    """The state of the step that wrote a manifest, whose rejections and documents are not in the manifest."""
    storage = Storage(os.path.dirname(manifest) or ".")
    return storage.read(STATE) if storage.exists(STATE) else b""


def _write_state(step: Step, storage: Storage, counts: ShardCounts, state: str) -> None:
    sources = [step.manifest_folder.written_path(source) for source in step.sources]
    content = {"step": step.name, "stage": step.stage, "sources": sources, "state": state}
    content["counts"] = asdict(counts)
    storage.write(STATE, json.dumps(content, indent=1).encode() + b"\n")


def _check_unreadable(step: Step, counts: ShardCounts) -> None:
    bad = counts.rejected.get(UNREADABLE, 0)
    if bad > max(1, step.max_bad_share * counts.items_in) or (bad and bad == counts.items_in):
        storage, names = Storage(step.folder), []
        for line in read_items(storage.path(REJECTED)):
            if line.item["reason"] == UNREADABLE and len(names) < 3:
                names.append(str(line.item["value"]))
        raise UserError(
            f"step {step.name}: {bad} of {counts.items_in} items are unreadable: {'; '.join(names)}; "
            f"expected at most {step.max_bad_share:.2%}: repair or remove what {storage.path(REJECTED)} "
            "names, or raise max_bad_share"
        )
