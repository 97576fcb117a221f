"""Token data modules by kind: interleaved, speech only, transcripts, text only, conversations, and their
mixture."""

import math
from typing import Any, Literal

from lit_moss.data.conversation import PAIRS
from lit_moss.data.packed_documents import PackedDocuments
from lit_moss.data.token_data import TokenDataModule
from lit_moss.data.word_spans import WordSpans
from lit_moss.errors import UserError
from lit_moss.llm.replies import ReplyForm


class InterleavedDataModule(TokenDataModule):
    """Alternating chunks of text and speech (arXiv:2510.00499, section 3.1.1).

    Args:
        speech_share: Probability that a chunk is speech.
        alternate: Whether neighbouring chunks always differ in modality.
        document_sec: Longest document in seconds of speech.
        document_seed: Seed of the choice of modalities. Independent of `seed`, so that runs with different
            seeds see the same documents, above all in validation.
        spans: Text and speech by turns within utterances, in spans of so many words; needs the times of
            words (`prepare align`). None: chunks of 3 to 6 s, or those of the manifest.
        **kwargs: Arguments of `TokenDataModule`.
    """

    kind = "interleaved"

    def __init__(
        self,
        speech_share: float = 0.5,
        alternate: bool = False,
        document_sec: float = 60.0,
        document_seed: int = 1,
        spans: WordSpans | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= speech_share <= 1:
            raise UserError(f"data.speech_share is {speech_share}, expected 0 to 1")
        self.speech_share, self.alternate = speech_share, alternate
        self.document_sec, self.document_seed = document_sec, document_seed
        self.spans = spans

    def options(self) -> dict[str, Any]:
        return {
            "speech_share": self.speech_share,
            "alternate": self.alternate,
            "document_sec": self.document_sec,
            "seed": self.document_seed,
        } | ({} if self.spans is None else {"spans": self.spans.record()})


class UnsupervisedDataModule(TokenDataModule):
    """Speech only: documents of one or more utterances without text.

    Args:
        document_sec: Longest document in seconds of speech.
        **kwargs: Arguments of `TokenDataModule`.
    """

    kind = "unsupervised"

    def __init__(self, document_sec: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.document_sec = document_sec

    def options(self) -> dict[str, Any]:
        return {"document_sec": self.document_sec}


class TranscriptDataModule(TokenDataModule):
    """Utterances as `speech, then its text` (asr) and `text, then its speech` (tts), one document each.

    Args:
        asr: Share of the utterances that are speech, then text.
        tts: Share of the utterances that are text, then speech. Shares that sum to 1 give each utterance one
            shape, 1 and 1 both.
        tts_prompt: Text before the text of tts documents. `asr_prompt` stands before the speech of the
            others. Without them a document's first row says which it is; beside interleaved documents,
            where the next text follows the speech, an `asr_prompt` tells them apart.
        train_on: Whether all rows are targets, or those after what is given.
        document_seed: Seed of the choice of shapes.
        min_fill: See `TokenDataModule`. By default no document is cut.
        **kwargs: Arguments of `TokenDataModule`.
    """

    kind = "transcripts"

    def __init__(
        self,
        asr: float = 1.0,
        tts: float = 1.0,
        tts_prompt: str = "",
        train_on: Literal["answer", "all"] = "all",
        document_seed: int = 1,
        min_fill: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(min_fill=min_fill, **kwargs)
        if not (0 <= asr <= 1 and 0 <= tts <= 1 and asr + tts > 0):
            raise UserError(f"data.asr is {asr} and tts {tts}, expected 0 to 1 each, not both 0")
        self.asr, self.tts, self.tts_prompt = asr, tts, tts_prompt
        self.train_on, self.document_seed = train_on, document_seed

    def options(self) -> dict[str, Any]:
        return {
            "asr": self.asr,
            "tts": self.tts,
            "asr_prompt": self.asr_prompt,
            "tts_prompt": self.tts_prompt,
            "train_on": self.train_on,
            "seed": self.document_seed,
        }


class TextDataModule(TokenDataModule):
    """Text only, so that the model keeps what the backbone knows."""

    kind = "text"


class SFTDataModule(TokenDataModule):
    """Conversations in the four modality pairs.

    Args:
        pairs: Which pairs, the user's modality first: speech-speech, speech-text, text-speech, text-text.
        train_on: Whether the assistant's turns are targets, or all turns.
        min_fill: See `TokenDataModule`. By default no conversation is cut: an answer without its question
            teaches little.
        reply_form: Form of spoken replies: `direct` is speech alone (the paper), `guided` the text first,
            then the speech, `interleaved` both in turns; see `lit_moss.llm.replies`.
        interleave_text: Text ids of a turn of interleaved replies.
        interleave_codes: Codes of a turn of interleaved replies.
        **kwargs: Arguments of `TokenDataModule`.
    """

    kind = "sft"

    def __init__(
        self,
        pairs: list[str] | None = None,
        train_on: Literal["assistant", "all"] = "assistant",
        min_fill: float = 0.0,
        reply_form: Literal["direct", "guided", "interleaved"] = "direct",
        interleave_text: int = 13,
        interleave_codes: int = 26,
        **kwargs: Any,
    ) -> None:
        super().__init__(min_fill=min_fill, **kwargs)
        self.pairs, self.train_on = list(pairs or PAIRS), train_on
        self.form = ReplyForm(reply_form, interleave_text, interleave_codes)
        wrong = sorted(set(self.pairs) - set(PAIRS))
        if wrong:
            raise UserError(f"data.pairs names {wrong}, expected some of {', '.join(PAIRS)}")

    def options(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "train_on": self.train_on} | self.form.options()


class MixtureDataModule(TokenDataModule):
    """Several data modules in one run, by epochs of their tokens; stage 2 takes speech 1.0 and text 0.1.

    Context, batch sizes, seed, first batch, workers, max_bad_share, backbone, speech tokenizer, log_mel,
    speech_text, short_first_batches and asr_items are the mixture's, whatever a part says. Sources, kind
    options and `min_fill` are each part's own; `asr_prompt` is that of the first part that has one, unless
    the mixture says another.

    Args:
        parts: The data modules.
        epochs: How often a round contains each part; 1.0 is all of it once.
        **kwargs: Arguments of `TokenDataModule` without `train` and `validation`, which are the parts'.
    """

    kind = "mixture"

    def __init__(
        self, parts: list[TokenDataModule], epochs: list[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if self.train or self.validation:
            raise UserError("data.train and data.validation of a mixture belong into its parts (data.parts)")
        self.parts = list(parts)
        self.part_epochs = list(epochs or [1.0] * len(self.parts))
        possible = all(0 < epochs < math.inf for epochs in self.part_epochs)
        if not self.parts or len(self.parts) != len(self.part_epochs) or not possible:
            raise UserError(
                f"data.epochs is {self.part_epochs} for {len(self.parts)} parts, expected one above 0 each"
            )
        if any(isinstance(part, MixtureDataModule) for part in self.parts):
            raise UserError("data.parts holds a mixture: name its parts and epochs in the outer one")
        self.asr_prompt = self.asr_prompt or next((p.asr_prompt for p in self.parts if p.asr_prompt), "")
        if kwargs.get("heldout") is None:
            self.heldout = list(dict.fromkeys(e for part in self.parts for e in part.heldout))
        for part in self.parts:
            part.connect(self.context, self.max_bad_share, self.backbone, self.speech_tokenizer, self.log_mel)
            part.speech_text = self.speech_text
            part.heldout = []  # the mixture makes the held-out items of all parts together

    def prepare_data(self) -> None:
        for part in self.parts:
            part.prepare_data()
        self.cloze_items()

    def load(self) -> None:
        self.sources, self.epochs = [], []
        for part, epochs in zip(self.parts, self.part_epochs, strict=True):
            part.load()
            self.sources += part.sources
            self.epochs += [epochs] * len(part.sources)

    def load_validation(self) -> list[PackedDocuments]:
        return [documents for part in self.parts for documents in part.load_validation()]
