"""Plain questions about facts, split into training and held-out questions.

`facts_en.yaml` has relations (capital, opposite, …), each with facts (France: Paris) and phrasings ("What is
the capital of {x}?"). A question is one phrasing of one fact. A seed decides what is held out:

    phrasings    not used for any fact in training
    facts        not asked in any phrasing in training, nor stated in any sentence (see `Held.states`);
                 their words may occur in other sentences

A correct answer to a held-out phrasing thus shows that the model understands a question it has never heard; a
correct answer to a held-out fact shows that the knowledge of the text model reaches its speech.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from lit_moss.errors import UserError

Group = Literal["train", "phrasing", "fact", "both"]
_FILE = Path(__file__).with_name("facts_en.yaml")
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Fact:
    """One fact.

    Args:
        relation: Name of its relation, e.g. `capital`.
        entity: Subject of the question, e.g. `France`.
        answers: Accepted answers; the first is the usual one.
    """

    relation: str
    entity: str
    answers: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the fact: relation and entity."""
        return f"{self.relation}-{re.sub(r'[^a-z0-9]+', '-', self.entity.lower())}"


@dataclass(frozen=True)
class Relation:
    """Facts of one kind, and the phrasings that ask for them.

    Args:
        name: Name of the relation.
        ask: Phrasings, each with `{x}`, or `{X}` for a capitalised entity.
        facts: Facts of the relation.
        say: Template of the answer sentence, with `{y}` for the answer.
    """

    name: str
    ask: tuple[str, ...]
    facts: tuple[Fact, ...]
    say: str


@dataclass(frozen=True)
class Question:
    """One phrasing of one fact.

    Args:
        id: Unique name.
        question: Text of the question.
        answers: Accepted answers.
        relation: Name of the fact's relation.
        fact: Name of the fact.
        phrasing: Phrasing with `{x}`.
        group: What is held out: nothing (`train`), the `phrasing`, the `fact`, or `both`.
        lang: Language code.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    relation: str
    fact: str
    phrasing: str
    group: Group
    lang: str = "en"

    def record(self) -> dict[str, Any]:
        """The question as an entry of a JSON-lines file."""
        return asdict(self) | {"answers": list(self.answers)}


@dataclass(frozen=True)
class Held:
    """The held-out phrasings and facts.

    Args:
        phrasings: Pairs of relation name and phrasing.
        facts: Held-out facts.
    """

    phrasings: frozenset[tuple[str, str]]
    facts: tuple[Fact, ...]

    def group(self, fact: Fact, phrasing: str) -> Group:
        """Returns the group of a question: which of its fact and its phrasing are held out."""
        phrasing_held, fact_held = (fact.relation, phrasing) in self.phrasings, fact in self.facts
        if phrasing_held and fact_held:
            return "both"
        return "phrasing" if phrasing_held else "fact" if fact_held else "train"

    def states(self, text: str) -> Fact | None:
        """Returns the first held-out fact whose entity and answer both occur in a text, or None."""
        words = words_of(text)
        for fact in self.facts:
            if _contains(words, _entity_words(fact.entity)) and has_answer(text, fact.answers):
                return fact
        return None


@cache
def relations() -> tuple[Relation, ...]:
    """Returns all relations, in the order of `facts_en.yaml`."""
    content = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return tuple(
        Relation(
            name,
            tuple(of["ask"]),
            tuple(Fact(name, entity, tuple(answers.split(" | "))) for entity, answers in of["facts"].items()),
            of["say"],
        )
        for name, of in content.items()
    )


def chosen(names: Collection[str] | None = None) -> list[Relation]:
    """Returns relations by name; None: all.

    Raises:
        UserError: if a name is unknown.
    """
    known = [relation.name for relation in relations()]
    if names is not None and (wrong := sorted(set(names) - set(known))):
        raise UserError(f"no relation {', '.join(wrong)}: expected some of {', '.join(known)}")
    return [relation for relation in relations() if names is None or relation.name in names]


def hold_out(
    of: Sequence[Relation], seed: int, phrasings: int = 3, facts: float = 0.2, seen: Collection[str] = ()
) -> Held:
    """Chooses what to hold out of each relation; the choice depends only on the seed and the relation's name.

    Two facts that are each other's answer (hot: cold, cold: hot) are held out together. A phrasing that
    another relation shares is never held out.

    Args:
        of: Relations.
        seed: Seed of the choice.
        phrasings: Number of phrasings held out of each relation.
        facts: Fraction of the facts held out of each relation, at least 0 and below 1; at least one fact
            unless 0.
        seen: Names of facts that are never held out.

    Raises:
        UserError: if a relation would have no phrasing or no fact left for training.
    """
    common = [phrasing for relation in relations() for phrasing in relation.ask]
    held_phrasings: list[tuple[str, str]] = []
    held_facts: list[Fact] = []
    for relation in of:
        rng = _rng(seed, relation.name)
        own = [phrasing for phrasing in relation.ask if common.count(phrasing) == 1]
        if not 0 <= facts < 1 or not 0 <= phrasings < len(relation.ask) or phrasings > len(own):
            raise UserError(
                f"{phrasings} phrasings and a share of {facts} of the facts of {relation.name} are to be "
                f"held out: expected at most {min(len(relation.ask) - 1, len(own))} phrasings, and a share "
                "from 0 to less than 1"
            )
        held_phrasings += [(relation.name, own[i]) for i in sorted(rng.permutation(len(own))[:phrasings])]
        free = [fact for fact in relation.facts if fact.name not in seen]
        wanted = max(1, round(facts * len(relation.facts))) if facts else 0
        picked: list[Fact] = []
        for i in rng.permutation(len(free)):
            if len(picked) >= wanted:
                break
            if free[i] not in picked:
                picked += _linked(free[i], free)
        held_facts += sorted(picked, key=relation.facts.index)
    return Held(frozenset(held_phrasings), tuple(held_facts))


def _linked(fact: Fact, facts: Sequence[Fact]) -> list[Fact]:
    """Returns the fact and all facts linked to it, directly or not, by being each other's answer."""
    linked = [fact]
    for one in linked:
        linked += [other for other in facts if _mutual(one, other) and other not in linked]
    return linked


def _mutual(a: Fact, b: Fact) -> bool:
    return a.entity in b.answers and b.entity in a.answers


def ask(fact: Fact, phrasing: str, group: Group) -> Question:
    """Returns the question that asks for a fact in a phrasing."""
    number = _relation(fact).ask.index(phrasing)
    return Question(
        f"{fact.name}-{number:02d}",
        _filled(phrasing, fact),
        fact.answers,
        fact.relation,
        fact.name,
        phrasing,
        group,
    )


def answer(fact: Fact) -> str:
    """Returns a sentence with the usual answer."""
    return _filled(_relation(fact).say, fact)


def examples(fact: Fact, held: Held, count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Draws questions and answers on other facts of the relation, none held out, as examples for a prompt."""
    relation, rng = _relation(fact), _rng(seed, f"examples {fact.name}")
    facts = [
        f for f in relation.facts if f != fact and f not in held.facts and f.answers[0] not in fact.answers
    ]
    phrasings = [p for p in relation.ask if (relation.name, p) not in held.phrasings]
    shown = [facts[i] for i in rng.permutation(len(facts))[:count]]
    return [(_filled(phrasings[int(rng.integers(len(phrasings)))], f), answer(f)) for f in shown]


def _relation(fact: Fact) -> Relation:
    return _by_name()[fact.relation]


@cache
def _by_name() -> dict[str, Relation]:
    return {relation.name: relation for relation in relations()}


def _filled(template: str, fact: Fact) -> str:
    capital = fact.entity[:1].upper() + fact.entity[1:]
    return template.replace("{x}", fact.entity).replace("{X}", capital).replace("{y}", fact.answers[0])


def questions(
    of: Sequence[Relation], held: Held, group: Group, per_fact: int | None = None, seed: int = 1
) -> list[Question]:
    """Returns the questions of a group, ordered by fact.

    Args:
        of: Relations.
        held: Held-out phrasings and facts.
        group: `train`, `phrasing`, `fact` or `both`.
        per_fact: Number of phrasings drawn for each fact; None: all.
        seed: Seed of the draw; the phrasings of a fact depend only on the seed and the fact.
    """
    asked: list[Question] = []
    for relation in of:
        for fact in relation.facts:
            possible = [phrasing for phrasing in relation.ask if held.group(fact, phrasing) == group]
            order = _rng(seed, fact.name).permutation(len(possible))[:per_fact]
            asked += [ask(fact, possible[i], group) for i in sorted(order)]
    return asked


def mixed(items: Iterable[Any], seed: int, key: str = "id") -> list[Any]:
    """Shuffles items by the seed and their names alone, so that any prefix is a random sample."""
    return sorted(items, key=lambda item: _rng(seed, str(getattr(item, key))).random())


def has_answer(reply: str, answers: Iterable[str]) -> bool:
    """Whether a reply contains the words of one of the answers, consecutively.

    Case and accents are ignored. Nothing else is tolerated: "Yorkshire" is not "York".
    """
    words = words_of(reply)
    return any(_contains(words, words_of(answer)) for answer in answers)


def words_of(text: str) -> list[str]:
    """Splits a text into words in lower case without accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return _WORD.findall("".join(c for c in plain if not unicodedata.combining(c)))


@cache
def _entity_words(entity: str) -> tuple[str, ...]:
    return tuple(word for word in words_of(entity) if word not in _ARTICLES)


def _contains(words: Sequence[str], part: Sequence[str]) -> bool:
    n = len(part)
    return n > 0 and any(list(words[i : i + n]) == list(part) for i in range(len(words) - n + 1))


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, *name.encode()])
