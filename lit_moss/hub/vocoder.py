"""Opens vocoders by name; these names are also the values of `--vocoder`:

    griffin-lim                      phases by iteration, no weights
    runs/NAME, a run, a checkpoint   a run of conf/vocoder.yaml (the best checkpoint of the newest run)
    a folder                         a vocoder folder (config.json, model.safetensors), or a codec in the
                                     released layout, or a model with a codec: vocoder/, else flow/hift.pt
    a file hift.pt                   released weights of HiFT
    a hub id                         such a codec on the hub

A codec folder has one vocoder: `vocoder/`, otherwise `flow/hift.pt`, otherwise Griffin-Lim.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.codec.trained_vocoder import TrainedVocoder
    from lit_moss.codec.vocoder import Vocoder

GRIFFIN_LIM = "griffin-lim"
_EXPECTED = (
    "expected griffin-lim, a run or checkpoint of conf/vocoder.yaml, a folder that `export` wrote, a codec "
    "in the released layout, or a file hift.pt"
)


def open_vocoder(name: str) -> "Vocoder":
    """Opens a vocoder by name, see the module docstring.

    Raises:
        UserError: if the name does not exist, means something else, or is a vocoder for other mels.
    """
    from lit_moss.assets import resolve
    from lit_moss.codec.codec_folder import read_vocoder
    from lit_moss.codec.hift import load_hift
    from lit_moss.codec.trained_vocoder import TrainedVocoder
    from lit_moss.codec.vocoder import GriffinLim, HiFTVocoder
    from lit_moss.hub.model_folder import CODEC
    from lit_moss.runs.checkpoints import checkpoint_of

    if name == GRIFFIN_LIM:
        return GriffinLim()
    if Path(name).is_file() and Path(name).suffix == ".pt":
        return HiFTVocoder(load_hift(Path(name)))
    checkpoint = checkpoint_of(name, "best")
    if checkpoint is not None:
        return vocoder_of_checkpoint(checkpoint)
    try:
        folder = resolve(name)
    except UserError as error:
        raise UserError(f"no vocoder {name} ({error}): {_EXPECTED}") from error
    for place in (folder, folder / CODEC):
        if (vocoder := read_vocoder(place)) is not None:
            return vocoder
    if (folder / "model.safetensors").is_file() and not (folder / "flow").is_dir():
        return TrainedVocoder.from_pretrained(folder)
    raise UserError(f"{name} has no vocoder: {_EXPECTED}")


def vocoder_of_checkpoint(path: Path) -> "TrainedVocoder":
    """Opens the averaged vocoder of a `lit_moss.modules.Vocoder` checkpoint; reads data only.

    Raises:
        UserError: if the checkpoint belongs to another model, or its mels differ from lit_moss'.
    """
    from lit_moss.codec.trained_vocoder import TrainedVocoder, net_of
    from lit_moss.runs.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(path, mmap=True)
    stored = checkpoint.get("vocoder")
    if stored is None:
        raise UserError(f"{path} is no checkpoint of a vocoder run: expected one made by conf/vocoder.yaml")
    prefix = "net."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    net = net_of(stored["net"], stored["mel"], weights, str(path), str(path))
    return TrainedVocoder(net, stored["trained_on"])
