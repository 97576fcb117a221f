"""`trainer.limit_train_batches` trained on the same first batches again and again.

Lightning ends an epoch there and restarts the loader, which starts at the batch where the run began; a
resumed run continued elsewhere in the order.
"""

import pytest
from lm_recipe import lm_recipe

from lit_moss.cli.main import main


@pytest.mark.parametrize("option", ["limit_train_batches", "overfit_batches"])
def test_it_is_refused_in_one_line(tmp_path, monkeypatch, capsys, option):
    path = lm_recipe(tmp_path, 4)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", str(path), f"--trainer.{option}", "2"]) == 2
    assert f"trainer.{option} is 2, expected none" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
