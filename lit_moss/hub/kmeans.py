"""A speech tokenizer without training, to try a language model before a tokenizer has been trained.

`embedded:whisper-tiny-kmeans` is Whisper-tiny's encoder, run causally, with a codebook of 1024 k-means
centres of its pooled frames over the embedded corpus; it is made on first use in 20 to 30 s. `prepare
kmeans-tokenizer` makes one from your own speech; `fit -c conf/codec_encoder.yaml` trains a better one.
"""

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss import assets
from lit_moss.errors import UserError
from lit_moss.files import make_once

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.codec import SpeechTokenizer
    from lit_moss.codec.encoder import CausalEncoder
    from lit_moss.corpora.manifest import Utterance

KMEANS = "embedded:whisper-tiny-kmeans"
CODES = 1024
_ENCODER = "embedded:whisper-tiny"
_VERSION = 2  # of the computation; a change makes a new folder
_SEED = 1
_BATCH = 16
_LONGEST_SEC = 30.0


def kmeans_tokenizer() -> Path:
    """Folder of `embedded:whisper-tiny-kmeans` in the released layout; made once, always with the same
    content."""
    from lit_moss.corpora.everyday import everyday_corpus

    corpus = everyday_corpus()
    inputs = f"{assets.resolve(_ENCODER).name} {corpus.name} {CODES} {_VERSION}"
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    return make_once(
        assets.cache_dir() / "speech_tokenizers" / f"whisper-tiny-kmeans-{digest}",
        lambda folder: make_kmeans_tokenizer(corpus / "train.jsonl").save_pretrained(folder),
    )


def make_kmeans_tokenizer(manifest: Path, size: int = CODES, layers: int | None = None) -> "SpeechTokenizer":
    """Whisper-tiny's encoder with a codebook of `size` k-means centres of a manifest's speech.

    The caller's random state does not change.

    Args:
        manifest: Speech manifest.
        size: Number of codebook entries.
        layers: Number of encoder layers to keep, from the first. None: all.

    Raises:
        UserError: if the manifest has fewer frames (80 ms) than codes, or the encoder has fewer layers.
    """
    import torch

    from lit_moss.codec import SpeechTokenizer
    from lit_moss.codec.quantizer import kmeans
    from lit_moss.corpora.manifest import read_manifest

    with torch.random.fork_rng(), torch.no_grad():
        encoder = _encoder(size, layers)
        tokenizer = SpeechTokenizer(encoder)
        frames = list(_pooled_frames(tokenizer, read_manifest(manifest)))
        count = sum(map(len, frames))
        if count < size:
            raise UserError(f"{manifest} has {count} frames, expected {size} for as many codes")
        torch.manual_seed(_SEED)
        centres_KD, count_K = kmeans(torch.cat(frames), size)
        count_K = count_K.clamp(min=1e-2)
        encoder.codebook.weight.copy_(centres_KD)
        encoder.ema_count.copy_(count_K)
        encoder.ema_weight.copy_(centres_KD * count_K[:, None])
    return tokenizer


def _encoder(size: int, layers: int | None) -> "CausalEncoder":
    """The lowest `layers` layers of Whisper-tiny, with an untrained codebook of `size` entries."""
    from lit_moss.codec.pretrained import load_encoder

    encoder, _ = load_encoder(_ENCODER)
    available = encoder.config.quantize_position
    layers = available if layers is None else layers
    if not 1 <= layers <= available:
        raise UserError(f"--layers is {layers}, expected 1 to {available}")
    config = replace(encoder.config, quantize_vocab_size=size, quantize_position=layers)
    return encoder if config == encoder.config else load_encoder(_ENCODER, config)[0]


def _pooled_frames(tokenizer: "SpeechTokenizer", utterances: Sequence["Utterance"]) -> Iterator["Tensor"]:
    """Pooled frames (N, D) of each readable utterance; those of one batch at a time."""
    from tqdm import tqdm

    from lit_moss.audio import io, rates
    from lit_moss.audio.waves import pad_to_codes

    # Sorted by length, so that batches contain little padding.
    ordered = sorted(utterances, key=lambda u: u.duration_sec or 0.0)
    for start in tqdm(range(0, len(ordered), _BATCH), desc="codebook by k-means", unit="batch", disable=None):
        waves = []
        for u in ordered[start : start + _BATCH]:
            try:
                # The network takes 30 s at once; the beginning of a longer utterance is sufficient.
                wave = io.read(
                    u.audio, rates.TOKENIZER_RATE_HZ, u.offset_sec, u.duration_sec, _LONGEST_SEC, u.channel
                )
                waves.append(wave)
            except io.UnreadableAudio as error:
                tqdm.write(f"left out: {error}", file=sys.stderr)
        if not waves:
            continue
        wave_BT, samples_B = pad_to_codes(waves)
        pooled_BND = tokenizer.frames(tokenizer.encoder, wave_BT)
        for pooled_ND, samples in zip(pooled_BND, samples_B.tolist(), strict=True):
            yield pooled_ND[: rates.codes_of_samples(samples)]
