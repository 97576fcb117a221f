"""A step: one stage with its options, sources and folder; and a worker that runs shards of it."""

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
    """Where and how steps are run; none of it changes what they write.

    Args:
        workers: Processes, each with the stage's models; with Ray, actors.
        engine: `local` or `ray`.
        shard_items: Items of a shard; null for a 64th of all, 16 to 1024.
        ray_address: Cluster to join; null starts a Ray of this machine.
        ray_gpus: GPUs of each actor.
        ray_memory_gb: Memory that Ray sets aside for each actor; null for none.
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
        sources: Manifests, or what the stage's `read_source` reads.
        folder: Where its files go.
        work: Folder of the whole chain.
        root: If given, sound files must be below it or below `work`.
        max_bad_share: Share of unreadable items, 0 to 1, above which the step fails.
        stated: Keys that items of sources get where they lack them: source, licence. Manifests of
            steps of the same chain have them already.
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
        """The stage; its models are not loaded yet."""
        stage = stage_class(self.stage)(self.options, Storage(self.folder))
        if isinstance(stage, WholeStage):
            stage.max_bad_share = self.max_bad_share
        return stage

    @property
    def manifest_folder(self) -> ManifestFolder:
        """How its manifest names paths."""
        return ManifestFolder(Storage(self.folder), self.work, self.root)


@dataclass(frozen=True)
class StepResult:
    """What a step has written, and how long this call took.

    Args:
        step: Its name.
        stage: Name of the stage.
        counts: Of all its shards.
        seconds: Of this call.
        items_run: Items that this call ran; the others were there already.
        speech_sec_run: Their speech in seconds.
    """

    step: str
    stage: str
    counts: ShardCounts
    seconds: float
    items_run: int
    speech_sec_run: float


class Worker:
    """Runs shards of one step in this process; loads the stage's models once, when they are needed.

    Args:
        step: The step.
        stage: Its stage; built here if not given.
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
    """Threads of torch in this process. The sums of two threads differ from those of one in the last bits."""
    import torch

    torch.set_num_threads(count)
