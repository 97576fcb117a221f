"""Weights between stages of training.

    backbone ─► stage 1 ─► checkpoint ─► stage 2 ─► checkpoint ─► SFT
       └─ frozen weights ─┘ left out on request, a hash says which backbone they belong to

A stage starts from the backbone and takes over the weights of an earlier checkpoint; adapters are added to
the weights that they belong to (`lora.py`). Weights that a run does not train may be kept in bfloat16
(`dtypes_of_training`) and be left out of its checkpoints (`leave_out_frozen`). When such a checkpoint is
loaded, they are read again from where the run had them, its backbone or its `init_from`, and their hash is
compared (`check_frozen`).
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

_PREFIX = "lm."  # of the model's weights in a checkpoint
CURRENT = (
    "current_model_state"  # of a checkpoint whose `state_dict` is an average, see Lightning's WeightAveraging
)
DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
}


def take_over(lm: SplitLM, checkpoint: dict[str, Any], source: str, adopt: bool = False) -> int:
    """Loads an earlier stage's weights; those that it left out as frozen are the backbone's already, or are
    read from where that stage started.

    Args:
        lm: A split model with its backbone's weights; without any if `checkpoint` has all and `adopt` is set.
        checkpoint: Of the earlier stage.
        source: Where it comes from, for messages.
        adopt: Take the checkpoint's tensors themselves, in their dtypes, instead of copying their values.

    Returns:
        Number of tensors.

    Raises:
        UserError: if they do not fit the model, or the checkpoint was trained on another backbone.
    """
    weights = {
        name.removeprefix(_PREFIX): value
        for name, value in checkpoint["state_dict"].items()
        if name.startswith(_PREFIX)
    }
    names, adapters = lora.separate(weights)
    pairs = {name: (weights[a], weights[b]) for name, (a, b) in adapters.items()}
    weights = {name: weights[stored] for name, stored in names.items()}
    own = lm.state_dict()  # the parameters themselves
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
    if adopt:
        base = {name: weights.get(name, own[name]) for name in pairs}
        sums = {name: lora.merged_weight(base[name], a, b, scale) for name, (a, b) in pairs.items()}
        lm.adopt(weights | sums)
    else:
        lm.load_state_dict(own | weights)
        for name, (a, b) in pairs.items():  # one at a time: all sums together would be a second model
            own[name].copy_(lora.merged_weight(own[name], a, b, scale))
    return len(weights) + len(pairs)


def _round_frozen(frozen: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    """Rounds what a run kept in a shorter dtype than a model has, as the run did."""
    for name, dtype in frozen.get("dtypes", {}).items():
        if name in own and torch.promote_types(own[name].dtype, DTYPES[dtype]) != DTYPES[dtype]:
            own[name].copy_(own[name].to(DTYPES[dtype]))


def _start_again(lm: SplitLM, init_from: str) -> None:
    """Loads what a run with this `init_from` started from; whether it is the same, its hash says."""
    folder = Path(init_from)
    path = None if is_released(folder) else checkpoint_of(folder, "last", end=False)
    if path is not None:
        take_over(lm, load_checkpoint(path, mmap=True), str(path))
        return
    if not is_released(folder):
        raise UserError(f"frozen weights of a checkpoint are in {init_from}, which is not there: put it back")
    tensors, own = open_tensors(weight_files(folder)), lm.state_dict()
    for name in own.keys() & tensors.keys():
        if own[name].shape == tuple(tensors[name].get_shape()):
            own[name].copy_(tensors[name][...])


def is_released(folder: Path) -> bool:
    """Whether it is a folder in the released layout, rather than a run's."""
    return (folder / "config.json").is_file()


def is_split(folder: Path) -> bool:
    """Whether it is the folder of a split model, rather than that of a backbone or a run."""
    return is_released(folder) and read_json(folder / "config.json").get("model_type") == MODEL_TYPE


def model_of_checkpoint(checkpoint: dict[str, Any], backbone: str | Path, source: str) -> SplitLM:
    """The model of a checkpoint, on the CPU, in eval mode.

    Args:
        checkpoint: Of a run.
        backbone: The run's backbone.
        source: Where the checkpoint comes from, for messages.

    Raises:
        UserError: if its frozen weights belong to another backbone.
    """
    config = SplitConfig.from_dict(checkpoint["split_config"], source)
    frozen = checkpoint.get("frozen") or {}
    start = frozen.get("init_from")
    if not (start and is_released(Path(start))) and is_split(Path(backbone)):
        start = str(backbone)  # a run that fine-tuned a folder and took its tokenizer
    if start and is_released(Path(start)):
        lm = SplitLM.from_pretrained(start, torch.float32)
        if frozen:
            checkpoint = checkpoint | {"frozen": frozen | {"init_from": None}}  # loaded already
    else:
        layers, size = config.num_modality_layers, config.format.audio_vocab_size
        lm = SplitLM.from_backbone(backbone, layers, size, config.joint, row_format=config.format)
    take_over(lm, checkpoint, source)
    return lm.eval()


def check_tokenizers(made_by: Mapping[str, str | None], fingerprints: Mapping[str, str]) -> None:
    """Refuses rows of other tokenizers: their ids are the same numbers with another meaning.

    Args:
        made_by: Fingerprint of each tokenizer that made a checkpoint's rows.
        fingerprints: Those of the rows at hand.

    Raises:
        UserError: if they differ.
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
    """The dtype in which a run keeps each weight.

    Of the weights that never train, norms and biases keep `dtype`: they take little memory, and autocast
    casts only matrices, so the logits of a backbone that is stored in `frozen` do not change by a bit. The
    table of speech embeddings, or of a model without a split its only one, keeps it as well, because the
    residual stream takes it over.

    Args:
        lm: The whole model.
        dtype: Of the others.
        trained: Names of the parameters that train at some step.
        frozen: Of the matrices that never train, such as bfloat16; None: `dtype`.
    """
    table = "model.embed_tokens." if lm.config.joint else "model.audio_embed."

    def of(name: str, parameter: nn.Parameter) -> torch.dtype:
        is_rounded = name not in trained and parameter.dim() > 1 and not name.startswith(table)
        return frozen if frozen is not None and is_rounded else dtype

    return {parameter: of(name, parameter) for name, parameter in lm.named_parameters()}


def cast(module: nn.Module, dtypes: dict[nn.Parameter, torch.dtype]) -> None:
    """Casts a module's weights, one at a time; those that have their dtype already stay as they are, mapped
    from a file as they may be.

    Args:
        module: A model or a part of one.
        dtypes: Of `dtypes_of_training`; those of the module's weights are taken out.
    """
    for parameter in module.parameters():
        dtype = dtypes.pop(parameter, None)
        if dtype is not None and parameter.dtype != dtype:
            parameter.data = parameter.data.to(dtype)


def leave_out_frozen(state: dict[str, Tensor], trained: Container[str]) -> dict[str, Tensor]:
    """Removes from a checkpoint's weights what no step of the run trains, and returns it by its released
    names."""
    frozen = [key for key in state if key.removeprefix(_PREFIX) not in trained]
    return {lora.base_name(key.removeprefix(_PREFIX)): state.pop(key) for key in frozen}


def add_frozen(checkpoint: dict[str, Any], own: dict[str, Tensor]) -> None:
    """Puts the weights that a checkpoint has left out back into it.

    Args:
        checkpoint: Changed in place.
        own: Weights of the model that it is loaded into.

    Raises:
        UserError: if they are of another backbone.
    """
    frozen = checkpoint.get("frozen")
    if frozen is not None:
        names = {lora.base_name(name): name for name in own}
        check_frozen(frozen, {name: own[key] for name, key in names.items()}, "the checkpoint")
        for key in {"state_dict", CURRENT} & checkpoint.keys():
            checkpoint[key] |= {_PREFIX + names[name]: own[names[name]] for name in frozen["names"]}


def hash_record(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint's record of the weights that it leaves out: `names`, their `dtypes`, and the `sha256`."""
    dtypes = {name: str(value.dtype).removeprefix("torch.") for name, value in tensors.items()}
    return {"sha256": sha256_of_tensors(tensors), "names": sorted(tensors), "dtypes": dtypes}


def check_frozen(frozen: Mapping[str, Any], own: Mapping[str, Tensor], source: str) -> None:
    """Compares the weights that a checkpoint has left out with a model's own.

    Args:
        frozen: The checkpoint's record, see `hash_record`, the name of its `backbone`, and its `init_from`.
        own: The model's weights.
        source: Where the checkpoint comes from, for messages.

    Raises:
        UserError: if they differ.
    """
    # In the dtypes they were trained with: another stage may keep the same backbone in another one.
    dtypes = frozen.get("dtypes", {})
    names = (name for name in sorted(frozen["names"]) if name in own)
    # One at a time: `own` may read each tensor when it is looked up.
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
