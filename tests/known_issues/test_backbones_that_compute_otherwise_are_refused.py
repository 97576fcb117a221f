"""Backbones with the right parts whose split or packed logits are not the backbone's: one line before
training.

Off by 4.9 (StableLM), 9.3 (Nemotron), 5.1 (Cohere) and 0.74 (dynamic frequencies) nats; OLMo-1 ended in an
AttributeError once its documents were packed, and is right now.
"""

import pytest
import torch
import yaml
from backbones import config_of, folder_of, other_config
from lm_recipe import lm_recipe

from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.check import check_backbone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "changes", "part"),
    [
        ("stablelm", {}, "packed documents are not kept apart"),
        ("nemotron", {}, "packed documents are not kept apart"),
        ("cohere", {}, "do not give the backbone's own logits"),
        ("doge", {}, "do not give the backbone's own logits"),
        ("nanochat", {}, "do not give the backbone's own logits"),
        ("phimoe", {"lm_head_bias": True}, "do not give the backbone's own logits"),
        ("llama", {"attention_dropout": 0.1}, "attention_dropout"),
        ("phi3", {"resid_pdrop": 0.1}, "resid_pdrop"),
        ("qwen3", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, "dynamic"),
        ("phi3", {"rope_parameters": {
            "rope_type": "longrope", "rope_theta": 1e4, "partial_rotary_factor": 1.0,
            "short_factor": [1.0] * 8, "long_factor": [4.0] * 8, "original_max_position_embeddings": 128,
        }}, "'longrope'"),
    ],
)  # fmt: skip
def test_what_is_computed_otherwise_is_refused_in_one_line(kind, changes, part):
    before = torch.random.get_rng_state()
    with pytest.raises(UserError, match=part) as error:
        SplitLM.from_backbone(other_config(kind, **changes), 1, 40)
    assert "\n" not in str(error.value)
    assert "expected" in str(error.value)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("rope", ["default", "linear", "llama3", "yarn"])
def test_frequencies_that_are_fixed_pass(rope):
    parameters = {"rope_type": rope, "rope_theta": 1e4}
    if rope != "default":
        parameters |= {"factor": 2.0}
    if rope in ("llama3", "yarn"):
        parameters |= {"original_max_position_embeddings": 256}
    if rope == "llama3":
        parameters |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    check_backbone(config_of("llama", rope_parameters=parameters), SplitLM)


@pytest.mark.slow
def test_a_document_beyond_the_positions_is_refused(tmp_path):
    lm = SplitLM.from_backbone(config_of("llama", max_position_embeddings=32), 1, 40).eval()
    rows = torch.arange(40)[None]
    two = torch.arange(40)[None] // 20
    filled = torch.where(torch.arange(80) < 32, 0, -1)[None]
    with torch.no_grad():
        lm(rows, document_ids=two)
        lm.loss(torch.ones(1, 80, dtype=torch.long), document_ids=filled)  # filler is no document
        for call in (lambda: lm(rows), lambda: lm.loss(rows), lambda: lm.loss(rows, torch.zeros_like(rows))):
            with pytest.raises(UserError, match=r"40 rows.*positions for 32"):
                call()
    with pytest.raises(UserError, match=r"33 rows.*positions for 32"):
        lm.generate([5] * 33, max_new_tokens=1)
    lm.stop_ids = []
    made = lm.generate([[5] * 30, [5] * 4], max_new_tokens=40, greedy=True)
    assert [len(m) for m in made] == [3, 29]
    assert made[1] == lm.generate([5] * 4, max_new_tokens=40, greedy=True)


@pytest.mark.nightly
def test_a_context_beyond_the_positions_is_refused_before_training(tmp_path, capsys):
    from recording import fit

    folder = tmp_path / "run"
    path = lm_recipe(folder, 2)
    config = yaml.safe_load(path.read_text())
    config["data"]["init_args"]["context"] = 2048
    path.write_text(yaml.safe_dump(config))
    fit(folder, path, expected=2)
    assert "positions for 512" in capsys.readouterr().err


def test_the_check_leaves_a_folder_and_random_numbers_as_they_were(tmp_path):
    folder, _ = folder_of(tmp_path, "qwen3")
    drawn = []
    for _ in range(2):  # the second time nothing is checked
        torch.manual_seed(1)
        drawn.append(SplitLM.from_backbone(folder, 2, 40).audio_lm_head.weight)
    assert torch.equal(*drawn)
