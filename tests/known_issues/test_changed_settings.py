"""A run resumed with another rate, decay, betas or factors went on with the old ones.

The optimizer's state had brought them along, while MLflow recorded the new ones.
"""

from pathlib import Path

import pytest
import yaml
from decoders import SMALL, made_up_codec, made_up_manifest
from lightning.pytorch import Callback
from lm_recipe import lm_recipe
from recording import fit, mlflow_runs, recipe

SCHEDULE = "LearningRateSchedule"


class GroupsAt(Callback):
    """Appends name, rate, decay and betas of every group to a file, at each optimizer step."""

    def __init__(self, path: str):
        self.path = path

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        keys = ("lr", "weight_decay", "betas")
        groups = {g["name"]: [g[k] for k in keys] for g in optimizer.param_groups}
        noted = {name: [lr, decay, list(betas)] for name, (lr, decay, betas) in groups.items()}
        with Path(self.path).open("a") as file:
            file.write(yaml.safe_dump([[trainer.global_step, noted]]))


def noting(path, rates=True):
    """The YAML with `GroupsAt`, and without a schedule if `rates` is False."""
    config = yaml.safe_load(path.read_text())
    callbacks = config["trainer"]["callbacks"]
    if not rates:
        callbacks = [c for c in callbacks if SCHEDULE not in c["class_path"]]
    file = str(path.parent / "groups")
    note = {"class_path": "test_changed_settings.GroupsAt", "init_args": {"path": file}}
    config["trainer"]["callbacks"] = [*callbacks, note]
    path.write_text(yaml.safe_dump(config))
    return path


def groups_at(folder, step):
    return dict(yaml.safe_load((folder / "groups").read_text()))[step]


def tags_of(folder):
    (run,) = mlflow_runs(folder).values()
    return {k: v for k, v in run.data.tags.items() if k.startswith("resumed_with.model")}


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


pytestmark = pytest.mark.usefixtures("importable")


@pytest.mark.nightly
def test_language_model(tmp_path):
    folder = tmp_path / "run"
    before = {"lr": 1e-3, "weight_decay": 0.1, "betas": [0.9, 0.95], "lr_factors": {"audio_head": 2.0}}
    after = {"lr": 4e-3, "weight_decay": 0.3, "betas": [0.8, 0.9], "lr_factors": {"audio_head": 0.5}}
    fit(folder, noting(lm_recipe(folder, 5, **before), rates=False))
    fit(folder, noting(lm_recipe(folder, 7, **after), rates=False), "--ckpt_path", "last")
    old, new = groups_at(folder, 4), groups_at(folder, 5)
    assert old["audio_tail"] == [1e-3, 0.1, [0.9, 0.95]]
    assert new["audio_tail"] == [4e-3, 0.3, [0.8, 0.9]]
    assert old["audio_head"][0] == 2e-3
    assert new["audio_head"][0] == 2e-3  # four times the rate, a quarter of the factor
    assert new["audio_tail.no_decay"] == [4e-3, 0.0, [0.8, 0.9]]
    assert tags_of(folder)["resumed_with.model.init_args.lr"] == "0.001 -> 0.004"
    assert len(tags_of(folder)) == 4


@pytest.mark.nightly
def test_a_changed_rate_follows_the_schedule(tmp_path):
    same, changed = tmp_path / "same", tmp_path / "changed"
    for folder, more in ((same, ()), (changed, ("--model.init_args.lr", "3.0"))):
        fit(folder, noting(lm_recipe(folder, 5)))
        fit(folder, noting(lm_recipe(folder, 6)), "--ckpt_path", "last", *more)
    ours, theirs = groups_at(changed, 5)["audio_tail"][0], groups_at(same, 5)["audio_tail"][0]
    assert ours == pytest.approx(theirs * 1000, rel=1e-12)


@pytest.mark.nightly
def test_tokenizer(tmp_path, corpus):
    before = {"encoder_lr": 1e-4, "head_lr": 1e-3, "weight_decay": 0.01}
    after = {"encoder_lr": 3e-4, "head_lr": 2e-3, "weight_decay": 0.05}
    for steps, options, more in ((5, before, ()), (6, after, ("--ckpt_path", "last"))):
        path = recipe(tmp_path, corpus, steps, **{f"model__init_args__{k}": v for k, v in options.items()})
        fit(tmp_path, noting(path, rates=False), *more)
    new = groups_at(tmp_path, 5)
    assert new["encoder"] == [3e-4, 0.05, [0.9, 0.98]]
    assert new["head.no_decay"] == [2e-3, 0.0, [0.9, 0.98]]
    assert len(tags_of(tmp_path)) == 3


@pytest.mark.nightly
def test_decoder(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    manifest, codec = str(made_up_manifest(tmp_path / "sounds", 8)), str(made_up_codec(tmp_path / "codec"))
    sizes = {name: getattr(SMALL, name) for name in SMALL.__dataclass_fields__}
    config = {
        "name": "tiny",
        "model": {
            "class_path": "lit_moss.modules.FlowDecoder",
            "init_args": {"flow": sizes, "examples": 0, "lr": 1e-3, "weight_decay": 0.01},
        },
        "data": {
            "class_path": "lit_moss.data.DecoderDataModule",
            "init_args": {"train": [manifest], "validation": [manifest], "speech_tokenizer": codec,
                          "speaker": None, "workers": 0, "batch_sec": 20},
        },
        "trainer": {
            "accelerator": "cpu", "devices": 1, "precision": "32-true", "max_steps": 2,
            "num_sanity_val_steps": 0, "val_check_interval": 100, "enable_model_summary": False,
            "callbacks": [{"class_path": "callbacks.Checkpoint", "init_args": {"every_n_steps": 2}}],
        },
    }  # fmt: skip
    path = tmp_path / "conf.yaml"
    path.write_text(yaml.safe_dump(config))
    fit(tmp_path, noting(path))
    words = ("--model.init_args.lr", "0.004", "--model.init_args.weight_decay", "0.5")
    fit(tmp_path, path, "--ckpt_path", "last", "--trainer.max_steps", "3", *words)
    new = groups_at(tmp_path, 2)
    assert new == {"flow": [4e-3, 0.5, [0.9, 0.98]], "flow.no_decay": [4e-3, 0.0, [0.9, 0.98]]}
    assert len(tags_of(tmp_path)) == 2


@pytest.mark.nightly
def test_what_only_counts_at_the_start_is_not_recorded(tmp_path, recwarn):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    (state,) = folder.glob("runs/tiny/*/checkpoints/step-0000005.ckpt")
    words = ("--model.init_args.init_from", str(state), "--seed_everything", "8", "--data.seed", "7")
    fit(folder, lm_recipe(folder, 6), "--ckpt_path", "last", *words)
    (run,) = mlflow_runs(folder).values()
    assert not [key for key in run.data.tags if "init_from" in key or "seed_everything" in key]
    said = [str(w.message) for w in recwarn]
    assert any("init_from" in text and "has no effect on a resumed run" in text for text in said)


@pytest.mark.nightly
def test_the_same_settings_say_nothing(tmp_path, capfd):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5, stages=[{"policy": "full"}]))
    fit(folder, lm_recipe(folder, 6, stages=[{"policy": "full"}]), "--ckpt_path", "last")
    assert "other settings" not in capfd.readouterr().err


@pytest.mark.nightly
@pytest.mark.parametrize("stages", [[{"policy": "full"}], [{"train": ["audio_head"]}]])
def test_other_parts_are_refused_in_one_line_and_not_recorded(tmp_path, capfd, stages):
    """It was a traceback of torch: a different number of parameter groups."""
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    fit(folder, lm_recipe(folder, 7, stages=stages), "--ckpt_path", "last", expected=2)
    line = capfd.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("error: the checkpoint's optimizer has moments for audio_embedding, ")
    (run,) = mlflow_runs(folder).values()
    assert not [key for key in run.data.tags if key.startswith("resumed_with")]
    fit(folder, lm_recipe(folder, 7), "--ckpt_path", "last")


@pytest.mark.nightly
def test_refused_data_are_not_recorded(tmp_path):
    folder = tmp_path / "run"
    fit(folder, lm_recipe(folder, 5))
    (before,) = mlflow_runs(folder).values()
    fit(folder, lm_recipe(folder, 7), "--ckpt_path", "last", "--data.init_args.batch_size", "3", expected=2)
    (after,) = mlflow_runs(folder).values()
    for tags in (before.data.tags, after.data.tags):
        tags.pop("run_folder")
    assert after.data.tags == before.data.tags
    (config,) = folder.glob("runs/tiny/*/config.yaml")
    assert yaml.safe_load(config.read_text())["data"]["init_args"]["batch_size"] == 2
