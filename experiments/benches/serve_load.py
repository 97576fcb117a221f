"""Runs many concurrent sessions for minutes and checks that replies are not mixed and memory does not grow.

    python -m experiments.benches.serve_load --random small --minutes 5 [--sessions 8]
    python -m experiments.benches.serve_load --random tiny --minutes 5 --interface realtime
    python -m experiments.benches.serve_load --model RUN_OR_FOLDER --codec NAME

Sessions are those of the engine, or connections of the official `openai` client to the Realtime interface
over a local socket; in the latter case the server runs in a thread of this process, whose memory is measured.
Every client has its own questions, in text and in speech, whose replies were generated beforehand, one at a
time (the seed is part of the question). While all clients run concurrently, each reply must have the same
rows and the same samples as the one generated alone, which shows that replies are not mixed between clients.
One more client asks for long replies and does not read them; every tenth reply is cancelled at its first
sound; every session is closed after two questions.
Prints one line every 30 s: replies, rows/s, mixed replies, resident memory, threads, open sessions. The exit
code is 1 if a reply was mixed, or if memory grew by more than 5 % in the second half.
"""

import argparse
import base64
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from experiments.benches.talking_model import question, random_model
from lit_moss.serve.engine import Engine
from lit_moss.serve.model import SpeechModel
from lit_moss.serve.replies import AudioDelta, ReplyDone, ReplyOptions
from lit_moss.serve.settings import Limits
from lit_moss.serve.sounds import pcm16

QUESTIONS = 3  # per client


@dataclass
class Answer:
    """Rows and samples of a reply."""

    rows: list[int]
    wave_T: torch.Tensor

    def same(self, other: "Answer") -> bool:
        """Whether two replies have the same rows and the same samples up to rounding."""
        if self.rows != other.rows or len(self.wave_T) != len(other.wave_T):
            return False
        return torch.allclose(self.wave_T, other.wave_T, rtol=0, atol=1e-3)


@dataclass
class Tally:
    """Counts over all clients."""

    replies: int = 0
    cancelled: int = 0
    mixed: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def text_of(client: int, n: int) -> str:
    """Text of a written question."""
    return f"I am client {client}. Question {n}?"


def pieces_of(client: int, n: int) -> tuple[torch.Tensor, ...]:
    """A spoken question in pieces of 0.1 s."""
    return question(1.0 + 0.3 * n, 7 * client + n).split(2400)


class Talker(Protocol):
    """A session of one client."""

    def ask(self, client: int, n: int, rows: int, cancel: bool = False) -> Answer | None:
        """Asks question `n`, spoken if `n` is odd; returns None if it was cancelled at its first sound."""
        ...

    def stall(self) -> None:
        """Asks for a long reply and reads only its beginning."""
        ...

    def close(self) -> None:
        """Closes the session."""
        ...


class EngineTalker:
    """A session of the engine.

    Args:
        engine: Engine that the session belongs to.
    """

    def __init__(self, engine: Engine) -> None:
        self._session = engine.open_session()
        self.close = self._session.close

    def ask(self, client: int, n: int, rows: int, cancel: bool = False) -> Answer | None:
        """Implements `Talker.ask`."""
        conversation = self._session.conversation
        conversation.messages.clear()
        if n % 2:
            turn = self._session.listen()
            for piece in pieces_of(client, n):
                turn.push(piece)
            conversation.add(conversation.speech_message("user", turn.finish().result()))
        else:
            conversation.add(conversation.text_message("user", text_of(client, n)))
        reply = self._session.start_reply(ReplyOptions(max_new_tokens=rows, seed=100 * client + n))
        waves, done = [torch.zeros(0)], None
        for event in reply:
            if isinstance(event, AudioDelta):
                waves.append(event.samples_T)
                if cancel:
                    reply.cancel()
            elif isinstance(event, ReplyDone):
                done = event
        assert done is not None
        if done.reason == "failed":
            raise RuntimeError(done.error)
        return None if cancel else Answer(done.rows, torch.cat(waves))

    def stall(self) -> None:
        """Implements `Talker.stall`."""
        conversation = self._session.conversation
        conversation.add(conversation.text_message("user", "Tell me everything."))
        next(iter(self._session.start_reply(ReplyOptions(max_new_tokens=1000, seed=1))))


class RealtimeTalker:
    """A connection to the Realtime interface.

    Args:
        openai: The official client.
    """

    def __init__(self, openai: Any) -> None:
        self._connection = openai.realtime.connect(model="any").enter()
        self._send("session.update", session={"type": "realtime", "lit_moss": {"codes": True}})
        self._until("session.updated")

    def ask(self, client: int, n: int, rows: int, cancel: bool = False) -> Answer | None:
        """Implements `Talker.ask`."""
        if n % 2:
            for piece in pieces_of(client, n):
                self._send("input_audio_buffer.append", audio=base64.b64encode(pcm16(piece)).decode())
            self._send("input_audio_buffer.commit")
            item = {"type": "item_reference", "id": self._until("conversation.item.done")[-1]["item"]["id"]}
        else:
            content = [{"type": "input_text", "text": text_of(client, n)}]
            item = {"type": "message", "role": "user", "content": content}
        events = self._respond(rows, 100 * client + n, input=[item], conversation="none")
        if cancel:
            events += self._until("response.output_audio.delta", "response.done")
            if events[-1]["type"] != "response.done":
                self._send("response.cancel")
        if events[-1]["type"] != "response.done":
            events += self._until("response.done")
        status = events[-1]["response"]["status"]
        if status not in ("completed", "incomplete", "cancelled") or (status == "cancelled") > cancel:
            raise RuntimeError(events[-1]["response"]["status_details"])
        if n % 2:
            self._send("conversation.item.delete", item_id=item["id"])
            self._until("conversation.item.deleted")
        if cancel:
            return None
        codes = [code for e in events if e["type"] == "lit_moss.codes.delta" for code in e["codes"]]
        sounds = [base64.b64decode(e["delta"]) for e in events if e["type"] == "response.output_audio.delta"]
        samples = np.frombuffer(b"".join(sounds), "<i2").astype(np.float32) / 32768
        return Answer(codes, torch.from_numpy(samples))

    def stall(self) -> None:
        """Implements `Talker.stall`."""
        content = [{"type": "input_text", "text": "Tell me everything."}]
        self._respond(1000, 1, input=[{"type": "message", "role": "user", "content": content}])

    def close(self) -> None:
        """Implements `Talker.close`."""
        self._connection.close()

    def _respond(self, rows: int, seed: int, **response: Any) -> list[dict[str, Any]]:
        response |= {"max_output_tokens": rows, "lit_moss": {"seed": seed}}
        self._send("response.create", response=response)
        return self._until("response.created")

    def _send(self, name: str, **fields: Any) -> None:
        self._connection.send({"type": name, **fields})  # pyright: ignore[reportArgumentType]

    def _until(self, *names: str) -> list[dict[str, Any]]:
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] not in names:
            events.append(json.loads(self._connection.recv_bytes()))
            late_cancel = events[-1].get("error", {}).get("code") == "response_cancel_not_active"
            if events[-1]["type"] == "error" and not late_cancel:
                raise RuntimeError(events[-1]["error"]["message"])
        return events


def client(
    opened: Callable[[], Talker], n: int, expected: list[Answer], rows: int, until: float, tally: Tally
) -> None:
    """Opens sessions and asks questions until the time `until`."""
    rng = random.Random(n)
    while time.monotonic() < until:
        talker = None
        try:
            talker = opened()
            for _ in range(2):
                which, cancel = rng.randrange(QUESTIONS), rng.random() < 0.1
                answer = talker.ask(n, which, rows, cancel)
                with tally.lock:
                    tally.replies += 1
                    tally.cancelled += cancel
                    if answer is not None and not answer.same(expected[which]):
                        tally.mixed.append(f"client {n}, question {which}")
        except Exception as error:
            with tally.lock:
                tally.mixed.append(f"client {n}: {error!r}")
        finally:
            if talker is not None:
                talker.close()


def stalled_client(opened: Callable[[], Talker], until: float) -> None:
    """Asks for long replies and reads only their beginning until the time `until`."""
    while time.monotonic() < until:
        talker = opened()
        talker.stall()
        time.sleep(min(20.0, max(0.0, until - time.monotonic())))
        talker.close()


@contextmanager
def served(engine: Engine) -> Iterator[str]:
    """Runs a server in a thread; yields its address."""
    from lit_moss.serve.context import Context
    from lit_moss.serve.server import Server, bind

    ready, bound = threading.Event(), bind("127.0.0.1", 0)
    server = Server(Context(engine), 5.0, ready.set)
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}/v1"
    finally:
        server.stop()
        thread.join()


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
    parser.add_argument("--interface", choices=("engine", "realtime"), default="engine")
    parser.add_argument("--rows", type=int, default=30, help="rows of a reply")
    args = parser.parse_args()
    if (args.model is None) == (args.random is None):
        parser.error("give --model or --random")
    if args.model is not None:
        model = SpeechModel.open(args.model, args.codec, args.device)
    else:
        model = random_model(args.random, args.device)
    engine = Engine(
        model, Limits(max_sessions=2 * args.sessions + 2, max_unsent_sec=3.0, max_kept_bytes=2**27)
    )
    engine.warm_up()
    try:
        if args.interface == "engine":
            return run(engine, lambda: EngineTalker(engine), args)
        from openai import OpenAI

        with served(engine) as address, OpenAI(base_url=address, api_key="none") as openai:
            return run(engine, lambda: RealtimeTalker(openai), args)
    finally:
        engine.close()


def run(engine: Engine, opened: Callable[[], Talker], args: argparse.Namespace) -> int:
    """Runs all clients for the given time; returns the exit code."""
    expected = []
    for n in range(args.sessions):
        talker = opened()
        answers = [talker.ask(n, which, args.rows) for which in range(QUESTIONS)]
        expected.append([answer for answer in answers if answer is not None])
        talker.close()
    print(f"{args.sessions * QUESTIONS} replies made alone", flush=True)
    tally, until = Tally(), time.monotonic() + 60 * args.minutes
    threads = [
        threading.Thread(target=client, args=(opened, n, expected[n], args.rows, until, tally))
        for n in range(args.sessions)
    ]
    threads.append(threading.Thread(target=stalled_client, args=(opened, until)))
    for thread in threads:
        thread.start()
    memory, rows, began = [], engine.counts.rows.total(), time.monotonic()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(30.0, max(0.5, until - time.monotonic())))
        made, now = engine.counts.rows.total(), time.monotonic()
        if now < until + 1:
            memory.append(resident_mb())
        print(
            f"{tally.replies} replies ({tally.cancelled} cancelled), "
            f"{(made - rows) / (now - began):.1f} rows/s, {len(tally.mixed)} mixed, "
            f"{memory[-1]:.0f} MB, {threading.active_count()} threads, "
            f"{len(engine.sessions)} sessions",
            flush=True,
        )
        rows, began = made, now
    half = memory[len(memory) // 2]
    print("\n".join(tally.mixed[:10]) or "nothing mixed")
    print(f"memory in the second half: {half:.0f} -> {max(memory[len(memory) // 2 :]):.0f} MB")
    return int(bool(tally.mixed) or max(memory[len(memory) // 2 :]) > 1.05 * half)


if __name__ == "__main__":
    sys.exit(main())
