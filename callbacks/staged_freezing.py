"""Which parts of the model are trained in each stage of a run."""

from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.freezing import apply_freezing, drop_gradients, trained_names
from callbacks.learning_rate import set_rates
from lit_moss.contracts import Parts
from lit_moss.errors import UserError
from lit_moss.runs.tracking import Tracker
from lit_moss.trainer_access import all_names, parts_of, total_parameters, waits_for_all_gradients

# Policy -> parts that it trains; see the paper's section 3.1.2 and its ablation (table 7).
POLICIES = {
    "stage1": ["audio_*"],
    "full": ["*"],
    "shared": ["trunk", "audio_*"],
    "layerwise": ["*"],  # with callbacks.ReverseUnfreeze, which keeps trunk layers frozen
    "lora": ["lora_*"],  # only the adapters of model.lora
    "listening": ["audio_embedding"],  # plus the first `layers` of the trunk, for model.align
}


class StagedFreezing(Callback):
    """Freezes and unfreezes parts of the model by optimizer step, and logs a table of what is trained.

    Parts: text_embedding, trunk (trunk.0, trunk.1, …), text_tail, text_norm, text_head, audio_embedding,
    audio_tail, audio_norm, audio_head; with `model.lora` also its adapters lora_trunk, lora_text_tail and
    lora_audio_tail. To train other parts besides adapters, list them: `train: ["lora_*", audio_embedding,
    "*_norm"]`.

    Args:
        stages: List of stages, in order, each with `policy` (stage1, full, shared, layerwise, lora,
            listening) or `train` (a list of patterns of parts or parameter names, where `*` matches
            anything), optionally `freeze` (patterns to freeze among them), and `until_step` (the step at
            which the next stage begins; none for the last). The policy `listening` also needs `layers`, the
            number of trunk layers to train, counted from the first. A pattern without a match is an error.
    """

    def __init__(self, stages: list[dict[str, Any]]) -> None:
        self.stages = [_checked(stage, i, len(stages)) for i, stage in enumerate(stages)]
        if not stages:
            raise UserError("StagedFreezing has no stages, expected e.g. [{policy: stage1}]")
        borders = [s["until_step"] for s in self.stages[:-1]]
        if borders != sorted(set(borders)):
            raise UserError(f"StagedFreezing's until_step are {borders}, expected rising numbers")
        self._trained: set[str] | None = None

    def stage_at(self, step: int) -> int:
        """Index of the stage at a step."""
        return sum(step >= s["until_step"] for s in self.stages[:-1])

    def trained(self, parts: Parts, step: int) -> set[str]:
        """Names of the parameters that this rule trains at a step."""
        stage = self.stages[self.stage_at(step)]
        return _matches(stage["train"], parts) - _matches(stage["freeze"], parts)

    def ever_trained(self, parts: Parts) -> set[str]:
        """Names of the parameters that some stage trains."""
        found = set().union(
            *(_matches(s["train"], parts) - _matches(s["freeze"], parts) for s in self.stages)
        )
        if not found:
            raise UserError(
                f"StagedFreezing trains none of the parts {', '.join(parts)}: give a policy or patterns that "
                "do (a model without a split has no parts of speech to train alone)"
            )
        return found

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._trained = None
        self._apply(trainer, pl_module)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._apply(trainer, pl_module)

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        trained = trained_names(trainer, module, trainer.global_step)
        if trained == self._trained:
            return
        self._trained = trained
        apply_freezing(trainer, module, trained)
        set_rates(trainer)
        parts = parts_of(module)
        text = self.table(parts, trained, trainer.global_step)
        rank_zero_info(text)
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero:
            trainer.logger.log_text(text + "\n", f"freezing/step-{trainer.global_step:07d}.txt")
            step = trainer.global_step
            if step and trained_names(trainer, module, step - 1) == trained:
                return  # resumed within a stage, whose beginning is already logged
            count = total_parameters((n, p) for named in parts.values() for n, p in named if n in trained)
            trainer.logger.log_metrics({"train/trainable_parameters": float(count)}, step)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        if self._trained is not None and waits_for_all_gradients(trainer):
            drop_gradients(pl_module, self._trained)

    def table(self, parts: Parts, trained: set[str], step: int) -> str:
        """Table of parts with total and trainable parameters; trunk layers in the same state share a line."""
        lines: list[tuple[str, int, int]] = []
        for part, named in parts.items():
            count, free = total_parameters(named), total_parameters((n, p) for n, p in named if n in trained)
            head, _, layer = part.partition(".")
            last = lines[-1][0].split(" ")[0] if lines else ""
            if layer and lines and last == head and (lines[-1][2] > 0) == (free > 0):
                first = lines[-1][0].split(" ")[1].split("-")[0]
                lines[-1] = (f"{head} {first}-{layer}", lines[-1][1] + count, lines[-1][2] + free)
            else:
                lines.append((f"{head} {layer}" if layer else part, count, free))
        every, free = sum(x for _, x, _ in lines), sum(x for _, _, x in lines)
        rows = [f"{name:<18}{count:>14,}{f:>14,}" for name, count, f in lines]
        head = f"step {step}, stage {self.stage_at(step) + 1} of {len(self.stages)}"
        share = f"{free / max(1, every):.1%} of {every:,} parameters train"
        return "\n".join([f"{head}: {share}", f"{'part':<18}{'parameters':>14}{'trainable':>14}", *rows])


def _checked(stage: Any, i: int, count: int) -> dict[str, Any]:
    if not isinstance(stage, dict):
        raise UserError(
            f"stage {i + 1} of StagedFreezing is {stage!r}, expected a mapping: {{policy: stage1}}"
        )
    unknown = sorted(stage.keys() - {"policy", "train", "freeze", "until_step", "layers"})
    if unknown or ("policy" in stage) == ("train" in stage):
        raise UserError(
            f"stage {i + 1} of StagedFreezing is {stage}: expected policy ({', '.join(POLICIES)}) or train "
            "(patterns), optionally freeze and until_step"
        )
    for key, patterns in (("train", stage.get("train", [])), ("freeze", stage.get("freeze") or [])):
        if not (isinstance(patterns, list | tuple) and all(isinstance(p, str) for p in patterns)):
            raise UserError(
                f"stage {i + 1} of StagedFreezing has {key} {patterns!r}, expected a list of patterns, such "
                "as [audio_*]"
            )
    if "policy" in stage and str(stage["policy"]) not in POLICIES:
        raise UserError(f"no freezing policy {stage['policy']!r}, expected one of {', '.join(POLICIES)}")
    until = stage.get("until_step", 0)
    if until is not None and not (isinstance(until, int | float) and until >= 0 and until % 1 == 0):
        raise UserError(
            f"stage {i + 1} of StagedFreezing has until_step {until!r}, expected an optimizer step, 0 or more"
        )
    last = i == count - 1
    if last == (stage.get("until_step") is not None):
        raise UserError(
            f"stage {i + 1} of {count} of StagedFreezing "
            + ("is the last and must have no until_step" if last else "needs an until_step")
        )
    layers = stage.get("layers")
    is_number = layers is None or (type(layers) is int and layers >= 1)
    if (stage.get("policy") == "listening") != (layers is not None) or not is_number:
        raise UserError(
            f"stage {i + 1} of StagedFreezing is {stage}: expected a number of layers, 1 or more, with the "
            "policy listening, such as {policy: listening, layers: 10}, and with no other"
        )
    train = POLICIES[stage["policy"]] if "policy" in stage else list(stage["train"])
    train = [*train, *(f"trunk.{number}" for number in range(layers or 0))]
    return {"train": train, "freeze": list(stage.get("freeze") or []), "until_step": stage.get("until_step")}


def _matches(patterns: list[str], parts: Parts) -> set[str]:
    """Parameters whose part, first component of the part (trunk for trunk.3) or name matches a pattern."""
    found: set[str] = set()
    for pattern in patterns:
        hits = {
            name
            for part, named in parts.items()
            for name, _ in named
            if any(fnmatchcase(x, pattern) for x in (part, part.split(".")[0], name))
        }
        if not hits and pattern.startswith("lora_"):
            raise UserError(
                f"StagedFreezing trains {pattern}, but the model has no such adapters: give "
                "model.init_args.lora, such as {rank: 16, alpha: 32}"
            )
        # A model without a split has no audio parts; the policies are still valid.
        if not hits and pattern not in ("audio_*", "trunk"):
            raise UserError(
                f"StagedFreezing's pattern {pattern!r} fits nothing, expected one of the parts "
                f"{', '.join(parts)} or a parameter's name such as {next(iter(all_names(parts)))}"
            )
        found |= hits
    return found
