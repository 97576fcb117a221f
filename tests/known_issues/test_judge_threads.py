"""The ASR judge set the number of torch's threads of its whole process, and with it the order of sums."""

import pytest
import torch

from lit_moss.evaluate import judges

pytest.importorskip("faster_whisper")


@pytest.mark.nightly
def test_the_judge_leaves_the_number_of_threads_alone():
    before = torch.get_num_threads()
    judge = judges.Recogniser("embedded:whisper-tiny")
    assert torch.get_num_threads() == before
    judge(torch.zeros(16_000))
    assert torch.get_num_threads() == before
