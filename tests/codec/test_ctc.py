"""CTC: the loss against every path, what fits, decoding, the vocabulary, and the head's causality."""

import itertools
import math

import pytest
import torch

from lit_moss.codec.ctc import BLANK, UNKNOWN, CharVocabulary, CTCHead, ctc_loss, frames_needed, greedy


def collapse(path):
    """Repeats merged, blanks removed."""
    return [label for label, _ in itertools.groupby(path) if label != BLANK]


def brute_force(log_probs_LV, labels):
    """-log sum over the paths of the labels, over their number (Graves et al. 2006, equation 3)."""
    log_probs_LV = log_probs_LV.detach()
    frames, size = log_probs_LV.shape
    paths = (p for p in itertools.product(range(size), repeat=frames) if collapse(p) == labels)
    total = sum(math.exp(sum(float(log_probs_LV[t, k]) for t, k in enumerate(path))) for path in paths)
    return -math.log(total) / max(1, len(labels))


def random_log_probs(batch, frames, size=3):
    return torch.randn(batch, frames, size, generator=torch.Generator().manual_seed(0)).log_softmax(-1)


@pytest.mark.parametrize("labels", [[1], [2], [1, 2], [1, 1], [2, 1, 2], [1, 1, 2], []])
def test_the_loss_is_the_sum_over_all_paths(labels):
    log_probs = random_log_probs(1, 5)
    loss, fits = ctc_loss(log_probs, torch.tensor([5]), [labels])
    assert fits.tolist() == [True]
    assert loss.item() == pytest.approx(brute_force(log_probs[0], labels), rel=1e-5)


def test_the_loss_of_a_batch_is_the_mean_of_its_items_each_within_its_frames():
    log_probs, labels, frames = random_log_probs(3, 5), [[1, 2], [2], [1, 1]], [5, 2, 4]
    loss, _ = ctc_loss(log_probs, torch.tensor(frames), labels)
    alone = [brute_force(row[:n], ids) for row, n, ids in zip(log_probs, frames, labels, strict=True)]
    assert loss.item() == pytest.approx(sum(alone) / 3, rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "needed"), [([], 0), ([5], 1), ([5, 6], 2), ([5, 5], 3), ([5, 5, 5, 6], 6)]
)
def test_frames_needed_counts_a_blank_between_equal_neighbours(labels, needed):
    assert frames_needed(labels) == needed


@pytest.mark.parametrize("labels", [[1, 1], [1, 2, 1], [2, 2, 1]])
def test_frames_needed_is_the_length_of_the_shortest_path(labels):
    def reachable(frames):
        return any(collapse(path) == labels for path in itertools.product(range(3), repeat=frames))

    assert reachable(frames_needed(labels))
    assert not reachable(frames_needed(labels) - 1)


def test_an_item_that_does_not_fit_is_reported_and_left_out():
    log_probs = random_log_probs(2, 5).requires_grad_()
    loss, fits = ctc_loss(log_probs, torch.tensor([2, 5]), [[1, 1], [1, 2]])
    assert fits.tolist() == [False, True]
    assert loss.item() == pytest.approx(brute_force(log_probs[1], [1, 2]), rel=1e-5)
    loss.backward()
    assert log_probs.grad.isfinite().all()
    assert log_probs.grad[0].abs().sum() == 0


def test_a_batch_in_which_nothing_fits_has_loss_0_and_gradient_0():
    log_probs = random_log_probs(1, 2).requires_grad_()
    loss, fits = ctc_loss(log_probs, torch.tensor([2]), [[1, 1, 1]])
    loss.backward()
    assert (loss.item(), fits.tolist()) == (0.0, [False])
    assert log_probs.grad.abs().sum() == 0


def test_greedy_merges_repeats_removes_blanks_and_stops_at_the_items_frames():
    paths = torch.tensor([[2, 2, 0, 2, 3, 3], [0, 3, 3, 0, 2, 2]])
    log_probs = torch.nn.functional.one_hot(paths, 4).float()
    assert greedy(log_probs, torch.tensor([6, 4])) == [[2, 2, 3], [3]]


# --- vocabulary -----------------------------------------------------------------------------------


def test_a_vocabulary_lists_sorted_characters_from_id_2_on():
    vocabulary = CharVocabulary.from_texts(["ba", "a 你好"])
    assert vocabulary.characters == " ab你好"
    assert len(vocabulary) == 7
    assert vocabulary.encode("a你") == [3, 5]
    assert vocabulary.decode([3, BLANK, 5]) == "a你"


def test_a_character_that_is_not_listed_is_unknown_and_shows_as_fffd():
    vocabulary = CharVocabulary.from_texts(["aab", "ac"], min_count=2)
    assert vocabulary.characters == "a"
    assert vocabulary.encode("abé") == [2, UNKNOWN, UNKNOWN]
    assert vocabulary.decode([2, UNKNOWN]) == "a\ufffd"


# --- head -----------------------------------------------------------------------------------------


@pytest.fixture
def head():
    """With branches away from the zeros they start at, so that attention takes part."""
    torch.manual_seed(0)
    head = CTCHead(code_width=16, vocabulary_size=9, width=32, layers=2, heads=2, dropout=0.1).eval()
    for layer in head.layers:
        torch.nn.init.normal_(layer.self_attn.out_proj.weight, std=0.2)
        torch.nn.init.normal_(layer.fc2.weight, std=0.2)
    return head


def test_the_head_gives_four_distributions_a_code(head):
    log_probs = head(torch.randn(2, 6, 16))
    assert log_probs.shape == (2, 24, 9)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 24))


@pytest.mark.parametrize("code", [0, 3, 5])
def test_a_code_changes_no_character_before_its_own_four_frames(head, code):
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, code] += torch.randn(16)
    a, b = head(x), head(changed)
    torch.testing.assert_close(a[:, : 4 * code], b[:, : 4 * code], atol=1e-6, rtol=0)
    assert (a[:, 4 * code :] - b[:, 4 * code :]).abs().amax(-1).min() > 1e-4


def test_a_fresh_head_is_linear_up_to_its_norms():
    """Branches start at zero: a code's frames depend on that code alone."""
    torch.manual_seed(0)
    head = CTCHead(code_width=16, vocabulary_size=9, width=32, layers=2, heads=2, dropout=0.0)
    x = torch.randn(1, 6, 16)
    changed = x.clone()
    changed[:, 0] += torch.randn(16)
    assert torch.equal(head(x)[:, 4:], head(changed)[:, 4:])


def test_frames_before_pooling_are_read_one_by_one(head):
    hidden = torch.randn(2, 7, 16)
    torch.testing.assert_close(head.from_frames(hidden)[:, 3:4], head.from_frames(hidden[:, 3:4]))
