"""Lists the audio files and other files below a folder, and reports those that are not read."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from lit_moss.errors import UserError
from lit_moss.records import printable


def counted(number: int, noun: str) -> str:
    """Formats a count: `1 file`, `2 files`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def files_below(folder: str | Path) -> list[Path]:
    """Returns the files at any depth, sorted; hidden files (macOS leaves `._a.wav`) and folders are skipped.

    Symbolic links to folders are followed; a folder reachable by several paths is read once, by a path
    without links if there is one. A broken link counts as a file, so that its reader reports it.

    Raises:
        UserError: if a folder cannot be read.
    """
    files: list[Path] = []
    visited: set[str] = set()
    starts = [str(folder)]
    while starts:
        links: list[str] = []
        for start in starts:
            _walk(start, files, links, visited)
        starts = sorted(links)
    return sorted(files)


def _walk(start: str, files: list[Path], links: list[str], visited: set[str]) -> None:
    """Adds files below a folder to `files`, and links to folders to `links`, which are followed later."""
    for folder, below, names in os.walk(start, onerror=_refuse):
        real = os.path.realpath(folder)
        below[:] = sorted(name for name in below if not name.startswith("."))
        if real in visited:
            below.clear()
            continue
        visited.add(real)
        links += (path for name in below if os.path.islink(path := os.path.join(folder, name)))
        paths = (Path(folder, name) for name in names if not name.startswith("."))
        # Not `Path.is_file`, which raises if the folder of the file may be listed but not entered.
        files += (path for path in paths if os.path.isfile(path) or not os.path.exists(path))


def _refuse(error: OSError) -> None:
    why = error.strerror or type(error).__name__
    raise UserError(
        f"folder {printable(str(error.filename))} cannot be read ({why}): its files would be left out; give "
        "yourself the right to read it, or take it out"
    ) from error


def sound_files(folder: str | Path) -> tuple[list[Path], list[Path]]:
    """Returns the audio files and the other files at any depth (see `files_below`).

    Raises:
        UserError: if `folder` is not a folder, or a folder below it cannot be read.
    """
    from lit_moss.audio.io import EXTENSIONS

    if not Path(folder).is_dir():
        raise UserError(f"no folder {folder}: expected a folder of sound files, check SOURCE")
    files = files_below(folder)
    sounds = [path for path in files if path.suffix.lower() in EXTENSIONS]
    return sounds, [path for path in files if path.suffix.lower() not in EXTENSIONS]


def print_left_out(files: Iterable[Path], hint: str | None = None) -> None:
    """Prints the number of files that are not read, by extension, so that no .m4a is ignored silently.

    Args:
        files: Files that are not read.
        hint: What is read, and what to do; None: the extensions read as audio.
    """
    from lit_moss.audio.io import EXTENSIONS

    endings = Counter(printable(path.suffix).lower() or "without ending" for path in files)
    if endings:
        ordered = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{number} {ending}" for ending, number in ordered)
        total = counted(sum(endings.values()), "file")
        hint = hint or f"sound is read from {' '.join(EXTENSIONS)}: convert it"
        print(f"left out {total} of other kinds: {counts}; {hint}")
