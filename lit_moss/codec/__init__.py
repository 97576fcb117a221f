"""Waveform <-> codes."""

import importlib
from typing import TYPE_CHECKING, Any

from lit_moss.codec.tokenizer import SpeechTokenizer

if TYPE_CHECKING:
    from lit_moss.codec.codec import Codec
    from lit_moss.codec.flow import Flow
    from lit_moss.codec.hift import HiFT

_WHERE = {"Codec": "codec", "Flow": "flow", "HiFT": "hift"}
__all__ = ["Codec", "Flow", "HiFT", "SpeechTokenizer"]


def __getattr__(name: str) -> Any:
    """Tokenizing alone does not wait for the decoder's modules."""
    if name in _WHERE:
        return getattr(importlib.import_module(f"lit_moss.codec.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
