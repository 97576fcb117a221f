"""LightningModules: each joins the plain parts, logs, and says what it optimises."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_moss.modules.codec_encoder import CodecEncoder
    from lit_moss.modules.flow_decoder import FlowDecoder
    from lit_moss.modules.split_llm import SplitLLM
    from lit_moss.modules.vocoder import Vocoder

_WHERE = {
    "CodecEncoder": "lit_moss.modules.codec_encoder",
    "FlowDecoder": "lit_moss.modules.flow_decoder",
    "SplitLLM": "lit_moss.modules.split_llm",
    "Vocoder": "lit_moss.modules.vocoder",
}
__all__ = ["CodecEncoder", "FlowDecoder", "SplitLLM", "Vocoder"]


def __getattr__(name: str) -> Any:
    """A tokenizer run does not wait for transformers to be imported."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
