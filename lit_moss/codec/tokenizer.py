"""`SpeechTokenizer`: waveform -> codes, whole or as it comes, and the folder it is saved in.

Offline and streamed codes are the same codes, 100 % of them. Causality alone does not give that: a code is an
argmin, and float32 sums taken in another order differ in the last bits, which flips about one code in 10^4
where two codebook rows are nearly equally far. So a code whose margin is within reach of rounding is decided
again in float64, by both paths (`SpeechTokenizer.exact`).

Shapes: B batch, T samples at 16 kHz, M mel bins, N codes, D width, K codebook entries.
"""

import copy
import json
import pkgutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.audio import rates
from lit_moss.audio.features import CausalLogMel, resample, whisper_log_mel
from lit_moss.audio.waves import check_wave
from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, EncoderState
from lit_moss.codec.pretrained import load_encoder
from lit_moss.errors import UserError

# A code is decided again in float64 when moving the vector by this share of its length could change it.
# Measured: float32 moves pooled vectors by at most 4e-6 of their length between chunked and whole runs
# (LJ Speech, 435 clips).
AMBIGUOUS = 4e-5
ROUNDING = 2e-6  # of float32 sums of squares, as a share of the largest term; 2^-23 is 1.2e-7
# Tokenizers that are made on first use -> the function that gives their folder. It stands above this package,
# so it is looked up by name.
MADE = {"embedded:whisper-tiny-kmeans": "lit_moss.prepare.kmeans_codec:kmeans_codec"}


class SpeechTokenizer:
    """Speech -> one of K codes every 80 ms.

    Args:
        encoder: The network; moved by `.to(device)`, kept in float32.
        exact: Decide near-ties in float64, so that streamed and offline codes never differ. Off, about one
            code in 10^4 may; a stream then never pauses to look back.
    """

    def __init__(self, encoder: CausalEncoder, exact: bool = True) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.config = encoder.config
        self.exact = exact
        self._double: CausalEncoder | None = None

    # --- folders --------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name: str | Path, exact: bool = True, log_mel: str | None = None
    ) -> "SpeechTokenizer":
        """From a folder in the released layout, a hub id, or a checkpoint of a tokenizer run.

        Args:
            name: Folder with `config.json` and `model.safetensors`, `owner/name` of the hub, a `.ckpt`
                file, or `embedded:whisper-tiny-kmeans`.
            exact: See the class.
            log_mel: `causal` or `whisper`; None takes what `config.json` says, and `causal` where it says
                nothing: codes must not depend on whether speech came whole or live. `whisper` follows the
                released extractor (within 2e-6), offline only.

        Raises:
            UserError: if there are no weights, or no codebook in them.
        """
        path = pkgutil.resolve_name(MADE[str(name)])() if str(name) in MADE else resolve(str(name))
        if path.is_file():
            encoder = _from_checkpoint(path)
        else:
            encoder, report = load_encoder(str(path))
            if "codebook.weight" not in report.loaded:
                raise UserError(
                    f"{name} has no codebook of {encoder.config.quantize_vocab_size} codes of "
                    f"{encoder.config.d_model}: expected a trained tokenizer ({report})"
                )
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
        (folder / "config.json").write_text(json.dumps(self.config.to_official(), indent=2) + "\n")

    def to(self, device: str | torch.device) -> "SpeechTokenizer":
        """Moves the network; returns self."""
        self.encoder.to(device)
        self._double = None
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return self.encoder.codebook.weight.device

    @property
    def double(self) -> CausalEncoder:
        """The same network in float64, made on first use."""
        if self._double is None:
            # A copy: building a new network would draw from the caller's random numbers.
            self._double = copy.deepcopy(self.encoder).double()
        return self._double

    # --- offline --------------------------------------------------------------------------------------------

    @overload
    def encode(self, wave: Tensor, sample_rate_hz: int, batch_sec: float = ...) -> Tensor: ...
    @overload
    def encode(self, wave: Sequence[Tensor], sample_rate_hz: int, batch_sec: float = ...) -> list[Tensor]: ...
    @torch.no_grad()
    def encode(
        self, wave: Tensor | Sequence[Tensor], sample_rate_hz: int, batch_sec: float = 60.0
    ) -> Tensor | list[Tensor]:
        """Codes of whole recordings of any length.

        Args:
            wave: Samples (T,) in [-1, 1], or a list of such; also (C, T), of which channel 0 is taken.
                Tensors or numpy arrays.
            sample_rate_hz: Rate of all of them.
            batch_sec: Audio computed at once, padding included; bounds the memory.

        Returns:
            int64 (n,) with n = ceil(samples at 16 kHz / 1280), or a list of them.

        Raises:
            ValueError: on what is no recording, see `check_wave`.
        """
        alone = isinstance(wave, Tensor | np.ndarray)
        waves = [wave] if alone else list(wave)
        limit = rates.segment_samples(self.config.max_source_positions)
        pieces: list[tuple[int, Tensor]] = []
        for i, one in enumerate(waves):
            mono = resample(check_wave(one), sample_rate_hz, rates.TOKENIZER_RATE_HZ)
            pieces += [(i, segment) for segment in mono.split(limit)] if len(mono) else []
        codes: list[Tensor | None] = [None] * len(pieces)
        for group in _batches(
            [len(segment) for _, segment in pieces], round(batch_sec * rates.TOKENIZER_RATE_HZ)
        ):
            for place, found in zip(group, self._encode_batch([pieces[p][1] for p in group]), strict=True):
                codes[place] = found
        joined = [
            torch.cat(
                [c for (owner, _), c in zip(pieces, codes, strict=True) if owner == i and c is not None]
            )
            if any(owner == i for owner, _ in pieces)
            else torch.zeros(0, dtype=torch.long)
            for i in range(len(waves))
        ]
        return joined[0] if alone else joined

    def _encode_batch(self, segments: list[Tensor]) -> list[Tensor]:
        lengths = [rates.codes_of_samples(len(s)) for s in segments]
        wave_BT = torch.zeros(len(segments), max(lengths) * rates.SAMPLES_PER_CODE, device=self.device)
        for row, segment in zip(wave_BT, segments, strict=True):
            row[: len(segment)] = segment
        codes_BN, ambiguous_BN = self._decide(self.frames(self.encoder, wave_BT))
        if self.exact:
            for i, n in enumerate(lengths):
                doubtful = ambiguous_BN[i, :n].nonzero()[:, 0]
                if len(doubtful):
                    # Causal, so nothing after the last doubtful code is needed.
                    upto = (int(doubtful[-1]) + 1) * rates.SAMPLES_PER_CODE
                    if self.config.log_mel == "whisper":
                        upto = wave_BT.shape[1]
                    pooled = self.frames(self.double, wave_BT[i : i + 1, :upto].double())
                    codes_BN[i, doubtful] = self.double.quantize(pooled)[0, doubtful]
        return [codes[:n].cpu() for codes, n in zip(codes_BN, lengths, strict=True)]

    def frames(self, encoder: CausalEncoder, wave_BT: Tensor) -> Tensor:
        """Pooled frames (B, N, D) before quantization, of whole codes of samples (B, T) at 16 kHz."""
        bins = self.config.num_mel_bins
        mel = (
            CausalLogMel(bins)(wave_BT) if self.config.log_mel == "causal" else whisper_log_mel(wave_BT, bins)
        )
        return encoder.pool(encoder(mel))

    def _decide(self, pooled_BND: Tensor) -> tuple[Tensor, Tensor]:
        """Codes, and whether rounding could have chosen another: int64 and bool (B, N).

        Moving x by e changes its distance to any code by at most e. So code 1 stays nearest while
        (d2 - d1) > 2 e, that is d2^2 - d1^2 > 2 e (d1 + d2), whatever other codes lie near.
        Here e = AMBIGUOUS |x|. On top comes the rounding of the squared distances themselves, which are sums
        of terms as large as (|x| + |c|)^2.
        """
        codebook_KD = self.encoder.codebook.weight
        longest = codebook_KD.norm(dim=1).max()
        codes_S, ambiguous_S = [], []
        for x in pooled_BND.flatten(0, 1).split(4096):
            two = quantizer.squared_distances(x, codebook_KD).topk(2, dim=1, largest=False)
            squared = two.values.double().clamp(min=0.0)
            norm = x.norm(dim=1)
            margin = squared[:, 1] - squared[:, 0]
            reach = 2.0 * AMBIGUOUS * norm * squared.sqrt().sum(dim=1) + ROUNDING * (norm + longest).square()
            ambiguous_S.append(margin <= reach)
            codes_S.append(two.indices[:, 0])
        shape = pooled_BND.shape[:-1]
        return torch.cat(codes_S).view(shape), torch.cat(ambiguous_S).view(shape)

    # --- streaming ------------------------------------------------------------------------------------------

    def stream(self) -> "TokenizerStream":
        """A stream of one recording at 16 kHz.

        `push(samples)` gives the codes that have become known, `flush()` the rest.

        Raises:
            UserError: with `log_mel: whisper`, which needs the whole segment.
        """
        if self.config.log_mel != "causal":
            raise UserError(
                "this tokenizer is set to log_mel 'whisper', which needs whole segments: streaming takes "
                "log_mel 'causal' (SpeechTokenizer.from_pretrained(…, log_mel='causal'))"
            )
        return TokenizerStream(self)


class TokenizerStream:
    """Samples at 16 kHz as they come -> each code as soon as its 80 ms are complete.

    Every 30 s a new segment begins with a fresh state, as offline. Log-mel by `CausalLogMel`. Memory is
    bounded by one segment: keys and values of the attention, and (for `exact`) the samples since float64 was
    last needed.
    """

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        self._tokenizer = tokenizer
        self._waiting = torch.zeros(0)
        self._limit = rates.segment_samples(tokenizer.config.max_source_positions)
        self._closed = False
        self._new_segment()

    def _new_segment(self) -> None:
        bins = self._tokenizer.config.num_mel_bins
        self._mel, self._state = CausalLogMel(bins), EncoderState()
        self._mel64, self._state64 = CausalLogMel(bins), EncoderState()
        self._behind64: list[Tensor] = []  # samples that the float64 state has not seen yet
        self._done = 0  # samples of this segment already turned into codes

    @torch.no_grad()
    def push(self, samples: Tensor) -> Tensor:
        """Next samples (T,) at 16 kHz, any number -> new codes, int64 (n,).

        Raises:
            ValueError: on what is no recording, see `check_wave`.
        """
        if self._closed:
            raise RuntimeError("this stream was flushed: make a new one")
        self._waiting = torch.cat([self._waiting, check_wave(samples)])
        found = []
        while len(self._waiting) >= rates.SAMPLES_PER_CODE:
            take = min(
                len(self._waiting) // rates.SAMPLES_PER_CODE * rates.SAMPLES_PER_CODE,
                self._limit - self._done,
            )
            found.append(self._advance(self._waiting[:take]))
            self._waiting = self._waiting[take:]
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long)

    def flush(self) -> Tensor:
        """Ends the recording; a begun code is filled up with zeros. The last codes, int64 (0 or 1,)."""
        short = -len(self._waiting) % rates.SAMPLES_PER_CODE
        last = self.push(torch.zeros(short)) if short else torch.zeros(0, dtype=torch.long)
        self._closed = True
        return last

    def _advance(self, samples: Tensor) -> Tensor:
        tokenizer = self._tokenizer
        wave_BT = samples[None].to(tokenizer.device)
        pooled = tokenizer.encoder.pool(tokenizer.encoder(self._mel(wave_BT), self._state))
        codes_BN, ambiguous_BN = tokenizer._decide(pooled)
        if tokenizer.exact:
            self._behind64.append(wave_BT)
            doubtful = ambiguous_BN[0].nonzero()[:, 0]
            if len(doubtful):
                behind = torch.cat(self._behind64, dim=1).double()
                self._behind64 = []
                double = tokenizer.double
                pooled64 = double.pool(double(self._mel64(behind), self._state64))
                codes64 = double.quantize(pooled64)[0, -codes_BN.shape[1] :]
                codes_BN[0, doubtful] = codes64[doubtful]
        self._done += len(samples)
        if self._done == self._limit:
            self._new_segment()
        return codes_BN[0].cpu()


def _batches(lengths: list[int], budget: int) -> list[list[int]]:
    """Places grouped by similar length, each group's size times its longest within the budget."""
    groups: list[list[int]] = []
    for place in sorted(range(len(lengths)), key=lambda p: lengths[p]):
        if not groups or (len(groups[-1]) + 1) * lengths[place] > budget:
            groups.append([])
        groups[-1].append(place)
    return groups


def _from_checkpoint(path: Path) -> CausalEncoder:
    """Encoder of a Lightning checkpoint of `CodecEncoder`; data only, nothing is unpickled."""
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        raise UserError(
            f"{path} is no readable checkpoint ({type(error).__name__}): expected a .ckpt file of "
            "a tokenizer run, or a folder"
        ) from error
    if "codec" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a tokenizer run: expected one made by conf/codec_encoder.yaml"
        )
    if not checkpoint["codec"]["codebook_ready"]:
        raise UserError(
            f"{path} was written before quantization began and has no codebook yet: take a later one"
        )
    encoder = CausalEncoder(EncoderConfig.from_official(checkpoint["codec"]["config"]))
    prefix = "encoder."
    encoder.load_state_dict(
        {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    )
    return encoder
