"""The split language model, and the rows of text and speech that it works on."""

from lit_moss.llm.model import SplitLM

__all__ = ["SplitLM"]
