"""The split language model (arXiv:2510.00499, figure 3): a shared trunk, then a text tail and a speech tail.

    rows ─ embed_tokens / audio_embed ─ shared_block ─┬─ text_block  ─ text_norm  ─ text_lm_head  ─ p_text
                                                      └─ audio_block ─ audio_norm ─ audio_lm_head ─ p_speech

    loss = (w_text   Σ -log p_text(row i+1 | rows 1…i)     over i where row i+1 is a text target
          + w_speech Σ -log p_speech(row i+1 | rows 1…i)   over i where row i+1 is a speech target)
         / number of targets

Both tails start as copies of the backbone's last layers, and both norms as copies of its last norm: before
training, the text path is the backbone. Both tails run at every position; the next row decides which head is
trained. Parameter names are those of the released checkpoint; the layers are in `layers.py`, and folders are
read and written by `released.py`.
Shapes: B sequences, L rows, N target rows, D width, V ids of a head.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from lit_moss.devices import autocast_dtype
from lit_moss.errors import UserError
from lit_moss.llm import attention, generate, lora, released
from lit_moss.llm.attention import Segments
from lit_moss.llm.branches import Branch, LayerStack, Modality, Rotary
from lit_moss.llm.check import check_backbone
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.layers import own_layer, own_norm
from lit_moss.llm.layout import Layout
from lit_moss.llm.losses import Head, SplitLoss, SplitOutput
from lit_moss.llm.rows import RowFormat
from lit_moss.llm.split_loss import split_loss


class SplitModel(nn.Module):
    """All modules except the heads, under the released names."""

    def __init__(self, backbone: nn.Module, config: SplitConfig) -> None:
        super().__init__()
        inner: Any = backbone
        layers, split = [own_layer(layer) for layer in inner.layers], config.num_shared_layers
        width, tail, norm = config.backbone.hidden_size, layers[split:], own_norm(inner.norm)
        self.embed_tokens: nn.Embedding = inner.embed_tokens
        self.shared_block = LayerStack(layers[:split])
        self.rotary_emb = Rotary(inner.rotary_emb)
        if not config.joint:
            self.audio_embed = nn.Embedding(config.format.audio_vocab_size, width)
            self.audio_block = LayerStack(copy.deepcopy(tail))
            self.audio_norm = copy.deepcopy(norm)
        self.text_block = LayerStack(tail)
        self.text_norm = norm


class SplitLM(nn.Module):
    """The split language model; create one with `from_backbone` or `from_pretrained`.

    Attributes:
        config: `SplitConfig`, the content of `config.json`.
        format: Row format (`RowFormat`): ids of text and speech.
        text_weight: Weight of a text target in the loss.
        speech_weight: Weight of a speech target in the loss.
        attention: Kernel for packed rows, see `lit_moss.llm.attention`.
        keep_hidden: If n, `loss` also returns the hidden states after the first n trunk layers.
        keep_text: If true, `loss` also returns the outputs of the text tail.
        stop_ids: Text ids that end generation.
        tokenizer_folder: Folder whose tokenizer files `save_pretrained` copies, or None.
    """

    def __init__(self, backbone: nn.Module, config: SplitConfig) -> None:
        super().__init__()
        self.config, self.format = config, config.format
        config.backbone._attn_implementation = attention.NAME
        inner: Any = backbone
        for module in backbone.modules():
            if "config" in vars(module):
                vars(module)["config"] = config.backbone
        self.model = SplitModel(inner.model, config)
        width = config.backbone.hidden_size
        self.text_lm_head = Head(width, len(inner.lm_head.weight), bias=False, device="meta")
        self.text_lm_head.weight = nn.Parameter(inner.lm_head.weight.detach())
        if not config.joint:
            self.audio_lm_head = Head(width, config.format.audio_vocab_size, bias=False)
        self.text_weight = self.speech_weight = 1.0
        self.attention: attention.Kind = "auto"
        self.keep_hidden: int | None = None
        self.keep_text = False
        self.stop_ids = [x for x in (self.format.im_end_id, self.format.end_id) if x is not None]
        self.tokenizer_folder: Path | None = None

    # --- creating and saving --------------------------------------------------------------------------------

    @classmethod
    def from_backbone(
        cls,
        source: str | Path | PretrainedConfig,
        num_modality_layers: int = 4,
        audio_vocab_size: int = 16512,
        joint: bool = False,
        dtype: torch.dtype | None = None,
        row_format: RowFormat | None = None,
        empty: bool = False,
    ) -> "SplitLM":
        """Splits a text model.

        The ids of sosp and modality_pad come from its tokenizer. If the tokenizer lacks them, they are
        appended to it, and the new rows of the tables are the mean of the others. Without a tokenizer the ids
        come from the config. If the config has none either, the vocabulary's last two ids are used, and the
        tables keep their size.

        Args:
            source: Folder, Hugging Face id or `embedded:smollm2-135m`; or a transformers config, for random
                weights.
            num_modality_layers: Number of layers of each tail, from 0 to all.
            audio_vocab_size: Size of the speech vocabulary: codes, eosp and unused ids; see
                `rows.audio_vocab_for`.
            joint: No split (NF-NoSplit): codes join the text vocabulary, with one softmax. Requires
                `num_modality_layers` 0.
            dtype: Data type of the weights. Default: float32.
            row_format: Row format. Default: derived from the tokenizer or config as described above.
            empty: Create the model on the meta device without reading weights; `assign_weights` fills it.

        Raises:
            UserError: if the layers are not standard decoder layers, or the sizes are inconsistent.
        """
        dtype = dtype or torch.float32
        with released.on_cpu() as device:
            backbone = released.open_backbone(
                source, audio_vocab_size, dtype, row_format, lambda config: check_backbone(config, cls), empty
            )
            if empty:
                with torch.device("meta"):
                    return cls._split(backbone, num_modality_layers, joint)
            lm = cls._split(backbone, num_modality_layers, joint)
        return lm.to(dtype) if device is None else lm.to(device, dtype)

    @classmethod
    def _split(cls, backbone: released.Backbone, num_modality_layers: int, joint: bool) -> "SplitLM":
        inner: Any = backbone.model.eval()
        config, row_format = backbone.config, backbone.format
        V = row_format.text_vocab_size
        joined = V + row_format.audio_vocab_size * joint
        embed, head = inner.model.embed_tokens, inner.lm_head
        # Cloned, because a backbone may tie them: here embedding table and head are trained separately.
        head.weight = nn.Parameter(resize_table(resize_table(head.weight, V), joined).clone())
        embed.weight = nn.Parameter(resize_table(resize_table(embed.weight, V), joined).clone())
        embed.num_embeddings, embed.padding_idx = joined, None
        config.vocab_size, config.tie_word_embeddings = V, False
        lm = cls(inner, SplitConfig(config, row_format, num_modality_layers, joint))
        lm.tokenizer_folder = backbone.folder
        lm._init_speech()
        return lm

    @torch.no_grad()
    def _init_speech(self) -> None:
        """Initialises code embeddings with the standard deviation of the text embeddings."""
        words_VD, V = self.model.embed_tokens.weight, self.format.text_vocab_size
        if words_VD.is_meta:
            return
        branch = self.branch_of("speech")
        codes_VD = words_VD[V:] if self.config.joint else self.model.audio_embed.weight
        codes_VD.normal_(0.0, float(words_VD[:V].float().std()))
        branch.head.weight[V - branch.first_row :].normal_(0.0, self.config.backbone.initializer_range)

    @classmethod
    def from_config(cls, config: SplitConfig, dtype: torch.dtype | None = None) -> "SplitLM":
        """A model with random weights; inside `torch.device("meta")` they take no memory."""
        backbone_config = copy.deepcopy(config.backbone)
        row_format = config.format
        backbone_config.vocab_size = row_format.text_vocab_size + row_format.audio_vocab_size * config.joint
        backbone_config.tie_word_embeddings = False
        check_backbone(backbone_config, cls)
        backbone = AutoModelForCausalLM.from_config(backbone_config, dtype=dtype or torch.float32)
        backbone_config.vocab_size = row_format.text_vocab_size
        lm = cls(backbone, SplitConfig(backbone_config, row_format, config.num_modality_layers, config.joint))
        return lm.to(dtype or torch.float32)

    @classmethod
    def from_pretrained(cls, folder: str | Path, dtype: torch.dtype | None = None) -> "SplitLM":
        """Loads a folder in the released layout (`config.json`, safetensors); nothing is unpickled.

        Raises:
            UserError: if files are missing, or names and shapes do not fit the config.
        """
        path, config = released.read_split_config(folder)
        with released.on_cpu() as device:
            with torch.device("meta"):
                lm = cls.from_config(config)
            lm.assign_weights(released.read_weights(lm, path, dtype))
            lm.tokenizer_folder = path
        return (lm if device is None else lm.to(device)).eval()

    def assign_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Uses the given tensors as weights, without copying them and in their own data types.

        Args:
            weights: Name -> tensor. All weights are required if the model is on the meta device.
        """
        is_empty = self.text_lm_head.weight.is_meta
        self.load_state_dict(weights, strict=is_empty, assign=True)
        if is_empty:  # rotary frequencies are not in the state dict; these are on the meta device
            rotary: Any = self.rotary.inner
            self.model.rotary_emb = Rotary(type(rotary)(config=self.config.backbone))
            released.fill_buffers(self, self.config.backbone)

    def save_pretrained(self, folder: str | Path, tokenizer: Any = None, max_shard_size: str = "5GB") -> None:
        """Writes `config.json`, sharded safetensors and, if there is one, the tokenizer."""
        source = self.tokenizer_folder if tokenizer is None else tokenizer
        released.save_split(Path(folder), self.config, lora.plain_state(self), source, max_shard_size)

    # --- parts and options ----------------------------------------------------------------------------------

    @property
    def trunk(self) -> LayerStack:
        """The layers that text and speech share."""
        return self.model.shared_block

    @property
    def rotary(self) -> Rotary:
        """The rotary embedding that all layers use."""
        return self.model.rotary_emb

    @property
    def branches(self) -> tuple[Branch, ...]:
        """The text branch and the speech branch; a single branch if the model is not split."""
        model, V = self.model, self.format.text_vocab_size
        text = model.text_block, model.text_norm, self.text_lm_head
        if self.config.joint:
            return (Branch(("text", "speech"), *text, first_row=0),)
        speech = model.audio_block, model.audio_norm, self.audio_lm_head
        return Branch(("text",), *text, first_row=0), Branch(("speech",), *speech, first_row=V)

    def branch_of(self, modality: Modality) -> Branch:
        """The branch that predicts rows of a modality."""
        return next(branch for branch in self.branches if modality in branch.predicts)

    def blocks(self) -> Iterator[LayerStack]:
        """Yields the trunk and the block of each branch."""
        yield self.trunk
        for branch in self.branches:
            yield branch.block

    def checkpoint_activations(self, on: bool = True) -> None:
        """Recomputes each layer in the backward instead of storing its activations."""
        for block in self.blocks():
            block.checkpointing = on

    def compile_layers(self) -> None:
        """Applies torch.compile to every layer; parameter names do not change.

        Attention over packed documents stays outside the graphs.
        """
        for block in self.blocks():
            for layer in block.layers:
                layer.compile(dynamic=True)

    def check_context(self, rows: int) -> None:
        """Raises an error for more rows than the backbone has positions.

        Raises:
            UserError: if a document or context has more rows.
        """
        most = self.config.max_context
        if most is not None and rows > most:
            raise UserError(
                f"a document or context of {rows} rows, but this {self.config.backbone.model_type} backbone "
                f"has positions for {most} (max_position_embeddings): shorten it, or give another backbone"
            )

    # --- forward --------------------------------------------------------------------------------------------

    def embed(self, rows_BL: Tensor) -> Tensor:
        """Rows (B, L) -> embeddings (B, L, D), each looked up in one of the two tables (no sum)."""
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
        attention_ids: Tensor | None = None,
    ) -> Any:
        """Logits of the next row at every row, or the loss.

        Args:
            rows: int64 (B, L).
            document_ids: Document numbers, integers (B, L): a document ends where the number changes, and
                attention does not cross that border. Negative: filler, never a target. None: one document per
                sequence.
            loss_mask: bool (B, L), True where a row counts as a target. None: all rows do.
            with_loss: Return a `SplitLoss` instead of a `SplitOutput`. This is an argument of `forward`, not
                a method, because sharded strategies gather weights when a module is called.
            attention_ids: Documents as attention and positions see them, integers (B, L). None:
                `document_ids`.
        """
        if document_ids is not None:
            document_ids = document_ids.to(rows.device)
        if attention_ids is not None:
            attention_ids = attention_ids.to(rows.device)
        if loss_mask is not None:
            loss_mask = loss_mask.to(rows.device)
        layout, h_BLD, kwargs = self._enter(rows, document_ids, loss_mask, with_loss, attention_ids)
        if not with_loss or self.keep_hidden is None:
            h_BLD = self.trunk(h_BLD, **kwargs)
            return split_loss(self, h_BLD, rows, layout, kwargs) if with_loss else self._logits(h_BLD, kwargs)
        h_BLD, hidden_BLD = self.trunk(h_BLD, keep=self.keep_hidden, **kwargs)
        return replace(split_loss(self, h_BLD, rows, layout, kwargs), hidden_BLD=hidden_BLD)

    def hidden(self, rows: Tensor, document_ids: Tensor, layers: int) -> Tensor:
        """Hidden states (B, L, D) after the first `layers` trunk layers; later layers do not run.

        Not for sharded models, whose weights are gathered when the whole model is called.
        """
        _, h_BLD, kwargs = self._enter(rows, document_ids.to(rows.device), None, False)
        return self.trunk(h_BLD, stop=layers, **kwargs)

    def _enter(
        self,
        rows: Tensor,
        document_ids: Tensor | None,
        loss_mask: Tensor | None,
        with_loss: bool,
        attention_ids: Tensor | None = None,
    ) -> tuple[Layout, Tensor, dict[str, Any]]:
        """Layout, embeddings (B, L, D), and the other arguments of the layers."""
        layout = Layout.of(rows, self.format.text_vocab_size, document_ids, loss_mask, with_loss)
        self.check_context(layout.longest if attention_ids is None else rows.shape[1])
        segments, dtype = None, autocast_dtype(rows.device) or self.text_lm_head.weight.dtype
        if attention_ids is not None:
            segments = Segments.of(attention_ids, self.attention, dtype)
        elif document_ids is not None:
            segments = Segments.of(document_ids, self.attention, dtype, layout.borders)
        h_BLD = self.embed(rows)
        positions = (
            torch.arange(rows.shape[1], device=rows.device)[None]
            if segments is None
            else segments.positions_BL
        )
        return layout, h_BLD, {"segments": segments, "rope": self.rotary(h_BLD, position_ids=positions)}

    def loss(
        self,
        rows: Tensor,
        document_ids: Tensor | None = None,
        loss_mask: Tensor | None = None,
        attention_ids: Tensor | None = None,
    ) -> SplitLoss:
        """Cross-entropy of the next row, each head on its own targets; arguments as in `forward`."""
        return self(rows, document_ids, loss_mask, with_loss=True, attention_ids=attention_ids)

    def generate(self, rows: Any, modality: Modality | None = None, **options: Any) -> Any:
        """New rows after a prompt; see `lit_moss.llm.generate.generate`."""
        return generate.generate(self, rows, modality, **options)

    def _logits(self, h_BLD: Tensor, kwargs: dict[str, Any]) -> SplitOutput:
        logits = {branch.name: branch.logits(h_BLD, **kwargs) for branch in self.branches}
        if len(logits) == 2:
            return SplitOutput(logits["text"], logits["speech"])
        V = self.format.text_vocab_size
        return SplitOutput(logits["text"][..., :V], logits["text"][..., V:])


def resize_table(table_VD: Tensor, size: int) -> Tensor:
    """Truncates a table (V, D) to `size` rows, or extends it with copies of its mean row."""
    table_VD = table_VD.detach()
    missing = size - len(table_VD)
    if missing <= 0:
        return table_VD[:size]
    return torch.cat([table_VD, table_VD.mean(0, keepdim=True).expand(missing, -1)])
