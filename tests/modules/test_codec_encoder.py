"""The LightningModule: what its losses reach, when quantization begins, what its checkpoint holds."""

import pytest
import torch

from lit_moss.audio.waves import pad_to_codes
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import EncoderConfig
from lit_moss.data.batches import SpeechBatch
from lit_moss.errors import UserError
from lit_moss.modules import CodecEncoder

SIZES = EncoderConfig(
    num_mel_bins=80,
    d_model=64,
    encoder_attention_heads=2,
    encoder_ffn_dim=128,
    quantize_position=2,
    quantize_vocab_size=16,
)


class Record:
    """Stands in for the part of the Trainer that a bare step asks for."""

    testing, world_size, logger = False, 1, None


@pytest.fixture
def module():
    from lit_moss.codec.ctc import CharVocabulary

    torch.manual_seed(0)
    module = CodecEncoder(init_from=None, encoder=SIZES, head_layers=1, head_width=64)
    module._build_head(CharVocabulary("abcdefghijklmnopqrstuvwxyz' "))
    module.log = module.log_dict = lambda *args, **kwargs: None
    return module


@pytest.fixture
def batch(speech):
    wave_BT, samples_B = pad_to_codes(speech[:3])
    return SpeechBatch(
        wave_BT, samples_B, ["a", "b", "c"], ["the kettle", "pass me", "we walked"], [[]] * 3, [[]] * 3
    )


def step(module, batch):
    module._fabric = None
    module.__dict__["_trainer"] = None
    type(module).global_step = property(lambda self: 0)
    return module.training_step(batch, 0)


@pytest.fixture(autouse=True)
def restore():
    kept = CodecEncoder.__dict__.get("global_step")
    yield
    if kept is None and "global_step" in CodecEncoder.__dict__:
        del CodecEncoder.global_step


def test_gradients_reach_encoder_and_head_through_the_quantizer(module, batch):
    module.codebook_ready.fill_(True)
    step(module, batch).backward()
    for name in (
        "encoder.conv1.weight",
        "encoder.layers.1.fc2.weight",
        "head.upsample.weight",
        "head.frame_proj.weight",
    ):
        assert module.get_parameter(name).grad.abs().sum() > 0, name
    assert module.encoder.codebook.weight.grad is None


def test_the_codebook_follows_its_frames_only_once_it_is_started(module, batch):
    before = module.encoder.codebook.weight.clone()
    step(module, batch)
    assert torch.equal(module.encoder.codebook.weight, before)
    module.codebook_ready.fill_(True)
    step(module, batch)
    assert torch.equal(module.encoder.codebook.weight, before)  # until the optimizer steps too
    module.on_before_optimizer_step(module.configure_optimizers())
    assert not torch.equal(module.encoder.codebook.weight, before)
    assert int(module.updates) == 1


def test_padding_of_the_batch_changes_no_loss(module, batch):
    module.eval()
    alone = module(batch) if False else step(module, batch)
    padded = SpeechBatch(
        torch.nn.functional.pad(batch.wave_BT, (0, 12_800)),
        batch.samples_B,
        batch.ids,
        batch.texts,
        batch.freq_masks,
        batch.time_masks,
    )
    torch.testing.assert_close(step(module, padded), alone, rtol=1e-5, atol=1e-5)


def test_a_batch_without_a_readable_file_gives_a_loss_of_zero(module):
    empty = SpeechBatch(
        torch.zeros(0, 0), torch.zeros(0, dtype=torch.long), [], [], [], [], ["x\tx: no such file"]
    )
    loss = step(module, empty)
    loss.backward()
    assert float(loss) == 0.0


def test_optimizer_groups_have_their_rates_and_all_trained_parameters_once(module):
    optimizer = module.configure_optimizers()
    rates = {g["name"]: (g["base_lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert rates == {"encoder": (3e-4, 0.01), "encoder.no_decay": (3e-4, 0.0), "head": (1e-3, 0.01),
                     "head.no_decay": (1e-3, 0.0)}  # fmt: skip
    held = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters() if p.requires_grad)


def test_a_checkpoint_opens_as_a_tokenizer_once_it_has_a_codebook(module, tmp_path, speech):
    path = tmp_path / "x.ckpt"
    for ready in (False, True):
        module.codebook_ready.fill_(ready)
        checkpoint = {"state_dict": module.state_dict()}
        module.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        if not ready:
            with pytest.raises(UserError, match="no codebook"):
                SpeechTokenizer.from_pretrained(path)
    tokenizer = SpeechTokenizer.from_pretrained(path)
    assert torch.equal(tokenizer.encoder.codebook.weight, module.encoder.codebook.weight)
    assert len(tokenizer.encode(speech[0], 16_000)) == -(-len(speech[0]) // 1280)


def test_neither_weights_nor_sizes_is_an_error():
    with pytest.raises(UserError, match="init_from"):
        CodecEncoder(init_from=None)
    with pytest.raises(UserError, match="64"):
        CodecEncoder(init_from=None, encoder=SIZES, head_width=100)
