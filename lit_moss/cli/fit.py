"""LightningCLI wired for this project: OmegaConf's interpolation, run folders, tracker, resuming by name."""

import contextlib
import json
import logging
import math
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf.errors import OmegaConfBaseException

from callbacks.exact_resume import ExactResume
from callbacks.first_validation import FirstValidation
from lit_moss.errors import UserError
from lit_moss.modules.steps import StepModule
from lit_moss.runs import ranks
from lit_moss.runs.checkpoints import (
    AtomicCheckpointIO,
    begin_fork,
    is_whole,
    load_checkpoint,
    newest_checkpoint,
    newest_of_run,
    newest_step,
    read_note,
    step_of,
)
from lit_moss.runs.mlflow_access import mlflow_errors
from lit_moss.runs.recipes import (
    METRICS_VARIABLE,
    PARENT_VARIABLE,
    end_with_parent,
    hold,
    read_result,
    read_yaml,
    write_json,
)
from lit_moss.runs.tracking import Tracker

# Without it `${a.b}` is looked up below the subcommand and not found.
set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
_ADVERTS = ("litlogger", "litmodels", "TPU available")
_NOISE = (
    r".*does not have many workers.*",
    r".*`isinstance\(treespec, LeafSpec\)` is deprecated.*",
    r".*Checkpoint directory .* exists and is not empty.*",
    r".*unsupported for the CPU.*",
    r".*You are using `torch.load` with `weights_only=False`.*",
)


def _quiet() -> None:
    """What libraries say at each start and nobody acts on."""
    for pattern in _NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    logger.addFilter(lambda record: not any(word in record.getMessage() for word in _ADVERTS))


# Keys that a resumed run does not follow: its folder, weights, random numbers and place in the data are the
# checkpoint's.
_ONLY_AT_START = (
    "name", "run_root", "run_name", "seed_everything", "model.init_args.init_from",
    "model.init_args.start_from_data", "model.init_args.init_codes", "data.init_args.first_batch",
    "first_validation",
)  # fmt: skip


class _Parser(LightningArgumentParser):
    """Errors as one line; the usage of some hundred keys above it helps nobody."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(_one_line(message)) from ex


def _one_line(message: str) -> str:
    """The sentence of a nested jsonargparse error that names the key, without its indentation and lists."""
    lines = [line.strip(" -") for line in message.strip().splitlines() if line.strip(" -")]
    return re.sub(r"\s+", " ", ": ".join(line.rstrip(":") for line in lines))[:600]


class _Result(Callback):
    """`result.json` in a run's folder: step and last values of all metrics, for whoever started the run.

    Written at each validation too, before its checkpoint: a run killed behind its last checkpoint validates
    no more when it is continued.

    Args:
        begun: Called on rank 0 once nothing is left that could refuse the run.
    """

    def __init__(self, begun: Callable[[], None]) -> None:
        self._begun = begun

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero:
            self._begun()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.write(trainer)
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        # A sweep's objective that no validation gives is found here, not after the whole run.
        given = {*trainer.callback_metrics, *getattr(pl_module, "later_metrics", ())}
        missing = [m for m in json.loads(os.environ.get(METRICS_VARIABLE, "[]")) if m not in given]
        if missing:
            known = ", ".join(sorted(key for key in given if "/" in key))
            raise UserError(f"no metric {missing[0]} in a validation, expected one of {known}")

    @staticmethod
    @rank_zero_only
    def write(trainer: Trainer, ended: bool = False) -> None:
        """Writes it; `ended` says that the run is over."""
        if not isinstance(trainer.logger, Tracker) or trainer.sanity_checking:
            return
        folder = trainer.logger.run_dir
        before = read_result(folder) or {}
        # JSON has no NaN and no infinity: null stands for both.
        metrics = {
            key: float(value) if math.isfinite(value) else None
            for key, value in sorted(trainer.callback_metrics.items())
            if key != "step"
        }
        if not any("/" in key for key in metrics):
            metrics = before.get("metrics", {})
        finished = trainer.global_step >= trainer.max_steps
        early = (
            "pruned" if any(getattr(c, "pruned", False) for c in cast(Any, trainer).callbacks) else "early"
        )
        write_json(folder / "result.json", {
            "step": trainer.global_step if ended else 0,
            "stopped": early if ended and not finished else None,
            "run_id": trainer.logger.run_id,
            "metrics": metrics,
            # Of all validations but one before the first step; one repeated after a resume gives the same
            # values again.
            "lowest": _extremes(min, before.get("lowest", {}), metrics if trainer.global_step else {}),
            "highest": _extremes(max, before.get("highest", {}), metrics if trainer.global_step else {}),
        })  # fmt: skip


def _extremes(
    pick: Callable[[float, float], float], *each: dict[str, float | None]
) -> dict[str, float | None]:
    """Metric -> its lowest or highest finite value in any of the dictionaries."""
    found: dict[str, float | None] = {}
    for key, value in (item for metrics in each for item in metrics.items()):
        if value is not None:
            before = found.get(key)
            found[key] = value if before is None else pick(before, value)
    return found


class MossCLI(LightningCLI):
    """`fit`, `validate`, `test`, `predict`; see `run`."""

    tracker: Tracker | None = None
    _forks = False
    _forked: Path | None = None  # the state that a fork starts from, in its own folder
    _while_running = contextlib.ExitStack()  # the lock of the run's folder

    @classmethod
    def run(cls, args: list[str]) -> "MossCLI":
        """Parses and runs one verb."""
        _quiet()
        if PARENT_VARIABLE in os.environ:
            end_with_parent()
        with contextlib.ExitStack() as cls._while_running:
            return cls(
                model_class=LightningModule,
                datamodule_class=LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                # The resolved configuration goes into the run, not into the working folder.
                save_config_callback=None,
                seed_everything_default=1,
                parser_class=_Parser,
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
                            help="Folder of this run below that name; the time, if not given.")  # fmt: skip
        parser.add_argument(
            "--first_validation",
            type=bool,
            default=True,
            help="Validate a language model before its first step too, so that curves start at step 0.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        _check_yaml_files(args)
        with _one_line_errors():
            self.config = parser.parse_args(args)

    def instantiate_classes(self) -> None:
        with _one_line_errors():
            super().instantiate_classes()

    def _parse_ckpt_path(self) -> None:
        """Sizes come from the YAML; a checkpoint does not overrule it silently."""

    def before_instantiate_classes(self) -> None:
        config = self.config[cast(str, self.subcommand)]
        # Absolute: `ModelCheckpoint` forgets its best score when the same folder comes spelt otherwise.
        self._run_root, self._run_name = Path(config["run_root"]).absolute(), config["name"]
        asked = config.get("ckpt_path")
        if self.subcommand == "fit":
            chosen = ranks.inherited()
            asked = chosen.checkpoint if chosen else None if ranks.waits_for_choice() else asked
        self._ckpt = _find_checkpoint(asked, self._run_root / self._run_name, self.subcommand)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer")
        kwargs.setdefault("use_distributed_sampler", False)  # our order deals the batches to ranks itself
        kwargs["plugins"] = [*_as_list(config.get("plugins")), AtomicCheckpointIO()]
        if self.subcommand == "fit":
            if config.get("max_epochs") is not None:
                raise UserError(
                    f"trainer.max_epochs is {config['max_epochs']}: runs are measured in steps (the data "
                    "order has no end), set trainer.max_steps; the first line of a run tells its "
                    "batches an epoch"
                )
            if config.get("max_steps", -1) < 0:
                raise UserError("trainer.max_steps is not set: give the number of optimizer steps")
            kwargs |= {"max_epochs": -1, "check_val_every_n_epoch": None}
            callbacks = _as_list(config.get("callbacks"))
            if not any(isinstance(callback, ExactResume) for callback in callbacks):
                callbacks.append(ExactResume())  # without it the data would start again at the first batch
            first = isinstance(self.model, StepModule) and self.model.validates_first
            if first and self._get(self.config_init, "first_validation"):
                callbacks.append(FirstValidation())
            kwargs["callbacks"] = [*_with_guard(callbacks), _Result(self._record_settings)]
            if config.get("logger") in (None, True):
                self.tracker = self._make_tracker()
                kwargs["logger"] = self.tracker
        else:
            kwargs["logger"] = False
            kwargs["callbacks"] = [
                c for c in _as_list(config.get("callbacks")) if not isinstance(c, ModelCheckpoint)
            ]
        return super().instantiate_trainer(**kwargs)

    def _make_tracker(self) -> Tracker:
        asked = self.config["fit"].get("run_name")
        if not ranks.is_rank_zero():
            return Tracker(self._run_name, asked or "-", str(self._run_root))  # see `_agree`
        folder, run_id = self._resumed_run()
        if asked and Path(asked).name != asked:
            raise UserError(f"--run_name is {asked!r}, expected a plain name: it is one folder below --name")
        if folder is not None and asked in (None, folder.name):
            return Tracker(folder.parent.name, folder.name, str(folder.parent.parent), run_id)
        tags = {"forked_from": _origin(self._ckpt)} if isinstance(self._ckpt, Path) else None
        version = asked or time.strftime("%Y-%m-%d_%H-%M-%S")
        folder = self._run_root / self._run_name / version
        if asked and (folder / "run.json").exists():
            raise UserError(
                f"there is a run {folder} already: give another --run_name, or continue it with "
                f"--ckpt_path {folder}"
            )
        for again in range(2, 1000):  # two runs begun in the same second
            try:
                folder.mkdir(parents=True, exist_ok=bool(asked))
                break
            except FileExistsError:
                folder = folder.with_name(f"{version}-{again}")
        self._forks = isinstance(self._ckpt, Path)
        return Tracker(self._run_name, folder.name, str(self._run_root), tags=tags)

    def _resumed_run(self) -> tuple[Path | None, str | None]:
        """Folder and MLflow run that a resumed run continues; no folder for a run of its own: a new one, or a
        fork, which starts from an older state than its run has come to."""
        if self._ckpt is None:
            return None, None
        if isinstance(self._ckpt, tuple):
            folder = self._ckpt[0]
        else:
            folder = self._ckpt.absolute().parent.parent
            if self._ckpt.parent.name != "checkpoints" or not (folder / "run.json").is_file():
                return None, None
            reached = newest_step(folder)
            if reached < 0:  # a run that keeps its best state alone
                reached = (read_result(folder) or {"step": 0})["step"]
            if step_of(self._ckpt) < reached:
                rank_zero_info(
                    f"{self._ckpt} is of step {step_of(self._ckpt)}, its run has reached {reached}: this is "
                    f"a fork, a run of its own; to continue that run give --ckpt_path {folder}"
                )
                return None, None
        return folder, read_note(folder)["mlflow_run_id"]

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        kwargs["ckpt_path"] = str(self._ckpt) if isinstance(self._ckpt, Path) else None
        return kwargs

    def predict(self, **kwargs: Any) -> None:
        """Runs `Trainer.predict` and writes what it returns into the run's folder, one JSON line an item."""
        assert isinstance(self._ckpt, Path)
        batches = self.trainer.predict(**kwargs) or []
        out = self._ckpt.absolute().parent.parent / "predictions.jsonl"
        with out.open("w", encoding="utf-8") as file:
            for item in (item for batch in batches for item in batch):
                file.write(json.dumps(item, ensure_ascii=False) + "\n")
        print(f"{out}: {sum(map(len, batches))} items")

    def _agree(self) -> None:
        """Takes over folder and checkpoint of rank 0."""
        ckpt = str(self._ckpt) if isinstance(self._ckpt, Path) else None
        place = self.tracker.place if self.tracker is not None else (str(self._run_root), self._run_name, "-")
        chosen = ranks.agree(self.trainer, self.model, ranks.Choice(*place, ckpt))
        if ranks.is_rank_zero():
            return
        self._ckpt = Path(chosen.checkpoint) if chosen.checkpoint else None
        if self.tracker is not None:
            self.tracker.place = chosen[:3]

    def before_fit(self) -> None:
        self._agree()
        # Data first: a start that fails on it must not leave a run behind that `last` would then take.
        self.datamodule.prepare_data()
        self.datamodule.setup("fit")
        self._begin()

    def after_fit(self) -> None:
        _Result.write(self.trainer, ended=True)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except SIGTERMException:
            raise
        except (Exception, KeyboardInterrupt, SystemExit):
            begun = step_of(self._ckpt) if isinstance(self._ckpt, Path) else 0
            if self.tracker is not None and self.trainer.global_step <= max(begun, 0):
                self.tracker.abandon()
                if self._forked is not None:  # the next fork of that name may start from another state
                    self.trainer.strategy.remove_checkpoint(self._forked)
            raise

    @rank_zero_only
    def _begin(self) -> None:
        """Makes the folder and the MLflow run this process's, or refuses."""
        if self.tracker is None:
            return
        self._while_running.enter_context(hold(self.tracker.run_dir))
        if self._forks and isinstance(self._ckpt, Path):
            self._forked = begin_fork(self._ckpt, self.tracker.run_dir)
        begun = max(0, step_of(self._ckpt)) if isinstance(self._ckpt, Path) else 0
        self.tracker.resume_from(begun, self._settings()[1], _ONLY_AT_START)
        self.tracker.experiment  # noqa: B018 - makes the run
        rank_zero_info(f"run {self.tracker.run_dir}, MLflow experiment {self.tracker.name!r}")

    def _settings(self) -> tuple[str, dict[str, Any]]:
        """The resolved configuration: its YAML, and what is recorded of it."""
        text = self._parser("fit").dump(self.config["fit"], skip_none=False)
        return text, {k: v for k, v in yaml.safe_load(text).items() if k not in ("config", "ckpt_path")}

    def _record_settings(self) -> None:
        """Not before the run has begun: a checkpoint may refuse other data, and the record keeps what was."""
        if self.tracker is None:
            return
        text, resolved = self._settings()
        fingerprints = getattr(self.datamodule, "fingerprints", dict)()
        with mlflow_errors():
            self.tracker.log_hyperparams(resolved, _ONLY_AT_START if isinstance(self._ckpt, Path) else ())
            self.tracker.set_tags({f"fingerprint.{what}": value for what, value in fingerprints.items()})
        (self.tracker.run_dir / "config.yaml").write_text(text)
        self.tracker.log_text(text, "config.yaml")


@contextlib.contextmanager
def _one_line_errors() -> Iterator[None]:
    """Errors of the configuration as one line.

    A UserError of a class being built comes wrapped by the parser, an interpolation's comes raw.
    """
    try:
        yield
    except UserError:
        raise
    except OmegaConfBaseException as error:
        raise UserError(f"the configuration cannot be resolved: {_one_line(str(error))}") from error
    except MisconfigurationException as error:  # such as a machine without the accelerator that is asked for
        raise UserError(f"the trainer cannot be made: {_one_line(str(error))}") from error
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, UserError):
            raise cause from None
        raise


def _origin(checkpoint: Path) -> str:
    """What a fork started from, for its record."""
    run = checkpoint.absolute().parent.parent
    if (run / "run.json").is_file():
        run_id = read_note(run)["mlflow_run_id"]
    else:
        run_id = None if checkpoint.is_dir() else load_checkpoint(checkpoint, mmap=True).get("mlflow_run_id")
    return f"run {run_id}, step {step_of(checkpoint)}, {checkpoint.absolute()}"


def _check_yaml_files(args: Sequence[str]) -> None:
    """Names the file and the line of a YAML that does not parse; the parser's own message names neither."""
    for before, word in zip(["", *args], args, strict=False):
        name = (
            word
            if before in ("-c", "--config")
            else word.partition("=")[2]
            if word.startswith("--config=")
            else None
        )
        if name is None:
            continue
        read_yaml(name)


def _with_guard(callbacks: list[Any]) -> list[Any]:
    """Steps that are not finite are skipped in every run; recipes need not list it. It comes last: the others
    drop gradients of frozen parameters, which must not count."""
    from callbacks import NonFiniteSteps

    listed = [c for c in callbacks if isinstance(c, NonFiniteSteps)]
    return [*(c for c in callbacks if c not in listed), *(listed or [NonFiniteSteps()])]


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else list(value) if isinstance(value, list | tuple) else [value]


def _with_checkpoint(
    found: Path | tuple[Path, str | None], verb: str | None
) -> Path | tuple[Path, str | None]:
    if verb != "fit" and not isinstance(found, Path):
        raise UserError(f"{found[0]} has no checkpoint yet: {verb} needs one, train further first")
    return found


def _find_checkpoint(
    asked: str | None, folder: Path, verb: str | None
) -> Path | tuple[Path, str | None] | None:
    """The checkpoint that `--ckpt_path` means; run folder and id where the newest run has none yet."""
    if asked is None:
        if verb != "fit":
            raise UserError(f"{verb} needs --ckpt_path: a file, `last` or `best`")
        return None
    if asked in ("last", "best"):
        return _with_checkpoint(newest_checkpoint(folder, asked), verb)
    path = Path(asked)
    if path.is_dir() and is_whole(path):
        return path
    if (path / "run.json").is_file():
        return _with_checkpoint(newest_of_run(path, "last"), verb)
    if not path.is_file():
        raise UserError(f"no checkpoint {asked}: expected a .ckpt file, a run's folder, `last` or `best`")
    if "pytorch-lightning_version" not in load_checkpoint(path, mmap=True):
        raise UserError(f"{asked} is no checkpoint of a run: expected one written by `fit`")
    return path
