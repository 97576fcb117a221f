"""Waveform <-> codes."""

from lit_moss.codec.tokenizer import SpeechTokenizer

__all__ = ["SpeechTokenizer"]
