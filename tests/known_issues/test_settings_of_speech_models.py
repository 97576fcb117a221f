"""Settings of tokenizer, decoder and vocoder that cannot be: tracebacks, some of them in the middle of a run,
misleading messages, or nothing at all where they had no effect.
"""

import json

import pytest
import torch
import yaml
from decoders import decoder_recipe, made_up_codec, small_flow
from recording import fit, recipe
from vocoders import vocoder_recipe

from lit_moss.audio.precision import check_weights
from lit_moss.cli.main import main
from lit_moss.codec import Codec
from lit_moss.codec.discriminators import DiscriminatorConfig, Discriminators
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig
from lit_moss.data import DecoderDataModule, SpeechDataModule
from lit_moss.data.wave_changes import WaveChanges
from lit_moss.errors import UserError
from lit_moss.modules import CodecEncoder

SIZES = {"num_mel_bins": 80, "d_model": 64, "encoder_attention_heads": 2, "encoder_ffn_dim": 128,
         "quantize_position": 1, "quantize_vocab_size": 32}  # fmt: skip


def last_line(capsys):
    return capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kmeans_batches": 0}, "kmeans_batches 0"),  # "none of the audio could be read", at step 250
        ({"quantize_from_step": -1}, "quantize_from_step is -1"),
        ({"head_width": 0}, "head_width is 0"),
        ({"head_layers": -1}, "head_layers -1"),
        ({"head_dropout": 1.5}, "head_dropout 1.5"),
    ],
)
def test_a_tokenizers_options_are_one_line(options, message):
    with pytest.raises(UserError, match=message):
        CodecEncoder(init_from=None, encoder=EncoderConfig(**SIZES), **options)


@pytest.mark.parametrize("sizes", [{"d_model": 65, "encoder_attention_heads": 5}, {"d_model": 2}])
def test_a_width_without_sines_and_cosines_is_refused(sizes):
    with pytest.raises(UserError, match=r"d_model is .*, expected an even number of 4 or more"):
        EncoderConfig(**(SIZES | sizes))
    CausalEncoder(EncoderConfig(**(SIZES | {"d_model": 4})))


def test_positions_for_less_than_a_code_are_refused():
    """A stream of such a tokenizer never came back."""
    with pytest.raises(UserError, match="max_source_positions is 3, expected 4 or more"):
        EncoderConfig(**(SIZES | {"max_source_positions": 3}))


@pytest.mark.parametrize(
    "options",
    [{"buckets": 0}, {"freq_masks": -1}, {"freq_mask_bins": -1}, {"time_masks": -1}, {"mel_bins": 0},
     {"time_mask_share": -0.1}, {"time_mask_share": 1.5}],
)  # fmt: skip
def test_options_of_speech_data_are_one_line(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"data\..*{name}.* {value}"):
        SpeechDataModule(train=["a.jsonl"], **options)


@pytest.mark.parametrize(("name", "share"), [("noises", "noise_share"), ("rooms", "reverb_share")])
def test_recordings_that_no_item_would_have_are_refused(name, share):
    """A recipe that named noises and no share of items trained without noise."""
    with pytest.raises(UserError, match=rf"wave_changes\.{name} is .* and {share} 0"):
        WaveChanges(**{name: ["a.jsonl"]})
    assert WaveChanges(**{name: ["a.jsonl"], share: 0.5}).on


def test_one_shift_may_not_cut_the_shortest_clip_below_a_code():
    """Such clips counted as unreadable, and more than 1 % of them ended the run."""
    with pytest.raises(UserError, match=r"data.min_sec is 0.1 and data.shifts \[40\]"):
        DecoderDataModule(train=["a.jsonl"], shifts=[40], min_sec=0.1)


def test_a_window_without_a_hop_is_refused():
    with pytest.raises(UserError, match="windows of 4 or more"):
        DiscriminatorConfig(windows=[2])
    small = {"periods": [2], "period_channels": [2], "window_channels": 2}
    assert len(Discriminators(DiscriminatorConfig(windows=[4], **small))(torch.randn(1, 100))) == 2


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_small_weights_are_refused(precision):
    with pytest.raises(UserError, match=rf"trainer.precision is {precision}, .*expected 32-true, or bf16"):
        check_weights(precision)
    for other in ("32-true", "64-true", "bf16-mixed", "16-mixed"):
        check_weights(other)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["tokenizer", "decoder", "vocoder"])
def test_so_they_are_by_every_speech_model(tmp_path, corpus, capsys, kind):
    """Two of them ended in a traceback of the Fourier transform; a decoder trained with times of 8 bits."""
    changes = {"trainer__precision": "bf16-true"}
    if kind == "tokenizer":
        path = recipe(tmp_path, corpus, 2, **changes)
    elif kind == "decoder":
        path = decoder_recipe(tmp_path, corpus, made_up_codec(tmp_path / "codec"), 2, **changes)
    else:
        path = vocoder_recipe(tmp_path, corpus, 2, **changes)
    fit(tmp_path, path, expected=2)
    assert "trainer.precision is bf16-true" in last_line(capsys)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        # A traceback at the first batch with a longer item.
        ({"model__init_args__encoder__max_source_positions": 500},
         "data.max_sec lets items of 11.11 s pass, at the slowest speed and shifted; max_source_positions "
         "are for 10.00 s"),
        # Masks for 80 of 128 bins, without a word.
        ({"data__init_args__mel_bins": 128}, "data.mel_bins is 128, the network has 80"),
    ],
)  # fmt: skip
def test_data_that_do_not_fit_the_network_are_refused(tmp_path, corpus, capsys, changes, message):
    fit(tmp_path, recipe(tmp_path, corpus, 2, **changes), expected=2)
    assert message in last_line(capsys)


@pytest.mark.slow
def test_data_that_just_fit_it_train(tmp_path, corpus):
    path = recipe(
        tmp_path, corpus, 1,
        model__init_args__encoder__max_source_positions=500, data__init_args__max_sec=9.0,
        data__init_args__mel_bins=128, data__init_args__freq_masks=0, trainer__val_check_interval=1,
    )  # fmt: skip
    fit(tmp_path, path)


@pytest.mark.nightly
def test_predictions_without_a_codebook_are_refused(tmp_path, corpus, monkeypatch, capsys):
    """They held codes of the random numbers that a codebook starts as."""
    path = recipe(tmp_path, corpus, 3)  # the codebook starts at step 7
    fit(tmp_path, path)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "-c", str(path), "--ckpt_path", "last"]) == 2
    assert "the checkpoint is from before quantization, it has no codebook" in last_line(capsys)
    assert not list(tmp_path.glob("runs/tiny/*/predictions.jsonl"))


def test_a_size_of_batches_beside_a_stream_is_refused(tmp_path, capsys):
    Codec(None, small_flow()).save_pretrained(tmp_path / "codec")
    (tmp_path / "codes.jsonl").write_text(json.dumps({"id": "one", "codes": [1] * 4}) + "\n")
    words = [
        "synthesize",
        str(tmp_path / "codes.jsonl"),
        "--codec",
        str(tmp_path / "codec"),
        "--device",
        "cpu",
    ]
    assert main([*words, "--out", str(tmp_path / "out"), "--stream", "--batch-codes", "10"]) == 2
    assert "--batch-codes with --stream" in last_line(capsys)
    assert not (tmp_path / "out").exists()


def test_the_recipes_fit_their_networks():
    """Masks of the recipes are drawn for the mel bins of the networks that they start from."""
    from test_project import ROOT

    bins = {"embedded:whisper-tiny": 80, "embedded:whisper-base": 80, "zai-org/glm-4-voice-tokenizer": 128}
    for name in ("codec_encoder.yaml", "quickstart.yaml", "paper/codec_encoder.yaml"):
        content = yaml.safe_load((ROOT / "conf" / name).read_text())
        data = content["data"]["init_args"]
        assert data.get("mel_bins", 80) == bins[content["model"]["init_args"].get("init_from")], name
