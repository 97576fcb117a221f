"""Conversations -> a folder of token documents for supervised fine-tuning: each in the four modality pairs.

    sft/   question and answer as speech-speech, speech-text, text-speech, text-text

A pair is made where its turns have the modality. `reply_form` is the form of spoken replies: `direct` is
speech alone (MOSS-Speech); `guided`, the text first and then the speech (SpeechGPT), and `interleaved`, 13
text ids and 26 codes in turns (GLM-4-Voice), are the text-guided forms that the paper compares with
(table 6). A document that is longer than `context` is left out and listed in `rejected.jsonl`. With
`validation_share`, `sft-validation/` takes that share of the conversations, chosen by a hash of their names.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from lit_moss.corpora.conversations import Message, messages_of
from lit_moss.data.builder import Document
from lit_moss.data.conversation import PAIRS
from lit_moss.data.make_documents import DocumentRecipe
from lit_moss.errors import UserError
from lit_moss.prepare.document_folders import (
    Blocks,
    Name,
    SpeechCheck,
    Split,
    blocks_beside,
    check_context,
    check_records,
    check_share,
    files_of_folders,
    say_longer,
    write_folder,
)
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.stage import Item, Rejection, Result, WholeStage
from lit_moss.prepare.storage import Storage
from lit_moss.records import Record, unique_name


@dataclass(frozen=True)
class SftOptions:
    """Options of `prepare sft`.

    Args:
        speech_tokenizer: Speech tokenizer, as of `prepare tokenize`.
        log_mel: Features of the speech tokenizer, causal or whisper; null takes what its folder states.
        backbone: Model whose tokenizer makes the text rows.
        pairs: Modality pairs, the user's first: speech-speech, speech-text, text-speech, text-text.
        train_on: Whose turns are targets: assistant or all.
        reply_form: Form of spoken replies: direct, guided or interleaved.
        interleave_text: Text ids of a turn of interleaved replies.
        interleave_codes: Codes of a turn of interleaved replies.
        speech_text: Documents carry the text of their speech, for `model.ctc`.
        context: Rows of a training sequence: longer documents are left out; null keeps all, and training
            leaves them out.
        validation_share: Share of conversations, 0 to 1, for a folder of their own.
    """

    speech_tokenizer: str = "embedded:whisper-tiny-kmeans"
    log_mel: Literal["causal", "whisper"] | None = None
    backbone: str = "embedded:smollm2-135m"
    pairs: list[str] = field(default_factory=lambda: list(PAIRS))
    train_on: Literal["assistant", "all"] = "assistant"
    reply_form: Literal["direct", "guided", "interleaved"] = "direct"
    interleave_text: int = 13
    interleave_codes: int = 26
    speech_text: bool = False
    context: int | None = None
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        check_share(self.validation_share)
        check_context(self.context)


class SftStage(WholeStage):
    """Writes `sft/`; its manifest is empty."""

    name = "sft"
    version = 2
    Options = SftOptions

    def __init__(self, options: SftOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: SftOptions = options

    def content(self) -> dict[str, Any]:
        return {
            "inputs": self._recipe.inputs,
            "context": self.options.context,
            "validation_share": self.options.validation_share,
        }

    @cached_property
    def _recipe(self) -> DocumentRecipe:
        o = self.options
        names = ("pairs", "train_on", "reply_form", "interleave_text", "interleave_codes", "speech_text")
        options = {name: getattr(o, name) for name in names}
        return DocumentRecipe.open("sft", o.backbone, o.speech_tokenizer, options, o.log_mel)

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        return files_of_folders(counts)

    def run_all(self, sources: Sequence[str]) -> Result:
        result, names, too_long = Result(), set[str](), list[Document]()
        check_records(sources, _conversation)
        split = Split(map(_name, resolved_items(sources)), self.options.validation_share)
        with blocks_beside(self.storage) as blocks:
            for item in resolved_items(sources):
                name = unique_name(_name(item), names)
                # Conversations of one name are in one part.
                blocks.add(f"sft{split.ending(_name(item))}", item | {"id": name}, name)
            blocks.close()
            check = SpeechCheck("sft", blocks, self.max_bad_share)
            for name in ("sft", "sft-validation"):
                if blocks.items(name):
                    self._write(name, blocks, check, result, too_long)
        result.rejected = self._rejections(sources, too_long)
        return result

    def _rejections(self, sources: Sequence[str], too_long: Sequence[Document]) -> list[Rejection]:
        """One for each document, with its conversation, which is read again: all would fill the memory."""
        documents = {document.id.rpartition("/")[0]: [] for document in too_long}
        for document in too_long:
            documents[document.id.rpartition("/")[0]].append(document)
        rejections, names = [], set[str]()
        for item in resolved_items(sources) if documents else ():
            for document in documents.get(unique_name(_name(item), names), []):
                rows, pair = len(document.rows), document.id.rpartition("/")[2]
                rejected = Rejection(
                    item | {"pair": pair}, "longer than the context", rows, self.options.context
                )
                rejections.append(rejected)
        return rejections

    def _write(
        self, name: Name, blocks: Blocks, check: SpeechCheck, result: Result, too_long: list[Document]
    ) -> None:
        context = self.options.context
        counts = write_folder(self.storage, name, self._recipe, blocks, check, context, too_long.append)
        say_longer(name, counts, context, "left out")
        result.counts |= counts.named(name)
        if missing := counts.of_builder.get("incomplete", 0):
            print(f"{name}: {missing} times a conversation lacks a modality of a pair", file=sys.stderr)
        for key, number in {
            "without_modality": missing,
            "longer_than_context": counts.longer,
            "rows_longer_than_context": counts.rows_longer,
        }.items():
            result.counts[key] = result.counts.get(key, 0) + number


def _conversation(record: Record, folder: Path) -> list[Message]:
    if not isinstance(record.content.get("messages"), list):
        raise UserError(f"{record.where}: no messages, expected conversations")
    return messages_of(record, folder)


def _name(item: Item) -> str:
    """The conversation's id, else a hash of what is said in it."""
    if not isinstance(item.get("messages"), list):
        raise UserError(f"{str(item)[:100]}: no messages, expected conversations")
    if item.get("id") is not None:
        return str(item["id"])
    contents = [(m.get("role"), m.get("content")) for m in item["messages"] if isinstance(m, dict)]
    return sha256(repr(contents).encode()).hexdigest()[:12]
