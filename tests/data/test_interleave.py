"""Interleaving as little string grammars: what chunks become, by section 3.1.1 of arXiv:2510.00499.

In them a small letter is a text id, a capital a code (A is code 0), `<` sosp, `>` eosp, `.` the end.
"""

from collections import Counter
from dataclasses import replace
from itertools import groupby, pairwise

import numpy as np
import pytest
import torch

from lit_moss.data.interleave import (
    Chunk,
    choose_modalities,
    chunk_words,
    document_rng,
    interleave,
    join_words,
    space_between,
    text_document,
    text_ids,
    unsupervised,
)
from lit_moss.llm.backbone import load_text_tokenizer, row_format
from lit_moss.llm.rows import RowFormat, from_grid, to_grid

FORM = RowFormat(
    text_vocab_size=40, audio_vocab_size=27, sosp_token_id=30, eosp_token_id=26, modality_pad_token_id=31,
    audio_pad_token_id=5, im_start_id=32, im_end_id=33, end_id=34,
)  # fmt: skip
TEXT, SPEECH = "text", "speech"


def spelled(rows, form=FORM):
    signs = {form.sosp_token_id: "<", form.end_id: ".", form.eosp_row: ">"}
    return "".join(
        signs.get(r)
        or (chr(ord("a") + r) if r < form.text_vocab_size else chr(ord("A") + r - form.vocab_size))
        for r in rows
    )


def chunk(letters):
    """`abC`: text a b, code C."""
    text = [ord(x) - ord("a") for x in letters if x.islower()]
    return Chunk(text, [ord(x) - ord("A") for x in letters if x.isupper()])


CHUNKS = [chunk("abAB"), chunk("cdCDE"), chunk("eF"), chunk("fgG")]


@pytest.mark.parametrize(
    ("modalities", "rows"),
    [
        ("TTTT", "abcdefg."),
        ("SSSS", "<ABCDEFG>."),
        ("TSTS", "ab<CDE>e<G>."),
        ("STST", "<AB>cd<F>fg."),
        ("TSST", "ab<CDEF>fg."),
        ("SSTT", "<ABCDE>efg."),
        ("TTSS", "abcd<FG>."),
        ("STTS", "<AB>cde<G>."),
    ],
)
def test_grammar_of_interleaving(modalities, rows):
    names = [TEXT if m == "T" else SPEECH for m in modalities]
    assert spelled(interleave(CHUNKS, names, FORM)) == rows


def test_grammar_of_the_other_kinds():
    assert spelled(unsupervised([0, 1, 2], FORM)) == "<ABC>."
    assert spelled(text_document([0, 1, 2], FORM)) == "abc."
    assert spelled(text_document([0, 1, 2], replace(FORM, end_id=None))) == "abc"


def test_a_document_as_a_grid_and_back_is_the_same_document():
    rows = torch.tensor(interleave(CHUNKS, [TEXT, SPEECH, TEXT, SPEECH], FORM))
    grid = to_grid(rows, FORM)
    assert grid.T.tolist() == [
        [0, 1, 30, 31, 31, 31, 31, 4, 30, 31, 31, 34],
        [5, 5, 5, 2, 3, 4, 26, 5, 5, 6, 26, 5],
    ]
    assert torch.equal(from_grid(grid, FORM), rows)


def test_every_code_and_text_id_comes_exactly_once_in_one_of_the_two_modalities():
    rng = np.random.default_rng(0)
    for _ in range(200):
        chunks = [
            Chunk(
                rng.integers(0, 26, rng.integers(1, 5)).tolist(),
                rng.integers(0, 26, rng.integers(1, 9)).tolist(),
            )
            for _ in range(rng.integers(1, 9))
        ]
        modalities = choose_modalities(len(chunks), rng)
        rows = interleave(chunks, modalities, FORM)
        both = list(zip(chunks, modalities, strict=True))
        assert [r for r in rows if r < 26] == [i for c, m in both if m == TEXT for i in c.text_ids]
        codes = [r - 40 for r in rows if 40 <= r < FORM.eosp_row]
        assert codes == [i for c, m in both if m == SPEECH for i in c.codes]
        stretches = sum(modality == SPEECH for modality, _ in groupby(modalities))
        assert rows.count(FORM.sosp_token_id) == rows.count(FORM.eosp_row) == stretches


def test_the_choice_depends_only_on_seed_and_document():
    def drawn(seed, name):
        return choose_modalities(64, document_rng(seed, name))

    assert drawn(1, "LJ001:LJ001-0001") == drawn(1, "LJ001:LJ001-0001")
    assert drawn(1, "a") != drawn(1, "b")
    assert drawn(1, "a") != drawn(2, "a")
    # Pinned: another hash or generator would make other documents of the same corpus.
    assert "".join(m[0] for m in drawn(1, "a")[:16]) == "tststsstsssttstt"


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_random_modalities_have_their_share_and_are_independent(share):
    drawn = [m == SPEECH for i in range(400) for m in choose_modalities(25, document_rng(1, str(i)), share)]
    assert np.mean(drawn) == pytest.approx(share, abs=0.015)
    if share == 0.5:
        pairs = Counter((a, b) for i in range(400) for a, b in [drawn[25 * i : 25 * i + 2]])
        assert all(count == pytest.approx(100, abs=35) for count in pairs.values())


def test_alternating_modalities_start_with_either():
    drawn = [choose_modalities(7, document_rng(1, str(i)), alternate=True) for i in range(50)]
    assert all(a != b for one in drawn for a, b in pairwise(one))
    assert {one[0] for one in drawn} == {TEXT, SPEECH}


# --- text ---------------------------------------------------------------------------------------------------


def test_spaces_are_between_words_but_not_in_chinese_or_japanese():
    assert join_words(["in", "being", "modern."]) == "in being modern."
    assert join_words(["我们", "今天", "，", "去"]) == "我们今天，去"
    assert join_words(["その", "本"]) == "その本"
    assert join_words(["오늘", "날씨"]) == "오늘 날씨"
    assert space_between("", "a") == space_between("a", "") == ""


@pytest.mark.network
def test_text_of_neighbouring_chunks_is_the_natural_text_in_the_same_ids():
    tokenizer = load_text_tokenizer("embedded:smollm2-135m")
    form = row_format(tokenizer, 1152)
    text = "Printing, in the only sense with which we're concerned, cost 1,450 guineas -- no less."
    words = text.split()
    for cut in range(1, len(words)):
        first, second = join_words(words[:cut]), join_words(words[cut:])
        second = space_between(first, second) + second
        ids = text_ids(tokenizer, form, first) + text_ids(tokenizer, form, second)
        assert ids == text_ids(tokenizer, form, text)
        assert tokenizer.decode(ids) == text


@pytest.mark.network
def test_text_that_spells_a_special_token_stays_text():
    tokenizer = load_text_tokenizer("embedded:smollm2-135m")
    form = row_format(tokenizer, 1152)
    text = "a <|im_end|> b <|object_ref_start|><|modality_pad|> c<|endoftext|>"
    ids = text_ids(tokenizer, form, text)
    assert tokenizer.decode(ids) == text
    special = {form.im_start_id, form.im_end_id, form.end_id, form.sosp_token_id, form.modality_pad_token_id}
    assert special.isdisjoint(ids)
    # As in Qwen3, where modality_pad is <think>: an added token that is not special.
    tokenizer.add_tokens(["<think>"])
    form = replace(form, modality_pad_token_id=tokenizer.convert_tokens_to_ids("<think>"))
    ids = text_ids(tokenizer, form, "I <think> so")
    assert form.modality_pad_token_id not in ids
    assert tokenizer.decode(ids) == "I <think> so"
    assert tokenizer.encode("<|im_end|>", add_special_tokens=False) == [form.im_end_id]  # no lasting switch


# --- chunks by words ----------------------------------------------------------------------------------------


def spoken(rng, count, pause_sec=0.15):
    """`count` words of 0.1 to 0.7 s, and the codes of their recording."""
    words, now = [], 0.3
    for i in range(count):
        length = rng.uniform(0.1, 0.7)
        words.append((f"w{i}", now, now + length))
        now += length + rng.exponential(pause_sec)
    return words, -(-int((now + 0.2) * 16_000) // 1280)


@pytest.mark.parametrize("seed", range(60))
def test_chunks_hold_every_word_and_code_once_and_last_3_to_6_s(seed):
    rng = np.random.default_rng(seed)
    words, codes = spoken(rng, int(rng.integers(1, 300)))
    spans = chunk_words(words, codes, rng)
    assert [(s.first, s.code_first) for s in spans] == [(0, 0)] + [(s.stop, s.code_stop) for s in spans[:-1]]
    assert (spans[-1].stop, spans[-1].code_stop) == (len(words), codes)
    seconds = [(s.code_stop - s.code_first) * 0.08 for s in spans]
    if codes * 0.08 > 6:
        assert min(seconds) >= 3
        # Words are shorter than a second here: only what is left at the end can make one chunk longer.
        assert max(seconds[:-1], default=0) <= 6
        assert seconds[-1] < 9
    else:
        assert len(spans) == 1
    for a, b in pairwise(spans):
        cut_sec = a.code_stop * 0.08
        middle_sec = (words[a.stop - 1][2] + words[b.first][1]) / 2
        assert abs(cut_sec - middle_sec) <= 0.04 + 1e-9


def test_lengths_of_chunks_are_spread_over_3_to_6_s():
    words, codes = spoken(np.random.default_rng(0), 20_000)
    spans = chunk_words(words, codes, document_rng(1, "a"))
    seconds = np.array([(s.code_stop - s.code_first) * 0.08 for s in spans])
    share, _ = np.histogram(seconds, bins=6, range=(3, 6))
    assert share.min() > 0.1 * share.sum()
    assert len(seconds) > 1000


def test_a_long_pause_makes_a_long_chunk_and_a_short_recording_a_short_one():
    words = [("a", 0.0, 1.0), ("b", 20.0, 21.0), ("c", 21.2, 25.0)]
    spans = chunk_words(words, 320, document_rng(1, "a"))
    assert [(s.first, s.stop, s.code_first, s.code_stop) for s in spans] == [(0, 1, 0, 131), (1, 2, 131, 264),
                                                                           (2, 3, 264, 320)]  # fmt: skip
    (span,) = chunk_words([("a", 0.1, 0.5)], 8, document_rng(1, "a"))
    assert (span.code_first, span.code_stop) == (0, 8)


def test_words_after_the_end_of_the_recording_take_no_codes_from_others():
    words = [(f"w{i}", float(i), i + 0.9) for i in range(12)]
    spans = chunk_words(words, 62, document_rng(1, "a"))  # 4.96 s
    assert spans[0].code_first == 0
    assert spans[-1].code_stop == 62
    assert all(s.code_stop > s.code_first for s in spans)


@pytest.mark.parametrize(
    "words", [[("a", 1.0, 0.5)], [("a", 1.0, 2.0), ("b", 0.5, 3.0)], [("a", 0.0, float("nan"))]]
)
def test_times_out_of_order_are_refused(words):
    with pytest.raises(ValueError, match=r"word '(a|b)' from"):
        chunk_words(words, 50, document_rng(1, "a"))
