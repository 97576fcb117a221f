"""Server events of the Realtime interface, with the names and fields of OpenAI's general release.

Source: the types of the package `openai` 3.57, `openai.types.realtime`.
"""

import uuid
from dataclasses import asdict
from typing import Any

from lit_moss.serve.replies import Usage

Json = dict[str, Any]


class Refused(Exception):  # noqa: N818 - the client's error, sent to it
    """A client event that is rejected; the session continues.

    Args:
        message: One line: what was given and what is expected.
        code: Machine-readable name of the error.
        param: Path of the invalid field.
        kind: `invalid_request_error` or `server_error`.
    """

    def __init__(
        self, message: str, code: str = "invalid_value", param: str | None = None,
        kind: str = "invalid_request_error",
    ) -> None:  # fmt: skip
        super().__init__(message)
        self.code, self.param, self.kind = code, param, kind


def new_id(kind: str) -> str:
    """A unique id such as `event_…` or `resp_…`."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def event(name: str, **fields: Any) -> Json:
    """A server event with its own id."""
    return {"type": name, "event_id": new_id("event"), **fields}


def error_event(refused: Refused, client_event_id: str | None = None) -> Json:
    """The event that reports a rejected client event."""
    error = {
        "type": refused.kind,
        "code": refused.code,
        "message": str(refused),
        "param": refused.param,
        "event_id": client_event_id,
    }
    return event("error", error=error)


def usage_of(usage: Usage) -> Json:
    """Token counts in the form of the interface: text ids and codes."""
    return {
        "total_tokens": usage.prompt_rows + usage.text_rows + usage.speech_rows,
        "input_tokens": usage.prompt_rows,
        "output_tokens": usage.text_rows + usage.speech_rows,
        "input_token_details": {
            "text_tokens": usage.prompt_rows - usage.prompt_speech_rows,
            "audio_tokens": usage.prompt_speech_rows,
            "cached_tokens": usage.cached_rows,
        },
        "output_token_details": {"text_tokens": usage.text_rows, "audio_tokens": usage.speech_rows},
    }


def timing_event(response_id: str, usage: Usage) -> Json:
    """A lit_moss event: row counts and times of a response, with the fields of
    `lit_moss.serve.replies.Usage`."""
    return event("lit_moss.response.timing", response_id=response_id, usage=asdict(usage))


def codes_event(response_id: str, codes: list[int]) -> Json:
    """A lit_moss event: codes of a response, before they are decoded."""
    return event("lit_moss.codes.delta", response_id=response_id, codes=codes)
