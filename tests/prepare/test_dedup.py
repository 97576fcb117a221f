"""`prepare dedup`: the first of similar texts is kept, and nothing of the evaluation."""

import json

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.dedup import DedupOptions, bands, words_of
from lit_moss.prepare.engine import run_step
from lit_moss.prepare.step import Machine, Step

WORDS = [
    f"{a}{b}" for a in ("ba", "co", "du", "fi", "ge") for b in ("ra", "so", "tu", "vi", "we", "xa", "yo")
]


def run(items: list[dict], folder, **options):
    source = folder.with_suffix(".jsonl")
    source.write_text("".join(json.dumps(i, ensure_ascii=False) + "\n" for i in items), encoding="utf-8")
    step = Step("dedup", "dedup", DedupOptions(**options), (str(source),), str(folder), str(folder))
    run_step(step, Machine())
    kept, rejected = (
        [json.loads(line) for line in (folder / name).read_text("utf-8").splitlines()]
        for name in ("manifest.jsonl", "rejected.jsonl")
    )
    return [i["id"] for i in kept], {r["item"]["id"]: r for r in rejected}


def changed(count: int) -> str:
    """The words with the last `count` others."""
    return " ".join(WORDS[: len(WORDS) - count] + [f"new{i}" for i in range(count)])


def test_equal_and_similar_texts_go_and_the_first_stays(tmp_path):
    texts = {
        "a": " ".join(WORDS),
        "same": " ".join(WORDS).upper().replace(" ", ", ") + "!",
        "similar": changed(2),  # 29 of 33 5-grams in both: 29 / 33 = .88
        "other": changed(9),  # 22 / 40
        "none": "🎉 …",
        "b": "Another text altogether, with words of its own.",
    }
    kept, rejected = run([{"id": k, "text": v} for k, v in texts.items()], tmp_path / "out")
    assert kept == ["a", "other", "b"]
    assert {
        k: (r["reason"], r["item"].get("duplicate_of"), r["value"], r["threshold"])
        for k, r in rejected.items()
    } == {
        "same": ("duplicate", "a", 1.0, 0.8),
        "similar": ("near duplicate", "a", round((len(WORDS) - 6) / (len(WORDS) - 2), 4), 0.8),
        "none": ("no words", None, None, None),
    }


def test_chinese_is_compared_by_characters(tmp_path):
    text = (
        "人工智能正在改变我们的生活方式，也带来了许多新的问题，需要大家一起来想办法解决，这不容易做到的事。"
    )
    items = [
        {"id": "a", "text": text},
        {"id": "b", "text": text.replace("，", " ").replace("事", "活")},
        {"id": "c", "text": text[20:]},
    ]
    kept, rejected = run(items, tmp_path / "out")
    assert kept == ["a", "c"]
    assert rejected["b"]["item"]["duplicate_of"] == "a"
    assert words_of("我有iPhone手机！") == ["我", "有", "iphone", "手", "机"]


def test_questions_and_conversations_are_compared_with_their_answers(tmp_path):
    items = [
        {"id": "a", "question": "Why is the sky blue?", "answer": "Because of the air."},
        {
            "id": "b",
            "question": "Why is the sky blue?",
            "answer": "Short waves of light scatter most of all.",
        },
        {"id": "c", "question": "why is the sky blue", "answer": "because of the air"},
        {
            "id": "d",
            "messages": [
                {"role": "user", "content": "Why is the sky blue?"},
                {"role": "assistant", "content": "Because of the air."},
            ],
        },
    ]
    kept, rejected = run(items, tmp_path / "out")
    assert kept == ["a", "b"]
    assert [rejected[k]["item"]["duplicate_of"] for k in ("c", "d")] == ["a", "a"]


def test_what_is_or_holds_a_question_of_the_evaluation_goes(tmp_path):
    (tmp_path / "eval.txt").write_text(
        "What is the capital of France?\nHow many legs do seven healthy spiders have together?\n"
    )
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"question": "Who wrote the novel about the white whale?", "answer": "Melville"}) + "\n"
    )
    items = [
        {"id": "a", "question": "what is the capital of france", "answer": "Paris."},
        {
            "id": "b",
            "text": "He asked the class: how many legs do seven healthy spiders have, together? Nobody knew.",
        },
        {"id": "c", "messages": [{"role": "user", "content": "Who wrote the novel about the white whale?"}]},
        {"id": "d", "text": "He asked what is the capital of France?"},  # too short to be looked for inside
        {"id": "e", "text": "Spiders have eight legs."},
    ]
    against = [str(tmp_path / "eval.txt"), str(tmp_path / "eval.jsonl")]
    kept, rejected = run(items, tmp_path / "out", against=against)
    assert kept == ["d", "e"]
    assert {k: (r["reason"], r["item"]["duplicate_of"]) for k, r in rejected.items()} == {
        "a": ("evaluation question", "eval.txt:1"),
        "b": ("evaluation question", "eval.txt:2"),
        "c": ("evaluation question", "eval.jsonl:1"),
    }


def test_other_questions_are_another_run(tmp_path):
    (tmp_path / "eval.txt").write_text("Nothing.\n")
    items = [{"id": "a", "question": "What is the capital of France?", "answer": "Paris."}]
    options = {"against": [str(tmp_path / "eval.txt")]}
    assert run(items, tmp_path / "out", **options)[0] == ["a"]
    (tmp_path / "eval.txt").write_text("What is the capital of France?\n")
    assert run(items, tmp_path / "out", **options)[0] == []


@pytest.mark.parametrize("jaccard", [0.5, 0.8, 0.9])
def test_bands_find_nearly_all_pairs_at_the_threshold(jaccard):
    count, rows = bands(128, jaccard)
    assert count * rows <= 128
    assert 1 - (1 - jaccard**rows) ** count >= 0.94
    assert 1 - (1 - jaccard ** (rows + 1)) ** (128 // (rows + 1)) < 0.94  # longer bands would miss more


def test_wrong_options_and_items_are_refused(tmp_path):
    for options in ({"jaccard": 0.0}, {"ngram": 0}, {"permutations": 4}):
        with pytest.raises(UserError, match="expected"):
            DedupOptions(**options)
    with pytest.raises(UserError, match="cannot be read"):
        run([{"id": "a", "text": "A."}], tmp_path / "out", against=[str(tmp_path / "none.txt")])
    with pytest.raises(UserError, match="expected text, question"):
        run([{"id": "a"}], tmp_path / "out2")


@pytest.mark.slow
def test_near_duplicates_are_found_among_real_sentences(shared_data, tmp_path):
    lines = (shared_data / "ljspeech_text.csv").read_text(encoding="utf-8").splitlines()[:1500]
    items = [{"id": line.split("|")[0], "text": line.split("|")[-1]} for line in lines]
    copies = []
    for item in items[::50]:
        words = item["text"].split()
        if len(words) >= 16:  # one word less: at most 5 of its n-grams are lost
            copies.append({"id": f"{item['id']}-copy", "text": " ".join(words[:-1])})
    kept, rejected = run([*items, *copies], tmp_path / "out")
    assert len(copies) > 10
    assert {c["id"] for c in copies} <= set(rejected)
    assert all(rejected[c["id"]]["item"]["duplicate_of"] == c["id"].removesuffix("-copy") for c in copies)
    assert len(kept) > 0.99 * len(items)
