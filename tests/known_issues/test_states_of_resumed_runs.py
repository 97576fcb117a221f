"""Each resume left one more checkpoint in a run's folder for good, and one with a smaller `keep` all of them.

A callback with `monitor` and `every_n_steps` wrote no state to resume from, nor did one with `keep: 0`, and
neither said so.
"""

import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit

from callbacks import Checkpoint
from lit_moss.errors import UserError


@pytest.mark.nightly
def test_a_run_keeps_its_newest_states_over_all_resumes(tmp_path):
    def states(steps, *words, **options):
        path = lm_recipe(tmp_path / "run", steps)
        config = yaml.safe_load(path.read_text())
        for callback in config["trainer"]["callbacks"]:
            if "every_n_steps" in callback.get("init_args", {}) and callback["class_path"].endswith(
                "Checkpoint"
            ):
                callback["init_args"] = options
        config["trainer"].pop("val_check_interval")
        config["data"]["init_args"]["validation"] = []
        path.write_text(yaml.safe_dump(config))
        fit(path.parent, path, *words)
        (folder,) = path.parent.glob("runs/tiny/*/checkpoints")
        return [int(file.stem[5:]) for file in sorted(folder.glob("step-*.ckpt"))]

    last = ("--ckpt_path", "last")
    assert states(4, every_n_steps=1, keep=3) == [2, 3, 4]
    # The one that a start resumes from stays until the next start.
    assert states(6, *last, every_n_steps=1, keep=1) == [4, 6]
    assert states(8, *last, every_n_steps=2, keep=1) == [6, 8]
    assert states(10, *last, every_n_steps=1, keep=-1) == [6, 8, 9, 10]


@pytest.mark.parametrize(
    "options",
    [
        {"monitor": "val/loss", "every_n_steps": 100},
        {"every_n_steps": 100, "keep": 0},
        {"every_n_steps": -1},
        {"every_n_steps": 100, "keep": -2},
        {"monitor": "val/loss", "mode": "lowest"},
    ],
)
def test_options_that_would_write_nothing_are_refused(options):
    with pytest.raises(UserError, match="Checkpoint got"):
        Checkpoint(**options)
