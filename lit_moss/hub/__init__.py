"""Opens tokenizers, codecs, vocoders and language models by name, and caches the codes of recordings.

    from lit_moss.hub import open_codec, open_lm, open_tokenizer, open_vocoder

A name is a run (`runs/NAME`), a checkpoint, a folder in the released layout, a hub id, or `embedded:NAME`.
Heavy libraries are imported only when something is opened.
"""

from lit_moss import assets
from lit_moss.hub.codec import open_codec
from lit_moss.hub.kmeans import KMEANS, kmeans_tokenizer
from lit_moss.hub.lm import open_lm
from lit_moss.hub.tokenizer import NamedTokenizer, open_tokenizer, speech_tokenizer_fingerprint
from lit_moss.hub.vocoder import open_vocoder

assets.register(KMEANS, kmeans_tokenizer)

__all__ = [
    "NamedTokenizer",
    "open_codec",
    "open_lm",
    "open_tokenizer",
    "open_vocoder",
    "speech_tokenizer_fingerprint",
]
