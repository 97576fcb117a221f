"""A chat completions server on this machine that answers as told, for tests of its clients."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response


@dataclass
class Answer:
    """What the server sends: a completion with `text`, or a `status` with headers."""

    text: str = ""
    finish_reason: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_sec: float = 0.0
    raw: str | None = None
    message: str = "no"
    refusal: str | None = None


class ChatServer:
    """Answers each request with `answer(body, n)`; n counts requests with the same last user message."""

    def __init__(self, answer: Callable[[dict, int], Answer]):
        self.answer, self.bodies, self.keys, self.times = answer, [], [], []
        self.running = self.most_running = 0
        self._seen: dict[str, int] = {}
        app = FastAPI()

        @app.post("/v1/chat/completions")
        async def complete(request: Request) -> Response:
            return await self._complete(await request.json(), request.headers.get("authorization"))

        config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    async def _complete(self, body: dict, key: str | None) -> Response:
        self.bodies.append(body)
        self.keys.append(key)
        self.times.append(time.monotonic())
        pair = body["messages"][1]["content"]
        n = self._seen[pair] = self._seen.get(pair, 0) + 1
        answer = self.answer(body, n)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await asyncio.sleep(answer.wait_sec)
        self.running -= 1
        if answer.raw is not None:
            return PlainTextResponse(answer.raw)
        if answer.status != 200:
            error = {"error": {"message": f"{answer.message} {key}", "type": "x"}}
            return JSONResponse(error, answer.status, headers=answer.headers)
        message = {"role": "assistant", "content": answer.text, "refusal": answer.refusal}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish_reason}
        usage = {"prompt_tokens": 60, "completion_tokens": 40, "total_tokens": 100}
        return JSONResponse({"id": "c", "object": "chat.completion", "created": 0, "model": body["model"],
                             "choices": [choice], "usage": usage})  # fmt: skip

    @property
    def url(self) -> str:
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}/v1"

    def __enter__(self) -> "ChatServer":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=5)


def pair_of(body: dict) -> dict:
    """The question and the answer that a request is about."""
    return json.loads(body["messages"][1]["content"])


def verdict(
    question="PASSTHROUGH", answer="PASSTHROUGH", question_text="", answer_text="", quality=5, **more
) -> str:
    """An answer of the form asked for."""
    sides = {
        "question": {"state": question, "text": question_text, "style": "neutral", "simplified": False},
        "answer": {
            "state": answer,
            "text": answer_text,
            "style": "happy",
            "corrected": True,
            "simplified": False,
        },
        "quality": quality,
    }
    sides["answer"].update(more)
    return json.dumps(sides, ensure_ascii=False)
