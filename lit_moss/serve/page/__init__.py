"""The web page to talk to a model: static files in this folder, which use `/v1/realtime`.

There is no build step and nothing is loaded from elsewhere, so the page works without a network. Audio is
played by AudioWorklets (`worklets.js`), because gradio streams audio through ffmpeg, AAC and HLS.
"""

import importlib.util
from dataclasses import asdict
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from lit_moss.llm.sampling import Sampling
from lit_moss.serve.context import Context
from lit_moss.serve.replies import ReplyOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

SCRIPTS = (
    "buttons.js", "chat.js", "download.js", "heard.js", "message.js", "queue.js", "realtime.js",
    "settings.js", "sound.js", "view.js", "worklets.js", "zip.js",
)  # fmt: skip
FILES = {
    "index.html": "text/html; charset=utf-8",
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **dict.fromkeys(SCRIPTS, "text/javascript; charset=utf-8"),
}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # a cached page may be of another version of the server
}


def page_config(context: Context) -> dict[str, Any]:
    """What the page has to know about its server, as JSON."""
    model, limits = context.engine.model, context.engine.limits
    return {
        "model": model.name,
        "voices": list(model.voices),
        "can_listen": model.speech_tokenizer is not None,
        "can_speak": model.codec is not None,
        "can_find_turns": importlib.util.find_spec("silero_vad") is not None,
        "needs_key": context.api_key is not None,
        "codebook": model.lm.format.eosp_token_id,
        "settings": {
            **asdict(Sampling()),
            "repetition_penalty": None,  # see `Extras`
            "reply_form": model.record.form.name,
            "max_tokens": min(ReplyOptions.max_new_tokens, limits.max_new_tokens),
        },
        "limits": {"max_turn_sec": limits.max_turn_sec, "max_new_tokens": limits.max_new_tokens},
    }


def add_page(app: "FastAPI", context: Context) -> None:
    """Serves the page at `/`, its files at `/page/NAME`, and its configuration at `/page/config.json`.

    These need no API key: the page asks for it and passes it to `/v1/realtime`.
    """
    from fastapi import HTTPException, Response

    # Read once: names in a request are dictionary keys, never paths.
    contents = {name: (files(__name__) / name).read_bytes() for name in FILES}

    def respond(name: str) -> Response:
        return Response(contents[name], media_type=FILES[name], headers=HEADERS)

    @app.get("/")
    def page() -> Response:
        return respond("index.html")

    @app.get("/page/config.json")
    def config() -> dict[str, Any]:
        return page_config(context)

    @app.get("/page/{name}")
    def file(name: str) -> Response:
        if name not in contents:
            raise HTTPException(404, f"the page has no file {name}")
        return respond(name)
