"""Opens emotion classifiers by name: samples (T,) at 16 kHz -> a label."""

import importlib
from collections.abc import Callable
from typing import Any, cast

from torch import Tensor

from lit_moss.audio import rates
from lit_moss.errors import UserError
from lit_moss.evaluate.judges import open_funasr

EmotionClassifier = Callable[[Tensor], str]


def open_emotion(name: str | None, device: str = "auto") -> EmotionClassifier | None:
    """Opens an emotion classifier.

    Args:
        name: `emotion2vec_plus_large` or another emotion2vec model (with funasr); or
            `package.module:function`, a function of samples (T,) at 16 kHz that returns a label. None: no
            classifier.
        device: auto, cpu or cuda, for emotion2vec.

    Raises:
        UserError: if there is no such classifier.
    """
    if name is None:
        return None
    if name.rpartition("/")[2].startswith("emotion2vec"):
        return Emotion2Vec(name if "/" in name else f"iic/{name}", device)
    module, colon, function = name.partition(":")
    try:
        found: Any = (
            getattr(importlib.import_module(module), function) if colon and module and function else None
        )
    except (ImportError, AttributeError) as error:
        raise UserError(f"emotion is {name!r}, which cannot be imported ({error})") from error
    if not callable(found):
        raise UserError(f"emotion is {name!r}, expected emotion2vec_plus_large or package.module:function")
    return cast(EmotionClassifier, found)


class Emotion2Vec:
    """emotion2vec (arXiv:2312.15185), using funasr.

    Labels are English: those of the model are pairs such as `生气/angry`, and `<unk>`.
    """

    def __init__(self, name: str, device: str) -> None:
        self._model = open_funasr(name, device)

    def __call__(self, wave_T: Tensor) -> str:
        """Label of samples at 16 kHz."""
        (result,) = self._model.generate(
            wave_T.numpy(), fs=rates.TOKENIZER_RATE_HZ, granularity="utterance", extract_embedding=False
        )
        best = max(range(len(result["scores"])), key=result["scores"].__getitem__)
        return result["labels"][best].rpartition("/")[2]
