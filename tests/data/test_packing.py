"""Packing: every row a target exactly once, little filler; the order of packs is a function."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from lit_moss.data.packing import SHORTEST_CUT, PackOrder, Packs, pack


def drawing(packs):
    """Packs as text: a letter a row, upper case where a document or piece begins, `.` for filler."""
    lines = []
    for i in range(len(packs)):
        line = ""
        for document, start, stop in packs.pieces(i):
            letter = chr(ord("a") + document)
            line += letter.upper() + letter * (stop - start - 1)
        lines.append(line.ljust(packs.context, "."))
    return lines


@pytest.mark.parametrize(
    ("lengths", "context", "want"),
    [
        ([5], 5, ["Aaaaa"]),
        ([3], 5, ["Aaa.."]),
        ([2, 3], 5, ["BbbAa"]),
        ([2, 3, 4], 5, ["Cccc.", "BbbAa"]),
        ([3, 3, 2], 5, ["AaaCc", "Bbb.."]),
        # Best fit: c goes where it leaves the least room, not where it comes first.
        ([4, 5, 3], 8, ["BbbbbCcc", "Aaaa...."]),
        # Longer than the context: the fifth row stands in both pieces, predicted in the first.
        ([7, 3, 2], 5, ["Aaaaa", "AaaCc", "Bbb.."]),
        ([6], 5, ["Aaaaa", "Aa..."]),
        ([9], 5, ["Aaaaa", "Aaaaa"]),
        # One row predicts nothing.
        ([1, 2], 4, ["Bb.."]),
        ([], 4, []),
    ],
)
def test_small_cases_spelled_out(lengths, context, want):
    assert drawing(pack(np.array(lengths, dtype=np.int64), context)) == want


def test_cutting_fills_the_room_that_whole_documents_leave():
    lengths = np.array([150, 150, 150])
    assert [p.pieces(0) for p in [pack(lengths, 250)]] == [[(0, 0, 150)]]
    assert len(pack(lengths, 250)) == 3
    cut = pack(lengths, 250, min_fill=0.9)
    assert [cut.pieces(i) for i in range(2)] == [
        [(1, 0, 150), (0, 0, 100)],
        [(2, 0, 150), (0, 99, 150)],  # row 99 again: it was the last of the other piece
    ]


def random_lengths(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 400))
    return rng.choice(
        [
            rng.integers(1, 60, n),
            rng.lognormal(4, 1, n).astype(int).clip(1, 3000),
            np.full(n, int(rng.integers(1, 300))),
            rng.normal(120, 10, n).astype(int).clip(1),
        ]
    ), int(rng.integers(2, 400))


def targets_of(packs):
    """How often each row of each document is predicted: every row of a piece but its first."""
    return Counter(
        (document, row)
        for i in range(len(packs))
        for document, start, stop in packs.pieces(i)
        for row in range(start + 1, stop)
    )


@pytest.mark.slow
@pytest.mark.parametrize("min_fill", [0.0, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("seed", range(25))
def test_every_row_is_a_target_exactly_once(seed, min_fill):
    lengths, context = random_lengths(seed)
    packs = pack(lengths, context, min_fill)
    want = {(d, row): 1 for d, n in enumerate(lengths.tolist()) for row in range(1, n)}
    assert targets_of(packs) == want


@pytest.mark.slow
@pytest.mark.parametrize("min_fill", [0.0, 0.9, 0.97, 1.0])
@pytest.mark.parametrize("seed", range(25))
def test_packs_fit_the_context_and_pieces_have_two_rows_or_more(seed, min_fill):
    lengths, context = random_lengths(seed)
    packs = pack(lengths, context, min_fill)
    for i in range(len(packs)):
        sizes = [stop - start for _, start, stop in packs.pieces(i)]
        assert sizes
        assert min(sizes) >= 2
        assert sum(sizes) <= context
    assert packs.fill_rate == pytest.approx(
        sum(stop - start for i in range(len(packs)) for _, start, stop in packs.pieces(i))
        / max(1, len(packs) * context)
    )


@pytest.mark.parametrize("seed", range(25))
def test_pieces_of_a_document_share_one_row(seed):
    lengths, context = random_lengths(seed)
    for min_fill in (0.0, 0.97):
        packs = pack(lengths, context, min_fill)
        pieces = sorted(p for i in range(len(packs)) for p in packs.pieces(i))
        for (a, _, stop), (b, start, _) in pairwise(pieces):
            assert start == (stop - 1 if a == b else 0)


@pytest.mark.parametrize("seed", range(25))
def test_without_cutting_no_document_that_fits_is_cut(seed):
    lengths, context = random_lengths(seed)
    packs = pack(lengths, context)
    count = Counter(packs.document.tolist())
    for document, n in enumerate(lengths.tolist()):
        if 2 <= n <= context:
            assert count[document] == 1


@pytest.mark.parametrize("seed", range(25))
def test_cutting_makes_neither_more_sequences_nor_tiny_pieces(seed):
    lengths, context = random_lengths(seed)
    plain, cut = pack(lengths, context), pack(lengths, context, 0.97)
    assert len(cut) <= len(plain)
    whole = {(d, start, stop) for i in range(len(plain)) for d, start, stop in plain.pieces(i)}
    last = {d: int(n) for d, n in enumerate(lengths)}
    for i in range(len(cut)):
        for d, start, stop in cut.pieces(i):
            ends = stop == last[d] or any(w[0] == d and w[2] == stop for w in whole)
            assert (d, start, stop) in whole or ends or stop - start >= SHORTEST_CUT


@pytest.mark.parametrize("seed", range(10))
def test_the_same_input_gives_the_same_packs(seed):
    lengths, context = random_lengths(seed)
    assert pack(lengths, context, 0.97).fingerprint == pack(lengths.copy(), context, 0.97).fingerprint
    if len(pack(lengths, context)):
        assert pack(lengths, context).fingerprint != pack(lengths, context + 1).fingerprint


def test_a_context_of_one_row_predicts_nothing():
    with pytest.raises(ValueError, match="2 or more"):
        pack(np.array([3]), 1)


# Fill rates.


def interleaved_rows(names_and_texts, seed=0):
    """Rows of interleaved documents of at most 60 s: 12.5 codes a second or 4.4 letters a row."""
    rng = np.random.default_rng(seed)
    found, chapter, held_sec, rows = [], None, 0.0, 0
    for name, text in names_and_texts:
        sec, own = len(text) / 15.2 + 0.5, name.rpartition("-")[0]
        if rows and (own != chapter or held_sec + sec > 60):
            found.append(rows + 1)
            held_sec, rows = 0.0, 0
        chapter, held_sec = own, held_sec + sec
        rows += int(12.5 * sec) + 2 if rng.random() < 0.5 else int(len(text) / 4.4) + 1
    return np.array([*found, rows + 1])


@pytest.mark.parametrize(
    ("context", "min_fill"), [(512, 0.97), (1024, 0.0), (2048, 0.0), (4096, 0.0), (14_336, 0.0)]
)
def test_at_least_97_percent_of_real_lengths(shared_data, context, min_fill):
    lines = (shared_data / "ljspeech_text.csv").read_text(encoding="utf-8").splitlines()
    lengths = interleaved_rows((line.split("|")[0], line.split("|")[-1]) for line in lines)
    assert len(lengths) > 1000
    assert pack(lengths, context, min_fill).fill_rate >= 0.97


@pytest.mark.parametrize("context", [1024, 2048, 14_336])
def test_at_least_97_percent_of_lengths_like_them(context):
    rng = np.random.default_rng(0)
    lengths = np.concatenate(
        [rng.normal(443, 106, 3000).clip(23, 746), rng.lognormal(4.7, 0.5, 1000)]
    ).astype(int)
    assert pack(lengths, context).fill_rate >= 0.97


def test_documents_almost_as_long_as_the_context_need_cutting():
    lengths = np.random.default_rng(0).normal(400, 30, 1000).astype(int)
    assert pack(lengths, 512).fill_rate < 0.85
    cut = pack(lengths, 512, min_fill=0.97)
    assert cut.fill_rate >= 0.97
    # As few as it takes: most documents stay whole.
    assert np.mean(np.bincount(cut.document) == 1) > 0.75


def test_long_documents_fill_every_context():
    lengths = np.random.default_rng(0).uniform(5000, 90_000, 2000).astype(int)
    assert pack(lengths, 14_336).fill_rate > 0.99


@pytest.mark.nightly
def test_a_million_documents_take_seconds():
    import time

    lengths = np.random.default_rng(0).lognormal(6.0, 1.2, 1_000_000).clip(4, 200_000).astype(int)
    begin = time.monotonic()
    packs = pack(lengths, 14_336, 0.97)
    assert time.monotonic() - begin < 30  # 1 s measured
    assert packs.fill_rate > 0.999


# Files.


def test_packs_are_saved_and_loaded(tmp_path):
    lengths, context = random_lengths(3)
    packs = pack(lengths, context)
    packs.save(tmp_path / "packs/a.npz")
    found = Packs.load(tmp_path / "packs/a.npz")
    assert found is not None
    assert found.fingerprint == packs.fingerprint
    assert [p.name for p in (tmp_path / "packs").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_damaged_packs_are_not_loaded(tmp_path, damage):
    path = tmp_path / "a.npz"
    pack(*random_lengths(3)).save(path)
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        at = len(content) // 2
        path.write_bytes(content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :])
    assert Packs.load(path) is None


# Order.


def test_every_pack_exactly_once_a_round():
    order = PackOrder([37], [1.0], seed=1)
    for number in range(3):
        seen = [order.at(n) for n in range(37 * number, 37 * (number + 1))]
        assert sorted(seen) == [(0, i) for i in range(37)]
    assert [order.at(n) for n in range(37)] != [order.at(n) for n in range(37, 74)]


def test_speech_once_and_a_tenth_of_the_text_a_round():
    order = PackOrder([50, 30], [1.0, 0.1], seed=1)
    assert order.packs_per_round == 53
    assert order.shares == [50, 3]
    text = []
    for number in range(10):
        seen = [order.at(n) for n in range(53 * number, 53 * (number + 1))]
        assert sorted(p for s, p in seen if s == 0) == list(range(50))
        text += [p for s, p in seen if s == 1]
        assert len(text) == 3 * (number + 1)
    # Another tenth in each round, until all is used.
    assert sorted(text) == list(range(30))
    again = [order.at(n) for n in range(530, 1060)]
    assert sorted(p for s, p in again if s == 1) == list(range(30))
    assert [p for s, p in again if s == 1] != text


@pytest.mark.parametrize(
    ("sizes", "epochs"),
    [
        ([7, 17], [1.0, 0.1]),
        ([3, 3, 3], [0.3, 2.5, 1 / 3]),
        ([1], [0.01]),
        ([5, 2], [0.01, 0.02]),
        ([4], [3.7]),
    ],
)
def test_shares_do_not_drift_and_no_pack_comes_twice_before_all_came_once(sizes, epochs):
    order = PackOrder(sizes, epochs, seed=4)
    rounds = 40
    count = int(rounds * order.packs_per_round)
    seen = [order.at(n) for n in range(count)]
    for source, (size, epoch) in enumerate(zip(sizes, epochs, strict=True)):
        packs = [p for s, p in seen if s == source]
        assert abs(len(packs) - rounds * size * epoch) <= max(1, size * epoch)
        # Rounds are shuffled, so cycles may mix inside one; counts differ by two at most.
        times = Counter(packs)
        assert max(times.values(), default=0) - min(times.get(p, 0) for p in range(size)) <= 2 + int(epoch)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fresh_objects_agree_in_any_order_of_asking(seed):
    a, b = (PackOrder([20, 31, 2], [1.0, 0.27, 1.5], seed) for _ in range(2))
    asked = np.random.default_rng(seed).permutation(400)
    found = {int(n): a.at(int(n)) for n in asked}
    assert {n: b.at(n) for n in range(400)} == found


def test_what_an_order_depends_on_is_in_its_fingerprint():
    prints = {
        PackOrder(*a).fingerprint
        for a in [
            ([9, 4], [1.0, 0.5], 1),
            ([9, 5], [1.0, 0.5], 1),
            ([9, 4], [1.0, 0.4], 1),
            ([9, 4], [1.0, 0.5], 2),
        ]
    }
    assert len(prints) == 4


@pytest.mark.parametrize(("sizes", "epochs"), [([], []), ([1], [1.0, 2.0]), ([0], [1.0]), ([3], [0.0])])
def test_invalid_orders_are_refused(sizes, epochs):
    with pytest.raises(ValueError, match="expected as many of both"):
        PackOrder(sizes, epochs, 1)


# Short documents first.


def short_first(count, seed=3, epochs=(1.0, 0.5)):
    rows = [np.random.default_rng(i).integers(5, 99, size).astype(float) for i, size in enumerate((40, 30))]
    return PackOrder([40, 30], list(epochs), seed, rows, count), rows


def test_the_first_samples_are_the_shortest_of_their_source_in_ascending_order():
    order, rows = short_first(20)
    plain = PackOrder([40, 30], [1.0, 0.5], 3)
    first, whole = [order.at(n) for n in range(20)], [plain.at(n) for n in range(55)]
    for source in (0, 1):
        lengths = [rows[source][p] for s, p in first if s == source]
        in_round = sorted(rows[source][p] for s, p in whole if s == source)
        assert lengths == in_round[: len(lengths)]
    assert [s for s, _ in first] == [s for s, _ in whole[:20]]  # shares stay
    # The round holds the same packs; the rest keep their order, and later rounds do not change.
    round_ = [order.at(n) for n in range(55)]
    assert sorted(round_) == sorted(whole)
    for source in (0, 1):
        rest = [p for s, p in round_[20:] if s == source]
        assert rest == [p for s, p in whole if s == source and p in set(rest)]
    assert [order.at(n) for n in range(55, 200)] == [plain.at(n) for n in range(55, 200)]


@pytest.mark.parametrize("count", [0, 1, 54, 55, 1000])
def test_short_first_is_a_permutation_of_the_round_and_a_function_of_seed_and_n(count):
    order, other = short_first(count)[0], short_first(count)[0]
    asked = np.random.default_rng(1).permutation(120).tolist()
    found = {n: order.at(n) for n in asked}
    assert {n: other.at(n) for n in range(120)} == found
    assert sorted(found[n] for n in range(55)) == sorted(
        PackOrder([40, 30], [1.0, 0.5], 3).at(n) for n in range(55)
    )


def test_short_first_is_in_the_fingerprint():
    plain = PackOrder([40, 30], [1.0, 0.5], 3).fingerprint
    assert short_first(0)[0].fingerprint == plain
    assert len({plain, short_first(5)[0].fingerprint, short_first(6)[0].fingerprint}) == 3


def test_length_of_a_packs_documents():
    packs = pack(np.array([7, 3, 2, 4]), 8)
    drawn = [[stop - start for _, start, stop in packs.pieces(i)] for i in range(len(packs))]
    assert packs.rows_per_piece.tolist() == [np.mean(sizes) for sizes in drawn]
