"""The whole codec by any name a user may give: a decoder's run or checkpoint, a folder, a hub id."""

from pathlib import Path

import torch

from lit_moss.codec.codec import Codec
from lit_moss.codec.flow import Flow, FlowConfig
from lit_moss.codec.state_dicts import check_finite
from lit_moss.data.decoder_data import Frozen
from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import load_checkpoint, newest_checkpoint


def open_codec(name: str, log_mel: str | None = None) -> Codec:
    """Codec of `conf/flow_decoder.yaml`'s run (runs/NAME: the best of the newest), a .ckpt file, or a folder.

    A run's checkpoint names the tokenizer and the speaker encoder that it was trained with; they are opened
    too, and must still be the same.

    Args:
        name: See above.
        log_mel: Features of its tokenizer; None takes those of the training, or what a folder states, see
            `SpeechTokenizer.from_pretrained`.

    Raises:
        UserError: if there is no decoder, or its tokenizer has changed.
    """
    if any(Path(name).glob("*/run.json")):
        found = newest_checkpoint(Path(name), "best")
        if not isinstance(found, Path):
            raise UserError(f"{name} has no checkpoint yet: expected a finished run of the decoder")
        return codec_of_checkpoint(found, log_mel)
    if Path(name).is_file():
        return codec_of_checkpoint(Path(name), log_mel)
    return Codec.from_pretrained(name, log_mel)


def codec_of_checkpoint(path: Path, log_mel: str | None = None) -> Codec:
    """Codec of a Lightning checkpoint of `FlowDecoder`; its averaged weights, data only.

    `log_mel` as in `open_codec`.
    """
    checkpoint = load_checkpoint(path, mmap=True)
    if "decoder" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a decoder run: expected one made by conf/flow_decoder.yaml"
        )
    made = checkpoint["decoder"]
    prefix = "flow."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    try:
        with torch.random.fork_rng():
            flow = Flow(FlowConfig(**made["flow"]))
        check_finite(weights, str(path))
        flow.load_state_dict(weights)
    except (TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"{path} is of another version ({str(error).splitlines()[0]}): train anew") from error
    try:
        frozen = Frozen(made["speech_tokenizer"], made["speaker"], log_mel or made.get("log_mel"))
    except UserError as error:
        raise UserError(
            f"{path} was trained on codes of {made['speech_tokenizer']!r}, which cannot be opened from here ({error})"
        ) from error
    if frozen.fingerprint != made["fingerprint"]:
        raise UserError(
            f"{path} was trained on codes of {made['speech_tokenizer']} as it was then (fingerprint "
            f"{made['fingerprint']}, now {frozen.fingerprint} with log_mel "
            f"{frozen.tokenizer.config.log_mel}): put that tokenizer back, or give its log_mel (--log-mel)"
        )
    return Codec(frozen.tokenizer, flow, None, frozen.speaker, made.get("voice"))
