"""Starts a server with OpenAI's chat completions (with audio) and Realtime interface, and a page to talk to.

Clients of OpenAI's interfaces connect to http://HOST:PORT/v1; the page is at http://HOST:PORT/. For operators
there are /health and /metrics. The server prints one line when it is ready. By default it only accepts
connections from this machine; --host changes that and requires a key.

On SIGTERM or Ctrl-C it rejects new requests (503; /health reports draining), finishes the replies in progress
and exits: 0 after SIGTERM, 130 after Ctrl-C, 143 if replies were cut off after --drain-sec. A second signal
ends it immediately.
"""

import argparse
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.cli.serve_options import add_model_arguments, open_model
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from lit_moss.serve.settings import Limits

KEY_VARIABLE = "LIT_MOSS_API_KEY"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    add_model_arguments(parser)
    _add_reply_arguments(parser)
    add_server_arguments(parser)


def _add_reply_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options that also apply to a single question."""
    parser.add_argument(
        "--max-turn-sec", type=float, default=120.0, help="seconds of speech in a turn (default 120)"
    )
    parser.add_argument(
        "--max-new-tokens", type=int,
        help="rows of a reply at most (default 2000 = 160 s; 500 = 40 s for one question of `chat`)",
    )  # fmt: skip
    parser.add_argument(
        "--max-context-rows", type=int, default=16384,
        help="rows of a conversation and the reply to it at most; the model's own limit holds too "
        "(default 16384)",
    )  # fmt: skip


def add_server_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds options of a server with clients."""
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default 8000)")
    parser.add_argument(
        "--api-key-file", type=Path, metavar="FILE",
        help=f"file with the key that clients must send as Authorization: Bearer KEY (default: "
        f"${KEY_VARIABLE}; without both, none is asked for)",
    )  # fmt: skip
    parser.add_argument("--insecure", action="store_true", help="allow other machines without a key")
    parser.add_argument(
        "--allow-host", action="append", default=[], metavar="NAME",
        help="further name under which requests may reach a server without a key, such as a proxy's; may be "
        "repeated",
    )  # fmt: skip
    parser.add_argument(
        "--cors-origin", action="append", default=[], metavar="ORIGIN",
        help="origin of web pages that may read the answers, such as https://example.org; may be repeated "
        "(default: none but the server's own page)",
    )  # fmt: skip
    parser.add_argument("--max-sessions", type=int, default=8, help="sessions at once (default 8)")
    parser.add_argument(
        "--max-upload-mb", type=float, default=24.0, help="MiB of a request at most (default 24)"
    )
    parser.add_argument(
        "--kept-mb", type=float, default=1024.0,
        help="MiB of keys and values kept of closed sessions, for clients that send the whole conversation "
        "with each question (default 1024)",
    )  # fmt: skip
    parser.add_argument(
        "--idle-sec", type=float, default=300.0,
        help="seconds after which a session whose client is silent is closed (default 300)",
    )  # fmt: skip
    parser.add_argument(
        "--session-sec", type=float, default=3600.0, help="seconds of the longest session (default 3600)"
    )
    parser.add_argument(
        "--drain-sec", type=float, default=30.0, help="seconds that replies have to end (default 30)"
    )


def main(args: argparse.Namespace, path: str = "/v1") -> None:
    """Serves until a signal arrives.

    Args:
        args: Parsed options.
        path: Path to append to the printed address of the server.
    """
    api_key = _api_key(args)
    _check_exposure(args, api_key)
    if not 0 <= args.drain_sec < math.inf:
        raise UserError(f"--drain-sec is {args.drain_sec}, expected seconds from 0 on")
    try:
        import fastapi  # noqa: F401  so that a missing package is known before the model is opened
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the server needs {error.name}: pip install 'lit-moss[serve]'") from error
    from lit_moss.serve.context import Context
    from lit_moss.serve.engine import Engine
    from lit_moss.serve.guard import checked_host, checked_origin
    from lit_moss.serve.server import bind, serve

    limits = limits_of(args)
    names = [checked_host(name) for name in args.allow_host]
    origins = tuple(checked_origin(page) for page in args.cors_origin)
    hosts = () if api_key or args.insecure else (*LOOPBACK, *names)
    bound = bind(args.host, args.port)
    host, port = bound.getsockname()[:2]
    model = open_model(args)
    context = Context(Engine(model, limits), api_key, cors_origins=origins, hosts=hosts)
    hears = "text and speech" if model.speech_tokenizer is not None else "text"
    speaks = "text and speech" if model.codec is not None else "text"
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def say_ready() -> None:
        print(f"{address}{path}: {model.name} takes {hears}, replies in {speaks}", flush=True)

    server = serve(context, bound, args.drain_sec, say_ready)
    if server.was_cut:
        raise SystemExit(143)
    if 2 in server.signals:
        raise KeyboardInterrupt


def limits_of(args: argparse.Namespace) -> "Limits":
    """The limits given by the options.

    Raises:
        UserError: if a number is not positive or not finite.
    """
    from lit_moss.serve.settings import Limits, check_limit

    for name in ("max_turn_sec", "idle_sec", "session_sec"):
        check_limit(f"--{name.replace('_', '-')}", getattr(args, name))
    most = Limits.max_new_tokens if args.max_new_tokens is None else args.max_new_tokens
    return Limits(
        max_sessions=args.max_sessions, max_turn_sec=args.max_turn_sec, max_new_tokens=most,
        max_upload_bytes=_bytes("--max-upload-mb", args.max_upload_mb),
        max_context_rows=args.max_context_rows,
        max_kept_bytes=_bytes("--kept-mb", args.kept_mb), idle_sec=args.idle_sec,
        session_sec=args.session_sec,
    )  # fmt: skip


def _bytes(option: str, mebibytes: float) -> int:
    size = mebibytes * 2**20
    if not 1 <= size < math.inf:
        raise UserError(f"{option} is {mebibytes}, expected a number of MiB above 0")
    return int(size)


def _api_key(args: argparse.Namespace) -> str | None:
    if args.api_key_file is None:
        return _checked_key(os.environ.get(KEY_VARIABLE), f"${KEY_VARIABLE}")
    try:
        content = args.api_key_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {args.api_key_file} cannot be read: expected a text file") from error
    return _checked_key(content, f"--api-key-file {args.api_key_file}")


def _checked_key(text: str | None, source: str) -> str | None:
    if text is None:
        return None
    key = text.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{source} holds no key: expected one line of ASCII characters without spaces")
    return key


def _check_exposure(args: argparse.Namespace, api_key: str | None) -> None:
    if args.host not in LOOPBACK and api_key is None and not args.insecure:
        raise UserError(
            f"--host {args.host} lets other machines use the model without a key: give --api-key-file or "
            f"${KEY_VARIABLE}, or --insecure if everybody there may"
        )
