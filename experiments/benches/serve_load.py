"""Many sessions at once for minutes: nothing mixed, memory flat, nobody held up.

    python -m experiments.benches.serve_load --random small --minutes 5 [--sessions 8]
    python -m experiments.benches.serve_load --model RUN_OR_FOLDER --codec NAME

Every client has questions of its own, in text and in speech, whose replies were made beforehand, one at a
time (the seed is part of the question). While all clients ask side by side, each reply must have the rows,
and each sound the samples, of the one made alone: that is the client's marker. One more client asks for long
replies and does not read them; every tenth reply is cancelled at its first sound; every session is closed
after two questions.
Prints a line for every 30 s: replies, rows/s, mixed replies, resident memory, threads, open sessions. Exit
code 1 if a reply was mixed, or if memory in the second half grew by more than 5 %.
"""

import argparse
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from experiments.benches.talking_model import question, random_model
from lit_moss.serve.engine import Engine, Session
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions
from lit_moss.serve.settings import Limits

QUESTIONS = 3  # of a client


@dataclass
class Answer:
    """Rows and samples of a reply."""

    rows: list[int]
    wave_T: torch.Tensor

    def same(self, other: "Answer") -> bool:
        """Whether they are the same reply; sound to within rounding."""
        if self.rows != other.rows or len(self.wave_T) != len(other.wave_T):
            return False
        return torch.allclose(self.wave_T, other.wave_T, rtol=0, atol=1e-3)


@dataclass
class Tally:
    """What all clients have seen."""

    replies: int = 0
    cancelled: int = 0
    mixed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def codes_of(session: Session, client: int, n: int) -> list[int]:
    """Codes of a spoken question."""
    turn = session.listen()
    for piece in question(1.0 + 0.3 * n, 7 * client + n).split(2400):
        turn.push(piece)
    return turn.finish().result()


def ask(session: Session, client: int, n: int, rows: int, cancel: bool = False) -> Answer | None:
    """A client's question number n; None if it was cancelled."""
    conversation = session.conversation
    conversation.messages.clear()
    if n % 2:
        conversation.add(conversation.speech_message("user", codes_of(session, client, n)))
    else:
        conversation.add(conversation.text_message("user", f"I am client {client}. Question {n}?"))
    reply = session.start_reply(ReplyOptions(max_new_tokens=rows, seed=100 * client + n))
    waves = [torch.zeros(0)]
    for event in reply:
        if isinstance(event, AudioDelta):
            waves.append(event.samples_T)
            if cancel:
                reply.cancel()
    assert isinstance(event, ReplyDone)
    if event.reason == "failed":
        raise RuntimeError(event.error)
    return None if cancel else Answer(event.rows, torch.cat(waves))


def client(engine: Engine, n: int, expected: list[Answer], rows: int, until: float, tally: Tally) -> None:
    """Asks until the end."""
    rng = random.Random(n)
    while time.monotonic() < until:
        session = engine.open_session()
        try:
            for _ in range(2):
                which, cancel = rng.randrange(QUESTIONS), rng.random() < 0.1
                answer = ask(session, n, which, rows, cancel)
                with tally.lock:
                    tally.replies += 1
                    tally.cancelled += cancel
                    if answer is not None and not answer.same(expected[which]):
                        tally.mixed.append(f"client {n}, question {which}")
        except Exception as error:
            with tally.lock:
                tally.mixed.append(f"client {n}: {error!r}")
        finally:
            session.close()


def stalled_client(engine: Engine, until: float) -> None:
    """Asks for long replies, reads the first event and waits."""
    while time.monotonic() < until:
        session = engine.open_session()
        conversation = session.conversation
        conversation.add(conversation.text_message("user", "Tell me everything."))
        next(iter(session.start_reply(ReplyOptions(max_new_tokens=1000, seed=1))))
        time.sleep(min(20.0, max(0.0, until - time.monotonic())))
        session.close()


def resident_mb() -> float:
    """Resident memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    return 0.0


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="run, checkpoint, folder or hub id")
    parser.add_argument("--codec", help="as of `serve`")
    parser.add_argument("--random", choices=("tiny", "small", "official"), help="random weights instead")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rows", type=int, default=30, help="rows of a reply")
    args = parser.parse_args()
    if (args.model is None) == (args.random is None):
        parser.error("give --model or --random")
    if args.model is not None:
        model = SpeechModel.open(args.model, args.codec, args.device)
    else:
        model = random_model(args.random, args.device)
    engine = Engine(model, Limits(max_sessions=args.sessions + 1, max_unsent_sec=3.0, max_kept_bytes=2**27))
    engine.warm_up()
    expected = []
    for n in range(args.sessions):
        session = engine.open_session()
        answers = [ask(session, n, which, args.rows) for which in range(QUESTIONS)]
        expected.append([answer for answer in answers if answer is not None])
        session.close()
    print(f"{args.sessions * QUESTIONS} replies made alone", flush=True)
    return run(engine, expected, args)


def run(engine: Engine, expected: list[list[Answer]], args: argparse.Namespace) -> int:
    """All clients for the given time; the exit code."""
    tally, until = Tally(), time.monotonic() + 60 * args.minutes
    threads = [
        threading.Thread(target=client, args=(engine, n, expected[n], args.rows, until, tally))
        for n in range(args.sessions)
    ]
    threads.append(threading.Thread(target=stalled_client, args=(engine, until)))
    for thread in threads:
        thread.start()
    memory, rows, began = [], engine.counts.rows.total(), time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(30.0, max(0.5, until - time.monotonic())))
        made, now = engine.counts.rows.total(), time.monotonic()
        memory.append(resident_mb())
        print(
            f"{tally.replies} replies ({tally.cancelled} cancelled), "
            f"{(made - rows) / (now - began):.1f} rows/s, {len(tally.mixed)} mixed, "
            f"{memory[-1]:.0f} MB, {threading.active_count()} threads, "
            f"{len(engine.sessions)} sessions",
            flush=True,
        )
        rows, began = made, now
    engine.close()
    half = memory[len(memory) // 2]
    print("\n".join(tally.mixed[:10]) or "nothing mixed")
    print(f"memory in the second half: {half:.0f} -> {max(memory[len(memory) // 2 :]):.0f} MB")
    return int(bool(tally.mixed) or max(memory[len(memory) // 2 :]) > 1.05 * half)


if __name__ == "__main__":
    sys.exit(main())
