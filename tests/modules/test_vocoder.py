"""The vocoder's stage: exact resume with discriminators and averaged weights, learning, what it refuses."""

import pytest
import torch
import yaml
from decoders import small_flow
from recording import assert_equal, checkpoints, curves, fit, fit_in_process, seen
from vocoders import SMALL, small_vocoder, vocoder_recipe

from lit_moss.cli.main import main
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.errors import UserError
from lit_moss.hub import open_vocoder
from lit_moss.modules import Vocoder

JUDGED_FROM = 7


@pytest.fixture(scope="module")
def whole(tmp_path_factory, corpus):
    folder = tmp_path_factory.mktemp("whole")
    fit(folder, vocoder_recipe(folder, corpus, 20, JUDGED_FROM))
    return folder


@pytest.mark.nightly
@pytest.mark.parametrize("stop", [5, 10], ids=["before the discriminators", "with them"])
def test_killed_and_resumed_run_equals_uninterrupted_run(tmp_path, corpus, whole, stop):
    kill = [{"class_path": "recording.KillAt", "init_args": {"step": stop + 2}}]
    path = vocoder_recipe(tmp_path, corpus, 20, JUDGED_FROM, **{"trainer__callbacks+": kill})
    assert fit_in_process(tmp_path, path).returncode == -9
    # Steps after the checkpoint are taken, and noted, again.
    noted = (tmp_path / "ids.0").read_text().splitlines()[:stop]
    (tmp_path / "ids.0").write_text("".join(f"{line}\n" for line in noted))
    path = vocoder_recipe(tmp_path, corpus, 20, JUDGED_FROM)
    fit(tmp_path, path, "--ckpt_path", "last")
    ours, theirs = checkpoints(tmp_path)["step-0000020.ckpt"], checkpoints(whole)["step-0000020.ckpt"]
    for part in ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "random_states",
                 "global_step", "VocoderDataModule", "vocoder"):  # fmt: skip
        assert_equal(ours[part], theirs[part], part)
    assert curves(tmp_path) == curves(whole)
    assert seen(tmp_path) == seen(whole)


@pytest.mark.nightly
def test_it_learns_judges_and_reports(whole):
    found = curves(whole)
    losses = [value for _, value in found["train/loss"]]
    assert sum(losses[-5:]) < 0.9 * sum(losses[:5])
    for name in ("train/discriminator", "train/adversarial", "train/features"):
        assert [step for step, _ in found[name]] == list(range(JUDGED_FROM + 1, 21))
    assert {"val/stft", "val/mel_distance_db", "train/mel", "train/stft"} <= found.keys()
    assert [step for step, _ in found["val/loss"]] == [8, 16]
    (artifacts,) = whole.glob("mlruns/*/*/artifacts")
    pictures = {p.name for p in (artifacts / "pictures").iterdir()}
    assert pictures == {"spectrogram_0000008.png", "spectrogram_0000016.png"}
    sounds = {p.name.split("_")[-1] for p in (artifacts / "audio").iterdir()}
    assert sounds == {"truth.wav", "0000008.wav", "0000016.wav"}


@pytest.mark.nightly
def test_discriminators_wait_untouched_for_their_step(whole):
    saved = checkpoints(whole)
    states = {n: saved[f"step-{n:07d}.ckpt"]["current_model_state"] for n in (5, 10)}
    moved = {name.split(".")[0] for name in states[5] if not torch.equal(states[5][name], states[10][name])}
    assert moved == {"net", "discriminators"}
    moments = saved["step-0000005.ckpt"]["optimizer_states"][0]
    own = next(g["params"] for g in moments["param_groups"] if g["name"] == "discriminator")
    assert not set(own) & set(moments["state"])


@pytest.mark.nightly
def test_a_checkpoint_is_a_vocoder_with_the_averaged_weights(whole, tmp_path, capsys):
    file = next(whole.glob("runs/tiny/*/checkpoints/step-0000020.ckpt"))
    vocoder, saved = open_vocoder(str(file)), torch.load(file, weights_only=True)
    averaged = saved["state_dict"]["net.head.weight"]
    assert torch.equal(vocoder.net.head.weight, averaged)
    assert not torch.equal(saved["current_model_state"]["net.head.weight"], averaged)
    assert vocoder.trained_on["steps"] == 20
    assert set(vocoder.trained_on) >= {"data", "order"}
    assert main(["export", str(file), "--out", str(tmp_path / "folder")]) == 0
    card = (tmp_path / "folder/README.md").read_text()
    assert "A vocoder: 80-band log-mels" in card
    assert "| vocoder | " in card  # its size
    again, frames = open_vocoder(str(tmp_path / "folder")), torch.randn(1, 80, 9) - 5
    assert torch.equal(again(frames), vocoder(frames))
    assert open_vocoder(str(whole / "runs/tiny")).net.config == vocoder.net.config
    (tmp_path / "other.ckpt").touch()
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(UserError, match="no checkpoint of a vocoder run"):
        open_vocoder(str(tmp_path / "other.ckpt"))


@pytest.mark.nightly
def test_two_ranks_train_and_judge_together(tmp_path, corpus):
    path = vocoder_recipe(tmp_path, corpus, 8, 3, trainer__devices=2, trainer__strategy="ddp")
    done = fit_in_process(tmp_path, path)
    assert done.returncode == 0, done.stderr[-2000:]
    assert [step for step, _ in curves(tmp_path)["val/loss"]] == [8]
    assert (tmp_path / "ids.0").read_text() != (tmp_path / "ids.1").read_text()


@pytest.mark.nightly
def test_a_run_learns_on_from_the_mels_of_a_decoder(tmp_path, corpus, tiny_encoder, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    small_vocoder().save_pretrained(tmp_path / "first")
    path = vocoder_recipe(tmp_path, corpus, 10)
    content = yaml.safe_load(path.read_text())
    content["data"]["init_args"]["decoder"] = str(tmp_path / "codec")
    content["model"]["init_args"]["init_from"] = str(tmp_path / "first")
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path)
    found = checkpoints(tmp_path)["step-0000010.ckpt"]
    fingerprint = found["vocoder"]["trained_on"]["decoder"]
    assert len(fingerprint) == 16
    assert [f.name for f in (tmp_path / "cache/decoder_mels").iterdir()] == [fingerprint]
    assert sum(value for _, value in curves(tmp_path)["train/loss"][-3:]) < sum(
        value for _, value in curves(tmp_path)["train/loss"][:3]
    )


def test_a_run_starts_from_another_vocoder(tmp_path):
    small_vocoder().save_pretrained(tmp_path)
    net = small_vocoder().net
    started = Vocoder(net.config, init_from=str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(started.net.parameters(), net.parameters(), strict=True))
    assert all(p.requires_grad for p in started.net.parameters())
    with pytest.raises(UserError, match="set them equal"):
        Vocoder(init_from=str(tmp_path))
    with pytest.raises(UserError, match="expected a vocoder trained here"):
        Vocoder(init_from="griffin-lim")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mel_weight": -1.0}, "expected 0 or more"),
        ({"mel_weight": 0.0, "stft_weight": 0.0}, "one of the first two above 0"),
        ({"adversarial_from_step": -1}, "adversarial_from_step is -1"),
        ({"net": SMALL | {"lookahead_frames": 99}}, "lookahead_frames is 99, expected at most 9"),
        ({"discriminators": {"periods": [2]}}, "adversarial_from_step null"),
    ],
)
def test_options_that_do_not_fit_are_one_line(tmp_path, corpus, capsys, change, message):
    path = vocoder_recipe(tmp_path, corpus, 2)
    content = yaml.safe_load(path.read_text())
    content["model"]["init_args"] |= change
    path.write_text(yaml.safe_dump(content))
    fit(tmp_path, path, expected=2)
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_data_of_another_kind_is_refused():
    from types import SimpleNamespace

    from lit_moss.contracts import VocoderData
    from lit_moss.data import SpeechDataModule
    from lit_moss.trainer_access import data_of

    with pytest.raises(UserError, match="data is SpeechDataModule, this model expects VocoderDataModule"):
        data_of(SimpleNamespace(datamodule=SpeechDataModule()), VocoderData)
