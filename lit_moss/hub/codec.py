"""Opens codecs by name: the run or checkpoint of a decoder, a folder, a hub id."""

from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.errors import UserError, first_line
from lit_moss.hub.vocoder import open_vocoder

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.codec import Codec


def open_codec(name: str, log_mel: str | None = None, vocoder: str | None = None) -> "Codec":
    """Opens the codec of a run of `conf/flow_decoder.yaml`, a .ckpt file, or a folder in the released layout.

    A checkpoint names the speech tokenizer and the speaker encoder that it was trained with; they are opened
    as well, and must not have changed.

    Args:
        name: A run's folder or RUN_ROOT/NAME (the best checkpoint of the newest run), a checkpoint, a folder,
            or a hub id.
        log_mel: Features of its tokenizer. None: those of the training, or as stated in the folder, see
            `SpeechTokenizer.from_pretrained`.
        vocoder: Name of a vocoder, see `open_vocoder`. None: that of the folder; Griffin-Lim for a run.

    Raises:
        UserError: if there is no decoder or vocoder, or the tokenizer has changed.
    """
    from lit_moss.codec import Codec
    from lit_moss.runs.checkpoints import checkpoint_of

    checkpoint = checkpoint_of(name, "best")
    if checkpoint is not None:
        return codec_of_checkpoint(checkpoint, log_mel, vocoder)
    return Codec.from_pretrained(name, log_mel, None if vocoder is None else open_vocoder(vocoder))


def codec_of_checkpoint(path: Path, log_mel: str | None = None, vocoder: str | None = None) -> "Codec":
    """Opens the codec of a `FlowDecoder` checkpoint, with its averaged weights; reads data only.

    Args:
        path: The checkpoint.
        log_mel: Features of its tokenizer, see `open_codec`.
        vocoder: Name of a vocoder, see `open_codec`.

    Raises:
        UserError: if the checkpoint belongs to another model, or the tokenizer has changed.
    """
    import torch

    from lit_moss.codec import Codec, Flow
    from lit_moss.codec.flow import FlowConfig
    from lit_moss.codec.state_dicts import check_finite
    from lit_moss.hub.speech_parts import SpeechParts
    from lit_moss.runs.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path, mmap=True)
    if "decoder" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a decoder run: expected one made by conf/flow_decoder.yaml"
        )
    decoder = checkpoint["decoder"]
    prefix = "flow."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        trained_on = decoder["fingerprints"]
        with torch.random.fork_rng():
            flow = Flow(FlowConfig(**decoder["flow"]))
        check_finite(weights, str(path))
        flow.load_state_dict(weights)
    except (TypeError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path} was written by another version ({first_line(error)}): train the decoder again"
        ) from error
    name = decoder["speech_tokenizer"]
    try:
        parts = SpeechParts(name, decoder["speaker"], log_mel or decoder.get("log_mel"))
    except UserError as error:
        raise UserError(
            f"{path} was trained on codes of {name!r}, which cannot be opened from here ({error})"
        ) from error
    names = {"speech_tokenizer": name, "speaker_encoder": decoder["speaker"]}
    for key, now in parts.fingerprints.items():
        part = key.replace("_", " ").removeprefix("speech ")
        if now != trained_on[key]:
            raise UserError(
                f"{path} was trained with another {part} (fingerprint {trained_on[key]}): {names[key]} with "
                f"log_mel {parts.tokenizer.config.log_mel} now has {now}: put that {part} back, or give the "
                "log_mel of the training (--log-mel)"
            )
    opened = None if vocoder is None else open_vocoder(vocoder)
    return Codec(parts.tokenizer, flow, opened, parts.speaker, decoder.get("voice"))


def flow_weights(name: str) -> "dict[str, Tensor]":
    """Weights of a flow decoder to start a training from.

    Args:
        name: A state dict such as the released `flow.pt`; a run, RUN_ROOT/NAME (the best checkpoint of the
            newest run) or a checkpoint of `FlowDecoder`; a codec's folder, a model's folder that holds its
            codec, or a hub id.

    Raises:
        UserError: if there is no decoder, or its file is not plain data.
    """
    from lit_moss.assets import resolve
    from lit_moss.codec.state_dicts import read_state_dict
    from lit_moss.hub.model_folder import CODEC
    from lit_moss.runs.checkpoints import checkpoint_of, load_checkpoint

    path = Path(name)
    if path.is_file() and path.suffix != ".ckpt":
        return read_state_dict(path)
    checkpoint = checkpoint_of(path, "best")
    if checkpoint is not None:
        content = load_checkpoint(checkpoint, mmap=True)
        if "decoder" not in content:
            raise UserError(
                f"{checkpoint} is no checkpoint of a decoder run: expected one made by conf/flow_decoder.yaml"
            )
        weights = content["state_dict"]
        return {k.removeprefix("flow."): v for k, v in weights.items() if k.startswith("flow.")}
    folder = resolve(name)
    for place in (folder, folder / CODEC):
        if (place / "flow" / "flow.pt").is_file():
            return read_state_dict(place / "flow" / "flow.pt")
    raise UserError(
        f"{name} has no flow decoder: expected a flow.pt, a run or checkpoint of conf/flow_decoder.yaml, or "
        "a codec's folder"
    )
