"""A decoder started from a flow.pt alone, a tokenizer from a folder alone: neither from a run of its kind."""

import pytest
import torch
import yaml
from decoders import decoder_recipe, made_up_codec
from recording import checkpoints, fit, recipe

from lit_moss.codec import SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.hub.codec import flow_weights, open_codec
from lit_moss.modules import CodecEncoder
from lit_moss.release.codec_export import export_codec


def at_rate_zero(path, **options):
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"] |= options
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.nightly
@pytest.mark.parametrize("start", ["run", "name", "checkpoint", "folder"])
def test_a_decoder_continues_from_its_own_kind(tmp_path, corpus, start):
    codec = made_up_codec(tmp_path / "codec")
    first = tmp_path / "first"
    fit(first, decoder_recipe(first, corpus, codec, 10))
    (run,) = (first / "runs/tiny").iterdir()
    export_codec(str(run), tmp_path / "exported")
    best = run / "checkpoints/best.ckpt"
    place = {"run": run, "name": run.parent, "checkpoint": best, "folder": tmp_path / "exported"}[start]
    weights = open_codec(str(run)).flow.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in flow_weights(str(place)).items())
    again = tmp_path / "again"
    fit(again, at_rate_zero(decoder_recipe(again, corpus, codec, 5), init_from=str(place), lr=0.0))
    state = checkpoints(again)["step-0000005.ckpt"]["state_dict"]
    assert all(torch.equal(state[f"flow.{name}"], tensor) for name, tensor in weights.items())


@pytest.mark.nightly
def test_a_tokenizer_continues_from_a_run(tmp_path, corpus):
    fit(tmp_path, recipe(tmp_path, corpus, 12, model__init_args__quantize_from_step=4))
    (run,) = (tmp_path / "runs/tiny").iterdir()
    tokenizer = SpeechTokenizer.from_pretrained(run / "checkpoints/best.ckpt")
    for place in (run, run.parent, run / "checkpoints/best.ckpt"):
        module = CodecEncoder(init_from=str(place), head_layers=1, head_width=64)
        ours, theirs = module.encoder.state_dict(), tokenizer.encoder.state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_what_is_no_decoder_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"has no flow decoder: expected a flow.pt, a run"):
        flow_weights(str(tmp_path / "folder"))
