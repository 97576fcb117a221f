"""A trained vocoder: a `VocoderNet` with streaming, and the folder in which it is saved.

    config.json         settings, properties of its input mels, record of its training
    model.safetensors   weights

Shapes: B batch, T mel frames (50 a second), M mel bands, K spectra, L samples.
"""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_moss.audio import rates
from lit_moss.audio.streams import ClosedByFlush, Stream
from lit_moss.codec.settings import read_settings
from lit_moss.codec.state_dicts import check_finite, read_state_dict
from lit_moss.codec.vocoder_net import HOP, StreamState, VocoderConfig, VocoderNet, added, window
from lit_moss.errors import UserError
from lit_moss.files import atomic_write

# Properties of the input mels, stored with the weights: other mels would give noise or another pitch.
MEL = {
    "sample_rate_hz": rates.DECODER_RATE_HZ,
    "bins": rates.DECODER_MEL_BINS,
    "fft_samples": rates.DECODER_FFT_SAMPLES,
    "hop_samples": HOP,
    "highest_hz": 8000,
    "logarithm": "natural",
}


class TrainedVocoder:
    """A `VocoderNet` as a `Vocoder`, see `lit_moss.codec.vocoder`.

    Args:
        net: The network.
        trained_on: Record of the training: `steps` and fingerprints of the data.
    """

    def __init__(self, net: VocoderNet, trained_on: dict[str, Any] | None = None) -> None:
        self.net, self.trained_on = net.eval(), trained_on or {}

    def to(self, device: str | torch.device) -> "TrainedVocoder":
        self.net.to(device)
        return self

    @property
    def lookahead_frames(self) -> int:
        """Number of mel frames after its own that a sample of a stream waits for."""
        return self.net.config.lookahead_frames + self.net.config.overlap_frames

    @torch.no_grad()
    def __call__(self, mel_BMT: Tensor) -> Tensor:
        if not mel_BMT.shape[-1]:
            return mel_BMT.new_zeros(len(mel_BMT), 0)
        return self.net(mel_BMT).clamp(-0.99, 0.99)

    def stream(self) -> Stream[Tensor, Tensor]:
        return TrainedVocoderStream(self.net)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors`."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: t.detach().cpu().contiguous() for name, t in self.net.state_dict().items()}
        with atomic_write(folder / "model.safetensors") as partial:
            save_file(tensors, partial, metadata={"format": "pt"})
        content = {"vocoder": asdict(self.net.config), "mel": MEL, "trained_on": self.trained_on}
        (folder / "config.json").write_text(json.dumps(content, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "TrainedVocoder":
        """Loads what `save_pretrained` wrote.

        Raises:
            UserError: if a file is missing or damaged, or the vocoder was trained on other mels.
        """
        folder = Path(folder)
        path = folder / "config.json"
        content = read_settings(path)
        if not isinstance(content.get("vocoder"), dict):
            raise UserError(f"{folder} holds no vocoder: expected config.json and model.safetensors of one")
        trained_on = content.get("trained_on")
        file = folder / "model.safetensors"
        net = net_of(content["vocoder"], content.get("mel"), read_state_dict(file), str(path), str(file))
        return cls(net, trained_on if isinstance(trained_on, dict) else {})


def net_of(
    settings: dict[str, Any], mel: Any, tensors: dict[str, Tensor], where: str, weights: str
) -> VocoderNet:
    """Creates a network from stored settings and weights.

    Args:
        settings: Fields of `VocoderConfig`.
        mel: Properties of its input mels, in the form of `MEL`.
        tensors: Weights.
        where: Origin of the settings, for error messages.
        weights: Origin of the weights, for error messages.

    Raises:
        UserError: if the input mels differ from `MEL`, or settings and weights do not fit.
    """
    stored = mel if isinstance(mel, dict) else {}
    for name, own in MEL.items():
        if stored.get(name) != own:
            raise UserError(
                f"{where}: the vocoder takes mels with {name} {stored.get(name)}, the decoder makes them "
                f"with {own}: give a vocoder trained here (conf/vocoder.yaml)"
            )
    unknown = sorted(set(settings) - {f.name for f in fields(VocoderConfig)})
    if unknown:
        raise UserError(f"{where} has {unknown[0]!r}, expected settings of VocoderConfig: get it again")
    try:
        config = VocoderConfig(**settings)
    except UserError as error:
        raise UserError(f"{where}: vocoder.{error}") from error
    with torch.device("meta"):  # shapes only: the sizes of a damaged file must not exhaust memory
        net = VocoderNet(config)
    own = net.state_dict()
    wrong = [name for name in own if name not in tensors or tensors[name].shape != own[name].shape]
    wrong += [name for name in tensors if name not in own]
    if wrong:
        raise UserError(f"{weights}: {wrong[0]} is not of the sizes in {where}: get both again")
    check_finite(tensors, weights)
    net.load_state_dict({name: value.float() for name, value in tensors.items()}, assign=True)
    return net.requires_grad_(True)


class TrainedVocoderStream(ClosedByFlush):
    """A `Stream` from mel (1, 80, t) to samples (1, l), equal to the offline samples up to rounding.

    Args:
        net: The network.
    """

    def __init__(self, net: VocoderNet) -> None:
        self._net, self._state = net, StreamState()
        self._total: Tensor | None = None  # (1, fft - hop): partial sums that later windows add to
        self._weight: Tensor | None = None
        self._skip = net.config.edge_samples  # samples to remove before the first one

    @torch.no_grad()
    def push(self, mel_1MT: Tensor) -> Tensor:
        """Pushes mel frames, any number; returns new samples (1, l)."""
        self._check_open()
        return self._advance(mel_1MT, last=False)

    @torch.no_grad()
    def flush(self) -> Tensor:
        """Ends the utterance and returns the remaining samples (1, l)."""
        self._close()
        parameter = self._net.norm.weight
        if not self._state.held:
            return parameter.new_zeros(1, 0)
        new_1L = self._advance(parameter.new_zeros(1, rates.DECODER_MEL_BINS, 0), last=True)
        if self._total is None or self._weight is None:
            return new_1L
        rest = slice(self._skip, self._net.config.edge_samples)
        return torch.cat([new_1L, (self._total[:, rest] / self._weight[:, rest]).clamp(-0.99, 0.99)], dim=1)

    def _advance(self, mel_1MT: Tensor, last: bool) -> Tensor:
        config = self._net.config
        windows_1LK = self._net.windows_step(mel_1MT, self._state, last)
        spectra = windows_1LK.shape[-1]
        if not spectra:
            return windows_1LK.new_zeros(1, 0)
        squares_1LK = window(config, windows_1LK).square()[None, :, None].expand(1, -1, spectra)
        total_1L, weight_1L = added(windows_1LK, config), added(squares_1LK, config)
        if self._total is not None and self._weight is not None:
            held = self._total.shape[1]
            total_1L[:, :held] += self._total
            weight_1L[:, :held] += self._weight
        known = config.hop_samples * spectra
        self._total, self._weight = total_1L[:, known:].clone(), weight_1L[:, known:].clone()
        first = min(self._skip, known)
        self._skip -= first
        return (total_1L[:, first:known] / weight_1L[:, first:known]).clamp(-0.99, 0.99)
