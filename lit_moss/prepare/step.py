"""A step: one stage with its options, sources and folder; and a worker that runs its shards."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from lit_moss.prepare.items import ManifestFolder
from lit_moss.prepare.registry import stage_class
from lit_moss.prepare.shards import Shard, ShardCounts, fingerprint_of, run_shard
from lit_moss.prepare.stage import Stage, WholeStage
from lit_moss.prepare.storage import Storage


@dataclass(frozen=True)
class Machine:
    """Settings of where and how steps are run, which do not affect the output.

    Args:
        workers: Number of processes, each with the stage's models; with Ray, of actors.
        engine: `local` or `ray`.
        shard_items: Number of items per shard; None: a 64th of all, 16 to 1024.
        ray_address: Address of the Ray cluster; None: starts Ray on this machine.
        ray_gpus: Number of GPUs per actor.
        ray_memory_gb: Memory that Ray reserves per actor, in GB; None: none.
    """

    workers: int = 1
    engine: Literal["local", "ray"] = "local"
    shard_items: int | None = None
    ray_address: str | None = None
    ray_gpus: float = 0.0
    ray_memory_gb: float | None = None


@dataclass(frozen=True)
class Step:
    """One stage with its options and sources.

    Args:
        name: Name of the step in its chain, and of its folder.
        stage: Name of the stage.
        options: An instance of the stage's `Options`.
        sources: Manifests, or other sources that the stage's `read_source` supports.
        folder: Folder of its files.
        work: Folder of the whole chain.
        root: If given, sound files must be below it or below `work`.
        max_bad_share: Fraction of unreadable items, 0 to 1, above which the step fails.
        stated: Keys to add to items of sources that lack them: source, licence. Manifests of steps of the
            same chain already have them.
    """

    name: str
    stage: str
    options: Any
    sources: tuple[str, ...]
    folder: str
    work: str
    root: str | None = None
    max_bad_share: float = 0.01
    stated: tuple[tuple[str, str], ...] = ()

    def build(self) -> Stage | WholeStage:
        """Creates the stage; its models are not loaded yet."""
        stage = stage_class(self.stage)(self.options, Storage(self.folder))
        if isinstance(stage, WholeStage):
            stage.max_bad_share = self.max_bad_share
        return stage

    @property
    def manifest_folder(self) -> ManifestFolder:
        """The folder that resolves the paths in its manifest."""
        return ManifestFolder(Storage(self.folder), self.work, self.root)


@dataclass(frozen=True)
class StepResult:
    """Result of a step, and the duration of this call.

    Args:
        step: Name of the step.
        stage: Name of the stage.
        counts: Counts over all its shards.
        seconds: Duration of this call in seconds.
        items_run: Number of items that this call processed; the others already existed.
        speech_sec_run: Seconds of speech in those items.
    """

    step: str
    stage: str
    counts: ShardCounts
    seconds: float
    items_run: int
    speech_sec_run: float


class Worker:
    """Runs shards of one step in this process; loads the stage's models once, on request.

    Args:
        step: The step.
        stage: Stage of the step. Default: created here.
    """

    def __init__(self, step: Step, stage: Stage | None = None) -> None:
        built = stage or step.build()
        assert isinstance(built, Stage)
        self._stage, self._folder, self._is_open = built, step.manifest_folder, False
        self._fingerprint = fingerprint_of(built)

    def run(self, shard: Shard, progress: Callable[[int], Any] = lambda items: None) -> None:
        """Makes the files of one shard."""
        run_shard(self._stage, self._open, shard, self._folder, self._fingerprint, progress)

    def _open(self) -> None:
        if not self._is_open:
            self._stage.open()
            self._is_open = True


def set_threads(count: int) -> None:
    """Sets the number of torch threads. Sums of two threads differ from those of one in the last bits."""
    import torch

    torch.set_num_threads(count)
