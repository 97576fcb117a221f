"""The facts of a model card: from a folder's files, and from the training of its weights."""

from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

from lit_moss import assets
from lit_moss.errors import UserError
from lit_moss.hub.model_folder import CODEC, ModelRecord
from lit_moss.llm.config import MODEL_TYPE
from lit_moss.llm.folders import open_tensors, read_json, weight_files
from lit_moss.release.public_names import is_hub_id, part_name
from lit_moss.release.training_facts import Training, training_of
from lit_moss.runs.folder import RunFolder

PARTS = ("backbone", "speech_tokenizer", "speaker")  # settings that name pretrained parts
# Embedded part -> the repository that it is a copy of, key of its licence in `assets.EMBEDDED`.
_EMBEDDED = {
    "embedded:smollm2-135m": ("HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m-gguf"),
    "embedded:whisper-tiny": ("openai/whisper-tiny", "whisper-tiny"),
    "embedded:whisper-tiny-kmeans": ("openai/whisper-tiny", "whisper-tiny"),
    "embedded:whisper-base": ("openai/whisper-base", "whisper-base"),
    "embedded:resemblyzer": ("", "resemblyzer"),
}
_GROUPS = {  # prefix of a tensor's name -> row of the table of sizes
    "model.shared_block": "shared trunk",
    "model.text_block": "text tail",
    "model.text_norm": "text tail",
    "model.audio_block": "speech tail",
    "model.audio_norm": "speech tail",
    "model.embed_tokens": "text embeddings",
    "model.audio_embed": "speech embeddings",
    "text_lm_head": "text head",
    "audio_lm_head": "speech head",
}


@dataclass(frozen=True)
class Facts:
    """The facts from which the sections are written.

    Args:
        name: Name of the folder.
        kind: `language model`, `codec`, `speech tokenizer` or `vocoder`.
        config: Content of `config.json`.
        record: Content of `lit_moss.json`.
        training: Training runs of the weights.
        sizes: Part of the model -> number of parameters; empty if there are no weights.
        dtypes: Data types of the weights.
        has_codec: Whether the folder contains a codec.
    """

    name: str
    kind: str
    config: dict[str, Any]
    record: ModelRecord
    training: Training
    sizes: dict[str, int]
    dtypes: tuple[str, ...]
    has_codec: bool

    @property
    def parameters(self) -> int:
        """Total number of parameters; 0 if there are no weights."""
        return sum(self.sizes.values())

    @cached_property
    def parts(self) -> dict[str, str]:
        """Pretrained parts: kind of part -> its name."""
        parts = {"backbone": part_name(self.record.backbone)} if self.record.backbone else {}
        if self.record.speech_tokenizer_name:
            parts["speech tokenizer"] = part_name(self.record.speech_tokenizer_name)
        for stage in self.training.stages:
            for owner in ("model", "data"):
                settings = stage.settings(owner)
                for key in PARTS:
                    if isinstance(name := settings.get(key), str):
                        parts[key.replace("_", " ")] = part_name(name, stage.run_root)
                        if start := training_of(stage.run_of(name)).start:
                            parts[f"start of the {key.replace('_', ' ')}"] = start
        if self.training.start:
            parts["started from"] = self.training.start
        return parts


def facts_of(folder: Path, run: RunFolder | None) -> Facts:
    """Collects the facts of an exported folder.

    Args:
        folder: An exported folder.
        run: Run of its weights, or None.

    Raises:
        UserError: if `config.json` or `lit_moss.json` is damaged.
    """
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    has_flow = (folder / "flow" / "flow.pt").is_file()
    is_vocoder = isinstance(config.get("vocoder"), dict)
    kind = "codec" if has_flow else "vocoder" if is_vocoder else "speech tokenizer"
    kind = "language model" if config.get("model_type") == MODEL_TYPE else kind
    other = "vocoder" if kind == "vocoder" else "speech encoder"
    name, record, has_codec = folder.resolve().name, ModelRecord.read(folder), (folder / CODEC).is_dir()
    return Facts(name, kind, config, record, training_of(run), *_weights(folder, other), has_codec)


def _weights(folder: Path, other: str) -> tuple[dict[str, int], tuple[str, ...]]:
    sizes: dict[str, int] = {}
    dtypes = set()
    try:
        tensors = open_tensors(weight_files(folder))
    except UserError:  # written later, or only flow/
        return {}, ()
    for name, tensor in tensors.items():
        group = next((row for start, row in _GROUPS.items() if name.startswith(start)), other)
        sizes[group] = sizes.get(group, 0) + prod(tensor.get_shape())
        dtypes.add(tensor.get_dtype())
    return sizes, tuple(sorted(dtypes))


def repository_of(name: str) -> str:
    """Hub id of a part; "" if it is not on the hub."""
    if name in _EMBEDDED:
        return _EMBEDDED[name][0]
    return name if is_hub_id(name) and name.count("/") == 1 else ""


def licence_of(name: str) -> str:
    """SPDX name of an embedded part's licence; "" for other parts."""
    return assets.EMBEDDED[_EMBEDDED[name][1]].licence if name in _EMBEDDED else ""
