"""The decoder parts in the folder of a codec in the official layout.

    flow/flow.pt, flow/campplus.onnx   the flow decoder, a speaker encoder
    flow/hift.pt                       the released vocoder, HiFT
    flow/config.json                   settings that shapes do not show, speaker encoder, mean voice
    vocoder/                           a vocoder trained with lit_moss, instead of `hift.pt`

Released folders have neither of the last two.
"""

import json
import math
import shutil
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig, sizes_of_tensors
from lit_moss.codec.hift import load_hift
from lit_moss.codec.settings import read_settings
from lit_moss.codec.speaker import CampPlus, SpeakerEncoder, VoiceEncoder, open_speaker
from lit_moss.codec.state_dicts import load_fitting, read_state_dict
from lit_moss.codec.trained_vocoder import TrainedVocoder
from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder, Vocoder
from lit_moss.errors import UserError
from lit_moss.files import atomic_write

FLOW, VOCODER = "flow", "vocoder"  # subfolders of a codec folder


@dataclass(frozen=True)
class DecoderParts:
    """The parts of a codec that turn codes into speech.

    Args:
        flow: Codes -> mel.
        vocoder: Mel -> wave.
        speaker: Wave -> speaker vector, or None.
        voice: Mean speaker vector (S,) of the training data, or None.
    """

    flow: Flow
    vocoder: Vocoder
    speaker: SpeakerEncoder | None
    voice: Tensor | None


def read_decoder(folder: Path, vocoder: Vocoder | None = None) -> DecoderParts:
    """Reads all decoder parts of a codec folder; uses Griffin-Lim if it has no vocoder.

    Args:
        folder: Folder of the codec.
        vocoder: Used instead of the folder's vocoder, which is then not read.

    Raises:
        UserError: if a file is damaged, does not fit the other files, or contains anything but plain tensors.
    """
    inside = folder / FLOW
    config_path = inside / "config.json"
    config = read_settings(config_path)
    flow = _read_flow(inside / "flow.pt", config, config_path)
    vocoder = vocoder or read_vocoder(folder) or GriffinLim()
    speaker_file = inside / "campplus.onnx"
    speaker = open_speaker(str(speaker_file) if speaker_file.is_file() else config.get("speaker"))
    return DecoderParts(
        flow, vocoder, speaker, _voice(config.get("voice"), flow.config.speaker_dim, config_path)
    )


def read_vocoder(folder: Path) -> Vocoder | None:
    """Reads the vocoder of a codec folder: `vocoder/`, otherwise `flow/hift.pt`, otherwise None.

    Raises:
        UserError: if a file is damaged, or the vocoder was trained on other mels.
    """
    if (folder / VOCODER).is_dir():
        return TrainedVocoder.from_pretrained(folder / VOCODER)
    hift = folder / FLOW / "hift.pt"
    return HiFTVocoder(load_hift(hift)) if hift.is_file() else None


def write_vocoder(folder: Path, vocoder: Vocoder) -> None:
    """Writes a vocoder into a codec folder and replaces the one there; Griffin-Lim has no file."""
    (folder / FLOW / "hift.pt").unlink(missing_ok=True)
    if (folder / VOCODER).is_dir():
        shutil.rmtree(folder / VOCODER)
    if isinstance(vocoder, TrainedVocoder):
        vocoder.save_pretrained(folder / VOCODER)
    elif isinstance(vocoder, HiFTVocoder):
        _save(vocoder.hift, folder / FLOW / "hift.pt")


def write_decoder(
    folder: Path, flow: Flow, vocoder: Vocoder, speaker: SpeakerEncoder | None, voice: Tensor | None
) -> None:
    """Writes the files that `read_decoder` reads."""
    codec, folder = folder, folder / FLOW
    folder.mkdir(parents=True, exist_ok=True)
    _save(flow, folder / "flow.pt")
    write_vocoder(codec, vocoder)
    if isinstance(speaker, CampPlus):
        shutil.copyfile(speaker.path, folder / "campplus.onnx")
    config = {
        "flow": asdict(flow.config),
        "speaker": speaker.name if isinstance(speaker, VoiceEncoder) else None,
        "voice": None if voice is None else voice.tolist(),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _read_flow(path: Path, settings: dict[str, Any], config_path: Path) -> Flow:
    tensors = read_state_dict(path)
    config = sizes_of_tensors(tensors)
    if "flow" in settings:  # released folders do not have it
        config = _stated_config(settings["flow"], config, config_path)
    elif config.normalise != "none":
        raise UserError(
            f"{path} was made with normalised mels, and {config_path}, which says what its network predicts, "
            "is missing: get both"
        )
    flow = Flow(config)
    report = load_fitting(flow, tensors, str(path))
    if report.kept or report.reshaped:
        raise UserError(f"{path} does not fit its own sizes: {report}")
    return flow


def _stated_config(stated: Any, shapes: FlowConfig, path: Path) -> FlowConfig:
    """Reads `flow` from `config.json`; its sizes must agree with the shapes in `flow.pt`."""
    if not isinstance(stated, dict):
        raise UserError(f"{path}: flow is a {type(stated).__name__}, expected settings by name")
    unknown = sorted(set(map(str, stated)) - {f.name for f in fields(FlowConfig)})
    if unknown:
        raise UserError(f"{path} is damaged: flow has {unknown[0]!r}, expected settings of FlowConfig")
    try:
        config = FlowConfig(**stated)
    except UserError as error:
        raise UserError(f"{path}: flow.{error}") from error
    shown = shapes.sizes_in_shapes()
    for name, size in config.sizes_in_shapes().items():
        if size != shown[name]:
            raise UserError(
                f"{path}: flow.{name} is {size}, flow.pt was made with {shown[name]}: get both again"
            )
    return config


def _voice(stated: Any, width: int, path: Path) -> Tensor | None:
    if stated is None or stated == []:
        return None
    numbers = isinstance(stated, list) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in stated
    )
    if not numbers or len(stated) != width:
        got = f"a list of {len(stated)}" if isinstance(stated, list) else repr(stated)[:40]
        raise UserError(f"{path}: voice is {got}, expected {width} finite numbers (speaker_dim) or null")
    return torch.tensor(stated, dtype=torch.float32, device="cpu")


def _save(module: nn.Module, path: Path) -> None:
    """Saves a plain state dict atomically."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    with atomic_write(path) as partial:
        torch.save(tensors, partial)
