"""Documents, packing, order, batches, and the LightningDataModules.

Names are imported on first use: token data needs transformers, which the speech tokenizer does not need, and
packing and order need neither transformers nor Lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_moss.contracts import (
        Batch,
        CodebookData,
        OrderedData,
        SpeechData,
        SpokenTextData,
        TokenData,
    )
    from lit_moss.data.batches import DecoderBatch, SpeechBatch, TokenBatch, VocoderBatch
    from lit_moss.data.decoder_data import DecoderDataModule
    from lit_moss.data.kinds import (
        InterleavedDataModule,
        MixtureDataModule,
        SFTDataModule,
        TextDataModule,
        TranscriptDataModule,
        UnsupervisedDataModule,
    )
    from lit_moss.data.ordered import OrderedDataModule
    from lit_moss.data.prompts import PromptDataModule
    from lit_moss.data.speech_data import SpeechDataModule
    from lit_moss.data.token_data import TokenDataModule
    from lit_moss.data.vocoder_data import VocoderDataModule

    # The protocols that modules and callbacks expect of data and batches, verified by the type checker.
    _batches: tuple[type[Batch], ...] = (DecoderBatch, SpeechBatch, TokenBatch, VocoderBatch)
    _ordered: tuple[type[OrderedData], ...] = (
        SpeechDataModule,
        DecoderDataModule,
        MixtureDataModule,
        VocoderDataModule,
    )
    _speech: type[SpeechData] = SpeechDataModule
    _codebooks: tuple[type[CodebookData], ...] = (InterleavedDataModule, MixtureDataModule)
    _spoken: tuple[type[SpokenTextData], ...] = (InterleavedDataModule, MixtureDataModule)
    _tokens: tuple[type[TokenData], ...] = (InterleavedDataModule, MixtureDataModule)

__all__ = [
    "DecoderBatch",
    "DecoderDataModule",
    "InterleavedDataModule",
    "MixtureDataModule",
    "OrderedDataModule",
    "PromptDataModule",
    "SFTDataModule",
    "SpeechBatch",
    "SpeechDataModule",
    "TextDataModule",
    "TokenBatch",
    "TokenDataModule",
    "TranscriptDataModule",
    "UnsupervisedDataModule",
    "VocoderBatch",
    "VocoderDataModule",
]

_MODULES = {
    "batches": ("DecoderBatch", "SpeechBatch", "TokenBatch", "VocoderBatch"),
    "decoder_data": ("DecoderDataModule",),
    "kinds": (
        "InterleavedDataModule",
        "MixtureDataModule",
        "SFTDataModule",
        "TextDataModule",
        "TranscriptDataModule",
        "UnsupervisedDataModule",
    ),
    "ordered": ("OrderedDataModule",),
    "prompts": ("PromptDataModule",),
    "speech_data": ("SpeechDataModule",),
    "token_data": ("TokenDataModule",),
    "vocoder_data": ("VocoderDataModule",),
}
_MODULE_OF_NAME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF_NAME[name]}"), name)
