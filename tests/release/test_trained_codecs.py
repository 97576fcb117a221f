"""Trained runs of tokenizers and decoders become codecs' folders, alone and inside a model's."""

import pytest
import yaml
from decoders import decoder_recipe
from lm_recipe import lm_recipe
from recording import fit, recipe

from lit_moss.cli.main import main
from lit_moss.hub import open_codec, open_tokenizer, speech_tokenizer_fingerprint
from lit_moss.hub.model_folder import ModelRecord
from lit_moss.serve.model import SpeechModel


@pytest.mark.nightly
def test_runs_of_tokenizer_decoder_and_model_are_exported_by_the_command_line(corpus, tmp_path, capsys):
    tokenizer, decoder, model = (tmp_path / name for name in ("tokenizer", "decoder", "model"))
    fit(tokenizer, recipe(tokenizer, corpus, 10))
    words = ["--out", str(tmp_path / "tokenizer_out"), "--license", "mit"]
    assert main(["export", str(tokenizer / "runs/tiny"), *words]) == 0
    made_by = speech_tokenizer_fingerprint(str(tmp_path / "tokenizer_out"))
    assert made_by == speech_tokenizer_fingerprint(str(tokenizer / "runs/tiny"))
    assert open_tokenizer(str(tmp_path / "tokenizer_out")).config.quantize_vocab_size == 32
    assert "license: mit" in (tmp_path / "tokenizer_out/README.md").read_text()

    conf = decoder_recipe(decoder, corpus, tmp_path / "tokenizer_out", 10)
    config = yaml.safe_load(conf.read_text())
    config["model"]["init_args"]["flow"]["vocab_size"] = 32
    conf.write_text(yaml.safe_dump(config))
    fit(decoder, conf)
    capsys.readouterr()
    assert main(["export", str(decoder / "runs/tiny"), "--out", str(tmp_path / "codec_out")]) == 0
    assert "a codec" in capsys.readouterr().out
    codec = open_codec(str(tmp_path / "codec_out"))
    assert codec.tokenizer is not None
    assert speech_tokenizer_fingerprint(str(tmp_path / "codec_out")) == made_by

    fit(model, lm_recipe(model, 5, kind="sft", stages=[{"policy": "full"}], speech_tokenizer=made_by))
    words = ["--codec", str(decoder / "runs/tiny"), "--out", str(tmp_path / "out")]
    assert main(["export", str(model / "runs/tiny"), *words]) == 0
    assert ModelRecord.read(tmp_path / "out").speech_tokenizer == made_by
    opened = SpeechModel.open(str(tmp_path / "out"))
    assert opened.codec is not None
    for words in (["--average", "2"], ["--dtype", "bfloat16"], ["--codec", "x"]):
        assert main(["export", str(decoder / "runs/tiny"), "--out", str(tmp_path / "never"), *words]) == 2
        assert "is no language model" in capsys.readouterr().err.splitlines()[-1]
