"""The flow: sizes of the released file, losses, masks, padding, sampling, its stream against the whole."""

import json
import os
import pickle

import pytest
import torch
from decoders import SMALL, small_flow, small_prompt

from experiments.contract.decoder import released_config, released_padding
from lit_moss.codec import flow_matching
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_network import Prompt
from lit_moss.codec.flow_sampler import fixed_noise
from lit_moss.codec.flow_training import Draws, FlowBatch, draw, velocities
from lit_moss.codec.stream_cache import Chunks, StreamCache
from lit_moss.errors import UserError


@pytest.fixture(scope="module")
def flow():
    return small_flow().requires_grad_(False)


def codes(n, batch=1, seed=0):
    return torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(seed))


def draws(target, lengths, seed=0):
    torch.manual_seed(seed)
    return draw(SMALL, target, 4 * lengths)


# --- sizes --------------------------------------------------------------------------------------------------


def test_names_shapes_and_order_at_official_size_are_the_released_files(contract):
    tensors = json.loads((contract / "codec/manifest_flow_official.json").read_text())["tensors"]
    with torch.device("meta"):
        own = Flow(FlowConfig()).state_dict()
    assert [(k, list(v.shape)) for k, v in own.items()] == [(t["name"], t["shape"]) for t in tensors]


def test_the_fixed_noise_is_the_released_buffer(contract):
    recorded = json.loads((contract / "codec/manifest_flow_official.json").read_text())["rand_noise"]
    noise = fixed_noise(0, 15_000)
    assert noise[0, 0, :16].tolist() == recorded["first16"]
    assert float(noise[0, 79, -1]) == recorded["at_0_79_14999"]
    assert torch.equal(fixed_noise(14_990, 20)[:, :, 10:], noise[:, :, :10])


def test_configuration_of_the_released_decoder(contract):
    recorded = json.loads((contract / "codec/manifest_flow_official.json").read_text())
    assert released_config(recorded["official_config"]) == FlowConfig()


# --- equations ----------------------------------------------------------------------------------------------


def test_the_solver_is_exact_on_a_constant_velocity_field():
    x, velocity = torch.randn(2, 80, 9), torch.randn(2, 80, 9)
    found = flow_matching.euler(lambda x, i, t: velocity, x, flow_matching.schedule(10))
    assert torch.allclose(found, x + velocity, atol=1e-6)


def test_the_solver_ends_at_the_target_when_given_the_true_velocity_of_the_path():
    x1, z = torch.randn(1, 80, 9), torch.randn(1, 80, 9)
    _, u = flow_matching.path(x1, z, torch.zeros(1, 1, 1))
    found = flow_matching.euler(lambda x, i, t: u, z, flow_matching.schedule(7))
    assert torch.allclose(found, x1 + flow_matching.SIGMA * z, atol=1e-5)


def test_from_a_later_start_the_solver_ends_at_the_target_too():
    x1, z = torch.randn(1, 80, 9), torch.randn(1, 80, 9)
    at, u = flow_matching.path(x1, z, torch.full((1, 1, 1), 0.8))
    times = flow_matching.schedule(3, 0.8)
    assert (times[0], times[-1]) == (pytest.approx(0.8), pytest.approx(1.0))
    found = flow_matching.euler(lambda x, i, t: u, at, times)
    assert torch.allclose(found, x1 + flow_matching.SIGMA * z, atol=1e-5)


@pytest.mark.parametrize("start", [0.5, 0.9999])
def test_a_stream_with_a_later_start_is_the_whole_and_comes_near_the_encoders_output(start):
    flow, row = small_flow(start=start, steps=3), codes(17)
    whole = flow.sample(row, streaming=True)
    assert torch.allclose(streamed(flow, row[0], None, None, 4), whole, atol=2e-5)
    mu_BTM = flow.encode(row, torch.tensor([17]), flow.chunks())
    near = (whole - mu_BTM.transpose(1, 2)).abs().max() < 1e-2
    assert bool(near) == (start > 0.9)


@torch.no_grad()
@pytest.mark.parametrize("normalise", ["none", "band"])
def test_without_steps_the_mel_is_the_encoders_output_as_a_stream_too(normalise):
    flow, row = small_flow(steps=0, normalise=normalise), codes(17)
    if flow.bands is not None:
        flow.bands.set(torch.full((80,), -6.0), torch.linspace(1.0, 3.0, 80))
    for streaming in (False, True):
        chunks = flow.chunks() if streaming else None
        mu_BMT = flow.encode(row, torch.tensor([17]), chunks).transpose(1, 2)
        assert torch.equal(flow.sample(row, streaming=streaming), flow.restored(mu_BMT))
    whole = flow.sample(row, streaming=True)
    assert torch.allclose(streamed(flow, row[0], None, None, 4), whole, atol=2e-5)


def test_schedule_is_one_minus_the_cosine():
    times = flow_matching.schedule(10)
    assert times[0] == 0.0
    assert times[5] == pytest.approx(1 - 2**-0.5)
    assert times[-1] == pytest.approx(1.0)


def test_a_flow_whose_network_finds_the_true_velocity_has_loss_0(monkeypatch):
    flow, target, lengths = small_flow(), torch.randn(2, 80, 40), torch.tensor([10, 6])
    drawn = draws(target, lengths)
    _, u = flow_matching.path(target, drawn.z_BMT, drawn.t_B11)
    wrong = u.clone()
    wrong[1, :, 24:] = 9  # padding
    monkeypatch.setattr(flow.decoder.estimator, "forward", lambda *_: wrong)
    batch = FlowBatch(codes(10, 2), lengths, target, torch.zeros(2, 8))
    assert velocities(flow, batch, drawn).loss() == 0
    wrong[0, 0, 0] += 8
    assert float(velocities(flow, batch, drawn).loss()) == pytest.approx(64 / (64 * 80))


def test_the_loss_is_0_at_the_true_velocity_and_counts_real_frames_alone():
    target, mask = torch.randn(2, 80, 12), torch.ones(2, 1, 12)
    mask[1, :, 5:] = 0
    wrong = target.clone()
    wrong[1, :, 5:] += 7
    assert flow_matching.loss(target, target, mask) == 0
    assert flow_matching.loss(wrong, target, mask) == 0
    wrong[0, :, 0] += 1
    assert float(flow_matching.loss(wrong, target, mask)) == pytest.approx(1 / 17)


def test_guidance_extrapolates_from_the_unconditioned():
    assert flow_matching.guided(torch.tensor(3.0), torch.tensor(1.0), 0.7) == pytest.approx(4.4)


def test_draws_are_those_of_the_released_order_and_in_range():
    import random

    random.seed(5)
    torch.manual_seed(5)
    target = torch.zeros(64, 80, 40)
    found = draw(SMALL, target, torch.full((64,), 40))
    torch.manual_seed(5)
    u = torch.rand(64, 1, 1)
    assert torch.equal(found.t_B11, 1 - torch.cos(0.5 * torch.pi * u))
    assert torch.equal(found.z_BMT, torch.randn(64, 80, 40))
    random.seed(5)
    expected = [0 if random.random() < 0.5 else random.randint(0, 12) for _ in range(64)]
    assert found.prefix_B.tolist() == expected
    assert 0.6 < float(found.keep_B.float().mean()) < 0.95


# --- masks and padding --------------------------------------------------------------------------------------


def test_chunk_mask_by_hand():
    rows = ["".join("x" if seen else "." for seen in row) for row in Chunks(3).mask(7, torch.device("cpu"))]
    assert rows == ["xxx...."] * 3 + ["xxxxxx."] * 3 + ["xxxxxxx"]
    rows = Chunks(3, left=1, kept=1).mask(9, torch.device("cpu"))
    assert "".join("x" if seen else "." for seen in rows[8]) == "x..xxxxxx"


def test_a_frame_does_not_see_beyond_its_chunk_and_the_look_ahead(flow):
    before, after = codes(20), codes(20)
    after[0, 13:] = (after[0, 13:] + 1) % 256
    # Code 13 is the look-ahead of codes 10 to 12 and lies in the third chunk: the first two stay.
    lengths = torch.tensor([20])
    a, b = (flow.encode(c, lengths, flow.chunks()) for c in (before, after))
    assert torch.equal(a[:, :40], b[:, :40])
    assert not torch.equal(a[:, 40:60], b[:, 40:60])
    a, b = (flow.sample(c, streaming=True) for c in (before, after))
    assert torch.equal(a[:, :, :40], b[:, :, :40])
    assert not torch.equal(a[:, :, 40:60], b[:, :, 40:60])


def test_full_masks_see_everything(flow):
    before, after = codes(20), codes(20)
    after[0, 19] = (after[0, 19] + 1) % 256
    assert not torch.equal(flow.sample(before)[:, :, :4], flow.sample(after)[:, :, :4])


def test_prompt_stays_in_sight_of_a_bounded_history(flow):
    prompts = [small_prompt(seed=s) for s in (0, 1)]
    prompts[1] = Prompt(prompts[1].codes_N, prompts[1].mel_MT, prompts[0].speaker_S)
    made = [flow.sample(codes(60), prompt=p, streaming=True, left_chunks=1)[:, :, -8:] for p in prompts]
    assert not torch.equal(*made)


@pytest.mark.slow
@pytest.mark.parametrize("streaming", [False, True])
def test_padding_changes_nothing(flow, streaming):
    torch.manual_seed(3)
    n = [9, 14]
    both, target = codes(14, 2), torch.randn(2, 80, 56)
    lengths, speaker = torch.tensor(n), torch.randn(2, 8)
    drawn = draws(target, lengths)
    whole = velocities(flow, FlowBatch(both, lengths, target, speaker), drawn, streaming).squared_errors()
    for i, k in enumerate(n):
        alone = Draws(
            drawn.t_B11[i : i + 1], drawn.z_BMT[i : i + 1, :, : 4 * k], drawn.keep_B[i : i + 1],
            drawn.prefix_B[i : i + 1],
        )  # fmt: skip
        batch = FlowBatch(
            both[i : i + 1, :k], lengths[i : i + 1], target[i : i + 1, :, : 4 * k], speaker[i : i + 1]
        )
        errors = velocities(flow, batch, alone, streaming).squared_errors()
        assert torch.allclose(whole[i], errors[0], rtol=1e-5)
    made = flow.sample(both, lengths, streaming=streaming)
    for i, k in enumerate(n):
        assert torch.allclose(
            made[i, :, : 4 * k], flow.sample(both[i : i + 1, :k], streaming=streaming)[0], atol=2e-5
        )
    assert not made[0, :, 36:].any()


def test_more_padding_changes_nothing_in_the_released_form_either(flow):
    n, short = torch.tensor([9]), codes(16)
    short[:, 9:] = 0
    with released_padding(flow):
        a, b = (flow.encode(short[:, :k], n)[:, :36] for k in (12, 16))
    assert not torch.allclose(a, flow.encode(short[:, :12], n)[:, :36], atol=1e-5)
    assert torch.allclose(a, b, atol=1e-5)


def test_gradients_reach_every_parameter():
    flow = small_flow().train()
    target, lengths = torch.randn(4, 80, 40), torch.full((4,), 10)
    torch.manual_seed(0)
    drawn = draw(SMALL, target, 4 * lengths)
    batch = FlowBatch(codes(10, 4), lengths, target, torch.randn(4, 8))
    velocities(flow, batch, drawn).loss().backward()
    without = [name for name, p in flow.named_parameters() if p.grad is None or not p.grad.any()]
    # The key's bias moves all scores of a query alike: its gradient is rounding, or 0.
    assert not [name for name in without if not name.endswith("linear_k.bias")]


def test_wrong_lengths_are_an_error(flow):
    with pytest.raises(ValueError, match="expected 40"):
        FlowBatch(codes(10), torch.tensor([10]), torch.zeros(1, 80, 41), torch.zeros(1, 8))
    with pytest.raises(ValueError, match="expected \\(80, 28\\)"):
        Prompt(torch.zeros(7, dtype=torch.long), torch.zeros(80, 27))
    with pytest.raises(ValueError, match="was built for \\(8,\\)"):
        flow.sample(codes(5), prompt=Prompt.none(torch.zeros(9)))


# --- streaming ----------------------------------------------------------------------------------------------


def streamed(flow, row, prompt, left_chunks, pieces):
    stream = flow.stream(prompt, left_chunks)
    return torch.cat([*(stream.push(piece) for piece in row.split(pieces)), stream.flush()], dim=-1)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 5, 8, 33])
@pytest.mark.parametrize("prompt", [None, 5, 7])
@pytest.mark.parametrize("left_chunks", [None, 2])
def test_the_stream_is_the_whole(flow, n, prompt, left_chunks):
    row, prompt = codes(n)[0], None if prompt is None else small_prompt(prompt)
    whole = flow.sample(row[None], prompt=prompt, streaming=True, left_chunks=left_chunks)
    for pieces in (1, 4, 33):
        found = streamed(flow, row, prompt, left_chunks, pieces)
        assert found.shape == (1, 80, 4 * n)
        assert torch.allclose(found, whole, atol=2e-5)


@pytest.mark.slow
def test_the_stream_equals_the_released_scheme_before_its_last_chunk(flow):
    from experiments.contract.released_streaming import mel_chunks

    row, prompt = codes(31), small_prompt(6)
    released = list(mel_chunks(flow, row, prompt))
    found = streamed(flow, row[0], prompt, None, 1)
    last = released[-1][2] * 4
    assert torch.allclose(found[:, :, :last], torch.cat([c[0] for c in released[:-1]], dim=-1), atol=2e-5)
    assert found.shape[-1] == last + released[-1][0].shape[-1]


def test_frames_come_as_soon_as_a_chunk_and_its_look_ahead_are_there(flow):
    stream, row = flow.stream(None), codes(14)[0]
    assert [stream.push(one).shape[-1] for one in row.split(1)] == [0] * 7 + [20] + [0] * 4 + [20, 0]
    assert stream.flush().shape[-1] == 16
    with pytest.raises(RuntimeError, match="flushed"):
        stream.push(row)


@pytest.mark.nightly
def test_memory_of_a_stream_is_bounded_and_all_history_is_not(flow):
    held = {}
    for left_chunks in (2, None):
        stream = flow.stream(small_prompt(6), left_chunks)
        held[left_chunks] = [stream.push(codes(50, seed=i)[0]) is not None and stream.bytes for i in range(6)]
    assert held[2][1] == held[2][-1]
    assert held[None][-1] > 3 * held[None][0]


def test_cache_refuses_a_step_after_a_part_of_a_chunk():
    cache = StreamCache(Chunks(4))
    cache.begin(3, torch.device("cpu"))
    with pytest.raises(ValueError, match="last"):
        cache.begin(4, torch.device("cpu"))
    with pytest.raises(ValueError, match="1 to 4"):
        StreamCache(Chunks(4)).begin(5, torch.device("cpu"))


# --- files --------------------------------------------------------------------------------------------------


def test_a_state_dict_loads_and_other_shapes_are_skipped_by_name(tmp_path):
    flow = small_flow(1)
    tensors = flow.state_dict()
    tensors["encoder.up_layer.conv.weight"] = torch.zeros(32, 32, 5)  # CosyVoice 2 upsamples by two
    tensors["decoder.estimator.extra"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "flow.pt")
    other = small_flow(2)
    report = other.load_official(tmp_path / "flow.pt")
    assert report.reshaped == ("encoder.up_layer.conv.weight: (32, 32, 5), ours (32, 32, 9)",)
    assert not report.kept
    assert torch.equal(other.input_embedding.weight, flow.input_embedding.weight)
    assert "1 of another shape skipped" in str(report)


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_file_with_code_in_it_is_refused_and_does_not_run(tmp_path):
    for name, content in (("evil.pt", {"x": Payload(str(tmp_path / "ran"))}), ("none.pt", {"x": 3})):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError):
            small_flow().load_official(tmp_path / name)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(Payload(str(tmp_path / "ran"))))
    with pytest.raises(UserError, match="refused"):
        small_flow().load_official(tmp_path / "raw.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no file"):
        small_flow().load_official(tmp_path / "missing.pt")


def test_sizes_that_cannot_be_are_refused():
    with pytest.raises(UserError, match="encoder_heads"):
        FlowConfig(hidden=30, encoder_heads=4)
    with pytest.raises(UserError, match="steps"):
        FlowConfig(steps=-1)
