"""A flow that predicts the mel and normalises its bands: equations, sampling, streams, folders."""

import json

import pytest
import torch
from decoders import small_flow, small_prompt

from lit_moss.codec import flow_matching
from lit_moss.codec.codec_folder import read_decoder, write_decoder
from lit_moss.codec.flow import Flow
from lit_moss.codec.flow_config import FlowConfig
from lit_moss.codec.flow_network import LEAST_DEVIATION, Bands
from lit_moss.codec.flow_training import Draws, FlowBatch, velocities
from lit_moss.codec.vocoder import GriffinLim
from lit_moss.errors import UserError


def made_flow(seed=0, **changes) -> Flow:
    """A small flow whose bands have means around -6 and deviations around 2."""
    flow = small_flow(seed, predict="mel", normalise="band", **changes).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    assert flow.bands is not None
    flow.bands.set(torch.randn(80, generator=generator) - 6, 1 + 2 * torch.rand(80, generator=generator))
    return flow


def codes(n, batch=1):
    return torch.randint(0, 256, (batch, n), generator=torch.Generator().manual_seed(0))


# --- equations ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.0, 0.8])
def test_steps_towards_a_mel_are_euler_steps_along_its_velocity(start):
    torch.manual_seed(0)
    z, target = torch.randn(1, 80, 9), torch.randn(1, 80, 9)

    def mel(x, i, t):
        return target + 0.3 * (1 - t) * x.tanh()

    times = flow_matching.schedule(7, start)
    along = flow_matching.euler(lambda x, i, t: (mel(x, i, t) - x) / (1 - t), z, times)
    assert torch.allclose(flow_matching.euler_to_mel(mel, z, times), along, atol=1e-5)


@pytest.mark.parametrize(("steps", "start"), [(1, 0.0), (10, 0.0), (3, 0.8), (4, 1 - 1e-9)])
def test_a_network_that_knows_the_mel_ends_at_it_to_the_bit(steps, start):
    z, x1 = torch.randn(1, 80, 9), torch.randn(1, 80, 9)
    times = flow_matching.schedule(steps, start)
    assert torch.equal(flow_matching.euler_to_mel(lambda x, i, t: x1, z, times), x1)


def test_the_path_is_followed_to_a_known_mel():
    z, x1 = torch.randn(1, 80, 9), torch.randn(1, 80, 9)
    for then in (0.25, 0.5, 0.9):
        found = flow_matching.euler_to_mel(lambda x, i, t: x1, z, [0.0, then / 2, then])
        expected, _ = flow_matching.path(x1, z, torch.full((1, 1, 1), then))
        assert torch.allclose(found, expected, atol=1e-5)


def test_weights_make_an_error_of_the_mel_one_of_the_velocity():
    t = torch.tensor([0.0, 0.5, 0.9, 0.95, 0.99, 1.0])
    assert flow_matching.mel_weight(t, 400.0).tolist() == pytest.approx([1, 4, 100, 400, 400, 400], rel=1e-4)
    assert flow_matching.mel_weight(t, 1.0).tolist() == [1.0] * 6


def test_guidance_of_mels_is_guidance_of_their_velocities():
    x, with_, without, t = torch.randn(4), torch.randn(4), torch.randn(4), 0.4
    of_velocities = flow_matching.guided((with_ - x) / (1 - t), (without - x) / (1 - t), 0.7)
    assert torch.allclose((flow_matching.guided(with_, without, 0.7) - x) / (1 - t), of_velocities, atol=1e-5)


@pytest.mark.parametrize("most", [1.0, 400.0])
def test_the_loss_of_a_known_error_of_the_mel(monkeypatch, most):
    flow, lengths = made_flow(), torch.tensor([10, 6])
    target = torch.randn(2, 80, 40) - 6
    t_B11 = torch.tensor([0.5, 0.8]).view(2, 1, 1)
    drawn = Draws(t_B11, torch.randn(2, 80, 40), torch.ones(2), torch.zeros(2, dtype=torch.long))
    x1 = flow.normalised(target)
    monkeypatch.setattr(flow.decoder.estimator, "forward", lambda *_: x1 + 0.1)
    batch = FlowBatch(codes(10, 2), lengths, target, torch.zeros(2, 8))
    found = velocities(flow, batch, drawn, most_weight=most)
    weights = (1.0, 1.0) if most == 1.0 else (4.0, 25.0)
    assert float(found.loss()) == pytest.approx(0.01 * (40 * weights[0] + 24 * weights[1]) / 64, rel=1e-4)
    # With the weight it is the error of the velocity that the solver would follow.
    y, u = flow_matching.path(x1, drawn.z_BMT, t_B11)
    v = (x1 + 0.1 - y) / (1 - t_B11)
    if most > 1.0:
        assert float(found.loss()) == pytest.approx(float(flow_matching.loss(v, u, found.mask_B1T)), rel=1e-3)


def test_bands_have_mean_0_and_deviation_1_and_come_back():
    bands = Bands()
    mel_MT = torch.randn(80, 500) * torch.linspace(0.5, 4, 80)[:, None] - 6
    mel_MT[3] = -11.5  # a band of silence
    bands.set(mel_MT.mean(dim=1), mel_MT.std(dim=1, correction=0))
    x_MT = bands.normalised(mel_MT)
    assert torch.allclose(x_MT.mean(dim=1), torch.zeros(80), atol=1e-4)
    assert torch.allclose(x_MT.std(dim=1, correction=0)[4:], torch.ones(76), atol=1e-4)
    assert float(bands.deviation_M[3]) == pytest.approx(LEAST_DEVIATION)
    assert torch.allclose(bands.restored(x_MT[None])[0], mel_MT, atol=1e-5)


# --- sampling -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
def test_a_perfect_network_samples_the_mel(monkeypatch, streaming):
    flow, mel = made_flow(guidance=0.0), torch.randn(1, 80, 48) - 6
    x1 = flow.normalised(mel)
    monkeypatch.setattr(flow.decoder.estimator, "forward", lambda *_: x1)
    assert torch.allclose(flow.sample(codes(12), streaming=streaming), mel, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", [0.0, 0.6])
@pytest.mark.parametrize("prompt", [None, 7])
def test_the_stream_is_the_whole(start, prompt):
    flow, row = made_flow(start=start, steps=4), codes(18)[0]
    prompt = None if prompt is None else small_prompt(prompt)
    whole = flow.sample(row[None], prompt=prompt, streaming=True, left_chunks=2)
    for pieces in (1, 7):
        stream = flow.stream(prompt, 2)
        found = torch.cat([*(stream.push(piece) for piece in row.split(pieces)), stream.flush()], dim=-1)
        # Processors add in different orders: 6.6e-5 with AVX2, mels of up to 20.
        near = 5e-5 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1e-4
        assert torch.allclose(found, whole, atol=near)


@pytest.mark.parametrize("predict", ["velocity", "mel"])
def test_a_normalised_flow_is_a_plain_one_between_its_borders(predict):
    """Prompts are normalised on their way in, mels restored on their way out."""
    flow, prompt = made_flow(steps=3), small_prompt(6)
    flow.config = type(flow.config)(**(vars(flow.config) | {"predict": predict}))
    plain = Flow(type(flow.config)(**(vars(flow.config) | {"normalise": "none"}))).eval()
    plain.load_state_dict({k: v for k, v in flow.state_dict().items() if not k.startswith("bands.")})
    inside = type(prompt)(prompt.codes_N, flow.normalised(prompt.mel_MT), prompt.speaker_S)
    expected = flow.restored(plain.sample(codes(9), prompt=inside))
    assert torch.allclose(flow.sample(codes(9), prompt=prompt), expected, atol=1e-5)


def test_frames_after_an_items_end_are_zero():
    made = made_flow(steps=2).sample(codes(14, 2), torch.tensor([9, 14]))
    assert not made[0, :, 36:].any()
    assert made[0, :, :36].all()


# --- files --------------------------------------------------------------------------------------------------


def test_a_folder_keeps_what_is_predicted_and_the_bands(tmp_path):
    flow = made_flow(steps=3)
    write_decoder(tmp_path, flow, GriffinLim(), None, None)
    again = read_decoder(tmp_path).flow.eval()
    assert again.config == flow.config
    assert torch.equal(again.sample(codes(9)), flow.sample(codes(9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is missing: get both"),
        ({"normalise": "none"}, "flow.normalise is none, flow.pt was made with band"),
        ({"predict": "noise"}, "flow.predict is 'noise', expected velocity or mel"),
    ],
)
def test_a_folder_whose_settings_do_not_belong_to_it_is_refused(tmp_path, change, message):
    write_decoder(tmp_path, made_flow(), GriffinLim(), None, None)
    config = tmp_path / "flow" / "config.json"
    if change is None:
        config.unlink()
    else:
        content = json.loads(config.read_text())
        config.write_text(json.dumps(content | {"flow": content["flow"] | change}))
    with pytest.raises(UserError, match=message):
        read_decoder(tmp_path)


def test_the_released_layout_has_no_bands_and_settings_are_checked():
    assert small_flow().bands is None
    assert not [name for name in small_flow().state_dict() if name.startswith("bands")]
    with pytest.raises(UserError, match="normalise is 'all', expected none or band"):
        FlowConfig(normalise="all")  # pyright: ignore[reportArgumentType]
