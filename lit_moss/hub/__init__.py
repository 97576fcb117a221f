"""Speech tokenizers, codecs and language models opened by name, and the cache of codes."""
