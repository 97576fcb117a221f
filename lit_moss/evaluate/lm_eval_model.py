"""The text path of a split model as a model for lm-eval (EleutherAI's harness).

Only the text head is used, over the ids of words: ids that mark speech or pad the table are excluded. Before
training, scores therefore equal those of lm-eval's own `hf` model for the backbone, whose table does not
contain them. Each answer is stored as an item of an `Evaluation`, so a killed run can continue. Requires
lm-eval: pip install 'lit-moss[evaluate]'.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor

from lit_moss.data.chat_template import chat_template as chat_template_of
from lit_moss.errors import UserError
from lit_moss.evaluate.evaluation import Evaluation, Result
from lit_moss.evaluate.row_scores import score_rows
from lit_moss.llm import SplitLM
from lit_moss.llm.branches import Modality
from lit_moss.llm.generate import GenerationState, draws
from lit_moss.llm.replies import DIRECT, ReplyForm
from lit_moss.llm.sampling import GREEDY, Sampling

_NEW_TOKENS = 256  # for tasks that state no number; lm-eval's default
_CONTEXT = 2048  # for backbones that state none; as in lm-eval
Request = tuple[Any, list[int], list[int]]  # the request, ids of the context, ids of the continuation


class LitMossLM(TemplateLM):
    """A split model for `lm_eval.simple_evaluate(model=…)`.

    Args:
        lm: The model, in eval mode.
        tokenizer: Its text tokenizer.
        evaluation: Stores the answers, or None.
        batch_size: Number of requests computed together.
        name: Name of the tokenizer in lm-eval's hashes.
        form: Form of replies of the training; selects the chat template if the tokenizer has none.
        seed: Seed for tasks that sample.
    """

    def __init__(
        self,
        lm: SplitLM,
        tokenizer: Any,
        evaluation: Evaluation | None = None,
        batch_size: int = 32,
        name: str = "lit_moss",
        form: ReplyForm = DIRECT,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.lm, self.tokenizer, self._batch_size, self._name = lm, tokenizer, batch_size, name
        self._evaluation, self._form, self._seed = evaluation, form, seed
        self._device = lm.text_lm_head.weight.device
        self._allowed: dict[Modality, Tensor] = {"text": words_of(lm, tokenizer).to(self._device)}
        self._repeats: Counter[str] = Counter()

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The id that precedes a text without context."""
        start = self.tokenizer.bos_token_id
        return self.eot_token_id if start is None else start

    @property
    def max_length(self) -> int:
        """Maximum number of rows of context and continuation."""
        return self.lm.config.max_context or _CONTEXT

    @property
    def batch_size(self) -> int:
        """Number of requests computed together."""
        return self._batch_size

    @property
    def tokenizer_name(self) -> str:
        return self._name.replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            start = self.tokenizer.decode([self.prefix_token_id])
            if not has_bos_prefix(string, start):
                return self.tokenizer.encode(string)
        return self.tokenizer.encode(string, add_special_tokens=bool(add_special_tokens))

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        template = self.chat_template()
        return self.tokenizer.apply_chat_template(
            chat_history,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The tokenizer's chat template, or that of lit_moss' conversations if it has none."""
        return self.tokenizer.chat_template or chat_template_of(self.tokenizer, self._form)

    # --- likelihoods ----------------------------------------------------------------------------------------

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Sum of log p over each continuation, and whether greedy decoding gives it."""
        encoded = [self._encoded(*request.args) for request in requests]
        scored = [(request, *ids) for request, ids in zip(requests, encoded, strict=True)]
        results = self._kept(
            "loglikelihood", scored, lambda batch: self._log_probs([r[1:] for _, r in batch])
        )
        return [(result["log_prob"], result["greedy"]) for result in results]

    def _encoded(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of a context and its continuation, split as in lm-eval's `TemplateLM.loglikelihood`."""
        if context:
            return self._encode_pair(context, continuation)
        ids = self.tok_encode(continuation, add_special_tokens=False)
        return (ids[:1], ids[1:]) if ids[:1] == [self.prefix_token_id] else ([self.prefix_token_id], ids)

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        results = self._log_probs([(context, continuation) for _, context, continuation in requests])
        return [(result["log_prob"], result["greedy"]) for result in results]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of the maximum context."""
        scored = [(request, self.tok_encode(request.args[0]), []) for request in requests]

        def judge(batch: Sequence[tuple[str, Request]]) -> list[Result]:
            windows = [
                (number, *make_disjoint_window(window))
                for number, (_, (_, ids, _)) in enumerate(batch)
                for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            ]
            sums = [0.0] * len(batch)
            values = self._log_probs([(context, ids) for _, context, ids in windows])
            for (number, _, _), value in zip(windows, values, strict=True):
                sums[number] += value["log_prob"]
            return [{"log_prob": total} for total in sums]

        return [result["log_prob"] for result in self._kept("loglikelihood_rolling", scored, judge)]

    def _log_probs(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[Result]:
        """Sums over continuations. Continuations of the same ids, such as the letters of a choice, are
        computed together; sequences that are too long are truncated on the left."""
        places: dict[tuple[int, ...], int] = {}
        wanted: list[list[tuple[int, int]]] = []
        spans: list[tuple[int, int, int]] = []
        for context, continuation in pairs:
            if len(continuation) > self.max_length:
                raise UserError(
                    f"a continuation of {len(continuation)} ids, but the backbone has positions for "
                    f"{self.max_length}"
                )
            rows = (context + continuation)[-(self.max_length + 1) :][:-1]
            place = places.setdefault(tuple(rows), len(places))
            if place == len(wanted):
                wanted.append([])
            first = len(wanted[place])
            start = len(rows) - len(continuation) + 1
            wanted[place] += [(start + i, row) for i, row in enumerate(continuation)]
            spans.append((place, first, len(wanted[place])))
        scores = score_rows(self.lm, list(places), wanted, self._allowed)
        return [
            {
                "log_prob": math.fsum(scores[place].log_probs[first:last]),
                "greedy": all(scores[place].greedy[first:last]),
            }
            for place, first, last in spans
        ]

    # --- generation -----------------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts up to the first stop string, which is excluded."""
        groups: dict[str, list[tuple[Instance, list[int], list[int]]]] = {}
        for request in requests:
            arguments: Any = request.args
            context, options = arguments
            key = json.dumps(options, sort_keys=True, default=str)
            groups.setdefault(key, []).append((request, self.tok_encode(context), []))
        texts: dict[int, str] = {}
        for group in groups.values():
            first: Any = group[0][0].args
            options = first[1]
            results = self._kept(
                "generate_until",
                group,
                lambda batch, o=options: self._generate(
                    [r[1] for _, r in batch], o, [name for name, _ in batch]
                ),
            )
            # By identity: a request that lm-eval repeats is the same object, consecutively.
            for number, result in zip(_positions(requests, group), results, strict=True):
                texts[number] = result["text"]
        return [texts[number] for number in range(len(requests))]

    def _generate(
        self, prompts: Sequence[list[int]], options: dict[str, Any], names: Sequence[str]
    ) -> list[Result]:
        """New text after each prompt. Random numbers are derived from the seed and the name of the request,
        so that they are the same in any batch."""
        known: Any = normalize_gen_kwargs(options, _NEW_TOKENS)
        stops = handle_stop_sequences(known.get("until"), eos=self.tokenizer.decode([self.eot_token_id]))
        count = known["max_gen_toks"]
        room = self.max_length - count
        if room <= 0:
            raise UserError(
                f"a task asks for {count} new tokens, but the backbone has positions for {self.max_length}: "
                "set max_gen_toks in generation_kwargs"
            )
        cut = [prompt[-room:] or [self.prefix_token_id] for prompt in prompts]
        state = _Words(self.lm, cut, _sampling(known), self._allowed["text"])
        digests = [hashlib.sha256(f"{self._seed} {name}".encode()).digest() for name in names]
        state.draw(cut, count, [int.from_bytes(digest[:7]) for digest in digests])
        rows: list[list[int]] = [[] for _ in cut]
        texts = [""] * len(cut)
        open_ = set(range(len(cut)))
        for step in state.steps(count):
            for number in list(open_):
                row = step[number]
                if row is not None:
                    rows[number].append(row)
                    texts[number] = self.tokenizer.decode(rows[number], skip_special_tokens=True)
                # A stop text may be a special token, which the text does not contain.
                shown = texts[number], self.tokenizer.decode(rows[number])
                if row is None or any(stop in text for stop in stops if stop for text in shown):
                    open_.discard(number)
            if not open_:
                break
        return [{"text": _cut(text, stops)} for text in texts]

    # --- stored answers -------------------------------------------------------------------------------------

    def _kept(
        self,
        kind: str,
        requests: Sequence[tuple[Instance, list[int], list[int]]],
        judge: Callable[[Sequence[tuple[str, Request]]], list[Result]],
    ) -> list[Result]:
        """Results in the order of the requests; computed longest first, with equal contexts together."""
        order = sorted(range(len(requests)), key=lambda i: _order_key(requests[i]))
        named = [(self._key(kind, requests[i][0]), requests[i]) for i in order]

        if self._evaluation is not None:
            results = self._evaluation.results(named, judge, self._batch_size, key=lambda item: item[0])
        else:
            size = self._batch_size
            results = [r for i in range(0, len(named), size) for r in judge(named[i : i + size])]
        by_place = dict(zip(order, results, strict=True))
        return [by_place[i] for i in range(len(requests))]

    def _key(self, kind: str, request: Instance) -> str:
        """Name of a request: its task and document, and a hash of its content."""
        asked = json.dumps([kind, list(request.args)], sort_keys=True, default=str)
        digest = hashlib.sha256(asked.encode("utf-8", "backslashreplace")).hexdigest()[:16]
        name = f"{request.task_name}/{request.doc_id}/{request.idx}/{digest}"
        self._repeats[name] += 1
        return name if self._repeats[name] == 1 else f"{name}/{self._repeats[name]}"


class _Words(GenerationState):
    """Generation restricted to words.

    Args:
        lm: The model.
        prompts: Rows of the prompts.
        sampling: Sampling options.
        allowed_V: bool (V,), True for ids that may be generated.
    """

    def __init__(
        self, lm: SplitLM, prompts: Sequence[list[int]], sampling: Sampling, allowed_V: Tensor
    ) -> None:
        super().__init__(lm, [list(prompt) for prompt in prompts], {"text": sampling, "speech": GREEDY})
        self._barred_V, self._is_greedy = ~allowed_V, sampling.temperature == 0

    def draw(self, prompts: Sequence[list[int]], count: int, seeds: Sequence[int]) -> None:
        """Draws the random numbers for sampling, with a separate seed per prompt."""
        if not self._is_greedy:
            own = [
                draws([prompt], count, torch.Generator().manual_seed(seed))
                for prompt, seed in zip(prompts, seeds, strict=True)
            ]
            self.draws_BN = torch.cat(own).to(self.device)

    def choose(self, name: Modality, logits_BV: Tensor, made: int) -> Tensor:
        logits_BV[:, self._barred_V] = -torch.inf
        return super().choose(name, logits_BV, made)


def words_of(lm: SplitLM, tokenizer: Any) -> Tensor:
    """bool (V,) over the text head: True for ids of words, False for ids of speech and padding.

    Args:
        lm: The model.
        tokenizer: Its text tokenizer.
    """
    is_word_V = torch.zeros(lm.text_lm_head.out_features, dtype=torch.bool)
    ids = torch.tensor([i for i in tokenizer.get_vocab().values() if i < lm.format.text_vocab_size])
    is_word_V[ids] = True
    is_word_V[[lm.format.sosp_token_id, lm.format.modality_pad_token_id]] = False
    return is_word_V


def _order_key(request: Request) -> tuple[int, tuple[int, ...]]:
    _, context, continuation = request
    return -len(context) - len(continuation), tuple(context)


def _positions(requests: Sequence[Instance], group: Sequence[Request]) -> list[int]:
    """Indices of a group's requests among all requests."""
    wanted = {id(request) for request, _, _ in group}
    return [number for number, request in enumerate(requests) if id(request) in wanted]


def _sampling(options: Any) -> Sampling:
    if not options.get("do_sample"):
        return GREEDY
    return Sampling(
        temperature=float(options.get("temperature") or 1.0),
        top_k=int(options.get("top_k") or 0),
        top_p=float(options.get("top_p") or 1.0),
        repetition_penalty=float(options.get("repetition_penalty") or 1.0),
    )


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string."""
    for stop in stops:
        if stop:
            text = text.split(stop)[0]
    return text
