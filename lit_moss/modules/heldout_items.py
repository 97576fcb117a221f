"""Held-out items of a run: cloze and perplexity in both modalities, and utterances to transcribe."""

from lightning.pytorch import LightningModule

from lit_moss import contracts, trainer_access
from lit_moss.data.listening import word_errors
from lit_moss.llm import SplitLM
from lit_moss.llm.heldout import HeldOut
from lit_moss.llm.listening import Listening


class HeldOutItems:
    """Items of the data, taken from it at the first measurement."""

    def __init__(self) -> None:
        self._cloze: HeldOut | None = None
        self._listening: Listening | None = None

    def measure(self, module: LightningModule) -> dict[str, float]:
        """Metrics of `HeldOut` and `Listening`; without the values of items that the data does not have.

        Args:
            module: Module with a model, `lm`, and a trainer.
        """
        trainer, lm = module.trainer, module.lm
        assert isinstance(lm, SplitLM)
        data = trainer_access.datamodule_of(trainer)
        if self._cloze is None or self._listening is None:
            items = data.cloze_items() if isinstance(data, contracts.TokenData) else []
            self._cloze = HeldOut(items, lm.format)
            utterances, decode = [], str
            if isinstance(data, contracts.ListeningData) and (utterances := data.asr_items()):
                decode = data.text_tokenizer().decode
            self._listening = Listening(utterances, decode, word_errors)
        with trainer.precision_plugin.val_step_context():
            return self._cloze.measure(lm, module.device) | self._listening.measure(lm, module.device)
