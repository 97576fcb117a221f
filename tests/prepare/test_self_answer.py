"""The backbone's answers: its own chat template, the same for the same batch, and filtered."""

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare import answer_checks as checks
from lit_moss.prepare.self_answer import SelfAnswerOptions, SelfAnswerStage, prompt_messages
from lit_moss.prepare.storage import Storage


def test_loops_are_measured():
    loop = "I like tea very much. " * 5
    assert checks.repeated_share(checks.units_of(loop), 4) > 0.7
    assert checks.repeated_share(checks.units_of("no no no"), 4) == 0.0
    assert checks.repeated_share(checks.units_of("我喜欢喝中国的绿茶，" * 4), 8) > 0.6
    assert checks.repeated_share([], 4) == 0.0


@pytest.mark.parametrize(
    ("text", "refuses"),
    [
        ("I'm sorry, but I can't help with that.", True),
        ("As an AI language model, I have no opinion.", True),
        ("I’m a helpful AI named SmolLM.", True),
        ("I cannot provide that information.", True),
        ("抱歉，我无法回答这个问题。", True),
        ("作为一个人工智能，我没有感情。", True),
        ("I am sorry to hear that. Drink some water.", False),
        ("An AI is a computer program.", False),
        ("很抱歉听到这个消息，多喝点水。", False),
    ],
)
def test_refusals_are_told_from_answers(text, refuses):
    assert checks.is_refusal(text) is refuses


@pytest.mark.parametrize(
    ("text", "finished"),
    [
        ("He was born in 1603. She was", "He was born in 1603."),
        ("It costs 3.5 euros and", ""),
        ("你好。今天", "你好。"),
        ('He said "Go!" And', 'He said "Go!"'),
        ("1. Apples are red.\n2. Pears are", "1. Apples are red."),
        ("1. Apples\n2. Pe", ""),
    ],
)
def test_an_answer_is_cut_after_its_last_sentence(text, finished):
    assert checks.finished_part(text) == finished


def test_languages_are_told_apart():
    assert checks.language_of("我爱 Python 编程") == "zh"
    assert checks.language_of("The word 你好 means hello in Chinese") == "en"
    assert checks.language_of("123!") == "en"
    assert checks.language_of("…") == ""
    french = "Bonjour, je suis un homme et il est aussi un ami de la famille royale"
    assert not checks.is_english(checks.units_of(french))
    assert checks.is_english(
        checks.units_of("The fox is a clever animal that lives in the woods and eats mice")
    )


def test_prompts_end_with_the_user():
    assert prompt_messages({"question": " Why? "}) == [{"role": "user", "content": "Why?"}]
    messages = [
        {"role": "user", "content": "Hi", "style": "happy"},
        {"role": "assistant", "content": "Hello"},
    ]
    assert prompt_messages({"messages": messages}) == [{"role": "user", "content": "Hi"}]
    with pytest.raises(UserError, match="no prompt"):
        prompt_messages({"id": "x", "text": "Hi"})
    with pytest.raises(UserError, match="role"):
        prompt_messages({"messages": [{"role": "robot", "content": "Hi"}]})
    with pytest.raises(UserError, match="max_words"):
        SelfAnswerOptions(min_words=5, max_words=4)


@pytest.fixture(scope="module")
def stage_of():
    """Makes stages with one opened model."""
    opened: list[SelfAnswerStage] = []

    def make(**options) -> SelfAnswerStage:
        stage = SelfAnswerStage(SelfAnswerOptions(max_new_tokens=12, batch=4, **options), Storage("."))
        if opened:
            stage._lm, stage._tokenizer = opened[0]._lm, opened[0]._tokenizer
        else:
            stage.open()
            opened.append(stage)
        return stage

    return make


QUESTIONS = (
    "What is the capital of France?",
    "Are you a person?",
    "Name three fruits.",
    "Why is the sky blue?",
)


@pytest.mark.nightly
@pytest.mark.network
def test_the_backbone_answers_by_its_own_template(stage_of):
    stage = stage_of(min_words=1)
    items = [
        {"id": str(i), "question": q, "answer": "given", "source": "own"} for i, q in enumerate(QUESTIONS)
    ]
    (unit,) = stage.units(iter(items))
    result = stage.run(unit)
    answers = {item["id"]: item["messages"][-1] for item in result.items}
    assert answers["0"] == {"role": "assistant", "content": "The capital of France is Paris."}
    assert all(set(item) == {"id", "messages", "lang", "source"} for item in result.items)
    assert {r.item["id"] for r in result.rejected} | set(answers) == {"0", "1", "2", "3"}
    again = stage.run(unit)
    assert (again.items, again.rejected) == (result.items, result.rejected)


@pytest.mark.nightly
@pytest.mark.network
def test_drawn_answers_follow_from_seed_and_prompt(stage_of):
    first = stage_of(min_words=1, temperature=1.0, refusals=True)
    items = [{"id": str(i), "question": q} for i, q in enumerate(QUESTIONS[:2])]

    def said(stage, unit) -> dict[str, str]:
        result = stage.run(unit)
        both = [*result.items, *(r.item for r in result.rejected)]
        return {item["id"]: item["messages"][-1]["content"] for item in both}

    one = said(first, items)
    assert said(first, items) == one
    assert said(first, items[::-1]) == one  # not the place in the batch
    other = stage_of(min_words=1, temperature=1.0, refusals=True, seed=2)
    assert said(other, items) != one


@pytest.mark.parametrize(
    ("text", "count", "first"),
    [
        ("It is Paris. It is big. Really", 1, "It is Paris."),
        ("It is Paris. It is big. Really", 2, "It is Paris. It is big."),
        ("It is Paris. It is", 2, ""),
        ("About 3.5 km", 1, ""),
    ],
)
def test_an_answer_is_cut_after_its_first_sentences(text, count, first):
    assert checks.first_sentences(text, count) == first


@pytest.mark.slow
@pytest.mark.network
def test_wrong_answers_and_further_sentences_are_dropped(stage_of):
    items = [
        {"id": "right", "question": QUESTIONS[0], "answers": ["paris"]},
        {"id": "wrong", "question": QUESTIONS[0], "answers": ["Lyon", "Pari"]},
        {"id": "any", "question": QUESTIONS[0]},
    ]
    result = stage_of(min_words=1).run(items)
    assert [item["id"] for item in result.items] == ["right", "any"]
    (rejected,) = result.rejected
    assert (rejected.item["id"], rejected.reason) == ("wrong", "wrong answer")
    kept = stage_of(min_words=1, wrong="keep").run(items)
    assert [item["id"] for item in kept.items] == ["right", "wrong", "any"]
    # Without an end within 12 tokens the answer is unfinished; its first sentence alone is whole.
    with pytest.raises(UserError, match="sentences"):
        SelfAnswerOptions(sentences=0)


@pytest.mark.slow
@pytest.mark.network
def test_examples_are_shown_and_not_kept(stage_of):
    examples = [["What is the capital of Italy?", "Rome it is."], ["And of Norway?", "Oslo it is."]]
    items = [{"id": "x", "question": "And of Spain?", "examples": examples}]
    (answered,) = stage_of(min_words=1, sentences=1).run(items).items
    asked, answer = answered["messages"]
    assert asked == {"role": "user", "content": "And of Spain?"}
    assert answer["content"].endswith(" it is.")  # in the examples' words
    assert "examples" not in answered
    with pytest.raises(UserError, match="examples"):
        stage_of().run([items[0] | {"examples": ["Rome"]}])
