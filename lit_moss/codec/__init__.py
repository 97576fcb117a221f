"""Neural speech codec: waveforms to codes and back."""

from lit_moss.codec.codec import Codec
from lit_moss.codec.flow import Flow
from lit_moss.codec.hift import HiFT
from lit_moss.codec.tokenizer import SpeechTokenizer

__all__ = ["Codec", "Flow", "HiFT", "SpeechTokenizer"]
