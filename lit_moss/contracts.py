"""Interfaces (protocols) between LightningModules, data modules and callbacks.

A module does not depend on the class of its data, but on what the data offers. The functions below check this
in one place and report in one line what is missing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

# Its isinstance looks up attributes without computing properties, unlike `typing`'s before Python 3.12.
from typing_extensions import Protocol, runtime_checkable

from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import step_of

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
        """Mean and deviation of log-mel bands, (80,) each, and mean speaker vector (S,), of training data."""
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
class PartedModule(Protocol):
    """A LightningModule whose parts can be frozen by name."""

    def parts(self) -> Parts:
        """Part -> its named parameters; each trunk layer is a part."""
        ...


@runtime_checkable
class FreezingRule(Protocol):
    """A callback whose pure functions of the step decide what is trained; several are intersected."""

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


_TOKEN_DATA = "InterleavedDataModule, SFTDataModule or another data module of token documents"
# Kind of data -> its name in error messages.
_EXPECTED: dict[type, str] = {
    SpeechData: "SpeechDataModule",
    DecoderData: "DecoderDataModule",
    VocoderData: "VocoderDataModule",
    PromptData: "PromptDataModule",
    RowData: _TOKEN_DATA,
    CodebookData: _TOKEN_DATA,
    SpokenTextData: _TOKEN_DATA,
}
Data = TypeVar("Data")


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """All callbacks of a trainer (Lightning sets this attribute without declaring it)."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def waits_for_all_gradients(trainer: Trainer) -> bool:
    """Whether a step needs a gradient of every trainable parameter, whatever the loss depends on.

    True with several ranks, and with DDP and DeepSpeed also on a single rank: the next step would fail
    otherwise.
    """
    return trainer.world_size > 1 or isinstance(trainer.strategy, DDPStrategy)  # includes DeepSpeed


def freezing_rules(trainer: Trainer) -> list[FreezingRule]:
    """The callbacks that decide what is trained."""
    return [c for c in callbacks_of(trainer) if isinstance(c, FreezingRule)]


def rate_schedule(trainer: Trainer) -> RateSchedule | None:
    """The callback that sets learning rates, or None."""
    return next((c for c in callbacks_of(trainer) if isinstance(c, RateSchedule)), None)


def ever_trained(trainer: Trainer, parts: Parts) -> set[str]:
    """Names of the parameters that are trained at some step, given the rules of all callbacks."""
    names = all_names(parts)
    for rule in freezing_rules(trainer):
        names &= rule.ever_trained(parts)
    return names


def later_metrics(module: object) -> list[str]:
    """Names of a module's metrics that its first validations do not log yet."""
    return module.later_metrics if isinstance(module, LaterMetrics) else []


def all_names(parts: Parts) -> set[str]:
    """Names of all parameters."""
    return {name for named in parts.values() for name, _ in named}


def parts_of(module: object) -> Parts:
    """Parts of a module.

    Raises:
        UserError: if the module has no parts.
    """
    if not isinstance(module, PartedModule):
        raise UserError(
            f"{type(module).__name__} has no parts to freeze: StagedFreezing and ReverseUnfreeze are for "
            "SplitLLM"
        )
    return module.parts()


def steps_done(trainer: Trainer) -> int:
    """Number of optimizer steps the current weights were trained for."""
    if trainer.state.fn == TrainerFn.FITTING or trainer.ckpt_path is None:
        return trainer.global_step
    return max(0, step_of(Path(trainer.ckpt_path)))


def datamodule_of(trainer: Trainer) -> object | None:
    """The trainer's data module, or None (Lightning does not declare this attribute)."""
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


def ordered_data(trainer: Trainer) -> OrderedData | None:
    """The data module if it has an exact order, otherwise None."""
    data = datamodule_of(trainer)
    return data if isinstance(data, OrderedData) else None


def data_of(trainer: Trainer, kind: type[Data]) -> Data:
    """The data module, checked to be of the kind that a model needs.

    Args:
        trainer: The run's trainer.
        kind: A protocol listed in `_EXPECTED`.

    Raises:
        UserError: if the data module is of another kind.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, kind):
        raise UserError(f"data is {type(data).__name__}, this model expects {_EXPECTED[kind]}")
    return data


def reply_forms(trainer: Trainer) -> "list[ReplyForm]":
    """Distinct forms of spoken replies in the training data; empty if the data does not state them."""
    data = datamodule_of(trainer)
    return data.reply_forms if isinstance(data, ReplyData) else []


def trains_on_prompts(trainer: Trainer) -> bool:
    """Whether the user's turns are also targets in conversations of the training data."""
    data = datamodule_of(trainer)
    return isinstance(data, ReplyData) and data.trains_on_prompts


def codebook_of(trainer: Trainer) -> torch.Tensor:
    """Codebook of the speech tokenizer that made the documents, float32 (codes, width).

    Raises:
        UserError: if the data has no codebook.
    """
    return data_of(trainer, CodebookData).codebook()


def spoken_text_data(trainer: Trainer, option: str) -> SpokenTextData:
    """The data module, checked to contain the text of its speech.

    Args:
        trainer: The run's trainer.
        option: Option that needs the text, for the error message.

    Raises:
        UserError: if it does not contain the text.
    """
    data = data_of(trainer, SpokenTextData)
    if not data.speech_text:
        raise UserError(
            f"{option} needs the text of the speech, which these documents do not carry: set "
            "data.init_args.speech_text true (prepare: speech_text: true)"
        )
    return data


def fingerprints_of(trainer: Trainer) -> dict[str, str]:
    """Fingerprints of the data; {} if it has none."""
    data = datamodule_of(trainer)
    return data.fingerprints() if isinstance(data, FingerprintedData) else {}


def total_parameters(named: Iterable[tuple[str, torch.nn.Parameter]]) -> int:
    """Number of parameters; with ZeRO-3, from an attribute, because parameters are empty tensors."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for _, p in named)
