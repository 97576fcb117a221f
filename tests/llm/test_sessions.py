"""Sequences that are generated side by side against `generate` of each alone."""

import random

import pytest
import torch
from backbones import folder_of, mixed_rows, other_config

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.generate import GREEDY, Sampling
from lit_moss.llm.rows import RowFormat
from lit_moss.llm.sessions import PIECE_ROWS, Context, ContextPool, Generation, Prefill, step


def lively(lm):
    """Heads that often end speech and begin it, so that modes change and replies end."""
    torch.manual_seed(5)
    with torch.no_grad():
        for branch in lm.branches:
            branch.head.weight.normal_(0, 0.3)
            if "text" in branch.predicts:
                branch.head.weight[lm.format.sosp_token_id] *= 3
            if "speech" in branch.predicts:
                branch.head.weight[lm.format.eosp_row - branch.first_row] *= 3
    return lm.eval()


@pytest.fixture(scope="module", params=["qwen3", "llama", "joint"])
def lm(request, tmp_path_factory):
    kind = request.param
    folder, _ = folder_of(tmp_path_factory.mktemp("g"), "llama" if kind == "joint" else kind)
    form = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
    joint = kind == "joint"
    return lively(SplitLM.from_backbone(folder, 0 if joint else 2, 40, joint=joint, row_format=form))


def questions(lm, count=8):
    """Prompts of many lengths, in all four pairs of modalities."""
    f, prompts = lm.format, []
    for n in range(count):
        asked = [4 + n, 9, 60] if n % 2 else f.speech([3, 9 + n, 5])
        prompt = [*mixed_rows(lm, 1, 3 + 23 * (n % 5), n)[0].tolist(), *asked, 17]
        prompts.append([*prompt, f.sosp_token_id] if n % 4 < 2 else prompt)
    return prompts


def run_all(lm, prompts, options, rng):
    """Replies to all, each of which joins at a random row and pauses at random rows."""
    joins = [rng.randrange(12) for _ in prompts]
    running, ended, now = [], {}, 0
    while len(ended) < len(prompts):
        for n, at in enumerate(joins):
            if at == now:
                running.append((n, Generation(lm, Context(lm), prompts[n], **options[n])))
        for _, g in running:
            if g.rows_left:
                g.advance()
        ready = [g for _, g in running if not g.rows_left and g.ended is None and rng.random() < 0.8]
        if ready:
            step(lm, ready)
        ended |= {n: g for n, g in running if g.ended}
        running = [(n, g) for n, g in running if not g.ended]
        now += 1
    return [ended[n] for n in range(len(prompts))]


@pytest.mark.nightly
def test_greedy_rows_side_by_side_equal_those_alone(lm):
    prompts = questions(lm)
    options = [{"text": GREEDY, "speech": GREEDY, "max_new_tokens": 20 + 5 * n} for n in range(len(prompts))]
    together = run_all(lm, prompts, options, random.Random(1))
    alone = [lm.generate(p, max_new_tokens=20 + 5 * n, greedy=True) for n, p in enumerate(prompts)]
    assert [g.rows for g in together] == alone
    made = [row for g in together for row in g.rows]
    assert {row >= lm.format.text_vocab_size for row in made} == {True, False}


@pytest.mark.nightly
def test_sampled_rows_follow_from_seed_and_prompt_alone(lm):
    prompts = questions(lm)
    options = [{"seed": n % 3, "max_new_tokens": 40} for n in range(len(prompts))]
    options[3] |= {"text": Sampling(temperature=2.0), "speech": Sampling(1.5, 0, 1.0, 1.3)}
    options[4] |= {"min_new_tokens": 15}
    together = run_all(lm, prompts, options, random.Random(2))
    for prompt, given, g in zip(prompts, options, together, strict=True):
        own = {k: v for k, v in given.items() if k != "seed"}
        generator = torch.Generator().manual_seed(given["seed"])
        assert g.rows == lm.generate(prompt, generator=generator, **own)


def test_layers_of_transformers_run_too():
    config = other_config("olmo2")
    lm = lively(SplitLM.from_backbone(config, 1, 40))
    prompts = questions(lm, 3)
    options = [{"text": GREEDY, "speech": GREEDY, "max_new_tokens": 12}] * 3
    together = run_all(lm, prompts, options, random.Random(1))
    assert not together[0].state.fast
    assert [g.rows for g in together] == [lm.generate(p, max_new_tokens=12, greedy=True) for p in prompts]


def reply(lm, context, prompt, count=20):
    g = finish(Generation(lm, context, prompt, count, GREEDY, GREEDY))
    assert g.failure is None
    return g


def finish(g):
    while g.ended is None and g.failure is None:
        if g.rows_left:
            g.advance()
        else:
            step(g.lm, [g])
    return g


@pytest.mark.slow
def test_later_questions_prefill_their_new_rows_alone(lm):
    context, prompt = Context(lm), questions(lm)[4]
    first = reply(lm, context, prompt)
    assert (first.cached_rows, first.rows) == (0, lm.generate(prompt, max_new_tokens=20, greedy=True))
    longer = [*prompt, *first.rows, *mixed_rows(lm, 1, 30, 77)[0].tolist(), 8]
    second = reply(lm, context, longer)
    # The last row of the first reply was made, but nothing was computed from it.
    assert second.cached_rows == len(prompt) + len(first.rows) - 1
    assert second.rows == lm.generate(longer, max_new_tokens=20, greedy=True)
    # A branch of the conversation that leaves it in the middle of the first reply.
    other = [*prompt, *first.rows[:7], 11, 12]
    third = reply(lm, context, other)
    expected = len(prompt) + 7 + (first.rows[7:8] == [11])
    assert third.cached_rows == expected
    assert third.rows == lm.generate(other, max_new_tokens=20, greedy=True)
    # The same prompt again: only its last row is computed.
    again = reply(lm, context, other)
    assert (again.cached_rows, again.rows) == (len(other) - 1, third.rows)


@pytest.mark.slow
def test_long_prompts_come_in_pieces_and_ahead(lm):
    prompt = mixed_rows(lm, 1, 300, 5)[0].tolist()
    context = Context(lm)
    ahead = Prefill(lm, context, prompt[:150])
    pieces = 0
    while len(context.rows) < 149:
        ahead.advance()
        pieces += 1
    assert pieces == 3
    assert context.rows == prompt[:149]
    g = Generation(lm, context, prompt, 10, GREEDY, GREEDY)
    assert g.cached_rows == 149
    while g.rows_left:
        before = len(context.rows)
        g.advance()
        assert len(context.rows) - before <= PIECE_ROWS
    finish(g)
    assert g.rows == lm.generate(prompt, max_new_tokens=10, greedy=True)


@pytest.mark.slow
def test_contexts_of_closed_sessions_are_found_again_and_bounded(lm):
    pool = ContextPool(lm, 2**30)
    prompts = questions(lm)
    for prompt in prompts[4:7]:
        context = pool.take(prompt)
        assert context.rows == []
        reply(lm, context, prompt, 12)
        pool.give(context)
    longer = [*prompts[6], 9, 9]
    taken = pool.take(longer)
    assert len(pool) == 2
    assert taken.common(longer) == len(prompts[6])
    g = reply(lm, taken, longer)
    assert g.cached_rows == len(prompts[6])
    assert g.rows == lm.generate(longer, max_new_tokens=20, greedy=True)
    # The beginning of a context that goes on is copied, and both stay as they are.
    shorter = [*prompts[4][:30], 8, 7]
    copied = pool.take(shorter, [taken])
    assert len(pool) == 2
    assert copied.common(shorter) == 30
    assert reply(lm, copied, shorter).rows == lm.generate(shorter, max_new_tokens=20, greedy=True)
    pool.max_bytes = taken.bytes
    pool.give(taken)
    assert len(pool) == 1
    assert pool.bytes <= pool.max_bytes
    pool.max_bytes = 0
    pool.give(Context(lm))
    pool.give(copied)
    assert pool.bytes == 0


@pytest.mark.slow
def test_a_failing_reply_leaves_the_others_alone(lm):
    prompts = questions(lm)[:3]
    expected = [lm.generate(p, max_new_tokens=15, greedy=True) for p in prompts]
    running = [Generation(lm, Context(lm), p, 15, GREEDY, GREEDY) for p in prompts]
    cache, update = running[1].state.trunk, running[1].state.trunk.update
    written = 0

    def fails(*args, **kwargs):
        nonlocal written
        written += 1
        if written > 40:
            raise torch.OutOfMemoryError("no memory left")
        return update(*args, **kwargs)

    cache.update = fails
    while alive := [g for g in running if g.ended is None and g.failure is None]:
        for g in alive:
            while g.rows_left:
                g.advance()
        step(lm, alive)
    assert isinstance(running[1].failure, torch.OutOfMemoryError)
    assert running[0].rows == expected[0]
    assert running[2].rows == expected[2]
    assert running[1].rows == expected[1][: len(running[1].rows)]
    cache.update = update  # nothing half-written stays behind
    assert reply(lm, running[1].context, prompts[1], 15).rows == expected[1]


def test_logits_that_are_not_numbers_fail_the_reply(lm):
    g = Generation(lm, Context(lm), questions(lm)[2], 15, GREEDY, GREEDY)
    while g.rows_left:
        g.advance()
    with torch.no_grad():
        lm.branches[0].head.weight[7] += torch.nan
    try:
        step(lm, [g])
    finally:
        lively(lm)
    assert isinstance(g.failure, UserError)
    assert "not finite" in str(g.failure)
    assert not g.rows


def test_the_context_ends_where_the_positions_do(lm):
    reach = lm.config.max_context
    prompt = mixed_rows(lm, 1, reach - 3, 5)[0].tolist()
    g = reply(lm, Context(lm), prompt, 50)
    assert g.rows == lm.generate(prompt, max_new_tokens=50, greedy=True)
    assert len(g.rows) <= 4
    assert reply(lm, Context(lm), [4], 0).rows == []
    with pytest.raises(UserError, match="positions for"):
        Generation(lm, Context(lm), [*prompt, 1, 1, 1, 1])
