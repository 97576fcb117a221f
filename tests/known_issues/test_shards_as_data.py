"""Folders of shards: files of DeepSpeed and metadata of FSDP2 were unpickled with any class, and ZeRO-1
checkpoints lost weights that never train: DeepSpeed's reader looks for them where only ZeRO-2 and 3 write.
"""

import os
import pickle

import pytest
import torch
from torch.distributed.checkpoint import FileSystemWriter, save

from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import load_checkpoint, open_checkpoint, seal_folder

TRAINED = {"lm.a": torch.arange(35.0).view(5, 7), "lm.b": torch.arange(11.0) + 100}
FROZEN = {"lm.c": torch.arange(4.0) - 9}


def deepspeed(folder, stage, ranks=3):
    """What DeepSpeed writes of one group of weights, cut for its ranks; numbers without meaning are -1."""
    shapes = [{name: value.shape for name, value in TRAINED.items()}]
    path = folder / "checkpoint"
    path.mkdir(parents=True)
    if stage == 3:
        cut = [_cut(value, ranks) for value in TRAINED.values()]
        partitions = [torch.cat([parts[rank] for parts in cut]) for rank in range(ranks)]
    else:
        partitions = _cut(torch.cat([value.flatten() for value in TRAINED.values()]), ranks)
    frozen = [{name: _cut(value, ranks)[rank] if stage == 3 else value for name, value in FROZEN.items()}
              for rank in range(ranks)]  # fmt: skip
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    for rank in range(ranks):
        state = {"zero_stage": stage, "partition_count": ranks, key: [partitions[rank]]}
        torch.save({"optimizer_state_dict": state}, path / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        model = {
            "module": {n: v.bfloat16() for n, v in TRAINED.items()} | FROZEN,
            "buffer_names": [],
            "param_shapes": shapes,
            "shared_params": {},
            "frozen_param_shapes": {n: v.shape for n, v in FROZEN.items()} if stage > 1 else None,
            "frozen_param_fragments": frozen[rank] if stage > 1 else None,
        }
        if stage == 3:
            torch.save(model, path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
        elif rank == 0:
            torch.save(model, path / "mp_rank_00_model_states.pt")
    seal_folder(folder)
    return folder


def _cut(value, ranks):
    size = -(-value.numel() // ranks)
    flat = torch.cat([value.flatten(), torch.full((size * ranks - value.numel(),), -1.0)])
    return [part.clone() for part in flat.split(size)]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_all_weights_are_found_frozen_ones_too(tmp_path, stage):
    folder = deepspeed(tmp_path / "a.ckpt", stage)
    tensors = open_checkpoint(folder).tensors
    wanted = TRAINED | FROZEN
    assert tensors.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(tensors[name].read(), value), name
        assert torch.equal(load_checkpoint(folder)["state_dict"][name], value), name


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("file", ["mp_rank_00_model_states.pt", "zero_pp_rank_1_mp_rank_00_optim_states.pt"])
def test_code_in_a_deepspeed_file_does_not_run(tmp_path, file):
    folder = deepspeed(tmp_path / "a.ckpt", 2)
    torch.save({"x": Payload(tmp_path / "ran")}, folder / "checkpoint" / file)
    (folder / "whole.json").unlink()
    seal_folder(folder)
    with pytest.raises(UserError, match="cannot be read as data"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


def test_code_in_the_metadata_of_fsdp_does_not_run(tmp_path):
    folder = tmp_path / "a.ckpt"
    state = {f"state_dict.{name}": value for name, value in TRAINED.items()}
    save(state, storage_writer=FileSystemWriter(folder), no_dist=True)
    seal_folder(folder)
    assert torch.equal(load_checkpoint(folder)["state_dict"]["lm.a"], TRAINED["lm.a"])
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    (folder / "whole.json").unlink()
    seal_folder(folder)
    with pytest.raises(UserError, match="cannot be read as data"):
        load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()
