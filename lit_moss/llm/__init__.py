"""Rows of text and speech, and the split language model over them."""

from lit_moss.llm.model import SplitLM

__all__ = ["SplitLM"]
