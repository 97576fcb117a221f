"""DeepSpeed without CUDA, for tests over gloo."""

import contextlib

import torch
from lightning.pytorch.strategies import DeepSpeedStrategy


class OnCPU(DeepSpeedStrategy):
    """Lightning's own insists on CUDA."""

    def setup_environment(self):
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self):  # as Lightning's, without the index of a GPU
        import deepspeed.ops

        # Minutes of C++ that gloo does not need.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self):
        return torch.device("cpu", 0)

    # Built whole on every rank, sharded afterwards: the model's code cannot fill sharded tables.
    @contextlib.contextmanager
    def model_sharded_context(self):
        self._init_config_if_needed()
        yield
