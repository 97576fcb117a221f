"""Runs of the speech tokenizer from other starts, and on changed waves."""

import pytest
import torch
import yaml
from recording import assert_equal, checkpoints, curves, fit, recipe, seen

from lit_moss.hub.tokenizer import open_tokenizer


def changed_recipe(folder, corpus, steps):
    path = recipe(folder, corpus, steps)
    content = yaml.safe_load(path.read_text())
    content["data"]["init_args"]["wave_changes"] = {
        "reverb_share": 0.5, "noise_share": 0.5, "gain_share": 0.5, "offset_share": 0.5
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.nightly
def test_a_run_on_changed_waves_resumes_to_the_bit(tmp_path, corpus):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder in (whole, parts):
        folder.mkdir()
    fit(whole, changed_recipe(whole, corpus, 10))
    fit(parts, changed_recipe(parts, corpus, 5))
    fit(parts, changed_recipe(parts, corpus, 10), "--ckpt_path", "last")
    ours, theirs = (checkpoints(folder)["step-0000010.ckpt"] for folder in (parts, whole))
    for part in ("state_dict", "optimizer_states", "random_states", "SpeechDataModule"):
        assert_equal(ours[part], theirs[part], part)
    assert curves(parts) == curves(whole)
    assert seen(parts) == seen(whole)


@pytest.mark.nightly
@pytest.mark.network
def test_a_tokenizer_from_whisper_base_trains_and_opens(tmp_path, corpus):
    """Its width differs from the head's, and its codebook from Whisper-tiny's."""
    path = recipe(tmp_path, corpus, 3)
    content = yaml.safe_load(path.read_text())
    options = content["model"]["init_args"]
    options |= {"init_from": "embedded:whisper-base", "encoder": None, "codebook_size": 32}
    options |= {"quantize_from_step": 2, "kmeans_batches": 1}
    content["trainer"]["val_check_interval"] = 3
    content["trainer"]["callbacks"] = [
        c for c in content["trainer"]["callbacks"] if c.get("init_args", {}).get("every_n_steps") != 5
    ]
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path)
    assert curves(tmp_path)["val/codebook_used"]
    tokenizer = open_tokenizer(str(tmp_path / "runs/tiny"))
    assert (tokenizer.config.d_model, tokenizer.config.quantize_vocab_size) == (512, 32)
    codes = tokenizer.encode(0.1 * torch.randn(16_000), 16_000)
    assert codes.shape == (13,)
