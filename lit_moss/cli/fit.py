"""LightningCLI for lit_moss: interpolation, default settings, run folders, tracker, resuming."""

import contextlib
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger
from lightning.pytorch.trainer.states import TrainerStatus
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden

from callbacks import Checkpoint, FirstValidation
from lit_moss.cli.choose_run import Start, check_layout, find_start, open_run
from lit_moss.cli.defaults import arranged, completed, trainer_defaults
from lit_moss.cli.document_settings import mark_given, state_options
from lit_moss.cli.errors import OneLineParser, one_line_errors
from lit_moss.cli.fit_options import check_devices, check_fit_options
from lit_moss.cli.result_file import ResultFile
from lit_moss.cli.signals import Interrupted, wait_for_step_ends, was_interrupted
from lit_moss.cli.yaml_options import one_line
from lit_moss.contracts import FreezingRule, RateSchedule
from lit_moss.errors import UserError
from lit_moss.modules.steps import StepModule
from lit_moss.runs import ranks
from lit_moss.runs.checkpoint_io import AtomicCheckpointIO
from lit_moss.runs.checkpoints import begin_fork, step_of
from lit_moss.runs.folder import RunFolder
from lit_moss.runs.launch import PARENT_VARIABLE, end_with_parent
from lit_moss.runs.mlflow_access import mlflow_errors
from lit_moss.runs.tracking import Tracker
from lit_moss.sweep.trial import STORAGE_VARIABLE, PrunableTrial
from lit_moss.trainer_access import callbacks_of, fingerprints_of

# Without this, `${a.b}` is looked up below the subcommand and not found.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
# Lightning messages that are advertisements.
_ADVERTS = ("litlogger", "litmodels", "TPU available")
_NOISE = (
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*unsupported for the CPU.*",
    r".*You are using `torch.load` with `weights_only=False`.*",
)

# Keys without effect on a resumed run: its folder, weights, random state and position in the data come from
# the checkpoint.
_ONLY_AT_START = (
    "name", "run_root", "run_name", "seed_everything", "model.init_args.init_from",
    "model.init_args.start_from_data", "model.init_args.init_codes", "data.init_args.first_batch",
    "first_validation",
)  # fmt: skip


class MossCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict`; see `run`."""

    tracker: Tracker | None = None
    _verb = "fit"
    _words: Sequence[str] = ()  # the command line, completed
    _start: Start | None = None  # state that training starts from
    _is_fork = False
    _forked: Path | None = None  # state that a fork starts from, in its own folder
    _while_running = contextlib.ExitStack()  # holds the lock of the run's folder

    @classmethod
    def run(cls, args: list[str]) -> "MossCLI":
        """Parses and runs a verb."""
        _silence_libraries()
        if PARENT_VARIABLE in os.environ:
            end_with_parent(saving=True)
        with contextlib.ExitStack() as cls._while_running:
            return cls(
                model_class=LightningModule,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                # The resolved configuration is saved in the run's folder, not in the working directory.
                save_config_callback=None,
                seed_everything_default=1,
                trainer_defaults=trainer_defaults(),
                parser_class=OneLineParser,
                parser_kwargs={"parser_mode": "omegaconf+"},
                auto_configure_optimizers=False,
                args=args,
            )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str, default="run", help="Name of the runs' folder and MLflow experiment."
        )
        parser.add_argument("--run_root", type=str, default="runs", help="Folder of all runs' files.")
        parser.add_argument("--run_name", type=str | None, default=None,
                            help="Folder of this run below --name; by default the time.")  # fmt: skip
        parser.add_argument(
            "--first_validation",
            type=bool,
            default=True,
            help="Validate a language model before its first step too, so that curves start at step 0.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        with one_line_errors():
            self._words = completed(args)
            self.config = parser.parse_args(self._words)

    def instantiate_classes(self) -> None:
        with one_line_errors():
            super().instantiate_classes()
        mark_given(self.datamodule, self._words)

    def _parse_ckpt_path(self) -> None:
        """Disables LightningCLI's merging of checkpoint hyper-parameters into the config."""

    def before_instantiate_classes(self) -> None:
        self._verb = str(self.subcommand)
        config = self.config[self._verb]
        # Absolute, because `ModelCheckpoint` resets its best score if the path of a folder is spelled
        # differently.
        self._run_root, self._run_name = Path(config["run_root"]).absolute(), config["name"]
        asked = config.get("ckpt_path")
        if self._verb == "fit":
            choice = ranks.inherited()
            asked = choice.checkpoint if choice else None if ranks.waits_for_choice() else asked
        self._start = find_start(asked, self._run_root / self._run_name, self._verb, config.get("run_name"))

    @property
    def _checkpoint(self) -> Path | None:
        """The checkpoint to start from; None for a new run and for a run without checkpoints."""
        return self._start if isinstance(self._start, Path) else None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        kwargs["plugins"] = [*_as_list(config.get("plugins")), AtomicCheckpointIO()]
        callbacks = arranged(_as_list(config.get("callbacks")), self._verb)
        if self._verb == "fit":
            check_fit_options(config)
            kwargs |= {"max_epochs": -1, "check_val_every_n_epoch": None}
            first = isinstance(self.model, StepModule) and self.model.validates_first
            if first and self._get(self.config_init, "first_validation"):
                callbacks.append(FirstValidation())
            kwargs["callbacks"] = [*callbacks, *_pruning(), ResultFile(self._record_settings)]
            if config.get("logger") is not False:
                self.tracker = self._make_tracker()
                more = [x for x in _as_list(config.get("logger")) if isinstance(x, Logger)]
                # The first logger determines the folder of checkpoints, and is the one that callbacks use.
                kwargs["logger"] = [self.tracker, *more]
        else:
            # Training callbacks are omitted on purpose.
            warnings.filterwarnings("ignore", message=".*callbacks used to create the checkpoint need.*")
            kwargs["logger"] = False
            kwargs["callbacks"] = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        try:
            trainer = super().instantiate_trainer(**kwargs)
            check_devices(trainer)
        except (ValueError, UserError) as error:  # such as an accelerator or strategy unknown to Lightning
            if self.tracker is not None:  # if its folder is new, it is empty
                for folder in (self.tracker.run_dir, self.tracker.run_dir.parent, self._run_root):
                    with contextlib.suppress(OSError):
                        folder.rmdir()
            if isinstance(error, UserError):
                raise
            raise UserError(f"the trainer cannot be made: {one_line(str(error))}") from error
        wait_for_step_ends(trainer)
        return trainer

    def _make_tracker(self) -> Tracker:
        asked = self.config["fit"].get("run_name")
        if not ranks.is_rank_zero():
            return Tracker(self._run_name, asked or "-", str(self._run_root))  # see `_agree`
        tracker, self._is_fork = open_run(self._start, self._run_root, self._run_name, asked)
        return tracker

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self._checkpoint) if self._checkpoint else None
        return kwargs

    def predict(self, **kwargs: Any) -> None:
        """Runs `Trainer.predict` and writes its results, one JSON line per item.

        They are written to the run's folder, or next to a checkpoint that belongs to no run.
        """
        assert self._checkpoint is not None
        if (count := self.trainer.world_size) > 1:
            raise UserError(
                f"predict on {count} devices, expected one: each would write its own items into one file; "
                "leave the machine part out, or set --trainer.devices 1 --trainer.num_nodes 1"
            )
        batches = self.trainer.predict(**kwargs) or []
        items = [item for batch in batches for item in batch]
        run = RunFolder.of_checkpoint(self._checkpoint) or RunFolder(self._checkpoint.absolute().parent)
        file = run.write_predictions(items)
        print(f"{file}: {len(items)} items")

    def _agree(self) -> None:
        """Adopts the folder and checkpoint chosen by rank 0."""
        checkpoint = str(self._checkpoint) if self._checkpoint else None
        place = self.tracker.place if self.tracker is not None else (str(self._run_root), self._run_name, "-")
        choice = ranks.agree(self.trainer, self.model, ranks.Choice(*place, checkpoint))
        if ranks.is_rank_zero():
            return
        self._start = Path(choice.checkpoint) if choice.checkpoint else None
        if self.tracker is not None:
            self.tracker.place = choice[:3]

    def before_fit(self) -> None:
        self._agree()
        if self._checkpoint is not None:
            check_layout(self._checkpoint, self.trainer.strategy)
        if isinstance(self.model, StepModule):
            self.model.resumes = self._checkpoint is not None
        # Data first: a start that fails here must not leave a run behind that `last` would select.
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self._warn_without_validation()
        self._begin()

    def _warn_without_validation(self) -> None:
        trainer = self.trainer
        every, batches = trainer.val_check_interval, trainer.max_steps * trainer.accumulate_grad_batches
        if trainer.limit_val_batches == 0 or (isinstance(every, int) and every <= batches):
            return
        best = any(isinstance(c, Checkpoint) and c.is_best for c in callbacks_of(trainer))
        asked = f"{every} micro-batches" if isinstance(every, int) else "not set"
        rank_zero_warn(
            f"trainer.val_check_interval is {asked}, the run has {batches}: it never validates, so there are "
            f"no val/ metrics{' and no best.ckpt' if best else ''}"
        )

    def after_fit(self) -> None:
        ResultFile.write(self.trainer, ended=True)

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        if isinstance(seed, int) and not 0 <= seed < 2**32:
            raise UserError(f"seed_everything is {seed}, expected 0 to {2**32 - 1}")
        super()._set_seed()

    def _check_verb(self, verb: str) -> None:
        """Refuses `test` and `predict` if the model or the data does not support them."""
        if verb == "test" and not is_overridden("test_step", self.model):
            raise UserError(
                f"{type(self.model).__name__} has no test of its own: use validate, with the test data as "
                "data.init_args.validation"
            )
        if verb == "predict" and not is_overridden("predict_dataloader", self.datamodule):
            raise UserError(
                f"{type(self.datamodule).__name__} gives nothing to predict: add a recipe that does, such as "
                "-c conf/predict/prompts.yaml"
            )

    def _run_subcommand(self, subcommand: str) -> None:
        self._check_verb(subcommand)
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException as error:
            if was_interrupted(self.trainer):
                raise Interrupted(getattr(error, "is_saved", False)) from error
            raise
        except (Exception, KeyboardInterrupt, SystemExit) as error:
            if self.tracker is not None and self.trainer.global_step <= self._first_step():
                self.tracker.abandon()
                if self._forked is not None:  # the next fork of that name may start from another state
                    self.trainer.strategy.remove_checkpoint(self._forked)
            # At Ctrl-C, Lightning itself ends the process, with exit code 1.
            if isinstance(error, SystemExit) and self.trainer.state.status == TrainerStatus.INTERRUPTED:
                raise KeyboardInterrupt from error
            raise

    def _first_step(self) -> int:
        """Number of optimizer steps done when this process starts."""
        return max(0, step_of(self._checkpoint)) if self._checkpoint else 0

    @rank_zero_only
    def _begin(self) -> None:
        """Locks the folder, and creates or continues its MLflow run."""
        if self.tracker is None:
            return
        folder = self.tracker.folder
        self._while_running.enter_context(folder.hold())
        if self._is_fork and self._checkpoint:
            self._forked = begin_fork(self._checkpoint, folder)
        rules = {
            type(c).__name__ for c in callbacks_of(self.trainer) if isinstance(c, FreezingRule | RateSchedule)
        }
        self.tracker.resume_from(self._first_step(), self._settings()[1], _ONLY_AT_START, rules)
        self.tracker.experiment  # noqa: B018 - creates or continues the run
        rank_zero_info(f"run {folder}, MLflow experiment {self.tracker.name!r}")

    def _settings(self) -> tuple[str, dict[str, Any]]:
        """The resolved configuration as YAML, and the part of it that is recorded.

        Options of how documents are made are those of the documents, where these are read from folders.
        """
        text = self._parser("fit").dump(self.config["fit"], skip_none=False)
        resolved = yaml.safe_load(text)
        if state_options(self.datamodule, resolved.get("data")):
            text = yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)
        return text, {k: v for k, v in resolved.items() if k not in ("config", "ckpt_path")}

    def _record_settings(self) -> None:
        """Records the configuration, after the run has started.

        Before that, a checkpoint may refuse the data, and the record must keep the settings that were used.
        """
        if self.tracker is None:
            return
        text, resolved = self._settings()
        with mlflow_errors():
            self.tracker.log_hyperparams(resolved, _ONLY_AT_START if self._checkpoint else ())
            fingerprints = fingerprints_of(self.trainer)
            self.tracker.set_tags({f"fingerprint.{what}": value for what, value in fingerprints.items()})
        self.tracker.folder.config_file.write_text(text)
        self.tracker.log_text(text, self.tracker.folder.config_file.name)


def _pruning() -> list[Callback]:
    """The callback that reports to a sweep's pruner; empty outside of a sweep."""
    trial = PrunableTrial.from_environment()
    if trial is None:
        return []
    from callbacks.prune_trial import PruneTrial  # imports Optuna

    return [PruneTrial(trial, os.environ[STORAGE_VARIABLE])]


def _silence_libraries() -> None:
    """Hides library messages that appear at every start and require no action."""
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not any(word in record.getMessage() for word in _ADVERTS))


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]
