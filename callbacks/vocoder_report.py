"""Pictures and audio of a vocoder run, logged after each validation."""

from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.audio import rates
from lit_moss.codec.spectral_losses import magnitudes
from lit_moss.records import file_name, unique_name
from lit_moss.runs.tracking import Tracker

if TYPE_CHECKING:
    from lit_moss.modules import Vocoder
    from lit_moss.modules.vocoder import Revocoded

_WINDOW, _HOP = 1024, 256


class VocoderReport(Callback):
    """Logs vocoded clips to MLflow: spectrograms and audio of the recording and of the vocoder."""

    def __init__(self) -> None:
        self._truth_is_logged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, Tracker):
            model = cast("Vocoder", pl_module)
            parts = {"net": model.net, "discriminators": model.discriminators}
            counts = {
                name: sum(p.numel() for p in part.parameters())
                for name, part in parts.items()
                if part is not None
            }
            trainer.logger.log_hyperparams({"parameters": counts})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(tracker, Tracker):
            return
        examples, step = cast("Vocoder", pl_module).examples, trainer.global_step
        if not examples:
            return
        tracker.log_figure(spectrograms(examples), f"pictures/spectrogram_{step:07d}.png")
        used: set[str] = set()  # files of different folders may share an id
        names = [unique_name(file_name(example.id), used) for example in examples]
        for name, example in zip(names, examples, strict=True):
            made_L = example.made_L.clamp(-0.99, 0.99)
            tracker.log_audio(made_L, rates.DECODER_RATE_HZ, f"audio/{name}_{step:07d}.wav")
            if not self._truth_is_logged:
                tracker.log_audio(example.truth_L, rates.DECODER_RATE_HZ, f"audio/{name}_truth.wav")
        self._truth_is_logged = True


def spectrograms(examples: "list[Revocoded]"):  # noqa: ANN201 - matplotlib figure
    """Figure of the recordings' spectrograms above the vocoder's, in dB, with one column per clip."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(examples), 5), layout="constrained")
    axes = figure.subplots(2, len(examples), squeeze=False)
    for column, example in enumerate(examples):
        pair = (example.truth_L, example.made_L)
        levels = [20 * magnitudes(wave[None], _WINDOW, _HOP)[0].clamp(min=1e-4).log10() for wave in pair]
        top = float(levels[0].max())
        seconds = len(example.truth_L) / rates.DECODER_RATE_HZ
        for row, level in enumerate(levels):
            axes[row][column].imshow(
                level, origin="lower", aspect="auto", vmin=top - 80, vmax=top, cmap="magma",
                extent=(0, seconds, 0, rates.DECODER_RATE_HZ / 2000),
            )  # fmt: skip
        axes[0][column].set_title(example.id, loc="left", fontsize=9)
        axes[1][column].set_xlabel("seconds")
    axes[0][0].set_ylabel("truth, kHz")
    axes[1][0].set_ylabel("from its mel, kHz")
    return figure
