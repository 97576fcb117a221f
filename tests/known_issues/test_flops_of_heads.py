"""`train/tflops` split the targets between the heads by the rows, not by whose targets they are.

900 rows of a spoken question and 100 of a written answer counted as 10 targets of the text head and 90 of the
speech head.
"""

from types import SimpleNamespace

import pytest
import torch
from backbones import config_of

from callbacks import Throughput
from lit_moss.data.batches import TokenBatch
from lit_moss.llm.flops import step_flops
from lit_moss.llm.model import SplitLM


@pytest.mark.parametrize("targets", [(20, 0), (0, 70), (20, 70)])
def test_each_head_has_its_own_targets(targets):
    lm = SplitLM.from_backbone(config_of("llama"), 2, 128)
    ids = torch.zeros(1, 100, dtype=torch.int32)
    batch = TokenBatch(torch.zeros(1, 100), ids, ids > 0, ["a"], 70, [], *targets)
    throughput = Throughput(every_n_steps=2)
    throughput._reset()
    throughput.on_train_batch_end(None, SimpleNamespace(lm=lm), None, batch, 0)
    assert throughput._flops == step_flops(lm, [100], *targets)
