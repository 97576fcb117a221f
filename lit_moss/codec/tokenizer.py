"""`SpeechTokenizer`: encodes waveforms to codes, as a whole or as a stream, and saves and loads folders.

Codes of whole recordings and of streams are always identical; causality alone does not guarantee that, see
`nearest`.

Shapes: B batch, T samples at 16 kHz, M mel bins, F mel frames, N codes, D width.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.audio import rates
from lit_moss.audio.features import CausalLogMel, resample, whisper_log_mel
from lit_moss.audio.precision import full_precision
from lit_moss.audio.streams import Stream
from lit_moss.audio.waves import check_wave
from lit_moss.codec.encoder import CausalEncoder
from lit_moss.codec.nearest import Float64Encoder, check_codes_known, decide
from lit_moss.codec.pretrained import encoder_of_checkpoint, load_encoder
from lit_moss.codec.tokenizer_stream import TokenizerStream
from lit_moss.errors import UserError
from lit_moss.files import apply_umask


class SpeechTokenizer:
    """Encodes speech as one of K codes per 80 ms.

    Args:
        encoder: The network; it is moved by `.to(device)` and stays in float32.
        exact: Compute codes in float64, so that codes of streams and of whole recordings never differ. Needs
            a float64 copy of the network of twice its size (2.6 GB for the released tokenizer), made on first
            use, and a stream reads twice as much memory. False: about one code in 10^4 differs between the
            two (1 of 36,294 measured).
    """

    def __init__(self, encoder: CausalEncoder, exact: bool = True) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.config = encoder.config
        self.exact = exact
        self.float64 = Float64Encoder(encoder)

    # --- folders --------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name: str | Path, exact: bool = True, log_mel: str | None = None
    ) -> "SpeechTokenizer":
        """Loads a folder in the released layout, a hub id, or a checkpoint of a tokenizer run.

        Run names are opened by `lit_moss.hub`.

        Args:
            name: Folder with `config.json` and `model.safetensors`, hub id `owner/name`, `.ckpt` file, or
                `embedded:whisper-tiny-kmeans` (after `lit_moss.hub` is imported, which makes it).
            exact: Compute codes in float64, see the class.
            log_mel: `causal` or `whisper`. None: as stated in `config.json`, or `whisper` if nothing is
                stated, as in released folders: the features they were trained with, which do not allow
                streaming (`stream` raises an error). `causal` enables streaming for such a tokenizer, but
                changes 15 % of its codes (14.8 % with the k-means tokenizer on 14 clips).

        Raises:
            UserError: if there are no weights or no codebook, a value is not finite, or the settings are ones
                for which the released network computes other codes.
        """
        path = resolve(str(name))
        if path.is_file():
            encoder = encoder_of_checkpoint(path)
        else:
            encoder, _ = load_encoder(str(path), trained=True, unstated_log_mel="whisper")
        if log_mel is not None:
            encoder.config = replace(encoder.config, log_mel=log_mel)
        return cls(encoder, exact)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` and `model.safetensors` in the released layout."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            f"encoder.{key}": value.contiguous().cpu() for key, value in self.encoder.state_dict().items()
        }
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        apply_umask([folder / "model.safetensors"])
        (folder / "config.json").write_text(json.dumps(self.config.to_official(), indent=2) + "\n")

    def to(self, device: str | torch.device) -> "SpeechTokenizer":
        """Moves the network; returns self."""
        self.encoder.to(device)
        self.float64 = Float64Encoder(self.encoder)
        return self

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.encoder.codebook.weight.device

    # --- offline --------------------------------------------------------------------------------------------

    @overload
    def encode(self, wave: Tensor, sample_rate_hz: int, batch_sec: float = ...) -> Tensor: ...
    @overload
    def encode(self, wave: Sequence[Tensor], sample_rate_hz: int, batch_sec: float = ...) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(
        self, wave: Tensor | Sequence[Tensor], sample_rate_hz: int, batch_sec: float = 60.0
    ) -> Tensor | list[Tensor]:
        """Encodes whole recordings of any length.

        Args:
            wave: Samples (T,) in [-1, 1], or a list of such; also (C, T), of which channel 0 is used. Tensors
                or numpy arrays.
            sample_rate_hz: Sample rate of all recordings, in Hz.
            batch_sec: Audio to compute at once, in seconds, including padding; limits the memory.

        Returns:
            int64 (n,) with n = ceil(samples at 16 kHz / 1280), or a list of such.

        Raises:
            ValueError: if the samples are invalid, see `check_wave`.
        """
        is_single = isinstance(wave, Tensor | np.ndarray)
        waves = [wave] if is_single else list(wave)
        limit = rates.segment_samples(self.config.max_source_positions)
        segments: list[Tensor] = []
        owners: list[int] = []  # index of the recording that each segment belongs to
        for i, recording in enumerate(waves):
            mono = resample(check_wave(recording), sample_rate_hz, rates.TOKENIZER_RATE_HZ)
            parts = mono.split(limit) if len(mono) else ()
            segments += parts
            owners += [i] * len(parts)
        codes: list[list[Tensor]] = [[torch.zeros(0, dtype=torch.long, device="cpu")] for _ in waves]
        for owner, own in zip(owners, self._encode_segments(segments, batch_sec), strict=True):
            codes[owner].append(own)
        joined = [torch.cat(parts) for parts in codes]
        return joined[0] if is_single else joined

    def _encode_segments(self, segments: list[Tensor], batch_sec: float) -> list[Tensor]:
        """Codes of segments at 16 kHz, in order; computed in batches of similar length."""
        codes: dict[int, Tensor] = {}
        budget = round(batch_sec * rates.TOKENIZER_RATE_HZ)
        for group in _batches([len(segment) for segment in segments], budget):
            batch = self._encode_batch([segments[place] for place in group])
            codes |= dict(zip(group, batch, strict=True))
        return [codes[place] for place in range(len(segments))]

    def _encode_batch(self, segments: list[Tensor]) -> list[Tensor]:
        lengths = [rates.codes_of_samples(len(s)) for s in segments]
        samples = max(lengths) * rates.SAMPLES_PER_CODE
        wave_BT = torch.zeros(len(segments), samples, dtype=torch.float32, device="cpu")
        for row, segment in zip(wave_BT, segments, strict=True):
            row[: len(segment)] = segment
        pooled_BND = self.frames(self.encoder, wave_BT.to(self.device), lengths)
        # A single transfer from the device.
        codes_BN, ambiguous_BN = torch.stack(decide(pooled_BND, self.encoder.codebook.weight)).cpu()
        if self.exact:
            for i, n in enumerate(lengths):
                doubtful = ambiguous_BN[i, :n].bool().nonzero()[:, 0]
                if len(doubtful):
                    # Causal: nothing after the last ambiguous code is needed.
                    upto = n if self.config.log_mel == "whisper" else int(doubtful[-1]) + 1
                    wave_1T = wave_BT[i : i + 1, : upto * rates.SAMPLES_PER_CODE]
                    wave_1T = wave_1T.to(self.float64.device, torch.float64)
                    pooled_1ND = self.frames(self.float64.network, wave_1T)
                    codes_BN[i, doubtful] = self.float64.nearest(pooled_1ND).cpu()[0, doubtful]
        return [check_codes_known(codes[:n]) for codes, n in zip(codes_BN, lengths, strict=True)]

    def frames(self, encoder: CausalEncoder, wave_BT: Tensor, codes: Sequence[int] | None = None) -> Tensor:
        """Pooled frames (B, N, D) before quantization, for the complete codes of samples (B, T) at 16 kHz.

        `codes` holds the items' own lengths: Whisper's log-mel looks ahead beyond them, and an item's codes
        must not depend on the batch.
        """
        bins = self.config.num_mel_bins
        with full_precision(wave_BT.device):
            if self.config.log_mel == "causal":
                mel_BMF = CausalLogMel(bins)(wave_BT)
            else:
                own = codes or [wave_BT.shape[1] // rates.SAMPLES_PER_CODE] * len(wave_BT)
                mels = [
                    whisper_log_mel(wave_T[None, : n * rates.SAMPLES_PER_CODE], bins)[0]
                    for wave_T, n in zip(wave_BT, own, strict=True)
                ]
                longest = wave_BT.shape[1] // rates.WHISPER_HOP_SAMPLES
                mel_BMF = torch.stack([F.pad(mel, (0, longest - mel.shape[-1])) for mel in mels])
            return encoder.pool(encoder(mel_BMF))

    # --- streaming ------------------------------------------------------------------------------------------

    def stream(self) -> Stream[Tensor, Tensor]:
        """A stream for one recording at 16 kHz, see `TokenizerStream`.

        `push(samples)` returns the codes that are complete, `flush()` the remaining ones.

        Raises:
            UserError: with `log_mel: whisper`, which needs the whole segment. Causal features would give
                other codes than `encode`, so they must be requested explicitly.
        """
        if self.config.log_mel != "causal":
            raise UserError(
                "this tokenizer's log_mel is 'whisper' (also where its config.json states none), which needs "
                "whole segments: to stream, open it with log_mel='causal' (SpeechTokenizer.from_pretrained, "
                "or --log-mel causal). Some 15 % of its codes then differ"
            )
        return TokenizerStream(self.encoder, self.float64 if self.exact else None)


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Groups indices by similar length; each group's size times its maximum length is within the budget."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda p: lengths[p]):
        if not groups or (len(groups[-1]) + 1) * lengths[place] > budget:
            groups.append([])
        groups[-1].append(place)
    return groups
