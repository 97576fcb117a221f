"""Training of the split language model: minimises the next-row cross-entropy of both heads over packed
documents.

    TokenBatch ─ SplitLM.loss ─ AccumulationWindow: all targets of an optimizer step have equal weight ─ AdamW

Callbacks decide which parameters are trained at each step (StagedFreezing, ReverseUnfreeze) and set the
learning rates (LearningRateSchedule); they find parameters by the names of the optimizer's groups.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_moss import contracts, trainer_access
from lit_moss.contracts import TokenData
from lit_moss.data.batches import TokenBatch
from lit_moss.data.listening import word_errors
from lit_moss.data.prompts import Prompt
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM, stages
from lit_moss.llm.heldout import HeldOut
from lit_moss.llm.init_codes import InitCodes
from lit_moss.llm.listening import Listening
from lit_moss.llm.lora import Lora, add_adapters, check_resumed, check_trained, merge_adapters, merged
from lit_moss.llm.losses import SplitLoss
from lit_moss.llm.metrics import LossSums, batch_metrics
from lit_moss.llm.parts import LORA, PARTS, Parts, named_parts, optimizer_groups
from lit_moss.llm.replies import reply_codes, reply_text, split_reply
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.accumulation import AccumulationWindow, every_target_once
from lit_moss.modules.auxiliary_losses import AuxiliaryLosses
from lit_moss.modules.initial_weights import InitialWeights
from lit_moss.modules.parallel import check_replies, check_strategy, saves_shards, shard, whole_on_cpu
from lit_moss.modules.steps import StepModule
from lit_moss.modules.text_distill import TextDistill
from lit_moss.modules.trunk_align import TrunkAlign
from lit_moss.modules.trunk_ctc import HEAD, TrunkCtc, TrunkCtcHead, check_same_ctc, stored_head

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class SplitLLM(StepModule):
    """The split language model as a LightningModule.

    Args:
        backbone: Folder, Hugging Face id, or `embedded:smollm2-135m`.
        num_modality_layers: Number of layers of each tail. None: those of the folder in `init_from`,
            otherwise 4.
        joint: No split (NF-NoSplit): codes join the text vocabulary, with one softmax.
        init_from: Weights to start from instead of the backbone's: a checkpoint of an earlier stage, the
            folder of a run or of all runs of a name (the newest checkpoint), or the folder of a split model.
            The optimizer state is not loaded.
        lr: Peak learning rate.
        weight_decay: AdamW's weight decay, applied to matrices only.
        betas: AdamW's coefficients of the running averages.
        text_weight: Weight of a text target in the loss; 0 leaves text out.
        speech_weight: Weight of a speech target in the loss.
        lr_factors: Part -> factor on `lr`, e.g. {audio_embedding: 2.0}. Parts are named as in the freezing
            table; `ctc_head` is the head of `ctc`.
        init_codes: Initial code embeddings: `random`; `codebook`, a fixed random projection of the speech
            tokenizer's codebook, scaled to the standard deviation of the text embeddings; `text`, the mean
            embedding of the text aligned to each code (needs `data.speech_text`), or `codebook` for codes
            without text. The audio head then starts at zero. Not with `init_from`, whose embeddings are kept.
            Learning rates are unchanged; the measured runs used `lr_factors: {audio_embedding: 3.0,
            audio_head: 3.0}`.
        ctc: Auxiliary CTC loss on the trunk's hidden states at codes; needs `data.speech_text`. None: off.
        align: Alignment of the trunk's states at word ends with the backbone's states of the same text; needs
            `data.speech_text` and word times. None: off.
        distill: Distillation from the unmodified backbone on the text before a document's first speech or
            reply (replayed text, written questions, sentences to be read out). None: off.
        attention: Attention kernel for packed rows: auto, segments, mask or varlen.
        reset_attention: Attention and positions restart at each packed document. False: a sequence is read as
            one document; the first row of a document is no target either way. Not with `align` and `distill`.
        activation_checkpointing: Recompute layers in the backward: less memory, a third more time.
        compile: Apply torch.compile to every layer.
        dtype: Data type of the weights: float32 (with `trainer.precision: bf16-mixed`) or bfloat16 (with
            bf16-true).
        frozen_dtype: bfloat16 keeps matrices that no stage of the run trains in bfloat16, which in stage 1
            saves 16 GB for an 8B backbone; needs `trainer.precision: bf16-mixed`. For backbones stored in
            bfloat16, such as the released Qwen3 and MOSS-Speech weights, losses and text logits do not change
            by a bit. Other weights, and rows added to the tables, are rounded once, before their hash is
            computed.
        save_frozen: False leaves weights that no stage trains out of the checkpoints, which then store a
            hash; the weights are read again from `backbone` or `init_from`. Not with FSDP2 and DeepSpeed.
        lora: Low-rank adapters to train in place of the matrices, with the freezing policy `lora`; the next
            stage, `predict` and the export merge them. Needs `pip install 'lit-moss[finetune]'`. None: no
            adapters.
        max_new_tokens: Maximum number of rows of a reply in `predict`.
        greedy: Choose the most likely rows in `predict`, instead of the released demo's sampling.
    """

    validates_first = True

    def __init__(
        self,
        backbone: str = "embedded:smollm2-135m",
        num_modality_layers: int | None = None,
        joint: bool = False,
        init_from: str | None = None,
        lr: float = 4e-4,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
        text_weight: float = 1.0,
        speech_weight: float = 1.0,
        lr_factors: dict[str, float] | None = None,
        init_codes: InitCodes = "random",
        ctc: TrunkCtc | None = None,
        align: TrunkAlign | None = None,
        distill: TextDistill | None = None,
        attention: Literal["auto", "segments", "mask", "varlen"] = "auto",
        reset_attention: bool = True,
        activation_checkpointing: bool = False,
        compile: bool = False,
        dtype: Literal["float32", "bfloat16"] = "float32",
        frozen_dtype: Literal["bfloat16"] | None = None,
        save_frozen: bool = True,
        lora: Lora | None = None,
        max_new_tokens: int = 500,
        greedy: bool = False,
    ) -> None:
        super().__init__()
        parts = [*PARTS, *LORA, *([] if ctc is None else [HEAD])]
        wrong = sorted(set(lr_factors or {}) - set(parts))
        if wrong:
            raise UserError(f"model.lr_factors names {wrong}, expected parts of {', '.join(parts)}")
        if init_codes not in get_args(InitCodes):
            raise UserError(f"model.init_codes is {init_codes!r}, expected {', '.join(get_args(InitCodes))}")
        if align is not None and joint:
            raise UserError("model.align with model.joint: expected a model with a split (joint: false)")
        if distill is not None and joint:
            raise UserError("model.distill with model.joint: expected a model with a split (joint: false)")
        if not reset_attention and (align is not None or distill is not None):
            raise UserError(
                "model.reset_attention false with model.align or distill, which read the same text without "
                "the documents before it: expected reset_attention true, or align and distill null"
            )
        weights = (text_weight, speech_weight)
        if not all(0 <= weight < math.inf for weight in weights) or sum(weights) == 0:
            raise UserError(
                f"model.text_weight {text_weight} and speech_weight {speech_weight}: expected 0 or more, "
                "not both 0"
            )
        self.backbone, self.joint, self.init_from = backbone, joint, init_from
        self.num_modality_layers = 0 if joint else num_modality_layers
        self.lr, self.weight_decay, self.lr_factors = lr, weight_decay, dict(lr_factors or {})
        self.init_codes: InitCodes = init_codes
        self.ctc, self.align = ctc, align
        self.betas: tuple[float, float] = (betas[0], betas[1])  # a list in YAML
        self.weights = {"text": text_weight, "speech": speech_weight}
        self.attention: Literal["auto", "segments", "mask", "varlen"] = attention
        self.reset_attention = reset_attention
        self.activation_checkpointing, self.compiled = activation_checkpointing, compile
        self.weights_dtype = _DTYPES[dtype]
        self.frozen_dtype = None if frozen_dtype is None else _DTYPES[frozen_dtype]
        self.save_frozen, self.max_new_tokens, self.greedy = save_frozen, max_new_tokens, greedy
        self.lora = lora
        self.lm: SplitLM
        self.ctc_head: TrunkCtcHead | None = None
        self._auxiliary = AuxiliaryLosses(ctc, align, distill)
        self._window = AccumulationWindow()
        self._sums = LossSums(torch.device("cpu"))
        self._heldout: HeldOut | None = None
        self._listening: Listening | None = None
        self._stored_ctc: dict[str, Any] | None = None  # of the checkpoint that the run starts from
        self._frozen: dict[str, Any] | None = None  # record of the frozen weights, once computed

    # --- set-up ---------------------------------------------------------------------------------------------

    def configure_model(self) -> None:
        """Builds the model, once the data is set up and the row format is known."""
        if "lm" in self._modules:
            return
        check_strategy(self.trainer, self.save_frozen)
        data = trainer_access.datamodule_of(self.trainer)
        check_replies(self.trainer, data.asr_item_count if isinstance(data, contracts.ListeningData) else 0)
        with whole_on_cpu(self.trainer.strategy):
            self.lm = self._build(trainer_access.data_of(self.trainer, contracts.RowData).format).train()
            if self.trainer.state.fn in ("fit", "validate"):
                auxiliary, stored = self._auxiliary, self._stored_ctc
                dtype = self.frozen_dtype or self.weights_dtype
                auxiliary.build(self.lm, self.trainer, stored, self._backbone_as_it_was, dtype)
                self.ctc_head, self._stored_ctc = auxiliary.head, None
            if self.lora is not None:
                add_adapters(self.lm, self.lora)
        # Before a strategy wraps the model: reducers and shards omit parameters that are never trained.
        trained = self.ever_trained()
        if self.trainer.state.fn == "fit":
            self._check_trained(trained)
        for name, parameter in self.lm.named_parameters():
            parameter.requires_grad_(name in trained)
        # Lightning's ModelParallelStrategy leaves sharding to the module.
        if self.device_mesh is not None:
            mesh = self.device_mesh["data_parallel"]
            shard(self.lm, mesh, str(self.trainer.precision), self._caster(trained))
        else:
            self._caster(trained)(self.lm)

    def _backbone_as_it_was(self) -> SplitLM:
        if self.init_from is None:  # a resumed checkpoint is loaded later
            return self.lm
        if stages.is_split(Path(self.backbone)):
            return SplitLM.from_pretrained(self.backbone)
        row_format, layers = self.lm.format, self.lm.config.num_modality_layers
        audio = row_format.audio_vocab_size
        return SplitLM.from_backbone(
            self.backbone, layers, audio, dtype=self.weights_dtype, row_format=row_format
        )

    def _check_trained(self, trained: set[str]) -> None:
        if self.align is not None:
            self.align.check_trained(trained)
        names = [name for name, _ in self.lm.named_parameters()]
        check_trained(names, trained)
        drawn = [name for name in names if name.startswith(("model.audio_embed.", "audio_lm_head."))]
        lost = [name for name in drawn if name not in trained]
        if lost and not self.save_frozen and self.init_from is None:
            raise UserError(
                f"model.save_frozen is false, but {lost[0]} starts at random numbers and no stage trains it: "
                "give model.init_from, train it, or save_frozen true"
            )

    def _build(self, row_format: RowFormat) -> SplitLM:
        initial = InitialWeights(
            self.backbone,
            self.num_modality_layers,
            self.joint,
            self.init_from,
            self.init_codes,
            self.weights_dtype,
        )
        lm, self._stored_ctc = initial.weights(self.trainer, row_format, self.resumes)
        if lm.format != row_format:
            raise UserError(
                f"the documents' rows are {row_format.fingerprint}, {self.init_from}'s are "
                f"{lm.format.fingerprint} (text vocabulary {row_format.text_vocab_size} and "
                f"{lm.format.text_vocab_size}, audio {row_format.audio_vocab_size} and "
                f"{lm.format.audio_vocab_size}): make the documents with this model's text tokenizer and "
                "speech tokenizer"
            )
        data = trainer_access.datamodule_of(self.trainer)
        lm.check_context(data.context if isinstance(data, TokenData) else 0)
        if self.trainer.state.fn == "fit" and None in (row_format.im_start_id, row_format.im_end_id):
            rank_zero_warn(
                f"the text tokenizer of {self.backbone} has no <|im_start|> and <|im_end|>: this run trains, "
                "but fine-tuning on conversations, chat and serve need these tokens; a backbone that was "
                "tuned to chat in ChatML has them (Qwen, SmolLM2-Instruct)"
            )
        lm.text_weight, lm.speech_weight = self.weights["text"], self.weights["speech"]
        lm.attention = self.attention
        lm.checkpoint_activations(self.activation_checkpointing)
        if self.compiled:
            lm.compile_layers()
        return lm

    def _caster(self, trained: set[str]) -> Callable[[nn.Module], None]:
        """A function that casts a module's weights to the data types of the training."""
        whole = stages.dtypes_of_training(self.lm, self.weights_dtype, trained)
        if self.frozen_dtype is None or self.frozen_dtype == self.weights_dtype:
            return lambda module: stages.cast(module, whole)
        autocast = self.trainer.precision == "bf16-mixed"
        if not autocast and self.trainer.state.fn == "fit":
            raise UserError(
                f"model.frozen_dtype is bfloat16 with trainer.precision {self.trainer.precision}: expected "
                "bf16-mixed, which multiplies weights of both dtypes"
            )
        rounded = stages.dtypes_of_training(self.lm, self.weights_dtype, trained, self.frozen_dtype)
        # Replies are generated without autocast, in a single data type.
        keep_dtype = not autocast or self.trainer.state.fn == "predict"

        def cast(module: nn.Module) -> None:
            stages.cast(module, rounded)
            if keep_dtype:
                stages.cast(module, whole)

        if not keep_dtype:
            whole.clear()  # releases the references to the weights
        return cast

    def parts(self) -> Parts:
        """Part -> its named parameters; each trunk layer is a part."""
        return named_parts(self.lm)

    def ever_trained(self) -> set[str]:
        """Names of the parameters that the run's freezing rules train at some step."""
        return trainer_access.ever_trained(self.trainer, self.parts())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """A single AdamW optimizer for all parameter groups."""
        groups = optimizer_groups(
            self.parts(), self.ever_trained(), self.lr, self.lr_factors, self.weight_decay
        )
        if self.ctc_head is not None:
            rate = self.lr * self.lr_factors.get(HEAD, 1.0)
            groups.append(
                {"params": list(self.ctc_head.parameters()), "name": HEAD, "lr": rate, "base_lr": rate,
                 "weight_decay": 0.0}
            )  # fmt: skip
        trained = {group["name"].split(".")[0] for group in groups}
        if idle := sorted({*self.lr_factors} - trained):
            rank_zero_warn(f"model.lr_factors names {', '.join(idle)}, frozen in all of this run: no effect")
        return self.adamw(groups, lr=self.lr, betas=self.betas)

    # --- steps ----------------------------------------------------------------------------------------------

    def forward(self, rows: Tensor, document_ids: Tensor | None = None) -> Any:
        """Logits, as in `SplitLM.forward`."""
        return self.lm(rows, document_ids)

    def on_train_start(self) -> None:
        self._window = AccumulationWindow()

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        if self._auxiliary.only_aligns:
            return self._alignment_step(batch)
        loss = self._loss(batch)
        # Lightning uses a metric named `step` as the x axis: step 1 is the state after the first step.
        self.log("step", self.on_device(self.global_step + 1))
        # If the batch does not state its number of targets, the host has to ask the device.
        text, speech = batch.text_targets, batch.speech_targets
        targets = {
            "text": int(loss.text_count) if text is None else text,
            "speech": int(loss.speech_count) if speech is None else speech,
        }
        auxiliary = self._auxiliary.compute(self.lm, batch, loss)
        trained = sum(count for head, count in targets.items() if self.weights[head])
        self.count_targets(trained + auxiliary.count)
        if trained:
            self.log("train/loss", loss.total.detach(), prog_bar=True)
        for name, value in batch_metrics(loss, targets).items():
            self.log(f"train/{name}", value, prog_bar=name == "speech_ppl")
        count = loss.text_count + loss.speech_count
        total = sum(auxiliary.losses, start=loss.total)
        for name, value in auxiliary.logged.items():
            self.log(f"train/{name}", value if isinstance(value, Tensor) else self.on_device(value))
        return self._window.weighted(self.trainer, batch_idx, total, count, sum(targets.values()))

    def _loss(self, batch: TokenBatch) -> SplitLoss:
        ids_BL = batch.document_ids_BL
        attention_ids_BL = None if self.reset_attention else ids_BL.clamp_max(0)  # -1, filler, stays apart
        return self.lm.loss(batch.rows_BL, ids_BL, batch.loss_mask_BL, attention_ids_BL)

    def _alignment_step(self, batch: TokenBatch) -> Tensor:
        losses = self._auxiliary.alignment(self.lm, batch)
        self.log("step", self.on_device(self.global_step + 1))
        self.count_targets(losses.places)
        if losses.places:
            self.log("train/loss", losses.total.detach(), prog_bar=True)
        for name, value in losses.values().items():
            self.log(f"train/{name}", value)
        return every_target_once(losses.total, torch.full((), losses.places, device=self.device))

    @property
    def layers_run(self) -> int | None:
        """Number of trunk layers that a training step runs; None: the whole model."""
        return self._auxiliary.layers_run

    def on_validation_epoch_start(self) -> None:
        self._sums = LossSums(self.device, self.weights)
        self._auxiliary.reset()

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        if self._auxiliary.only_aligns:
            self._auxiliary.validate(self.lm, batch, None)
            return
        loss = self._loss(batch)
        self._sums.add(loss)
        self._auxiliary.validate(self.lm, batch, loss)

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking:
            return

        def over_ranks(x: Tensor) -> Tensor:
            return self.trainer.strategy.reduce(x.to(self.device), reduce_op="sum")

        metrics = self._sums.metrics(over_ranks) | self._auxiliary.metrics(over_ranks)
        self.log("step", float(trainer_access.steps_done(self.trainer)))
        # Already reduced over ranks.
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})
        self.log_dict({f"heldout/{name}": value for name, value in self._measure_heldout().items()})
        self.log_dict({f"heldout/{name}": value for name, value in self._measure_listening().items()})

    def _measure_heldout(self) -> dict[str, float]:
        if self._heldout is None:
            data = trainer_access.datamodule_of(self.trainer)
            items = data.cloze_items() if isinstance(data, TokenData) else []
            self._heldout = HeldOut(items, self.lm.format)
        with self.trainer.precision_plugin.val_step_context():
            return self._heldout.measure(self.lm, self.device)

    def _measure_listening(self) -> dict[str, float]:
        if self._listening is None:
            data = trainer_access.datamodule_of(self.trainer)
            items, decode = [], str
            if isinstance(data, contracts.ListeningData) and (items := data.asr_items()):
                decode = data.text_tokenizer().decode
            self._listening = Listening(items, decode, word_errors)
        with self.trainer.precision_plugin.val_step_context():
            return self._listening.measure(self.lm, self.device)

    # --- replies --------------------------------------------------------------------------------------------

    def on_predict_start(self) -> None:
        if not saves_shards(self.trainer.strategy):
            merge_adapters(self.lm)  # a third less time per row

    def predict_step(self, batch: list[Prompt], batch_idx: int) -> list[dict[str, Any]]:
        """Replies to prompts, as text and codes. For spoken replies that also contain text, the order of both
        is included, as [modality, number of ids]."""
        tokenizer = trainer_access.data_of(self.trainer, contracts.PromptData).tokenizer
        # Seeded per batch: a reply depends on the seed and its prompt, not on how prompts are batched.
        replies = self.lm.generate(
            [prompt.rows for prompt in batch],
            max_new_tokens=self.max_new_tokens,
            greedy=self.greedy,
            generator=torch.Generator().manual_seed(torch.initial_seed() % 2**63),
        )
        return [
            {
                "id": prompt.id,
                "reply": prompt.reply,
                "text": tokenizer.decode(reply_text(rows, self.lm.format)),
                "codes": reply_codes(rows, self.lm.format),
                "ended": bool(rows) and rows[-1] in self.lm.stop_ids,
            }
            | self._order_of_parts(prompt, rows)
            for prompt, rows in zip(batch, replies, strict=True)
        ]

    def _order_of_parts(self, prompt: Prompt, rows: list[int]) -> dict[str, Any]:
        if prompt.form == "direct":
            return {}
        parts = split_reply(rows, self.lm.format)
        return {"reply_form": prompt.form, "parts": [[modality, len(ids)] for modality, ids in parts]}

    # --- checkpoints ----------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["split_config"] = self.lm.config.to_dict()
        made_by = trainer_access.fingerprints_of(self.trainer)
        checkpoint["made_by"] = {key: made_by.get(key) for key in ("text_tokenizer", "speech_tokenizer")}
        if forms := trainer_access.reply_forms(self.trainer):
            checkpoint["reply_form"] = {"reply_form": forms[0].name} | forms[0].options()
        if self.lora is not None:
            checkpoint["lora"] = self.lora.record()
        if self.ctc_head is not None:
            checkpoint["ctc"] = {"labels": self.ctc_head.labels.record()}
        state = checkpoint.get("state_dict")
        if self.save_frozen or not state:
            return
        kept = self.ever_trained() | {name for name in state if name.startswith(f"{HEAD}.")}
        left_out = stages.leave_out_frozen(state, kept)
        stages.leave_out_frozen(checkpoint.get(stages.CURRENT) or {}, kept)
        if self._frozen is None and self.trainer.is_global_zero:  # the only rank that writes
            # Once per run: they never change, and for 8B, hashing 16 GB takes longer than writing the rest.
            start = {"backbone": self.backbone, "init_from": self.init_from}
            self._frozen = start | stages.hash_record(left_out)
        checkpoint["frozen"] = self._frozen

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        made_by = checkpoint.get("made_by") or {}
        stages.check_tokenizers(made_by, trainer_access.fingerprints_of(self.trainer))
        stored = checkpoint.get("lora")
        if self.trainer.state.fn == "fit":
            check_resumed(stored, self.lora)
            check_same_ctc(checkpoint.get("ctc"), self.ctc_head)
        elif self.trainer.state.fn == "validate" and self.ctc is not None:
            head = stored_head(checkpoint)
            if head is None:
                raise UserError(
                    "the checkpoint has no head for CTC, model.ctc is on: validate it as it was trained, "
                    "with ctc: null"
                )
            self._auxiliary.restore_head(self.lm, self.trainer, head)
            self.ctc_head = self._auxiliary.head
        elif self.ctc_head is None and "state_dict" in checkpoint:  # not needed for replies
            kept = checkpoint["state_dict"].items()
            checkpoint["state_dict"] = {k: v for k, v in kept if not k.startswith(f"{HEAD}.")}
        if checkpoint.get("frozen") is not None:
            stages.add_frozen(checkpoint, self.lm.state_dict())
        if self.lora is None and "state_dict" in checkpoint:
            checkpoint["state_dict"] = dict(merged(checkpoint["state_dict"], stored))
