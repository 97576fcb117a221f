"""Makes docs/audio: one held-out sentence of the embedded corpus, as it was and after each step of the way.

    python docs/tools/sample.py [--out docs/audio] [--judge]

    original.flac             the sentence as the embedded voice spoke it
    mel_griffin_lim.flac      its mel spectrogram, then Griffin-Lim: what the vocoder alone loses
    codes_mean_mel.flac       its codes, each replaced by the mean mel of that code over the training
                              sentences, then Griffin-Lim: no network was trained for it

With `--judge` it also prints the word error rate of each over all held-out sentences, by
embedded:whisper-base (needs the extra `evaluate`), and the mean absolute mel distance in dB.
"""

import argparse
from pathlib import Path

import lit_moss  # noqa: F401  before torch: it sets how long waiting OpenMP threads spin

# isort: split
import torch
from torch import Tensor

from lit_moss.audio import io, rates
from lit_moss.audio.features import decoder_mel, resample
from lit_moss.codec.vocoder import GriffinLim
from lit_moss.corpora.everyday import everyday_corpus
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.hub import open_tokenizer

SENTENCE = "everyday-0029"  # of the held-out part
RATIO = rates.FRAMES_PER_CODE_DECODER
DECIBELS = 20 / torch.log(torch.tensor(10.0))


def read(utterance: Utterance) -> Tensor:
    """Samples (T,) at 24 kHz."""
    return io.read(utterance.audio, rates.DECODER_RATE_HZ)


def mel_of(wave_T: Tensor, codes: int) -> Tensor:
    """Four frames a code: (N, 80, 4)."""
    mel_MT = decoder_mel(wave_T[None])[0]
    codes = min(codes, mel_MT.shape[1] // RATIO)
    return mel_MT[:, : codes * RATIO].unflatten(1, (codes, RATIO)).permute(1, 0, 2)


def mean_mels(tokenizer, utterances: list[Utterance]) -> Tensor:  # noqa: ANN001 - a SpeechTokenizer
    """Mean mel of every code over these utterances, (K, 80, 4); the overall mean for codes without any."""
    size = tokenizer.config.quantize_vocab_size
    sum_K = torch.zeros(size, rates.DECODER_MEL_BINS, RATIO)
    count_K = torch.zeros(size)
    for first in range(0, len(utterances), 32):
        waves = [read(u) for u in utterances[first : first + 32]]
        for wave_T, codes_N in zip(waves, tokenizer.encode(waves, rates.DECODER_RATE_HZ), strict=True):
            mel_NMR = mel_of(wave_T, len(codes_N))
            codes_N = codes_N[: len(mel_NMR)]
            sum_K.index_add_(0, codes_N, mel_NMR)
            count_K.index_add_(0, codes_N, torch.ones(len(codes_N)))
    print(f"{int((count_K > 0).sum())} of {size} codes occur in {len(utterances)} sentences")
    overall = sum_K.sum(dim=0) / count_K.sum()
    return torch.where(count_K[:, None, None] > 0, sum_K / count_K.clamp(min=1)[:, None, None], overall)


def versions(tokenizer, table_K: Tensor, wave_T: Tensor) -> dict[str, Tensor]:  # noqa: ANN001
    """Name -> wave at 24 kHz."""
    codes_N = tokenizer.encode(wave_T, rates.DECODER_RATE_HZ)
    mel_NMR = mel_of(wave_T, len(codes_N))
    vocoder = GriffinLim()
    true_MT, made_MT = (x.permute(1, 0, 2).flatten(1) for x in (mel_NMR, table_K[codes_N[: len(mel_NMR)]]))
    return {
        "original": wave_T,
        "mel_griffin_lim": vocoder(true_MT[None])[0],
        "codes_mean_mel": vocoder(made_MT[None])[0],
    }


def main() -> None:
    """Writes the files, and judges them where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "audio")
    parser.add_argument("--judge", action="store_true", help="also print word error rates")
    args = parser.parse_args()
    corpus = everyday_corpus()
    train, validation = (read_manifest(corpus / f"{part}.jsonl") for part in ("train", "validation"))
    tokenizer = open_tokenizer("embedded:whisper-tiny-kmeans")
    table_K = mean_mels(tokenizer, train)
    sample = next(u for u in validation if u.audio.stem == SENTENCE)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, wave_T in versions(tokenizer, table_K, read(sample)).items():
        io.write(args.out / f"{name}.flac", wave_T, rates.DECODER_RATE_HZ)
    print(f"{args.out}: {sample.text}")
    if args.judge:
        judge(tokenizer, table_K, validation)


def judge(tokenizer, table_K: Tensor, utterances: list[Utterance]) -> None:  # noqa: ANN001
    """Prints word error rates, and the mel distance of the table."""
    from lit_moss.evaluate.judges import Recogniser, word_errors

    recogniser = Recogniser("embedded:whisper-base")
    errors: dict[str, list[int]] = {}
    distances = []
    for utterance in utterances:
        wave_T = read(utterance)
        codes_N = tokenizer.encode(wave_T, rates.DECODER_RATE_HZ)
        true_NMR = mel_of(wave_T, len(codes_N))
        distances.append((table_K[codes_N[: len(true_NMR)]] - true_NMR).abs().mean())
        for name, version_T in versions(tokenizer, table_K, wave_T).items():
            heard = recogniser(resample(version_T, rates.DECODER_RATE_HZ, rates.TOKENIZER_RATE_HZ))
            wrong, words = word_errors(utterance.text or "", heard)
            total = errors.setdefault(name, [0, 0])
            total[0], total[1] = total[0] + wrong, total[1] + words
    for name, (wrong, words) in errors.items():
        print(f"{name:<18} word error rate {wrong / words:.3f} of {words} words")
    print(f"mean mel of each code: {float(DECIBELS * torch.stack(distances).mean()):.2f} dB from the truth")


if __name__ == "__main__":
    main()
