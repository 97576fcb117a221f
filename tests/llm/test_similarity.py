"""Appendix C by hand-made matrices, loops, and brute force over paths."""

import itertools

import numpy as np
import pytest
import torch
from backbones import folder_of

from lit_moss.llm import SplitLM
from lit_moss.llm import similarity as sim


def all_paths(n: int, m: int):
    """Every monotone path from (0, 0) to (n-1, m-1)."""

    def on(path):
        u, v = path[-1]
        if (u, v) == (n - 1, m - 1):
            yield path
            return
        for a, b in ((1, 1), (1, 0), (0, 1)):
            if u + a < n and v + b < m:
                yield from on([*path, (u + a, v + b)])

    return on([(0, 0)])


@pytest.mark.parametrize(("n", "m"), list(itertools.product([1, 2, 3, 4], [1, 2, 4, 5])))
def test_the_path_is_the_best_of_all(n, m):
    g = torch.Generator().manual_seed(10 * n + m)
    matrix = torch.rand(n, m, generator=g) * 2 - 1
    path = sim.dtw_path(matrix)
    assert path in list(all_paths(n, m))

    def cost(p):
        return sum(1 - float(matrix[u, v]) for u, v in p)

    assert cost(path) == pytest.approx(min(map(cost, all_paths(n, m))), abs=1e-9)
    mean = np.mean([float(matrix[u, v]) for u, v in path])
    assert float(sim.dtw_similarity(matrix[None])[0]) == pytest.approx(mean, abs=1e-6)


def test_hand_made_matrices():
    assert sim.dtw_path(torch.eye(4)) == [(i, i) for i in range(4)]
    stretched = torch.tensor([[1.0, 0.9, 0.0, 0.0], [0.0, 0.1, 1.0, 0.8]])
    assert sim.dtw_path(stretched) == [(0, 0), (0, 1), (1, 2), (1, 3)]
    assert float(sim.dtw_similarity(stretched[None])[0]) == pytest.approx((1 + 0.9 + 1 + 0.8) / 4)
    flat = torch.full((3, 3), 0.5)  # of equal paths the diagonal
    assert sim.dtw_path(flat) == [(0, 0), (1, 1), (2, 2)]


def test_alignment_and_score_are_the_formulas_by_loops():
    g = torch.Generator().manual_seed(0)
    text, speech = torch.randn(3, 7, 5, generator=g), torch.randn(3, 12, 5, generator=g)
    pairs = [(slice(0, 2), slice(0, 4)), (slice(2, 6), slice(4, 9))]
    found = sim.align(text, speech, pairs)

    def cos(i, u, v):
        a, b = text[i, u].numpy(), speech[i, v].numpy()
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    dtw, background = np.zeros((3, 2)), np.zeros((3, 2))
    for i in range(3):
        for j, (t, s) in enumerate(pairs):
            own_text, own_speech = range(7)[t], range(12)[s]
            matrix = torch.tensor([[cos(i, u, v) for v in own_speech] for u in own_text])
            dtw[i, j] = np.mean([float(matrix[u, v]) for u, v in sim.dtw_path(matrix)])
            outside = [u for u in range(7) if u not in own_text]
            background[i, j] = np.mean([cos(i, u, v) for u in outside for v in own_speech])
    np.testing.assert_allclose(found.dtw_KJ, dtw, atol=1e-6)
    np.testing.assert_allclose(found.background_KJ, background, atol=1e-6)
    ratio = dtw / (background + dtw.mean())
    np.testing.assert_allclose(sim.similarity_score([found]), ratio.mean(1), rtol=1e-5)
    np.testing.assert_allclose(sim.similarity_score([found, found], mean=False), 2 * ratio.sum(1), rtol=1e-5)


def test_a_denominator_near_zero_does_not_blow_up():
    dtw = torch.tensor([[0.5, 0.5]])
    found = sim.Alignment(dtw, torch.tensor([[-0.5, 0.1]]))
    assert torch.isfinite(sim.similarity_score([found])).all()


def test_a_pair_without_background_or_speech_is_an_error():
    text, speech = torch.randn(1, 3, 4), torch.randn(1, 5, 4)
    for pair in ((slice(0, 3), slice(0, 2)), (slice(0, 1), slice(2, 2))):
        with pytest.raises(ValueError, match="empty, or leaves no text"):
            sim.align(text, speech, [pair])


@pytest.mark.parametrize(
    ("curve", "depth"),
    [
        ([0, 1, 2, 3, 3, 3, 1, 0], 2),
        ([0, 1, 2, 3], 0),
        ([3, 2, 1, 0], 3),
        ([0, 3.0, 2.8, 2.9, 2.75, 1, 0, 0], 3),
    ],
)
def test_the_proposed_depth_is_where_the_curve_starts_to_fall(curve, depth):
    assert sim.proposed_depth(torch.tensor(curve, dtype=torch.float64)) == depth


@pytest.mark.parametrize("layers", [0, 2])
def test_hidden_states_of_text_are_the_backbones_and_speech_follows_its_tail(tmp_path, layers):
    folder, backbone = folder_of(tmp_path, "llama")
    lm = SplitLM.from_backbone(folder, layers, 40).eval()
    rows = torch.arange(5, 25)
    ours = sim.hidden_states(lm, rows, "text")
    with torch.no_grad():
        theirs = backbone(rows[None], use_cache=False, output_hidden_states=True).hidden_states
    assert ours.shape == (5, 20, 64)
    for i in range(4):  # transformers gives the last one behind the norm
        torch.testing.assert_close(ours[i], theirs[i + 1][0], atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        for p in lm.model.audio_block.parameters():
            p.mul_(0.5)
    speech = sim.hidden_states(lm, rows, "speech")
    assert torch.equal(speech[: 5 - layers], ours[: 5 - layers])
    assert layers == 0 or not torch.equal(speech[5 - layers], ours[5 - layers])


def test_centred_similarity_finds_what_a_common_direction_hides():
    """All states share one large direction, as those of a language model do, and row 0 is a sink."""
    g = torch.Generator().manual_seed(1)
    content = torch.randn(1, 12, 16, generator=g)
    common = torch.zeros(16)
    common[0] = 10.0
    text = content + common
    speech = content.repeat_interleave(2, dim=1) - common  # the same content, another direction
    text[:, 0] = speech[:, 0] = 500.0
    pairs = [(slice(3 * i, 3 * i + 3), slice(6 * i, 6 * i + 6)) for i in range(4)]
    raw = sim.align(text, speech, pairs)
    assert raw.dtw_KJ[0, 1:].mean() < 0  # aligned or not, only the common direction is seen
    means = sim.LayerMeans(), sim.LayerMeans()
    for mean, states in zip(means, (text, speech), strict=True):
        mean.add(states)
    centred = sim.align(
        means[0].remove(text), means[1].remove(speech), sim.without_first_row(pairs), first_row=1
    )
    assert centred.dtw_KJ.min() > 0.8
    assert centred.background_KJ.abs().max() < 0.3
    assert float(sim.similarity_score([centred])) > 0.7 > 0.5 + abs(float(centred.background_KJ.mean()))


def test_the_first_row_is_in_no_pair_and_no_background():
    pairs = [(slice(0, 1), slice(1, 3)), (slice(1, 3), slice(0, 4)), (slice(3, 4), slice(4, 6))]
    assert sim.without_first_row(pairs) == [(slice(1, 3), slice(1, 4)), (slice(3, 4), slice(4, 6))]
    g = torch.Generator().manual_seed(0)
    text, speech = torch.randn(2, 4, 5, generator=g), torch.randn(2, 6, 5, generator=g)
    other = text.clone()
    other[:, 0] = 1e4
    pairs = sim.without_first_row(pairs)
    one, two = (sim.align(states, speech, pairs, first_row=1) for states in (text, other))
    assert torch.equal(one.dtw_KJ, two.dtw_KJ)
    assert torch.equal(one.background_KJ, two.background_KJ)
    means = sim.LayerMeans(), sim.LayerMeans()
    for mean, states in zip(means, (text, other), strict=True):
        mean.add(states)
    assert torch.equal(means[0].remove(text)[:, 1:], means[1].remove(text)[:, 1:])
