"""Replies of `generate`: no row that reads back as another modality, none that depends on its neighbours, few
looks from the host."""

import pytest
import torch
from backbones import config_of, mixed_rows

from lit_moss.llm import SplitLM, generate
from lit_moss.llm.generate import Sampling
from lit_moss.llm.rows import RowFormat, from_grid, to_grid

HOT = Sampling(temperature=1.5, top_k=0, top_p=1.0, repetition_penalty=1.1)


def model(joint=False):
    torch.manual_seed(5)
    form = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
    lm = SplitLM.from_backbone(config_of("qwen3"), 0 if joint else 2, 40, joint, row_format=form).eval()
    with torch.no_grad():
        if not joint:
            lm.audio_lm_head.weight.normal_(0, 0.3)
    return lm


@pytest.fixture(scope="module")
def lm():
    return model()


@pytest.mark.slow
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("options", [{"greedy": True}, {"text": HOT, "speech": HOT}])
def test_no_text_row_reads_back_as_speech(joint, options):
    """In Qwen3 the id of modality_pad is <think>, likely the first word of a reply."""
    lm = model(joint)
    pad = lm.format.modality_pad_token_id
    with torch.no_grad():  # the most likely id wherever the last hidden value is positive
        lm.text_lm_head.weight[pad] = 0.0
        lm.text_lm_head.weight[pad, -1] = 50.0
    for seed in range(4):
        g = torch.Generator().manual_seed(seed)
        made = lm.generate([5, 6, 7 + seed], max_new_tokens=40, generator=g, **options)
        assert pad not in made
        rows = torch.tensor(made)
        assert torch.equal(from_grid(to_grid(rows, lm.format), lm.format), rows)


@pytest.mark.slow
def test_sampled_replies_do_not_depend_on_neighbours(lm):
    options = {"max_new_tokens": 30, "text": HOT, "speech": HOT}
    prompts = [mixed_rows(lm, 1, n, n)[0].tolist() for n in (5, 9, 17, 6)]

    def replies(which, seed=3):
        return lm.generate(
            [prompts[i] for i in which], generator=torch.Generator().manual_seed(seed), **options
        )

    together = replies([0, 1, 2, 3])
    assert replies([3, 1]) == [together[3], together[1]]
    for i, reply in enumerate(together):
        alone = lm.generate(prompts[i], generator=torch.Generator().manual_seed(3), **options)
        assert alone == reply
    assert replies([0], seed=4) != together[:1]
    same = replies([0, 0, 0])
    assert same[0] == together[0]
    assert len({tuple(r) for r in same}) == 3  # several samples of one prompt


@pytest.mark.slow
def test_without_a_generator_torchs_own_seed_decides(lm):
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(lm.generate([4, 9], max_new_tokens=20))
        drawn.append(lm.generate([4, 9], max_new_tokens=20))
    assert drawn[0] == drawn[2] != drawn[4]
    assert drawn[0] != drawn[1]


@pytest.mark.nightly
@pytest.mark.parametrize("options", [{"greedy": True}, {"text": HOT, "speech": HOT}])
@pytest.mark.parametrize("unseen", [3, 16, 64])
def test_rows_are_the_same_however_rarely_the_host_looks(lm, monkeypatch, unseen, options):
    f = lm.format
    prompts = [mixed_rows(lm, 1, n, n)[0].tolist() for n in (5, 9, 17)]
    prompts += [[4, f.sosp_token_id], [*f.speech([3, 9]), 7, 80]]
    with torch.no_grad():
        before = lm.text_lm_head.weight.clone(), lm.audio_lm_head.weight.clone()
        lm.text_lm_head.weight[f.sosp_token_id] *= 6
        lm.text_lm_head.weight[f.im_end_id] *= 3
        lm.audio_lm_head.weight[f.eosp_token_id] *= 3
    try:

        def replies():
            found = []
            for many in (prompts, *([p] for p in prompts)):
                g = torch.Generator().manual_seed(0)
                found.append(lm.generate(many, max_new_tokens=50, generator=g, **options))
            return found

        wanted = replies()
        rows = [r for r in wanted[0][-1] if r is not None]
        assert len({r >= f.text_vocab_size for many in wanted for one in many for r in one}) == 2, rows
        monkeypatch.setattr(generate, "unseen_rows", lambda device: unseen)
        assert replies() == wanted
        streamed = list(lm.generate(prompts, max_new_tokens=50, stream=True,
                                    generator=torch.Generator().manual_seed(0), **options))  # fmt: skip
        for b, reply in enumerate(wanted[0]):
            assert [step[b] for step in streamed if step[b] is not None] == reply
    finally:
        with torch.no_grad():
            lm.text_lm_head.weight.copy_(before[0])
            lm.audio_lm_head.weight.copy_(before[1])
