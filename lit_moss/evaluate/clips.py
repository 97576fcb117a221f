"""Lists of clips to judge: our manifests, and Seed-TTS-Eval's `meta.lst`.

    UTTERANCE|PROMPT TEXT|PROMPT WAV|TEXT[|WAV]          paths relative to the list's folder
    UTTERANCE|TEXT|PROMPT WAV
    UTTERANCE|TEXT

(github.com/BytedanceSpeech/seed-tts-eval). Without a fifth column the recording is `wavs/UTTERANCE.wav`.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from lit_moss.corpora.manifest import read_manifest
from lit_moss.errors import UserError
from lit_moss.records import file_name, text_lines, unique_name


@dataclass(frozen=True)
class Clip:
    """One recording, and the voice in which to synthesize it.

    Args:
        id: Name.
        audio: Sound file.
        text: Transcript, "" if unknown.
        prompt: Sound file of the voice; None for none.
        offset_sec: Start inside the file.
        duration_sec: Length; None to the end of the file.
        channel: Number of the channel, from 0; None for the first one.
    """

    id: str
    audio: Path
    text: str
    prompt: Path | None = None
    offset_sec: float = 0.0
    duration_sec: float | None = None
    channel: int | None = None


def read_clips(name: str | Path, limit: int | None = None) -> list[Clip]:
    """Clips of a manifest (.jsonl) or a Seed-TTS-Eval list (.lst), the first `limit` of them.

    Raises:
        UserError: naming the line that is neither.
    """
    path = Path(name)
    if path.suffix.lower() == ".lst":
        clips = _seed_tts_eval(path)
    else:
        clips = [
            Clip(u.id, u.audio, u.text or "", None, u.offset_sec, u.duration_sec, u.channel)
            for u in read_manifest(path)
        ]
    if not clips:
        raise UserError(f"{name} holds no clips")
    return _unique(clips[:limit])


def _unique(clips: list[Clip]) -> list[Clip]:
    """The clips with unique names that files can have: two speakers may both have a 001.wav."""
    names: set[str] = set()
    return [replace(clip, id=unique_name(file_name(clip.id), names)) for clip in clips]


def _seed_tts_eval(path: Path) -> list[Clip]:
    clips = []
    for number, line in text_lines(path, "a Seed-TTS-Eval list"):
        if not line.strip():
            continue
        parts = line.split("|")
        if not 2 <= len(parts) <= 5:
            raise UserError(
                f"{path} line {number} has {len(parts)} columns, expected "
                "UTTERANCE|PROMPT TEXT|PROMPT WAV|TEXT[|WAV], UTTERANCE|TEXT|PROMPT WAV or UTTERANCE|TEXT"
            )
        name = parts[0]
        prompt, text = parts[2:4] if len(parts) > 3 else ("".join(parts[2:]), parts[1])
        audio = parts[4] if len(parts) == 5 else f"wavs/{name}.wav"
        clips.append(Clip(name, path.parent / audio, text, path.parent / prompt if prompt else None))
    return clips
