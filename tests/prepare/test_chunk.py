"""`prepare chunk`: every word in one chunk, whatever the method; lengths, shares, spelling."""

import itertools

import numpy as np
import pytest

from lit_moss.data.interleave import read_chunks
from lit_moss.errors import UserError
from lit_moss.prepare.chunk import ChunkOptions, ChunkStage
from lit_moss.prepare.storage import Storage


def utterance(words=200, seed=0, **keys):
    rng = np.random.default_rng(seed)
    at, timed = 0.3, []
    for i in range(words):
        length = float(rng.uniform(0.1, 0.5))
        timed.append([f"w{i}", round(at, 3), round(at + length, 3)])
        at += length + float(rng.uniform(0.0, 0.2))
    text = " ".join(f"W{i}," for i in range(words))
    return {
        "id": f"u{seed}",
        "audio_filepath": "/x/a.flac",
        "duration": at + 0.5,
        "words": timed,
        "text": text,
    } | keys


def run(items, **options):
    return ChunkStage(ChunkOptions(**options), Storage("/nowhere")).run(items)


@pytest.mark.parametrize("method", ["seconds", "words", "poisson"])
@pytest.mark.parametrize("words", [1, 2, 7, 40, 300])
def test_chunks_are_the_utterance(method, words):
    for seed in range(5):
        item = utterance(words, seed)
        (out,) = run([item], method=method).items
        chunks = out["chunks"]
        assert [c[0] for c in chunks] == [0, *(c[1] for c in chunks[:-1])]
        assert chunks[-1][1] == words
        assert [c[2] for c in chunks] == [0.0, *(c[3] for c in chunks[:-1])]
        assert item["duration"] <= chunks[-1][3] < item["duration"] + 0.08
        assert " ".join(c[4] for c in chunks) == item["text"]
        codes = round(chunks[-1][3] / 0.08)
        read = read_chunks(chunks, codes)
        assert [c.code_first for c in read] == [0, *(c.code_stop for c in read[:-1])]
        assert read[-1].code_stop == codes
        assert {k: out[k] for k in item} == item


def test_seconds():
    chunks = run([utterance(300)]).items[0]["chunks"]
    lengths = [stop - start for _, _, start, stop, _ in chunks]
    assert all(3 - 0.08 <= x <= 6.08 for x in lengths)
    assert len(set(np.round(lengths, 1))) > 10


def test_words_in_turns():
    counts = {"text": [], "speech": []}
    for seed in range(20):
        chunks = run([utterance(300, seed)], method="words").items[0]["chunks"]
        modalities = [c[5] for c in chunks]
        assert all(a != b for a, b in itertools.pairwise(modalities))
        for first, stop, *_, modality in chunks[:-1]:
            counts[modality].append(stop - first)
    assert (min(counts["text"]), max(counts["text"])) == (10, 30)
    assert (min(counts["speech"]), max(counts["speech"])) == (5, 15)


def test_poisson_spans():
    lengths, shares = [], []
    for seed in range(40):
        chunks = run([utterance(400, seed)], method="poisson").items[0]["chunks"]
        modalities = [c[5] for c in chunks]
        assert all(a != b for a, b in itertools.pairwise(modalities))
        spans = [stop - first for first, stop, *_, modality in chunks if modality == "speech"]
        shares.append(sum(spans) / 400)
        lengths += spans
    assert set(shares) == {0.3}
    assert np.mean(lengths) == pytest.approx(10, abs=0.7)
    assert np.std(lengths) == pytest.approx(10**0.5, abs=0.6)


def test_the_seed_and_the_content_decide():
    one, same = run([utterance()]), run([utterance()])
    assert one.items == same.items
    assert run([utterance()], seed=2).items != one.items
    assert run([utterance(id="other")]).items[0]["chunks"] != one.items[0]["chunks"]
    moved = run([utterance(audio_filepath="/elsewhere/a.flac")])
    assert moved.items[0]["chunks"] == one.items[0]["chunks"]


@pytest.mark.parametrize(
    ("text", "words", "want"),
    [
        (
            "“Stop!” he said. (Twice.)",
            ["stop", "he", "said", "twice"],
            ["“Stop!”", "he", "said.", "(Twice.)"],
        ),
        ('He said "no" twice', ["he", "said", "no", "twice"], ["He", "said", '"no"', "twice"]),
        ("我有3个，你呢？", list("我有3个你呢"), ["我", "有", "3", "个，", "你", "呢？"]),
        ("Mr. Smith's dog", ["Mr", "Smiths", "dog"], ["Mr.", "Smith's", "dog"]),  # as many as pieces
        ("In 1984 x", ["in", "x"], ["in", "x"]),  # a word that was not aligned
    ],
)
def test_chunks_are_spelled_like_the_transcript(text, words, want):
    timed = [[w, 1.0 * i, 1.0 * i + 0.9] for i, w in enumerate(words)]
    item = {
        "id": "x",
        "audio_filepath": "/a.wav",
        "duration": float(len(words)),
        "text": text,
        "words": timed,
    }
    options = {"min_text_words": 1, "max_text_words": 1, "min_speech_words": 1, "max_speech_words": 1}
    chunks = run([item], method="words", **options).items[0]["chunks"]
    assert [c[4] for c in chunks] == want


def test_what_has_no_times_passes_and_wrong_times_do_not():
    without, speech_only = utterance(words=0), utterance(use="speech")
    del without["words"]
    wrong = utterance() | {"words": [["b", 2.0, 1.0]]}
    result = run([without, speech_only, wrong])
    assert result.items == [without, speech_only]
    assert result.counts["without_word_times"] == 1
    assert [r.reason for r in result.rejected] == ["word times"]


@pytest.mark.parametrize(
    "options", [{"method": "x"}, {"min_sec": 7.0}, {"speech_share": 2.0}, {"min_text_words": 0}]
)
def test_wrong_options_are_named(options):
    with pytest.raises(UserError, match="expected"):
        ChunkOptions(**options)
