"""`best.ckpt` of a tokenizer could be a state from before quantization, with which nothing can be encoded.

Error rates are lower without codes, so such a state stayed the best.
"""

import pytest
from recording import checkpoints, recipe

from lit_moss.cli.main import main


@pytest.mark.slow
def test_states_without_codes_are_never_the_best(tmp_path, corpus, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for steps, best in ((4, None), (8, 8)):  # quantized from step 7, validated at 4 and 8
        folder = tmp_path / str(steps)
        path = recipe(folder, corpus, steps, trainer__val_check_interval=4)
        assert main(["fit", "-c", str(path), "--run_root", str(folder / "runs")]) == 0
        found = checkpoints(folder).get("best.ckpt")
        assert (found and found["global_step"]) == best
