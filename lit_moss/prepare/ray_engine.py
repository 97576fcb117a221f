"""Runs the shards of a step on a Ray cluster.

Ray only schedules shard numbers here; it reads, writes and orders no data. Its own writers change bytes (`/`
becomes `\\/`, Chinese becomes escapes) and append when a run is repeated. Every actor runs the same function
as a local worker. Folders must be accessible from all machines: a shared file system, or a remote store.
"""

import os
import signal
from collections.abc import Callable, Sequence
from typing import Any

from lit_moss.errors import UserError
from lit_moss.prepare.shards import Shard
from lit_moss.prepare.step import Machine, Step, Worker, set_threads
from lit_moss.prepare.storage import refusals_to_write

_OBJECT_STORE_BYTES = 256 * 2**20  # shard numbers do not need 30 % of the memory
_START_SEC = 300  # otherwise actors that cannot start (too few CPUs) would be waited for forever


class _Actor:
    """A worker of one step."""

    def __init__(self, step: Step, shards: dict[int, Shard]) -> None:
        set_threads(1)
        self._step, self._worker, self._shards = step, Worker(step), shards

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (number,) = batch["shard"]
        shard = self._shards[int(number)]
        try:
            with refusals_to_write(f"step {self._step.name}", self._step.folder):
                self._worker.run(shard)
        except UserError as error:
            # Returned as a row: Ray wraps exceptions, which would turn the one-line error into a traceback.
            return {"items": [0], "error": [str(error)]}
        return {"items": [shard.items], "error": [""]}


def run_on_ray(step: Step, todo: Sequence[Shard], machine: Machine, update: Callable[[int], Any]) -> None:
    """Runs shards on the cluster at `machine.ray_address`, or on a Ray instance started on this machine.

    Raises:
        UserError: if Ray is not installed, the cluster does not answer or has no room, and as in a stage.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        import ray.data
        from ray.exceptions import GetTimeoutError
    except ImportError as error:
        raise UserError("engine ray needs Ray: pip install 'lit-moss[scale]'") from error
    if not ray.is_initialized():
        _start(ray, machine)
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.wait_for_min_actors_s = _START_SEC
    actors = min(machine.workers, len(todo))
    memory = None if machine.ray_memory_gb is None else machine.ray_memory_gb * 2**30
    # One block per shard, from memory: a reader would compete with the actors for CPUs (ray#44687).
    numbers = ray.data.from_items([{"shard": s.number} for s in todo], override_num_blocks=len(todo))
    numbers = numbers.map_batches(
        _Actor,
        fn_constructor_args=(step, {shard.number: shard for shard in todo}),
        batch_size=1,
        num_cpus=1,
        num_gpus=machine.ray_gpus,
        memory=memory,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    try:
        for row in numbers.iter_rows():
            if row["error"]:
                raise UserError(row["error"])
            update(int(row["items"]))
    except GetTimeoutError as error:
        raise UserError(
            f"step {step.name}: Ray has not started {actors} actors in {_START_SEC} s, each of 1 CPU and "
            f"{machine.ray_gpus:g} GPUs: give fewer --workers, or a cluster with more room"
        ) from error


def _start(ray: Any, machine: Machine) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if machine.ray_address:
            ray.init(address=machine.ray_address, log_to_driver=False)
        else:
            ray.init(
                num_cpus=machine.workers,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                log_to_driver=False,
            )
    except ConnectionError as error:
        raise UserError(
            f"no Ray answers at {machine.ray_address} ({error}): start it, or leave ray_address out"
        ) from error
    # `ray.init` replaces it.
    if handler is not None:
        signal.signal(signal.SIGTERM, handler)
