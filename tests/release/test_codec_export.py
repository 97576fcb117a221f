"""Codecs as folders: runs, checkpoints and released files in, the official layout out, nothing changed."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from decoders import small_flow, small_hift
from model_folders import codec_folder
from safetensors.torch import load_file, save_file

from lit_moss.cli.main import main
from lit_moss.codec import Codec, HiFT, SpeechTokenizer
from lit_moss.codec.encoder import CausalEncoder, EncoderConfig, fingerprint
from lit_moss.codec.flow import Flow, FlowConfig
from lit_moss.codec.flow_config import sizes_of_tensors
from lit_moss.codec.hift import HiFTConfig
from lit_moss.codec.pretrained import _compare
from lit_moss.codec.speaker import CampPlus
from lit_moss.codec.state_dicts import OLD_WEIGHT_NORM
from lit_moss.codec.vocoder import HiFTVocoder
from lit_moss.errors import UserError
from lit_moss.hub import open_codec, speech_tokenizer_fingerprint
from lit_moss.release.codec_export import export_codec

WAVE = torch.sin(torch.arange(16_000) / 9.0) * torch.linspace(0.1, 0.6, 16_000)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {f"tokenizer/{k}": v for k, v in load_file(folder / "model.safetensors").items()}
    for file in sorted((folder / "flow").glob("*.pt")):
        found |= {f"{file.name}/{k}": v for k, v in torch.load(file, weights_only=True).items()}
    return found


def assert_same_codec(ours: Path, theirs: Path) -> None:
    a, b = tensors_of(ours), tensors_of(theirs)
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    for name in ("config.json", "flow/config.json"):
        if (theirs / name).is_file():
            assert json.loads((ours / name).read_text()) == json.loads((theirs / name).read_text())


def tiny_camplus(path: Path, values: int = 192) -> Path:
    """An ONNX file that gives `values` numbers: means over frames of 80 bands, and zeros."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to write a model")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    projection = np.random.default_rng(0).normal(size=(80, values)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=0),
            helper.make_node("MatMul", ["m", "p"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", kind, [1, None, 80])],
        [helper.make_tensor_value_info("y", kind, [1, values])],
        [onnx.numpy_helper.from_array(projection, "p")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, path)
    return path


# --- round trips --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_saved_and_opened_again_a_codec_is_the_same_with_all_its_parts(tiny_encoder, tmp_path):
    speaker = CampPlus(tiny_camplus(tmp_path / "speaker.onnx"))
    flow = small_flow(speaker_dim=192, guidance=0.3, steps=4)
    voice = torch.linspace(-2, 2, 192)
    codec = Codec(SpeechTokenizer(tiny_encoder()), flow, HiFTVocoder(small_hift()), speaker, voice)
    codec.save_pretrained(tmp_path / "a")
    again = Codec.from_pretrained(tmp_path / "a")
    again.save_pretrained(tmp_path / "b")
    assert_same_codec(tmp_path / "b", tmp_path / "a")
    for name in ("flow/campplus.onnx", "flow/config.json", "config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert (tmp_path / "b/flow/campplus.onnx").read_bytes() == (tmp_path / "speaker.onnx").read_bytes()
    assert again.flow.config == flow.config
    assert torch.equal(again.voice, voice)
    assert torch.equal(again.encode(WAVE, 16_000), codec.encode(WAVE, 16_000))
    ours, theirs = (c.prompt(WAVE, 16_000) for c in (again, codec))
    assert torch.equal(ours.speaker_S, theirs.speaker_S)
    codes = torch.arange(8)
    torch.manual_seed(0)
    expected = codec.decode(codes)
    torch.manual_seed(0)
    assert torch.equal(again.decode(codes), expected)


@pytest.mark.network
def test_the_embedded_speaker_encoder_is_kept_by_its_name(tmp_path):
    from lit_moss.codec.speaker import VoiceEncoder

    Codec(None, small_flow(speaker_dim=256), speaker=VoiceEncoder.from_pretrained()).save_pretrained(tmp_path)
    assert sorted(f.name for f in tmp_path.rglob("*.*")) == ["config.json", "flow.pt"]
    assert isinstance(Codec.from_pretrained(tmp_path).speaker, VoiceEncoder)


# --- what export_codec takes --------------------------------------------------------------------------------


def run_of(folder: Path, checkpoint: dict) -> Path:
    """A run whose best checkpoint this is."""
    from lit_moss.runs.checkpoint_io import AtomicCheckpointIO

    (folder / "checkpoints").mkdir(parents=True)
    (folder / "run.json").write_text('{"mlflow_run_id": null}')
    AtomicCheckpointIO().save_checkpoint(checkpoint, folder / "checkpoints/best.ckpt")
    return folder


@pytest.fixture
def tokenizer_run(tiny_encoder, tmp_path):
    encoder = tiny_encoder(quantize_vocab_size=64)
    state = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    settings = {"config": encoder.config.to_official(), "codebook_ready": True, "charset": "latin",
                "characters": "ab"}  # fmt: skip
    run = run_of(tmp_path / "runs/codec_encoder/1", {"state_dict": state, "speech_tokenizer": settings})
    return run, encoder


def test_a_tokenizer_run_becomes_a_folder_that_says_it_has_no_decoder(tokenizer_run, tmp_path, capsys):
    run, encoder = tokenizer_run
    for name in (run, run.parent, run / "checkpoints/best.ckpt"):
        export_codec(str(name), tmp_path / "out")
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "no flow decoder" in error
        assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["config.json", "model.safetensors"]
        assert speech_tokenizer_fingerprint(str(tmp_path / "out")) == fingerprint(encoder)


@pytest.mark.slow
def test_a_decoder_run_becomes_a_whole_codec(tokenizer_run, tmp_path, capsys):
    run, encoder = tokenizer_run
    flow = small_flow()
    decoder = {
        "flow": asdict(flow.config), "speech_tokenizer": str(run), "log_mel": None, "speaker": None,
        "fingerprints": {"speech_tokenizer": fingerprint(encoder), "speaker_encoder": "none"},
        "voice": torch.linspace(0, 1, 8),
    }  # fmt: skip
    state = {f"flow.{name}": value for name, value in flow.state_dict().items()}
    decoder_run = run_of(tmp_path / "runs/flow_decoder/1", {"state_dict": state, "decoder": decoder})
    export_codec(str(decoder_run), tmp_path / "out")
    assert capsys.readouterr().err == ""
    codec = Codec.from_pretrained(tmp_path / "out")
    assert fingerprint(codec.tokenizer.encoder) == fingerprint(encoder)
    assert torch.equal(codec.voice, decoder["voice"])
    codes = torch.arange(9)
    assert torch.equal(codec.decode(codes), open_codec(str(decoder_run)).decode(codes))
    # The tokenizer it was trained with is gone: nothing is written, what was there stays.
    before = tensors_of(tmp_path / "out")
    shutil.rmtree(run)
    with pytest.raises(UserError, match="cannot be opened from here"):
        export_codec(str(decoder_run), tmp_path / "out")
    after = tensors_of(tmp_path / "out")
    assert all(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.slow
def test_folders_are_copied_as_they_are_also_out_of_a_models_folder(tmp_path):
    source = codec_folder(tmp_path / "model/codec")
    (source / "pytorch_model.bin").write_bytes(b"code")
    export_codec(str(source), tmp_path / "a")
    export_codec(str(tmp_path / "model"), tmp_path / "b")
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert_same_codec(folder, source)
        assert not (folder / "pytorch_model.bin").exists()
    other = {"causal": "whisper", "whisper": "causal"}
    stated = json.loads((source / "config.json").read_text())["log_mel"]
    export_codec(str(source), tmp_path / "c", log_mel=other[stated])
    assert SpeechTokenizer.from_pretrained(tmp_path / "c").config.log_mel == other[stated]
    assert speech_tokenizer_fingerprint(str(tmp_path / "c")) == speech_tokenizer_fingerprint(
        str(source), log_mel=other[stated]
    )


@pytest.mark.parametrize("content", [{"state_dict": {"lm.a": torch.zeros(1)}, "split_config": {}}, {}])
def test_other_checkpoints_are_refused(tmp_path, content):
    run = run_of(tmp_path / "run", content)
    with pytest.raises(UserError, match="no checkpoint of a codec"):
        export_codec(str(run), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the released files -------------------------------------------------------------------------------------


def released_codec(folder: Path, golden: Path) -> Path:
    """The recorded small networks in the layout of the released codec: no `log_mel`, no `flow/config.json`,
    weight norm under its old names, the averages of the codebook's training."""
    weights = {
        f"encoder.{key.removeprefix('encoder.')}": value
        for key, value in load_file(golden / "encoder/weights.safetensors").items()
    }
    codebook = weights["encoder.codebook.weight"]
    weights |= {"encoder.ema_count": torch.ones(len(codebook)), "encoder.ema_weight": codebook + 1}
    (folder / "flow").mkdir(parents=True)
    save_file(weights, folder / "model.safetensors")
    shutil.copy(golden / "encoder/config.json", folder / "config.json")
    torch.save(load_file(golden / "flow/weights.safetensors"), folder / "flow/flow.pt")
    old = {new: old for old, new in OLD_WEIGHT_NORM.items()}
    hift = {}
    for key, value in load_file(golden / "hift/weights.safetensors").items():
        for new, name in old.items():
            key = key.replace(new, name)
        hift[key] = value
    assert any(key.endswith("weight_g") for key in hift)
    torch.save(hift, folder / "flow/hift.pt")
    return folder


@pytest.mark.slow
def test_a_released_folder_is_copied_to_the_byte_and_saved_under_present_names(contract, tmp_path):
    source = released_codec(tmp_path / "released", contract / "codec/golden")
    tiny_camplus(source / "flow/campplus.onnx")
    export_codec(str(source), tmp_path / "out")
    names = sorted(str(f.relative_to(source)) for f in source.rglob("*.*"))
    assert names == sorted(str(f.relative_to(tmp_path / "out")) for f in (tmp_path / "out").rglob("*.*"))
    assert all((source / name).read_bytes() == (tmp_path / "out" / name).read_bytes() for name in names)
    released = Codec.from_pretrained(source)
    assert released.tokenizer.config.log_mel == "whisper"
    released.save_pretrained(tmp_path / "saved")
    again = Codec.from_pretrained(tmp_path / "saved")
    assert fingerprint(again.tokenizer.encoder) == fingerprint(released.tokenizer.encoder)
    assert torch.equal(again.tokenizer.encoder.ema_weight, released.tokenizer.encoder.ema_weight)
    for ours, theirs in ((again.flow, released.flow), (again.vocoder.hift, released.vocoder.hift)):
        assert all(torch.equal(v, theirs.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.slow
def test_at_official_size_all_names_and_shapes_are_the_manifests_both_ways(contract):
    """What we write: the networks' own. What we accept: sizes are read off the manifests' shapes."""
    manifests = {
        name: json.loads((contract / f"codec/manifest_{name}_official.json").read_text())
        for name in ("encoder", "flow", "hift")
    }
    with torch.device("meta"):
        listed = {
            name: {entry["name"]: torch.empty(entry["shape"]) for entry in manifest["tensors"]}
            for name, manifest in manifests.items()
        }
        encoder = CausalEncoder(EncoderConfig.from_official(manifests["encoder"]["official_config"]))
        networks = {"encoder": encoder, "flow": Flow(FlowConfig()), "hift": HiFT(HiFTConfig())}
        accepted = Flow(sizes_of_tensors(listed["flow"]))
        channels = listed["hift"]["conv_pre.bias"].shape[0]
        pitch = listed["hift"]["f0_predictor.classifier.weight"].shape[1]
        accepted_hift = HiFT(HiFTConfig(channels, pitch))
    for name, network in networks.items():
        prefix = manifests[name]["key_prefix_in_file"]
        ours = {prefix + key: value.shape for key, value in network.state_dict().items()}
        assert ours == {key: value.shape for key, value in listed[name].items()}, name
    assert accepted.config.sizes_in_shapes() == FlowConfig().sizes_in_shapes()
    assert accepted_hift.config == HiFTConfig()
    tensors = {key.removeprefix("encoder."): value for key, value in listed["encoder"].items()}
    report = _compare(tensors, encoder.config, "manifest")
    assert set(report.loaded) == set(tensors)
    assert not report.kept
    assert not report.reshaped


# --- fingerprints -------------------------------------------------------------------------------------------


def test_the_fingerprint_stays_through_checkpoint_export_and_import(tokenizer_run, tmp_path):
    from model_folders import as_released, model_folder

    run, encoder = tokenizer_run
    export_codec(str(run), tmp_path / "exported")
    model = as_released(model_folder(tmp_path / "model"))
    words = ["import", str(model), "--codec", str(tmp_path / "exported"), "--out", str(tmp_path / "imported")]
    assert main(words) == 0
    names = (run, run / "checkpoints/best.ckpt", tmp_path / "exported", tmp_path / "imported/codec")
    found = {speech_tokenizer_fingerprint(str(name)) for name in names}
    assert found == {fingerprint(encoder)}
    assert json.loads((tmp_path / "imported/lit_moss.json").read_text())["speech_tokenizer"] in found
