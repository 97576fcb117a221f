"""Small inputs of the shipped chains, and calls of the command line on them."""

import json
import os
import subprocess
from pathlib import Path

import launch
from conftest import ROOT
from joined import Joined, join_clips

SCRIPT = str(Path(__file__).parent / "killing.py")
WHISPER = "embedded:whisper-tiny"
# Changed in the shipped recipes: a smaller Whisper, and shards of so few items that there are several.
SMALL = ("--workers", "1", "--shard_items", "2", "--track", "false")
SPEECH = (
    *("-c", f"{ROOT}/conf/prepare/speech.yaml", *SMALL),
    *("--steps.transcribe.model", WHISPER, "--steps.transcribe.language", "en"),
)
SYNTHETIC = ("-c", f"{ROOT}/conf/prepare/synthetic.yaml", *SMALL, "--steps.filter.asr", WHISPER)
SFT = (
    *("-c", f"{ROOT}/conf/prepare/sft.yaml", *SMALL, "--steps.filter.asr", WHISPER),
    *("--steps.speak.user_voices", '["embedded:hibari"]'),
    *("--steps.speak.assistant_voices", '["embedded:hibari"]'),
)
SELF_ANSWER = ("self-answer", *SMALL, "--max_new_tokens", "8", "--min_words", "1")
TEXTS = [
    "The night train to the coast leaves at half past nine.",
    "Her brother planted three apple trees behind the old barn.",
    "Nobody in the village could remember a colder winter.",
    "A small boat with a red sail crossed the quiet bay.",
    "The library opens at eight and closes late in the evening.",
    "He folded the letter twice and put it into his pocket.",
    "Fresh bread and warm milk stood on the kitchen table.",
    "The museum keeps a famous collection of ancient coins.",
]
PAIRS = [
    ("What is the largest planet?", "The largest planet is Jupiter. It is made mostly of gas."),
    ("How many days are in a week?", "There are seven days in a week."),
    ("Why is the sky blue?", "Air scatters blue light more than it scatters red light."),
    ("Who wrote the play Hamlet?", "William Shakespeare wrote it about four hundred years ago."),
    ("How do I boil an egg?", "- Boil some water.\n- Put the egg in.\n- Wait for eight minutes."),
    ("What do bees make?", "Bees make honey, and they also make **wax**."),
]


def recordings(corpus: Path, folder: Path, count: int = 3, clips: int = 3) -> list[Joined]:
    """Recordings with some clips of the embedded corpus each."""
    folder.mkdir(parents=True, exist_ok=True)
    waves = sorted((corpus / "audio").glob("*"))
    return [
        join_clips(waves[i * clips : (i + 1) * clips], folder / f"recording{i}.wav", seed=i)
        for i in range(count)
    ]


def texts(folder: Path) -> Path:
    """Eight sentences, one of them twice."""
    path = folder / "texts.jsonl"
    lines = [
        {"id": f"t{i}", "text": t, "lang": "en", "source": "test", "licence": "CC0"}
        for i, t in enumerate(TEXTS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {**lines[0], "id": "again"}]))
    return path


def pairs(folder: Path) -> Path:
    """Six questions with their answers."""
    path = folder / "pairs.jsonl"
    lines = [
        {"id": f"q{i}", "question": q, "answer": a, "lang": "en", "source": "test", "licence": "CC0"}
        for i, (q, a) in enumerate(PAIRS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def has_sounds(folder: Path) -> bool:
    """Whether a FLAC is there, while another process writes: `rglob` fails if a folder goes away under it."""
    return any(name.endswith(".flac") for _, _, names in os.walk(folder) for name in names)


def own_cache(folder: Path) -> str:
    """A cache that holds the pretrained parts, and nothing that was computed from recordings."""
    from lit_moss.assets import cache_dir

    folder.mkdir()
    for name in ("assets", "backbones", "corpora", "fingerprints", "speech_tokenizers"):
        (cache_dir() / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(cache_dir() / name)
    return str(folder)


def prepare(
    folder: Path, cache: str, *words: str, kill: dict[str, int] | None = None
) -> subprocess.CompletedProcess:
    """`prepare WORDS`; see `killing.py` for `kill`."""
    return begin(folder, cache, *words, kill=kill).wait()


def begin(folder: Path, cache: str, *words: str, kill: dict[str, int] | None = None) -> launch.Started:
    """The same; does not wait for its end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "kill.json").write_text(json.dumps(kill or {}))
    before = os.environ.get("LIT_MOSS_CACHE")
    os.environ["LIT_MOSS_CACHE"] = cache
    try:
        return launch.start_script(folder, SCRIPT, str(folder), "prepare", *words)
    finally:
        os.environ.pop("LIT_MOSS_CACHE")
        if before is not None:
            os.environ["LIT_MOSS_CACHE"] = before


def contents(folder: Path) -> dict[str, bytes]:
    """Everything that a chain writes but the time that it took."""
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "timing.json" and "mlflow" not in p.parts
    }
