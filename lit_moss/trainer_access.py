"""What modules and callbacks read from a trainer: its data module, its callbacks and its strategy.

Each function checks what it finds and reports in one line what is missing. The protocols are those of
`lit_moss.contracts`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn

from lit_moss.contracts import (
    CodebookData,
    DecoderData,
    FingerprintedData,
    FreezingRule,
    LaterMetrics,
    OrderedData,
    PartedModule,
    Parts,
    PromptData,
    RateSchedule,
    ReplyData,
    RowData,
    SpeechData,
    SpokenTextData,
    VocoderData,
)
from lit_moss.errors import UserError
from lit_moss.runs.checkpoints import step_of

if TYPE_CHECKING:
    from lit_moss.llm.replies import ReplyForm

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
    """Forms of spoken replies in the training data, without duplicates; empty if the data does not state
    them."""
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
    """Number of parameters. ZeRO-3 replaces a parameter by an empty tensor and stores its count as an
    attribute."""
    return sum(int(getattr(p, "ds_numel", p.numel())) for _, p in named)


def is_kind_of(strategy: Any, *words: str) -> bool:
    """Whether the class name of a strategy, or of one of its base classes, contains one of these words.

    Names are compared because DeepSpeed's classes cannot be imported if it is not installed.
    """
    names = " ".join(kind.__name__ for kind in type(strategy).__mro__)
    return any(word in names for word in words)


def is_deepspeed(strategy: Any) -> bool:
    """Whether a strategy is DeepSpeed's."""
    return is_kind_of(strategy, "DeepSpeed")
