"""Weights in bfloat16: `precision: bf16-true` was refused as an unsuitable backbone, and a validation's word
errors ended in a traceback with `frozen_dtype: bfloat16`; codes of `predict` were computed under autocast.
"""

import glob

import pytest
import torch
import yaml
from backbones import config_of
from lm_recipe import backbone_folder, lm_recipe

from lit_moss.audio.rates import SAMPLES_PER_CODE
from lit_moss.cli.main import main
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.ctc import CharVocabulary
from lit_moss.data.batches import SpeechBatch
from lit_moss.llm import SplitLM
from lit_moss.llm.check import check_backbone
from lit_moss.modules import CodecEncoder
from lit_moss.modules.steps import StepModule


@pytest.fixture
def bfloat16_by_default():
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


def test_a_backbone_is_checked_in_float32(bfloat16_by_default):
    check_backbone(config_of("llama", vocab_size=73), SplitLM)  # a size that no other test has checked
    assert torch.get_default_dtype() == torch.bfloat16
    assert float(StepModule().on_device(1001.0)) == 1001.0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_bf16_true_trains(tmp_path, monkeypatch, dtype):
    path = lm_recipe(tmp_path / "run", 3, stages=[{"policy": "full"}], dtype=dtype)
    config = yaml.safe_load(path.read_text())
    config["trainer"]["precision"] = "bf16-true"
    path.write_text(yaml.safe_dump(config))
    monkeypatch.chdir(path.parent)
    assert main(["fit", "-c", str(path)]) == 0
    assert glob.glob("runs/tiny/*/checkpoints/*.ckpt")


def test_replies_of_weights_in_two_dtypes_need_autocast(tmp_path):
    lm = SplitLM.from_backbone(backbone_folder(tmp_path / "backbone"), 1, 128).eval()
    prompt = [list(range(10, 30))]
    expected = lm.generate(prompt, "text", max_new_tokens=8, greedy=True)
    for layer in lm.trunk.layers:
        layer.to(torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert len(lm.generate(prompt, "text", max_new_tokens=8, greedy=True)[0]) == len(expected[0])
    lm.float()
    with torch.autocast("cpu", torch.bfloat16):  # of one dtype they are made in it
        whole = lm.generate(prompt, "text", max_new_tokens=8, greedy=True)
    assert whole == lm.generate(prompt, "text", max_new_tokens=8, greedy=True)


def test_codes_of_predict_are_those_of_the_tokenizer_under_autocast(tiny_encoder):
    module = CodecEncoder(init_from=None, encoder=tiny_encoder().config, head_layers=1, head_width=64)
    torch.nn.init.normal_(module.encoder.codebook.weight)
    module._build_head(CharVocabulary("ab"))
    lengths = [20 * SAMPLES_PER_CODE, 7 * SAMPLES_PER_CODE + 5, 100]
    waves = [torch.randn(n, generator=torch.Generator().manual_seed(n)) * 0.1 for n in lengths]
    wave_BT = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True)
    batch = SpeechBatch(wave_BT, torch.tensor(lengths), ["a", "b", "c"], [""] * 3)
    expected = [codes.tolist() for codes in SpeechTokenizer(module.encoder).encode(waves, 16_000)]
    module.eval()
    module.on_predict_start()
    with torch.no_grad():
        plain = module.predict_step(batch, 0)
        with torch.autocast("cpu", torch.bfloat16):
            under = module.predict_step(batch, 0)
    assert [item["codes"] for item in plain] == [item["codes"] for item in under] == expected
