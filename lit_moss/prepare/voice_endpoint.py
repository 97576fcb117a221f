"""A voice on an OpenAI-compatible speech endpoint (`POST /v1/audio/speech`).

    https://host/v1?model=MODEL&voice=NAME         any language
    http://localhost:8000/v1?model=M&voice=V&lang=en,zh

The API key is read from an environment variable named by an option; it is in no address, log or manifest. A
style is passed on as `instructions`. An endpoint does not return identical bytes for the same text: existing
sound files are kept, and only a run from scratch makes others.
"""

import io
import os
from typing import Any
from urllib.parse import parse_qs, urlsplit, urlunsplit

import soundfile

from lit_moss.errors import UserError
from lit_moss.prepare.voice_protocol import CannotSay, Speech, Wording

_RETRIES = 5  # retries of the openai client: 408, 409, 429, 5xx and lost connections, respecting Retry-After


class EndpointVoice:
    """A voice on an endpoint, see the module docstring.

    Args:
        address: Address with `model` and `voice`, and `lang` if it does not support all languages.
        api_key_env: Environment variable that contains the API key; may be unset if the endpoint needs none.
        timeout_sec: Timeout of a request in seconds.

    Raises:
        UserError: if the address lacks `model` or `voice`, or contains a password or anything else.
    """

    takes_style = True

    def __init__(self, address: str, api_key_env: str, timeout_sec: float) -> None:
        parts, shown = urlsplit(address), address.split("?")[0].split("@")[-1]
        if "@" in parts.netloc:
            raise UserError(
                f"the address of {shown} holds a user or password: put the key into ${api_key_env}"
            )
        query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
        if not query.get("model") or not query.get("voice") or set(query) - {"model", "voice", "lang"}:
            raise UserError(
                f"endpoint {shown} has {', '.join(sorted(query)) or 'nothing'} after the `?`, expected "
                f"{shown}?model=MODEL&voice=NAME, or also &lang=en,zh; keys come from ${api_key_env}"
            )
        self._base = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/"), "", ""))
        self._model, self._voice = query["model"], query["voice"]
        self._key_env, self._timeout_sec = api_key_env, timeout_sec
        self.languages = tuple(query["lang"].split(",")) if query.get("lang") else None
        self.speaker = f"{self._model}-{self._voice}".replace("/", "-")

    def content(self) -> dict[str, Any]:
        return {"voice": self._base, "model": self._model, "name": self._voice}

    def open(self) -> None:
        try:
            from openai import OpenAI
        except ImportError as error:
            raise UserError("endpoints need the package openai: pip install 'lit-moss[prepare]'") from error
        key = os.environ.get(self._key_env) or "none"
        self._client = OpenAI(
            api_key=key, base_url=self._base, timeout=self._timeout_sec, max_retries=_RETRIES
        )

    def say(self, wording: Wording) -> Speech:
        import openai

        more: dict[str, Any] = {}
        if wording.style and wording.style != "neutral":
            more["instructions"] = f"Speak in this tone: {wording.style}."
        if wording.speed != 1.0:
            more["speed"] = wording.speed
        try:
            answer = self._client.audio.speech.create(
                model=self._model, voice=self._voice, input=wording.text, response_format="wav", **more
            )
            wave, rate_hz = soundfile.read(io.BytesIO(answer.content), dtype="float32", always_2d=True)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise CannotSay("the endpoint refused the text", f"status {error.status_code}") from error
        except openai.APIStatusError as error:
            raise UserError(
                f"{self._base} answered {error.status_code} for model {self._model!r}: check the address, "
                f"the model and the key in ${self._key_env}"
            ) from error
        except openai.APIError as error:
            raise UserError(
                f"{self._base} does not answer ({type(error).__name__}): start again later"
            ) from error
        except soundfile.SoundFileError as error:
            raise CannotSay("the endpoint sent no wav file", f"{len(answer.content)} bytes") from error
        return Speech(wave[:, 0], rate_hz)
