"""What the embeddings of codes start from."""

import math

import pytest
import torch
from backbones import config_of

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.init_codes import project, start_at_codebook, start_at_text
from lit_moss.llm.rows import RowFormat

V, CODES = 60, 30
FORM = RowFormat(V, 40, 50, CODES, 51, 35, end_id=52)


def model(joint=False):
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=3, hidden_size=32, intermediate_size=48)
    return SplitLM.from_backbone(config, 0 if joint else 1, 40, joint, row_format=FORM)


def codebook(width=16):
    return torch.randn(CODES, width, generator=torch.Generator().manual_seed(2)) * 7 + 3


def codes_of(lm):
    table = lm.model.embed_tokens.weight[V:] if lm.config.joint else lm.model.audio_embed.weight
    return table[:CODES].detach()


def test_a_projection_to_a_greater_width_keeps_every_distance():
    x = codebook(16)
    assert torch.allclose(torch.pdist(project(x, 32)), torch.pdist(x), rtol=1e-5)
    assert torch.allclose(project(x, 32).mean(0), torch.zeros(32), atol=1e-5)


def test_a_projection_to_a_smaller_width_keeps_distances_about():
    x = torch.randn(200, 300, generator=torch.Generator().manual_seed(3))
    ratio = torch.pdist(project(x, 128)) / torch.pdist(x)
    assert abs(float(ratio.mean()) / math.sqrt(128 / 300) - 1) < 0.02
    assert float(ratio.std() / ratio.mean()) < 0.08


@pytest.mark.parametrize("joint", [False, True])
def test_codes_have_the_words_spread_and_the_codebooks_geometry(joint):
    lm = model(joint)
    words = lm.model.embed_tokens.weight[:V].detach().clone()
    text_head = lm.text_lm_head.weight[:V].detach().clone()
    before = torch.get_rng_state()
    start_at_codebook(lm, codebook())
    assert torch.equal(before, torch.get_rng_state())
    assert float(codes_of(lm).std()) == pytest.approx(float(words.std()), rel=1e-5)
    ratio = torch.pdist(codes_of(lm)) / torch.pdist(codebook())
    assert float(ratio.std() / ratio.mean()) < 1e-4
    head = lm.text_lm_head.weight[V:] if joint else lm.audio_lm_head.weight
    assert not head.any()
    assert head.requires_grad
    assert torch.equal(lm.model.embed_tokens.weight[:V], words)
    assert torch.equal(lm.text_lm_head.weight[:V], text_head)


def test_the_first_loss_of_speech_is_that_of_a_uniform_guess():
    lm = model()
    start_at_codebook(lm, codebook())
    loss = lm.loss(torch.tensor([[50, V + 3, V + 8, V + 1, V + CODES, 52]]))
    assert float(loss.speech) == pytest.approx(math.log(40), rel=1e-6)


def test_codes_start_at_the_mean_of_the_text_they_are_aligned_to():
    lm = model()
    words = lm.model.embed_tokens.weight.detach()
    # Code 0: words 1 and 3; code 1: word 2 twice; code 5: word 9. The others are never seen.
    codes, ids = torch.tensor([0, 0, 1, 1, 5]), torch.tensor([1, 3, 2, 2, 9])
    assert start_at_text(lm, codes, ids, codebook(), most=2) == 3
    want = torch.stack([(words[1] + words[3]) / 2, words[2], words[9]])
    want = want - want.mean(0)
    want = want * words[:V].std() / want.std()
    assert torch.allclose(codes_of(lm)[[0, 1, 5]], want, atol=1e-6)
    other = model()
    start_at_codebook(other, codebook())
    unseen = [i for i in range(CODES) if i not in (0, 1, 5)]
    assert torch.equal(codes_of(lm)[unseen], codes_of(other)[unseen])
    assert not lm.audio_lm_head.weight.any()


def test_mistakes_are_named():
    with pytest.raises(UserError, match="a codebook of 29 codes, expected the 30 of the documents"):
        start_at_codebook(model(), codebook()[:29])
    none = torch.zeros(0, dtype=torch.long)
    with pytest.raises(UserError, match="no speech of the training data has its text beside it"):
        start_at_text(model(), none, none, codebook())
