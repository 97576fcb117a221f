"""Trains the language model of `evaluate tokenizer_probe`: codes in, text out.

    document    sosp c_1 … c_n eosp  w_1 … w_m end       loss only on w_1 … w_m and end
    ctc         the states at c_1 … c_n predict w_1 … w_m    optional auxiliary loss, not used for recognition

This is a separate small loop instead of `fit`, because codes may come from a file without a speech tokenizer,
every evaluation decodes the dev list (the lowest word error selects the weights), and a probe leaves no model
that a run folder would describe.

Batches depend only on the seed and the step, and the state is saved at every evaluation and every two
minutes: a run that was killed ends with the same weights as one that was not.
"""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from lit_moss.data.batches import SpeechText
from lit_moss.errors import UserError
from lit_moss.evaluate.judges import word_errors
from lit_moss.files import atomic_write
from lit_moss.llm import SplitLM
from lit_moss.llm.backbone import load_text_tokenizer, row_format
from lit_moss.llm.replies import reply_text
from lit_moss.llm.rows import RowFormat, audio_vocab_for
from lit_moss.modules.trunk_ctc import FRAMES_PER_CODE, TextLabels, TrunkCtcHead
from lit_moss.schedule import rate_factor

RANDOM = "random"
_SAVE_SEC = 120.0


class Texts(Protocol):
    """Converts texts to ids of rows and back."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class Words:
    """Texts as ids of a backbone's tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)


class Characters:
    """Texts as characters, for a small model without text training; then three ids of the row format.

    Args:
        texts: Texts whose characters form the vocabulary; other characters are dropped.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.characters = sorted(set("".join(texts)))
        self._ids = {c: i for i, c in enumerate(self.characters)}

    def encode(self, text: str) -> list[int]:
        """Ids of the known characters."""
        return [self._ids[c] for c in text if c in self._ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, ignoring those of the row format."""
        return "".join(self.characters[i] for i in ids if i < len(self.characters))

    def row_format(self, num_codes: int) -> RowFormat:
        """Row format: characters, sosp, modality_pad, end."""
        V = len(self.characters)
        return RowFormat(
            text_vocab_size=V + 3, audio_vocab_size=audio_vocab_for(num_codes), sosp_token_id=V,
            eosp_token_id=num_codes, modality_pad_token_id=V + 1, audio_pad_token_id=0, end_id=V + 2,
        )  # fmt: skip


@dataclass(frozen=True)
class ProbeOptions:
    """Options of a probe and its training; see `tokenizer_probe.Config`."""

    probe_from: str
    layers: int
    width: int
    steps: int
    batch_rows: int
    lr: float
    seed: int
    eval_every: int
    language: str
    decode_batch: int
    device: str
    bf16: bool
    ctc: float = 0.0


@dataclass
class Spoken:
    """An utterance: its codes and its normalised text.

    Args:
        codes: Codes; if [], the utterance is not trained on, and its transcript is "".
        text: Reference text.
    """

    codes: list[int]
    text: str


@dataclass
class Probe:
    """A language model with its texts and row format."""

    lm: SplitLM
    texts: Texts
    form: RowFormat
    options: ProbeOptions
    ctc_head: TrunkCtcHead | None = None
    most_text_rows: int = 0
    history: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def open(cls, options: ProbeOptions, num_codes: int, train: Sequence[Spoken]) -> "Probe":
        """A probe before training; code embeddings are new, drawn with the seed.

        Raises:
            UserError: if the backbone does not exist.
        """
        with torch.random.fork_rng():
            torch.manual_seed(options.seed)
            if options.probe_from == RANDOM:
                characters = Characters([u.text for u in train])
                texts, form = characters, characters.row_format(num_codes)
                lm = SplitLM.from_backbone(
                    _small_config(options, form.text_vocab_size), 0, form.audio_vocab_size, row_format=form
                )
            else:
                tokenizer = load_text_tokenizer(options.probe_from)
                texts = Words(tokenizer)
                form = row_format(tokenizer, audio_vocab_for(num_codes), eosp=num_codes)
                lm = SplitLM.from_backbone(options.probe_from, 0, form.audio_vocab_size, row_format=form)
            head = None
            if options.ctc:
                ids = sorted({i for u in train for i in texts.encode(u.text)})
                # With character labels (14 a second), codes need several frames each.
                labels = TextLabels(ids, FRAMES_PER_CODE if options.probe_from == RANDOM else 1)
                head = TrunkCtcHead(labels, lm.model.embed_tokens.weight.detach()).to(options.device)
                lm.keep_hidden = len(lm.trunk.layers)
        lm.audio_lm_head.requires_grad_(False)  # codes are never targets
        lm.stop_ids = [i for i in {form.end_id, form.im_end_id} if i is not None]
        probe = cls(lm.to(options.device), texts, form, options, head)
        probe.most_text_rows = max((len(probe.target(u)) for u in train), default=0)
        return probe

    def prompt(self, utterance: Spoken) -> list[int]:
        """Rows of an utterance's codes."""
        return self.form.speech(utterance.codes)

    def trained(self) -> list[torch.nn.Parameter]:
        """Trainable parameters."""
        heads = [] if self.ctc_head is None else list(self.ctc_head.parameters())
        return [*(p for p in self.lm.parameters() if p.requires_grad), *heads]

    def target(self, utterance: Spoken) -> list[int]:
        """Rows of an utterance's text and the end."""
        assert self.form.end_id is not None
        return [*self.texts.encode(utterance.text), self.form.end_id]

    @torch.no_grad()
    def transcripts(self, utterances: Sequence[Spoken]) -> list[str]:
        """Greedy transcripts, in batches of similar lengths; "" for utterances without codes."""
        found = [""] * len(utterances)
        places = sorted(
            (i for i, u in enumerate(utterances) if u.codes), key=lambda i: len(utterances[i].codes)
        )
        self.lm.eval()
        for start in range(0, len(places), self.options.decode_batch):
            batch = places[start : start + self.options.decode_batch]
            prompts = [self.prompt(utterances[i]) for i in batch]
            made = self.lm.generate(prompts, greedy=True, max_new_tokens=self.most_text_rows + 8)
            for i, rows in zip(batch, made, strict=True):
                found[i] = self.texts.decode(reply_text(rows, self.lm.format))
        return found

    def word_error_rate(self, utterances: Sequence[Spoken]) -> float:
        """Total errors divided by total words."""
        heard = self.transcripts(utterances)
        pairs = [
            word_errors(u.text, h, self.options.language) for u, h in zip(utterances, heard, strict=True)
        ]
        return sum(errors for errors, _ in pairs) / max(1, sum(words for _, words in pairs))


def _small_config(options: ProbeOptions, text_vocab_size: int) -> Any:
    from transformers import LlamaConfig

    if options.width % 64:
        raise UserError(f"width is {options.width}, expected a multiple of 64")
    return LlamaConfig(
        hidden_size=options.width, intermediate_size=3 * options.width, num_hidden_layers=options.layers,
        num_attention_heads=options.width // 64, num_key_value_heads=options.width // 64,
        max_position_embeddings=4096, tie_word_embeddings=False, vocab_size=text_vocab_size,
    )  # fmt: skip


def batches(lengths: Sequence[int], batch_rows: int, seed: int) -> Iterator[list[int]]:
    """Indices of documents for each step, endlessly, shuffled per epoch, up to `batch_rows` rows."""
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        batch: list[int] = []
        rows = 0
        for i in torch.randperm(len(lengths), generator=generator).tolist():
            if batch and rows + lengths[i] > batch_rows:
                yield batch
                batch, rows = [], 0
            batch.append(i)
            rows += lengths[i]
        yield batch


def packed(documents: Sequence[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor, Tensor]:
    """Rows (1, L), document numbers (1, L) and loss mask (1, L) of packed (prompt, target) pairs."""
    rows, numbers, mask = [], [], []
    for number, (prompt, target) in enumerate(documents):
        rows += prompt + target
        numbers += [number] * (len(prompt) + len(target))
        mask += [False] * len(prompt) + [True] * len(target)
    return torch.tensor([rows]), torch.tensor([numbers]), torch.tensor([mask])


def said(documents: Sequence[tuple[list[int], list[int]]]) -> list[SpeechText]:
    """Text of the codes in packed (prompt, target) pairs: the target without its end."""
    spans, start = [], 0
    for prompt, target in documents:
        ids = target[:-1]
        codes = len(prompt) - 2  # between sosp and eosp
        spans.append(SpeechText(0, start + 1, start + 1 + codes, ids, [(codes, len(ids))]))
        start += len(prompt) + len(target)
    return spans


def train_probe(
    probe: Probe, train: Sequence[Spoken], dev: Sequence[Spoken], folder: Path, title: str
) -> Path:
    """Trains a probe, or continues; the weights with the lowest word error on `dev` are saved in best.pt.

    Args:
        probe: Probe before training. Its history is filled in.
        train: Training utterances; those without codes, or longer than a batch, are left out.
        dev: Utterances that select the best weights.
        folder: Folder of the state; best.pt and last.pt are written there.
        title: Title of the progress bar.

    Returns:
        Path of the best weights.

    Raises:
        UserError: if no document fits into a batch.
    """
    options = probe.options
    documents = [(probe.prompt(u), probe.target(u)) for u in train if u.codes]
    documents = [d for d in documents if len(d[0]) + len(d[1]) <= options.batch_rows]
    if not documents:
        raise UserError(
            f"none of the {len(train)} utterances to learn from fits into batch_rows {options.batch_rows}: "
            "raise it, or give other codes"
        )
    lengths = [len(prompt) + len(target) for prompt, target in documents]
    trained = probe.trained()
    optimizer = torch.optim.AdamW(trained, options.lr, betas=(0.9, 0.95), weight_decay=0.01)
    folder.mkdir(parents=True, exist_ok=True)
    last, best = folder / "last.pt", folder / "best.pt"
    step, losses = _resume(probe, optimizer, last)
    saved = time.monotonic()
    with tqdm(total=options.steps, initial=step, desc=title, unit="step", disable=None) as bar:
        for batch in itertools.islice(
            batches(lengths, options.batch_rows, options.seed), step, options.steps
        ):
            losses.append(_train_step(probe, optimizer, trained, [documents[i] for i in batch], step))
            step += 1
            bar.update()
            is_due = step % options.eval_every == 0 or step == options.steps
            if is_due:
                wer = probe.word_error_rate(dev)
                if wer < min((entry["dev_wer"] for entry in probe.history), default=float("inf")):
                    with atomic_write(best) as partial:
                        torch.save(probe.lm.state_dict(), partial)
                loss = sum(losses) / len(losses)
                probe.history.append({"step": step, "train_loss": loss, "dev_wer": wer})
                bar.set_postfix_str(f"loss {loss:.3f} dev WER {wer:.3f}")
                losses = []
            if is_due or time.monotonic() - saved > _SAVE_SEC:
                _save(probe, optimizer, step, losses, last)
                saved = time.monotonic()
    return best


def _train_step(
    probe: Probe, optimizer: Any, trained: Sequence[Tensor], documents: Sequence[Any], step: int
) -> float:
    options, lm = probe.options, probe.lm
    rows, numbers, mask = (x.to(options.device) for x in packed(documents))
    lm.train()
    with torch.autocast(torch.device(options.device).type, torch.bfloat16, enabled=options.bf16):
        losses = lm.loss(rows, numbers, mask)
        loss = losses.total
        if probe.ctc_head is not None and losses.hidden_BLD is not None:
            loss = loss + options.ctc * probe.ctc_head(losses.hidden_BLD, said(documents)).mean
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    factor = rate_factor("cosine", step, max(1, options.steps // 20), options.steps, 0.1)
    for group in optimizer.param_groups:
        group["lr"] = options.lr * factor
    optimizer.step()
    return float(losses.total.detach())


def _save(probe: Probe, optimizer: Any, step: int, losses: list[float], file: Path) -> None:
    state = {"lm": probe.lm.state_dict(), "optimizer": optimizer.state_dict(), "step": step,
             "history": probe.history, "losses": losses,
             "ctc": None if probe.ctc_head is None else probe.ctc_head.state_dict()}  # fmt: skip
    with atomic_write(file) as partial:
        torch.save(state, partial)


def _resume(probe: Probe, optimizer: Any, file: Path) -> tuple[int, list[float]]:
    """The number of steps done, and the losses since the last evaluation; (0, []) if there is no state."""
    if not file.exists():
        return 0, []
    state = torch.load(file, map_location="cpu", weights_only=True)
    probe.lm.load_state_dict(state["lm"])
    if probe.ctc_head is not None:
        probe.ctc_head.load_state_dict(state["ctc"])
    optimizer.load_state_dict(state["optimizer"])
    probe.history[:] = state["history"]
    return state["step"], state["losses"]
