"""The decoder's stage: exact resume with averaged weights, learning, validation, what it refuses."""

import pytest
import torch
import yaml
from decoders import SMALL, decoder_recipe, made_up_codec
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, seen

from lit_moss.cli.main import main
from lit_moss.codec.flow_network import Prompt
from lit_moss.errors import UserError
from lit_moss.hub import open_codec
from lit_moss.modules.flow_decoder import MeanByTime, Resynthesis, roughness, start_embeddings


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    return made_up_codec(tmp_path_factory.mktemp("codec"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus, codec):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, decoder_recipe(folder, corpus, codec, 20))
    return folder


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run(tmp_path, corpus, codec, whole):
    fit(tmp_path, decoder_recipe(tmp_path, corpus, codec, 10))
    fit(tmp_path, decoder_recipe(tmp_path, corpus, codec, 20), "--ckpt_path", "last")
    ours, theirs = checkpoints(tmp_path)["step-0000020.ckpt"], checkpoints(whole)["step-0000020.ckpt"]
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "random_states",
                 "global_step", "DecoderDataModule"):  # fmt: skip
        assert_equal(ours[part], theirs[part], part)
    assert curves(tmp_path) == curves(whole)
    assert seen(tmp_path) == seen(whole)


def with_options(path, **options):
    """The recipe with options of the model changed."""
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"] |= options
    path.write_text(yaml.safe_dump(content))
    return path


def mel_recipe(folder, corpus, codec, steps):
    """A decoder that predicts normalised mels, with the weighted loss and the prior."""
    path = decoder_recipe(folder, corpus, codec, steps)
    content = yaml.safe_load(path.read_text())
    options = content["model"]["init_args"]
    options |= {"prior_weight": 1.0, "max_mel_weight": 25.0}
    options["flow"] |= {"predict": "mel", "normalise": "band", "start": 0.5}
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.nightly
def test_a_decoder_of_normalised_mels_learns_resumes_exports_and_streams(tmp_path, corpus, codec):
    runs = {name: tmp_path / name for name in ("whole", "parts")}
    for folder in runs.values():
        folder.mkdir()
    fit(runs["whole"], mel_recipe(runs["whole"], corpus, codec, 10))
    fit(runs["parts"], mel_recipe(runs["parts"], corpus, codec, 5))
    fit(runs["parts"], mel_recipe(runs["parts"], corpus, codec, 10), "--ckpt_path", "last")
    ours, theirs = (checkpoints(folder)["step-0000010.ckpt"] for folder in runs.values())
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "random_states"):
        assert_equal(ours[part], theirs[part], part)
    found = curves(runs["whole"])
    assert found == curves(runs["parts"])
    priors = [value for _, value in found["train/prior"]]
    assert priors[0] < 1.5  # of bands with deviation 1, from their mean
    assert sum(priors[-3:]) < sum(priors[:3])
    assert found["val/roughness"][0][1] > 0
    # Averaging rounds the statistics, which never change otherwise.
    averaged, current = (ours[key]["flow.bands.mean_M"] for key in ("state_dict", "current_model_state"))
    assert torch.allclose(averaged, current, atol=1e-4)
    assert float(current.mean()) < -2
    opened = open_codec(str(next(runs["whole"].glob("runs/tiny/*/checkpoints/step-0000010.ckpt"))))
    assert (opened.flow.config.predict, opened.flow.config.normalise) == ("mel", "band")
    opened.save_pretrained(tmp_path / "folder")
    again, codes = open_codec(str(tmp_path / "folder")), torch.arange(12) % 64
    wave = opened.decode(codes)
    assert torch.equal(again.decode(codes), wave)
    player = again.stream()
    streamed = torch.cat([player.push(codes[:5]), player.push(codes[5:]), player.flush()])
    assert streamed.shape == wave.shape
    assert streamed.isfinite().all()


def test_roughness_is_1_for_the_truth_more_for_noise_and_less_for_a_blur():
    torch.manual_seed(0)
    truth = torch.randn(80, 50).cumsum(dim=1)
    blurred = torch.nn.functional.avg_pool1d(truth, 5, 1, 2)
    assert roughness(Resynthesis("", truth, truth)) == 1
    assert float(roughness(Resynthesis("", truth, 2 * truth - 6))) == pytest.approx(2)
    assert roughness(Resynthesis("", truth, truth + torch.randn(80, 50))) > 1.3
    assert roughness(Resynthesis("", truth, blurred)) < 0.7


@pytest.mark.nightly
def test_sigterm_in_a_validation_saves_the_current_weights_as_current(tmp_path, corpus, codec, whole):
    """Averaged weights stand in for the current ones until a validation ends: they were saved exchanged."""
    term = [{"class_path": "recording.TermInValidation", "init_args": {"step": 8}}]
    path = decoder_recipe(tmp_path, corpus, codec, 20, **{"trainer__callbacks+": term})
    content = yaml.safe_load(path.read_text())
    content["data"]["init_args"]["validation_batch_sec"] = 1.0  # a clip a batch
    path.write_text(yaml.safe_dump(content))
    done = fit_in_process(tmp_path, path)
    assert done.returncode == 143, done.stderr[-2000:]
    assert "step-0000008.ckpt" in checkpoints(tmp_path)
    fit(tmp_path, decoder_recipe(tmp_path, corpus, codec, 20), "--ckpt_path", "last")
    ours, theirs = checkpoints(tmp_path)["step-0000020.ckpt"], checkpoints(whole)["step-0000020.ckpt"]
    for part in ("state_dict", "current_model_state", "optimizer_states"):
        assert_equal(ours[part], theirs[part], part)


@pytest.mark.nightly
def test_validation_with_another_tokenizer_is_refused(whole, corpus, tmp_path, tmp_path_factory, capsys):
    path = decoder_recipe(tmp_path, corpus, made_up_codec(tmp_path_factory.mktemp("other"), seed=1), 20)
    checkpoint = next(whole.glob("runs/tiny/*/checkpoints/step-0000020.ckpt"))
    assert main(["validate", "-c", str(path), "--ckpt_path", str(checkpoint)]) == 2
    assert "was trained on codes of" in capsys.readouterr().err


@pytest.mark.nightly
def test_it_learns_and_reports(whole):
    found = curves(whole)
    losses = [value for _, value in found["train/loss"]]
    # From the mean mel on: 41 would be the loss of a velocity of 0.
    assert losses[0] < 12
    assert sum(losses[-10:]) < sum(losses[:10])
    assert [step for step, _ in found["val/loss"]] == [8, 16]
    assert {"val/loss_streaming", "val/mel_distance_db"} <= found.keys()
    assert any(key.startswith("val/loss_t") for key in found)
    (artifacts,) = whole.glob("mlruns/*/*/artifacts")
    assert {p.name for p in (artifacts / "pictures").iterdir()} == {"mel_0000008.png", "mel_0000016.png"}
    sounds = {p.name.split("_")[-1] for p in (artifacts / "audio").iterdir()}
    assert sounds == {"truth.wav", "0000008.wav", "0000016.wav"}


@pytest.mark.nightly
def test_the_prior_loss_teaches_the_encoder_the_mel(tmp_path, corpus, codec):
    fit(tmp_path, with_options(decoder_recipe(tmp_path, corpus, codec, 20), prior_weight=1.0))
    found = curves(tmp_path)
    priors = [value for _, value in found["train/prior"]]
    assert sum(priors[-5:]) < 0.9 * sum(priors[:5])
    assert [step for step, _ in found["val/prior"]] == [8, 16]


@pytest.mark.nightly
def test_the_velocity_network_begins_after_the_prior_steps(tmp_path, corpus, codec):
    fit(tmp_path, with_options(mel_recipe(tmp_path, corpus, codec, 8), prior_steps=5))
    found = curves(tmp_path)
    assert [step for step, _ in found["train/prior"]] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [step for step, _ in found["train/loss"]] == [6, 7, 8]


@pytest.mark.nightly
def test_without_solver_steps_the_encoder_alone_is_trained(tmp_path, corpus, codec, capsys):
    path = with_options(decoder_recipe(tmp_path, corpus, codec, 20), prior_weight=1.0)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["flow"] |= {"steps": 0}
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path)
    found = curves(tmp_path)
    for key in ("val/loss", "val/loss_streaming"):
        assert found[key][-1][1] < found[key][0][1], key
    losses = [value for _, value in found["train/loss"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    assert found["val/prior"] == found["val/loss"]
    assert not [key for key in found if key.startswith("val/loss_t")]
    files = sorted(tmp_path.glob("runs/tiny/*/checkpoints/step-*.ckpt"))
    states = [torch.load(file, weights_only=True)["state_dict"] for file in (files[0], files[-1])]
    changed = {n for n in states[0] if not torch.equal(states[0][n], states[-1][n])}
    assert "flow.encoder_proj.weight" in changed
    assert not [n for n in changed if n.startswith(("flow.decoder.", "flow.spk_embed"))]
    opened = open_codec(str(files[-1]))
    codes = opened.encode(torch.randn(16_000), 16_000)
    assert opened.decode(codes).shape == (1920 * len(codes),)
    with pytest.raises(UserError, match="speaks in the one voice of its training"):
        opened.prompt(torch.randn(16_000), 16_000)
    (tmp_path / "clips.yaml").write_text(
        yaml.safe_dump({"codec": str(files[-1]), "clips": str(corpus / "train.jsonl")})
    )
    assert main(["evaluate", "resynthesis", "-c", str(tmp_path / "clips.yaml"), "--steps", "4"]) == 2
    assert "was trained with steps 0" in capsys.readouterr().err


@pytest.mark.nightly
def test_a_checkpoint_is_a_codec_with_the_averaged_weights(whole, tmp_path):
    file = next(whole.glob("runs/tiny/*/checkpoints/step-0000020.ckpt"))
    codec = open_codec(str(file))
    saved = torch.load(file, weights_only=True)
    averaged = saved["state_dict"]["flow.encoder_proj.weight"]
    assert torch.equal(codec.flow.encoder_proj.weight, averaged)
    assert not torch.equal(saved["current_model_state"]["flow.encoder_proj.weight"], averaged)
    codes = codec.encode(torch.randn(16_000), 16_000)
    assert codec.decode(codes).shape == (1920 * len(codes),)
    # A run with speaker vectors keeps their mean: what is made without a prompt speaks with it.
    saved["decoder"]["voice"] = torch.randn(SMALL.speaker_dim)
    torch.save(saved, tmp_path / "voice.ckpt")
    voiced = open_codec(str(tmp_path / "voice.ckpt"))
    assert torch.equal(voiced.voice, saved["decoder"]["voice"])
    assert not torch.equal(voiced.decode(codes), codec.decode(codes))
    assert torch.equal(voiced.decode(codes), codec.decode(codes, Prompt.none(voiced.voice)))
    voiced.save_pretrained(tmp_path / "folder")
    assert torch.equal(open_codec(str(tmp_path / "folder")).voice, voiced.voice)
    assert open_codec(str(whole / "runs/tiny")).flow.config.vocab_size == 64


@pytest.mark.nightly
def test_a_decoder_whose_tokenizer_has_changed_is_refused(whole, codec, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    file, kept = codec / "model.safetensors", (codec / "model.safetensors").read_bytes()
    tensors = load_file(file)
    tensors["encoder.conv1.bias"] += 1
    save_file(tensors, file, metadata={"format": "pt"})
    try:
        with pytest.raises(UserError, match="put that tokenizer back"):
            open_codec(str(whole / "runs/tiny"))
        file.unlink()
        with pytest.raises(UserError, match=r"was trained on codes of .* cannot be opened from here"):
            open_codec(str(whole / "runs/tiny"))
    finally:
        file.write_bytes(kept)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 32}, "has 64 codes, model.flow.vocab_size is 32"),
        ({"hidden": 33}, "expected an even multiple of encoder_heads"),
        ({"encoder_heads": 0}, "encoder_heads is 0, expected 1 or more"),
        ({"start": 0.8}, "start is 0.8 and model.prior_weight 0"),
        ({"steps": 0}, "steps is 0 and model.prior_weight 0"),
        ({"steps": -1}, "steps is -1, expected 0 or more"),
        ({"start": 1.0}, "below 1"),
        ({"predict": "noise"}, "predict"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(tmp_path, corpus, codec, capsys, change, message):
    path = decoder_recipe(tmp_path, corpus, codec, 2)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"]["flow"] |= change
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path, expected=2)
    said = capsys.readouterr().err.strip().splitlines()
    assert message in said[-1]


@pytest.mark.nightly
def test_two_ranks_validate_and_draw_different_numbers(tmp_path, corpus, codec):
    """Ranks that had seen other quarters of t waited for each other in different collectives."""
    path = decoder_recipe(tmp_path, corpus, codec, 8, trainer__devices=2, trainer__strategy="ddp")
    done = fit_in_process(tmp_path, path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [step for step, _ in curves(tmp_path)["val/loss"]] == [8]
    states = checkpoints(tmp_path)["step-0000005.ckpt"]["random_states"]
    assert not torch.equal(states[0]["torch"], states[1]["torch"])
    assert (tmp_path / "ids.0").read_text() != (tmp_path / "ids.1").read_text()


def test_data_of_another_kind_is_refused():
    from types import SimpleNamespace

    from lit_moss.contracts import DecoderData
    from lit_moss.data import SpeechDataModule
    from lit_moss.trainer_access import data_of

    with pytest.raises(UserError, match="data is SpeechDataModule, this model expects DecoderDataModule"):
        data_of(SimpleNamespace(datamodule=SpeechDataModule()), DecoderData)


def test_means_by_time_of_two_ranks_are_those_of_one():
    one, parts = MeanByTime(), [MeanByTime(), MeanByTime()]
    t, loss, weight = torch.tensor([0.1, 0.9, 0.95, 1.0]), torch.tensor([1.0, 2, 4, 6]), torch.ones(4)
    one.update(t, loss, weight)
    parts[0].update(t[:1], loss[:1], weight[:1])
    parts[1].update(t[1:], loss[1:], weight[1:])
    merged = (parts[0].sums + parts[1].sums) / (parts[0].weights + parts[1].weights)
    assert torch.equal(torch.nan_to_num(merged, 9), torch.nan_to_num(one.compute(), 9))
    assert torch.nan_to_num(one.compute(), -1).tolist() == [1, -1, -1, 4]


@pytest.mark.slow
def test_sampling_under_autocast_keeps_times_and_states_in_float32():
    from decoders import small_flow

    flow, codes, seen = small_flow().requires_grad_(False), torch.arange(30)[None], []
    exact = flow.sample(codes)
    flow.decoder.estimator.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = flow.sample(codes)
        flow.stream().push(codes[0])
    for x_BMT, t_B, conditions, *_ in seen:
        floats = (x_BMT, t_B, conditions.mask_B1T, conditions.mu_BMT, conditions.prompt_BMT)
        assert all(x.dtype == torch.float32 for x in floats)
    assert (rounded - exact).abs().mean() < 0.05


def test_embeddings_begin_with_the_codebooks_distances():
    torch.manual_seed(0)
    codebook, weight = torch.randn(50, 96), torch.zeros(60, 96)
    start_embeddings(weight, codebook)
    ratio = torch.pdist(weight[:50]) / torch.pdist(codebook)
    assert ratio.std() < 1e-4
    assert float(weight[:50].std()) == pytest.approx(1, abs=1e-3)
    assert not weight[50:].any()
    start_embeddings(torch.zeros(60, 24), codebook)
