"""Talk to a model: on a page in the browser, or with one question in the terminal.

    chat --model DIR                                       server and page, only for this machine
    chat --model DIR --once question.wav --out answer.wav  a spoken question and answer
    chat --model DIR --text "What is rain?"                a typed question and answer

The page is part of the server that `serve` starts, whose options are available here, too.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from lit_moss.cli import serve
from lit_moss.cli.serve_options import open_model
from lit_moss.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.serve.engine import Session
    from lit_moss.serve.replies import ReplyOptions


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the verb."""
    serve.add_arguments(parser)
    terminal = parser.add_argument_group("one question in the terminal")
    question = terminal.add_mutually_exclusive_group()
    question.add_argument("--once", type=Path, metavar="FILE", help="sound file with the question")
    question.add_argument("--text", metavar="TEXT", help="the question in text")
    terminal.add_argument(
        "--out", type=Path, metavar="FILE", help="sound file of the answer: .wav, .flac, .ogg or .mp3"
    )
    terminal.add_argument(
        "--reply", choices=("speech", "text"), help="modality of the answer (default: speech with --out)"
    )
    terminal.add_argument("--instructions", help="text added to the system prompt")
    terminal.add_argument("--temperature", type=float, help="of text and codes; 0 is greedy (default 0.6)")
    terminal.add_argument("--seed", type=int, help="of the sampling (default: drawn)")
    terminal.add_argument("--force", action="store_true", help="overwrite --out")


def main(args: argparse.Namespace) -> None:
    """Answers one question, or serves until interrupted."""
    if args.once is None and args.text is None:
        names = ("out", "reply", "instructions", "temperature", "seed")
        given = [f"--{name}" for name in names if getattr(args, name) is not None]
        given += ["--force"] if args.force else []
        if given:
            raise UserError(
                f"options that need a question: {', '.join(given)}; give --once FILE or --text TEXT as well"
            )
        serve.main(args, "/")
    else:
        _check_no_server(args)
        _answer(args)


# --- one question in the terminal ---------------------------------------------------------------------------


def _answer(args: argparse.Namespace) -> None:
    from lit_moss.audio import io, rates
    from lit_moss.files import atomic_write, errors_of_writing
    from lit_moss.serve.engine import Engine

    options, limits = _reply_options(args), serve.limits_of(args)
    try:
        wave_T = None if args.once is None else io.read(args.once, rates.TOKENIZER_RATE_HZ)
    except io.UnreadableAudio as error:
        raise UserError(f"--once {error}") from error
    engine = Engine(open_model(args), limits)
    try:
        engine.warm_up()  # measures the times of a running server
        session = engine.open_session(args.instructions or "")
        _ask(session, args.text, wave_T)
        sound_T, line = _listen(session, options)
        if args.out is not None:
            if not len(sound_T):
                raise UserError("the answer has no sound, nothing was written: try another --seed")
            with errors_of_writing(args.out), atomic_write(args.out) as partial:
                io.write(partial, sound_T, rates.DECODER_RATE_HZ)
            line = f"{args.out}: {line}"
        print(line)
    finally:
        engine.close()


def _check_no_server(args: argparse.Namespace) -> None:
    server = argparse.ArgumentParser()
    serve.add_server_arguments(server)
    given = [name for name in vars(server.parse_args([])) if getattr(args, name) != server.get_default(name)]
    if given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UserError(f"options of the server: {options}; --once and --text start none, leave them out")


def _reply_options(args: argparse.Namespace) -> "ReplyOptions":
    """The requested reply; reports mistakes before anything is opened."""
    from lit_moss.files import check_can_write
    from lit_moss.llm.sampling import sampling_of
    from lit_moss.records import printable
    from lit_moss.serve.replies import ReplyOptions

    reply = args.reply or ("text" if args.out is None else "speech")
    if (reply == "speech") != (args.out is not None):
        raise UserError(
            "--reply speech needs --out FILE" if reply == "speech" else "--out needs an answer in speech"
        )
    if len(args.voice) > 1:
        raise UserError(f"--voice is given {len(args.voice)} times, one answer has one: leave the others out")
    if args.out is not None:
        if args.out.suffix.lower() not in (".wav", ".flac", ".ogg", ".mp3"):
            raise UserError(f"--out is {args.out}, expected a name that ends in .wav, .flac, .ogg or .mp3")
        check_can_write(args.out)
        if args.out.exists() and not args.force:
            raise UserError(f"{args.out} exists: give another --out, or --force to overwrite")
    most = ReplyOptions.max_new_tokens if args.max_new_tokens is None else args.max_new_tokens
    if most < 1:
        raise UserError(f"--max-new-tokens is {most}, expected 1 or more")
    if args.text is not None and not args.text.strip():
        raise UserError("--text is empty: expected a question")
    for name in ("text", "instructions"):
        text = getattr(args, name) or ""
        if printable(text) != text:
            raise UserError(
                f"--{name} holds {printable(text)!r:.80}, which is not UTF-8: expected text in UTF-8"
            )
    if args.temperature is not None and not args.temperature >= 0:
        raise UserError(f"--temperature is {args.temperature}, expected 0 or more")
    sampling = sampling_of(args.temperature)
    voice = args.voice[0].partition("=")[0] if args.voice else "default"
    return ReplyOptions(
        reply, max_new_tokens=most, text=sampling, speech=sampling, seed=args.seed, voice=voice
    )


def _ask(session: "Session", text: str | None, wave_T: "Tensor | None") -> None:
    from lit_moss.audio import rates

    conversation = session.conversation
    if wave_T is None:
        conversation.add(conversation.text_message("user", text or ""))
    else:
        turn = session.listen(rates.TOKENIZER_RATE_HZ)
        turn.push(wave_T)
        conversation.add(conversation.speech_message("user", turn.finish().result()))


def _listen(session: "Session", options: "ReplyOptions") -> "tuple[Tensor, str]":
    """Prints the answer as it is generated; returns its audio (T,) at 24 kHz and a line about timing."""
    import time

    import torch

    from lit_moss.audio import rates
    from lit_moss.serve.replies import AudioDelta, ReplyDone, TextDelta

    began, sounds, has_text = time.monotonic(), [torch.zeros(0)], False
    line = ""
    for event in session.start_reply(options):
        if isinstance(event, TextDelta):
            print(event.text, end="", flush=True)
            has_text = True
        elif isinstance(event, AudioDelta):
            sounds.append(event.samples_T)
        elif isinstance(event, ReplyDone):
            if has_text:
                print()
            if event.reason == "failed":
                raise UserError(f"no answer: {event.error}")
            taken = time.monotonic() - began
            line = f"{len(event.rows)} rows in {taken:.2f} s"
            seconds = sum(map(len, sounds)) / rates.DECODER_RATE_HZ
            if event.usage.first_sound_sec is not None:
                line = (
                    f"{seconds:.1f} s of speech, first sound after {event.usage.first_sound_sec:.2f} s, "
                    f"real-time factor {taken / seconds:.2f}"
                )
            if event.reason == "length":
                line += f"; cut at {options.max_new_tokens} rows (--max-new-tokens)"
    return torch.cat(sounds), line
