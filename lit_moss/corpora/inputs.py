"""Audio named on a command line: audio files, folders of them, manifests."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from lit_moss.corpora.folders import print_left_out, sound_files
from lit_moss.corpora.manifest import Utterance, read_manifest
from lit_moss.errors import UserError


def utterances_of(names: Iterable[str]) -> Iterator[Utterance]:
    """Yields the utterances of audio files, folders (at any depth) and manifests (.jsonl), in order.

    Raises:
        UserError: if a name is none of these, or a folder has no audio files.
    """
    from lit_moss.audio.io import EXTENSIONS

    for name in names:
        path = Path(name)
        if path.is_dir():
            sounds, others = sound_files(path)
            print_left_out(others)
            if not sounds:
                raise UserError(
                    f"{name} holds no sound files: expected some of {', '.join(EXTENSIONS)} in it or below"
                )
            yield from map(Utterance, sounds)
        elif path.suffix.lower() == ".jsonl":
            yield from read_manifest(path)
        elif path.exists():
            yield Utterance(path)
        else:
            raise UserError(f"no file {name}: expected a sound file, a folder, or a manifest")
