"""The layout of a checkpoint on disk, which says by which strategies a run can be resumed from it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lit_moss.runs.checkpoints import load_checkpoint
from lit_moss.runs.stored import ZERO, parse_file


@dataclass(frozen=True)
class Layout:
    """What a checkpoint consists of.

    Args:
        kind: `file`, one file by one device or DDP; `gathered`, one file by FSDP2; `fsdp2` and `deepspeed`,
            folders of shards.
        zero_stage: ZeRO stage of DeepSpeed; None: unknown, or another kind.
    """

    kind: Literal["file", "gathered", "fsdp2", "deepspeed"]
    zero_stage: int | None = None

    @property
    def writer(self) -> str:
        """The strategy that wrote it, for messages."""
        if self.kind == "deepspeed":
            return "DeepSpeed" + (f" ZeRO-{self.zero_stage}" if self.zero_stage else "")
        return "one device or DDP" if self.kind == "file" else "FSDP2"

    @property
    def machine_part(self) -> str | None:
        """Machine part with the strategy that wrote it; None: no such part is needed."""
        if self.kind == "deepspeed":
            return f"conf/trainer/deepspeed_{self.zero_stage or 'N'}.yaml"
        return None if self.kind == "file" else "conf/trainer/fsdp2.yaml"


def layout_of(checkpoint: Path) -> Layout:
    """The layout of a checkpoint.

    Raises:
        UserError: if it cannot be read as data.
    """
    if not checkpoint.is_dir():
        # An optimizer counts its parameters group by group, 0, 1, 2, …; when FSDP2 gathers the
        # state, Lightning replaces these numbers by the positions among all parameters of the model.
        states = load_checkpoint(checkpoint, mmap=True).get("optimizer_states") or []
        numbers = [[n for group in s.get("param_groups") or () for n in group["params"]] for s in states]
        return Layout("file" if all(own == list(range(len(own))) for own in numbers) else "gathered")
    if not (checkpoint / ZERO).is_dir():
        return Layout("fsdp2")
    files = sorted((checkpoint / ZERO).glob("*_optim_states.pt"))
    state: dict[str, Any] = parse_file(files[0]).get("optimizer_state_dict") or {} if files else {}
    return Layout("deepspeed", int(state["zero_stage"]) if "zero_stage" in state else None)
