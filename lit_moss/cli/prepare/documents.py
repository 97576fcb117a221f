"""Converts manifests and text to token documents.

    prepare documents train.jsonl --kind interleaved --speech-tokenizer runs/codec_encoder --out
    data/interleaved

Kinds: `interleaved` (alternating text and speech), `unsupervised` (speech only), `text`, `sft` (conversations
in four modality pairs), `transcripts` (speech, then its text; text, then its speech). Sources: manifests
(JSON lines) and `embedded:everyday-en`; for `text` also .txt (an empty line ends a document), .csv
(`id|text|normalised`) and .jsonl with a `text` field; for `sft` .jsonl with `messages`.

Utterances that belong together are consecutive in a document: those with the same `document` in the manifest,
otherwise the same name before the last dash (LJ001-0001, 103-1240-0000), otherwise the same speaker,
otherwise the same name; names are compared within one folder. An utterance is divided into its own `chunks`
(see `prepare chunk`), or cut into chunks of 3 to 6 s by its `words` ([word, start, end] in seconds); without
either it is a single chunk.

For `sft`, a manifest can replace conversations: the user says a sentence, and the assistant repeats it, as
requested by the system prompt.
"""

import argparse
import json
import sys
from pathlib import Path

from lit_moss.cli.options import add_log_mel_argument
from lit_moss.errors import UserError

# Options that only some kinds have; those not given have the default of the kind.
_OPTIONS = (
    "speech_share",
    "alternate",
    "document_sec",
    "seed",
    "pairs",
    "train_on",
    "reply_form",
    "interleave_text",
    "interleave_codes",
    "asr",
    "tts",
    "asr_prompt",
    "tts_prompt",
    "speech_text",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of the stage."""
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="manifests, text, embedded:everyday-en")
    add("--kind", required=True, choices=["interleaved", "unsupervised", "text", "sft", "transcripts"])
    add(
        "--speech-tokenizer",
        help="speech tokenizer: checkpoint, run folder, folder, hub id, embedded:whisper-tiny-kmeans",
    )
    add_log_mel_argument(parser)
    add(
        "--backbone",
        default="embedded:smollm2-135m",
        help="model whose tokenizer makes the text rows (default embedded:smollm2-135m)",
    )
    add("--out", type=Path, help="folder to make; without it, one of the cache")
    add("--part", choices=["train", "validation"], default="train", help="of embedded corpora (train)")
    add(
        "--max-bad-share",
        type=float,
        default=0.01,
        help="stop above this share of unreadable recordings, 0 to 1 (0.01); a single one may always be",
    )
    add("--speech-share", type=float, help="interleaved: probability that a chunk is speech (0.5)")
    add("--alternate", action="store_true", default=None, help="interleaved: strictly by turns")
    add("--document-sec", type=float, help="interleaved, unsupervised: most seconds of a document (60)")
    add("--seed", type=int, help="interleaved, transcripts: of the choices (1)")
    add(
        "--spans",
        type=int,
        nargs=2,
        metavar=("MIN", "MAX"),
        help="interleaved: text and speech by turns, in spans of so many words; needs their times",
    )
    add("--asr", type=float, help="transcripts: share of the utterances as speech, then text (1)")
    add("--tts", type=float, help="transcripts: share of the utterances as text, then speech (1)")
    add("--asr-prompt", help="transcripts: text before the speech of the first (none)")
    add("--tts-prompt", help="transcripts: text before the text of the others (none)")
    add(
        "--speech-text",
        action="store_true",
        default=None,
        help="documents carry the text of their speech, for model.ctc and init_codes: text",
    )
    add(
        "--pairs",
        nargs="+",
        action="extend",
        metavar="USER-REPLY",
        help="sft: some of speech-speech, speech-text, text-speech, text-text (all four)",
    )
    add(
        "--train-on",
        choices=["assistant", "answer", "all"],
        help="sft: whose turns count (assistant); transcripts: all rows or the answer's (all)",
    )
    add(
        "--reply-form",
        choices=["direct", "guided", "interleaved"],
        help="sft: spoken replies as speech alone, text before the speech, or both in turns (direct)",
    )
    add("--interleave-text", type=int, help="sft: text ids of a turn of interleaved replies (13)")
    add("--interleave-codes", type=int, help="sft: codes of a turn of interleaved replies (26)")


def main(args: argparse.Namespace) -> None:
    """Makes the documents and prints their number."""
    from lit_moss.data.make_documents import make_documents

    if not 0 <= args.max_bad_share <= 1:
        raise UserError(f"--max-bad-share is {args.max_bad_share}, expected a share from 0 to 1")
    options = {name: value for name, value in sorted(vars(args).items()) if name in _OPTIONS}
    if args.spans:
        options["spans"] = dict(zip(("min_words", "max_words"), args.spans, strict=True))
    folder = make_documents(
        args.kind,
        args.sources,
        args.part,
        args.backbone,
        args.speech_tokenizer,
        args.out,
        {name: value for name, value in options.items() if value is not None},
        args.log_mel,
        args.max_bad_share,
    )
    meta = json.loads((folder / "meta.json").read_text())
    if missing := meta.get("without_word_times"):
        print(
            f"{missing} utterances have no word times and are one chunk each, whatever their length: "
            "prepare align adds the times",
            file=sys.stderr,
        )
    print(f"{folder}: {meta['documents']} documents, {meta['rows']} rows of kind {meta['kind']}")
