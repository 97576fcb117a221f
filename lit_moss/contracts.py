"""What LightningModules, data modules and callbacks expect of one another, as Protocols.

A module never asks which class its data is, but whether it offers what the module needs; the functions below
ask once, in one place, and say in one line what is missing.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

# Its isinstance looks attributes up without computing properties, unlike `typing`'s before Python 3.12.
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
    """What callbacks read of any training batch.

    Attributes:
        ids: Names of its items.
        audio_sec: Seconds of speech in it.
        skipped: `key<TAB>reason` of each item that could not be read.
    """

    ids: list[str]

    @property
    def audio_sec(self) -> float: ...

    @property
    def skipped(self) -> list[str]: ...

    def __len__(self) -> int: ...


@runtime_checkable
class OrderedData(Protocol):
    """A data module whose order is a function of the seed and the batch's number.

    Attributes:
        next_batch: Micro-batches consumed by all ranks together; part of the checkpoint.
        skipped: Key of each item that cannot be read -> reason.
        max_bad_share: Share of such items above which a run stops.
    """

    next_batch: int
    skipped: dict[str, str]
    max_bad_share: float

    @property
    def utterances(self) -> int:
        """Items of training and validation together."""
        ...

    def advance(self, batches: int) -> None:
        """Counts micro-batches as consumed; called after each training batch, with the number of ranks."""
        ...

    def fingerprints(self) -> dict[str, str]:
        """What the data is and in which order it comes, for a run's record and for a resume."""
        ...


@runtime_checkable
class SpeechData(OrderedData, Protocol):
    """Data of utterances with transcripts, for the speech tokenizer."""

    charset: Any

    def train_texts(self) -> list[str]:
        """Normalised transcripts of the training utterances."""
        ...

    def probe_loader(self, batches: int) -> "DataLoader":
        """The next training batches of this rank, without augmentation."""
        ...


class FrozenParts(Protocol):
    """Speech tokenizer and speaker encoder that a decoder's data come from.

    Attributes:
        tokenizer: The speech tokenizer.
        fingerprints: Of tokenizer and speaker encoder, by name.
    """

    tokenizer: "SpeechTokenizer"
    fingerprints: dict[str, str]

    @property
    def speaker_dim(self) -> int:
        """Values of a speaker vector; 0 without a speaker encoder."""
        ...


@runtime_checkable
class DecoderData(OrderedData, Protocol):
    """Codes with their mel, for the flow decoder.

    Attributes:
        speech_tokenizer: Name of the tokenizer whose codes these are.
        speaker: Name of the speaker encoder, or None.
        log_mel: Features of the tokenizer, None for those that it states.
    """

    speech_tokenizer: str
    speaker: str | None
    log_mel: str | None

    @property
    def frozen(self) -> FrozenParts:
        """Tokenizer and speaker encoder, opened."""
        ...

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean and deviation of the log-mel's bands (80,) and mean speaker vector (S,) of training data."""
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
    """Data that states fingerprints."""

    def fingerprints(self) -> dict[str, str]:
        """What the data is, for a run's record."""
        ...


@runtime_checkable
class RowData(Protocol):
    """Data whose items are rows: documents or prompts."""

    @property
    def format(self) -> "RowFormat": ...


@runtime_checkable
class PromptData(RowData, Protocol):
    """Prompts for the language model.

    Attributes:
        tokenizer: The text tokenizer that turns replies back into text.
    """

    tokenizer: Any


@runtime_checkable
class TokenData(OrderedData, RowData, Protocol):
    """Packed token documents, for the language model.

    Attributes:
        context: Rows of a sequence.
        left_out: Documents longer than the context, or without a target.
    """

    context: int
    left_out: int

    def cloze_items(self) -> list[Any]:
        """Held-out items for perplexity and cloze."""
        ...

    def targets_of(self, batches: range) -> int:
        """Targets of these micro-batches of the order, counted over all ranks."""
        ...


@runtime_checkable
class CodebookData(Protocol):
    """Documents whose speech tokenizer can be asked for its codebook."""

    def codebook(self) -> torch.Tensor:
        """Vectors of the codes, float32 (codes, width)."""
        ...


@runtime_checkable
class SpokenTextData(Protocol):
    """Documents that carry the text of their speech.

    Attributes:
        speech_text: Whether they do.
    """

    speech_text: bool

    def spoken_ids(self) -> torch.Tensor:
        """Text ids that occur in the text of the training's speech, sorted, int64 (ids,)."""
        ...

    def aligned_codes(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes, and the text id that each is aligned to: int64 (pairs,) both."""
        ...

    def text_tokenizer(self) -> Any:
        """The tokenizer of the text rows."""
        ...


@runtime_checkable
class ListeningData(Protocol):
    """Documents with held-out utterances for the model to transcribe.

    Attributes:
        asr_item_count: How many are asked for.
    """

    asr_item_count: int

    def asr_items(self) -> list[Any]:
        """The utterances, see `lit_moss.llm.listening`; [] where none are asked for."""
        ...

    def text_tokenizer(self) -> Any:
        """The tokenizer of the text rows."""
        ...


@runtime_checkable
class ReplyData(Protocol):
    """Documents that state the form of their spoken replies."""

    @property
    def reply_forms(self) -> "list[ReplyForm]":
        """Forms of the training's conversations, each once."""
        ...

    @property
    def trains_on_prompts(self) -> bool:
        """Whether the user's turns of some conversations are targets too."""
        ...


@runtime_checkable
class PartedModule(Protocol):
    """A LightningModule whose parts can be frozen by name."""

    def parts(self) -> Parts:
        """Part (trunk layers one by one) -> its named parameters."""
        ...


@runtime_checkable
class FreezingRule(Protocol):
    """A callback that decides what trains; pure functions of the step. Several rules intersect."""

    def trained(self, parts: Parts, step: int) -> set[str]:
        """Names of the parameters that may train at a step."""
        ...

    def ever_trained(self, parts: Parts) -> set[str]:
        """Names of the parameters that train at some step of the run."""
        ...


@runtime_checkable
class RateSchedule(Protocol):
    """A callback that sets learning rates; the first one of a run counts."""

    def rate(self, step: int, group: dict[str, Any]) -> float:
        """Rate of a parameter group at a step."""
        ...


@runtime_checkable
class ResumeSettings(Protocol):
    """A callback that gives a resumed run the settings of its configuration."""

    def apply_settings(self, trainer: Trainer) -> None:
        """Changes the optimizer's groups; a second call changes nothing."""
        ...


@runtime_checkable
class StoppingCallback(Protocol):
    """A callback that may end a run early.

    Attributes:
        pruned: Whether it has.
    """

    pruned: bool


@runtime_checkable
class LaterMetrics(Protocol):
    """A module with metrics that its first validations do not give yet.

    Attributes:
        later_metrics: Their names.
    """

    @property
    def later_metrics(self) -> list[str]: ...


_TOKEN_DATA = "InterleavedDataModule, SFTDataModule or another data module of token documents"
# Kind of data -> what a message calls it.
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
    """All callbacks of a trainer (an attribute that Lightning sets without declaring it)."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def waits_for_all_gradients(trainer: Trainer) -> bool:
    """Whether a step needs the gradient of each parameter that requires one, whatever the loss depends on.

    So with several ranks, and with DDP and DeepSpeed on one rank too: the next step then fails otherwise.
    """
    return trainer.world_size > 1 or isinstance(trainer.strategy, DDPStrategy)  # DeepSpeed's is one


def freezing_rules(trainer: Trainer) -> list[FreezingRule]:
    """Callbacks that decide what trains."""
    return [c for c in callbacks_of(trainer) if isinstance(c, FreezingRule)]


def rate_schedule(trainer: Trainer) -> RateSchedule | None:
    """The callback that sets learning rates; None if there is none."""
    return next((c for c in callbacks_of(trainer) if isinstance(c, RateSchedule)), None)


def ever_trained(trainer: Trainer, parts: Parts) -> set[str]:
    """Names of the parameters that the rules of all callbacks together let train at all."""
    names = all_names(parts)
    for rule in freezing_rules(trainer):
        names &= rule.ever_trained(parts)
    return names


def later_metrics(module: object) -> list[str]:
    """Metrics of a module that its first validations do not give yet."""
    return module.later_metrics if isinstance(module, LaterMetrics) else []


def all_names(parts: Parts) -> set[str]:
    """Names of all parameters."""
    return {name for named in parts.values() for name, _ in named}


def parts_of(module: object) -> Parts:
    """Parts of a module.

    Raises:
        UserError: if it has none.
    """
    if not isinstance(module, PartedModule):
        raise UserError(
            f"{type(module).__name__} has no parts to freeze: StagedFreezing and ReverseUnfreeze are for "
            "SplitLLM"
        )
    return module.parts()


def steps_done(trainer: Trainer) -> int:
    """Optimizer steps behind the weights: those of the run, and of the checkpoint that other verbs read."""
    if trainer.state.fn == TrainerFn.FITTING or trainer.ckpt_path is None:
        return trainer.global_step
    return max(0, step_of(Path(trainer.ckpt_path)))


def datamodule_of(trainer: Trainer) -> object | None:
    """The trainer's data module; None if it was given none (an attribute that Lightning does not declare)."""
    return trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]


def ordered_data(trainer: Trainer) -> OrderedData | None:
    """The data module, where it keeps an exact order; None where not."""
    data = datamodule_of(trainer)
    return data if isinstance(data, OrderedData) else None


def data_of(trainer: Trainer, kind: type[Data]) -> Data:
    """The data module, of the kind that a model needs.

    Args:
        trainer: Of the run.
        kind: A protocol of `_EXPECTED`.

    Raises:
        UserError: if it is of another kind.
    """
    data = datamodule_of(trainer)
    if not isinstance(data, kind):
        raise UserError(f"data is {type(data).__name__}, this model expects {_EXPECTED[kind]}")
    return data


def reply_forms(trainer: Trainer) -> "list[ReplyForm]":
    """Forms of spoken replies in the training data, each once; none where it does not state them."""
    data = datamodule_of(trainer)
    return data.reply_forms if isinstance(data, ReplyData) else []


def trains_on_prompts(trainer: Trainer) -> bool:
    """Whether conversations in the training data have the user's turns as targets too."""
    data = datamodule_of(trainer)
    return isinstance(data, ReplyData) and data.trains_on_prompts


def codebook_of(trainer: Trainer) -> torch.Tensor:
    """Codebook of the speech tokenizer that made the documents, float32 (codes, width).

    Raises:
        UserError: if the data has none.
    """
    return data_of(trainer, CodebookData).codebook()


def spoken_text_data(trainer: Trainer, option: str) -> SpokenTextData:
    """The data module, whose documents carry the text of their speech.

    Args:
        trainer: Of the run.
        option: What needs the text, for the message.

    Raises:
        UserError: if they do not.
    """
    data = data_of(trainer, SpokenTextData)
    if not data.speech_text:
        raise UserError(
            f"{option} needs the text of the speech, which these documents do not carry: set "
            "data.init_args.speech_text true (prepare: speech_text: true)"
        )
    return data


def fingerprints_of(trainer: Trainer) -> dict[str, str]:
    """Fingerprints of the data; {} where it has none."""
    data = datamodule_of(trainer)
    return data.fingerprints() if isinstance(data, FingerprintedData) else {}


def total_parameters(named: Iterable[tuple[str, torch.nn.Parameter]]) -> int:
    """Parameters in all; ZeRO-3 leaves an empty tensor in a parameter's place and its count beside it."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for _, p in named)
