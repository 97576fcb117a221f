"""Speaker vectors: real weights, real voices."""

import itertools

import numpy as np
import pytest
import torch

from lit_moss.audio import io
from lit_moss.codec.speaker import CampPlus, VoiceEncoder, open_speaker
from lit_moss.errors import UserError


@pytest.mark.slow
@pytest.mark.network
def test_the_embedded_encoder_separates_voices(shared_data):
    """Halves of one utterance against halves of others, ten speakers."""
    encoder = open_speaker("embedded:resemblyzer")
    halves = []
    for file in sorted((shared_data / "librispeech").glob("*.flac"))[:10]:
        wave = io.read(file, 16_000)
        halves.append([encoder(half) for half in wave.tensor_split(2)])
    assert all(
        vector.shape == (256,) and abs(float(vector.norm()) - 1) < 1e-5 for pair in halves for vector in pair
    )
    same = [float(a @ b) for a, b in halves]
    other = [float(a[0] @ b[1]) for a, b in itertools.permutations(halves, 2)]
    assert np.mean(same) > 0.8
    assert np.mean(other) < 0.7
    assert np.mean(same) - np.mean(other) > 0.2


@pytest.mark.network
def test_it_takes_any_length(speech):
    encoder = VoiceEncoder.from_pretrained()
    for wave in (speech[0][:10], speech[0][:20_000], torch.cat(speech)):
        assert encoder(wave).isfinite().all()


def test_camplus_is_run_on_mean_free_filter_banks(tmp_path, speech):
    """A stand-in ONNX that sums over frames: 0 for each band, as their means were taken away."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to write a model")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)], "g",
        [helper.make_tensor_value_info("x", kind, [1, None, 80])],
        [helper.make_tensor_value_info("y", kind, [1, 80])],
        [onnx.numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=9)
    onnx.save(model, tmp_path / "campplus.onnx")
    found = CampPlus(tmp_path / "campplus.onnx")(speech[0])
    assert found.shape == (80,)
    assert found.abs().max() < 0.05


def test_what_is_not_an_encoder_is_an_error(tmp_path):
    assert open_speaker(None) is open_speaker("none") is None
    with pytest.raises(UserError, match="no speaker encoder"):
        open_speaker("nobody")
    (tmp_path / "x.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match="no ONNX model"):
        open_speaker(str(tmp_path / "x.onnx"))
