"""Continuous batching: each step generates one row for every active sequence; each has its own caches.

    sequence 1 ─ caches ─┐
    sequence 2 ─ caches ─┼─ linear layers on (S, 1) rows, attention on each cache ─ heads ─ one row each
    sequence 3 ─ caches ─┘

A sequence joins, pauses and leaves between any two rows: nothing is padded, and its rows do not depend on the
others (up to the rounding of a matrix product of S rows). Prompts are computed in pieces between the rows, so
that a long prompt does not delay the other sequences. A `Context` outlives the reply: the rows of a later
prompt that it already contains are not computed again.
Shapes: S sequences, D width, V ids of a head.
"""

import time
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import Literal

import torch
from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.llm.branches import LayerStack, Modality, Network
from lit_moss.llm.cache import CacheGroup, Caches, KVCache
from lit_moss.llm.generate import GenerationState, checked_prompts, draws, modality_after
from lit_moss.llm.sampling import GREEDY, Sampling
from lit_moss.llm.single_row import head_row, one_row

# Rows of a prompt that are computed between two new rows of the other sequences.
PIECE_ROWS = 64
# Shorter prefixes are computed instead of copied from another context.
_LEAST_COPIED_ROWS = 8


class Context:
    """Rows with cached keys and values, kept across all turns of a session.

    Args:
        lm: The model.
        scope: Owner of the rows, see `ContextPool`.

    Attributes:
        rows: Rows that the trunk has run on.
        caches: Keys and values of these rows.
    """

    def __init__(self, lm: Network, scope: object = None) -> None:
        self.scope = scope
        self.rows: list[int] = []
        self.caches = Caches(lm.branches)

    def common(self, rows: Sequence[int]) -> int:
        """Length of the common prefix with `rows`."""
        pairs = zip(self.rows, rows, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

    @torch.inference_mode()
    def truncate(self, rows: int) -> None:
        """Drops all but the first `rows` rows."""
        del self.rows[rows:]
        self.caches.truncate(rows)

    @torch.inference_mode()
    def first(self, rows: int, lm: Network, scope: object = None) -> "Context":
        """A new context with a copy of the first `rows` rows."""
        copied = Context(lm, scope)
        copied.rows, copied.caches = self.rows[:rows], self.caches.first(rows)
        return copied

    @property
    def bytes(self) -> int:
        """Memory of the caches, in bytes."""
        return self.caches.bytes


class ContextPool:
    """Contexts not in use by a session, for clients that send the whole conversation with each question.

    The latency of a reply reveals which rows of its prompt were cached. Therefore a prompt may reuse
    everything that its own scope has computed, but from other scopes only an identical system turn.

    Args:
        lm: The model.
        max_bytes: Maximum memory of all contexts; the least recently used are dropped.

    Attributes:
        bytes: Memory of all contexts, in bytes.
    """

    def __init__(self, lm: Network, max_bytes: int) -> None:
        self.lm, self.max_bytes = lm, max_bytes
        self._contexts: list[Context] = []  # least recently used first
        self.bytes = 0

    def give(self, context: Context) -> None:
        """Adds a context."""
        self._keep([*self._contexts, context])

    def end(self, scope: object) -> None:
        """Ends a scope: keeps only the system turn of its contexts, unless another context contains it."""
        kept = [context for context in self._contexts if context.scope is not scope]
        for context in self._contexts:
            rows = context.rows[: self._system_rows(context.rows)]
            if context.scope is scope and rows and all(k.common(rows) < len(rows) for k in kept):
                kept.append(context.first(len(rows), self.lm))
        self._keep(kept)

    def take(self, rows: Sequence[int], others: Iterable[Context] = (), scope: object = None) -> Context:
        """A context for a prompt: the one with the longest common prefix.

        Returns a copy of that prefix if less than half of the context is shared, or if the context has
        another scope or belongs to `others`, the active sessions."""
        candidates = [*self._contexts, *others]
        best = max(candidates, key=lambda context: self._shared(context, rows, scope), default=None)
        shared = 0 if best is None else self._shared(best, rows, scope)
        if best is None or shared < _LEAST_COPIED_ROWS:
            return Context(self.lm, scope)
        if best in self._contexts and best.scope == scope and 2 * shared >= len(best.rows):
            self._keep([context for context in self._contexts if context is not best])
            return best
        return best.first(shared, self.lm, scope)

    def _shared(self, context: Context, rows: Sequence[int], scope: object) -> int:
        common = context.common(rows)
        if context.scope == scope:
            return common
        system = self._system_rows(rows)
        return system if common >= system else 0

    def _system_rows(self, rows: Sequence[int]) -> int:
        """Number of rows of the first turn; 0 if there is none."""
        end = self.lm.format.im_end_id
        return next((place + 1 for place, row in enumerate(rows) if row == end), 0)

    def _keep(self, contexts: list[Context]) -> None:
        sizes = [context.bytes for context in contexts]
        while contexts and sum(sizes) > self.max_bytes:
            del contexts[0], sizes[0]
        self._contexts, self.bytes = contexts, sum(sizes)

    def __len__(self) -> int:
        return len(self._contexts)


class Prefill:
    """Rows that remain to be computed into a context.

    Args:
        lm: The model.
        context: Context to compute into; rows that differ from the prompt are dropped.
        prompt: Rows of the prompt; the first step of generation computes the last one.
        channels: Sampling of each channel, if rows are to be generated.
        min_new_tokens: Number of new rows before which eosp is not allowed.

    Attributes:
        cached_rows: Number of rows of the prompt that the context already contained.
        sec: Total computing time, in seconds.
    """

    def __init__(
        self,
        lm: Network,
        context: Context,
        prompt: list[int],
        channels: dict[Modality, Sampling] | None = None,
        min_new_tokens: int = 0,
    ) -> None:
        self.lm, self.context, self.prompt = lm, context, prompt
        self.rows: list[int] = []
        # The last row is always computed, because the trunk's output at that row is needed.
        self.cached_rows = min(context.common(prompt), len(prompt) - 1)
        context.truncate(self.cached_rows)
        channels = channels or {"text": GREEDY, "speech": GREEDY}
        self.state = GenerationState(lm, [prompt], channels, min_new_tokens, caches=context.caches)
        self.sec = 0.0

    @property
    def mode(self) -> Modality:
        """Name of the branch that predicts the next row."""
        if len(self.state.tails) == 1:
            return next(iter(self.state.tails))
        last = self.rows[-1] if self.rows else self.prompt[-1]
        return modality_after(last, self.lm.format)

    @property
    def rows_left(self) -> int:
        """Rows to compute before the next step: in the trunk, otherwise in the current mode's tail."""
        missing = len(self.prompt) + len(self.rows) - len(self.context.rows) - 1
        if missing:
            return missing
        waiting = self.state.tails[self.mode].rows_waiting
        return waiting if waiting > PIECE_ROWS else 0

    @torch.inference_mode()
    def advance(self, most: int = PIECE_ROWS) -> None:
        """Computes the next piece of at most `most` rows: first in the trunk, then in the tail."""
        began, context, state = time.monotonic(), self.context, self.state
        done = len(context.rows)
        piece = [*self.prompt, *self.rows][done:-1][:most]
        with torch.autocast(state.device.type, enabled=False):
            if piece:
                try:
                    state.forward(torch.tensor([piece], device=state.device))
                except Exception:
                    context.truncate(done)
                    raise
                context.rows += piece
            else:
                catch_up(state, self.mode, most)
        if state.device.type == "cuda":
            torch.cuda.synchronize(state.device)
        self.sec += time.monotonic() - began


class Generation(Prefill):
    """A reply that is being generated.

    Args:
        lm: The model.
        context: Context of its session.
        prompt: Rows of the prompt.
        max_new_tokens: Maximum number of new rows; fewer if the model's positions run out.
        text: Sampling of the text channel.
        speech: Sampling of the audio channel.
        seed: Seed of the sampling: the rows equal those of `generate` with a generator of that seed.
        min_new_tokens: Number of new rows before which eosp is not allowed.

    Attributes:
        rows: Rows generated so far.
        ended: Why generation ended: by the model or by the maximum length; None: it continues.
        failure: The exception that ended generation, or None.

    Raises:
        UserError: as in `generate`.
    """

    def __init__(
        self,
        lm: Network,
        context: Context,
        prompt: Sequence[int],
        max_new_tokens: int = 500,
        text: Sampling | None = None,
        speech: Sampling | None = None,
        seed: int = 0,
        min_new_tokens: int = 0,
    ) -> None:
        ((checked,), single) = checked_prompts(lm, list(prompt), None)
        if not single:
            raise UserError("several prompts, expected the rows of one")
        lm.check_context(len(checked))
        channels: dict[Modality, Sampling] = {"text": text or Sampling(), "speech": speech or Sampling()}
        super().__init__(lm, context, checked, channels, min_new_tokens)
        reach = lm.config.max_context
        count = max_new_tokens if reach is None else min(max_new_tokens, reach)
        if any(s.temperature > 0 for s in channels.values()):
            generator = torch.Generator("cpu").manual_seed(seed)
            self.state.draws_BN = draws([checked], count, generator).to(self.state.device)
        # The row after the last position is never fed.
        self.most = count if reach is None else min(count, reach - len(checked) + 1)
        self.ended: Literal["stop", "length"] | None = None if self.most > 0 else "length"
        self.failure: Exception | None = None

    @property
    def next_input(self) -> int:
        """The row that the next step runs on."""
        return self.rows[-1] if self.rows else self.prompt[-1]

    def accept(self, row: int) -> None:
        """Appends a generated row."""
        self.rows.append(row)
        if row in self.lm.stop_ids:
            self.ended = "stop"
        elif len(self.rows) >= self.most:
            self.ended = "length"


def catch_up(state: GenerationState, name: Modality, most: int) -> None:
    """Runs a tail on at most `most` of its waiting rows, but never on the last one."""
    tail = state.tails[name]
    rows = min(most, tail.rows_waiting - 1)
    if rows > 0:
        done = tail.cache.length
        h_1LD = tail.take(rows)
        try:
            state.run(tail.branch.block, tail.cache, h_1LD)
        except Exception:
            tail.cache.length = done
            tail.waiting.insert(0, h_1LD)
            raise


@torch.inference_mode()
def step(lm: Network, generations: Sequence[Generation]) -> None:
    """Generates one more row for each generation; their `rows_left` must be 0.

    If an error occurs, such as lack of memory, each generation is run separately: those that raise it store
    it as `failure`, the others get their row.
    """
    assert not any(g.rows_left for g in generations)
    lengths = [len(g.context.rows) for g in generations]
    try:
        device = generations[0].state.device
        with torch.autocast(device.type, enabled=False):
            rows = _next_rows(lm, generations)
    except Exception as error:
        for g, length in zip(generations, lengths, strict=True):
            g.context.truncate(length)
        if len(generations) == 1:
            generations[0].failure = error
        else:
            for g in generations:
                step(lm, [g])
        return
    for g, row in zip(generations, rows, strict=True):
        if row is None:
            g.failure = UserError("the language model's logits are not finite: its weights are damaged")
        else:
            g.accept(row)


def _next_rows(lm: Network, generations: Sequence[Generation]) -> list[int | None]:
    """The next rows; None where the logits are NaN."""
    device = generations[0].state.device
    rows_S1 = torch.tensor([[g.next_input] for g in generations], device=device)
    h_S1D = _one_row(lm, lm.trunk, [g.state.trunk for g in generations], lm.embed(rows_S1), generations)
    for g, h_11D in zip(generations, h_S1D.split(1), strict=True):
        g.context.rows.append(g.next_input)
        # Cloned, because a view would keep the rows of all sequences in memory.
        g.context.caches.wait(h_11D.clone() if len(generations) > 1 else h_11D)
    chosen: dict[Generation, Tensor] = {}
    for branch in lm.branches:
        group = [g for g in generations if g.mode == branch.name]
        if not group:
            continue
        for g in group:
            catch_up(g.state, branch.name, PIECE_ROWS)
        tails = [g.state.tails[branch.name] for g in group]
        h_S1D = torch.cat([tail.take(1) for tail in tails])
        h_S1D = _one_row(lm, branch.block, [tail.cache for tail in tails], h_S1D, group)
        logits_SV = head_row(branch.norm(h_S1D[:, -1]), branch.head).float()
        bad_S = logits_SV.isnan().any(-1)
        for g, logits_1V, bad_1 in zip(group, logits_SV.split(1), bad_S.split(1), strict=True):
            row_1 = g.state.choose(branch.name, logits_1V, len(g.rows))
            g.state.note(row_1, len(g.rows))
            chosen[g] = row_1.masked_fill(bad_1, -1)
    rows = torch.cat([chosen[g] for g in generations]).tolist()  # a single transfer from the device
    return [None if row < 0 else row for row in rows]


def _one_row(
    lm: Network, block: LayerStack, caches: list[KVCache], h_S1D: Tensor, generations: Sequence[Generation]
) -> Tensor:
    """Output (S, 1, D) of a block for one new row of each sequence; appends to the caches."""
    if not generations[0].state.fast:  # transformers' layers accept only one cache
        parts = zip(generations, caches, h_S1D.split(1), strict=True)
        return torch.cat([g.state.run(block, cache, h_11D) for g, cache, h_11D in parts])
    positions_S1 = torch.tensor([[cache.length] for cache in caches], device=h_S1D.device)
    rope = lm.rotary(h_S1D, position_ids=positions_S1)
    cache = caches[0] if len(caches) == 1 else CacheGroup(caches)
    h_S1D = one_row(block.layers, cache, h_S1D, rope, None)
    cache.advance(1)
    return h_S1D
