"""Writes texts to a folder of text-only token documents.

    text/              one document per text; consecutive utterances of a `document` form one
    text-validation/   a fraction of them, if `validation_share` is given

The texts that are spoken by `synthesize` are used here as written, for the plain text in training. Recipes
use the folder directly: `data.init_args.train: [OUT/text/text, …]`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from itertools import groupby
from typing import Any, NamedTuple

from lit_moss.assets import cache_dir
from lit_moss.data.documents import META, DocumentWriter
from lit_moss.data.interleave import join_words, text_document, text_ids
from lit_moss.data.make_documents import DocumentRecipe
from lit_moss.files import scratch_beside
from lit_moss.prepare.document_folders import (
    Split,
    check_context,
    check_share,
    files_of_folders,
    name_of_text,
    source_of,
)
from lit_moss.prepare.items import resolved_items
from lit_moss.prepare.language import text_language
from lit_moss.prepare.stage import Item, Rejection, Result, WholeStage
from lit_moss.prepare.storage import Storage
from lit_moss.prepare.text_sources import check_min_score, checked_scale, read_text_source
from lit_moss.records import printable, unique_name


@dataclass(frozen=True)
class TextOptions:
    """Options of `prepare text`.

    Args:
        backbone: Model whose tokenizer makes the rows.
        speech_tokenizer: Speech tokenizer of the speech that is trained together with the text, since both
            need the same row format. null: text only.
        min_score: Minimum `score` of texts, 0 to 5; texts without a score are kept.
        context: Number of rows of a training sequence: longer documents are counted; training cuts them.
            null: not counted.
        validation_share: Fraction of texts, 0 to 1, for a separate validation folder.
    """

    backbone: str = "embedded:smollm2-135m"
    speech_tokenizer: str | None = "embedded:whisper-tiny-kmeans"
    min_score: float = 3.0
    context: int | None = None
    validation_share: float = 0.0

    def __post_init__(self) -> None:
        check_min_score(self.min_score)
        check_context(self.context)
        check_share(self.validation_share)


class _Text(NamedTuple):
    name: str
    source: str  # see `source_of`
    text: str
    lang: str


class TextStage(WholeStage):
    """Writes `text/`; its manifest is empty."""

    name = "text"
    version = 2
    Options = TextOptions

    def __init__(self, options: TextOptions, storage: Storage) -> None:
        super().__init__(options, storage)
        self.options: TextOptions = options

    @classmethod
    def read_source(cls, source: str) -> Iterator[Item] | None:
        return read_text_source(source)

    def content(self) -> dict[str, Any]:
        chosen = {"min_score", "context", "validation_share"}
        own = {k: v for k, v in super().content().items() if k in chosen}
        return {"inputs": self._recipe().inputs} | own

    @cache  # noqa: B019 - a stage lives as long as its run
    def _recipe(self) -> DocumentRecipe:
        return DocumentRecipe.open("text", self.options.backbone, self.options.speech_tokenizer, {})

    def files_made(self, counts: Mapping[str, float]) -> list[str]:
        return files_of_folders(counts)

    def run_all(self, sources: Sequence[str]) -> Result:
        result = Result()
        share = self.options.validation_share
        split = Split((text.source for text in self._texts(sources, Result())), share)
        digest, endings = sha256(), {""}
        for text in self._texts(sources, result):
            digest.update(json.dumps([text.name, text.text, text.lang]).encode())
            endings.add(split.ending(text.source))
        builder = self._recipe().builder()
        meta = self._recipe().inputs | {"sources": [digest.hexdigest()[:16]], "skipped": []} | builder.meta()
        used: set[str] = set()
        with ExitStack() as stack:
            writers = {
                f"text{ending}": stack.enter_context(_folder(self.storage, f"text{ending}", meta))
                for ending in sorted(endings)
            }
            for text in self._texts(sources, Result()):
                ids = text_ids(builder.tokenizer, builder.row_format, text.text)
                rows = text_document(ids, builder.row_format)
                if len(rows) > 1:
                    folder = f"text{split.ending(text.source)}"
                    writers[folder].add(unique_name(text.name, used), rows, kind="text", lang=text.lang)
                    self._count(result, folder, len(rows))
        return result

    def _count(self, result: Result, folder: str, rows: int) -> None:
        counts = {f"{folder} documents": 1, f"{folder} rows": rows}
        if self.options.context is not None and rows > self.options.context:
            counts |= {"longer_than_context": 1, "rows_longer_than_context": rows}
        for key, number in counts.items():
            result.counts[key] = result.counts.get(key, 0) + number

    def _texts(self, sources: Sequence[str], result: Result) -> Iterator[_Text]:
        """Yields every document; rejected items are added to the result."""
        items = checked_scale(resolved_items(sources), self.options.min_score)
        for _, group in groupby(enumerate(items), key=lambda pair: _document(*pair)):
            members = [item for _, item in group]
            texts, lang = [], None
            for item in members:
                text, score = item.get("text"), item.get("score")
                if not isinstance(text, str) or not text.strip():
                    result.rejected.append(Rejection(item, "no text"))
                elif printable(text) != text:
                    result.rejected.append(Rejection(item, "half a surrogate pair", printable(text)[:80]))
                elif score is not None and score < self.options.min_score:
                    result.rejected.append(Rejection(item, "score", score, self.options.min_score))
                else:
                    texts.append(text.strip())
                    lang = lang or item.get("lang") or text_language(text)
            if texts and lang:
                yield _Text(name_of_text(members[0]), source_of(members[0]), join_words(texts), lang)


@contextmanager
def _folder(storage: Storage, name: str, meta: dict[str, Any]) -> Iterator[DocumentWriter]:
    """A folder of documents; in remote storage, `meta.json` is written last."""
    if not storage.is_remote:
        with DocumentWriter(storage.path(name), meta) as writer:
            yield writer
        return
    with scratch_beside(cache_dir() / "outgoing" / name) as scratch:
        with DocumentWriter(scratch, meta) as writer:
            yield writer
        for path in sorted(scratch.iterdir(), key=lambda p: (p.name == META, p.name)):
            storage.write(f"{name}/{path.name}", path.read_bytes())


def _document(number: int, item: Item) -> tuple[str, bool]:
    """Key that consecutive items of one document have in common, and no others."""
    return (str(number), False) if item.get("document") is None else (str(item["document"]), True)
