"""Converts pairs to rows, and computes their log-probabilities with one model.

Counted rows are codes, eosp (optional) and text ids; never sosp, which announces speech, nor the first row of
a text, which has no context.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_moss.data.interleave import space_between, text_ids
from lit_moss.errors import UserError
from lit_moss.evaluate.cloze_options import Config
from lit_moss.evaluate.cloze_sets import Modalities, Pair, Part, common_prefix, without_repeats
from lit_moss.evaluate.evaluation import FAILED
from lit_moss.evaluate.text_model import is_backbone, open_text_model

if TYPE_CHECKING:
    from torch import Tensor

    from lit_moss.llm.rows import RowFormat
    from lit_moss.serve.model import SpeechModel


@dataclass(frozen=True)
class Rows:
    """A context and an ending as rows.

    Args:
        rows: All rows.
        ending: Index of the first row of the ending.
    """

    rows: list[int]
    ending: int


@dataclass(frozen=True)
class Item:
    """A pair in one choice of modalities.

    Args:
        set_name: Name of the set.
        pair: The pair.
        modalities: Modalities of context and ending.
        made: Rows of the true and the false continuation, for an item made from a corpus.
    """

    set_name: str
    pair: Pair
    modalities: Modalities
    made: tuple[Rows, Rows] | None = None

    @property
    def id(self) -> str:
        """Id, unique within the evaluation."""
        return f"{self.set_name}/{self.pair.id}/{self.modalities}"


class Scorer:
    """Scores items with one model, which is opened for the first item.

    Args:
        config: Options of the benchmark.
    """

    def __init__(self, config: Config) -> None:
        self.config = config

    @cached_property
    def model(self) -> "SpeechModel":
        """The model with its tokenizers."""
        import torch

        from lit_moss.serve.model import SpeechModel

        c = self.config
        if is_backbone(c.model):
            lm, tokenizer, _ = open_text_model(c.model, c.device, c.dtype)
            return SpeechModel(c.model, lm, tokenizer, None, None)
        dtype = torch.float32 if c.dtype == "float32" else torch.bfloat16
        return SpeechModel.open(c.model, c.codec, c.device, dtype, c.log_mel)

    def tokenizer_name(self) -> str:
        """Name of the speech tokenizer of the training, for corpora; `none` if there is none."""
        from lit_moss.hub.model_folder import CODEC

        if is_backbone(self.config.model):
            return "none"
        inside = Path(self.config.model) / CODEC
        if self.config.codec:
            return self.config.codec
        if (inside / "model.safetensors").is_file():
            return str(inside)
        return self.model.record.speech_tokenizer_name or "none"

    def check_speech(self, name: str) -> None:
        """Rejects a speech tokenizer whose rows are incompatible with the model."""
        from lit_moss.hub import speech_tokenizer_fingerprint

        self.model.record.check(
            self.config.model, speech_tokenizer=speech_tokenizer_fingerprint(name, self.config.log_mel)
        )

    def __call__(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """Result of each item: `good` and `bad`, each with sums and numbers of rows."""
        from lit_moss.evaluate.row_scores import score_rows

        results: list[dict[str, Any]] = [{} for _ in items]
        codes = self._encode(items)
        places: list[tuple[int, str, Rows, list[int]]] = []
        for number, item in enumerate(items):
            try:
                for side, rows in zip(("good", "bad"), self._rows_of(item, codes), strict=True):
                    places.append((number, side, rows, self._counted(rows)))
            except _CannotScore as error:
                results[number] = {FAILED: str(error)}
        places = [place for place in places if FAILED not in results[place[0]]]
        scores = score_rows(
            self.model.lm,
            [rows.rows[:-1] for _, _, rows, _ in places],
            [[(i, rows.rows[i]) for i in counted] for _, _, rows, counted in places],
            self._allowed,
        )
        for (number, side, rows, counted), score in zip(places, scores, strict=True):
            ending = [p for i, p in zip(counted, score.log_probs, strict=True) if i >= rows.ending]
            results[number][side] = {
                "whole": math.fsum(score.log_probs), "whole_rows": len(counted),
                "ending": math.fsum(ending), "ending_rows": len(ending),
            }  # fmt: skip
        return results

    @cached_property
    def _allowed(self) -> "dict[Any, Tensor] | None":
        import torch

        lm = self.model.lm
        if not (self.config.mask_other and lm.config.joint):
            return None
        is_text_V = torch.arange(lm.text_lm_head.out_features) < lm.format.text_vocab_size
        return {"text": is_text_V, "speech": ~is_text_V}

    # --- rows -----------------------------------------------------------------------------------------------

    def _counted(self, rows: Rows) -> list[int]:
        """Indices of the counted rows.

        Raises:
            _CannotScore: if the ending has none, or there are more rows than the backbone has positions.
        """
        form = self.model.lm.format
        out = {form.sosp_token_id} | ({form.eosp_row} if not self.config.count_eosp else set())
        counted = [i for i, row in enumerate(rows.rows) if i and row not in out]
        if not any(i >= rows.ending for i in counted):
            raise _CannotScore("no row of the ending can be scored")
        most = self.model.lm.config.max_context
        if most is not None and len(rows.rows) > most:
            raise _CannotScore(f"{len(rows.rows)} rows, but the backbone has positions for {most}")
        return counted

    def _rows_of(self, item: Item, codes: "_Codes") -> tuple[Rows, Rows]:
        """Rows of the true and the false continuation.

        Raises:
            _CannotScore: if audio or text is missing.
        """
        if item.made is not None:
            return item.made
        pair = item.pair
        if not pair.has(item.modalities):
            raise _CannotScore(f"the pair has not all of {item.modalities}")
        context, ending = item.modalities.split("-")
        form = self.model.lm.format
        if pair.prompt is None:
            wholes = [self._whole(part, ending, form, codes) for part in (pair.good, pair.bad)]
            # If one ending is a prefix of the other, each keeps one counted row.
            last = 1 if ending == "text" or self.config.count_eosp else 2
            start = max(1, min(common_prefix(*wholes), *(len(whole) - last for whole in wholes)))
            good, bad = (Rows(whole, start) for whole in wholes)
            return good, bad
        if context == ending == "speech":
            good, bad = (self._spoken(pair.prompt, part, form, codes) for part in (pair.good, pair.bad))
            return good, bad
        before = self._whole(pair.prompt, context, form, codes)
        after = [self._ending(pair.prompt, part, ending, form, codes) for part in (pair.good, pair.bad)]
        good, bad = (Rows([*before, *rows], len(before)) for rows in after)
        return good, bad

    def _whole(self, part: Part, modality: str, form: "RowFormat", codes: "_Codes") -> list[int]:
        if modality == "speech":
            return form.speech(self._plain(codes.of(part.audio)))
        return text_ids(self.model.text_tokenizer, form, part.text or "")

    def _ending(
        self, prompt: Part, part: Part, modality: str, form: "RowFormat", codes: "_Codes"
    ) -> list[int]:
        """Rows of an ending alone; a text includes the space that precedes it in running text."""
        if modality == "speech":
            return self._whole(part, modality, form, codes)
        text = part.text or ""
        text = space_between(prompt.text or "a", text) + text
        return text_ids(self.model.text_tokenizer, form, text)

    def _spoken(self, prompt: Part, part: Part, form: "RowFormat", codes: "_Codes") -> Rows:
        """Context and ending as one stretch of speech."""
        if self.config.join == "codes":
            before, after = codes.of(prompt.audio), codes.of(part.audio)
        else:
            joined, before_codes = codes.of_joined(prompt.audio, part.audio)
            before, after = joined[:before_codes], joined[before_codes:]
        before, whole = self._plain(before), self._plain([*before, *after])
        return Rows(form.speech(whole), 1 + len(before))

    def _plain(self, codes: Sequence[int]) -> list[int]:
        return without_repeats(codes) if self.config.deduplicate else list(codes)

    def _encode(self, items: Sequence[Item]) -> "_Codes":
        """Codes of all audio that the items need, encoded in one batch."""
        wanted: list[tuple[Path, ...]] = []
        for item in items:
            pair, (context, ending) = item.pair, item.modalities.split("-")
            if item.made is not None or not pair.has(item.modalities):
                continue
            sides = [part.audio for part in (pair.good, pair.bad) if ending == "speech" and part.audio]
            before = pair.prompt.audio if pair.prompt is not None and context == "speech" else None
            if before is not None and sides and self.config.join == "waves":
                wanted += [(before, side) for side in sides]
            else:
                wanted += [(side,) for side in sides] + ([(before,)] if before is not None else [])
        wanted = list(dict.fromkeys(wanted))
        if not wanted:
            return _Codes({})
        tokenizer = self.model.speech_tokenizer
        if tokenizer is None and is_backbone(self.config.model):
            raise UserError(
                f"{self.config.model} is a text backbone, which reads no codes, and the items have sound: "
                "give --modalities [text-text], or a model with speech"
            )
        if tokenizer is None:
            raise UserError(f"{self.config.model} has no speech tokenizer: give one by --codec")
        return _Codes.encoded(wanted, tokenizer)


class _CannotScore(Exception):  # noqa: N818
    """Why an item has no score."""


@dataclass(frozen=True)
class _Codes:
    """Codes of files, and of joined files.

    Args:
        known: Files, joined in order -> codes and the number of codes within the first file, or why there are
            none.
    """

    known: dict[tuple[Path, ...], "tuple[list[int], int] | str"]

    @classmethod
    def encoded(cls, wanted: Sequence[tuple[Path, ...]], tokenizer: Any) -> "_Codes":
        """Reads and encodes the files in one batch."""
        import torch

        from lit_moss.audio import io, rates

        known: dict[tuple[Path, ...], tuple[list[int], int] | str] = {}
        waves: dict[tuple[Path, ...], tuple[Tensor, int]] = {}
        for files in wanted:
            try:
                parts = [io.read(file, rates.TOKENIZER_RATE_HZ) for file in files]
                waves[files] = torch.cat(parts), len(parts[0])
            except io.UnreadableAudio as error:
                known[files] = str(error)
        codes = (
            tokenizer.encode([wave for wave, _ in waves.values()], rates.TOKENIZER_RATE_HZ) if waves else []
        )
        for (files, (_, first)), codes_N in zip(waves.items(), codes, strict=True):
            known[files] = codes_N.tolist(), first // rates.SAMPLES_PER_CODE
        return cls(known)

    def of(self, *files: Path | None) -> list[int]:
        """Codes of a file, or of several joined files."""
        return self._entry(*files)[0]

    def of_joined(self, first: Path | None, second: Path | None) -> tuple[list[int], int]:
        """Codes of two joined files, and the number of codes that end within the first."""
        return self._entry(first, second)

    def _entry(self, *files: Path | None) -> tuple[list[int], int]:
        entry = self.known[tuple(file for file in files if file is not None)]
        if isinstance(entry, str):
            raise _CannotScore(entry)
        return entry
