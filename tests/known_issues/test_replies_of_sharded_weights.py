"""Transcripts at validations and `predict` of a model whose weights are sharded ended in a traceback."""

import pytest
import yaml
from lm_recipe import lm_recipe
from recording import fit_in_process
from sharded import settings


@pytest.mark.nightly
def test_transcripts_are_refused_in_one_line(tmp_path):
    path = lm_recipe(tmp_path, 2)
    config = yaml.safe_load(path.read_text())
    config["trainer"] |= {"devices": 1, "strategy": settings("fsdp2")}
    config["data"]["init_args"]["asr_items"] = 2
    path.write_text(yaml.safe_dump(config))
    done = fit_in_process(tmp_path, path)
    assert done.returncode == 2
    assert "data.asr_items is 2 with FSDP2: transcripts need whole weights" in done.stderr
    assert "Traceback" not in done.stderr
