"""Which sentences make a held-out item; the items themselves are tested with the documents."""

from lit_moss.data.cloze import draw_items


def test_drawn_items_follow_at_once_before_they_merely_follow():
    keys = [(0, "a", n) for n in (1, 2, 5, 9, 10)] + [(0, "b", n) for n in (1, 3)]
    found = draw_items(keys, [9] * 7, 3, seed=1)
    assert {i for _, i, _ in found[:2]} == {1, 4}
    assert {first for first, i, _ in found if i == 4} == {2}
    assert len(found) == 3
    assert all((other >= 5) == (i < 5) for _, i, other in found)
    assert draw_items(keys, [9] * 7, 3, seed=1) == found
    assert len(draw_items(keys, [9] * 7, 64, seed=1)) == 5
    assert len(draw_items(keys, [9, 9, 4, 9, 9, 9, 9], 64, seed=1)) == 3  # a word or two is no sentence
    assert draw_items(keys[:1], [9], 64, seed=1) == []
    # One group alone: the other sentence is one that is neither near nor in the context.
    for first, i, other in draw_items(keys[:5], [9] * 5, 64, seed=1):
        assert not first <= other <= i + 1
