"""Distribution of the split language model over devices: DDP, FSDP2, DeepSpeed (settings: conf/trainer).

whole_on_cpu    builds the complete model in CPU memory: the same weights on every device, and no second copy
                of the tables on a device
shard           FSDP2; DDP and DeepSpeed are handled by Lightning's strategies
"""

import contextlib
import importlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from typing_extensions import override

from lit_moss.errors import UserError
from lit_moss.llm.model import SplitLM
from lit_moss.trainer_access import is_deepspeed, is_kind_of


class FSDP2(ModelParallelStrategy):
    """Fully sharded data parallelism (FSDP2) over all devices of all nodes.

    Lightning's `ModelParallelStrategy` uses the devices of a node for tensor parallelism unless both sizes
    are given; here every device gets different data, for any number of devices.

    Args:
        save_distributed_checkpoint: Every rank writes its shard into the checkpoint's folder. False: rank 0
            gathers all weights and optimizer states and writes one file.
        process_group_backend: nccl or gloo. None: the default of the device.
    """

    def __init__(
        self, save_distributed_checkpoint: bool = True, process_group_backend: str | None = None
    ) -> None:
        super().__init__(
            data_parallel_size=1,  # see `setup_environment`
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
        )

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()


def saves_shards(strategy: Any) -> bool:
    """Whether a strategy writes checkpoints in its own format, usually as folders of shards."""
    return is_kind_of(strategy, "ModelParallel", "FSDP", "DeepSpeed")


def shards_weights(strategy: Any) -> bool:
    """Whether a rank holds only part of the weights: FSDP2 and ZeRO-3."""
    return is_kind_of(strategy, "ModelParallel", "FSDP") or bool(getattr(strategy, "zero_stage_3", False))


def check_replies(trainer: Trainer, asr_items: int) -> None:
    """Refuses to generate replies with sharded weights: generation needs the complete weights for each row.

    Raises:
        UserError: for `predict`, or if held-out utterances are to be transcribed.
    """
    if not shards_weights(trainer.strategy):
        return
    name = type(trainer.strategy).__name__
    if trainer.state.fn == "predict":
        raise UserError(
            f"predict with {name}: replies need whole weights; leave conf/trainer/… out (a checkpoint of "
            "shards is read by one process)"
        )
    if asr_items:
        raise UserError(
            f"data.asr_items is {asr_items} with {name}: transcripts need whole weights; set asr_items 0, or "
            "use DDP or ZeRO-1 or -2 (conf/trainer/ddp.yaml, deepspeed_1.yaml, deepspeed_2.yaml)"
        )


def check_strategy(trainer: Trainer, save_frozen: bool) -> None:
    """Refuses settings that would be ignored or give wrong results, before a large model is read.

    Raises:
        UserError: for tensor parallelism, or `save_frozen: false` with sharded checkpoints.
    """
    strategy = trainer.strategy
    if not save_frozen and saves_shards(strategy):
        raise UserError(
            f"model.save_frozen is false, but {type(strategy).__name__} writes shards of all weights: give "
            "--model.init_args.save_frozen true, or use DDP (conf/trainer/ddp.yaml)"
        )
    module: LightningModule | None = trainer.lightning_module
    mesh = None if module is None else module.device_mesh
    if mesh is not None and mesh["tensor_parallel"].size() > 1:
        # The layers are not split, and the ranks of a tensor-parallel group get different data: their
        # gradients would never be averaged.
        raise UserError(
            f"trainer.strategy has tensor_parallel_size {mesh['tensor_parallel'].size()}, expected 1: use "
            "lit_moss.modules.parallel.FSDP2 (conf/trainer/fsdp2.yaml)"
        )


@contextlib.contextmanager
def whole_on_cpu(strategy: Any) -> Iterator[None]:
    """Builds a model from complete tensors in CPU memory; the strategy moves or shards it afterwards.

    On the device, the backbone's table, its resized copy and that of a checkpoint would exist at the same
    time, and transformers would require `accelerate`. Inside ZeRO-3's own context the tables would be empty
    shards.
    """
    with torch.device("cpu"):
        if not is_deepspeed(strategy):
            yield
            return
        zero: Any = importlib.import_module("deepspeed.runtime.zero.partition_parameters")  # an extra
        zero.shutdown_init_context()
        try:
            yield
        finally:
            zero.restore_init_context()


def shard(lm: SplitLM, mesh: Any, precision: str, cast: Callable[[nn.Module], None]) -> None:
    """Shards with FSDP2: each layer, table and head is gathered when it is called and freed afterwards.

    Weights may be mapped from a file. Each module is cast just before it is sharded, so a rank never holds
    more in its own memory than its shards and one module.

    Args:
        lm: The complete model.
        mesh: Device mesh of the ranks that share the model.
        cast: Casts a module's weights to the data types of the training.
        precision: `trainer.precision`. With bf16-mixed, float32 shards are gathered and used in bfloat16,
            gradients are computed in bfloat16 (half the traffic and memory) and summed in float32."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    half = {"bf16-mixed": torch.bfloat16}.get(precision)
    reduced = None if precision == "32-true" else torch.float32
    # Inputs are not cast, and the tables return float32: the residual stream is float32, as under autocast.
    policy = MixedPrecisionPolicy(half, reduced, cast_forward_inputs=False)
    tables = MixedPrecisionPolicy(half, reduced, None if half is None else torch.float32, False)
    for table in (module for module in lm.model.children() if isinstance(module, nn.Embedding)):
        cast(table)
        fully_shard(table, mesh=mesh, mp_policy=tables)
    layers = [layer for block in lm.blocks() for layer in block.layers]
    for module in (*layers, *(branch.head for branch in lm.branches)):
        cast(module)
        fully_shard(module, mesh=mesh, mp_policy=policy)
    cast(lm)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
