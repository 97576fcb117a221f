"""Lists of clips to judge: our manifests, and Seed-TTS-Eval's `meta.lst`.

    UTTERANCE|PROMPT TEXT|PROMPT WAV|TEXT[|WAV]          paths relative to the list's folder

(github.com/BytedanceSpeech/seed-tts-eval). Without a fifth column the recording is `wavs/UTTERANCE.wav`.
"""

import re
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path

from lit_moss.data.manifest import read_manifest
from lit_moss.errors import UserError


@dataclass(frozen=True)
class Clip:
    """One recording, and the voice to make it again in.

    Args:
        id: Name.
        audio: Sound file.
        text: What is said, "" if unknown.
        prompt: Sound file of the voice, None for none.
        offset_sec: Start inside the file.
        duration_sec: Length, None to the end.
    """

    id: str
    audio: Path
    text: str
    prompt: Path | None = None
    offset_sec: float = 0.0
    duration_sec: float | None = None


def read_clips(name: str | Path, limit: int | None = None) -> list[Clip]:
    """Clips of a manifest (.jsonl) or a Seed-TTS-Eval list (.lst), the first `limit` of them.

    Raises:
        UserError: naming the line that is neither.
    """
    path = Path(name)
    if path.suffix == ".lst":
        clips = _seed_tts_eval(path)
    else:
        clips = [
            Clip(u.id, u.audio, u.text or "", None, u.offset_sec, u.duration_sec) for u in read_manifest(path)
        ]
    if not clips:
        raise UserError(f"{name} holds no clips")
    return _unique(clips[:limit])


def _unique(clips: list[Clip]) -> list[Clip]:
    """The same with names that files can have, each once: two speakers may both have a 001.wav."""
    names: set[str] = set()
    found = []
    for clip in clips:
        plain = re.sub(r"[/\\\0]", "_", clip.id)
        name = next(n for n in chain([plain], (f"{plain}-{k}" for k in count(2))) if n not in names)
        names.add(name)
        found.append(replace(clip, id=name))
    return found


def _seed_tts_eval(path: Path) -> list[Clip]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # not splitlines: a text may hold U+2028
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({error}): expected a Seed-TTS-Eval list") from error
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        parts = line.split("|")
        if len(parts) not in (4, 5):
            raise UserError(
                f"{path} line {number} has {len(parts)} columns, expected "
                "UTTERANCE|PROMPT TEXT|PROMPT WAV|TEXT[|WAV]"
            )
        name, _, prompt, text = parts[:4]
        audio = parts[4] if len(parts) == 5 else f"wavs/{name}.wav"
        found.append(Clip(name, path.parent / audio, text, path.parent / prompt if prompt else None))
    return found
