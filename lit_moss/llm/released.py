"""Reads backbones and split models from folders, and writes split models.

A tensor that is missing from a folder would be initialised at random, with only a warning by the library;
here it is a one-line error. Nothing is unpickled.
"""

import contextlib
import copy
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig

from lit_moss import assets
from lit_moss.errors import UserError, first_line
from lit_moss.files import apply_umask
from lit_moss.llm import backbone as text
from lit_moss.llm.config import SplitConfig, last_id
from lit_moss.llm.folders import (
    open_tensors,
    read_config,
    read_json,
    refuse_other_dtypes,
    weight_files,
)
from lit_moss.llm.rows import RowFormat, default_eosp

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass
class Backbone:
    """A text model to be split.

    Args:
        model: transformers' model, on the CPU.
        config: A copy of its config.
        format: Row format, with the model's own text ids first.
        folder: Folder that it was read from; None: random weights.
    """

    model: nn.Module
    config: PretrainedConfig
    format: RowFormat
    folder: Path | None


@contextlib.contextmanager
def on_cpu() -> Iterator[torch.device | None]:
    """Makes the CPU the default device, so that weights are the same numbers everywhere, also inside
    Lightning's device context. Yields the previous default device, or None if it was the CPU or meta."""
    device = torch.get_default_device()
    if device.type in ("cpu", "meta"):
        yield None
        return
    with torch.device("cpu"):
        yield device


# --- backbones ----------------------------------------------------------------------------------------------


def open_backbone(
    source: str | Path | PretrainedConfig,
    audio_vocab_size: int,
    dtype: torch.dtype,
    row_format: RowFormat | None,
    check: Callable[[PretrainedConfig], None],
    empty: bool = False,
) -> Backbone:
    """Reads a backbone, or creates one with random weights.

    Args:
        source: Folder, Hugging Face id or `embedded:smollm2-135m`; or a transformers config, for random
            weights.
        audio_vocab_size: Size of the speech vocabulary.
        dtype: Data type of the weights.
        row_format: Row format. Default: derived from the tokenizer or config.
        check: Raises an error for an unsupported config, before any weights are read.
        empty: Create the model on the meta device, without reading the weights.

    Raises:
        UserError: if the source does not exist, does not fit its config, or `check` rejects it.
    """
    if isinstance(source, PretrainedConfig):
        config = copy.deepcopy(source)
        check(config)
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        return Backbone(model, config, row_format or _format_of_config(config, audio_vocab_size), None)
    folder = Path(source)
    if not folder.is_dir():
        folder = text.resolve_backbone(str(source))
    config = read_config(folder)
    check(config)
    if row_format is None and has_tokenizer(folder):
        row_format = text.row_format(text.load_text_tokenizer(folder), audio_vocab_size)
    elif row_format is None:
        row_format = _format_of_config(config, audio_vocab_size)
    if empty:
        with torch.device("meta"):
            return Backbone(AutoModelForCausalLM.from_config(config, dtype=dtype), config, row_format, folder)
    return Backbone(load_backbone(folder, config, dtype), config, row_format, folder)


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder contains a text tokenizer."""
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()


def _format_of_config(config: PretrainedConfig, audio_vocab_size: int) -> RowFormat:
    vocab = config.vocab_size
    fields = config.to_dict()  # most model types have no ids of speech
    eosp = fields.get("eosp_token_id")
    return RowFormat(
        text_vocab_size=vocab,
        audio_vocab_size=audio_vocab_size,
        sosp_token_id=fields.get("sosp_token_id", vocab - 2),
        eosp_token_id=default_eosp(audio_vocab_size) if eosp is None else eosp,
        modality_pad_token_id=fields.get("modality_pad_token_id", vocab - 1),
        audio_pad_token_id=512 if audio_vocab_size > 512 else 0,
        end_id=last_id(fields.get("eos_token_id")),
    )


def load_backbone(folder: Path, config: PretrainedConfig, dtype: torch.dtype) -> nn.Module:
    """A backbone with the weights of a folder, on the CPU.

    transformers' `from_pretrained` takes a device context, such as Lightning's, for a device map, which needs
    accelerate, and initialises missing tensors at random. Therefore the model is created on the meta device
    and filled by the functions that `from_pretrained` uses. They also convert weights that are stored
    differently on disk (experts one by one, fused projections).

    Args:
        folder: Folder with safetensors.
        config: Its config.
        dtype: Data type of the weights.

    Raises:
        UserError: if a tensor is missing, has the wrong shape, or does not belong to the model.
    """
    from transformers import initialization
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    tensors = open_tensors(weight_files(folder))
    with torch.device("cpu"):
        contexts = initialization.no_init_weights(), initialization.no_tie_weights(), torch.device("meta")
        with contexts[0], contexts[1], contexts[2]:
            model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        refuse_other_dtypes(folder, tensors, model.state_dict())
        conversions: Any = get_model_conversion_mapping(model)
        loading = LoadStateDictConfig(
            dtype=dtype,
            dtype_plan=model._get_dtype_plan(dtype),
            weight_mapping=conversions,
            ignore_mismatched_sizes=True,  # reported as an error below
        )
        with _no_progress_bar():
            info, _ = convert_and_load_state_dict_in_model(
                model=model, state_dict=tensors, load_config=loading
            )
        _refuse_misfits(folder, model, info)
        info.unexpected_keys.clear()  # suppresses the report of tensors outside the model
        model._finalize_model_loading(model, loading, info)
        for parameter in model.parameters():
            # Parts of a fused projection share one tensor, which safetensors cannot save.
            if parameter.untyped_storage().nbytes() > parameter.nbytes:
                parameter.data = parameter.data.clone()
    return model


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Hides transformers' progress bar, which is drawn even if the output is a pipe."""
    from transformers.utils import logging

    had_one = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if had_one:
            logging.enable_progress_bar()


def fill_buffers(model: nn.Module, config: PretrainedConfig) -> None:
    """Computes the buffers that no file contains and that are still on the meta device, as transformers does
    when it loads a model. An example is the scale of Gemma's embeddings.

    Raises:
        UserError: if transformers leaves a buffer without a value.
    """
    with torch.device("meta"):
        owner: Any = AutoModelForCausalLM.from_config(config)
    for module in model.modules():
        lost = [name for name, buffer in module.named_buffers(recurse=False) if buffer.is_meta]
        for name in lost:
            module._buffers[name] = torch.full_like(module.get_buffer(name), float("nan"), device="cpu")
        if lost:
            for parameter in module.parameters(recurse=False):
                parameter._is_hf_initialized = True  # pyright: ignore - already read
            owner._init_weights(module)
        for name in lost:
            if not bool(module.get_buffer(name).isfinite().all()):
                raise UserError(
                    f"{config.model_type} has a buffer {name} whose value is in no file: give another "
                    "backbone"
                )


def _refuse_misfits(folder: Path, model: Any, info: Any) -> None:
    tied = dict(model.all_tied_weights_keys)
    there = model.state_dict().keys() - info.missing_keys
    missing = {
        name
        for name in info.missing_keys
        if tied.get(name) not in there
        and not any(name == kept and other in there for other, kept in tied.items())
    }
    ignored = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq$"]
    # Tensors outside the model, such as a reward model's head, have no effect; a bias or an adapter inside it
    # has.
    parts = {name for name, _ in model.named_children()}
    unknown = {
        name
        for name in info.unexpected_keys
        if name.split(".")[0] in parts and not any(re.search(pattern, name) for pattern in ignored)
    }
    ignored_missing = model._keys_to_ignore_on_load_missing or ()
    missing = {n for n in missing if not any(re.search(pattern, n) for pattern in ignored_missing)}
    advice = "give the folder of a whole model whose config.json belongs to its weights"
    if info.mismatched_keys:
        name, got, expected = min(info.mismatched_keys)
        raise UserError(
            f"{folder}: {name} is {tuple(got)}, config.json expects {tuple(expected)} "
            f"({len(info.mismatched_keys)} tensors of other shapes): {advice}"
        )
    if missing:
        raise UserError(
            f"{folder} lacks {len(missing)} of {len(model.state_dict())} tensors, first {_first(missing)}"
            f"{_other_prefix(missing, info.unexpected_keys)}: {advice}"
        )
    if info.conversion_errors:
        name, error = min(info.conversion_errors.items())
        raise UserError(f"{folder}: {name} cannot be read ({first_line(error)}): {advice}")
    if unknown:
        raise UserError(
            f"{folder} has {len(unknown)} tensors that its model does not have, first {_first(unknown)}: "
            f"{advice}"
        )


def _other_prefix(missing: set[str], unexpected: set[str]) -> str:
    """The prefix of the stored names, e.g. PEFT's `base_model.model.`, in parentheses; "" if none."""
    for name in sorted(missing):
        for other in sorted(unexpected):
            if other.endswith("." + name):
                return f" (found as {other})"
    return ""


def _first(names: set[str]) -> str:
    """The first name in natural order: layer 2 before layer 10."""
    return min(names, key=lambda n: [(int(p), "") if p.isdigit() else (-1, p) for p in n.split(".")])


# --- split models -------------------------------------------------------------------------------------------


def read_split_config(folder: str | Path) -> tuple[Path, SplitConfig]:
    """The folder and config of a split model.

    A released config contains neither <|im_start|> and <|im_end|> nor the id that ends a document (its
    `eos_token_id` ends a turn); they are taken from the tokenizer.

    Args:
        folder: A path or a Hugging Face id.

    Raises:
        UserError: if the folder does not exist, or its `config.json` is not a split model's.
    """
    path = assets.resolve(str(folder))
    config = SplitConfig.from_json(path / "config.json")
    if not has_tokenizer(path):
        return path, config
    own = config.format
    theirs = text.row_format(text.load_text_tokenizer(path), own.audio_vocab_size, eosp=own.eosp_token_id)
    states_end = read_json(path / "config.json").get("end_token_id") is not None
    row_format = replace(
        own,
        im_start_id=theirs.im_start_id if own.im_start_id is None else own.im_start_id,
        im_end_id=theirs.im_end_id if own.im_end_id is None else own.im_end_id,
        end_id=own.end_id if states_end else theirs.end_id,
    )
    return path, replace(config, format=row_format)


def fitting_tensors(folder: Path, own: dict[str, Tensor]) -> dict[str, Any]:
    """Lazy slices of a folder's tensors, checked to fit a model by name, shape and data type.

    Args:
        folder: Folder with safetensors.
        own: Weights of the model; may be on the meta device.

    Raises:
        UserError: if files are missing, or a tensor does not fit.
    """
    state = open_tensors(weight_files(folder))
    refuse_other_dtypes(folder, state, own)
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is not the model's" for name in state if name not in own]
    for name in own.keys() & state.keys():
        got, expected = tuple(state[name].get_shape()), tuple(own[name].shape)
        if got != expected:
            wrong.append(f"{name} is {got}, expected {expected}")
    if wrong:
        raise UserError(
            f"{folder}: {len(wrong)} tensors do not fit its config.json, first: {wrong[0]}; give a folder "
            "that `save_pretrained` wrote whole"
        )
    return state


def read_weights(lm: nn.Module, folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """Weights of a folder in the released layout, for a split model created from its config.

    They are memory-mapped: processes share the pages, which are read on first use and copied on write. If
    `dtype` differs from the stored data type, the weights are copied.

    Args:
        lm: The model; may be on the meta device.
        folder: Folder with safetensors.
        dtype: Data type of the weights. Default: as stored.

    Raises:
        UserError: if files are missing, or names and shapes do not fit the model.
    """
    slices = fitting_tensors(folder, lm.state_dict())
    return {k: v[...].to(dtype) if dtype else v[...] for k, v in slices.items()}


def save_split(
    folder: Path, config: SplitConfig, state: Mapping[str, Tensor], tokenizer: Any, max_shard_size: str
) -> None:
    """Writes a folder in the released layout.

    Args:
        folder: The folder; created if it does not exist.
        config: Content of `config.json`.
        state: The weights.
        tokenizer: A transformers tokenizer, a folder with tokenizer files, or None.
        max_shard_size: Maximum size of a safetensors file, such as `5GB`.
    """
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n")
    save_torch_state_dict(
        {name: value.detach().cpu().contiguous() for name, value in state.items()},
        folder,
        max_shard_size=max_shard_size,
    )
    apply_umask(folder.glob("*.safetensors"))
    if isinstance(tokenizer, Path):
        files = [tokenizer / name for name in _TOKENIZER_FILES if tokenizer != folder]
        for file in (f for f in files if f.is_file()):
            shutil.copy(file, folder / file.name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(folder)
