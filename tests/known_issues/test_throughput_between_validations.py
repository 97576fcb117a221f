"""Nothing of `callbacks.Throughput` was logged where validations are more frequent than its averages."""

import time
from types import SimpleNamespace

import pytest
import torch
from backbones import config_of

from callbacks import Throughput
from lit_moss.data.batches import TokenBatch
from lit_moss.errors import UserError
from lit_moss.llm.model import SplitLM


class Logs(torch.nn.Module):
    def __init__(self, lm):
        super().__init__()
        self.lm, self.device, self.logged = lm, torch.device("cpu"), []

    def log_dict(self, values, **_):
        self.logged.append(values)


def test_a_validation_is_left_out_of_the_time_and_not_the_batches(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ids = torch.zeros(1, 50, dtype=torch.int32)
    batch = TokenBatch(torch.zeros(1, 50), ids, ids > 0, ["a"], 20, [], 20, 0)
    module, trainer = Logs(SplitLM.from_backbone(config_of("llama"), 2, 128)), SimpleNamespace(world_size=1)
    throughput = Throughput(every_n_steps=4, peak_tflops=1.0)
    throughput.on_train_start(trainer, module)
    for number in range(8):
        now[0] += 1.0  # a step
        throughput.on_train_batch_end(trainer, module, None, batch, number)
        if number % 2:
            throughput.on_validation_start(trainer, module)
            now[0] += 30.0
            throughput.on_validation_end(trainer, module)
    assert [values["train/rows_per_sec"] for values in module.logged] == [50.0, 50.0]
    assert [values["train/speech_rows_per_sec"] for values in module.logged] == [20.0, 20.0]


def test_an_average_over_no_steps_is_refused():
    with pytest.raises(UserError, match="every_n_steps 0"):
        Throughput(every_n_steps=0)
