"""Responses of chat completions as JSON: complete, or as the chunks of a stream."""

import base64
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any

from lit_moss.llm.rows import RowFormat
from lit_moss.serve.replies import ReplyDone

DONE = b"data: [DONE]\n\n"


class Answer:
    """One response, with the ids and times that all its parts contain.

    Args:
        model: Name of the model.
        audio_sec: Time in seconds during which a spoken reply can be referenced by its id.
    """

    def __init__(self, model: str, audio_sec: float) -> None:
        self.created = int(time.time())
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.audio_id = f"audio_{uuid.uuid4().hex}"
        self.expires_at = self.created + int(audio_sec)
        self.model = model

    def whole(self, text: str, sound: bytes | None, finish: str, usage: dict[str, Any]) -> dict[str, Any]:
        """The complete response.

        Args:
            text: Text of the reply; for a spoken reply its transcript.
            sound: Bytes of a spoken reply; None for a text reply.
            finish: `finish_reason`.
            usage: Token counts, see `usage_of`.
        """
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if sound is not None:
            data = base64.b64encode(sound).decode("ascii")
            message |= {
                "content": None,
                "audio": {"id": self.audio_id, "data": data, "transcript": text,
                          "expires_at": self.expires_at},
            }  # fmt: skip
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """A chunk of the stream."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self._head("chat.completion.chunk"), "choices": [choice]})

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        """The last chunk, which only contains token counts."""
        return _event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def error_chunk(body: dict[str, Any]) -> bytes:
    """An error after the stream has started; nothing follows it."""
    return _event(body)


def _event(content: dict[str, Any]) -> bytes:
    # Non-ASCII characters are escaped: some readers of event streams also end lines at U+2028.
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n".encode()


def usage_of(done: ReplyDone, row_format: RowFormat) -> dict[str, Any]:
    """Token counts; each row is one token: a text id, a code, or a marker of turns and speech.

    Args:
        done: End event of the reply.
        row_format: Row format: ids of text and speech.
    """
    prompt_codes, codes = (_codes(rows, row_format) for rows in (done.prompt, done.rows))
    return {
        "prompt_tokens": len(done.prompt),
        "completion_tokens": len(done.rows),
        "total_tokens": len(done.prompt) + len(done.rows),
        "prompt_tokens_details": {
            "audio_tokens": prompt_codes,
            "text_tokens": len(done.prompt) - prompt_codes,
            "cached_tokens": done.usage.cached_rows,
        },
        "completion_tokens_details": {
            "audio_tokens": codes,
            "text_tokens": len(done.rows) - codes,
            "reasoning_tokens": 0,
        },
    }


def _codes(rows: Sequence[int], row_format: RowFormat) -> int:
    return sum(row_format.text_vocab_size <= row < row_format.eosp_row for row in rows)
