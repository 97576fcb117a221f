"""The split model's configuration: the released `config.json`, plus the model type of the backbone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig

from lit_moss.errors import UserError, first_line
from lit_moss.llm.folders import read_json
from lit_moss.llm.rows import RowFormat

MODEL_TYPE = "moss_speech"
# Released configurations do not name their backbone; it is Qwen3.
_DEFAULT_BACKBONE = "qwen3"
_OPTIONAL_IDS = {"im_start_id": "im_start_token_id", "im_end_id": "im_end_token_id", "end_id": "end_token_id"}


@dataclass(frozen=True)
class SplitConfig:
    """Sizes and ids of a split model.

    Args:
        backbone: transformers' config of the decoder layers; its `vocab_size` is the text vocabulary.
        format: Row format: ids of text and speech.
        num_modality_layers: Number of layers of each tail; the remaining layers form the trunk.
        joint: No split (NF-NoSplit): audio ids join the text vocabulary, with one softmax over both.
    """

    backbone: PretrainedConfig
    format: RowFormat
    num_modality_layers: int = 4
    joint: bool = False

    def __post_init__(self) -> None:
        layers = self.backbone.num_hidden_layers
        if not 0 <= self.num_modality_layers <= layers:
            raise UserError(
                f"num_modality_layers is {self.num_modality_layers}, expected 0 to the backbone's {layers} "
                "layers"
            )
        if self.joint and self.num_modality_layers:
            raise UserError(
                f"joint (no split) with num_modality_layers {self.num_modality_layers}: expected 0, a model "
                "without a split has no tails"
            )

    @property
    def num_shared_layers(self) -> int:
        """Number of trunk layers."""
        return self.backbone.num_hidden_layers - self.num_modality_layers

    @property
    def max_context(self) -> int | None:
        """Maximum document length in rows by the backbone's (scaled) positions; None: unlimited."""
        most = getattr(self.backbone, "max_position_embeddings", None)
        rope = getattr(self.backbone, "rope_parameters", None) or {}
        factor, trained = rope.get("factor"), rope.get("original_max_position_embeddings")
        if most is None or factor is None:
            return most
        return max(most, int(factor * (trained or most)))

    def __getattr__(self, name: str) -> Any:
        # Names in the released config: vocab_size, audio_vocab_size, sosp_token_id, …
        if name.startswith("_") or name in ("backbone", "format"):
            raise AttributeError(name)
        return getattr(self.format if hasattr(self.format, name) else self.backbone, name)

    def to_dict(self) -> dict[str, Any]:
        """Content of `config.json`."""
        fields = self.backbone.to_dict()
        fields.pop("_name_or_path", None)  # the folder that the backbone was read from: a local path
        f = self.format
        fields |= {
            "model_type": MODEL_TYPE,
            "architectures": ["MossSpeechForCausalLM"],
            "backbone_model_type": self.backbone.model_type,
            "vocab_size": f.text_vocab_size,
            "num_shared_layers": self.num_shared_layers,
            "num_modality_layers": self.num_modality_layers,
            "audio_vocab_size": f.audio_vocab_size,
            "sosp_token_id": f.sosp_token_id,
            "eosp_token_id": f.eosp_token_id,
            "modality_pad_token_id": f.modality_pad_token_id,
            "audio_pad_token_id": f.audio_pad_token_id,
            "channels": 2,
            "tie_word_embeddings": False,
        }
        ids = f.to_dict()
        fields |= {theirs: ids[ours] for ours, theirs in _OPTIONAL_IDS.items()}
        return fields | ({"joint": True} if self.joint else {})

    @classmethod
    def from_dict(cls, fields: dict[str, Any], source: str = "config.json") -> "SplitConfig":
        """The inverse of `to_dict`; also accepts the config of a released model."""
        fields = dict(fields)
        if fields.pop("model_type", None) != MODEL_TYPE:
            raise UserError(f"{source} is not a split model's: expected model_type {MODEL_TYPE!r}")
        kind = fields.pop("backbone_model_type", _DEFAULT_BACKBONE)
        try:
            ids = {k: fields.pop(k) for k in ("sosp_token_id", "eosp_token_id", "modality_pad_token_id",
                                              "audio_vocab_size")}  # fmt: skip
            layers, shared = fields.pop("num_modality_layers"), fields.pop("num_shared_layers", None)
            vocab = fields["vocab_size"]
        except KeyError as error:
            raise UserError(f"{source} has no {error.args[0]}") from error
        optional = {ours: fields.pop(theirs, None) for ours, theirs in _OPTIONAL_IDS.items()}
        joint, pad = fields.pop("joint", False), fields.pop("audio_pad_token_id", 512)
        _check_whole(source, {"num_modality_layers": layers, "vocab_size": vocab, **ids})
        others = {"num_shared_layers": shared, "audio_pad_token_id": pad}
        others |= {theirs: optional[ours] for ours, theirs in _OPTIONAL_IDS.items()}
        _check_whole(source, {name: value for name, value in others.items() if value is not None})
        for name, size in (("sosp_token_id", vocab), ("modality_pad_token_id", vocab),
                           ("eosp_token_id", ids["audio_vocab_size"])):  # fmt: skip
            if ids[name] >= size:
                raise UserError(f"{source}: {name} is {ids[name]}, expected an id below {size}")
        for key in ("architectures", "channels", "auto_map", "transformers_version", "quantization_config"):
            fields.pop(key, None)
        try:
            backbone = AutoConfig.for_model(kind, **fields)
        except Exception as error:
            raise UserError(
                f"{source} is not accepted by transformers as a {kind!r} ({first_line(error)})"
            ) from error
        if shared is not None and shared + layers != backbone.num_hidden_layers:
            raise UserError(f"{source}: {shared} shared and {layers} modality layers are not "
                            f"{backbone.num_hidden_layers}")  # fmt: skip
        if optional["end_id"] is None:
            optional["end_id"] = last_id(backbone.eos_token_id)
        row_format = RowFormat(text_vocab_size=vocab, audio_pad_token_id=pad, **ids, **optional)
        return cls(backbone, row_format, layers, joint)

    @classmethod
    def from_json(cls, path: Path) -> "SplitConfig":
        """Reads `config.json`.

        Raises:
            UserError: if the file is missing, not JSON, or not a split model's config.
        """
        return cls.from_dict(read_json(path), str(path))


def last_id(eos: int | list[int] | None) -> int | None:
    """The id that ends a document, given one or several ids that end a text."""
    if isinstance(eos, list):
        return eos[-1] if eos else None
    return eos


def _check_whole(source: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if type(value) is not int or value < 0:
            raise UserError(f"{source}: {name} is {value!r}, expected a whole number, 0 or more")
