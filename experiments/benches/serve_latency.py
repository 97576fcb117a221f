"""Measures the parts of the time to the first sound of a spoken reply.

    python -m experiments.benches.serve_latency --random small [--vocoder hift] [--threads 1]
    python -m experiments.benches.serve_latency --random official --device cuda
    python -m experiments.benches.serve_latency --model RUN_OR_FOLDER --codec NAME [--questions LIST]

Clients in threads use the engine at the same time, starting within `--spread` seconds of each other; spoken
questions are pushed at the speed of speech, and are either those of a list as for `evaluate spoken_qa`, or
tones. Prints p50, p95 and p99 over all replies with sound, in ms:

    encode        end of speech -> its codes are known           (speech to speech only)
    prefill       computing time of the prompt
    first row     request -> first row: waiting, prefill, one step
    first codes   request -> codes of the first sound
    flow          computing time of the flow decoder for the first sound
    vocoder       computing time of the vocoder for the first sound
    first sound   end of speech (or request for text) -> first sound

and the real-time factor: seconds from the first sound to the last per second of audio; playback never waits
if it is below 1. `--out` also writes report.md and result.json to a folder.
"""

import argparse
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.benches.talking_model import TimedVocoder, question, random_model
from lit_moss.audio import io, rates
from lit_moss.errors import UserError
from lit_moss.files import write_json
from lit_moss.records import json_lines
from lit_moss.serve.engine import Engine, Session
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions
from lit_moss.serve.settings import Limits

_PIECE = 480  # samples per push: 20 ms
_MOST_QUESTIONS = 100


@dataclass(frozen=True)
class Question:
    """A question in both modalities; samples (n,) at 24 kHz."""

    text: str
    samples_T: Tensor


def listed_questions(file: Path) -> list[Question]:
    """Reads the first questions of a list, at most `_MOST_QUESTIONS`.

    Raises:
        UserError: if the file is not such a list.
    """
    found = []
    for record in json_lines(file, "a question"):
        text, audio = record.text("question"), record.path("audio")
        if text is None or audio is None:
            raise UserError(f"{record.where}: expected question and audio")
        found.append(Question(text, io.read(file.parent / audio, rates.DECODER_RATE_HZ)))
        if len(found) == _MOST_QUESTIONS:
            break
    if not found:
        raise UserError(f"{file} is empty, expected questions")
    return found


@dataclass
class Times:
    """Times of one reply in seconds; `real_time` is the real-time factor."""

    encode: float | None
    prefill: float
    first_row: float
    first_codes: float
    flow: float
    first_sound: float
    real_time: float


def ask(
    session: Session, n: int, asked_of: Callable[[int], Question], args: argparse.Namespace, spoken: bool
) -> Times | None:
    """Asks one question and reads its reply; None if the reply has no sound."""
    options = ReplyOptions(max_new_tokens=args.rows, seed=n)
    conversation = session.conversation
    session.expected = None if args.no_ahead else options
    encode = None
    one = asked_of(n)
    if spoken:
        turn, begin = session.listen(), time.monotonic()
        for i, piece in enumerate(one.samples_T.split(_PIECE)):
            time.sleep(max(0.0, begin + i * _PIECE / 24_000 - time.monotonic()))
            turn.push(piece)
        asked = time.monotonic()
        codes = turn.finish().result()
        encode = time.monotonic() - asked
        conversation.add(conversation.speech_message("user", codes))
    else:
        asked = time.monotonic()
        conversation.add(conversation.text_message("user", one.text))
    reply, first, samples, last = session.start_reply(options), 0.0, 0, 0.0
    for event in reply:
        if isinstance(event, AudioDelta):
            last = time.monotonic()
            first, samples = first or last, samples + len(event.samples_T)
    assert isinstance(event, ReplyDone)
    if event.reason == "failed":
        raise SystemExit(f"error: {event.error}")
    usage = event.usage
    conversation.add(conversation.reply_message(event.rows, event.prompt))
    if not samples:
        return None
    return Times(
        encode, usage.prefill_sec, usage.first_row_sec or 0.0, usage.first_codes_sec or 0.0, usage.flow_sec,
        first - asked, (last - first) / (samples / 24_000),
    )  # fmt: skip


def clients(
    engine: Engine, count: int, asked_of: Callable[[int], Question], args: argparse.Namespace, spoken: bool
) -> list[Times | None]:
    """Returns all replies of `count` concurrent clients, each with `--repeats` sessions of two turns."""
    times: list[Times | None] = []

    def client(n: int) -> None:
        rng = random.Random(n)
        time.sleep(rng.random() * args.spread)
        for repeat in range(args.repeats):
            session = engine.open_session()
            for turn in range(2):
                times.append(ask(session, 1000 * n + 2 * repeat + turn, asked_of, args, spoken))
            session.close()

    threads = [threading.Thread(target=client, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times


def summary(
    title: str, replies: Sequence[Times | None], vocoder_sec: list[float]
) -> tuple[str, dict[str, float]]:
    """Returns a table and its values in ms.

    Raises:
        UserError: if no reply has sound.
    """
    times = [t for t in replies if t is not None]
    if not times:
        raise UserError(f"{title}: no reply has sound, expected a model that speaks")
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
    lines = [f"{title}: {len(times)} of {len(replies)} replies have sound", "", "| | p50 | p95 | p99 |"]
    lines.append("|---|---|---|---|")
    values: dict[str, float] = {}
    at = torch.tensor([0.5, 0.95, 0.99])
    for name, column in columns.items():
        if column:
            found = (torch.tensor(column).quantile(at) * 1000).tolist()
            lines.append(f"| {name} (ms) | " + " | ".join(f"{q:.0f}" for q in found) + " |")
            values |= {f"{name.replace(' ', '_')}/p{p}": q for p, q in zip((50, 95, 99), found, strict=True)}
    factors = torch.tensor([t.real_time for t in times]).quantile(at).tolist()
    lines.append("| real-time factor | " + " | ".join(f"{q:.2f}" for q in factors) + " |")
    return "\n".join(lines), values | {"real_time/p50": factors[0], "real_time/p95": factors[1]}


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
    parser.add_argument("--question-sec", type=float, default=3.0, help="length of the tones")
    parser.add_argument("--questions", type=Path, help="list of questions with audio, instead of tones")
    parser.add_argument("--out", type=Path, help="folder for report.md and result.json")
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
    listed = listed_questions(args.questions) if args.questions else None

    def asked_of(n: int) -> Question:
        if listed:
            return listed[n % len(listed)]
        return Question(f"Question {n}: what is the time in Oslo now?", question(args.question_sec, n))

    tables, metrics = [], {}
    for count in args.sessions:
        for spoken in (False,) if args.text_only else (False, True):
            vocoder.first_sec.clear()
            replies = clients(engine, count, asked_of, args, spoken)
            kind = "speech to speech" if spoken else "text to speech"
            table, values = summary(f"{kind}, {count} sessions", replies, vocoder.first_sec)
            print(f"\n{table}", flush=True)
            tables.append(table)
            metrics |= {f"{kind.replace(' ', '_')}/{count}/{key}": value for key, value in values.items()}
    engine.close()
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "report.md").write_text("\n\n".join(tables) + "\n", encoding="utf-8")
        write_json(args.out / "result.json", metrics)


if __name__ == "__main__":
    main()
