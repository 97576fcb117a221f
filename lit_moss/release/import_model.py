"""Imports a released or exported model and its codec into one folder for `fit`, `evaluate` and `serve`.

    OUT/config.json, *.safetensors, tokenizer files   the model; weights are linked or copied
    OUT/codec/                                        the codec
    OUT/lit_moss.json                                 fingerprints, licence, source, see `ModelRecord`

Everything is checked before it is written. Nothing is unpickled; code in a repository is neither downloaded
nor copied.
"""

import json
import re
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lit_moss import assets
from lit_moss.data.chat_template import chat_template, template_fingerprint
from lit_moss.errors import UserError
from lit_moss.files import atomic_write, errors_of_writing, folder_to_make, remove_leftovers
from lit_moss.hub.model_folder import CODEC, ModelRecord
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import MODALITY_PAD_NAMES, SOSP_NAMES, load_text_tokenizer
from lit_moss.llm.backbone import text_tokenizer_fingerprint as fingerprint_of
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.folders import INDEX, WEIGHTS, open_tensors, read_json, refuse_pointer, weight_files
from lit_moss.llm.released import fitting_tensors, read_split_config
from lit_moss.release.card import CARD, copy_card
from lit_moss.release.codec_export import add_codec, copy_file
from lit_moss.runs.checkpoints import checkpoint_of

_CONFIG, TEMPLATE = "config.json", "chat_template.jinja"
# Fields of `config.json` that released ones may lack.
_OFTEN_ABSENT = (
    "backbone_model_type", "audio_pad_token_id", "im_start_token_id", "im_end_token_id", "end_token_id",
)  # fmt: skip
_SMALL_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", "tokenizer.model", TEMPLATE, "README.md",
    "LICENSE",
)  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """Result of an import.

    Args:
        folder: The created folder.
        tensors: Number of tensors of the model; all are checked.
        files: Number of weight files.
        gigabytes: Size of these files in GB.
        linked: Whether they are hard links to the source's files, which take no disk space.
        record: Content of `lit_moss.json`.
    """

    folder: Path
    tensors: int
    files: int
    gigabytes: float
    linked: bool
    record: ModelRecord


def import_model(
    model: str | Path,
    out: str | Path,
    codec: str | None = None,
    log_mel: str | None = None,
    force: bool = False,
) -> Imported:
    """Imports a model; the folder is written atomically.

    Args:
        model: Hub id or folder in the released layout, including exported folders.
        out: Folder to create.
        codec: Name of a codec, see `export_codec`. None: the `codec/` of the model's folder, if it has one.
        log_mel: Features of the codec's tokenizer, see `export_codec`.
        force: Replace `out` if it exists.

    Raises:
        UserError: if `out` exists, a part is missing or damaged, a tensor does not fit `config.json`, or
            model, text tokenizer and codec do not belong together.
    """
    source, named, out = str(model), Path(out), folder_to_make(out)
    folder = _source_folder(source, out, force)
    folder, config = read_split_config(folder)
    tensors = _checked_tensors(folder, config)
    _check_ids(folder, config)
    record = _checked_record(folder)
    if codec is None and (folder / CODEC).is_dir():
        codec = str(folder / CODEC)
    files = weight_files(folder)
    remove_leftovers(out)
    with errors_of_writing(out), atomic_write(out) as partial:
        partial.mkdir()
        linked = _copy_model(folder, files, partial)
        _write_config(folder, config, partial)
        if codec is not None:
            speech_tokenizer = add_codec(codec, log_mel, partial, source, record, config.format)
            record = replace(record, speech_tokenizer=speech_tokenizer)
        record = replace(
            record,
            speech_tokenizer_name=record.speech_tokenizer_name or codec or "",
            template=record.template or _add_template(partial, record),
            source=source,
        )
        record.write(partial)
        if (partial / CARD).is_file():
            copy_card(folder, partial, None)  # it may say that there is no codec
    size = sum(file.stat().st_size for file in files)
    return Imported(named, tensors, len(files), size / 1e9, linked, record)


# --- checks -------------------------------------------------------------------------------------------------


def _source_folder(source: str, out: Path, force: bool) -> Path:
    """The folder of the model; nothing is downloaded if `out` cannot be created.

    Raises:
        UserError: if `out` must not be replaced, or the source is not a folder.
    """
    if out.exists() and not force:
        raise UserError(f"{out} exists: give another --out, or --force to replace it")
    if out.exists() and not (out / _CONFIG).is_file():
        raise UserError(f"{out} is no model's folder (it has no {_CONFIG}), and is not replaced: remove it")
    if checkpoint_of(source, "last") is not None:
        raise UserError(
            f"{source} is a run or a checkpoint: `export` makes a folder of it, which needs no import"
        )
    folder = assets.resolve(source)
    if not folder.is_dir():
        raise UserError(f"{source} is a file, expected a model's folder or hub id")
    if out.exists() and folder.resolve() == out.resolve():
        raise UserError(f"{out} is the model's own folder: give another --out")
    return folder


def _checked_tensors(folder: Path, config: SplitConfig) -> int:
    """Compares every name, shape and data type with the configuration; returns the number of tensors."""
    with torch.device("meta"):
        own = SplitLM.from_config(config).state_dict()
    tensors = fitting_tensors(folder, own)
    files = weight_files(folder)
    if files[0].name != WEIGHTS:
        listed = read_json(folder / INDEX)["weight_map"]
        stored = {name: file.name for file in files for name in open_tensors([file])}
        if wrong := sorted(name for name, _ in listed.items() ^ stored.items()):
            raise UserError(
                f"{folder}: {INDEX} and the weight files differ in where {wrong[0]} is: get them again"
            )
    return len(tensors)


def _check_ids(folder: Path, config: SplitConfig) -> None:
    """Compares the ids that mark speech with those of the text tokenizer."""
    tokenizer = load_text_tokenizer(folder)
    vocabulary = tokenizer.get_vocab()
    words = max(len(tokenizer), max(vocabulary.values()) + 1)
    if words > config.format.text_vocab_size:
        raise UserError(
            f"{folder}: the tokenizer has {words} words, config.json has vocab_size "
            f"{config.format.text_vocab_size}: give the tokenizer of the model"
        )
    ids = {"sosp_token_id": SOSP_NAMES, "modality_pad_token_id": MODALITY_PAD_NAMES}
    for field, names in ids.items():
        word = next(name for name in names if name in vocabulary)
        stated = config.format.to_dict()[field]
        if vocabulary[word] != stated:
            raise UserError(
                f"{folder}: {word} is {vocabulary[word]} in the tokenizer, config.json has {field} {stated}: "
                "give the tokenizer of the model"
            )


def _checked_record(folder: Path) -> ModelRecord:
    """The record of the folder, completed from the folder's content.

    Raises:
        UserError: if the text tokenizer or the template differs from the record.
    """
    record = ModelRecord.read(folder)
    file = folder / TEMPLATE
    template = template_fingerprint(file.read_bytes().decode("utf-8")) if file.is_file() else ""
    tokenizer = fingerprint_of(load_text_tokenizer(folder))
    record.check(folder, text_tokenizer=tokenizer, template=template)
    return replace(
        record, text_tokenizer=tokenizer, template=template, license=record.license or _license_of(folder)
    )


# --- writing ------------------------------------------------------------------------------------------------


def _copy_model(source: Path, weights: list[Path], folder: Path) -> bool:
    """Links or copies the weights and copies the small files; returns whether all weights were linked."""
    linked = [copy_file(file, folder / file.name, link=True) for file in weights]
    for name in (*_SMALL_FILES, *([INDEX] if weights[0].name != WEIGHTS else [])):
        if (source / name).is_file():
            refuse_pointer(source / name)
            copy_file(source / name, folder / name)
    return all(linked)


def _write_config(source: Path, config: SplitConfig, folder: Path) -> None:
    """Writes the source's `config.json`, adding missing ids and removing references to code."""
    fields = read_json(source / _CONFIG)
    fields.pop("auto_map", None)
    known = config.to_dict()
    fields |= {name: known[name] for name in _OFTEN_ABSENT if fields.get(name) is None}
    (folder / _CONFIG).write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n")


def _add_template(folder: Path, record: ModelRecord) -> str:
    """Writes the chat template of the training if the tokenizer has none; returns its fingerprint."""
    tokenizer = load_text_tokenizer(folder)
    if tokenizer.chat_template is not None or "<|im_start|>" not in tokenizer.get_vocab():
        return ""
    template = chat_template(tokenizer, record.form)
    (folder / TEMPLATE).write_text(template, encoding="utf-8")
    return template_fingerprint(template)


def _license_of(folder: Path) -> str:
    """The `license` in a model card's front matter; "" if there is none."""
    card = folder / "README.md"
    if not card.is_file():
        return ""
    text = card.read_text(encoding="utf-8", errors="replace")
    front = re.match(r"\s*---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    stated = re.search(r"^license:\s*['\"]?([\w.+-]+)", front[1], re.MULTILINE) if front else None
    return stated[1] if stated else ""
