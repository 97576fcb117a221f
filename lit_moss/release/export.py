"""Exports a run, a checkpoint or a model folder to a folder in the released layout.

    OUT/config.json, generation_config.json     sizes and ids; sampling options of the released demo
    OUT/model-0000I-of-0000N.safetensors        all weights, one tensor in memory at a time
    OUT/tokenizer.json, tokenizer_config.json   with sosp and modality_pad in the vocabulary
    OUT/chat_template.jinja                     see `lit_moss.data.chat_template`
    OUT/lit_moss.json                           record of its training, see `ModelRecord`
    OUT/README.md                               the model card
    OUT/codec/                                  the codec, if there is one

The folder is written atomically.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from lit_moss.data.chat_template import chat_template, template_fingerprint
from lit_moss.errors import UserError
from lit_moss.files import atomic_write, errors_of_writing, folder_to_make, remove_leftovers
from lit_moss.hub.lm import backbone_of
from lit_moss.hub.model_folder import CODEC, RECORD, ModelRecord, check_text_tokenizer, record_of_checkpoint
from lit_moss.hub.tokenizer import speech_tokenizer_fingerprint
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer
from lit_moss.llm.config import SplitConfig
from lit_moss.llm.released import read_split_config
from lit_moss.llm.sampling import Sampling
from lit_moss.llm.stages import is_released, is_split
from lit_moss.release.card import CARD, copy_card, write_card
from lit_moss.release.codec_export import add_codec, export_codec
from lit_moss.release.model_tensors import Tensors, checkpoint_tensors, config_of, folder_tensors
from lit_moss.release.public_names import is_private, part_name
from lit_moss.release.training_facts import Training, training_of
from lit_moss.release.weights import check_shard_size, mean_of, widest_dtype, write_weights
from lit_moss.runs.checkpoints import checkpoint_of, is_whole, open_checkpoint, step_of
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.stored import Stored

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
TEMPLATE = "chat_template.jinja"
_NEW_TOKENS = 500  # as in the demo


@dataclass(frozen=True)
class Source:
    """A model to be exported.

    Args:
        tensors: All weights, by their released names.
        config: Configuration of the model.
        tokenizer: Name or folder of its text tokenizer.
        record: Record of its training.
        run: Run of the model, or None.
        training: What is known about that run and the runs before it.
        folder: The source folder, if it already has the released layout; None for a checkpoint.
    """

    tensors: Tensors
    config: SplitConfig
    tokenizer: str | Path
    record: ModelRecord
    run: RunFolder | None = None
    training: Training = field(default_factory=Training)
    folder: Path | None = None


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    Args:
        folder: The exported folder.
        tensors: Number of tensors; 0 for a codec.
        gigabytes: Size of the folder in GB.
        record: Content of `lit_moss.json`; None for a codec.
    """

    folder: Path
    tensors: int
    gigabytes: float
    record: ModelRecord | None


def export(
    name: str,
    out: str | Path,
    *,
    which: Literal["last", "best"] | None = None,
    dtype: Literal["stored", "float32", "bfloat16"] = "stored",
    max_shard_size: str = "5GB",
    average: int = 1,
    codec: str | None = None,
    license: str | None = None,
    force: bool = False,
    log_mel: str | None = None,
    vocoder: str | None = None,
) -> Exported:
    """Exports a model or a codec.

    Args:
        name: A run's folder or RUN_ROOT/NAME (its newest run), a checkpoint (a file, or a folder of shards),
            a folder in the released layout, or a hub id; also a run or checkpoint of a codec.
        out: Folder to create.
        which: Checkpoint of a run: `last` or `best`. None: the last one, or the best one for a codec's run.
        dtype: Data type of the weights. `stored`: the widest data type in the checkpoint, so that the
            exported model computes the same as the run's; released models are in bfloat16, half the size.
        max_shard_size: Maximum size of a weight file, such as `5GB`.
        average: Number of states of the run to average, up to and including the chosen one.
        codec: Codec to write to `codec/`, see `export_codec`. None: the `codec/` of the folder, or of the
            folder that a run was fine-tuned from, if it is still the codec of the training.
        license: SPDX name of the weights' licence. None: the recorded one.
        force: Replace an existing model folder at `out`.
        log_mel: Features of the codec's tokenizer, see `export_codec`.
        vocoder: Vocoder to use instead of the codec's own, see `export_codec`.

    Raises:
        UserError: if the model does not exist or is damaged, `out` exists, or there is not enough disk space.
    """
    named, out = Path(out), folder_to_make(out)
    if average < 1:
        raise UserError(f"--average {average}, expected 1 or more")
    check_shard_size(max_shard_size)
    _check_out(out, force)
    checkpoint = checkpoint_of(name, which or "last")
    stored = None if checkpoint is None else open_checkpoint(checkpoint)
    if checkpoint and stored and "split_config" not in stored.settings:  # a codec's
        if average > 1 or codec is not None or dtype != "stored":
            raise UserError(
                f"{name} is no language model: --average, --codec and --dtype are for language models"
            )
        part = checkpoint if which else checkpoint_of(name, "best") or checkpoint
        _write(out, lambda folder: _fill_codec(folder, part, log_mel, license, vocoder))
        return Exported(named, 0, _gigabytes(out), None)
    if checkpoint is None or stored is None:
        source = _of_folder(name, average)
    else:
        source = _of_checkpoint(checkpoint, stored, average)
    if source.folder is not None and source.folder.resolve() == out.resolve():
        raise UserError(f"{out} is the model's own folder: give another --out")
    tensors = _in_order(source.tensors, source.config, name)
    kept = widest_dtype(tensors) if dtype == "stored" else DTYPES[dtype]
    _check_room(out, sum(tensor.numel for tensor in tensors.values()) * kept.itemsize)
    tokenizer = load_text_tokenizer(source.tokenizer)
    check_text_tokenizer(name, source.record, tokenizer)
    record = replace(source.record, license=license or source.record.license)
    if codec is None:
        codec, log_mel = _own_codec(source, log_mel)
    if codec is None and vocoder is not None:
        raise UserError(f"--vocoder {vocoder} belongs to a codec, and {name} has none: give --codec")

    def fill(folder: Path) -> None:
        nonlocal record
        folder.mkdir()
        if codec is not None:  # first: it may be refused, and the weights take minutes
            given = add_codec(codec, log_mel, folder, name, record, source.config.format, vocoder)
            record = replace(record, speech_tokenizer=given)
        write_weights(folder, tensors, kept, max_shard_size)
        _write_configs(folder, source.config, kept)
        template = _template(source, tokenizer, record)
        tokenizer.chat_template = template or None
        tokenizer.save_pretrained(folder)  # with its template
        record = replace(record, template=template_fingerprint(template) if template else "")
        record.write(folder)
        if source.folder is not None and (source.folder / CARD).is_file():
            copy_card(source.folder, folder, license)
        else:
            write_card(folder, source.run)

    _write(out, fill)
    return Exported(named, len(tensors), _gigabytes(out), record)


def _fill_codec(
    folder: Path, checkpoint: Path, log_mel: str | None, license: str | None, vocoder: str | None
) -> None:
    export_codec(str(checkpoint), folder, log_mel, vocoder)
    if license is not None:
        ModelRecord(license=license).write(folder)
    if not (folder / CARD).is_file():
        write_card(folder, RunFolder.of_checkpoint(checkpoint))


# --- destination --------------------------------------------------------------------------------------------


def _check_out(out: Path, force: bool) -> None:
    """Refuses to replace anything but an empty folder or, with `force`, an exported folder."""
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        if not force:
            raise UserError(f"{out} exists: give another --out, or --force to replace it")
        if not out.is_dir() or not (is_released(out) or (out / RECORD).is_file()):
            raise UserError(f"{out} is no folder of a model, --force does not replace it: give another --out")
    for other in remove_leftovers(out):
        print(f"{other} is another export in progress", file=sys.stderr)


def _check_room(out: Path, size: int) -> None:
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if size > free:
        raise UserError(
            f"{out} needs {size / 1e9:.2f} GB, {parent} has {free / 1e9:.2f} GB free: make room, or give "
            "another --out, or --dtype bfloat16"
        )


def _write(out: Path, fill: Callable[[Path], None]) -> None:
    with errors_of_writing(out), atomic_write(out) as partial:
        fill(partial)


def _gigabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e9


# --- source -------------------------------------------------------------------------------------------------


def _of_folder(name: str, average: int) -> Source:
    if average > 1:
        raise UserError(f"--average {average} needs a run, and {name} is a model's folder")
    folder, config = read_split_config(name)
    record = ModelRecord.read(folder)
    if (folder / TEMPLATE).is_file():
        record.check(folder, template=template_fingerprint(_read_text(folder / TEMPLATE)))
    names = {key: part_name(value) for key, value in _names(record).items() if is_private(value)}
    return Source(folder_tensors(folder), config, folder, replace(record, **names), folder=folder)


def _names(record: ModelRecord) -> dict[str, str]:
    """Fields of a record that may contain local folder names."""
    fields = asdict(record)
    return {key: fields[key] for key in ("backbone", "speech_tokenizer_name", "source") if fields[key]}


def _of_checkpoint(path: Path, stored: Stored, average: int) -> Source:
    config, run = config_of(stored, str(path)), RunFolder.of_checkpoint(path)
    settings = run.config() if run is not None and run.config_file.is_file() else {}
    data = (settings.get("data") or {}).get("init_args") or {}
    backbone = data.get("backbone") or backbone_of(path, stored.settings)
    if average == 1:
        tensors = checkpoint_tensors(stored, str(path))
    else:
        states = _last_states(path, run, average)
        tensors = mean_of([checkpoint_tensors(open_checkpoint(state), str(state)) for state in states])
    record = record_of_checkpoint(path, stored.settings)
    root = str(settings.get("run_root") or "runs")
    names = {key: part_name(value, root) for key, value in _names(record).items()}
    training = training_of(run)
    record = replace(record, stages=_stages(training), averaged=average, **names)
    return Source(tensors, config, backbone, record, run, training)


def _own_codec(source: Source, log_mel: str | None) -> tuple[str | None, str | None]:
    """The codec that belongs to a model, and its `log_mel`; (None, None) if there is none."""
    if source.folder is not None:
        inside = source.folder / CODEC
        return (str(inside) if inside.is_dir() else None), log_mel
    wanted = source.record.speech_tokenizer
    for folder, features in _codecs_of_training(source.training) if wanted else ():
        features = log_mel or features
        try:
            if speech_tokenizer_fingerprint(str(folder), features) == wanted:
                print(f"{CODEC}/ is a copy of {folder}, the codec of the training", file=sys.stderr)
                return str(folder), features
            reason = "is no longer the codec of the training"
        except UserError as error:
            reason = f"cannot be opened ({error})"
        print(f"{folder} {reason}: not copied, give --codec", file=sys.stderr)
    return None, log_mel


def _codecs_of_training(training: Training) -> Iterator[tuple[Path, str | None]]:
    """Folders `codec` in the models that the runs started from, last first, each with its `log_mel`."""
    seen = set()
    for stage in reversed(training.stages):
        data, start = stage.settings("data"), stage.settings("model").get("init_from")
        for name in (data.get("speech_tokenizer"), start and f"{start}/{CODEC}"):
            folder = stage.locate(str(name)) if name else Path()
            if folder.name == CODEC and folder not in seen and folder.is_dir() and is_split(folder.parent):
                seen.add(folder)
                yield folder, data.get("log_mel")


def _last_states(path: Path, run: RunFolder | None, count: int) -> list[Path]:
    """The newest `count` regular checkpoints of the run, up to the given one."""
    if run is None:
        raise UserError(f"--average needs a run's folder, and {path} is in none")
    last = step_of(path)
    states = [p for p in sorted(run.checkpoints.glob("step-*.ckpt"), reverse=True) if step_of(p) <= last]
    states = [state for state in states[:count] if is_whole(state, sealed=True)]
    if len(states) < count:
        raise UserError(
            f"--average {count}, but {run} has {len(states)} whole states up to step {last}: keep more of "
            "them (callbacks.Checkpoint, keep)"
        )
    return states


def _stages(training: Training) -> list[str]:
    """Names of the runs, first stage first, as far as their folders still exist."""
    names = [stage.name for stage in training.stages]
    if not training.stages or training.start is None:
        return names
    first = training.stages[0]
    folder = first.locate(str(first.settings("model")["init_from"]))
    before = ModelRecord.read(folder).stages if folder.is_dir() else []
    return [*(before or [training.start]), *names]


def _in_order(tensors: Tensors, config: SplitConfig, name: str) -> Tensors:
    """The tensors in the model's order, checked to fit the model.

    Raises:
        UserError: if names or shapes do not fit.
    """
    with torch.device("meta"):
        own = SplitLM.from_config(config).state_dict()
    wrong = [f"{key} is missing" for key in own if key not in tensors]
    wrong += [f"{key} is not the model's" for key in tensors if key not in own]
    wrong += [
        f"{key} is {tensors[key].shape}, expected {tuple(own[key].shape)}"
        for key in own
        if key in tensors and tensors[key].shape != tuple(own[key].shape)
    ]
    if wrong:
        raise UserError(
            f"{name}: {len(wrong)} tensors do not fit its config, first: {wrong[0]}; give a whole checkpoint "
            "of one language model"
        )
    return {key: tensors[key] for key in own}


# --- small files --------------------------------------------------------------------------------------------


def _write_configs(folder: Path, config: SplitConfig, dtype: torch.dtype) -> None:
    fields = config.to_dict() | {"dtype": str(dtype).removeprefix("torch.")}
    fields.pop("_name_or_path", None)  # a local path
    _write_json(folder / "config.json", fields)
    sampling, ids = Sampling(), config.format
    ends = [x for x in (ids.im_end_id, ids.end_id) if x is not None]
    generation = {
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "repetition_penalty": sampling.repetition_penalty,
        "max_new_tokens": _NEW_TOKENS,
        "eos_token_id": sorted(set(ends)),
        "pad_token_id": ids.end_id,
    }
    _write_json(folder / "generation_config.json", generation)


def _write_json(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _template(source: Source, tokenizer: Any, record: ModelRecord) -> str:
    """The folder's own template, or that of the training; "" if the tokenizer has no tokens for turns."""
    if source.folder is not None and (source.folder / TEMPLATE).is_file():
        return _read_text(source.folder / TEMPLATE)
    has_turns = source.config.format.im_start_id is not None and source.config.format.im_end_id is not None
    return chat_template(tokenizer, record.form) if has_turns else ""


def _read_text(path: Path) -> str:
    return path.read_bytes().decode("utf-8")  # without changing line endings
