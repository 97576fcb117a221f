"""Utterances -> two folders of token documents: text and speech in turns, and speech alone.

    interleaved/    chunks of a recording's utterances, each as text or as speech
    unsupervised/   its utterances as speech, at full length

An utterance with `use: speech`, whose transcript is not trusted, is never interleaved. One without `chunks`
and `words` is a single chunk, whatever its length: the run says how many these are. With
`validation_share`, folders `interleaved-validation` and `unsupervised-validation` take that share of the
recordings, chosen by a hash of their names. Recipes take the folders as they are: `data.init_args.train:
[OUT/interleave/interleaved, OUT/interleave/unsupervised]`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from lit_moss.corpora.manifest import utterance_of
from lit_moss.data.make_documents import DocumentRecipe
from lit_moss.errors import UserError
from lit_moss.prepare.document_folders import (
    Blocks,
    FolderCounts,
    Name,
    SpeechCheck,
    Split,
    blocks_beside,
    check_context,
    check_records,
    check_share,
    files_of_folders,
    recording_of,
    say_longer,
    source_of,
    write_folder,
)
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.stage import Item, Result, WholeStage
from lit_moss.prepare.storage import Storage

_KINDS = ("interleaved", "unsupervised")


@dataclass(frozen=True)
class InterleaveOptions:
    """Options of `prepare interleave`.

    Args:
        speech_tokenizer: Speech tokenizer, as of `prepare tokenize`.
        log_mel: Features of the speech tokenizer, causal or whisper; null takes what its folder states.
        backbone: Model whose tokenizer makes the text rows.
        unsupervised: Which utterances make documents of speech alone: none, rest (those with `use: speech`)
            or all.
        speech_share: Probability that a chunk is speech, where its modality is not decided yet.
        alternate: Whether neighbouring chunks always differ in modality.
        document_sec: Longest document in seconds of speech.
        seed: Seed of the choice of modalities.
        spans: Text and speech by turns within utterances, e.g. {min_words: 1, max_words: 4}; needs the times
            of words, and goes before the chunks of `prepare chunk`. null: chunks.
        speech_text: Documents carry the text of their speech, for `model.ctc` and `init_codes: text`.
        context: Rows of a training sequence: longer documents are counted, and cut in training; null: not
            counted.
        validation_share: Share of recordings, 0 to 1, for folders of their own.
    """

    speech_tokenizer: str = "embedded:whisper-tiny-kmeans"
    log_mel: Literal["causal", "whisper"] | None = None
    backbone: str = "embedded:smollm2-135m"
    unsupervised: Literal["none", "rest", "all"] = "rest"
    speech_share: float = 0.5
    alternate: bool = False
    document_sec: float = 60.0
    seed: int = 1
    spans: dict[str, int] | None = None
    speech_text: bool = False
    context: int | None = None
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        if self.unsupervised not in ("none", "rest", "all"):
            raise UserError(f"unsupervised is {self.unsupervised!r}, expected none, rest or all")
        check_share(self.validation_share)
        check_context(self.context)


class InterleaveStage(WholeStage):
    """Writes `interleaved/` and `unsupervised/`; its manifest is empty."""

    name = "interleave"
    version = 2
    Options = InterleaveOptions

    def __init__(self, options: InterleaveOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: InterleaveOptions = options

    def content(self) -> dict[str, Any]:
        inputs = [self._recipe(kind).inputs for kind in _KINDS]
        chosen = {"unsupervised", "context", "validation_share"}
        return {"inputs": inputs} | {k: v for k, v in super().content().items() if k in chosen}

    @cache  # noqa: B019 - a stage lives as long as its run
    def _recipe(self, kind: str) -> DocumentRecipe:
        options: dict[str, Any] = {
            "document_sec": self.options.document_sec,
            "speech_text": self.options.speech_text,
        }
        if kind == "interleaved":
            for name in ("speech_share", "alternate", "seed", "spans"):
                options[name] = getattr(self.options, name)
        o = self.options
        return DocumentRecipe.open(kind, o.backbone, o.speech_tokenizer, options, o.log_mel)

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        return files_of_folders(counts)

    def run_all(self, sources: Sequence[str]) -> Result:
        result = Result()
        check_records(sources, utterance_of)
        split = Split(map(_source, resolved_items(sources)), self.options.validation_share)
        with blocks_beside(self.storage) as blocks:
            for item in resolved_items(sources):
                self._sort_in(item, split, blocks)
            blocks.close()
            for kind in _KINDS:
                check = SpeechCheck(kind, blocks, self.max_bad_share)
                for name in (kind, f"{kind}-validation"):
                    if blocks.items(name):
                        self._write(kind, name, blocks, check, result)
        if not result.counts:
            raise UserError("no utterance for a document: raise unsupervised to rest or all, or align better")
        return result

    def _sort_in(self, item: Item, split: Split, blocks: Blocks) -> None:
        key, ending = recording_of(item), split.ending(source_of(item))
        is_speech_only = item.get("use") == "speech"
        if not is_speech_only:
            blocks.add(f"interleaved{ending}", item, key)
        if self.options.unsupervised == "all" or (self.options.unsupervised == "rest" and is_speech_only):
            blocks.add(f"unsupervised{ending}", item, key)

    def _write(self, kind: str, name: Name, blocks: Blocks, check: SpeechCheck, result: Result) -> None:
        context = self.options.context
        counts = write_folder(self.storage, name, self._recipe(kind), blocks, check, context)
        say_longer(name, counts, context, "training cuts them")
        result.counts |= counts.named(name)
        if kind == "interleaved":
            _say_without_times(name, counts)
            counted = {"without_word_times": counts.of_builder.get("without_word_times", 0)}
            if context is not None:
                counted |= {
                    "longer_than_context": counts.longer,
                    "rows_longer_than_context": counts.rows_longer,
                }
            for key, number in counted.items():
                result.counts[key] = result.counts.get(key, 0) + number


def _source(item: Item) -> str:
    if not item.get("audio_filepath"):
        raise UserError(f"{str(item)[:100]}: no audio_filepath, expected utterances")
    return source_of(item)


def _say_without_times(name: Name, counts: FolderCounts) -> None:
    if missing := counts.of_builder.get("without_word_times", 0):
        print(
            f"{name}: {missing} of {counts.items} utterances have no word times and are one chunk each, "
            "whatever their length: prepare align adds the times",
            file=sys.stderr,
        )
