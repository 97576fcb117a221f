"""Exports codecs and speech tokenizers to a codec folder in the official layout.

    FOLDER/config.json, model.safetensors                  the speech tokenizer
    FOLDER/flow/flow.pt, hift.pt, campplus.onnx, config.json   decoder of codes to speech, if there is one
    FOLDER/vocoder/config.json, model.safetensors          a vocoder trained with lit_moss, instead of hift.pt

A folder that already has this layout is checked and copied.
"""

import json
import os
import shutil
import sys
from pathlib import Path

from lit_moss import assets
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.codec_folder import VOCODER, write_vocoder
from lit_moss.errors import UserError
from lit_moss.files import atomic_write
from lit_moss.hub.codec import codec_of_checkpoint
from lit_moss.hub.model_folder import CODEC, ModelRecord, check_speech_tokenizer
from lit_moss.hub.tokenizer import open_tokenizer
from lit_moss.hub.vocoder import open_vocoder, vocoder_of_checkpoint
from lit_moss.llm.folders import refuse_pointer
from lit_moss.llm.rows import RowFormat
from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint

_FILES = (
    "config.json",
    "preprocessor_config.json",
    "README.md",
    "LICENSE",
    "flow/flow.pt",
    "flow/campplus.onnx",
    "flow/config.json",
)
_VOCODER_FILES = ("flow/hift.pt", f"{VOCODER}/config.json", f"{VOCODER}/model.safetensors")


def export_codec(name: str, folder: Path, log_mel: str | None = None, vocoder: str | None = None) -> None:
    """Writes a codec folder atomically, replacing an existing one.

    A line on stderr reports if there is no decoder to speech.

    Args:
        name: A run of conf/codec_encoder.yaml, conf/flow_decoder.yaml or conf/vocoder.yaml (which gives a
            folder with only the vocoder), a checkpoint of such a run, a codec or tokenizer folder, a model
            folder with `codec/`, a hub id, or `embedded:whisper-tiny-kmeans`.
        folder: The folder to write.
        log_mel: Features of its tokenizer, to be stated in `config.json`. None: those of the training.
        vocoder: Vocoder to use instead of its own, see `lit_moss.hub.open_vocoder`.

    Raises:
        UserError: if it is not a codec, or a part is missing, damaged, or contains anything but plain
            tensors.
    """
    folder = Path(folder)
    checkpoint = checkpoint_of(name, "best")
    try:
        with atomic_write(folder) as partial:
            if checkpoint is None:
                has_decoder = _copy(_codec_folder(name), partial, log_mel, vocoder)
            else:
                has_decoder = _write(checkpoint, partial, log_mel, vocoder)
            if vocoder is not None and not has_decoder:
                raise UserError(f"{name} has no flow decoder, so a vocoder (--vocoder) has nothing to follow")
    except OSError as error:
        raise UserError(
            f"the codec could not be written to {folder} ({error.strerror or error}): make room or rights"
        ) from error
    if not has_decoder:
        print(f"{name} has no flow decoder: the codec holds the speech tokenizer alone", file=sys.stderr)


def add_codec(
    name: str,
    log_mel: str | None,
    folder: Path,
    model: str,
    record: ModelRecord,
    row_format: RowFormat,
    vocoder: str | None = None,
) -> str:
    """Writes `codec/` into a model folder.

    Args:
        name: Name of the codec, see `export_codec`.
        log_mel: Features of its tokenizer, see `export_codec`.
        folder: Folder of the model.
        model: Name of the model, for messages.
        record: Record of the model.
        row_format: Row format of the model.
        vocoder: Vocoder to use instead of its own, see `export_codec`.

    Returns:
        Fingerprint of the speech tokenizer.

    Raises:
        UserError: as in `export_codec`; or if the model was not trained with this codec.
    """
    from lit_moss.codec.encoder import fingerprint

    target = folder / CODEC
    export_codec(name, target, log_mel, vocoder)
    if not (target / "model.safetensors").is_file():
        raise UserError(f"{name} has no speech tokenizer: give the whole codec")
    tokenizer = open_tokenizer(str(target))
    check_speech_tokenizer(model, record, tokenizer, row_format, name)
    return fingerprint(tokenizer.encoder)


def _write(checkpoint: Path, folder: Path, log_mel: str | None, vocoder: str | None) -> bool:
    """Writes the codec of a checkpoint; returns whether it can produce speech."""
    content = load_checkpoint(checkpoint, mmap=True)
    if "decoder" in content:
        codec_of_checkpoint(checkpoint, log_mel, vocoder).save_pretrained(folder)
        return True
    if "vocoder" in content:
        if vocoder is not None:
            raise UserError(f"{checkpoint} is a vocoder itself: leave --vocoder out")
        vocoder_of_checkpoint(checkpoint).save_pretrained(folder)
        return True
    if "speech_tokenizer" in content:
        SpeechTokenizer.from_pretrained(checkpoint, log_mel=log_mel).save_pretrained(folder)
        return False
    raise UserError(
        f"{checkpoint} is no checkpoint of a codec: expected one of conf/codec_encoder.yaml, "
        "conf/flow_decoder.yaml or conf/vocoder.yaml"
    )


def _codec_folder(name: str) -> Path:
    path = assets.resolve(name)
    if path.is_file():
        raise UserError(f"{name} is a file, expected a codec's folder, run, checkpoint or hub id")
    inside = path / CODEC
    return inside if inside.is_dir() and not (path / "flow").is_dir() else path


def _copy(source: Path, folder: Path, log_mel: str | None, vocoder: str | None) -> bool:
    """Opens a folder to check it, and copies its files; returns whether it has a decoder."""
    opened = None if vocoder is None else open_vocoder(vocoder)
    copied = _FILES if opened is not None else (*_FILES, *_VOCODER_FILES)
    files = [name for name in copied if (source / name).is_file()]
    files += sorted(file.name for file in source.glob("*.safetensors"))
    for name in files:
        refuse_pointer(source / name)
    has_decoder = (source / "flow/flow.pt").is_file()
    if has_decoder:
        Codec.from_pretrained(source, log_mel, opened)
    else:
        SpeechTokenizer.from_pretrained(source, log_mel=log_mel)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        copy_file(source / name, folder / name)
    if opened is not None and has_decoder:
        write_vocoder(folder, opened)
    config = folder / "config.json"
    if log_mel is not None and config.is_file():
        fields = json.loads(config.read_text(encoding="utf-8-sig"))
        config.write_text(json.dumps(fields | {"log_mel": log_mel}, indent=2) + "\n")
    return has_decoder


def copy_file(source: Path, target: Path, link: bool = False) -> bool:
    """Copies a file; returns whether it was hard-linked instead.

    Args:
        source: The file; symbolic links, as in the hub's cache, are followed.
        target: Path of the copy.
        link: Create a hard link if the file system allows it; for large files that are replaced, never
            modified.
    """
    source = source.resolve()
    if link:
        try:
            os.link(source, target)
            return True
        except OSError:  # another file system, or one without links
            pass
    shutil.copyfile(source, target)
    return False
