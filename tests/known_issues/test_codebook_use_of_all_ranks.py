"""`train/codebook_used` of a run on several ranks counted the codes of rank 0 alone."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_moss.codec import quantizer

CODES = ([0, 0, 1], [2, 2])  # of each rank


def use(codes: list[int]) -> list[int]:
    """What one update says of the codes' use."""
    weight_KD = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    state = (weight_KD.clone(), torch.ones(4), weight_KD.clone())
    return quantizer.ema_update(*state, torch.randn(len(codes), 2), torch.tensor(codes), decay=0.9).tolist()


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    assert use(CODES[rank]) == [2, 1, 2, 0]
    dist.destroy_process_group()


def test_an_update_says_how_often_each_code_occurred():
    assert use([*CODES[0], *CODES[1]]) == [2, 1, 2, 0]


@pytest.mark.nightly
def test_on_all_ranks_together(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
