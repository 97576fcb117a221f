"""Interfaces (protocols) between LightningModules, data modules and callbacks.

A module does not depend on the class of its data, but on what the data offers; `lit_moss.trainer_access`
checks this in one place.
"""

from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import Trainer

# Its isinstance looks up attributes without computing properties, unlike `typing`'s before Python 3.12.
from typing_extensions import Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

    from lit_moss.codec import SpeechTokenizer
    from lit_moss.llm.replies import ReplyForm
    from lit_moss.llm.rows import RowFormat

Parts = dict[str, list[tuple[str, torch.nn.Parameter]]]  # part of a model -> its named parameters


@runtime_checkable
class Batch(Protocol):
    """What callbacks read of a training batch.

    Attributes:
        ids: Names of the items.
        audio_sec: Seconds of speech in the batch.
        skipped: `key<TAB>reason` of each unreadable item.
    """

    ids: list[str]

    @property
    def audio_sec(self) -> float: ...

    @property
    def skipped(self) -> list[str]: ...

    def __len__(self) -> int: ...


@runtime_checkable
class OrderedData(Protocol):
    """A data module whose order is a function of the seed and the batch number.

    Attributes:
        next_batch: Number of micro-batches consumed by all ranks together; stored in checkpoints.
        skipped: Key of each unreadable item -> reason.
        max_bad_share: Fraction of unreadable items above which a run stops.
    """

    next_batch: int
    skipped: dict[str, str]
    max_bad_share: float

    @property
    def utterances(self) -> int:
        """Number of items of training and validation."""
        ...

    def advance(self, batches: int) -> None:
        """Counts micro-batches as consumed; called after each training batch with the number of ranks."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data and its order, recorded with a run and compared on resume."""
        ...


@runtime_checkable
class SpeechData(OrderedData, Protocol):
    """Data of utterances with transcripts, for the speech tokenizer."""

    charset: Any

    def train_texts(self) -> list[str]:
        """Normalised transcripts of the training utterances."""
        ...

    def probe_loader(self, batches: int) -> "DataLoader":
        """The next `batches` training batches of this rank, without augmentation."""
        ...


class FrozenParts(Protocol):
    """Speech tokenizer and speaker encoder that produce a decoder's data.

    Attributes:
        tokenizer: The speech tokenizer.
        fingerprints: Fingerprints of tokenizer and speaker encoder, by name.
    """

    tokenizer: "SpeechTokenizer"
    fingerprints: dict[str, str]

    @property
    def speaker_dim(self) -> int:
        """Size of a speaker vector; 0 without a speaker encoder."""
        ...


@runtime_checkable
class DecoderData(OrderedData, Protocol):
    """Codes with their mels, for the flow decoder.

    Attributes:
        speech_tokenizer: Name of the tokenizer that produced the codes.
        speaker: Name of the speaker encoder, or None.
        log_mel: Features of the tokenizer; None: as stated by the tokenizer.
    """

    speech_tokenizer: str
    speaker: str | None
    log_mel: str | None

    @property
    def frozen(self) -> FrozenParts:
        """The opened tokenizer and speaker encoder."""
        ...

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the log-mel bands, (80,) each, and mean speaker vector (S,), of
        training data."""
        ...


@runtime_checkable
class VocoderData(OrderedData, Protocol):
    """Waves with their mels, for the vocoder.

    Attributes:
        crop_sec: Length of a training crop in seconds.
    """

    crop_sec: float


@runtime_checkable
class FingerprintedData(Protocol):
    """Data with fingerprints."""

    def fingerprints(self) -> dict[str, str]:
        """Fingerprints of the data, recorded with a run."""
        ...


@runtime_checkable
class RowData(Protocol):
    """Data whose items consist of rows: documents or prompts."""

    @property
    def format(self) -> "RowFormat": ...


@runtime_checkable
class PromptData(RowData, Protocol):
    """Prompts for the language model.

    Attributes:
        tokenizer: Text tokenizer that decodes replies.
    """

    tokenizer: Any


@runtime_checkable
class TokenData(OrderedData, RowData, Protocol):
    """Packed token documents, for the language model.

    Attributes:
        context: Number of rows of a sequence.
        left_out: Number of documents longer than the context, or without a target.
    """

    context: int
    left_out: int

    def cloze_items(self) -> list[Any]:
        """Held-out items for perplexity and cloze."""
        ...

    def targets_of(self, batches: range) -> int:
        """Number of targets in these micro-batches of the order, over all ranks."""
        ...


@runtime_checkable
class CodebookData(Protocol):
    """Documents whose speech tokenizer can provide its codebook."""

    def codebook(self) -> torch.Tensor:
        """Codebook of the speech tokenizer, float32 (codes, width)."""
        ...


@runtime_checkable
class SpokenTextData(Protocol):
    """Documents that contain the text of their speech.

    Attributes:
        speech_text: Whether the documents contain it.
    """

    speech_text: bool

    def spoken_ids(self) -> torch.Tensor:
        """Text ids that occur in the text of the training speech, sorted, int64 (ids,)."""
        ...

    def aligned_codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes and the text id that each is aligned to, int64 (pairs,) each."""
        ...

    def text_tokenizer(self) -> Any:
        """The tokenizer of the text rows."""
        ...


@runtime_checkable
class ListeningData(Protocol):
    """Documents with held-out utterances for the model to transcribe.

    Attributes:
        asr_item_count: Number of utterances requested.
    """

    asr_item_count: int

    def asr_items(self) -> list[Any]:
        """The utterances, see `lit_moss.llm.listening`; [] if none are requested."""
        ...

    def text_tokenizer(self) -> Any:
        """The tokenizer of the text rows."""
        ...


@runtime_checkable
class ReplyData(Protocol):
    """Documents that state the form of their spoken replies."""

    @property
    def reply_forms(self) -> "list[ReplyForm]":
        """Forms of spoken replies in the training conversations, without duplicates."""
        ...

    @property
    def trains_on_prompts(self) -> bool:
        """Whether the user's turns are also targets in some of the conversations."""
        ...


@runtime_checkable
class DocumentData(Protocol):
    """Data of token documents, which are made by its options or read from folders.

    Attributes:
        given: Names of the arguments that the user has set.
    """

    given: frozenset[str]

    def stated_options(self) -> dict[str, Any]:
        """Arguments whose value is not true of the documents -> the value that is, None if there is no
        single one."""
        ...


@runtime_checkable
class PartedModule(Protocol):
    """A LightningModule whose parts can be frozen by name."""

    def parts(self) -> Parts:
        """Part -> its named parameters; each trunk layer is a part."""
        ...


@runtime_checkable
class FreezingRule(Protocol):
    """A callback that decides what is trained, by pure functions of the step. Several rules are
    intersected."""

    def trained(self, parts: Parts, step: int) -> set[str]:
        """Names of the parameters that may be trained at a step."""
        ...

    def ever_trained(self, parts: Parts) -> set[str]:
        """Names of the parameters that are trained at some step of the run."""
        ...


@runtime_checkable
class RateSchedule(Protocol):
    """A callback that sets learning rates; if there are several, the first one is used."""

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Learning rate of a parameter group at a step."""
        ...


@runtime_checkable
class ResumeSettings(Protocol):
    """A callback that applies the settings of the configuration to a resumed run."""

    def apply_settings(self, trainer: Trainer) -> None:
        """Changes the optimizer's parameter groups; calling it again has no effect."""
        ...


@runtime_checkable
class StoppingCallback(Protocol):
    """A callback that may end a run early.

    Attributes:
        pruned: Whether it has ended the run.
    """

    pruned: bool


@runtime_checkable
class LaterMetrics(Protocol):
    """A module with metrics that its first validations do not log yet.

    Attributes:
        later_metrics: Names of these metrics.
    """

    @property
    def later_metrics(self) -> list[str]: ...
