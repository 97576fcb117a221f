"""Pictures and audio of a decoder run, logged after each validation."""

from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.audio import rates
from lit_moss.codec.vocoder import GriffinLim
from lit_moss.records import file_name, unique_name
from lit_moss.runs.tracking import Tracker

if TYPE_CHECKING:
    from lit_moss.modules import FlowDecoder
    from lit_moss.modules.flow_decoder import Resynthesis


class DecoderReport(Callback):
    """Logs generated and true mels, and the audio of both (by Griffin-Lim), to MLflow."""

    def __init__(self) -> None:
        self._truth_is_logged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, Tracker):
            model = cast("FlowDecoder", pl_module)
            counts = {
                name: sum(p.numel() for p in part.parameters()) for name, part in model.flow.named_children()
            }
            trainer.logger.log_hyperparams({"parameters": counts})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(tracker, Tracker):
            return
        examples, step = cast("FlowDecoder", pl_module).examples, trainer.global_step
        if not examples:
            return
        tracker.log_figure(mels(examples), f"pictures/mel_{step:07d}.png")
        vocoder = GriffinLim()
        used: set[str] = set()  # files of different folders may share an id
        names = [unique_name(file_name(example.id), used) for example in examples]
        for name, example in zip(names, examples, strict=True):
            wave_T = vocoder(example.made_MT[None])[0]
            tracker.log_audio(wave_T, rates.DECODER_RATE_HZ, f"audio/{name}_{step:07d}.wav")
        if not self._truth_is_logged:
            self._truth_is_logged = True
            for name, example in zip(names, examples, strict=True):
                wave_T = vocoder(example.truth_MT[None])[0]
                tracker.log_audio(wave_T, rates.DECODER_RATE_HZ, f"audio/{name}_truth.wav")


def mels(examples: "list[Resynthesis]"):  # noqa: ANN201 - matplotlib figure
    """Figure of the true mels above the generated ones, with one column per clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(examples), 5), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        low, high = float(example.truth_MT.min()), float(example.truth_MT.max())
        for row, mel in enumerate((example.truth_MT, example.made_MT)):
            seconds = mel.shape[-1] * rates.DECODER_HOP_SAMPLES / rates.DECODER_RATE_HZ
            axes[row][column].imshow(
                mel, origin="lower", aspect="auto", vmin=low, vmax=high, cmap="magma",
                extent=(0, seconds, 0, len(mel)),
            )  # fmt: skip
        axes[0][column].set_title(example.id, loc="left", fontsize=9)
        axes[1][column].set_xlabel("seconds")
    axes[0][0].set_ylabel("truth, mel band")
    axes[1][0].set_ylabel("from codes, mel band")
    return figure
