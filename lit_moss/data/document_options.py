"""Options of a data module compared with those that a folder of documents was made with.

Documents in a folder are read as they are: options of how documents are made have no effect on them.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_moss.data.documents import META
from lit_moss.errors import UserError

# Option of documents -> argument of the data module, where the names differ.
_ARGUMENTS = {"seed": "document_seed"}
# Compared elsewhere: `TokenDataModule.setup`.
_NOT_COMPARED = {"speech_text"}


def check_made_with(folder: Path, kind: str, options: Mapping[str, Any], given: Collection[str]) -> None:
    """Refuses options that have no effect, because the documents exist already.

    Args:
        folder: Folder of token documents.
        kind: Kind of documents of the data module.
        options: Options of the data module, see `make_documents`.
        given: Names of the arguments that the user has set.

    Raises:
        UserError: if an option that the user has set, or that differs from its default, is not the one that
            the documents were made with.
    """
    meta = _read_meta(folder)
    if meta is None:
        return
    stored, defaults = _stored(meta, kind), _defaults(kind)
    for key, value in _whole(kind, options).items():
        argument = _ARGUMENTS.get(key, key)
        if argument not in given and _same(value, defaults[key]):
            continue
        if key not in stored:
            raise UserError(
                f"data.{argument} is {value!r}, but {folder} holds documents of kind {meta['kind']}, which "
                f"have no such option: leave {argument} out, or name documents of kind {kind}"
            )
        if not _same(value, stored[key]):
            raise UserError(
                f"data.{argument} is {value!r}, but the documents in {folder} were made with "
                f"{stored[key]!r}: leave {argument} out, or make the documents again with it (prepare "
                "documents), or name the manifest or text in place of the folder"
            )


def stated_options(
    folders: Sequence[Path], kind: str, options: Mapping[str, Any], is_made_here: bool
) -> dict[str, Any]:
    """Arguments of a data module whose value is not true of its documents -> the value that is.

    Args:
        folders: Folders of documents that the data module reads.
        kind: Kind of documents of the data module.
        options: Options of the data module, see `make_documents`.
        is_made_here: Whether it also makes documents with its own options.

    Returns:
        The values that the documents state; None for one in which they differ, or that their kind lacks.
    """
    own = _whole(kind, options)
    metas = [meta for meta in map(_read_meta, folders) if meta is not None]
    sets = [_stored(meta, kind) for meta in metas] + ([own] if is_made_here else [])
    stated = {}
    for key, value in own.items():
        values = [known.get(key) for known in sets]
        if any(not _same(value, other) for other in values):
            agree = all(_same(values[0], other) for other in values)
            stated[_ARGUMENTS.get(key, key)] = values[0] if agree else None
    return stated


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """Content of `meta.json`; None if it is damaged, which opening the documents reports."""
    try:
        meta = json.loads((folder / META).read_text(encoding="utf-8"))
        return meta if isinstance(meta.get("options") or {}, dict) and "kind" in meta else None
    except (OSError, ValueError, AttributeError):
        return None


def _defaults(kind: str) -> dict[str, Any]:
    from lit_moss.data.make_documents import OPTIONS

    return {key: value for key, value in OPTIONS.get(kind, {}).items() if key not in _NOT_COMPARED}


def _whole(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the defaults of those that are left out."""
    defaults = _defaults(kind)
    return defaults | {key: value for key, value in options.items() if key in defaults}


def _stored(meta: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Options that documents were made with, without those that the kind of the data module lacks."""
    own = _whole(str(meta["kind"]), meta.get("options") or {})
    return {key: value for key, value in own.items() if key in _defaults(kind)}


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):  # the order of pairs has no effect
        return sorted(a) == sorted(b)
    return a == b
