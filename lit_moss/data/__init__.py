"""Manifests, token documents, packing, order, and the LightningDataModules."""

from typing import TYPE_CHECKING, Any

from lit_moss.data.speech_data import SpeechBatch, SpeechDataModule

if TYPE_CHECKING:
    from lit_moss.data.decoder_data import DecoderBatch, DecoderDataModule
    from lit_moss.data.kinds import (
        InterleavedDataModule,
        MixtureDataModule,
        SFTDataModule,
        TextDataModule,
        UnsupervisedDataModule,
    )
    from lit_moss.data.prompts import PromptDataModule
    from lit_moss.data.token_data import TokenBatch, TokenDataModule

__all__ = [
    "DecoderBatch",
    "DecoderDataModule",
    "InterleavedDataModule",
    "MixtureDataModule",
    "PromptDataModule",
    "SFTDataModule",
    "SpeechBatch",
    "SpeechDataModule",
    "TextDataModule",
    "TokenBatch",
    "TokenDataModule",
    "UnsupervisedDataModule",
]


def __getattr__(name: str) -> Any:
    """Token data on first use: it brings transformers, which the speech tokenizer does without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name.startswith("Decoder"):
        from lit_moss.data import decoder_data as decoder

        return getattr(decoder, name)
    from lit_moss.data import kinds, prompts
    from lit_moss.data import token_data as tokens

    return next(getattr(module, name) for module in (kinds, prompts, tokens) if hasattr(module, name))
