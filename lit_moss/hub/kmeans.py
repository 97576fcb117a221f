"""A speech tokenizer made on the spot, so that a language model can be tried before a tokenizer was trained.

`embedded:whisper-tiny-kmeans`: Whisper-tiny's encoder run causally, and a codebook of 1024 k-means centres of
its pooled frames over the embedded corpus. No training; some 20 s. `prepare kmeans-tokenizer` makes one for speech of
your own, `fit -c conf/codec_encoder.yaml` a better one.
"""

import argparse
import hashlib
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss import assets
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.codec import SpeechTokenizer

KMEANS = "embedded:whisper-tiny-kmeans"
CODES = 1024
LOG_MELS = ("causal", "whisper")
_ENCODER = "embedded:whisper-tiny"
_VERSION = 2  # of the making: another one, another folder
_SEED = 1
_BATCH = 16
_LONGEST_SEC = 30.0
_hashes: dict[tuple[str, int, int], str] = {}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `prepare kmeans-tokenizer`."""
    parser.add_argument("manifest", type=Path, help="speech whose frames the codes shall stand for")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder, released layout")
    parser.add_argument("--codes", type=int, default=CODES, help=f"codebook entries (default {CODES})")
    parser.add_argument(
        "--layers",
        type=int,
        metavar="N",
        help="cut Whisper-tiny's encoder behind its layer N of 4 (default 4). Lower layers know more of the "
        "sound, higher ones more of the words: for a decoder to resynthesise, take 1 or 2",
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing output")


def main(args: argparse.Namespace) -> None:
    """Makes the tokenizer."""
    if args.codes < 2:
        raise UserError(f"--codes is {args.codes}, expected 2 or more")
    if (args.out / "model.safetensors").exists() and not args.force:
        raise UserError(f"{args.out} holds a tokenizer: give another --out, or --force to overwrite it")
    make_kmeans_tokenizer(args.manifest, args.codes, args.layers).save_pretrained(args.out)
    print(f"{args.out}: {args.codes} codes, fingerprint {speech_tokenizer_fingerprint(str(args.out))}")


def add_log_mel_argument(parser: argparse.ArgumentParser) -> None:
    """`--log-mel` of verbs that open a speech tokenizer."""
    parser.add_argument(
        "--log-mel",
        choices=LOG_MELS,
        help="features of the speech tokenizer: whisper (released ones; whole recordings only) or causal "
        "(streams too); default: what its config.json says, whisper where it says nothing",
    )


def open_tokenizer(name: str, log_mel: str | None = None) -> "SpeechTokenizer":
    """Speech tokenizer by any name a user may give; the caller's random numbers are left alone.

    Args:
        name: `embedded:whisper-tiny-kmeans`, a checkpoint, a folder of a name's runs (the best of the
            newest), a folder in the released layout, or a hub id.
        log_mel: See `SpeechTokenizer.from_pretrained`.
    """
    # Building a network draws random numbers, but a run whose documents lie in the cache must train as one
    # that made them.
    import torch

    from lit_moss.codec import SpeechTokenizer

    with torch.random.fork_rng():
        return SpeechTokenizer.from_pretrained(tokenizer_path(name), log_mel=log_mel)


def tokenizer_path(name: str) -> Path | str:
    """Where the tokenizer lies; made or fetched if need be."""
    if name == KMEANS:
        return kmeans_tokenizer()
    if any(Path(name).glob("*/run.json")):
        from lit_moss.runs.checkpoints import newest_checkpoint

        found = newest_checkpoint(Path(name), "best")
        if not isinstance(found, Path):
            raise UserError(f"{name} has no checkpoint yet: expected a finished run of the tokenizer")
        return found
    return name


def speech_tokenizer_fingerprint(name: str, log_mel: str | None = None) -> str:
    """16 hex digits of a tokenizer's weights and settings: which codes these are.

    `log_mel` as for `open_tokenizer`. It counts where it is not what the tokenizer's own files state.
    """
    if log_mel is not None and log_mel not in LOG_MELS:
        raise UserError(f"log_mel is {log_mel!r}, expected {' or '.join(LOG_MELS)}")
    path = assets.resolve(str(tokenizer_path(name)))
    files = [path] if path.is_file() else sorted([*path.glob("*.safetensors"), *path.glob("config.json")])
    if not files:
        raise UserError(f"{name} holds no *.safetensors: expected a speech tokenizer")
    hashed = "".join(map(_sha256_once, files))
    stated = _stated_log_mel(path)
    taken = log_mel or stated or "whisper"
    if taken != stated:
        hashed += f" log_mel {taken}"
    return hashlib.sha256(hashed.encode()).hexdigest()[:16]


def _stated_log_mel(path: Path) -> str | None:
    """`log_mel` in a folder's config.json or in a checkpoint; None where it is not stated."""
    if path.is_dir():
        from lit_moss.codec.settings import read_settings

        return read_settings(path / "config.json").get("log_mel")
    from lit_moss.runs.checkpoints import load_checkpoint

    speech_tokenizer = load_checkpoint(path, mmap=True).get("speech_tokenizer")
    return speech_tokenizer["config"].get("log_mel") if speech_tokenizer else None


def _sha256_once(file: Path) -> str:
    """Hash of a file, not computed again while the file stays as it is: tokenizers can be gigabytes."""
    state = file.stat()
    key = (str(file.absolute()), state.st_size, state.st_mtime_ns)
    if key not in _hashes:
        _hashes[key] = assets.sha256_of(file)
    return _hashes[key]


def kmeans_tokenizer() -> Path:
    """Folder of the on-the-spot tokenizer, in the released layout; made once, the same each time."""
    from lit_moss.corpora.everyday import everyday_corpus

    corpus = everyday_corpus()
    made_of = f"{assets.resolve(_ENCODER).name} {corpus.name} {CODES} {_VERSION}"
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:12]
    folder = assets.cache_dir() / "speech_tokenizers" / f"whisper-tiny-kmeans-{digest}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = make_kmeans_tokenizer(corpus / "train.jsonl")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        made = Path(scratch) / "made"
        tokenizer.save_pretrained(made)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process was first, with the same content
                raise
    return folder


def make_kmeans_tokenizer(manifest: Path, size: int = CODES, layers: int | None = None) -> "SpeechTokenizer":
    """Whisper-tiny's encoder with a codebook of `size` k-means centres of a manifest's speech.

    Args:
        manifest: Speech manifest.
        size: Codes.
        layers: The encoder is cut behind this layer; None keeps all.

    Raises:
        UserError: if the manifest has fewer frames (80 ms) than codes, or the encoder fewer layers.
    """
    import torch
    from tqdm import tqdm

    from lit_moss.audio import io, rates
    from lit_moss.audio.waves import pad_to_codes
    from lit_moss.codec import SpeechTokenizer
    from lit_moss.codec.pretrained import load_encoder
    from lit_moss.codec.quantizer import kmeans
    from lit_moss.corpora.manifest import read_manifest

    with torch.random.fork_rng(), torch.no_grad():
        encoder, _ = load_encoder(_ENCODER)
        whole = encoder.config.quantize_position
        layers = whole if layers is None else layers
        if not 1 <= layers <= whole:
            raise UserError(f"--layers is {layers}, expected 1 to {whole}")
        wanted = replace(encoder.config, quantize_vocab_size=size, quantize_position=layers)
        if wanted != encoder.config:
            encoder, _ = load_encoder(_ENCODER, wanted)
        tokenizer = SpeechTokenizer(encoder)
        # By length: batches full of speech and not of padding.
        utterances = sorted(read_manifest(manifest), key=lambda u: u.duration_sec or 0.0)
        frames = []
        starts = range(0, len(utterances), _BATCH)
        for start in tqdm(starts, desc="codebook by k-means", unit="batch", disable=None):
            waves = []
            for u in utterances[start : start + _BATCH]:
                try:
                    # The network takes 30 s at once; of longer ones the beginning will do.
                    span = (u.offset_sec, u.duration_sec, _LONGEST_SEC)
                    waves.append(io.read(u.audio, rates.TOKENIZER_RATE_HZ, *span))
                except io.UnreadableAudio as error:
                    tqdm.write(f"left out: {error}", file=sys.stderr)
            if not waves:
                continue
            wave_BT, samples_B = pad_to_codes(waves)
            pooled_BND = tokenizer.frames(encoder, wave_BT)
            counts = [rates.codes_of_samples(int(n)) for n in samples_B]
            frames += [pooled_BND[b, :n] for b, n in enumerate(counts)]
        count = sum(map(len, frames))
        if count < size:
            raise UserError(f"{manifest} has {count} frames, expected {size} for as many codes")
        frames_SD = torch.cat(frames)
        torch.manual_seed(_SEED)
        centres_KD, count_K = kmeans(frames_SD, size)
        count_K = count_K.clamp(min=1e-2)
        encoder.codebook.weight.copy_(centres_KD)
        encoder.ema_count.copy_(count_K)
        encoder.ema_weight.copy_(centres_KD * count_K[:, None])
    return tokenizer
