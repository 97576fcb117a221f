"""Converts manifests and text to folders of token documents; each folder is made only once.

| kind | documents | sources |
|---|---|---|
| `interleaved` | alternating text and speech | manifests |
| `unsupervised` | speech only | manifests |
| `text` | text only | text lists (see `lit_moss.corpora.text`), manifests |
| `sft` | conversations in the four modality pairs | conversations; manifests, repeated by the assistant |
| `transcripts` | speech then its text (asr), text then its speech (tts) | manifests |

A source may also be `embedded:everyday-en`. For the grouping of utterances into documents see
`lit_moss.data.grouping`.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss import assets
from lit_moss.corpora.sources import locate
from lit_moss.data.conversation import PAIRS
from lit_moss.data.word_spans import WordSpans
from lit_moss.errors import UserError
from lit_moss.llm.replies import ReplyForm
from lit_moss.records import file_name

if TYPE_CHECKING:
    from lit_moss.corpora.manifest import Utterance
    from lit_moss.data.builder import DocumentBuilder
    from lit_moss.hub.tokenizer import NamedTokenizer

# Kind -> its options and their defaults.
OPTIONS: dict[str, dict[str, Any]] = {
    "interleaved": {
        "speech_share": 0.5,
        "alternate": False,
        "document_sec": 60.0,
        "seed": 1,
        "spans": None,
        "speech_text": False,
    },
    "unsupervised": {"document_sec": 60.0, "speech_text": False},
    "text": {},
    "sft": {
        "pairs": ["speech-speech", "speech-text", "text-speech", "text-text"],
        "train_on": "assistant",
        "reply_form": "direct",
        "interleave_text": 13,
        "interleave_codes": 26,
        "speech_text": False,
    },
    "transcripts": {
        "asr": 1.0,
        "tts": 1.0,
        "asr_prompt": "",
        "tts_prompt": "",
        "train_on": "all",
        "seed": 1,
        "speech_text": False,
    },
}
# Options added later. Their defaults change nothing, so folders made before they existed keep their names.
_LATER = ("spans", "speech_text")
_VERSION = 5  # of the rules that make documents; a change makes new documents
CODES_OF_TEXT = 1024  # codebook size in the row format of documents without speech


def make_documents(
    kind: str,
    sources: Sequence[str],
    part: str,
    backbone: str,
    speech_tokenizer: str | None,
    out: Path | None = None,
    options: dict[str, Any] | None = None,
    log_mel: str | None = None,
    max_bad_share: float = 0.01,
) -> Path:
    """A folder of token documents; made once for the same inputs, then taken from the cache.

    Args:
        kind: interleaved, unsupervised, text, sft or transcripts.
        sources: Manifests, text lists or conversations, as listed in the module docstring.
        part: Part of embedded corpora, `train` or `validation`.
        backbone: Model whose tokenizer makes the text rows.
        speech_tokenizer: Speech tokenizer; required if there is speech.
        out: Folder to create; it must not exist. None: a cache folder named by a hash of all inputs.
        options: Options of the kind, see `OPTIONS`.
        log_mel: Features of the speech tokenizer, see `open_tokenizer`.
        max_bad_share: Fraction of unreadable recordings above which an error is raised, see
            `encode_utterances`.

    Raises:
        UserError: if a source is missing, empty or unsuitable for the kind, an option is wrong, or the speech
            tokenizer is missing.
    """
    from lit_moss.data.document_builders import BUILDERS, check_transcripts
    from lit_moss.data.documents import DocumentWriter
    from lit_moss.hub.code_cache import encode_utterances

    recipe = DocumentRecipe.open(kind, backbone, speech_tokenizer, options or {}, log_mel)
    if out is not None and out.exists():
        raise UserError(f"{out} exists: documents are never rewritten, give another folder or remove it")
    paths = [locate(source, part) for source in sources]
    recordings = {path: BUILDERS[kind].recordings(path) for path in paths}
    inputs = recipe.inputs | {"sources": [assets.sha256_of(path)[:16] for path in paths]}
    folder = out or _cached_folder(inputs, recordings)
    if folder.exists():
        return folder
    builder = recipe.builder()
    for path, utterances in recordings.items():
        if utterances and recipe.tokenizer:
            encoded = encode_utterances(utterances, recipe.tokenizer, max_bad_share)
            builder.add_speech(path, utterances, encoded)
            check_transcripts(str(path), builder.silent.get(path, []), len(utterances))
    if out is None and folder.exists():  # made by another process meanwhile, with the same content
        return folder
    with DocumentWriter(folder, inputs | builder.meta() | {"skipped": builder.skipped}) as writer:
        for path in paths:
            for document in builder.documents(path):
                writer.add(kind=kind, **asdict(document))
        writer.counts |= builder.counts()
    if builder.incomplete:
        print(f"{folder.name}: {builder.incomplete} conversations lack a modality of a pair", file=sys.stderr)
    return folder


@dataclass(frozen=True)
class DocumentRecipe:
    """Everything that determines documents besides their sources.

    Args:
        kind: interleaved, unsupervised, text, sft or transcripts.
        options: All options of the kind.
        text_tokenizer: Text tokenizer, as returned by `load_text_tokenizer`.
        tokenizer: Speech tokenizer; None: documents without speech.
        inputs: The above as fingerprints and plain values; part of the documents' `meta`.
    """

    kind: str
    options: dict[str, Any]
    text_tokenizer: Any
    tokenizer: "NamedTokenizer | None"
    inputs: dict[str, Any]

    @classmethod
    def open(
        cls,
        kind: str,
        backbone: str,
        speech_tokenizer: str | None,
        options: dict[str, Any],
        log_mel: str | None = None,
    ) -> "DocumentRecipe":
        """Creates the recipe; arguments and errors as in `make_documents`."""
        from lit_moss.hub.tokenizer import NamedTokenizer
        from lit_moss.llm.backbone import load_text_tokenizer, text_tokenizer_fingerprint

        options = _checked_options(kind, options)
        if speech_tokenizer is None and kind != "text":
            raise UserError(
                f"documents of kind {kind} hold speech: give a speech tokenizer, e.g. "
                "embedded:whisper-tiny-kmeans"
            )
        text_tokenizer = load_text_tokenizer(backbone)
        tokenizer = NamedTokenizer(speech_tokenizer, log_mel) if speech_tokenizer else None
        inputs = {
            "version": _VERSION,
            "kind": kind,
            "options": _recorded_options(kind, options),
            "text_tokenizer": text_tokenizer_fingerprint(text_tokenizer),
            "speech_tokenizer": tokenizer.fingerprint if tokenizer else None,
        }
        return cls(kind, options, text_tokenizer, tokenizer, inputs)

    def builder(self) -> "DocumentBuilder":
        """Creates the builder of the documents; opens the speech tokenizer."""
        from lit_moss.data.document_builders import BUILDERS
        from lit_moss.llm.backbone import row_format
        from lit_moss.llm.rows import audio_vocab_for

        codes = self.tokenizer.opened.config.quantize_vocab_size if self.tokenizer else CODES_OF_TEXT
        rows = row_format(self.text_tokenizer, audio_vocab_for(codes), eosp=codes)
        return BUILDERS[self.kind](self.text_tokenizer, rows, self.options)


def _cached_folder(inputs: dict[str, Any], recordings: Mapping[Path, Sequence["Utterance"]]) -> Path:
    """Cache folder for documents made from these inputs."""
    from lit_moss.hub.recordings import recordings_stamp

    # Stamps of the recordings are not stored with the documents, because copying a corpus changes them.
    stamps = [recordings_stamp(utterances) for utterances in recordings.values()]
    digest = hashlib.sha256(json.dumps([inputs, stamps], sort_keys=True).encode()).hexdigest()[:16]
    name = f"{inputs['kind']}-{file_name(next(iter(recordings)).stem)}-{digest}"
    return assets.cache_dir() / "documents" / name


def _recorded_options(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options without those at their defaults, so that equal documents have equal inputs."""
    later = {key: options[key] for key in _LATER if options.get(key)}
    if kind != "sft":
        return {key: value for key, value in options.items() if key not in _LATER} | later
    form = ReplyForm(options["reply_form"], options["interleave_text"], options["interleave_codes"])
    return {key: options[key] for key in ("pairs", "train_on")} | form.options() | later


def _checked_options(kind: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a kind, with defaults for those not given."""
    if kind not in OPTIONS:
        raise UserError(f"no kind {kind!r} of documents, expected one of {', '.join(OPTIONS)}")
    wrong = sorted(set(options) - set(OPTIONS[kind]))
    if wrong:
        raise UserError(
            f"documents of kind {kind} have no option {', '.join(wrong)}, "
            f"expected {', '.join(OPTIONS[kind]) or 'none'}"
        )
    chosen = OPTIONS[kind] | options
    if not 0 <= chosen.get("speech_share", 0.5) <= 1:
        raise UserError(f"speech_share is {chosen['speech_share']}, expected 0 to 1")
    if not chosen.get("document_sec", 60.0) > 0:
        raise UserError(f"document_sec is {chosen['document_sec']}, expected seconds above 0")
    if wrong := [pair for pair in chosen.get("pairs", []) if pair not in PAIRS]:
        raise UserError(f"pairs has {', '.join(wrong)}, expected some of {', '.join(PAIRS)}")
    answer = "answer" if kind == "transcripts" else "assistant"
    if chosen.get("train_on", "all") not in (answer, "all"):
        raise UserError(f"train_on is {chosen['train_on']!r}, expected {answer} or all")
    if kind == "transcripts":
        shares = [chosen["asr"], chosen["tts"]]
        if not all(0 <= share <= 1 for share in shares) or not sum(shares):
            raise UserError(f"asr is {shares[0]} and tts {shares[1]}, expected 0 to 1 each, not both 0")
    if chosen.get("spans"):
        try:
            chosen["spans"] = WordSpans(**chosen["spans"]).record()
        except TypeError as error:
            raise UserError(f"spans is {chosen['spans']}, expected min_words and max_words") from error
    if kind == "sft":
        ReplyForm(chosen["reply_form"], chosen["interleave_text"], chosen["interleave_codes"])
    return chosen
