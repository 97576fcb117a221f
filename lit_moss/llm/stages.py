"""Passes weights between stages of training.

    backbone ─► stage 1 ─► checkpoint ─► stage 2 ─► checkpoint ─► SFT
       └─ frozen weights ─┘ left out on request, a hash identifies their backbone

A stage starts from the backbone and loads the weights of an earlier checkpoint; adapters are merged into
their weights (`lora.py`). Weights that a run does not train may be stored in bfloat16 (`dtypes_of_training`)
and left out of its checkpoints (`leave_out_frozen`). When such a checkpoint is loaded, they are read again
from the run's backbone or its `init_from`, and their hash is compared (`check_frozen`).
"""

import hashlib
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_moss.errors import UserError
from lit_moss.llm import lora
from lit_moss.llm.config import MODEL_TYPE, SplitConfig
from lit_moss.llm.folders import open_tensors, read_json, weight_files
from lit_moss.llm.model import SplitLM
from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint

_PREFIX = "lm."  # prefix of the model's weights in a checkpoint
CURRENT = "current_model_state"  # if `state_dict` holds averaged weights: see Lightning's WeightAveraging
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def load_initial_weights(lm: SplitLM, checkpoint: dict[str, Any], source: str, assign: bool = False) -> int:
    """Loads the weights of an earlier stage's checkpoint.

    Weights that the checkpoint left out as frozen are the backbone's, which the model already has, or are
    read from the `init_from` of that stage.

    Args:
        lm: A split model with its backbone's weights; may be empty if the checkpoint is complete and `assign`
            is set.
        checkpoint: Checkpoint of the earlier stage.
        source: Origin of the checkpoint, for error messages.
        assign: Use the checkpoint's tensors themselves, in their data types, instead of copying their values.

    Returns:
        Number of tensors loaded.

    Raises:
        UserError: if the tensors do not fit the model, or the checkpoint was trained on another backbone.
    """
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    names, adapters = lora.separate(weights)
    pairs = {name: (weights[a], weights[b]) for name, (a, b) in adapters.items()}
    weights = {name: weights[stored] for name, stored in names.items()}
    own = lm.state_dict()  # shares memory with the parameters
    wrong = [name for name, value in weights.items() if name not in own or own[name].shape != value.shape]
    sizes = {name: (len(b), a.shape[1]) for name, (a, b) in pairs.items()}
    wrong += [name for name, size in sizes.items() if name not in own or own[name].shape != size]
    missing = sorted(own.keys() - weights.keys())
    frozen = checkpoint.get("frozen")
    if wrong or not (weights or pairs) or (missing and frozen is None):
        raise UserError(
            f"model.init_from {source} does not fit: {len(wrong)} tensors of another shape, "
            f"{len(missing)} missing (first {(wrong or missing or ['all'])[0]!r}); use the same "
            "backbone, split depth and speech tokenizer"
        )
    if frozen is not None:
        if frozen.get("init_from"):
            _start_again(lm, frozen["init_from"])
        check_frozen(frozen, own, source)
        _round_frozen(frozen, own)
    scale = (checkpoint.get("lora") or {}).get("scale", 0.0)
    if assign:
        base = {name: weights.get(name, own[name]) for name in pairs}
        sums = {name: lora.merged_weight(base[name], a, b, scale) for name, (a, b) in pairs.items()}
        lm.assign_weights(weights | sums)
    else:
        lm.load_state_dict(own | weights)
        for name, (a, b) in pairs.items():  # one at a time, to save memory
            own[name].copy_(lora.merged_weight(own[name], a, b, scale))
    return len(weights) + len(pairs)


def _round_frozen(frozen: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Rounds weights to the shorter data type in which the run kept them, if the model's is wider."""
    for name, dtype in frozen.get("dtypes", {}).items():
        if name in own and torch.promote_types(own[name].dtype, DTYPES[dtype]) != DTYPES[dtype]:
            own[name].copy_(own[name].to(DTYPES[dtype]))


def _start_again(lm: SplitLM, init_from: str) -> None:
    """Loads the weights that a run with this `init_from` started from; the caller checks their hash."""
    folder = Path(init_from)
    path = None if is_released(folder) else checkpoint_of(folder, "last", end=False)
    if path is not None:
        load_initial_weights(lm, load_checkpoint(path, mmap=True), str(path))
        return
    if not is_released(folder):
        raise UserError(f"frozen weights of a checkpoint are in {init_from}, which is not there: put it back")
    tensors, own = open_tensors(weight_files(folder)), lm.state_dict()
    for name in own.keys() & tensors.keys():
        if own[name].shape == tuple(tensors[name].get_shape()):
            own[name].copy_(tensors[name][...])


def is_released(folder: Path) -> bool:
    """Whether a folder has the released layout; a run's folder does not."""
    return (folder / "config.json").is_file()


def is_split(folder: Path) -> bool:
    """Whether it is the folder of a split model, not of a backbone or a run."""
    return is_released(folder) and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def model_of_checkpoint(checkpoint: dict[str, Any], backbone: str | Path, source: str) -> SplitLM:
    """The model of a checkpoint, on the CPU, in eval mode.

    Args:
        checkpoint: Checkpoint of a run.
        backbone: The run's backbone.
        source: Origin of the checkpoint, for error messages.

    Raises:
        UserError: if its frozen weights belong to another backbone.
    """
    config = SplitConfig.from_dict(checkpoint["split_config"], source)
    frozen = checkpoint.get("frozen") or {}
    start = frozen.get("init_from")
    if not (start and is_released(Path(start))) and is_split(Path(backbone)):
        start = str(backbone)  # the run fine-tuned a model folder
    if start and is_released(Path(start)):
        lm = SplitLM.from_pretrained(start, torch.float32)
        if frozen:
            checkpoint = checkpoint | {"frozen": frozen | {"init_from": None}}  # already loaded
    else:
        layers, size = config.num_modality_layers, config.format.audio_vocab_size
        lm = SplitLM.from_backbone(backbone, layers, size, config.joint, row_format=config.format)
    load_initial_weights(lm, checkpoint, source)
    return lm.eval()


def check_tokenizers(made_by: Mapping[str, str | None], fingerprints: Mapping[str, str]) -> None:
    """Refuses rows of other tokenizers, whose ids have other meanings.

    Args:
        made_by: Tokenizer -> its fingerprint, as stored in a checkpoint.
        fingerprints: Tokenizer -> fingerprint of the rows to use.

    Raises:
        UserError: if fingerprints differ.
    """
    for key, value in made_by.items():
        if value and fingerprints.get(key) not in (None, "none", value):
            option = key if key == "speech_tokenizer" else "backbone"
            name = key.replace("_", " ")
            raise UserError(
                f"the checkpoint was trained on rows of the {name} {value}, here it is {fingerprints[key]}: "
                f"give the {name} of the training (data.init_args.{option})"
            )


# --- frozen weights -----------------------------------------------------------------------------------------


def dtypes_of_training(
    lm: SplitLM, dtype: torch.dtype, trained: Container[str], frozen: torch.dtype | None = None
) -> dict[nn.Parameter, torch.dtype]:
    """The data type in which a run keeps each weight.

    Among weights that are never trained, norms and biases keep `dtype`: they take little memory, and autocast
    casts only matrices, so the logits of a backbone that is stored in `frozen` do not change by a bit. The
    table of speech embeddings (without a split, the joint table) also keeps `dtype`, because its rows enter
    the residual stream.

    Args:
        lm: The whole model.
        dtype: Data type of all other weights.
        trained: Names of the parameters that train at some step.
        frozen: Data type of matrices that are never trained. None: same as `dtype`.
    """
    table = "model.embed_tokens." if lm.config.joint else "model.audio_embed."

    def of(name: str, parameter: nn.Parameter) -> torch.dtype:
        is_rounded = name not in trained and parameter.dim() > 1 and not name.startswith(table)
        return frozen if frozen is not None and is_rounded else dtype

    return {parameter: of(name, parameter) for name, parameter in lm.named_parameters()}


def cast(module: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
    """Casts a module's weights, one at a time. Weights that already have the right data type are not copied,
    so that those mapped from a file stay mapped.

    Args:
        module: A model or a part of one.
        dtypes: Data types, as returned by `dtypes_of_training`; the entries of the module's weights are
            removed.
    """
    for parameter in module.parameters():
        dtype = dtypes.pop(parameter, None)
        if dtype is not None and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def leave_out_frozen(state: dict[str, Tensor], trained: Container[str]) -> dict[str, Tensor]:
    """Removes the weights that no step of the run trains from a checkpoint's `state_dict`, and returns them
    by their released names."""
    frozen = [key for key in state if key.removeprefix(_PREFIX) not in trained]
    return {lora.base_name(key.removeprefix(_PREFIX)): state.pop(key) for key in frozen}


def add_frozen(checkpoint: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Restores the weights that were left out of a checkpoint.

    Args:
        checkpoint: Checkpoint; changed in place.
        own: Weights of the model that it is loaded into.

    Raises:
        UserError: if the weights belong to another backbone.
    """
    frozen = checkpoint.get("frozen")
    if frozen is not None:
        names = {lora.base_name(name): name for name in own}
        check_frozen(frozen, {name: own[key] for name, key in names.items()}, "the checkpoint")
        for key in {"state_dict", CURRENT} & checkpoint.keys():
            checkpoint[key] |= {_PREFIX + names[name]: own[names[name]] for name in frozen["names"]}


def hash_record(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Record of the weights that a checkpoint leaves out: `names`, `dtypes` and `sha256`."""
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    return {"sha256": sha256_of_tensors(tensors), "names": sorted(tensors), "dtypes": dtypes}


def check_frozen(frozen: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> None:
    """Compares the weights that a checkpoint left out with a model's own weights.

    Args:
        frozen: The checkpoint's record: that of `hash_record`, with the name of its `backbone` and its
            `init_from`.
        own: The model's weights.
        source: Origin of the checkpoint, for error messages.

    Raises:
        UserError: if they differ.
    """
    # Compared in the data types of that run: another stage may keep the same backbone in another data type.
    dtypes = frozen.get("dtypes", {})
    names = (name for name in sorted(frozen["names"]) if name in own)
    # One at a time: `own` may read each tensor only when it is looked up.
    digest = _sha256(
        (name, own[name].to(DTYPES[dtypes[name]]) if name in dtypes else own[name]) for name in names
    )
    if digest != frozen["sha256"]:
        raise UserError(
            f"{source} was trained on top of {frozen.get('init_from') or frozen['backbone']!r} with frozen "
            f"weights {frozen['sha256'][:12]}, this backbone's are {digest[:12]}: give the same backbone"
        )


def sha256_of_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hex digest of names and contents, in the order of the names."""
    return _sha256((name, tensors[name]) for name in sorted(tensors))


def _sha256(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
