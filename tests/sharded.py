"""Two ranks over gloo: DeepSpeed without CUDA, and processes that start side by side."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
import yaml
from lightning.pytorch.strategies import DeepSpeedStrategy


class OnCPU(DeepSpeedStrategy):
    """Lightning's own insists on CUDA."""

    def setup_environment(self):
        super(DeepSpeedStrategy, self).setup_environment()

    def setup_distributed(self):  # as Lightning's, without the index of a GPU
        import deepspeed.ops
        import deepspeed.runtime.bf16_optimizer as bf16

        # It collects garbage once a parameter group to report memory use: 25 s for 30 groups.
        bf16.see_memory_usage = lambda *_, **__: None
        # Minutes of C++ that gloo does not need.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self):
        return torch.device("cpu", 0)


ROOT = Path(__file__).resolve().parents[1]


def settings(file):
    """The strategy of a file in conf/trainer, on the CPU over gloo."""
    found = yaml.safe_load((ROOT / f"conf/trainer/{file}.yaml").read_text())["trainer"]["strategy"]
    path = found["class_path"].replace("lightning.pytorch.strategies.DeepSpeedStrategy", "sharded.OnCPU")
    return {"class_path": path, "init_args": {"process_group_backend": "gloo", **found.get("init_args", {})}}


def start_ranks(ranks, folder, *command):
    """`python COMMAND` once a rank, all at once as on a cluster; Lightning starts one after the other."""
    left_out = ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LIT_MOSS_RUN")
    env = {k: v for k, v in os.environ.items() if k not in left_out}
    env |= {
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(ranks):
        if ranks > 1:
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0",
                    "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}  # fmt: skip
        errors = (folder / f"errors.{rank}").open("w")
        started.append(
            subprocess.Popen(
                [sys.executable, *command],
                cwd=folder,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
            )
        )
    return started


def wait_for(started, folder, timeout=400):
    """Waits for all ranks; a failed one is shown, and the others, which would wait for it, are ended."""
    deadline = time.monotonic() + timeout
    try:
        while any(process.poll() is None for process in started) and time.monotonic() < deadline:
            if any(process.poll() for process in started):
                break
            time.sleep(0.1)
        for rank, process in enumerate(started):
            if process.poll() is not None:
                assert not process.poll(), (folder / f"errors.{rank}").read_text()[-4000:]
        assert all(process.poll() == 0 for process in started), f"no end within {timeout} s"
    finally:
        for process in started:
            process.kill()
            process.wait()
