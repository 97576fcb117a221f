"""Row-by-row generation with the released model's rules: batched, streamed, with key-value caches.

    row i ─ trunk (cache) ─┬─ text branch   (cache) ─ sample ─┐
                           └─ speech branch (cache) ─ sample ─┴─ by the mode ─ row i + 1

The mode of a sequence decides which head's sample becomes the next row: speech from sosp to eosp, text
otherwise. The other head is not computed, since its sample would be ignored, and neither is its tail: the
trunk's outputs are kept, and the tail processes all of them at once when its mode begins. Its cache then has
the same content as if it had run at every row, so the results are the same.

The host decides which branches run and whether all sequences have ended. On an accelerator it fetches the new
rows in one transfer after 1, 2, 4, 8 and then every 16 rows: a transfer per row would leave the device idle
in between. If the mode changed within such a group, the rows after the change (at most 15) are computed
again. Streamed replies arrive in groups of up to 16 rows. On the CPU the host checks every row. The resulting
rows are the same in all cases.
Shapes: B sequences, L rows of the prompt, N new rows, V ids of a head.
"""

import hashlib
import inspect
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.llm.branches import LayerStack, Modality, Network
from lit_moss.llm.cache import Caches, KVCache, causal_mask
from lit_moss.llm.rows import RowFormat, to_grid
from lit_moss.llm.sampling import GREEDY, Sampling, sample
from lit_moss.llm.single_row import head_row, one_row, runs_on

_NEVER = 2**31 - 1


def generate(
    lm: Network,
    rows: Any,
    modality: str | None = None,
    max_new_tokens: int = 500,
    min_new_tokens: int = 0,
    stream: bool = False,
    greedy: bool = False,
    text: Sampling | None = None,
    speech: Sampling | None = None,
    generator: torch.Generator | None = None,
    prompt_chunk: int | None = None,
) -> Any:
    """Generates the rows that follow a prompt.

    Args:
        lm: The model, on any device; it is not changed.
        rows: One prompt (a list or a 1-d tensor of rows) or several: (B, L), or a list of prompts of any
            lengths.
        modality: "speech" appends sosp to prompts that do not end in speech or sosp; "text" rejects a prompt
            after which speech would follow; None: the prompt decides.
        max_new_tokens: Maximum number of new rows; fewer if the backbone's positions run out.
        min_new_tokens: Number of new rows before which eosp is not allowed.
        stream: Return an iterator: of ints for one prompt; for several, of lists with None for sequences that
            have ended. On an accelerator rows arrive in groups of up to 16.
        greedy: Choose the most likely rows; the same as `GREEDY` for both channels.
        text: Sampling of the text channel.
        speech: Sampling of the audio channel.
        generator: Source of randomness, on any device. Default: torch's CPU generator. Each sequence has its
            own random numbers, derived from the generator's state and the prompt: a reply does not depend on
            the other prompts of the batch nor on its place among them. Equal prompts get different numbers.
        prompt_chunk: Rows of the prompt per forward; None: all. The result does not depend on it.

    Returns:
        A list of new rows, a list of such lists for several prompts, or an iterator. The row that ends a
        sequence (<|im_end|> or the end of the document) is included as the last one.

    Raises:
        UserError: for an empty prompt, rows outside the vocabularies, or a modality that the prompt
            contradicts.
    """
    prompts, single = checked_prompts(lm, rows, modality)
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 0 or more")
    channels: dict[Modality, Sampling] = {"text": text or Sampling(), "speech": speech or Sampling()}
    if greedy:
        channels = {"text": GREEDY, "speech": GREEDY}
    state = GenerationState(lm, prompts, channels, min_new_tokens, prompt_chunk)
    lm.check_context(max(map(len, prompts)))
    if lm.config.max_context is not None:
        max_new_tokens = min(max_new_tokens, lm.config.max_context)
    if any(c.temperature > 0 for c in channels.values()):
        state.draws_BN = draws(prompts, max_new_tokens, generator).to(state.device)
    steps = state.steps(max_new_tokens)
    if stream:
        return (step[0] for step in steps) if single else steps
    out: list[list[int]] = [[] for _ in prompts]
    for step in steps:
        for b, row in enumerate(step):
            if row is not None:
                out[b].append(row)
    return out[0] if single else out


def checked_prompts(lm: Network, rows: Any, modality: str | None) -> tuple[list[list[int]], bool]:
    """The prompts as lists, and whether there was only one; arguments and errors as in `generate`."""
    if isinstance(rows, Tensor):
        rows = rows.tolist()
    rows = list(rows)
    single = not rows or not isinstance(rows[0], list | tuple | Tensor)
    given = [rows] if single else rows
    prompts = [
        [int(row) for row in (prompt.tolist() if isinstance(prompt, Tensor) else prompt)] for prompt in given
    ]
    f = lm.format
    if modality not in (None, "text", "speech"):
        raise UserError(f"modality is {modality!r}, expected 'text', 'speech' or None")
    for prompt in prompts:
        if not prompt:
            raise UserError("the prompt is empty: expected at least one row")
        if min(prompt) < 0 or max(prompt) >= f.text_vocab_size + f.audio_vocab_size:
            raise UserError(
                f"the prompt has rows from {min(prompt)} to {max(prompt)}, expected 0 to "
                f"{f.text_vocab_size + f.audio_vocab_size - 1}"
            )
        goes_on = modality_after(prompt[-1], f)
        if modality == "speech" and goes_on == "text":
            prompt.append(f.sosp_token_id)
        if modality == "text" and goes_on == "speech":
            raise UserError(
                "the prompt ends inside speech, a reply in text cannot follow: end it before sosp"
            )
    return prompts, single


def modality_after(row: int, row_format: RowFormat) -> Modality:
    """Modality of the row that follows: speech after sosp and codes, text after eosp and words."""
    is_code = row >= row_format.text_vocab_size and row != row_format.eosp_row
    return "speech" if is_code or row == row_format.sosp_token_id else "text"


def unseen_rows(device: torch.device) -> int:
    """Maximum number of new rows that are computed before the host fetches them."""
    return 1 if device.type == "cpu" else 16


def draws(prompts: Sequence[list[int]], count: int, generator: torch.Generator | None) -> Tensor:
    """Uniform numbers (B, N) in [0, 1), on the CPU: one per sequence and step, derived from the generator's
    state, the prompts and `count`."""
    device = "cpu" if generator is None else generator.device
    base = int(torch.randint(2**62, (), generator=generator, device=device))
    repeats: Counter[tuple[int, ...]] = Counter()
    rows = []
    for prompt in prompts:
        key = tuple(prompt)
        digest = hashlib.sha256(f"{base} {repeats[key]} {prompt}".encode()).digest()
        repeats[key] += 1
        own = torch.Generator("cpu").manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        rows.append(torch.rand(count, generator=own, device="cpu", dtype=torch.float32))
    return torch.stack(rows)


class GenerationState:
    """Decoding state of one batch. Prompts are padded at the left, so that all next rows are in one column.

    Args:
        lm: The model.
        prompts: Prompts, as returned by `checked_prompts`.
        channels: Sampling of each channel.
        min_new_tokens: Number of new rows before which eosp is not allowed.
        prompt_chunk: Rows of the prompt per forward; None: all.
        caches: Caches to continue; None: new ones.
    """

    def __init__(
        self,
        lm: Network,
        prompts: Sequence[list[int]],
        channels: dict[Modality, Sampling],
        min_new_tokens: int = 0,
        prompt_chunk: int | None = None,
        caches: Caches | None = None,
    ) -> None:
        self.lm, self.prompts, self.channels = lm, prompts, channels
        self.min_new, self.chunk = min_new_tokens, prompt_chunk
        self.draws_BN: Tensor | None = None
        self.device = lm.branches[0].head.weight.device
        layers = [layer for block in lm.blocks() for layer in block.layers]
        self.fast = all(map(runs_on, layers))
        modules = [*layers, *(branch.head for branch in lm.branches)]
        self.mixed = len({p.dtype for module in modules for p in module.parameters()}) > 1
        # transformers 5.24 renamed this argument of its layers.
        names = inspect.signature(layers[0].forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"
        longest = max(map(len, prompts))
        padding = [longest - len(p) for p in prompts]
        self.offsets_B = torch.tensor(padding, device=self.device)
        self.pad_B = self.offsets_B if any(padding) else None
        filled = [[0] * n + p for n, p in zip(padding, prompts, strict=True)]
        self.prompt_BL = torch.tensor(filled, device=self.device)
        self.caches = caches or Caches(lm.branches, longest + 64)
        self.trunk, self.tails = self.caches.trunk, self.caches.tails
        self.first = self._history()

    # --- ids seen in each channel, for the repetition penalty -----------------------------------------------

    def _history(self) -> dict[Modality, Tensor] | None:
        """Channel -> (B, V): index of the new row in which an id first occurred, -1 for the prompt.

        Fillers of the grid count as occurrences. Indices instead of bools allow rows to be taken back."""
        if all(c.repetition_penalty == 1.0 for c in self.channels.values()):
            return None
        first = {}
        for name, tail in self.tails.items():
            size = len(self.prompts), tail.branch.head.out_features
            first_BV = torch.full(size, _NEVER, dtype=torch.int32, device="cpu")
            for b, prompt in enumerate(self.prompts):
                first_BV[b, self._ids(torch.tensor(prompt, device="cpu"))[name]] = -1
            first[name] = first_BV.to(self.device)
        return first

    def _ids(self, rows: Tensor) -> dict[Modality, Tensor]:
        """Channel -> ids of the rows in that channel. With a joint vocabulary there are no fillers."""
        if len(self.tails) == 1:
            return {"text": rows}
        text, speech = to_grid(rows, self.lm.format).unbind(-1)
        return {"text": text, "speech": speech}

    def note(self, rows_B: Tensor, made: int) -> None:
        """Marks new row number `made` of each sequence as seen, for the repetition penalty."""
        if self.first is None:
            return
        for name, ids_B in self._ids(rows_B).items():
            first_BV, ids_B1 = self.first[name], ids_B[:, None]
            first_BV.scatter_(1, ids_B1, first_BV.gather(1, ids_B1).clamp_max(made))

    # --- steps ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def steps(self, count: int) -> Iterator[list[int | None]]:
        """Yields one list of B rows per step, with None for sequences that have ended."""
        rows_BN = torch.zeros(len(self.prompts), count, dtype=torch.long, device=self.device)
        last = [p[-1] for p in self.prompts]
        alive = [True] * len(last)
        most = unseen_rows(self.device)
        done, ahead = 0, 1
        reach = self.lm.config.max_context or _NEVER  # number of positions; the last row is never fed
        room = [min(count, reach - len(p) + 1) for p in self.prompts]
        count = max(room)
        while done < count:
            modes = self._modes(last, alive)
            stop = min(done + ahead, count)
            for made in range(done, stop):
                new_BL = rows_BN[:, made - 1 : made] if made else self.prompt_BL
                with self._precision():
                    self.forward(new_BL)
                    rows_BN[:, made] = self._next(new_BL[:, -1], made, modes)
            ahead = min(2 * ahead, most)
            for rows in zip(*rows_BN[:, done:stop].tolist(), strict=True):
                if not self._modes(last, alive) <= modes:
                    self._take_back(done)
                    ahead = 1  # a reply often ends right after its speech
                    break
                done += 1
                yield [row if goes_on else None for row, goes_on in zip(rows, alive, strict=True)]
                last = list(rows)
                alive = [
                    goes_on and row not in self.lm.stop_ids and done < most_rows
                    for row, goes_on, most_rows in zip(rows, alive, room, strict=True)
                ]
                if not any(alive):
                    return

    def _precision(self) -> AbstractContextManager[Any]:
        """Disables autocast, which would cast weights again for every row, unless their dtypes differ."""
        if self.mixed:
            return nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    def _modes(self, last: list[int], alive: list[bool]) -> set[Modality]:
        """Names of the branches that predict the next rows."""
        if len(self.tails) == 1:
            return set(self.tails)
        pairs = zip(last, alive, strict=True)
        return {modality_after(row, self.lm.format) for row, goes_on in pairs if goes_on}

    def _take_back(self, made: int) -> None:
        """Drops all but the first `made` new rows (at least one); the last of these is fed again."""
        rows = self.prompt_BL.shape[1] + made - 1
        self.caches.truncate(rows)
        for first_BV in (self.first or {}).values():
            first_BV.masked_fill_(first_BV >= made, _NEVER)

    def forward(self, rows_BL: Tensor) -> None:
        """Runs the trunk over new rows (B, L); its outputs wait for the tails."""
        step = self.chunk or rows_BL.shape[1]
        for piece in rows_BL.split(step, dim=1):
            self.caches.wait(self.run(self.lm.trunk, self.trunk, self.lm.embed(piece)))

    def run(self, block: LayerStack, cache: KVCache, h_BLD: Tensor) -> Tensor:
        """Output (B, L, D) of a block for rows (B, L, D) after those in its cache; extends the cache."""
        first, rows = cache.length, h_BLD.shape[1]
        positions = torch.arange(first, first + rows, device=self.device)[None] - self.offsets_B[:, None]
        rope = self.lm.rotary(h_BLD, position_ids=positions.clamp_min(0))
        mask = causal_mask(first, rows, self.pad_B, self.device)
        if rows == 1 and self.fast:
            h_BLD = one_row(block.layers, cache, h_BLD, rope, mask)
        else:
            h_BLD = block(h_BLD, rope, attention_mask=mask, use_cache=True, **{self.cache_name: cache})
        cache.advance(rows)
        return h_BLD

    def logits(self, name: Modality) -> Tensor:
        """Logits (B, V), float32, of a branch after all fed rows; runs its tail on the waiting rows."""
        tail = self.tails[name]
        h = tail.take(tail.rows_waiting)
        step = self.chunk or h.shape[1]
        for piece in h.split(step, dim=1):
            h = self.run(tail.branch.block, tail.cache, piece)
        return head_row(tail.branch.norm(h[:, -1]), tail.branch.head).float()

    def _next(self, last_B: Tensor, made: int, modes: set[Modality]) -> Tensor:
        """The next rows (B,); meaningless for sequences whose mode is not in `modes`."""
        chosen = {name: self.choose(name, self.logits(name), made) for name in self.tails if name in modes}
        if len(chosen) == 2:
            f = self.lm.format
            starts_B = (last_B == f.sosp_token_id) | ((last_B >= f.text_vocab_size) & (last_B != f.eosp_row))
            rows_B = torch.where(starts_B, chosen["speech"], chosen["text"])
        else:
            (rows_B,) = chosen.values()
        self.note(rows_B, made)
        return rows_B

    def choose(self, name: Modality, logits_BV: Tensor, made: int) -> Tensor:
        """Draws rows (B,) from the logits of a branch, as new row number `made`; modifies the logits."""
        f, branch = self.lm.format, self.tails[name].branch
        if "text" in branch.predicts:
            logits_BV[:, f.modality_pad_token_id] = -torch.inf  # such a row would be read as speech
        if "speech" in branch.predicts:
            first_barred = f.eosp_row + (0 if made < self.min_new else 1)
            logits_BV[:, first_barred - branch.first_row :] = -torch.inf
        seen_BV = None if self.first is None else self.first[name] < made
        draws_B = None if self.draws_BN is None else self.draws_BN[:, made]
        ids_B = sample(logits_BV, self.channels[name], seen_BV, draws_B=draws_B)
        return ids_B + branch.first_row if branch.first_row else ids_B


def cached_logits(lm: Network, prompts: Sequence[list[int]], rows_BN: Tensor) -> Tensor:
    """Text logits (B, N + 1, V) after the prompts and after each of the following rows (B, N), computed with
    the caches of generation."""
    state = GenerationState(lm, prompts, {"text": GREEDY, "speech": GREEDY})
    state.forward(state.prompt_BL)
    logits = [state.logits("text")]
    for new_BL in rows_BN.split(1, dim=1):
        state.forward(new_BL)
        logits.append(state.logits("text"))
    return torch.stack(logits, dim=1)
