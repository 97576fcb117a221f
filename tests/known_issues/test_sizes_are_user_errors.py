"""A size of a model's configuration that cannot be was a traceback of the parser, not one line."""

import pytest
import yaml
from recording import fit, recipe


def test_a_tokenizers_sizes_that_do_not_fit_are_one_line(tmp_path, corpus, capsys):
    path = recipe(tmp_path, corpus, 2)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["encoder"]["encoder_attention_heads"] = 7
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path, expected=2)
    assert "64 is not a multiple of 7 heads" in capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("key", ["log_mel", "quantize_vocab_size"])
def test_so_are_its_other_values(tmp_path, corpus, capsys, key):
    path = recipe(tmp_path, corpus, 2)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["encoder"][key] = {"log_mel": "both", "quantize_vocab_size": 1}[key]
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path, expected=2)
    assert f"{key} is" in capsys.readouterr().err.strip().splitlines()[-1]
