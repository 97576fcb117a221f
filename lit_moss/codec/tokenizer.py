"""`SpeechTokenizer`: waveform -> codes, whole or as it comes, and the folder it is saved in.

Offline and streamed codes are the same codes, 100 % of them. Causality alone does not give that: a code is an
argmin, and float32 sums taken in another order differ in the last bits, which flips about one code in 10^4
where two codebook rows are nearly equally far. So all codes are those of float64 (`SpeechTokenizer.exact`).
Offline, float32 decides where its rounding cannot change the nearest code, and float64 the others (4 in
1000). A stream computes in float64 alone, so that every push costs the same: to look back at a near-tie took
up to 30 s of speech in one push.

Shapes: B batch, T samples at 16 kHz, M mel bins, N codes, D width, K codebook entries.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from lit_moss.assets import resolve
from lit_moss.audio import rates
from lit_moss.audio.features import CausalLogMel, resample, whisper_log_mel
from lit_moss.audio.precision import full_precision
from lit_moss.audio.waves import check_wave
from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, EncoderState
from lit_moss.codec.pretrained import load_encoder
from lit_moss.codec.state_dicts import check_finite
from lit_moss.errors import UserError

# A code is decided again in float64 when moving the vector by this share of its length could change it.
# Measured: float32 moves pooled vectors by at most 4e-6 of their length between chunked and whole runs
# (LJ Speech, 435 clips), and by at most 1.1e-5 from float64 (LibriSpeech, 5982 codes; 99 % below 1.5e-6).
AMBIGUOUS = 4e-5
ROUNDING = 2e-6  # of float32 sums of squares, as a share of the largest term; 2^-23 is 1.2e-7
TIE = 1e-12  # the same of float64: equal rows, whose products may differ in the last bit, are one tie


class SpeechTokenizer:
    """Speech -> one of K codes every 80 ms.

    Args:
        encoder: The network; moved by `.to(device)`, kept in float32.
        exact: Codes as float64 gives them, so that streamed and offline codes never differ. It keeps a copy
            of the network of twice its size (2.6 GB at the released one), made on first use, and a stream
            moves twice the numbers. Off, about one code in 10^4 differs between streams and the whole (1 of
            36,294 measured).
    """

    def __init__(self, encoder: CausalEncoder, exact: bool = True) -> None:
        self.encoder = encoder.eval().requires_grad_(False)
        self.config = encoder.config
        self.exact = exact
        self._double: CausalEncoder | None = None
        self._squares_K: Tensor | None = None  # of the float64 codebook's rows

    # --- folders --------------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls, name: str | Path, exact: bool = True, log_mel: str | None = None
    ) -> "SpeechTokenizer":
        """From a folder in the released layout, a hub id, or a checkpoint of a tokenizer run.

        Args:
            name: Folder with `config.json` and `model.safetensors`, `owner/name` of the hub, a `.ckpt`
                file, or `embedded:whisper-tiny-kmeans` (once `lit_moss.hub` is imported, which makes it).
            exact: See the class.
            log_mel: `causal` or `whisper`; None takes what `config.json` says, and `whisper` where it says
                nothing, as in released folders: the features they were trained on, offline only (`stream`
                refuses). `causal` makes such a tokenizer stream; 15 % of its codes are then others than the
                released ones (14.8 % with the k-means codec on 14 clips).

        Raises:
            UserError: if there are no weights, no codebook in them, numbers that are not finite, or settings
                under which the released network computes other codes.
        """
        path = resolve(str(name))
        if path.is_file():
            encoder = _from_checkpoint(path)
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
        (folder / "config.json").write_text(json.dumps(self.config.to_official(), indent=2) + "\n")

    def to(self, device: str | torch.device) -> "SpeechTokenizer":
        """Moves the network; returns self."""
        self.encoder.to(device)
        self._double = self._squares_K = None
        return self

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return _device(self.encoder)

    @property
    def double(self) -> CausalEncoder:
        """The same network in float64, made on first use; on the CPU if the device has no float64 (MPS)."""
        if self._double is None:
            with torch.device("meta"):  # no memory, and no draw from the caller's random numbers
                double = CausalEncoder(self.config)
            # Averages that only training needs.
            del double.ema_count, double.ema_weight
            device = _float64_device(self.device)
            tensors = {
                name: self.encoder.get_parameter(name).detach().to(device=device, dtype=torch.float64)
                for name, _ in double.named_parameters()
            }
            double.load_state_dict(tensors, assign=True)
            self._double = double.eval().requires_grad_(False)
        return self._double

    @torch.no_grad()
    def nearest_float64(self, pooled_BND: Tensor) -> Tensor:
        """Nearest codebook row, the lowest of equal ones, -1 where a number is not finite: int64 (B, N)."""
        codebook_KD = self.double.codebook.weight
        if self._squares_K is None:  # two passes over the codebook that a live push need not repeat
            self._squares_K = codebook_KD.square().sum(dim=1)
        longest, codes_S = self._squares_K.max().sqrt(), []
        for x in pooled_BND.flatten(0, 1).split(1024):
            # Squared distances but for |x|^2, the same for all rows.
            distance_SK = torch.addmm(self._squares_K, x, codebook_KD.T, alpha=-2.0)
            tie_S1 = TIE * (x.norm(dim=1, keepdim=True) + longest).square()
            within = distance_SK <= distance_SK.amin(dim=1, keepdim=True) + tie_S1
            codes_S.append(torch.where(tie_S1[:, 0].isfinite(), within.to(torch.uint8).argmax(dim=1), -1))
        return torch.cat(codes_S).view(pooled_BND.shape[:-1])

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
            else torch.zeros(0, dtype=torch.long, device="cpu")
            for i in range(len(waves))
        ]
        return joined[0] if alone else joined

    def _encode_batch(self, segments: list[Tensor]) -> list[Tensor]:
        lengths = [rates.codes_of_samples(len(s)) for s in segments]
        samples = max(lengths) * rates.SAMPLES_PER_CODE
        wave_BT = torch.zeros(len(segments), samples, dtype=torch.float32, device="cpu")
        for row, segment in zip(wave_BT, segments, strict=True):
            row[: len(segment)] = segment
        found = self._decide(self.frames(self.encoder, wave_BT.to(self.device), lengths)).cpu()
        codes_BN, ambiguous_BN = found[0], found[1].bool()
        if self.exact:
            for i, n in enumerate(lengths):
                doubtful = ambiguous_BN[i, :n].nonzero()[:, 0]
                if len(doubtful):
                    # Causal, so nothing after the last doubtful code is needed.
                    upto = n if self.config.log_mel == "whisper" else int(doubtful[-1]) + 1
                    wave_1T = wave_BT[i : i + 1, : upto * rates.SAMPLES_PER_CODE]
                    pooled = self.frames(self.double, wave_1T.to(_device(self.double), torch.float64))
                    codes_BN[i, doubtful] = self.nearest_float64(pooled).cpu()[0, doubtful]
        return [known(codes[:n]) for codes, n in zip(codes_BN, lengths, strict=True)]

    def frames(self, encoder: CausalEncoder, wave_BT: Tensor, codes: Sequence[int] | None = None) -> Tensor:
        """Pooled frames (B, N, D) before quantization, of whole codes of samples (B, T) at 16 kHz.

        `codes` are the items' own lengths: Whisper's log-mel looks beyond them, and an item's codes must not
        depend on what it is batched with.
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

    def _decide(self, pooled_BND: Tensor) -> Tensor:
        """Codes, and whether rounding could have chosen another (0 or 1): int64 (2, B, N).

        Moving x by e changes its distance to any code by at most e. So code 1 stays nearest while
        (d2 - d1) > 2 e, that is d2^2 - d1^2 > 2 e (d1 + d2), whatever other codes lie near.
        Here e = AMBIGUOUS |x|. On top comes the rounding of the squared distances themselves, which are sums
        of terms as large as (|x| + |c|)^2. A code is -1 where a number is not finite, see `known`.
        """
        codebook_KD = self.encoder.codebook.weight
        with full_precision(pooled_BND.device):
            longest = codebook_KD.norm(dim=1).max()
            codes_S, ambiguous_S = [], []
            for x in pooled_BND.flatten(0, 1).split(4096):
                two = quantizer.squared_distances(x, codebook_KD).topk(2, dim=1, largest=False)
                squared = two.values.clamp(min=0.0)
                norm = x.norm(dim=1)
                margin = two.values[:, 1] - two.values[:, 0]
                moved = 2.0 * AMBIGUOUS * norm * squared.sqrt().sum(dim=1)
                reach = moved + ROUNDING * (norm + longest).square()
                finite = reach.isfinite()
                ambiguous_S.append(((margin <= reach) & finite).long())
                codes_S.append(torch.where(finite, two.indices[:, 0], -1))
        return torch.stack([torch.cat(codes_S), torch.cat(ambiguous_S)]).view(2, *pooled_BND.shape[:-1])

    # --- streaming ------------------------------------------------------------------------------------------

    def stream(self) -> "TokenizerStream":
        """A stream of one recording at 16 kHz.

        `push(samples)` gives the codes that have become known, `flush()` the rest.

        Raises:
            UserError: with `log_mel: whisper`, which needs the whole segment. Other features would give other
                codes than `encode`, so they are taken on request alone.
        """
        if self.config.log_mel != "causal":
            raise UserError(
                "this tokenizer's log_mel is 'whisper' (also where its config.json states none), which needs "
                "whole segments: to stream, open it with log_mel='causal' (SpeechTokenizer.from_pretrained, "
                "or --log-mel causal). Some 15 % of its codes are then others"
            )
        return TokenizerStream(self)


class TokenizerStream:
    """Samples at 16 kHz as they come -> each code as soon as its 80 ms are complete.

    Every 30 s a new segment begins with a fresh state, as offline. Log-mel by `CausalLogMel`. Memory is
    bounded by one segment: keys and values of the attention. For `exact` all is float64, so a push never
    looks back; it transfers once to the host, its codes.
    """

    def __init__(self, tokenizer: SpeechTokenizer) -> None:
        self._tokenizer = tokenizer
        # Here and not in the first push: the float64 copy takes a second at the released size.
        self._encoder = tokenizer.double if tokenizer.exact else tokenizer.encoder
        self._waiting = torch.zeros(0, dtype=torch.float32, device="cpu")
        self._limit = rates.segment_samples(tokenizer.config.max_source_positions)
        self._closed = False
        self._state = EncoderState()
        self._new_segment()

    def _new_segment(self) -> None:
        self._mel = CausalLogMel(self._tokenizer.config.num_mel_bins)
        self._state.restart()
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
        return torch.cat(found) if found else torch.zeros(0, dtype=torch.long, device="cpu")

    def flush(self) -> Tensor:
        """Ends the recording; a begun code is filled up with zeros. The last codes, int64 (0 or 1,)."""
        short = -len(self._waiting) % rates.SAMPLES_PER_CODE
        last = self.push(torch.zeros(short, device="cpu"))
        self._closed = True
        return last

    def _advance(self, samples: Tensor) -> Tensor:
        encoder = self._encoder
        wave_BT = samples[None].to(encoder.codebook.weight)
        with full_precision(wave_BT.device):
            pooled = encoder.pool(encoder(self._mel(wave_BT), self._state))
            if self._tokenizer.exact:
                codes_BN = self._tokenizer.nearest_float64(pooled)
            else:
                codes_BN = self._tokenizer._decide(pooled)[0]
        self._done += len(samples)
        if self._done == self._limit:
            self._new_segment()
        return known(codes_BN[0].cpu())


def known(codes: Tensor) -> Tensor:
    """The codes, on the CPU.

    Raises:
        UserError: if one is -1.
    """
    if len(codes) and int(codes.min()) < 0:
        raise UserError(
            "the speech tokenizer computes numbers that are not finite: its weights are damaged, get it again"
        )
    return codes


def _device(encoder: CausalEncoder) -> torch.device:
    return encoder.codebook.weight.device


def _float64_device(device: torch.device) -> torch.device:
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


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
    if "speech_tokenizer" not in checkpoint:
        raise UserError(
            f"{path} is no checkpoint of a tokenizer run: expected one made by conf/codec_encoder.yaml"
        )
    if not checkpoint["speech_tokenizer"]["codebook_ready"]:
        raise UserError(
            f"{path} was written before quantization began and has no codebook yet: take a later one"
        )
    prefix = "encoder."
    weights = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    check_finite(weights, str(path))
    encoder = CausalEncoder(EncoderConfig.from_official(checkpoint["speech_tokenizer"]["config"]))
    encoder.load_state_dict(weights)
    return encoder
