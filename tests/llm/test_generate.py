"""Generation against the rules written out step by step over full forwards, without caches, batches
or shortcuts."""

from itertools import pairwise

import pytest
import torch
from backbones import folder_of, mixed_rows

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.generate import GREEDY, Sampling, sample
from lit_moss.llm.rows import RowFormat, to_grid


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def lm(request, tmp_path_factory):
    folder, _ = folder_of(tmp_path_factory.mktemp("g"), request.param)
    form = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
    torch.manual_seed(5)
    model = SplitLM.from_backbone(folder, 2, 40, row_format=form).eval()
    with torch.no_grad():  # tails that differ, heads that are not sure of one id
        for p in model.model.audio_block.parameters():
            p.add_(0.05 * torch.randn(p.shape))
        model.audio_lm_head.weight.normal_(0, 0.3)
    return model


def by_the_rules(lm, prompt, count, min_new=0, penalty=1.0):
    """The contract's six steps on the grid, greedy."""
    f, rows = lm.format, list(prompt)
    mode = "speech" if rows[-1] >= f.text_vocab_size else "text"
    made = []
    for n in range(count):
        text_id, audio_id = to_grid(torch.tensor([rows]), f)[0, -1].tolist()
        if mode == "text" and text_id == f.sosp_token_id:
            mode = "speech"
        elif mode == "speech" and audio_id == f.eosp_token_id:
            mode = "text"
        with torch.no_grad():
            out = lm(torch.tensor([rows]))
        text, audio = out.text_logits[0, -1].clone(), out.speech_logits[0, -1].clone()
        text[f.modality_pad_token_id] = -torch.inf
        audio[f.eosp_token_id + 1 :] = -torch.inf
        if n < min_new:
            audio[f.eosp_token_id] = -torch.inf
        grid = to_grid(torch.tensor(rows), f)
        for logits, history in ((text, grid[:, 0]), (audio, grid[:, 1])):
            for i in set(history.tolist()):
                logits[i] = logits[i] * penalty if logits[i] < 0 else logits[i] / penalty
        row = int(audio.argmax()) + f.text_vocab_size if mode == "speech" else int(text.argmax())
        made.append(row)
        rows.append(row)
        if row in (f.im_end_id, f.end_id):
            break
    return made


def prompts(lm):
    f = lm.format
    V = f.text_vocab_size
    return {
        "text": [4, 9, 60, 3],
        "ends with sosp": [4, 9, f.sosp_token_id],
        "inside speech": [4, f.sosp_token_id, V + 3, V + 5],
        "speech ended": [*f.speech([3, 9, 5]), 7, *f.speech([1])],
        "one row": [17],
        "long": mixed_rows(lm, 1, 60, 3)[0].tolist(),
    }


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize(
    "which", ["text", "ends with sosp", "inside speech", "speech ended", "one row", "long"]
)
def test_greedy_equals_the_rules(lm, which, penalty):
    prompt = prompts(lm)[which]
    how = Sampling(temperature=0.0, repetition_penalty=penalty)
    ours = lm.generate(prompt, max_new_tokens=40, text=how, speech=how)
    assert ours == by_the_rules(lm, prompt, 40, penalty=penalty)


@pytest.mark.nightly
def test_the_mode_changes_on_the_way_and_tails_catch_up(lm):
    """eosp and sosp are made likely, so that the text tail waits long and both modes come again and again."""
    f = lm.format
    with torch.no_grad():
        before = lm.text_lm_head.weight.clone(), lm.audio_lm_head.weight.clone()
        lm.text_lm_head.weight[f.sosp_token_id] *= 6
        lm.audio_lm_head.weight[f.eosp_token_id] *= 3
    try:
        seen = set()
        for seed in range(6):
            prompt = mixed_rows(lm, 1, 12, seed)[0].tolist()
            rows = lm.generate(prompt, max_new_tokens=60, greedy=True)
            assert rows == by_the_rules(lm, prompt, 60)
            speech = [r >= f.text_vocab_size for r in rows]
            seen |= {(a, b) for a, b in pairwise(speech)}
        assert {(True, False), (False, True)} <= seen
    finally:
        with torch.no_grad():
            lm.text_lm_head.weight.copy_(before[0])
            lm.audio_lm_head.weight.copy_(before[1])


@pytest.mark.slow
def test_batches_of_any_lengths_equal_each_alone(lm):
    many = list(prompts(lm).values())
    together = lm.generate(many, max_new_tokens=30, greedy=True)
    assert together == [lm.generate(p, max_new_tokens=30, greedy=True) for p in many]


@pytest.mark.nightly
@pytest.mark.parametrize("chunk", [1, 7, 59])
def test_chunks_of_the_prompt_change_nothing(lm, chunk):
    for prompt in prompts(lm).values():
        whole = lm.generate(prompt, max_new_tokens=20, greedy=True)
        assert lm.generate(prompt, max_new_tokens=20, greedy=True, prompt_chunk=chunk) == whole


def test_streamed_rows_are_the_returned_ones(lm):
    prompt = prompts(lm)["text"]
    whole = lm.generate(prompt, max_new_tokens=25, greedy=True)
    stream = lm.generate(prompt, max_new_tokens=25, greedy=True, stream=True)
    assert next(stream) == whole[0]
    assert list(stream) == whole[1:]


def test_modality_speech_appends_sosp_once(lm):
    f = lm.format
    speech = lm.generate([4, 9], modality="speech", max_new_tokens=10, greedy=True)
    assert speech == lm.generate([4, 9, f.sosp_token_id], modality="speech", max_new_tokens=10, greedy=True)
    assert speech[0] >= f.text_vocab_size


@pytest.mark.slow
def test_no_eosp_before_min_new_tokens(lm):
    f = lm.format
    with torch.no_grad():
        before = lm.audio_lm_head.weight.clone()
        hidden = lm.audio_lm_head.weight.mean(0)
        lm.audio_lm_head.weight[f.eosp_token_id] = 50 * hidden
    try:
        for least in (0, 7):
            rows = lm.generate([4, f.sosp_token_id], max_new_tokens=30, greedy=True, min_new_tokens=least)
            assert rows == by_the_rules(lm, [4, f.sosp_token_id], 30, min_new=least)
            assert f.eosp_row not in rows[:least]
    finally:
        with torch.no_grad():
            lm.audio_lm_head.weight.copy_(before)


@pytest.mark.slow
def test_ids_above_eosp_never_come(lm):
    f = lm.format
    g = torch.Generator().manual_seed(0)
    rows = lm.generate([4, f.sosp_token_id], max_new_tokens=200, generator=g,
                       speech=Sampling(temperature=5.0, top_k=0, top_p=1.0))  # fmt: skip
    assert max(rows) <= f.eosp_row


@pytest.mark.slow
def test_sampling_is_reproducible_by_its_generator(lm):
    drawn = [
        lm.generate([4, 9], max_new_tokens=20, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.slow
def test_an_ended_sequence_stays_ended_in_a_batch(lm):
    with torch.no_grad():
        before = lm.text_lm_head.weight.clone()
        lm.text_lm_head.weight[lm.format.im_end_id] *= 4
    try:
        many = [mixed_rows(lm, 1, 9, s)[0].tolist() for s in range(8)]
        rows = lm.generate(many, max_new_tokens=25, greedy=True)
        assert rows == [by_the_rules(lm, p, 25) for p in many]
        assert len({len(r) for r in rows}) > 1
    finally:
        with torch.no_grad():
            lm.text_lm_head.weight.copy_(before)


def test_generation_without_a_split(tmp_path):
    folder, _ = folder_of(tmp_path, "llama")
    lm = SplitLM.from_backbone(folder, 0, 40, joint=True).eval()
    rows, made = [4, 9, 60], []
    for _ in range(15):
        with torch.no_grad():
            out = lm(torch.tensor([rows + made]))
        logits = torch.cat([out.text_logits, out.speech_logits], -1)[0, -1]
        logits[lm.format.eosp_row + 1 :] = -torch.inf
        made.append(int(logits.argmax()))
        if made[-1] == lm.format.end_id:
            break
    assert lm.generate(rows, max_new_tokens=15, greedy=True) == made


@pytest.mark.parametrize(
    ("rows", "options", "part"),
    [
        ([], {}, "empty"),
        ([[4], []], {}, "empty"),
        ([-1], {}, "rows from -1"),
        ([4, 10**6], {}, "expected 0 to"),
        ([4], {"modality": "music"}, "expected 'text', 'speech'"),
        ([4, 190], {"modality": "text"}, "inside speech"),
        ([4], {"max_new_tokens": -1}, "0 or more"),
    ],
)
def test_bad_prompts_are_one_clear_line(lm, rows, options, part):
    with pytest.raises(UserError, match=part):
        lm.generate(rows, **options)


# --- sampling -----------------------------------------------------------------------------------------------


def frequencies(logits, how, seen=None, n=20000):
    g = torch.Generator().manual_seed(0)
    drawn = sample(torch.tensor(logits).log().expand(n, -1), how, seen, g)
    return torch.bincount(drawn, minlength=len(logits)) / n


def test_top_k_keeps_the_k_most_likely():
    found = frequencies([0.4, 0.3, 0.2, 0.1], Sampling(1.0, 2, 1.0, 1.0))
    torch.testing.assert_close(found, torch.tensor([4 / 7, 3 / 7, 0, 0]), atol=0.02, rtol=0)


def test_top_p_keeps_the_id_that_crosses_it():
    found = frequencies([0.4, 0.3, 0.2, 0.1], Sampling(1.0, 0, 0.5, 1.0))
    torch.testing.assert_close(found, torch.tensor([4 / 7, 3 / 7, 0, 0]), atol=0.02, rtol=0)


def test_temperature_is_a_power():
    found = frequencies([0.8, 0.2], Sampling(0.5, 0, 1.0, 1.0))
    torch.testing.assert_close(found, torch.tensor([0.64, 0.04]) / 0.68, atol=0.02, rtol=0)


def test_repetition_penalty_divides_positive_and_multiplies_negative_logits():
    logits = torch.tensor([[2.0, -1.0, 1.5]])
    seen = torch.tensor([[True, True, False]])
    assert sample(logits, Sampling(0.0, 0, 1.0, 2.0), seen, None).item() == 2
    assert sample(logits, GREEDY, seen, None).item() == 0


def test_greedy_takes_the_lowest_id_on_ties():
    assert sample(torch.tensor([[1.0, 3.0, 3.0, 3.0]]), GREEDY, None, None).item() == 1


@pytest.mark.parametrize(
    "bad", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_k": -2}, {"repetition_penalty": 0.0}]
)
def test_impossible_sampling_is_refused(bad):
    with pytest.raises(UserError, match="expected temperature"):
        Sampling(**bad)
