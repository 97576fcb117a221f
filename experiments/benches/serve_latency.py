"""Where the time to the first sound of a spoken reply goes.

    python -m experiments.benches.serve_latency --random small [--vocoder hift] [--threads 1]
    python -m experiments.benches.serve_latency --random official --device cuda
    python -m experiments.benches.serve_latency --model RUN_OR_FOLDER --codec NAME

Clients in threads ask the engine, at the same time but begun within `--spread` seconds of one another; spoken
questions are pushed at the speed of speech. Prints p50, p95 and p99 over all replies, in ms:

    encode        end of speech -> its codes are known           (speech -> speech alone)
    prefill       computing time of the prompt
    first row     request -> first row: waiting, prefill, a step
    first codes   request -> the codes of the first sound
    flow          computing time of the flow decoder for it
    vocoder       computing time of the vocoder for it
    first sound   end of speech (or the text's request) -> first sound

and the real-time factor: seconds from the first sound to the last per second of sound, below 1 where playback
never waits.
"""

import argparse
import random
import threading
import time
from dataclasses import dataclass

import torch

from experiments.benches.talking_model import TimedVocoder, question, random_model
from lit_moss.serve.engine import Engine, Session
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions
from lit_moss.serve.settings import Limits

_PIECE = 480  # samples of a push: 20 ms


@dataclass
class Times:
    """Of one reply, in seconds."""

    encode: float | None
    prefill: float
    first_row: float
    first_codes: float
    flow: float
    first_sound: float
    real_time: float


def ask(session: Session, n: int, args: argparse.Namespace, spoken: bool) -> Times:
    """One question and its reply."""
    options = ReplyOptions(max_new_tokens=args.rows, seed=n)
    conversation = session.conversation
    session.expected = None if args.no_ahead else options
    encode = None
    if spoken:
        turn, begin = session.listen(), time.monotonic()
        for i, piece in enumerate(question(args.question_sec, n).split(_PIECE)):
            time.sleep(max(0.0, begin + i * _PIECE / 24_000 - time.monotonic()))
            turn.push(piece)
        asked = time.monotonic()
        codes = turn.finish().result()
        encode = time.monotonic() - asked
        conversation.add(conversation.speech_message("user", codes))
    else:
        asked = time.monotonic()
        conversation.add(conversation.text_message("user", f"Question {n}: what is the time in Oslo now?"))
    reply, first, samples, last = session.start_reply(options), 0.0, 0, 0.0
    for event in reply:
        if isinstance(event, AudioDelta):
            last = time.monotonic()
            first, samples = first or last, samples + len(event.samples_T)
    assert isinstance(event, ReplyDone)
    if event.reason == "failed":
        raise SystemExit(f"error: {event.error}")
    if not samples:
        raise SystemExit("error: a reply without sound: this model's replies are too short to be measured")
    usage = event.usage
    conversation.add(conversation.reply_message(event.rows, event.prompt))
    return Times(
        encode, usage.prefill_sec, usage.first_row_sec or 0.0, usage.first_codes_sec or 0.0, usage.flow_sec,
        first - asked, (last - first) / (samples / 24_000),
    )  # fmt: skip


def clients(engine: Engine, count: int, args: argparse.Namespace, spoken: bool) -> list[Times]:
    """All replies of `count` clients side by side, each of `--repeats` sessions of two turns."""
    times: list[Times] = []

    def client(n: int) -> None:
        rng = random.Random(n)
        time.sleep(rng.random() * args.spread)
        for repeat in range(args.repeats):
            session = engine.open_session()
            for turn in range(2):
                times.append(ask(session, 1000 * n + 2 * repeat + turn, args, spoken))
            session.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def report(title: str, times: list[Times], vocoder_sec: list[float]) -> None:
    """One table."""
    print(f"\n{title}: {len(times)} replies\n\n| | p50 | p95 | p99 |\n|---|---|---|---|")
    vocoder = sum(vocoder_sec) / max(1, len(vocoder_sec))
    columns: dict[str, list[float]] = {
        "encode": [t.encode for t in times if t.encode is not None],
        "prefill": [t.prefill for t in times],
        "first row": [t.first_row for t in times],
        "first codes": [t.first_codes for t in times],
        "flow": [t.flow - vocoder for t in times],
        "vocoder": vocoder_sec,
        "first sound": [t.first_sound for t in times],
    }
    for name, values in columns.items():
        if values:
            quantiles = torch.tensor(values).quantile(torch.tensor([0.5, 0.95, 0.99])) * 1000
            print(f"| {name} (ms) | " + " | ".join(f"{q:.0f}" for q in quantiles) + " |")
    factors = torch.tensor([t.real_time for t in times]).quantile(torch.tensor([0.5, 0.95, 0.99]))
    print("| real-time factor | " + " | ".join(f"{q:.2f}" for q in factors) + " |", flush=True)


def main() -> None:
    """Prints a table for each number of sessions, text to speech and speech to speech."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="run, checkpoint, folder or hub id")
    parser.add_argument("--codec", help="as of `serve`")
    parser.add_argument("--random", choices=("tiny", "small", "official"), help="random weights instead")
    parser.add_argument("--vocoder", choices=("griffin-lim", "hift"), default="griffin-lim")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="of torch, for each worker (default: half of the cores)")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=3, help="sessions of two turns for each client")
    parser.add_argument("--rows", type=int, default=50, help="rows of a reply")
    parser.add_argument("--question-sec", type=float, default=3.0)
    parser.add_argument("--spread", type=float, default=2.0, help="seconds within which the clients begin")
    parser.add_argument("--no-ahead", action="store_true", help="no prefill while the user speaks")
    parser.add_argument("--text-only", action="store_true", help="text to speech alone")
    args = parser.parse_args()
    if (args.model is None) == (args.random is None):
        parser.error("give --model or --random")
    if args.model is not None:
        model = SpeechModel.open(args.model, args.codec, args.device)
    else:
        model = random_model(args.random, args.device, args.vocoder)
    if model.codec is None:
        parser.error("the model has no decoder: give --codec")
    vocoder = model.codec.vocoder = TimedVocoder(model.codec.vocoder)
    engine = Engine(model, Limits(max_sessions=max(args.sessions)), args.threads)
    engine.warm_up()
    for count in args.sessions:
        for spoken in (False,) if args.text_only else (False, True):
            vocoder.first_sec.clear()
            times = clients(engine, count, args, spoken)
            kind = "speech to speech" if spoken else "text to speech"
            report(f"{kind}, {count} sessions", times, vocoder.first_sec)
    engine.close()


if __name__ == "__main__":
    main()
