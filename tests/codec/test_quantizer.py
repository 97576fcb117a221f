"""Vector quantization: closed forms on small numbers, and two processes against one."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lit_moss.codec import quantizer


def test_nearest_is_the_brute_force_argmin():
    torch.manual_seed(0)
    x, codebook = torch.randn(50, 8), torch.randn(20, 8)
    expected = [min(range(20), key=lambda k: float((v - codebook[k]).square().sum())) for v in x]
    assert quantizer.nearest(x, codebook).tolist() == expected
    assert quantizer.nearest(x, codebook, block=7).tolist() == expected


def test_ties_go_to_the_lowest_index_a7():
    codebook = torch.tensor([[2.0, 0.0], [0.0, 0.0], [2.0, 0.0], [0.0, 0.0]])
    x = torch.tensor([[2.0, 0.0], [0.0, 0.0], [1.0, 5.0]])
    assert quantizer.nearest(x, codebook).tolist() == [0, 1, 0]


def test_autocast_does_not_coarsen_the_choice():
    """256 and 257 are one number in bfloat16."""
    x, codebook = torch.tensor([[257.0]]), torch.tensor([[256.0], [257.0]])
    with torch.autocast("cpu", torch.bfloat16):
        assert quantizer.nearest(x, codebook).tolist() == [1]


def test_squared_distances_are_the_squares():
    x, codebook = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 2.0], [4.0, 6.0], [0.0, 0.0]])
    assert quantizer.squared_distances(x, codebook).tolist() == [[0.0, 25.0, 5.0]]


def test_straight_through_has_the_value_of_the_code_and_the_gradient_of_the_vector():
    x, code = torch.tensor([[1.0, 2.0]], requires_grad=True), torch.tensor([[5.0, 5.0]])
    out = quantizer.straight_through(x, code)
    assert out.tolist() == [[5.0, 5.0]]
    (out * torch.tensor([[3.0, -2.0]])).sum().backward()
    assert x.grad.tolist() == [[3.0, -2.0]]


def test_commitment_loss_pulls_the_vectors_alone():
    x, code = (torch.tensor([[v, v]], requires_grad=True) for v in (1.0, 3.0))
    loss = quantizer.commitment_loss(x, code)
    loss.backward()
    assert loss.item() == 4.0
    assert x.grad.tolist() == [[-2.0, -2.0]]  # d/dx mean (x - 3)^2 = 2 (x - 3) / 2
    assert code.grad is None


@pytest.mark.parametrize(
    ("counts", "expected"),
    [([3, 3, 3, 3], 4.0), ([0, 9, 0], 1.0), ([1, 1, 0, 0], 2.0), ([1, 3], 4 / 3**0.75), ([0, 0], 1.0)],
)
def test_perplexity_is_exp_of_the_entropy(counts, expected):
    """Of (1/4, 3/4): exp(1/4 ln 4 + 3/4 ln 4/3) = 4 / 3^(3/4)."""
    assert quantizer.perplexity(torch.tensor(counts)).item() == pytest.approx(expected)


def test_ema_update_is_the_formula_with_numbers_written_out():
    """Two codes, decay 0.5; code 0 gets the vectors (2, 0) and (4, 2), code 1 none."""
    codebook, n = torch.zeros(2, 2), torch.tensor([1.0, 1.0])
    m = torch.tensor([[1.0, 1.0], [0.0, 8.0]])
    quantizer.ema_update(
        codebook, n, m, torch.tensor([[2.0, 0.0], [4.0, 2.0]]), torch.tensor([0, 0]), decay=0.5
    )
    total = 1.5 + 0.5
    first, second = ((v + 1e-5) / (total + 2e-5) * total for v in (1.5, 0.5))
    torch.testing.assert_close(n, torch.tensor([first, second]))
    torch.testing.assert_close(m, torch.tensor([[3.5, 1.5], [0.0, 4.0]]))
    torch.testing.assert_close(codebook, torch.tensor([[3.5 / first, 1.5 / first], [0.0, 4.0 / second]]))


def test_restart_dead_replaces_exactly_the_codes_below_the_threshold():
    torch.manual_seed(0)
    codebook, n = torch.zeros(5, 3), torch.tensor([1.0, 0.1, 0.3, 0.2999, 5.0])
    m, x = torch.zeros(5, 3), torch.randn(10, 3)
    assert quantizer.restart_dead(codebook, n, m, x, threshold=0.3) == 2
    assert codebook[[0, 2, 4]].abs().sum() == 0
    assert torch.equal(n, torch.tensor([1.0, 1.0, 0.3, 1.0, 5.0]))
    rows = [row for i in (1, 3) for row, v in enumerate(x) if torch.equal(codebook[i], v)]
    assert len(set(rows)) == 2  # two different vectors of x
    assert torch.equal(m, codebook)


def test_restart_dead_leaves_a_living_codebook_and_the_random_state_alone():
    codebook, before = torch.zeros(2, 3), torch.get_rng_state()
    assert (
        quantizer.restart_dead(codebook, torch.ones(2), torch.zeros(2, 3), torch.randn(0, 3), threshold=0.5)
        == 0
    )
    assert torch.equal(before, torch.get_rng_state())


def test_kmeans_finds_separated_clusters():
    torch.manual_seed(0)
    middles = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    x = (middles[:, None] + 0.1 * torch.randn(3, 50, 2)).flatten(0, 1)
    centres, counts = quantizer.kmeans(x, 3)
    order = quantizer.nearest(middles, centres)
    torch.testing.assert_close(centres[order], middles, atol=0.1, rtol=0)
    assert counts.tolist() == [50.0, 50.0, 50.0]


def test_kmeans_of_fewer_vectors_than_codes_keeps_to_the_vectors():
    x = torch.tensor([[1.0, 1.0], [5.0, 5.0]])
    centres, counts = quantizer.kmeans(x, 4, iterations=3)
    assert all(any(torch.equal(centre, v) for v in x) for centre in centres)
    assert counts.sum() == 2


def train_codebook(x):
    """K-means, then two updates and a restart of what has died."""
    torch.manual_seed(3)
    codebook, n = quantizer.kmeans(x[0], 6, iterations=4)
    m = codebook * n[:, None]
    for batch in x[1:]:
        quantizer.ema_update(codebook, n, m, batch, quantizer.nearest(batch, codebook), decay=0.5)
    restarted = quantizer.restart_dead(codebook, n, m, x[-1], threshold=float(n.median()))
    return codebook, n, m, restarted


def shares(rank):
    """Ranks hold 5 and 19 of 24 vectors."""
    every = torch.randn(3, 24, 4, generator=torch.Generator().manual_seed(0))
    return {None: every, 0: every[:, :5], 1: every[:, 5:]}[rank]


def run_rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.save(train_codebook(shares(rank)), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.nightly
def test_two_processes_end_with_the_one_codebook_of_one_process_on_the_union(tmp_path):
    mp.spawn(run_rank, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = train_codebook(shares(None))
    assert first[3] == second[3] == alone[3] > 0
    for a, b, c in zip(first[:3], second[:3], alone[:3], strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, atol=1e-5, rtol=1e-5)
