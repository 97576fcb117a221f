"""What steps that write folders of documents have made, for tables."""

from collections.abc import Mapping


def documents_out(counts: Mapping[str, float]) -> tuple[str, float] | None:
    """What a step has written into folders of documents, such as `12 documents`, and hours of speech in them.

    Args:
        counts: Of the stage, see `lit_moss.prepare.document_folders.FolderCounts.named`.

    Returns:
        None for a step that has written none.
    """
    numbers = {key: n for key, n in counts.items() if key.endswith(" documents")}
    if not numbers:
        return None
    hours = sum(counts.get(key.removesuffix("documents") + "hours", 0.0) for key in numbers)
    total = round(sum(numbers.values()))
    return f"{total} document" + "s" * (total != 1), hours
