"""Facts and phrasings: answers that match, and splits that keep apart what they hold out."""

import pytest

from lit_moss.corpora import facts
from lit_moss.errors import UserError

RELATIONS = facts.chosen()
FACTS = [fact for relation in RELATIONS for fact in relation.facts]


def test_names_are_unique_and_every_phrasing_has_a_place_for_the_entity():
    assert len({fact.name for fact in FACTS}) == len(FACTS)
    for relation in RELATIONS:
        assert len(set(relation.ask)) == len(relation.ask) >= 12
        assert all("{x}" in text or "{X}" in text for text in relation.ask)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_answers_match_their_own_sentence_and_stand_in_no_question(relation):
    for fact in relation.facts:
        assert all(facts.words_of(answer) for answer in fact.answers)
        assert facts.has_answer(facts.answer(fact), fact.answers)
        for phrasing in relation.ask:
            question = facts.ask(fact, phrasing, "train")
            assert not facts.has_answer(question.question, fact.answers), question.question
            assert "{" not in question.question


@pytest.mark.parametrize(
    ("reply", "answers", "right"),
    [
        ("The capital is Paris.", ["paris"], True),
        ("It's São Paulo!", ["Sao Paulo"], True),
        ("New Yorkshire", ["York", "New York"], False),
        ("In New York City", ["New York"], True),
        ("Seven.", ["seven", "7"], True),
        ("It is 17.", ["7"], False),
        ("", ["x"], False),
        ("anything", [""], False),
    ],
)
def test_an_answer_counts_where_its_words_stand(reply, answers, right):
    assert facts.has_answer(reply, answers) is right


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_training_has_neither_held_out_phrasings_nor_held_out_facts(seed):
    held = facts.hold_out(RELATIONS, seed)
    groups = {g: facts.questions(RELATIONS, held, g) for g in ("train", "phrasing", "fact", "both")}
    pairs = {g: {(q.fact, q.phrasing) for q in asked} for g, asked in groups.items()}
    everything = {(f.name, p) for r in RELATIONS for f in r.facts for p in r.ask}
    assert set.union(*pairs.values()) == everything
    assert sum(map(len, pairs.values())) == len(everything)
    trained_facts = {q.fact for q in groups["train"]}
    trained_phrasings = {(q.relation, q.phrasing) for q in groups["train"]}
    assert not trained_facts & {q.fact for q in groups["fact"] + groups["both"]}
    assert not trained_phrasings & {(q.relation, q.phrasing) for q in groups["phrasing"] + groups["both"]}
    assert {q.fact for q in groups["phrasing"]} == trained_facts
    # The same words are asked in no two groups.
    texts = {g: {q.question for q in asked} for g, asked in groups.items()}
    assert not texts["train"] & (texts["phrasing"] | texts["fact"] | texts["both"])
    for relation in RELATIONS:
        assert sum(name == relation.name for name, _ in held.phrasings) == 3
        assert any(fact.relation == relation.name for fact in held.facts)


@pytest.mark.slow
def test_the_same_seed_holds_out_the_same_whatever_else_is_asked():
    held = facts.hold_out(RELATIONS, 1)
    assert facts.hold_out(facts.chosen(), 1) == held != facts.hold_out(RELATIONS, 2)
    alone = facts.hold_out(facts.chosen(["capital"]), 1)
    assert alone.facts == tuple(fact for fact in held.facts if fact.relation == "capital")
    few, many = (facts.questions(RELATIONS, held, "train", n, seed=1) for n in (2, 4))
    assert {q.id for q in few} <= {q.id for q in many}
    assert facts.mixed(few, 3) == facts.mixed(few[::-1], 3) != few


def test_facts_that_are_each_others_answer_are_held_out_together():
    for seed in range(20):
        held = {fact.entity for fact in facts.hold_out(facts.chosen(["opposite"]), seed).facts}
        for a, b in (("day", "night"), ("summer", "winter"), ("hot", "cold")):
            assert (a in held) == (b in held)


def test_texts_that_state_a_held_out_fact_are_found():
    (france,) = [fact for fact in FACTS if fact.name == "capital-france"]
    held = facts.Held(frozenset(), (france,))
    assert held.states("Paris is in France.") is france
    assert held.states("France is large.") is None
    assert held.states("Paris is large.") is None
    assert facts.Held(frozenset(), ()).states("Paris is in France.") is None


@pytest.mark.slow
def test_examples_are_of_the_relation_and_never_held_out():
    held = facts.hold_out(RELATIONS, 1)
    for fact in FACTS[::7]:
        shown = facts.examples(fact, held, 3)
        assert shown == facts.examples(fact, held, 3)
        assert len(shown) == 3 or fact.relation in ("day_after", "continent")
        for question, answer in shown:
            assert held.states(f"{question} {answer}") is None or fact.relation == "sum"
            # Of numbers and rows, an answer may be what another fact is about, or part of its answer.
            is_row = fact.relation in ("sum", "count", "legs") or fact.relation.endswith("_after")
            assert is_row or not facts.has_answer(answer, fact.answers)


def test_wrong_options_are_one_line():
    with pytest.raises(UserError, match="no relation weather"):
        facts.chosen(["weather"])
    with pytest.raises(UserError, match="at most"):
        facts.hold_out(RELATIONS, 1, phrasings=30)
    with pytest.raises(UserError, match="share"):
        facts.hold_out(RELATIONS, 1, facts=1.0)
