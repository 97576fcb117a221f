"""Training of the split language model: minimises the next-row cross-entropy of both heads over
packed documents.

What is trained when is not decided here but by callbacks (staged freezing, layer-wise unfreezing), and so are
the rates. Groups of the optimizer are named by the parts they hold, so that those callbacks find them.
"""

import hashlib
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import yaml
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_moss.data.batches import TokenBatch
from lit_moss.data.prompts import Prompt
from lit_moss.errors import UserError
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.heldout import HeldOut
from lit_moss.llm.model import SplitLM, SplitLoss
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.parallel import cast_frozen, check_strategy, shard, whole_on_cpu, whole_shape
from lit_moss.modules.steps import StepModule
from lit_moss.modules.window import Window
from lit_moss.runs.checkpoints import load_checkpoint, newest_checkpoint, newest_of_run

# Part -> prefix of its parameters' names inside the model.
PARTS = {
    "text_embedding": "model.embed_tokens.",
    "trunk": "model.shared_block.",
    "text_tail": "model.text_block.",
    "text_norm": "model.text_norm.",
    "text_head": "text_lm_head.",
    "audio_embedding": "model.audio_embed.",
    "audio_tail": "model.audio_block.",
    "audio_norm": "model.audio_norm.",
    "audio_head": "audio_lm_head.",
}
_SUMS = ("text_nll", "text_count", "text_correct", "speech_nll", "speech_count", "speech_correct")


class SplitLLM(StepModule):
    """The split language model as a LightningModule.

    Args:
        backbone: Folder, Hugging Face id, or `embedded:smollm2-135m`.
        num_modality_layers: Layers of each tail.
        joint: No split: codes join the text vocabulary, one softmax (NF-NoSplit).
        init_from: Weights to start from instead of the backbone's: a checkpoint of an earlier stage, a folder
            of a run or of a name's runs (the newest checkpoint), or a folder of a split model. The optimizer
            starts anew.
        lr: Peak learning rate.
        weight_decay: AdamW's decay, of matrices alone.
        betas: AdamW's averages.
        text_weight: Weight of a text target in the loss; 0 leaves text out.
        speech_weight: Weight of a speech target.
        lr_factors: Part -> factor on `lr`, e.g. {audio_embedding: 2.0}; parts are named as in the table of
            freezing.
        attention: Kernel for packed rows: auto, segments, mask or varlen.
        activation_checkpointing: Recompute layers in the backward; less memory, a third more time.
        compile: torch.compile of every layer.
        dtype: Of the weights: float32 (with `trainer.precision: bf16-mixed`) or bfloat16 (with bf16-true).
        frozen_dtype: bfloat16 keeps the matrices that no stage of the run trains in bfloat16, which in stage
            1 saves 16 GB of an 8B backbone; needs `trainer.precision: bf16-mixed`. Exact for a backbone
            stored in bfloat16, as released Qwen3 and MOSS-Speech weights are: the same losses and text
            logits, to the bit. Others, and rows added to its tables, are rounded once, before their hash is
            taken.
        save_frozen: False leaves weights that no stage trains out of the checkpoints; their hash stays, and
            they come from `backbone` again. Not with FSDP2 and DeepSpeed.
        first_validation: Validate before the first step too, so that curves start at step 0.
        max_new_tokens: Most rows of a reply in `predict`.
        greedy: Most likely rows in `predict`, rather than the released demo's sampling.
    """

    def __init__(
        self,
        backbone: str = "embedded:smollm2-135m",
        num_modality_layers: int = 4,
        joint: bool = False,
        init_from: str | None = None,
        lr: float = 4e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        text_weight: float = 1.0,
        speech_weight: float = 1.0,
        lr_factors: dict[str, float] | None = None,
        attention: Literal["auto", "segments", "mask", "varlen"] = "auto",
        activation_checkpointing: bool = False,
        compile: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        frozen_dtype: Literal["bfloat16"] | None = None,
        save_frozen: bool = True,
        first_validation: bool = True,
        max_new_tokens: int = 500,
        greedy: bool = False,
    ) -> None:
        super().__init__()
        wrong = sorted(set(lr_factors or {}) - set(PARTS))
        if wrong:
            raise UserError(f"model.lr_factors names {wrong}, expected parts of {', '.join(PARTS)}")
        if min(text_weight, speech_weight) < 0 or text_weight + speech_weight == 0:
            raise UserError(
                f"model.text_weight {text_weight} and speech_weight {speech_weight}: expected 0 or more, "
                "not both 0"
            )
        self.backbone, self.num_modality_layers, self.joint = backbone, num_modality_layers, joint
        self.init_from, self.lr, self.weight_decay = init_from, lr, weight_decay
        self.betas: tuple[float, float] = (betas[0], betas[1])  # a list in YAML
        self.weights = {"text": text_weight, "speech": speech_weight}
        self.lr_factors = dict(lr_factors or {})
        self.attention, self.activation_checkpointing, self.compiled = (
            attention,
            activation_checkpointing,
            compile,
        )
        self.weights_dtype = getattr(torch, dtype)
        self.frozen_dtype = None if frozen_dtype is None else getattr(torch, frozen_dtype)
        self.save_frozen, self.first_validation = save_frozen, first_validation
        self.max_new_tokens, self.greedy = max_new_tokens, greedy
        self.lm: SplitLM
        self._sums: dict[str, Tensor] = {}
        self._window = Window()
        self._heldout: HeldOut | None = None
        self._frozen: dict[str, Any] | None = None  # record of the frozen weights, once it is known

    # --- set-up ---------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Builds the model once its row format is known, that is after the data has been set up."""
        if hasattr(self, "lm"):
            return
        check_strategy(self.trainer, self.save_frozen)
        with whole_on_cpu(self.trainer.strategy):
            self.lm = self._build(cast(Any, self.trainer).datamodule.format).train()
        # Before a strategy wraps the model: what never trains is no business of reducers and shards.
        trained = self.ever_trained()
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(name in trained)
        self._cast_frozen(trained)
        mesh = getattr(self, "device_mesh", None)
        if mesh is not None:  # Lightning's ModelParallelStrategy leaves the sharding (FSDP2) to the module
            shard(self.lm, mesh["data_parallel"], str(self.trainer.precision))

    def _cast_frozen(self, trained: set[str]) -> None:
        if self.frozen_dtype is None or self.frozen_dtype == self.weights_dtype:
            return
        autocast = self.trainer.precision == "bf16-mixed"
        if not autocast and self.trainer.state.fn == "fit":
            raise UserError(
                f"model.frozen_dtype is bfloat16 with trainer.precision {self.trainer.precision}: expected "
                "bf16-mixed, which multiplies weights of both dtypes"
            )
        # Replies are made without autocast, in one dtype.
        keep_dtype = not autocast or self.trainer.state.fn == "predict"
        cast_frozen(self.lm, trained, self.frozen_dtype, keep_dtype)

    def _build(self, form: RowFormat) -> SplitLM:
        folder = Path(self.init_from) if self.init_from else None
        if folder is not None and (folder / "config.json").is_file():
            lm = SplitLM.from_pretrained(folder, self.weights_dtype)
        else:
            layers = 0 if self.joint else self.num_modality_layers
            lm = SplitLM.from_backbone(
                self.backbone, layers, form.audio_vocab_size, self.joint, self.weights_dtype, form
            )
            if self.init_from:
                self._load_stage(lm, self.init_from)
        if lm.format != form:
            raise UserError(
                f"the documents' rows are {form.fingerprint}, {self.init_from}'s are {lm.format.fingerprint} "
                f"(text vocabulary {form.text_vocab_size} and {lm.format.text_vocab_size}, audio "
                f"{form.audio_vocab_size} and {lm.format.audio_vocab_size}): make the documents with this "
                "model's tokenizer and codec"
            )
        lm.check_context(getattr(cast(Any, self.trainer).datamodule, "context", 0))
        lm.text_weight, lm.speech_weight = self.weights["text"], self.weights["speech"]
        lm.attention = cast(Any, self.attention)
        lm.checkpoint_activations(self.activation_checkpointing)
        if self.compiled:
            lm.compile_layers()
        return lm

    @staticmethod
    def _load_stage(lm: SplitLM, source: str) -> None:
        """Weights of an earlier stage's checkpoint; what it left out as frozen is the backbone's already."""
        if (Path(source) / "run.json").is_file():
            source = str(newest_of_run(Path(source), "last", end=False))
        elif any(Path(source).glob("*/run.json")):
            source = str(newest_checkpoint(Path(source), "last", end=False))
        if not Path(source).exists():
            raise UserError(
                f"model.init_from: no {source}, expected a checkpoint or a folder with config.json"
            )
        SplitLLM._take_over(lm, load_checkpoint(Path(source), mmap=True), source)

    @staticmethod
    def _take_over(lm: SplitLM, checkpoint: dict[str, Any], source: str) -> None:
        found = {k.removeprefix("lm."): v for k, v in checkpoint["state_dict"].items() if k.startswith("lm.")}
        own = lm.state_dict()
        wrong = [k for k, v in found.items() if k not in own or own[k].shape != v.shape]
        missing = sorted(own.keys() - found.keys())
        frozen = checkpoint.get("frozen")
        if wrong or not found or (missing and frozen is None):
            raise UserError(
                f"model.init_from {source} does not fit: {len(wrong)} tensors of another shape, "
                f"{len(missing)} missing (first {(wrong or missing or ['all'])[0]!r}); use the same "
                "backbone, split depth and codec"
            )
        _check_frozen(frozen, own, source)
        lm.load_state_dict(own | found)
        rank_zero_info(f"{source}: {len(found)} tensors taken over")

    def parts(self) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
        """Part, trunk layers one by one -> its named parameters."""
        found: dict[str, list[tuple[str, torch.nn.Parameter]]] = {}
        for name, parameter in self.lm.named_parameters():
            part = next(p for p, prefix in PARTS.items() if name.startswith(prefix))
            if part == "trunk":
                part = f"trunk.{name.removeprefix(PARTS['trunk'] + 'layers.').split('.')[0]}"
            found.setdefault(part, []).append((name, parameter))
        return found

    def ever_trained(self) -> set[str]:
        """Names of the parameters that the run's freezing rules (callbacks with `ever_trained`) let
        train at all."""
        parts = self.parts()
        found = {name for named in parts.values() for name, _ in named}
        for rule in cast(Any, self.trainer).callbacks:
            if hasattr(rule, "ever_trained"):
                found &= rule.ever_trained(parts)
        return found

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """One AdamW; a group a part, matrices apart from the rest, which has no decay."""
        trained = self.ever_trained()
        groups = []
        for part, named in self.parts().items():
            for matrices in (True, False):
                chosen = [p for n, p in named if (len(whole_shape(p)) > 1) == matrices and n in trained]
                if chosen:
                    lr = self.lr * self.lr_factors.get(part.split(".")[0], 1.0)
                    groups.append(
                        {
                            "params": chosen,
                            "name": part if matrices else f"{part}.no_decay",
                            "lr": lr,
                            "base_lr": lr,
                            "weight_decay": self.weight_decay if matrices else 0.0,
                        }
                    )
        return self.adamw(groups, lr=self.lr, betas=self.betas)

    # --- steps ----------------------------------------------------------------------------------------------

    def forward(self, rows: Tensor, document_ids: Tensor | None = None) -> Any:
        """Logits, as `SplitLM.forward`."""
        return self.lm(rows, document_ids)

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        loss = self.lm.loss(batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL)
        # Lightning takes a metric named `step` as the x axis: number 1 is the state after the first step.
        self.log("step", self.on_device(self.global_step + 1))
        counts = _counts(batch, loss)
        trained = sum(n for kind, n in counts.items() if self.weights[kind])
        self.count_targets(trained)
        if trained:
            self.log("train/loss", loss.total.detach(), prog_bar=True)
        for name, value in _means(loss, counts).items():
            self.log(f"train/{name}", value, prog_bar=name == "speech_ppl")
        step = self._window.targets(self.trainer, batch_idx)
        if step is None:
            return every_target_once(loss.total, loss.text_count + loss.speech_count)
        return loss.total * (sum(counts.values()) * step.parts / max(1, step.targets))

    def on_train_start(self) -> None:
        self._window = Window()
        trainer = self.trainer
        if not self.first_validation or trainer.global_step:
            return
        datamodule = cast(Any, trainer).datamodule
        self.eval()
        self.on_validation_epoch_start()
        with torch.no_grad(), trainer.precision_plugin.val_step_context():
            for i, batch in enumerate(datamodule.val_dataloader() or ()):
                self.validation_step(self.transfer_batch_to_device(batch, self.device, 0), i)
            results = self._results()
        self.train()
        if trainer.logger is not None:
            trainer.logger.log_metrics(results, step=0)
        rank_zero_info("before training: " + ", ".join(f"{k} {v:.4g}" for k, v in results.items()))

    def on_validation_epoch_start(self) -> None:
        self._sums = {name: torch.zeros((), dtype=torch.float64, device=self.device) for name in _SUMS}

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        loss = self.lm.loss(batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL)
        values = (
            loss.text * loss.text_count,
            loss.text_count,
            loss.text_correct,
            loss.speech * loss.speech_count,
            loss.speech_count,
            loss.speech_correct,
        )
        for name, value in zip(_SUMS, values, strict=True):
            self._sums[name] += value

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.log("step", float(self.global_step))
            self.log_dict(self._results())  # the same on every rank: reduced already

    def _results(self) -> dict[str, float]:
        """Metrics of the validation documents, and of the held-out items, over all ranks."""
        sums = {k: float(self.trainer.strategy.reduce(v, reduce_op="sum")) for k, v in self._sums.items()}
        found: dict[str, float] = {}
        count = sums["text_count"] + sums["speech_count"]
        if count:
            found["val/loss"] = (sums["text_nll"] + sums["speech_nll"]) / count
        for name in ("text", "speech"):
            if sums[f"{name}_count"]:
                mean = sums[f"{name}_nll"] / sums[f"{name}_count"]
                found |= {
                    f"val/{name}_loss": mean,
                    f"val/{name}_ppl": float(torch.tensor(mean).exp()),
                    f"val/{name}_accuracy": sums[f"{name}_correct"] / sums[f"{name}_count"],
                }
        if self._heldout is None:
            items = getattr(cast(Any, self.trainer).datamodule, "cloze_items", list)()
            self._heldout = HeldOut(items, self.lm.format)
        with self.trainer.precision_plugin.val_step_context():
            found |= {f"heldout/{k}": v for k, v in self._heldout.measure(self.lm, self.device).items()}
        # As `self.log` keeps them, also before training, where the logger is called past it.
        return {key: float(torch.tensor(value, dtype=torch.float32)) for key, value in found.items()}

    # --- replies --------------------------------------------------------------------------------------------

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """Replies to prompts: the text, or the codes."""
        form, tokenizer = self.lm.format, cast(Any, self.trainer).datamodule.tokenizer
        # The seed anew for each batch: a reply follows from the seed and its prompt, not from how prompts are
        # batched.
        replies = self.lm.generate(
            [p.rows for p in batch],
            max_new_tokens=self.max_new_tokens,
            greedy=self.greedy,
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
        )
        found = []
        for prompt, rows in zip(batch, replies, strict=True):
            text = [r for r in rows if r < form.text_vocab_size and r not in self.lm.stop_ids]
            codes = [r - form.text_vocab_size for r in rows if form.text_vocab_size <= r < form.eosp_row]
            found.append(
                {
                    "id": prompt.id,
                    "reply": prompt.reply,
                    "text": tokenizer.decode(text),
                    "codes": codes,
                    "ended": bool(rows) and rows[-1] in self.lm.stop_ids,
                }
            )
        return found

    # --- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["split_config"] = self.lm.config.to_dict()
        made_by = getattr(getattr(self.trainer, "datamodule", None), "fingerprints", dict)()
        checkpoint["made_by"] = {key: made_by.get(key) for key in ("text_tokenizer", "speech_tokenizer")}
        state = checkpoint.get("state_dict")
        if self.save_frozen or not state:
            return
        trained = {f"lm.{name}" for name in self.ever_trained()}
        left_out = {k.removeprefix("lm."): state.pop(k) for k in list(state) if k not in trained}
        if self._frozen is None and self.trainer.is_global_zero:  # the only rank that writes
            # Once a run: they never change, and at 8B 16 GB take longer to hash than the rest to write.
            self._frozen = {"backbone": self.backbone, **hash_record(left_out)}
        checkpoint["frozen"] = self._frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._check_made_by(checkpoint.get("made_by") or {})
        frozen = checkpoint.get("frozen")
        if frozen is None:
            return
        own = self.lm.state_dict()
        _check_frozen(frozen, own, "the checkpoint")
        checkpoint["state_dict"] |= {f"lm.{name}": own[name] for name in frozen["names"]}

    def _check_made_by(self, trained: dict[str, str | None]) -> None:
        """Codes of another tokenizer have the same numbers and mean something else."""
        here = getattr(getattr(self.trainer, "datamodule", None), "fingerprints", dict)()
        for key, value in trained.items():
            if value and here.get(key) not in (None, "none", value):
                raise UserError(
                    f"the checkpoint was trained on rows of the {key} {value}, here it is {here[key]}: give "
                    f"the {key} of the training (data.init_args.{key if key == 'speech_tokenizer' else 'backbone'})"
                )


def model_of_run(run: Path) -> SplitLM:
    """The model of a run's newest checkpoint, on the CPU, in eval mode.

    Args:
        run: The run's folder (RUN_ROOT/NAME/RUN_NAME).

    Raises:
        UserError: if there is no whole checkpoint, or its backbone is another than the run's.
    """
    found = newest_of_run(run, "last")
    if not isinstance(found, Path):
        raise UserError(f"{run} has no checkpoint yet: train further, or give another run")
    checkpoint = load_checkpoint(found, mmap=True)
    config = SplitConfig.from_dict(checkpoint["split_config"], str(found))
    backbone = yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["backbone"]
    lm = SplitLM.from_backbone(
        backbone,
        config.num_modality_layers,
        config.format.audio_vocab_size,
        config.joint,
        row_format=config.format,
    )
    SplitLLM._take_over(lm, checkpoint, str(found))
    return lm.eval()


def every_target_once(mean: Tensor, count: Tensor) -> Tensor:
    """A rank's mean loss over its own targets, scaled so that the average over ranks, which is what
    gradients become, is the mean over the targets of all.

    For data without a known order of targets, see `Window`: accumulated micro-batches count alike here,
    whatever their targets.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return mean
    own = count.float()
    every = own.clone()
    dist.all_reduce(every)
    return mean * (own * dist.get_world_size() / every.clamp_min(1))


def sha256_of_tensors(tensors: dict[str, Tensor]) -> str:
    """Hex digest of names and contents, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_record(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint says of weights that it leaves out: `names`, their `dtypes`, and the `sha256`."""
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    return {"sha256": sha256_of_tensors(tensors), "names": sorted(tensors), "dtypes": dtypes}


def _check_frozen(frozen: dict[str, Any] | None, own: dict[str, Tensor], source: str) -> None:
    if frozen is None:
        return
    # In the dtypes they were trained with: another stage may keep the same backbone in another one.
    dtypes = frozen.get("dtypes", {})
    same = {
        name: own[name].to(getattr(torch, dtypes[name])) if name in dtypes else own[name]
        for name in frozen["names"]
        if name in own
    }
    here = sha256_of_tensors(same)
    if here != frozen["sha256"]:
        raise UserError(
            f"{source} was trained on top of {frozen['backbone']!r} with frozen weights "
            f"{frozen['sha256'][:12]}, this backbone's are {here[:12]}: give the same backbone"
        )


def _counts(batch: TokenBatch, loss: SplitLoss) -> dict[str, int]:
    """Targets of each head; a batch that does not say makes the host ask the device."""
    text, speech = batch.text_targets, batch.speech_targets
    return {
        "text": int(loss.text_count) if text is None else text,
        "speech": int(loss.speech_count) if speech is None else speech,
    }


def _means(loss: SplitLoss, counts: dict[str, int]) -> dict[str, Tensor]:
    found = {"text_targets": loss.text_count.float(), "speech_targets": loss.speech_count.float()}
    for name, mean, count, correct in (
        ("text", loss.text, loss.text_count, loss.text_correct),
        ("speech", loss.speech, loss.speech_count, loss.speech_correct),
    ):
        if counts[name]:
            found |= {f"{name}_loss": mean, f"{name}_ppl": mean.exp(), f"{name}_accuracy": correct / count}
    return found
