"""The auxiliary CTC loss on the trunk: closed forms, and packing changes nothing."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import config_of
from lm_recipe import tokenizer_of_bytes

from lit_moss.data.batches import SpeechText
from lit_moss.data.packed_documents import CollatePacks
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.trunk_ctc import CharLabels, CtcTotals, TextLabels, TrunkCtc, TrunkCtcHead

V, CODES, D = 60, 30, 32
FORM = RowFormat(V, 40, 50, CODES, 51, 35, end_id=52)


def head(ids=(3, 4, 7, 9)):
    torch.manual_seed(4)
    return TrunkCtcHead(TextLabels(ids), torch.randn(V, D))


def hidden(B=2, L=20):
    return torch.randn(B, L, D, generator=torch.Generator().manual_seed(5))


def test_it_is_torchs_loss_of_each_span():
    h, ctc = hidden(), head()
    spans = [SpeechText(0, 2, 9, [3, 7, 7]), SpeechText(1, 5, 18, [9, 4, 3, 4]), SpeechText(1, 0, 1, [4])]
    want = torch.zeros(())
    for b, first, stop, ids, _ in spans:
        log_p = ctc.proj(ctc.norm(h[b, first:stop])).log_softmax(-1)[:, None]
        labels = torch.tensor([[2 + (3, 4, 7, 9).index(i) for i in ids]])
        want += F.ctc_loss(log_p, labels, (stop - first,), (len(ids),), reduction="sum")
    sums = ctc(h, spans)
    assert (sums.labels, sums.skipped) == (8, 0)
    assert float(sums.nll.detach()) == pytest.approx(float(want.detach()), rel=1e-5)
    assert float(sums.mean.detach()) == pytest.approx(float(want.detach()) / 8, rel=1e-5)


def test_rows_of_text_ids_start_at_their_embeddings():
    torch.manual_seed(4)
    words = torch.randn(V, D)
    weight = TrunkCtcHead(TextLabels([3, 9]), words).proj.weight
    assert torch.equal(weight[2:], words[[3, 9]])
    assert not weight[:2].any()


def test_spans_with_more_labels_than_frames_are_counted_and_left_out():
    h, ctc = hidden(), head()
    fits, tight = SpeechText(0, 0, 4, [3, 4]), SpeechText(1, 0, 2, [3, 3])  # needs a blank between them
    both = ctc(h, [fits, tight])
    assert (both.labels, both.skipped) == (2, 1)
    assert torch.allclose(both.nll, ctc(h, [fits]).nll)


def test_without_a_span_every_parameter_still_has_a_gradient():
    h, ctc = hidden().requires_grad_(), head()
    sums = ctc(h, [])
    sums.mean.backward()
    assert float(sums.nll) == 0
    assert h.grad is not None
    assert all(p.grad is not None and not p.grad.any() for p in ctc.parameters())


def test_characters_have_four_frames_a_code():
    tokenizer = tokenizer_of_bytes()
    ids = tokenizer.encode("A cat's hat.")
    labels = CharLabels.of_ids(tokenizer, ids)
    assert labels.vocabulary.characters == " 'achst"
    assert labels.vocabulary.decode(labels.encode(ids)) == "a cat's hat"
    torch.manual_seed(4)
    ctc = TrunkCtcHead(labels, torch.randn(V, D))
    assert ctc.log_probs(hidden()[:, :5]).shape == (2, 20, len(labels))
    sums = ctc(hidden(), [SpeechText(0, 2, 6, ids)])  # 11 characters, 16 frames
    assert (sums.labels, sums.skipped) == (11, 0)
    assert torch.isfinite(sums.nll)


def test_errors_are_those_of_the_best_path():
    ctc = head()
    with torch.no_grad():
        ctc.proj.weight.zero_()
        ctc.proj.bias[2:].copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # always the first id
    sums = ctc(hidden(), [SpeechText(0, 2, 9, [3, 4, 7])], count_errors=True)
    totals = CtcTotals()
    totals.add(sums)
    totals.add(sums)
    metrics = totals.metrics(lambda x: x)
    assert metrics["ctc_error"] == pytest.approx(2 / 3)
    assert metrics["ctc"] == pytest.approx(float(sums.nll.detach()) / 3)
    assert metrics["ctc_skipped"] == 0


def documents():
    """Two documents of speech, and their text; the second one's is in two pieces without a gap."""
    a = [50, *(V + i for i in range(8)), V + CODES, 3, 4, 52]
    b = [7, 50, *(V + 2 * i for i in range(10)), V + CODES, 52]
    said = [(1, 9, [3, 4])], [(2, 7, [9]), (7, 12, [7, 3])]
    return [(n, np.array(r), np.ones(len(r), bool), s) for n, r, s in zip("ab", (a, b), said, strict=True)]


def losses(packs, layer=None):
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=3, hidden_size=D, intermediate_size=48)
    lm = SplitLM.from_backbone(config, 1, 40, row_format=FORM)
    lm.keep_hidden = TrunkCtc(layer=layer).layers(len(lm.trunk.layers))
    batch = CollatePacks(32, FORM)(packs)
    loss = lm.loss(batch.rows_BL, batch.document_ids_BL, batch.loss_mask_BL)
    return batch.speech_text, head()(loss.hidden_BLD, batch.speech_text), loss


def test_packing_changes_nothing_and_neighbouring_pieces_are_one_span():
    a, b = documents()
    spans, together, _ = losses([[a, b]])
    words = [(8, 2)], [(5, 1), (5, 2)]
    assert spans == [SpeechText(0, 1, 9, [3, 4], words[0]), SpeechText(0, 15, 25, [9, 7, 3], words[1])]
    apart_spans, apart, _ = losses([[a], [b]])
    assert apart_spans == [SpeechText(0, 1, 9, [3, 4], words[0]), SpeechText(1, 2, 12, [9, 7, 3], words[1])]
    assert torch.allclose(together.nll, apart.nll, rtol=1e-5)
    assert together.labels == apart.labels == 5


def test_hidden_states_are_those_after_the_layer_and_leave_the_loss_as_it_is():
    packs = [documents()]
    _, first, loss = losses(packs, 1)
    _, last, other = losses(packs)
    assert not torch.allclose(first.nll, last.nll)
    assert torch.equal(loss.total, other.total)
    with pytest.raises(UserError, match=r"model.ctc.layer is 3, the trunk has 2 layers"):
        losses(packs, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 0.0}, "weight is 0.0, expected above 0"),
        ({"vocab": "phones"}, "expected text or chars"),
        ({"layer": 0}, "layer is 0"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(UserError, match=message):
        TrunkCtc(**options)
