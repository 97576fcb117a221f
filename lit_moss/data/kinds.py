"""Token data modules by kind: interleaved, speech alone, text alone, conversations, and their mixture."""

from typing import Any, Literal

from lit_moss.data.conversation import PAIRS
from lit_moss.data.token_data import Source, TokenDataModule
from lit_moss.errors import UserError


class InterleavedDataModule(TokenDataModule):
    """Text and speech by turns, chunk by chunk (paper, section on interleaved data).

    Args:
        speech_share: Probability that a chunk is speech.
        alternate: Never two neighbours of the same modality.
        document_sec: Longest document in seconds of speech.
        document_seed: Seed of the choice of modalities. Apart from `seed`, so that runs of several seeds see
            the same documents, above all in validation.
        **kwargs: As of `TokenDataModule`.
    """

    kind = "interleaved"

    def __init__(
        self,
        speech_share: float = 0.5,
        alternate: bool = False,
        document_sec: float = 60.0,
        document_seed: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= speech_share <= 1:
            raise UserError(f"data.speech_share is {speech_share}, expected 0 to 1")
        self.speech_share, self.alternate = speech_share, alternate
        self.document_sec, self.document_seed = document_sec, document_seed

    def options(self) -> dict[str, Any]:
        return {
            "speech_share": self.speech_share,
            "alternate": self.alternate,
            "document_sec": self.document_sec,
            "seed": self.document_seed,
        }


class UnsupervisedDataModule(TokenDataModule):
    """Speech alone: documents of one or more utterances without text.

    Args:
        document_sec: Longest document in seconds of speech.
        **kwargs: As of `TokenDataModule`.
    """

    kind = "unsupervised"

    def __init__(self, document_sec: float = 60.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.document_sec = document_sec

    def options(self) -> dict[str, Any]:
        return {"document_sec": self.document_sec}


class TextDataModule(TokenDataModule):
    """Text alone, to keep what the backbone knows."""

    kind = "text"


class SFTDataModule(TokenDataModule):
    """Conversations in the four modality pairs.

    Args:
        pairs: Which of them, user's modality and reply's: speech-speech, speech-text, text-speech, text-text.
        train_on: Loss on the assistant's turns only, or on all.
        min_fill: As of `TokenDataModule`. By default no conversation is cut: an answer without its question
            teaches little.
        **kwargs: As of `TokenDataModule`.
    """

    kind = "sft"

    def __init__(
        self,
        pairs: list[str] | None = None,
        train_on: Literal["assistant", "all"] = "assistant",
        min_fill: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(min_fill=min_fill, **kwargs)
        self.pairs, self.train_on = list(pairs or PAIRS), train_on
        wrong = sorted(set(self.pairs) - set(PAIRS))
        if wrong:
            raise UserError(f"data.pairs names {wrong}, expected some of {', '.join(PAIRS)}")

    def options(self) -> dict[str, Any]:
        return {"pairs": self.pairs, "train_on": self.train_on}


class MixtureDataModule(TokenDataModule):
    """Several data modules in one run, by epochs of their tokens: stage 2's speech 1.0 and text 0.1.

    Context, batch sizes, seed, first batch, workers, backbone, speech tokenizer and log_mel are the mixture's own, not a
    part's. Only `min_fill` is each part's.

    Args:
        parts: The data modules.
        epochs: How much of each a round holds; 1.0 is all of it once.
        **kwargs: As of `TokenDataModule`, without `train`; `validation` is the parts'.
    """

    kind = "mixture"

    def __init__(
        self, parts: list[TokenDataModule], epochs: list[float] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if self.train or self.validation:
            raise UserError("data.train and data.validation of a mixture stand in its parts")
        self.parts = list(parts)
        self.part_epochs = list(epochs or [1.0] * len(self.parts))
        if not self.parts or len(self.parts) != len(self.part_epochs) or min(self.part_epochs) <= 0:
            raise UserError(
                f"data.epochs is {self.part_epochs} for {len(self.parts)} parts, expected one above 0 each"
            )
        if any(isinstance(part, MixtureDataModule) for part in self.parts):
            raise UserError("data.parts holds a mixture: name its parts and epochs in the outer one")
        for part in self.parts:
            part.context, part.max_bad_share = self.context, self.max_bad_share
            part.backbone, part.speech_tokenizer, part.log_mel = (
                self.backbone,
                self.speech_tokenizer,
                self.log_mel,
            )
        self.heldout = self.heldout or [e for part in self.parts for e in part.heldout]

    def prepare_data(self) -> None:
        for part in self.parts:
            part.heldout = []
            part.prepare_data()
        self.cloze_items()

    def load(self) -> None:
        self.sources, self.epochs = [], []
        for part, epochs in zip(self.parts, self.part_epochs, strict=True):
            part.load()
            self.sources += part.sources
            self.epochs += [epochs] * len(part.sources)

    def setup(self, stage: str) -> None:
        if not self._validation:
            for part in self.parts:
                self._validation += [
                    Source(part.documents(e, "validation"), self.context, self.max_bad_share)
                    for e in part.validation
                ]
        super().setup(stage)
