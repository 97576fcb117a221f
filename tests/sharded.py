"""Two ranks over gloo: DeepSpeed without CUDA, and processes that start side by side."""

import os
import subprocess
import sys
from pathlib import Path

import launch
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


def start_ranks(ranks, folder, script, *words):
    """`python SCRIPT WORDS` once a rank, all at once as on a cluster; of one, Lightning starts the other."""
    if ranks > 1:
        return launch.start_script(folder, script, *words, ranks=ranks)
    env = {
        k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE", "LIT_MOSS_RUN")
    }
    env |= launch.ENVIRONMENT
    with (folder / "errors").open("w") as errors:
        return subprocess.Popen([sys.executable, script, *words], cwd=folder, env=env, stderr=errors,
                                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)  # fmt: skip


def wait_for(started, folder, timeout_sec=400):
    """Waits for all ranks; a failed one is shown, and the others, which would wait for it, are ended."""
    if isinstance(started, launch.Started):
        done = started.wait(timeout_sec)
        assert done.returncode == 0, done.stderr[-4000:]
        return
    try:
        assert not started.wait(timeout_sec), (folder / "errors").read_text()[-4000:]
    finally:
        started.kill()
        started.wait()
