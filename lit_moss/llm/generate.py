"""Generation row by row (contract of the released model), in batches, streamed, with three key-value caches.

A row's mode is text or speech and says which head's sample counts; the other head is not computed, its sample
would be ignored. A tail that is not heard is not run either: the trunk's output rows wait, and the tail
catches up on all of them at once when its mode begins. Its cache then holds what it would have held, so
results are the same.
Shapes: B sequences, L rows of the prompt, V ids of a head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lit_moss.errors import UserError
from lit_moss.llm.cache import KVCache, causal_mask
from lit_moss.llm.decode import head_row, one_row
from lit_moss.llm.layers import DecoderLayer

if TYPE_CHECKING:
    from lit_moss.llm.model import Block, SplitLM


@dataclass(frozen=True)
class Sampling:
    """How one channel's next id is drawn; the released demo's values.

    Args:
        temperature: Divides the logits; 0 is greedy: the most likely id, the lowest on ties.
        top_k: Ids to choose from; 0 for all.
        top_p: Probability mass to choose from.
        repetition_penalty: Logits of ids already in the channel are divided by it (multiplied where
            negative).
    """

    temperature: float = 0.6
    top_k: int = 20
    top_p: float = 0.95
    repetition_penalty: float = 1.1

    def __post_init__(self) -> None:
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1 or self.repetition_penalty <= 0:
            raise UserError(
                f"{self}: expected temperature >= 0, top_k >= 0, top_p in (0, 1], repetition_penalty > 0"
            )


GREEDY = Sampling(temperature=0.0, top_k=0, top_p=1.0, repetition_penalty=1.0)


def generate(
    lm: "SplitLM",
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
    """New rows after a prompt.

    Args:
        lm: The model, also on a GPU; it is not changed.
        rows: One prompt (a list or a 1-d tensor of rows), or several: (B, L), or a list of prompts of any
            lengths.
        modality: "speech" appends sosp to prompts that do not end in speech or sosp yet; "text" refuses a
            prompt that would go on in speech; None leaves it to the prompt.
        max_new_tokens: Most rows to make.
        min_new_tokens: No eosp before that many rows.
        stream: Return an iterator: of ints for one prompt, of lists with None for ended sequences for
            several.
        greedy: Most likely rows; same as `GREEDY` for both channels.
        text: Sampling of the text channel.
        speech: Sampling of the audio channel.
        generator: Source of randomness; torch's own if not given.
        prompt_chunk: Rows of the prompt a forward takes; all if not given. The result does not depend on it.

    Returns:
        List of new rows, a list of such lists for several prompts, or an iterator; the row that ends a
        sequence (<|im_end|> or document end) is the last one.

    Raises:
        UserError: for an empty prompt, rows outside the vocabularies, or a modality that the prompt
            contradicts.
    """
    prompts, single = _prompts(lm, rows, modality)
    if max_new_tokens < 0:
        raise UserError(f"max_new_tokens is {max_new_tokens}, expected 0 or more")
    channels = {"text": text or Sampling(), "speech": speech or Sampling()}
    if greedy:
        channels = {name: GREEDY for name in channels}
    decoder = _Decoder(lm, prompts, channels, generator, min_new_tokens, prompt_chunk)
    steps = decoder.steps(max_new_tokens)
    if stream:
        return (step[0] for step in steps) if single else steps
    out: list[list[int]] = [[] for _ in prompts]
    for step in steps:
        for b, row in enumerate(step):
            if row is not None:
                out[b].append(row)
    return out[0] if single else out


def _prompts(lm: "SplitLM", rows: Any, modality: str | None) -> tuple[list[list[int]], bool]:
    if isinstance(rows, Tensor):
        rows = rows.tolist()
    rows = list(rows)
    single = not rows or not isinstance(rows[0], list | tuple | Tensor)
    prompts = [[int(r) for r in one] for one in ([rows] if single else rows)]
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
        last = prompt[-1]
        speaks = last == f.sosp_token_id or (last >= f.text_vocab_size and last != f.eosp_row)
        if modality == "speech" and not speaks:
            prompt.append(f.sosp_token_id)
        if modality == "text" and speaks:
            raise UserError(
                "the prompt ends inside speech, a reply in text cannot follow: end it before sosp"
            )
    return prompts, single


@dataclass
class _Tail:
    """One tail with its cache, and the trunk's rows that it has not run on yet."""

    block: "Block"
    cache: KVCache = field(default_factory=KVCache)
    waiting: list[Tensor] = field(default_factory=list)


class _Decoder:
    """State of one batch: prompts are filled up at their left, so that all next rows stand in one column."""

    def __init__(
        self,
        lm: "SplitLM",
        prompts: Sequence[list[int]],
        channels: dict[str, Sampling],
        generator: torch.Generator | None,
        min_new_tokens: int,
        prompt_chunk: int | None,
    ) -> None:
        self.lm, self.channels, self.generator = lm, channels, generator
        self.min_new, self.chunk = min_new_tokens, prompt_chunk
        f, model = lm.format, lm.model
        self.device = model.text_norm.weight.device
        self.fast = all(isinstance(layer, DecoderLayer) for block in lm.blocks() for layer in block.layers)
        longest = max(map(len, prompts))
        pad_B = torch.tensor([longest - len(p) for p in prompts], device=self.device)
        self.pad_B = pad_B if int(pad_B.max()) else None
        self.offsets_B = pad_B
        self.prompt_BL = torch.tensor([[0] * (longest - len(p)) + p for p in prompts], device=self.device)
        self.trunk = KVCache(longest + 64)
        self.tails = {"text": _Tail(model.text_block)}
        if not lm.config.joint:
            self.tails["speech"] = _Tail(model.audio_block)
        self.stops = lm.stop_ids
        self.speaking = [p[-1] >= f.text_vocab_size for p in prompts]
        self.last = [p[-1] for p in prompts]
        self.alive = [True] * len(prompts)
        self.seen = self._history(prompts)

    def _history(self, prompts: Sequence[list[int]]) -> dict[str, Tensor] | None:
        """(B, V) per channel: ids that stand in it, fillers of the grid included, for the
        repetition penalty."""
        if all(c.repetition_penalty == 1.0 for c in self.channels.values()):
            return None
        f = self.lm.format
        seen = {
            "text": torch.zeros(len(prompts), f.text_vocab_size, dtype=torch.bool, device=self.device),
            "speech": torch.zeros(len(prompts), f.audio_vocab_size, dtype=torch.bool, device=self.device),
        }
        self.seen = seen
        for b, prompt in enumerate(prompts):
            for row in set(prompt):
                self._note(b, row)
        return seen

    def _note(self, b: int, row: int) -> None:
        if self.seen is None:
            return
        f = self.lm.format
        speech = row >= f.text_vocab_size
        if self.lm.config.joint:  # one vocabulary has no fillers
            seen, first = (self.seen["speech"], f.text_vocab_size) if speech else (self.seen["text"], 0)
            seen[b, row - first] = True
            return
        self.seen["text"][b, f.modality_pad_token_id if speech else row] = True
        self.seen["speech"][b, row - f.text_vocab_size if speech else f.audio_pad_token_id] = True

    @torch.inference_mode()
    def steps(self, count: int) -> Iterator[list[int | None]]:
        """One list of B rows a step, None for sequences that have ended."""
        if count == 0:
            return
        new_BL = self.prompt_BL
        for made in range(count):
            # In the weights' own precision: autocast would cast all of them anew for each row.
            with torch.autocast(self.device.type, enabled=False):
                self._forward(new_BL)
                rows = self._next(made)
            yield rows
            if not any(self.alive):
                return
            new = [0 if row is None else row for row in rows]  # an ended sequence is fed anything
            new_BL = torch.tensor(new, device=self.device)[:, None]

    def _forward(self, rows_BL: Tensor) -> None:
        """Trunk over new rows; its outputs wait for the tails."""
        step = self.chunk or rows_BL.shape[1]
        for piece in rows_BL.split(step, dim=1):
            h = self._run(self.lm.model.shared_block, self.trunk, self.lm.embed(piece))
            for tail in self.tails.values():
                tail.waiting.append(h)

    def _run(self, block: "Block", cache: KVCache, h_BLD: Tensor) -> Tensor:
        first, rows = cache.length, h_BLD.shape[1]
        positions = torch.arange(first, first + rows, device=self.device)[None] - self.offsets_B[:, None]
        rope = self.lm.model.rotary_emb(h_BLD, position_ids=positions.clamp_min(0))
        mask = causal_mask(first, rows, self.pad_B, self.device)
        if rows == 1 and self.fast:
            h_BLD = one_row(block.layers, cache, h_BLD, rope, mask)
        else:
            h_BLD = block(h_BLD, rope, attention_mask=mask, past_key_values=cache, use_cache=True)
        cache.advance(rows)
        return h_BLD

    def _tail_output(self, name: str) -> Tensor:
        """The tail's output at the last row (B, D), after it has caught up."""
        tail = self.tails[name]
        if len(tail.waiting) > 1:
            tail.waiting = [torch.cat(tail.waiting, dim=1)]
        h = tail.waiting.pop()
        step = self.chunk or h.shape[1]
        for piece in h.split(step, dim=1):
            h = self._run(tail.block, tail.cache, piece)
        return h[:, -1]

    def _next(self, made: int) -> list[int | None]:
        f, lm = self.lm.format, self.lm
        if lm.config.joint:
            return self._next_joint(made)
        for b, row in enumerate(self.last):
            if row == f.sosp_token_id:
                self.speaking[b] = True
            elif row == f.eosp_row:
                self.speaking[b] = False
        chosen: dict[str, list[int]] = {}
        for mode in ("text", "speech"):
            if not any(a and s == (mode == "speech") for a, s in zip(self.alive, self.speaking, strict=True)):
                continue
            hidden_BD = self._tail_output(mode)
            if mode == "text":
                logits = head_row(lm.model.text_norm(hidden_BD), lm.text_lm_head).float()
            else:
                logits = head_row(lm.model.audio_norm(hidden_BD), lm.audio_lm_head).float()
                logits[:, f.eosp_token_id + (0 if made < self.min_new else 1) :] = -torch.inf
            seen = None if self.seen is None else self.seen[mode]
            chosen[mode] = sample(logits, self.channels[mode], seen, self.generator).tolist()
        rows: list[int | None] = []
        for b, speaks in enumerate(self.speaking):
            if not self.alive[b]:
                rows.append(None)
                continue
            row = chosen["speech"][b] + f.text_vocab_size if speaks else chosen["text"][b]
            self._note(b, row)
            self.last[b], self.alive[b] = row, speaks or row not in self.stops
            rows.append(row)
        return rows

    def _next_joint(self, made: int) -> list[int | None]:
        """Without a split one softmax chooses the modality row by row; both are sampled by the text channel's
        values."""
        lm, f = self.lm, self.lm.format
        logits = head_row(lm.model.text_norm(self._tail_output("text")), lm.text_lm_head).float()
        logits[:, f.eosp_row + (0 if made < self.min_new else 1) :] = -torch.inf
        seen = None if self.seen is None else torch.cat([self.seen["text"], self.seen["speech"]], dim=1)
        chosen = sample(logits, self.channels["text"], seen, self.generator).tolist()
        rows: list[int | None] = []
        for b, row in enumerate(chosen):
            rows.append(row if self.alive[b] else None)
            if self.alive[b]:
                self._note(b, row)
                self.last[b], self.alive[b] = row, row not in self.stops
        return rows


def sample(
    logits_BV: Tensor, how: Sampling, seen_BV: Tensor | None, generator: torch.Generator | None
) -> Tensor:
    """One id a sequence (B,): repetition penalty, temperature, top-k, top-p, then a draw; or the first
    maximum."""
    if how.repetition_penalty != 1.0 and seen_BV is not None:
        penalised = torch.where(
            logits_BV < 0, logits_BV * how.repetition_penalty, logits_BV / how.repetition_penalty
        )
        logits_BV = torch.where(seen_BV, penalised, logits_BV)
    if how.temperature == 0:
        return logits_BV.argmax(dim=-1)
    logits_BV = logits_BV / how.temperature
    k = min(how.top_k or logits_BV.shape[1], logits_BV.shape[1])
    top, ids = logits_BV.topk(k, dim=-1)  # sorted, so that top-p is a running sum
    probabilities = top.softmax(-1)
    # The id that crosses top_p still counts.
    probabilities = probabilities.masked_fill(probabilities.cumsum(-1) - probabilities >= how.top_p, 0.0)
    drawn = torch.multinomial(probabilities, 1, generator=generator)
    return ids.gather(1, drawn)[:, 0]
