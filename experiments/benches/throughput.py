"""Measures audio seconds per second and memory of the speech tokenizer.

    python -m experiments.benches.throughput [--speech-tokenizer …] [--seconds 120]

Measures, in one process, one after the other: a training step (forward, backward, optimizer) in float32 and
in bfloat16 autocast, `SpeechTokenizer.encode` with and without recomputing near-ties in float64, and a stream
pushed 80 ms at a time. The audio is noise at the level of speech, since the time does not depend on the
content.
"""

import argparse
import resource
import time
from collections.abc import Callable

import torch

from lit_moss.audio import rates
from lit_moss.codec import SpeechTokenizer, ctc
from lit_moss.codec.encoder import CausalEncoder
from lit_moss.codec.pretrained import load_encoder
from lit_moss.hub import open_tokenizer


def timed(work: Callable[[], object], audio_sec: float, repeat: int = 3) -> float:
    """Audio seconds per second: the median of `repeat` runs after one warm-up run."""
    work()
    taken = []
    for _ in range(repeat):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return audio_sec / sorted(taken)[repeat // 2]


def training_step(encoder: CausalEncoder, bf16: bool, batch: int, seconds: float) -> Callable[[], None]:
    """One optimizer step on `batch` items of `seconds` s each, as `CodecEncoder` does it."""
    head = ctc.CTCHead(encoder.config.d_model, 30, width=384, layers=2, heads=6, dropout=0.0)
    trained = [p for p in (*encoder.parameters(), *head.parameters()) if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    codes = rates.codes_of_samples(int(seconds * rates.TOKENIZER_RATE_HZ))
    mel = torch.randn(batch, encoder.config.num_mel_bins, codes * rates.FRAMES_PER_CODE)
    frames = torch.full((batch,), codes * rates.HIDDEN_PER_CODE)
    labels = [torch.randint(2, 30, (int(14 * seconds),)).tolist() for _ in range(batch)]

    def work() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            hidden = encoder(mel)
            pooled = encoder.pool(hidden).float()
            loss = (
                ctc.ctc_loss(head(pooled), frames, labels)[0]
                + ctc.ctc_loss(head.from_frames(hidden), frames, labels)[0]
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return work


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--speech-tokenizer",
        help="checkpoint or folder; default: Whisper-tiny's encoder with a random codebook",
    )
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="seconds of audio a measurement (default 120)"
    )
    args = parser.parse_args()
    torch.manual_seed(0)
    if args.speech_tokenizer:
        tokenizer = open_tokenizer(args.speech_tokenizer)
    else:
        encoder, _ = load_encoder("embedded:whisper-tiny")
        noise = encoder.pool(encoder(torch.randn(1, encoder.config.num_mel_bins, 2048))).detach()[0]
        encoder.codebook.weight.copy_(noise[torch.randint(len(noise), (encoder.config.quantize_vocab_size,))])
        encoder.codebook.weight.add_(noise.std() * torch.randn_like(encoder.codebook.weight))
        tokenizer = SpeechTokenizer(encoder)
    waves = list(
        (0.1 * torch.randn(int(args.seconds * rates.TOKENIZER_RATE_HZ))).split(8 * rates.TOKENIZER_RATE_HZ)
    )
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {args.seconds:.0f} s of audio")
    rows: list[tuple[str, float]] = []
    for exact in (True, False):
        tokenizer.exact = exact
        speed = timed(lambda: tokenizer.encode(waves, rates.TOKENIZER_RATE_HZ), args.seconds)
        rows.append((f"encode, exact={exact}", speed))
    tokenizer.exact = True

    def live() -> None:
        stream = tokenizer.stream()
        for samples in torch.cat(waves).split(rates.SAMPLES_PER_CODE):
            stream.push(samples)
        stream.flush()

    rows.append(("stream, 80 ms a push", timed(live, args.seconds, repeat=1)))
    source, _ = load_encoder("embedded:whisper-tiny")
    for bf16 in (False, True):
        name = f"training step, {'bf16-mixed' if bf16 else '32-true'}"
        rows.append((name, timed(training_step(source, bf16, 5, 7.0), 35.0)))
    for name, speed in rows:
        print(f"{name:<28} {speed:8.1f} x real time")
    print(f"{'largest memory':<28} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:8.1f} GiB")


if __name__ == "__main__":
    main()
