"""`check_contract`: exit codes on recorded tensors, and on a folder recorded here from a small encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from experiments.contract import check as check_contract
from lit_moss.codec.encoder import EncoderState


@pytest.fixture
def run(monkeypatch):
    def call(folder):
        monkeypatch.setattr("sys.argv", ["check_contract", str(folder)])
        return check_contract.main()

    return call


@pytest.fixture
def recorded(tiny_encoder, tmp_path):
    """A folder as the contract's, of an encoder of ours: chunks, an odd length, caches."""
    encoder, folder = tiny_encoder().requires_grad_(False), tmp_path / "golden/encoder"
    folder.mkdir(parents=True)
    mel, odd, chunks = torch.randn(1, 80, 32), torch.randn(1, 80, 13), [8, 24]
    pooled, state = encoder.pool(encoder(mel)), EncoderState()
    codes = encoder.quantize(pooled)
    io = {
        "input_features": mel, "pooled": pooled, "token_ids": codes,
        "last_hidden_state": encoder.dequantize(codes), "oddlen_input_features": odd,
        "oddlen_token_ids": encoder.quantize(encoder.pool(encoder(odd))),
        "stream_chunk_frames": torch.tensor(chunks), "stream_token_ids_b0": codes[0].clone(),
        "layer1_out": encoder(mel),
    }  # fmt: skip
    encoder(mel[..., :8], state)
    io["stream_b0_chunk0_conv1_cache"] = state.conv1_tail
    save_file({name: value.contiguous() for name, value in io.items()}, folder / "io.safetensors")
    save_file(
        {f"encoder.{name}": value for name, value in encoder.state_dict().items()},
        folder / "weights.safetensors",
    )
    (folder / "config.json").write_text(json.dumps(encoder.config.to_official()))
    return folder.parent


def change(path, name, by):
    tensors = load_file(path)
    save_file(tensors | {name: tensors[name] + by}, path)


@pytest.mark.slow
def test_the_recorded_tensors_are_within_tolerance(contract, run, capsys):
    assert run(contract / "codec/golden") == 0
    said = capsys.readouterr().out
    assert "FAIL" not in said
    assert all(name in said for name in ("encoder.token_ids", "features.mel24k", "features.kaldi_fbank80"))
    decoder = (
        "flow.loss_a.loss",
        "flow.infer_stream_final.mel",
        "hift.wav",
        "streaming_decode.chunk0.fresh_mel",
    )
    assert all(name in said for name in decoder)
    assert "not checked" not in said


def test_a_folder_recorded_from_our_encoder_is_within_tolerance(recorded, run, capsys):
    assert run(recorded) == 0
    lines = capsys.readouterr().out.splitlines()
    compared = {line.split()[1].removeprefix("encoder.") for line in lines if line.startswith("ok")}
    assert compared == {"pooled", "token_ids", "last_hidden_state", "layer1_out", "oddlen_token_ids",
                        "stream_token_ids_b0", "stream_b0_chunk0_conv1_cache"}  # fmt: skip
    assert lines[-1].endswith("all within tolerance")


@pytest.mark.parametrize(
    ("name", "by"),
    [("pooled", 1e-3), ("token_ids", 1), ("stream_token_ids_b0", 1), ("layer1_out", torch.nan)],
)
def test_a_changed_tensor_fails_by_name(recorded, run, capsys, name, by):
    change(recorded / "encoder/io.safetensors", name, by)
    assert run(recorded) == 1
    failed = [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert failed == [f"encoder.{name}"]


def test_a_changed_weight_fails(recorded, run, capsys):
    change(recorded / "encoder/weights.safetensors", "encoder.conv2.weight", 0.01)
    assert run(recorded) == 1
    assert "FAIL encoder.pooled" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["no folder", "no module", "no io", "no weights"])
def test_a_folder_that_cannot_be_used_is_exit_code_2(recorded, run, capsys, tmp_path, broken):
    folder = {"no folder": tmp_path / "none", "no module": tmp_path}.get(broken, recorded)
    if broken in ("no io", "no weights"):
        (recorded / "encoder" / {"no io": "io", "no weights": "weights"}[broken]).with_suffix(
            ".safetensors"
        ).unlink()
    assert run(folder) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_folders_it_does_not_know_are_named_as_unchecked(recorded, run, capsys):
    (recorded / "vocoder").mkdir()
    assert run(recorded) == 0
    assert "not checked: vocoder" in capsys.readouterr().out
