"""LightningModules: each connects the plain-torch parts, logs metrics, and defines what is optimised."""

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
    """Lazy imports: training a tokenizer does not import transformers."""
    if name in _WHERE:
        return getattr(importlib.import_module(_WHERE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
