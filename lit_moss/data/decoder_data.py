"""Codes and the mel they stand for: manifests -> batches for the flow decoder.

Codes come from a frozen tokenizer, speaker vectors from a frozen encoder; both are computed once and kept in
the cache, under a name made of all that decides them. Order, buckets, bad files and resume are those of
`SpeechDataModule`.

Shapes: B items, N codes, T mel frames (= 4 N), M mel bands, S values of a speaker vector.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from filelock import FileLock
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from lit_moss.assets import cache_dir
from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.codec import trimmed
from lit_moss.codec.encoder import fingerprint
from lit_moss.codec.speaker import SpeakerEncoder, open_speaker, speaker_fingerprint
from lit_moss.codec.tokenizer import SpeechTokenizer
from lit_moss.corpora.manifest import Utterance
from lit_moss.data.batches import DecoderBatch
from lit_moss.data.order import SampleKey
from lit_moss.data.speech_data import SpeechDataModule, SpeechSet
from lit_moss.errors import UserError

RATIO = rates.FRAMES_PER_CODE_DECODER
PART = 2000  # utterances of a file in the cache
# One code; the mel's reflected edges need 720.
SHORTEST_SAMPLES = rates.DECODER_SAMPLES_PER_CODE


@dataclass(frozen=True)
class Coded:
    """What the frozen parts say of an utterance.

    Args:
        codes_N: Its codes, int32.
        speaker_S: Its speaker vector, float32; empty without an encoder.
    """

    codes_N: Tensor
    speaker_S: Tensor


class DecoderDataModule(SpeechDataModule):
    """Manifests -> `DecoderBatch`es.

    Args:
        train: Manifests to learn from: paths, or `embedded:everyday-en`; transcripts are not needed.
        validation: Manifests to validate on.
        weights: How often an epoch holds each manifest of `train`; all once if empty.
        speech_tokenizer: The frozen tokenizer: `embedded:whisper-tiny-kmeans`, a checkpoint or runs/NAME, a folder, a
            hub id.
        log_mel: Its features, `causal` or `whisper`; None takes what it states, see
            `SpeechTokenizer.from_pretrained`.
        speaker: Speaker encoder: `embedded:resemblyzer`, a CAM++ .onnx file, or none.
        cache: Keep codes and speaker vectors on disk; otherwise they are computed as they are needed, in the
            loader's processes.
        batch_sec: Audio budget of a training batch in seconds, padding included.
        validation_batch_sec: The same in validation.
        max_sec: Longest utterance in seconds; longer ones are left out, counted and named.
        min_sec: Shortest utterance in seconds.
        seed: Seed of the order.
        buckets: Most length buckets.
        workers: Loader processes per rank; 0 loads in the training process.
        max_bad_share: Share of unreadable utterances above which a run stops.
    """

    def __init__(
        self,
        train: list[str] | None = None,
        validation: list[str] | None = None,
        weights: list[float] | None = None,
        speech_tokenizer: str = "embedded:whisper-tiny-kmeans",
        log_mel: Literal["causal", "whisper"] | None = None,
        speaker: str | None = None,
        cache: bool = True,
        batch_sec: float = 40.0,
        validation_batch_sec: float = 80.0,
        max_sec: float = 20.0,
        min_sec: float = 0.5,
        seed: int = 1,
        buckets: int = 16,
        workers: int = 1,
        max_bad_share: float = 0.01,
    ) -> None:
        super().__init__(
            train, validation, weights, batch_sec, validation_batch_sec, max_sec, min_sec, seed, buckets,
            workers, freq_masks=0, max_bad_share=max_bad_share,
        )  # fmt: skip
        self.speech_tokenizer, self.log_mel, self.speaker, self.cache = (
            speech_tokenizer,
            log_mel,
            speaker,
            cache,
        )
        self._frozen: Frozen | None = None

    @property
    def frozen(self) -> "Frozen":
        """Tokenizer and speaker encoder, opened on first use."""
        if self._frozen is None:
            self._frozen = Frozen(self.speech_tokenizer, self.speaker, self.log_mel)
        return self._frozen

    def _make_set(self, utterances: list[Utterance], augmentation: Any) -> "_DecoderSet":
        coded = self.frozen.table(utterances) if self.cache else None
        return _DecoderSet(utterances, self.frozen, coded)

    def _with_texts(self, manifest: Path, utterances: list[Utterance]) -> list[Utterance]:
        return utterances  # transcripts are not used

    def means(self, utterances: int = 48) -> tuple[Tensor, Tensor]:
        """Mean log-mel (80,) and mean speaker vector (S,) of some training utterances, evenly spread."""
        assert isinstance(self._train_set, _DecoderSet)
        size = len(self._train_set.utterances)
        found = [self._train_set[(n, 0, 0)] for n in range(0, size, max(1, size // utterances))]
        read = [item for item in found if len(item) == 4]
        if not read:
            raise UserError("none of the audio to start from could be read")
        mel_M = torch.cat([item[2] for item in read], dim=1).mean(dim=1)
        return mel_M, torch.stack([item[3] for item in read]).mean(dim=0)

    def collate_function(self) -> Callable[[list[Any]], Any]:
        return collate

    def fingerprints(self) -> dict[str, str]:
        return super().fingerprints() | {"speech_tokenizer": self.frozen.fingerprint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        saved, ours = state_dict["fingerprints"].get("speech_tokenizer"), self.frozen.fingerprint
        if saved != ours:
            raise UserError(
                f"the checkpoint was trained on codes of {saved}, data.speech_tokenizer {self.speech_tokenizer} (with speaker "
                f"vectors {self.speaker}, log_mel {self.frozen.tokenizer.config.log_mel}) is {ours}: take "
                "the same, or start a new run"
            )
        super().load_state_dict(state_dict)


class Frozen:
    """Tokenizer and speaker encoder of a run."""

    def __init__(self, speech_tokenizer: str, speaker: str | None, log_mel: str | None = None) -> None:
        from lit_moss.hub.kmeans import open_tokenizer

        self.tokenizer: SpeechTokenizer = open_tokenizer(speech_tokenizer, log_mel)
        with torch.random.fork_rng():
            self.speaker: SpeakerEncoder | None = open_speaker(speaker)
        named = f"{fingerprint(self.tokenizer.encoder)}-{speaker_fingerprint(self.speaker)}"
        self.fingerprint = hashlib.sha256(named.encode()).hexdigest()[:16]

    @property
    def speaker_dim(self) -> int:
        """Values of a speaker vector; 0 without an encoder."""
        return self.speaker.dim if self.speaker is not None else 0

    def __call__(self, waves: list[Tensor]) -> list[Coded]:
        """Of waves at 16 kHz."""
        codes = self.tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ)
        vectors = [self.speaker(w) if self.speaker is not None else torch.zeros(0) for w in waves]
        return [Coded(c.int(), v.float()) for c, v in zip(codes, vectors, strict=True)]

    def table(self, utterances: list[Utterance]) -> list[Coded | None]:
        """Of all utterances, from the cache or into it, part by part: a kill loses one part at most.

        None stands for one that could not be read then.
        """
        found: list[Coded | None] = []
        for first in range(0, len(utterances), PART):
            part = utterances[first : first + PART]
            path = cache_dir() / "codes" / f"{self.fingerprint}-{_stamp(part)}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{path}.lock"):  # of all ranks one computes, the others wait for it
                if not path.is_file():
                    self._write(path, part)
            rows = pq.read_table(path).to_pydict()
            found += [
                None if codes is None else Coded(torch.tensor(codes, dtype=torch.int32), torch.tensor(vector))
                for codes, vector in zip(rows["codes"], rows["speaker"], strict=True)
            ]
        return found

    def _write(self, path: Path, utterances: list[Utterance]) -> None:
        rank_zero_info(f"codes of {len(utterances)} utterances, once: into {path.parent}")
        found: list[Coded | None] = []
        local_rank = os.environ.get("LOCAL_RANK", "0")
        self.tokenizer.to(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
        for first in tqdm(range(0, len(utterances), 16), unit="x16", disable=None, desc="codes"):
            waves = [_read(u) for u in utterances[first : first + 16]]
            coded = iter(self([w for w in waves if w is not None]))
            found += [next(coded) if w is not None else None for w in waves]
        self.tokenizer.to("cpu")
        codes = [f and f.codes_N.tolist() for f in found]
        vectors = [f and f.speaker_S.tolist() for f in found]
        table = pa.table({
            "id": [u.id for u in utterances],
            "codes": pa.array(codes, pa.list_(pa.int32())),
            "speaker": pa.array(vectors, pa.list_(pa.float32())),
        })  # fmt: skip
        # Ranks and other runs may write the same at the same time: each its own file, the last rename stays.
        partial = path.with_name(f"{path.name}.{socket.gethostname()}-{os.getpid()}.partial")
        pq.write_table(table, partial)
        partial.replace(path)


class _DecoderSet(SpeechSet):
    """Utterances by sample key: codes, mel and speaker vector, or a reason."""

    def __init__(
        self, utterances: list[Utterance], frozen: Frozen, coded: Sequence[Coded | None] | None
    ) -> None:
        super().__init__(utterances, None)
        self._frozen, self._coded = frozen, coded

    def __getitem__(self, key: SampleKey) -> Any:
        u = self.utterances[key[0]]
        try:
            wave24 = io.read(u.audio, rates.DECODER_RATE_HZ, u.offset_sec, u.duration_sec)
        except io.UnreadableAudio as error:
            return u, _too_short(u) or str(error)
        if len(wave24) < SHORTEST_SAMPLES:
            return u, f"{u.audio}: {len(wave24) / rates.DECODER_RATE_HZ:.3f} s, shorter than a code"
        coded = self._coded[key[0]] if self._coded is not None else None
        if coded is None:
            (coded,) = self._frozen([resample(wave24, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ)])
        return u, *trimmed(coded.codes_N, decoder_mel(wave24[None])[0]), coded.speaker_S


def collate(items: list[Any]) -> DecoderBatch:
    """Items of a loader -> one batch."""
    good = [item for item in items if len(item) == 4]
    lengths_B = torch.tensor([len(codes) for _, codes, _, _ in good], dtype=torch.long)
    longest = int(lengths_B.max()) if good else 0
    mel_BMT = torch.zeros(len(good), rates.DECODER_MEL_BINS, RATIO * longest)
    for row, (_, _, mel, _) in zip(mel_BMT, good, strict=True):
        row[:, : mel.shape[-1]] = mel
    return DecoderBatch(
        codes_BN=pad_sequence([codes.long() for _, codes, _, _ in good], batch_first=True)
        if good
        else torch.zeros(0, 0, dtype=torch.long),
        lengths_B=lengths_B,
        mel_BMT=mel_BMT,
        speaker_BS=torch.stack([vector for *_, vector in good]) if good else torch.zeros(0, 0),
        ids=[u.id for u, *_ in good],
        skipped=[f"{item[0].key}\t{item[1]}" for item in items if len(item) == 2],
    )


def _too_short(utterance: Utterance) -> str:
    """What is wrong with a file that is shorter than a code, whatever its manifest says; else empty."""
    try:
        seconds = io.info(utterance.audio, probe=False).duration_sec
    except io.UnreadableAudio:
        return ""
    short = seconds < SHORTEST_SAMPLES / rates.DECODER_RATE_HZ
    return f"{utterance.audio}: {seconds:.3f} s, shorter than a code" if short else ""


def _read(utterance: Utterance) -> Tensor | None:
    try:
        return io.read(utterance.audio, rates.TOKENIZER_RATE_HZ, utterance.offset_sec, utterance.duration_sec)
    except io.UnreadableAudio:
        return None  # the loader says why, when it comes to it


def _stamp(utterances: list[Utterance]) -> str:
    """What decides their codes besides the tokenizer: which files, of which state, which parts of them."""
    digest = hashlib.sha256()
    for u in utterances:
        # `os.path`: of a name that no file can have, Path raises.
        state = u.audio.stat() if os.path.exists(u.audio) else None
        seen = (str(u.audio), u.offset_sec, u.duration_sec, state and (state.st_size, state.st_mtime_ns))
        digest.update(repr(seen).encode())
    return digest.hexdigest()[:16]
