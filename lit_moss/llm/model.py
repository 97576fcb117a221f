"""The split language model (arXiv:2510.00499, figure 3): a shared trunk, then a text tail and a speech tail.

    rows ─ embed_tokens / audio_embed ─ shared_block ─┬─ text_block  ─ text_norm  ─ text_lm_head
                                                      └─ audio_block ─ audio_norm ─ audio_lm_head

Both tails start as copies of the backbone's last layers, both norms as copies of its last norm: before
training the text path is the backbone. Both tails run at every position; which head a row trains is read off
the next row. Names are the released checkpoint's, layers those of `layers.py`.
Shapes: B sequences, L rows, N target rows, D width, V ids of a head.
"""

import contextlib
import copy
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PretrainedConfig

from lit_moss.errors import UserError
from lit_moss.llm import attention
from lit_moss.llm.attention import Segments
from lit_moss.llm.check import check_backbone
from lit_moss.llm.config import SplitConfig, last_id
from lit_moss.llm.layers import own_layer, own_norm
from lit_moss.llm.layout import Layout
from lit_moss.llm.losses import Head, HeadLoss
from lit_moss.llm.released import (
    fill_buffers,
    load_backbone,
    open_tensors,
    read_config,
    refuse_other_dtypes,
    weight_files,
)
from lit_moss.llm.rows import RowFormat, default_eosp

Modality = Literal["text", "speech"]


@dataclass
class SplitOutput:
    """Logits of the next row.

    Args:
        text_logits: (B, L, V_text).
        speech_logits: (B, L, V_audio).
    """

    text_logits: Tensor
    speech_logits: Tensor


@dataclass
class SplitLoss:
    """What a batch says of both heads; every target counts once unless weights say otherwise.

    Args:
        total: (w_text x sum over text targets + w_speech x sum over speech targets) / number of targets; ()
            float32.
        text: Mean over the text targets in nats, 0 where there are none; ().
        speech: The same of the speech targets.
        text_count: Text targets, int64 ().
        speech_count: Speech targets, int64 ().
        text_correct: Text targets that were the first choice, int64 ().
        speech_correct: The same of the speech targets.
        nll_BL: -log p of every target row, at the row itself, 0 elsewhere; no gradient; (B, L).
    """

    total: Tensor
    text: Tensor
    speech: Tensor
    text_count: Tensor
    speech_count: Tensor
    text_correct: Tensor
    speech_correct: Tensor
    nll_BL: Tensor


class Block(nn.Module):
    """A run of the backbone's decoder layers."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.checkpointing = False

    def forward(self, h_BLD: Tensor, rope: Any, **kwargs: Any) -> Tensor:
        """(B, L, D) -> (B, L, D)."""
        for layer in self.layers:
            if self.checkpointing and self.training and torch.is_grad_enabled():
                again: Any = checkpoint(layer, h_BLD, position_embeddings=rope, use_reentrant=False, **kwargs)
                h_BLD = again
            else:
                h_BLD = layer(h_BLD, position_embeddings=rope, **kwargs)
        return h_BLD


class Rotary(nn.Module):
    """transformers' rotation, whose frequencies stay in float32 whatever the weights are cast to: in bfloat16
    the phase of row 14,335 would be off by up to 16 radians (Qwen3, theta 1e6)."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def _apply(self, fn: Any, recurse: bool = True) -> "Rotary":
        kept = dict(self.inner.named_buffers())
        super()._apply(fn, recurse)
        for name, moved in list(self.inner.named_buffers()):
            if moved.dtype != kept[name].dtype and not kept[name].is_meta:
                setattr(self.inner, name, kept[name].to(moved.device))
        return self

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, L, E) of positions (B, L), in x's dtype."""
        return self.inner(x, position_ids=position_ids)


class SplitModel(nn.Module):
    """Everything but the heads, under the released names."""

    def __init__(self, backbone: nn.Module, config: SplitConfig) -> None:
        super().__init__()
        inner: Any = backbone
        layers, split = [own_layer(layer) for layer in inner.layers], config.num_shared_layers
        width, tail, norm = config.backbone.hidden_size, layers[split:], own_norm(inner.norm)
        self.embed_tokens: nn.Embedding = inner.embed_tokens
        self.shared_block = Block(layers[:split])
        self.rotary_emb = Rotary(inner.rotary_emb)
        if config.joint:
            self.text_block, self.text_norm = Block([]), norm
            return
        self.audio_embed = nn.Embedding(config.format.audio_vocab_size, width)
        self.audio_block = Block(copy.deepcopy(tail))
        self.audio_norm = copy.deepcopy(norm)
        self.text_block = Block(tail)
        self.text_norm = norm


class SplitLM(nn.Module):
    """The split language model; make one by `from_backbone` or `from_pretrained`.

    Attributes:
        config: `SplitConfig`, the content of `config.json`.
        format: Ids of rows, `RowFormat`.
        text_weight: Weight of a text target in the loss.
        speech_weight: Weight of a speech target.
        attention: Kernel for packed rows, see `lit_moss.llm.attention`.
        stop_ids: Text ids that end a generation.
    """

    def __init__(self, backbone: nn.Module, config: SplitConfig) -> None:
        super().__init__()
        self.config, self.format = config, config.format
        config.backbone._attn_implementation = attention.NAME
        inner: Any = backbone
        for module in backbone.modules():
            if hasattr(module, "config"):
                cast(Any, module).config = config.backbone
        self.model = SplitModel(inner.model, config)
        width = config.backbone.hidden_size
        self.text_lm_head = Head(width, len(inner.lm_head.weight), bias=False, device="meta")
        self.text_lm_head.weight = nn.Parameter(inner.lm_head.weight.detach())
        if not config.joint:
            self.audio_lm_head = Head(width, config.format.audio_vocab_size, bias=False)
        self.text_weight = self.speech_weight = 1.0
        self.attention: attention.Kind = "auto"
        self.stop_ids = [x for x in (self.format.im_end_id, self.format.end_id) if x is not None]
        self._tokenizer_folder: Path | None = None

    # --- making one -----------------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        source: str | Path | PretrainedConfig,
        num_modality_layers: int = 4,
        audio_vocab_size: int = 16512,
        joint: bool = False,
        dtype: torch.dtype | None = None,
        row_format: RowFormat | None = None,
    ) -> "SplitLM":
        """Splits a text model.

        The ids of sosp and modality_pad come from its tokenizer (added at the end where it has none, the
        tables grow with their mean row). Without a tokenizer they come from its config; if that has none
        either, the vocabulary's last two ids serve, and the tables keep their size.

        Args:
            source: Folder, Hugging Face id or `embedded:smollm2-135m`; or a transformers config, then the
                weights are random.
            num_modality_layers: Layers of each tail, 0 to all.
            audio_vocab_size: Ids of the speech vocabulary: codes, eosp, unused ones; see
                `rows.audio_vocab_for`.
            joint: No split: codes join the text vocabulary, one softmax (NF-NoSplit); needs
                num_modality_layers 0.
            dtype: Of the weights; float32 if not given.
            row_format: All ids, where the caller has them from elsewhere.

        Raises:
            UserError: if the layers are not standard decoder layers, or sizes do not fit.
        """
        dtype = dtype or torch.float32
        with _on_cpu() as device:
            lm = cls._from_backbone(source, num_modality_layers, audio_vocab_size, joint, dtype, row_format)
        return lm.to(dtype) if device is None else lm.to(device, dtype)

    @classmethod
    def _from_backbone(
        cls,
        source: str | Path | PretrainedConfig,
        num_modality_layers: int,
        audio_vocab_size: int,
        joint: bool,
        dtype: torch.dtype,
        row_format: RowFormat | None,
    ) -> "SplitLM":
        folder = None
        if isinstance(source, PretrainedConfig):
            config = copy.deepcopy(source)
            check_backbone(config)
            form = row_format or _format_of_config(config, audio_vocab_size)
            backbone = AutoModelForCausalLM.from_config(config, dtype=dtype)
        else:
            folder = Path(source)
            if not folder.is_dir():
                from lit_moss.llm.backbone import resolve_backbone

                folder = resolve_backbone(str(source))
            config = read_config(folder)
            check_backbone(config)
            if row_format is not None:
                form = row_format
            elif (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file():
                from lit_moss.llm.backbone import load_text_tokenizer
                from lit_moss.llm.backbone import row_format as format_of

                form = format_of(load_text_tokenizer(folder), audio_vocab_size)
            else:
                form = _format_of_config(config, audio_vocab_size)
            backbone = load_backbone(folder, config, dtype)
        backbone.eval()
        inner: Any = backbone
        V = form.text_vocab_size
        joined = V + form.audio_vocab_size * joint
        embed, head = inner.model.embed_tokens, inner.lm_head
        # Cloned, for where the backbone ties them: table and heads go their own ways.
        head.weight = nn.Parameter(_resize(_resize(head.weight, V), joined).clone())
        embed.weight = nn.Parameter(_resize(_resize(embed.weight, V), joined).clone())
        embed.num_embeddings, embed.padding_idx = joined, None
        config.vocab_size, config.tie_word_embeddings = form.text_vocab_size, False
        lm = cls(backbone, SplitConfig(config, form, num_modality_layers, joint))
        lm._tokenizer_folder = folder
        lm._init_speech()
        return lm

    @torch.no_grad()
    def _init_speech(self) -> None:
        """Codes start at the spread of the words: far smaller or larger ones are drowned or drown."""
        std = self.config.backbone.initializer_range
        if self.model.embed_tokens.weight.is_meta:
            return
        words = self.model.embed_tokens.weight
        V = self.format.text_vocab_size
        spread = float(words[:V].float().std())
        if self.config.joint:
            words[V:].normal_(0.0, spread)
            self.text_lm_head.weight[V:].normal_(0.0, std)
            return
        self.model.audio_embed.weight.normal_(0.0, spread)
        self.audio_lm_head.weight.normal_(0.0, std)

    @classmethod
    def from_config(cls, config: SplitConfig, dtype: torch.dtype | None = None) -> "SplitLM":
        """Random weights; inside `torch.device("meta")` none at all."""
        backbone_config = copy.deepcopy(config.backbone)
        form = config.format
        backbone_config.vocab_size = form.text_vocab_size + form.audio_vocab_size * config.joint
        backbone_config.tie_word_embeddings = False
        check_backbone(backbone_config)
        backbone = AutoModelForCausalLM.from_config(backbone_config, dtype=dtype or torch.float32)
        backbone_config.vocab_size = form.text_vocab_size
        lm = cls(backbone, SplitConfig(backbone_config, form, config.num_modality_layers, config.joint))
        return lm.to(dtype or torch.float32)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> "SplitLM":
        """Reads a folder in the released layout: `config.json`, safetensors; nothing is unpickled.

        Raises:
            UserError: if files are missing, or names and shapes do not fit the config.
        """
        from lit_moss import assets

        path = assets.resolve(str(folder))
        config = SplitConfig.from_json(path / "config.json")
        with _on_cpu() as device:
            lm = cls._from_folder(path, config, dtype)
        return (lm if device is None else lm.to(device)).eval()

    @classmethod
    def _from_folder(cls, path: Path, config: SplitConfig, dtype: torch.dtype | None) -> "SplitLM":
        with torch.device("meta"):
            lm = cls.from_config(config)
        state = open_tensors(weight_files(path))
        own = lm.state_dict()
        refuse_other_dtypes(path, state, own)
        wrong = [f"{name} is missing" for name in own if name not in state]
        wrong += [f"{name} is not the model's" for name in state if name not in own]
        for name in own.keys() & state.keys():
            got, expected = tuple(state[name].get_shape()), tuple(own[name].shape)
            if got != expected:
                wrong.append(f"{name} is {got}, expected {expected}")
        if wrong:
            raise UserError(
                f"{path}: {len(wrong)} tensors do not fit its config.json, first: {wrong[0]}; give a folder "
                "that `save_pretrained` wrote whole"
            )
        lm.load_state_dict({k: v[...].to(dtype) if dtype else v[...] for k, v in state.items()}, assign=True)
        # Its frequencies are no weights and were made on the meta device.
        rotary: Any = lm.model.rotary_emb.inner
        lm.model.rotary_emb = Rotary(type(rotary)(config=lm.config.backbone))
        fill_buffers(lm, lm.config.backbone)
        lm._tokenizer_folder = path
        lm._end_ids_from(path)
        return lm

    def _end_ids_from(self, folder: Path) -> None:
        """A released config names neither <|im_start|> nor <|im_end|>; its tokenizer does."""
        if not (folder / "tokenizer.json").is_file() and not (folder / "tokenizer_config.json").is_file():
            return
        from lit_moss.llm.backbone import load_text_tokenizer, row_format

        theirs = row_format(
            load_text_tokenizer(folder), self.format.audio_vocab_size, eosp=self.format.eosp_token_id
        )
        found = {
            name: getattr(theirs, name)
            for name in ("im_start_id", "im_end_id", "end_id")
            if getattr(self.format, name) is None
        }
        self.format = replace(self.format, **found)
        self.config = replace(self.config, format=self.format)
        self.stop_ids = [x for x in (self.format.im_end_id, self.format.end_id) if x is not None]

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None, max_shard_size: str = "5GB") -> None:
        """Writes `config.json`, sharded safetensors and, where known, the tokenizer."""
        from huggingface_hub import save_torch_state_dict

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(
            json.dumps(self.config.to_dict(), indent=2, sort_keys=True) + "\n"
        )
        state = {k: v.detach().cpu().contiguous() for k, v in self.state_dict().items()}
        save_torch_state_dict(state, folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        elif self._tokenizer_folder is not None and self._tokenizer_folder != folder:
            for file in (
                "tokenizer.json",
                "tokenizer_config.json",
                "special_tokens_map.json",
                "chat_template.jinja",
            ):
                if (self._tokenizer_folder / file).is_file():
                    shutil.copy(self._tokenizer_folder / file, folder / file)

    # --- options --------------------------------------------------------------------------------------------

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recompute each layer in the backward instead of keeping its activations."""
        for block in self.blocks():
            block.checkpointing = on

    def compile_layers(self) -> None:
        """torch.compile of every layer, names unchanged.

        Attention over documents stays outside the graphs.
        """
        for block in self.blocks():
            for layer in block.layers:
                layer.compile(dynamic=True)

    def blocks(self) -> Iterator[Block]:
        """Trunk, text tail, speech tail."""
        yield self.model.shared_block
        yield self.model.text_block
        if not self.config.joint:
            yield self.model.audio_block

    # --- forward --------------------------------------------------------------------------------------------

    def embed(self, rows_BL: Tensor) -> Tensor:
        """Rows (B, L) -> (B, L, D): a selection between two tables, not a sum."""
        if self.config.joint:
            return self.model.embed_tokens(rows_BL)
        V = self.format.text_vocab_size
        speech_BL = rows_BL >= V
        text_BLD = self.model.embed_tokens(rows_BL.masked_fill(speech_BL, 0))
        audio_BLD = self.model.audio_embed((rows_BL - V).clamp_min(0))
        return torch.where(speech_BL[..., None], audio_BLD, text_BLD)

    def forward(
        self,
        rows: Tensor,
        document_ids: Tensor | None = None,
        loss_mask: Tensor | None = None,
        with_loss: bool = False,
    ) -> Any:
        """Logits of the next row at every row, or the loss.

        Args:
            rows: int64 (B, L).
            document_ids: Integers (B, L): a document ends where the number changes, nothing is seen across;
                negative: filler, never a target. None: one document a sequence.
            loss_mask: bool (B, L), True where this row counts as a target; None: all do.
            with_loss: Return a `SplitLoss` rather than a `SplitOutput`. Here and not in a method of its own,
                because sharded strategies gather weights when a module is called.
        """
        if document_ids is not None:
            document_ids = document_ids.to(rows.device)
        if loss_mask is not None:
            loss_mask = loss_mask.to(rows.device)
        layout = Layout.of(rows, self.format.text_vocab_size, document_ids, loss_mask, with_loss)
        self.check_context(layout.longest)
        segments = None
        if document_ids is not None:
            dtype = self._compute_dtype(rows.device)
            segments = Segments.of(document_ids, self.attention, dtype, layout.borders)
        h_BLD = self.embed(rows)
        positions = (
            torch.arange(rows.shape[1], device=rows.device)[None]
            if segments is None
            else segments.positions_BL
        )
        rope = self.model.rotary_emb(h_BLD, position_ids=positions)
        kwargs = {"segments": segments, "rope": rope}
        h_BLD = self.model.shared_block(h_BLD, **kwargs)
        if with_loss:
            return self._loss(h_BLD, rows, layout, kwargs)
        text = self.text_lm_head(self.model.text_norm(self.model.text_block(h_BLD, **kwargs)))
        if self.config.joint:
            V = self.format.text_vocab_size
            return SplitOutput(text[..., :V], text[..., V:])
        speech = self.audio_lm_head(self.model.audio_norm(self.model.audio_block(h_BLD, **kwargs)))
        return SplitOutput(text, speech)

    def loss(
        self, rows: Tensor, document_ids: Tensor | None = None, loss_mask: Tensor | None = None
    ) -> SplitLoss:
        """Cross-entropy of the next row, each head over its own targets alone; arguments as of `forward`."""
        return self(rows, document_ids, loss_mask, with_loss=True)

    def _compute_dtype(self, device: torch.device) -> torch.dtype:
        if torch.is_autocast_enabled(device.type):
            return torch.get_autocast_dtype(device.type)
        return self.text_lm_head.weight.dtype

    def check_context(self, rows: int) -> None:
        """Refuses more rows than the backbone has positions for.

        Raises:
            UserError: if a document or context is longer.
        """
        most = self.config.max_context
        if most is not None and rows > most:
            raise UserError(
                f"a document or context of {rows} rows, but this {self.config.backbone.model_type} backbone "
                f"has positions for {most} (max_position_embeddings): shorten it, or give another backbone"
            )

    def _loss(self, h_BLD: Tensor, rows: Tensor, layout: Layout, kwargs: Any) -> SplitLoss:
        V = self.format.text_vocab_size
        found: dict[str, tuple[HeadLoss, Tensor]] = {}
        nll_BL = torch.zeros(rows.shape, dtype=torch.float32, device=rows.device)
        tail_BLD = None
        for modality, at in (("text", layout.text_N), ("speech", layout.speech_N)):
            # An idle tail still runs where ranks must do the same: in training every parameter needs a
            # gradient on each of them (DDP), in validation each gathers what it calls (FSDP, ZeRO-3).
            if not self.training and not len(at) and not _sharded():
                found[modality] = _nothing(h_BLD), at
                continue
            if tail_BLD is None or not self.config.joint:
                tail_BLD = self._tail(modality)(h_BLD, **kwargs)
            # Row i predicts row i + 1; no target is the first row of a sequence, so `at - 1` stays inside.
            hidden_ND = tail_BLD.flatten(0, 1)[at - 1]
            ids_N = rows.flatten()[at]
            loss = self._head(
                modality, hidden_ND, ids_N if modality == "text" or self.config.joint else ids_N - V
            )
            if len(loss.nll_N):
                nll_BL.view(-1)[at] = loss.nll_N
            found[modality] = loss, at
        (text, at_text), (speech, at_speech) = found["text"], found["speech"]
        text_count, speech_count = (at_text.new_full((), len(at)) for at in (at_text, at_speech))
        weighed = self.text_weight * text.nll + self.speech_weight * speech.nll
        return SplitLoss(
            total=weighed / max(1, len(at_text) + len(at_speech)),
            text=text.nll.detach() / max(1, len(at_text)),
            speech=speech.nll.detach() / max(1, len(at_speech)),
            text_count=text_count,
            speech_count=speech_count,
            text_correct=text.correct,
            speech_correct=speech.correct,
            nll_BL=nll_BL,
        )

    def _tail(self, modality: str) -> Block:
        return self.model.text_block if modality == "text" or self.config.joint else self.model.audio_block

    def _head(self, modality: str, hidden_ND: Tensor, ids_N: Tensor) -> HeadLoss:
        if modality == "text" or self.config.joint:
            return self.text_lm_head(self.model.text_norm(hidden_ND), ids_N)
        return self.audio_lm_head(self.model.audio_norm(hidden_ND), ids_N)

    def generate(self, rows: Any, modality: Modality | None = None, **options: Any) -> Any:
        """New rows after a prompt, see `lit_moss.llm.generate.generate`."""
        from lit_moss.llm.generate import generate

        return generate(self, rows, modality, **options)


@contextlib.contextmanager
def _on_cpu() -> Iterator[torch.device | None]:
    """Weights are read and drawn on the CPU whatever the device of the context, such as Lightning's: the same
    numbers everywhere. Gives the device to move them to, None where there is none."""
    device = torch.get_default_device()
    if device.type in ("cpu", "meta"):
        yield None
        return
    with torch.device("cpu"):
        yield device


def _sharded() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _nothing(h: Tensor) -> HeadLoss:
    zero = torch.zeros((), dtype=torch.float32, device=h.device)
    return HeadLoss(zero, zero.new_empty(0), torch.zeros((), dtype=torch.long, device=h.device))


def _resize(table_VD: Tensor, size: int) -> Tensor:
    """The first rows, and the mean row for those that are missing."""
    table_VD = table_VD.detach()
    missing = size - len(table_VD)
    if missing <= 0:
        return table_VD[:size]
    return torch.cat([table_VD, table_VD.mean(0, keepdim=True).expand(missing, -1)])


def _format_of_config(config: PretrainedConfig, audio_vocab_size: int) -> RowFormat:
    vocab = config.vocab_size
    eos = getattr(config, "eos_token_id", None)
    eosp = getattr(config, "eosp_token_id", None)
    return RowFormat(
        text_vocab_size=vocab,
        audio_vocab_size=audio_vocab_size,
        sosp_token_id=getattr(config, "sosp_token_id", vocab - 2),
        eosp_token_id=default_eosp(audio_vocab_size) if eosp is None else eosp,
        modality_pad_token_id=getattr(config, "modality_pad_token_id", vocab - 1),
        audio_pad_token_id=512 if audio_vocab_size > 512 else 0,
        end_id=last_id(eos),
    )
