"""Lists that the study `talk` writes: questions with their splits, texts, dialogues, manifests.

Each function writes complete files to a folder; the same arguments give the same bytes. `Split` determines
what is held out.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from lit_moss.corpora import facts as known
from lit_moss.corpora.everyday import sentences
from lit_moss.corpora.questions import questions_file
from lit_moss.files import atomic_write
from lit_moss.prepare.items import resolved_items
from lit_moss.records import json_lines

Record = dict[str, Any]
_CORPORA = Path(known.__file__).parent
_PROMPTS = (
    "Write three short sentences about {x}.",
    "Describe {x} in simple words, in two or three short sentences.",
    "Tell me a very short story about {x}, in three or four short sentences.",
    "Write a short note in a diary about {x}.",
    "What could a child say about {x}? Write two or three short sentences.",
    "Explain {x} to a friend in two short sentences.",
)
# Words of facts, including held-out ones, in sentences that state no fact.
_CARRIERS = (
    "Yesterday we talked about {x}.",
    "She wrote {x} on the board.",
    "My sister often says {x}.",
    "He could not remember {x}.",
    "On this page you can read {x}.",
    "The next word in the list is {x}.",
    "I heard somebody say {x}.",
    "They asked me to repeat {x}.",
    "Please say {x} once more.",
    "The teacher spelled {x} for us.",
    "I dreamt about {x} last night.",
    "There was something about {x} on the radio.",
)
# Examples of how short a reply to small talk should be.
_EVERYDAY_EXAMPLES = (
    ("Good afternoon.", "Good afternoon, how can I help you?"),
    ("How do I keep bread fresh?", "Keep it in a paper bag and eat it within two days."),
    ("I am cold.", "Put on a warm jumper and have some hot tea."),
)
_TOGETHER = 4  # unrelated sentences joined to one text
_SENTENCE = re.compile(r"[^.!?\n]+[.!?]")
_PLAIN = re.compile(r"[A-Z][A-Za-z ,.'!?;:-]+")
_FEWEST_WORDS, _MOST_WORDS = 3, 28  # of a spoken sentence, about 1 to 10 s


@dataclass(frozen=True)
class Split:
    """The questions asked in training and the held-out ones, as functions of a seed.

    Args:
        relations: Names of relations; None: all.
        seed: Seed of the split.
        phrasings: Number of phrasings held out of each relation.
        facts: Fraction of the facts held out of each relation, at least 0 and below 1.
    """

    relations: Sequence[str] | None = None
    seed: int = 1
    phrasings: int = 3
    facts: float = 0.2

    @property
    def of(self) -> list[known.Relation]:
        """The relations."""
        return known.chosen(self.relations)

    @property
    def held(self) -> known.Held:
        """The held-out phrasings and facts."""
        return known.hold_out(self.of, self.seed, self.phrasings, self.facts)

    def questions(
        self, group: known.Group, per_fact: int | None, limit: int | None = None
    ) -> list[known.Question]:
        """Questions of a group in random order, so that any prefix is a random sample."""
        asked = known.questions(self.of, self.held, group, per_fact, self.seed)
        return known.mixed(asked, self.seed)[:limit]


def write_questions(
    split: Split,
    folder: Path,
    per_fact: int,
    limit: int | None,
    examples: int,
    everyday: bool,
    texts: int,
) -> None:
    """Writes `train.jsonl` (questions to train on) and `prompts.jsonl` (requests for texts to the backbone).

    Args:
        split: Split into training and held-out questions.
        folder: Output folder.
        per_fact: Number of phrasings in which each fact is asked for.
        limit: Maximum number of questions about facts; None: all.
        examples: Number of other facts of the relation, with answers, in the backbone's prompt for each
            question.
        everyday: Add the included everyday questions and small talk, which have no reference answers.
        texts: Number of prompts.
    """
    held, of_name = split.held, {fact.name: fact for relation in split.of for fact in relation.facts}
    records = [
        question.record() | {"examples": known.examples(of_name[question.fact], held, examples, split.seed)}
        for question in split.questions("train", per_fact, limit)
    ]
    if everyday:
        records += list(_everyday(held))
    write_lines(folder / "train.jsonl", mixed_records(records, split.seed))
    topics = _lines("topics_en.txt")
    prompts = (
        {
            "id": f"text-{i:05d}",
            "question": _PROMPTS[i // len(topics) % len(_PROMPTS)].format(x=topics[i % len(topics)]),
            "lang": "en",
        }
        for i in range(texts)
    )
    write_lines(folder / "prompts.jsonl", prompts)


def mixed_records(records: Sequence[Record], seed: int) -> list[Record]:
    """Records in a random order that depends only on the seed and their ids."""
    return sorted(records, key=lambda record: sha256(f"{seed} {record['id']}".encode()).digest())


def _everyday(held: known.Held) -> Iterator[Record]:
    common = {"lang": "en", "group": "everyday", "examples": _EVERYDAY_EXAMPLES}
    for i, text in enumerate(_lines("smalltalk_en.txt")):
        yield {"id": f"smalltalk-{i:03d}", "question": text} | common
    for record in json_lines(questions_file(), "a question"):
        item = record.content
        if item["lang"] == "en" and item["id"].startswith("everyday") and held.states(_both(item)) is None:
            yield {"id": item["id"], "question": item["question"]} | common


def _both(item: Mapping[str, Any]) -> str:
    return f"{item['question']} {item.get('answer', '')}"


def write_heldout(
    split: Split,
    folder: Path,
    heldout_voices: Sequence[str],
    phrasing: int,
    fact: int,
    voice: int,
    seen: int,
) -> None:
    """Writes the evaluation questions: `heldout.jsonl`, and `heldout_voices.jsonl` for held-out voices.

    | group | fact | phrasing | voice |
    |---|---|---|---|
    | `seen` | trained | trained | trained |
    | `phrasing` | trained | held out | trained |
    | `fact` | held out | trained | trained |
    | `voice` | trained | held out | held out |

    Args:
        split: Split into training and held-out questions.
        folder: Output folder.
        heldout_voices: Voices that are not used in training; if empty, there is no group `voice`.
        phrasing: Maximum number of questions of the group `phrasing`.
        fact: Maximum number of questions of the group `fact`.
        voice: Maximum number of questions of the group `voice`.
        seen: Maximum number of questions of the group `seen`.
    """
    lists = {
        "phrasing": split.questions("phrasing", 1, phrasing),
        "fact": split.questions("fact", 1, fact),
        "seen": split.questions("train", 1, seen),
    }
    records = [
        q.record() | {"id": f"{name}-{q.id}", "group": name, "text": q.question}
        for name, asked in lists.items()
        for q in asked
    ]
    write_lines(folder / "heldout.jsonl", records)
    asked_ids = {q.id for q in lists["phrasing"]}
    others = [
        q.record() | {"id": f"voice-{q.id}", "group": "voice", "text": q.question}
        for q in split.questions("phrasing", None)
        if q.id not in asked_ids
    ]
    write_lines(folder / "heldout_voices.jsonl", others[: voice if heldout_voices else 0])


def write_texts(
    split: Split, answered: Path, dialogues: Path, folder: Path, limit: int | None, carriers: int
) -> None:
    """Writes `texts.jsonl` (texts to speak) and `replay.jsonl` (text that stage 2 trains on as text).

    No sentence in either file states a held-out fact (see `Held.states`).

    Args:
        split: Split into training and held-out questions.
        answered: Manifest of the texts that the backbone has written.
        dialogues: Questions with the backbone's answers, for `replay.jsonl`.
        folder: Output folder.
        limit: Maximum number of texts to speak, of all kinds; None: all.
        carriers: Number of fact-free sentences for each entity or answer of a fact.
    """
    held = split.held
    own = [
        {"id": item["id"], "text": text, "lang": "en"}
        for item in resolved_items([str(answered)])
        if (text := " ".join(_usable(item["messages"][-1]["content"], held)))
    ]
    shipped = list(_together("everyday", (s for s in sentences() if held.states(s) is None)))
    spoken = mixed_records([*own, *shipped, *_together("carrier", _carriers(split, carriers))], split.seed)[
        :limit
    ]
    write_lines(folder / "texts.jsonl", spoken)
    pairs = (
        {"id": item["id"], "text": "\n".join(m["content"] for m in item["messages"]), "lang": "en"}
        for item in resolved_items([str(dialogues)])
    )
    write_lines(folder / "replay.jsonl", [*spoken, *pairs])


def _usable(text: str, held: known.Held) -> list[str]:
    """Sentences of a text that a voice can speak as written and that state no held-out fact."""
    found = (" ".join(sentence.split()) for sentence in _SENTENCE.findall(text))
    return [
        s
        for s in found
        if _PLAIN.fullmatch(s) and _FEWEST_WORDS <= len(s.split()) <= _MOST_WORDS and held.states(s) is None
    ]


def _carriers(split: Split, count: int) -> Iterator[str]:
    """Yields each entity and answer of the facts in `count` sentences."""
    words = dict.fromkeys(
        word for relation in split.of for fact in relation.facts for word in (fact.entity, fact.answers[0])
    )
    for i, word in enumerate(words):
        for j in range(count):
            yield _CARRIERS[(i + 5 * j) % len(_CARRIERS)].format(x=word)


def _together(name: str, texts: Iterable[str]) -> Iterator[Record]:
    left = list(texts)
    for i in range(0, len(left), _TOGETHER):
        yield {"id": f"{name}-{i // _TOGETHER:05d}", "text": " ".join(left[i : i + _TOGETHER]), "lang": "en"}


def write_dialogues(split: Split, answered: Path, folder: Path, voices: int) -> None:
    """Writes answered questions: `dialogues.jsonl`, and `dialogues_voices.jsonl` for other user voices.

    Args:
        split: Determines the held-out facts; answers that state one are left out.
        answered: Manifest of `prepare self-answer`.
        folder: Output folder.
        voices: Number of conversations in the second list.
    """
    held = split.held
    kept = [
        {key: item[key] for key in ("id", "messages", "lang", "group", "answers", "relation") if key in item}
        for item in resolved_items([str(answered)])
        if held.states(" ".join(m["content"] for m in item["messages"])) is None
    ]
    write_lines(folder / "dialogues.jsonl", kept)
    other = [item | {"id": f"{item['id']}-v"} for item in mixed_records(kept, split.seed + 1)[:voices]]
    write_lines(folder / "dialogues_voices.jsonl", other)


def write_manifests(speech: Sequence[Path], dialogues: Sequence[Path], folder: Path, every: int) -> None:
    """Writes manifests of utterances and of conversations.

        train, validation              utterances: the spoken texts and all turns of the conversations
        voice_train, voice_validation  utterances in the voice with the most speech, which is the assistant's
        sft_train, sft_validation      conversations

    Texts and conversations are held out by a hash of their names; a conversation that is spoken in several
    voices is in one part only.

    Args:
        speech: Manifests of spoken texts.
        dialogues: Manifests of spoken conversations.
        folder: Output folder.
        every: One out of this many texts, and of this many conversations, is held out.
    """
    parts: dict[str, list[Record]] = {"train": [], "validation": []}
    talks: dict[str, list[Record]] = {"train": [], "validation": []}
    spoken = list(resolved_items([str(manifest) for manifest in speech]))
    held = _held_out((_text_of(item) for item in spoken), every)
    for item in spoken:
        part = "validation" if _text_of(item) in held else "train"
        parts[part].append(_utterance(item, item["text"], item["document"], folder))
    said = list(resolved_items([str(manifest) for manifest in dialogues]))
    held = _held_out((_talk_of(item) for item in said), every)
    for item in said:
        part = "validation" if _talk_of(item) in held else "train"
        talks[part].append(_beside(item, folder))
        parts[part] += [
            _utterance(message, message["spoken"], f"{item['id']}-{number}", folder)
            for number, message in enumerate(item["messages"])
            if message.get("audio_filepath")
        ]
    seconds: dict[str, float] = {}
    for record in parts["train"]:
        seconds[record["speaker"]] = seconds.get(record["speaker"], 0.0) + record["duration"]
    voice = max(seconds, key=lambda name: seconds[name])
    for part, records in parts.items():
        write_lines(folder / f"{part}.jsonl", records)
        write_lines(folder / f"voice_{part}.jsonl", [r for r in records if r["speaker"] == voice])
        write_lines(folder / f"sft_{part}.jsonl", talks[part])


def _text_of(item: Record) -> str:
    """Name of the text that an utterance is part of."""
    return item["document"].partition("+")[0]


def _talk_of(item: Record) -> str:
    """Name of a conversation, the same for all voices of the user."""
    return item["id"].removesuffix("-v")


def _held_out(names: Iterable[str], every: int) -> set[str]:
    """One out of `every` names, rounded up: those with the lowest hashes."""
    ordered = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
    return set(ordered[: -(-len(ordered) // every)])


def _utterance(sound: Record, text: str, document: str, folder: Path) -> Record:
    """A line of a manifest with a relative path, so that the study's folder can be moved."""
    return {
        "audio_filepath": os.path.relpath(sound["audio_filepath"], folder),
        "duration": sound["duration"],
        "text": text,
        "speaker": sound["speaker"],
        "lang": "en",
        "document": document,
    }


def _beside(item: Record, folder: Path) -> Record:
    """An item with paths relative to a folder."""
    messages = [
        m | {"audio_filepath": os.path.relpath(m["audio_filepath"], folder)} if m.get("audio_filepath") else m
        for m in item["messages"]
    ]
    return {key: item[key] for key in ("id", "lang", "group") if key in item} | {"messages": messages}


def write_spoken_list(manifests: Sequence[Path], file: Path) -> None:
    """Writes the list for `evaluate spoken_qa`: questions with their audio."""
    records = [
        {
            "id": str(item["id"]).rpartition("-")[0],  # without the number that `synthesize` adds
            "question": item["text"],
            "audio": os.path.relpath(item["audio_filepath"], file.parent),
            "answers": item["answers"],
            "lang": "en",
            "group": item["group"],
            "voice": item["speaker"],
            "relation": item["relation"],
        }
        for item in resolved_items([str(manifest) for manifest in manifests])
    ]
    write_lines(file, records)


def _lines(name: str) -> list[str]:
    return [line for line in (_CORPORA / name).read_text(encoding="utf-8").splitlines() if line.strip()]


def write_lines(path: Path, records: Iterable[Record]) -> None:
    """Writes JSON lines atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial, partial.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
