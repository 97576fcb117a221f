"""A codec's folder in the official layout, of whatever a codec or a speech tokenizer can be.

    FOLDER/config.json, model.safetensors                  the speech tokenizer
    FOLDER/flow/flow.pt, hift.pt, campplus.onnx, config.json   what makes speech of codes, where there is any
    FOLDER/vocoder/config.json, model.safetensors          a vocoder trained here, in the place of hift.pt

A folder in the layout is checked and copied as it is.
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
    """Writes a codec's folder; it appears whole or not at all, and replaces what was there.

    One line on stderr says so where there is no decoder of speech.

    Args:
        name: A run of conf/codec_encoder.yaml, conf/flow_decoder.yaml or conf/vocoder.yaml (whose folder is
            the vocoder's alone), a checkpoint of one, a codec's or tokenizer's folder, a model's folder with
            `codec/`, a hub id, `embedded:whisper-tiny-kmeans`.
        folder: The folder to write.
        log_mel: Features of its tokenizer, which `config.json` then states; None keeps those of the training.
        vocoder: Vocoder to put in the place of its own, see `lit_moss.hub.open_vocoder`.

    Raises:
        UserError: if it is no codec, or a part is damaged, missing, or more than plain tensors.
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
        print(f"{name} has no flow decoder: {folder} holds the speech tokenizer alone", file=sys.stderr)


def add_codec(
    name: str,
    log_mel: str | None,
    folder: Path,
    model: str,
    record: ModelRecord,
    row_format: RowFormat,
    vocoder: str | None = None,
) -> str:
    """Writes `codec/` into a model's folder.

    Args:
        name: See `export_codec`.
        log_mel: See `export_codec`.
        folder: The model's.
        model: Its name, for messages.
        record: Its record.
        row_format: Its rows.
        vocoder: See `export_codec`.

    Returns:
        Fingerprint of the speech tokenizer.

    Raises:
        UserError: as `export_codec`; or if it is not the codec of the model's training.
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
    """Writes the codec of a checkpoint; returns whether it makes speech."""
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
    """Checks a folder by opening it, and copies its files; returns whether it has a decoder."""
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
    """Copies a file's content; returns whether it was linked instead.

    Args:
        source: The file; a link, as in the hub's cache, is followed.
        target: Where to.
        link: A hard link, if the file system can: for large files that are replaced, never written in place.
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
