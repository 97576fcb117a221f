"""Token data modules: interleaved, speech only, transcripts, text only, conversations; and mixtures."""

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
        alternate: Alternate the modalities of consecutive chunks, instead of choosing each at random.
        document_sec: Maximum length of a document in seconds of speech.
        document_seed: Seed of the modalities. Independent of `seed`, so that runs with different seeds see
            the same documents, in particular in validation.
        spans: Alternate text and speech within utterances, in spans of a few words; needs word times
            (`prepare align`). None: chunks of 3 to 6 s, or the chunks of the manifest.
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
        document_sec: Maximum length of a document in seconds of speech.
        **kwargs: Arguments of `TokenDataModule`.
    """

    kind = "unsupervised"

    def __init__(self, document_sec: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.document_sec = document_sec

    def options(self) -> dict[str, Any]:
        return {"document_sec": self.document_sec}


class TranscriptDataModule(TokenDataModule):
    """Documents of one utterance each: `speech, then its text` (asr) or `text, then its speech` (tts).

    Args:
        asr: Fraction of the utterances that become speech, then text.
        tts: Fraction of the utterances that become text, then speech. If both fractions add up to 1, each
            utterance is used once; with 1 and 1 it is used in both ways.
        tts_prompt: Text before the text of tts documents; `asr_prompt` is the text before the speech of asr
            documents. Without prompts the first row of a document shows which one it is. Next to interleaved
            documents, where the following text comes after the speech, an `asr_prompt` distinguishes the two.
        train_on: `all`: all rows are targets; `answer`: only those after the given text or speech.
        document_seed: Seed of the choice between asr and tts.
        min_fill: Minimum fill rate, see `TokenDataModule`. By default no document is cut.
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
    """Text only, so that the model retains the backbone's knowledge."""

    kind = "text"


class SFTDataModule(TokenDataModule):
    """Conversations in the four modality pairs.

    Args:
        pairs: Modality pairs, the user's modality first: speech-speech, speech-text, text-speech, text-text.
        train_on: `assistant`: only the assistant's turns are targets; `all`: all turns.
        min_fill: Minimum fill rate, see `TokenDataModule`. By default no conversation is cut: an answer
            without its question teaches little.
        reply_form: Form of spoken replies: `direct`, speech alone (the paper); `guided`, the text, then the
            speech; `interleaved`, alternating pieces of both; see `lit_moss.llm.replies`.
        interleave_text: Text ids per turn of interleaved replies.
        interleave_codes: Codes per turn of interleaved replies.
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
    """Several data modules in one run, mixed by epochs of their tokens; stage 2 uses speech 1.0 and text 0.1.

    Context, batch sizes, seed, first batch, workers, max_bad_share, max_left_out_share, backbone, speech
    tokenizer, log_mel, speech_text, short_first_batches and asr_items are those of the mixture and override
    those of the parts.
    Sources, options of the kind and `min_fill` are set per part. `asr_prompt` is that of the first part that
    has one, unless it is set for the mixture.

    Args:
        parts: The data modules.
        epochs: Number of times a round contains each part, e.g. [1.0, 0.1]; 1.0 is all of it once.
        **kwargs: Arguments of `TokenDataModule`, except `train` and `validation`, which the parts have.
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
            part.speech_text, part.max_left_out_share = self.speech_text, self.max_left_out_share
            part.heldout = []  # the mixture makes the held-out items of all parts

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
