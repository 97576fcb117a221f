"""Pictures, audio and transcripts of a tokenizer run, logged after each validation."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from lightning.pytorch import Callback, LightningModule, Trainer

from lit_moss.audio import rates
from lit_moss.codec.encoder import CausalEncoder, fingerprint
from lit_moss.errors import UserError
from lit_moss.hub import speech_tokenizer_fingerprint
from lit_moss.records import file_name, unique_name
from lit_moss.runs.tracking import Tracker

if TYPE_CHECKING:
    from lit_moss.modules import CodecEncoder


class TokenizerReport(Callback):
    """Logs to MLflow: transcripts, log-mels with their codes, code frequencies, and audio."""

    def __init__(self) -> None:
        self._audio_is_logged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, Tracker):
            counts = {
                name: sum(p.numel() for p in part.parameters()) for name, part in pl_module.named_children()
            }
            trainer.logger.log_hyperparams({"parameters": {name: n for name, n in counts.items() if n}})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, Tracker) and trainer.is_global_zero:
            encoder = cast("CodecEncoder", pl_module).encoder
            speech_tokenizer = _fingerprint(trainer.logger.run_dir, encoder)
            trainer.logger.set_tags({"fingerprint.speech_tokenizer": speech_tokenizer})

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        tracker = trainer.logger
        if trainer.sanity_checking or not trainer.is_global_zero or not isinstance(tracker, Tracker):
            return
        model = cast("CodecEncoder", pl_module)
        step, examples = trainer.global_step, model.examples
        if not examples:
            return
        tracker.log_table(
            {
                "step": [step] * len(examples),
                "utterance": [e.id for e in examples],
                "reference": [e.text for e in examples],
                "hypothesis": [e.hypothesis for e in examples],
            },
            "transcripts.json",
        )
        tracker.log_figure(spectrogram_with_codes(examples[-1]), f"pictures/spectrogram_{step:07d}.png")
        if model.quantizing:
            tracker.log_figure(codebook_use(model.val_use_K.cpu()), f"pictures/codebook_{step:07d}.png")
        if not self._audio_is_logged:
            self._audio_is_logged = True
            names: set[str] = set()  # files of different folders may share an id
            for e in examples:
                name = unique_name(file_name(e.id), names)
                tracker.log_audio(e.wave_T, rates.TOKENIZER_RATE_HZ, f"audio/{name}.wav")


def _fingerprint(run: Path, encoder: CausalEncoder) -> str:
    """Fingerprint of the tokenizer that the run's name opens: best checkpoint or final weights."""
    try:
        return speech_tokenizer_fingerprint(str(run.absolute() / "checkpoints" / "best.ckpt"))
    except UserError:  # no validation since the codebook was initialised
        return fingerprint(encoder)


def spectrogram_with_codes(example):  # noqa: ANN001, ANN201 - matplotlib figure
    """Log-mel of one utterance with its codes below, in colours, with numbers if there is room."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    codes = example.codes_N.tolist()
    seconds = len(codes) * rates.SECONDS_PER_CODE
    figure = Figure(figsize=(min(28.0, max(8.0, 0.32 * len(codes))), 4.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
    top.imshow(
        example.mel_MF,
        origin="lower",
        aspect="auto",
        extent=(0, seconds, 0, len(example.mel_MF)),
        cmap="magma",
    )
    top.set_ylabel("mel bin")
    top.set_title(
        f"{example.id}\nreference: {example.text}\nhypothesis: {example.hypothesis}",
        loc="left",
        fontsize=9,
        wrap=True,
    )
    colours = colormaps["tab20"]
    for i, code in enumerate(codes):
        start = i * rates.SECONDS_PER_CODE
        bottom.axvspan(start, start + rates.SECONDS_PER_CODE, color=colours(code % 20), alpha=0.7)
        bottom.text(
            start + rates.SECONDS_PER_CODE / 2,
            0.5,
            str(code),
            ha="center",
            va="center",
            fontsize=6,
            rotation=90,
        )
    bottom.set(yticks=[], xlabel="seconds", ylabel="code", xlim=(0, seconds), ylim=(0, 1))
    return figure


def codebook_use(count_K):  # noqa: ANN001, ANN201 - matplotlib figure
    """Frequency of each code, most frequent first, on a logarithmic scale."""
    from matplotlib.figure import Figure

    ranked = count_K.sort(descending=True).values
    used = int((ranked > 0).sum())
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.plot(range(1, used + 1), ranked[:used])
    axes.set(yscale="log", xlabel="code, by rank", ylabel="times used", xlim=(1, len(ranked)))
    axes.set_title(f"{used} of {len(ranked)} codes used in {int(ranked.sum())}", loc="left")
    return figure
