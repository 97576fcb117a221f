"""Crops of waves beside their mel: alignment, order, short clips, bad files, resume."""

import json
import shutil

import pytest
import torch
from decoders import small_flow

from lit_moss.audio import io
from lit_moss.audio.features import decoder_mel
from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import VocoderDataModule
from lit_moss.data.vocoder_data import Crops
from lit_moss.errors import UserError


@pytest.fixture
def made(corpus, tmp_path):
    local = tmp_path / "corpus"
    shutil.copytree(corpus, local)

    def make(**changes):
        options = {"train": [str(local / "train.jsonl")], "validation": [str(local / "validation.jsonl")],
                   "batch_sec": 1.6, "crop_sec": 0.4, "max_sec": 10, "workers": 0}  # fmt: skip
        return VocoderDataModule(**(options | changes))

    return make


def first(module, n=3):
    module.setup("fit")
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(n)]


def test_a_crop_is_a_part_of_its_file_and_its_mel_that_of_the_whole(made, tmp_path):
    utterances = {u.id: u for u in read_manifest(tmp_path / "corpus/train.jsonl")}
    for batch in first(made(gain_db=0.0)):
        assert batch.wave_BL.shape == (4, 480 * 20)
        assert batch.mel_BMT.shape == (4, 80, 20)
        assert batch.audio_sec == pytest.approx(1.6)
        for name, wave, mel in zip(batch.ids, batch.wave_BL, batch.mel_BMT, strict=True):
            whole = io.read(utterances[name].audio, 24_000)
            truth = decoder_mel(whole[None])[0]
            place = min(range(truth.shape[1] - 19), key=lambda i: (truth[:, i : i + 20] - mel).abs().mean())
            # The resampler sees less at the edges of a part.
            assert torch.allclose(truth[:, place : place + 20], mel, atol=0.05)
            assert torch.allclose(whole[480 * place : 480 * (place + 20)], wave, atol=1e-3)


def test_validation_has_whole_clips(made, tmp_path):
    module = made()
    module.setup("validate")
    (batch,) = module.val_dataloader()
    sizes = {
        u.id: len(io.read(u.audio, 24_000)) // 480
        for u in read_manifest(tmp_path / "corpus/validation.jsonl")
    }
    assert dict(zip(batch.ids, batch.frames, strict=True)) == sizes
    assert batch.wave_BL.shape[1] == 480 * batch.mel_BMT.shape[2] == 480 * max(sizes.values())


def test_an_epoch_holds_an_utterance_as_often_as_it_has_crops(made, tmp_path):
    module = made()
    module.setup("fit")
    order = module.order
    counts = torch.bincount(
        torch.tensor([i for n in range(order.batches_per_epoch) for i in order.batch(n)])
    ).tolist()
    for utterance, count in zip(module.training_set().utterances, counts, strict=True):
        assert abs(count - utterance.duration_sec / 0.4) <= 1


def test_the_order_goes_on_where_it_was_and_does_not_depend_on_workers(made):
    batches = first(made(), 5)
    resumed = made(workers=1)
    resumed.setup("fit")
    state = resumed.state_dict() | {"next_batch": 3}
    resumed.load_state_dict(state)
    loader = iter(resumed.train_dataloader())
    for batch in batches[3:]:
        other = next(loader)
        assert other.ids == batch.ids
        assert torch.equal(other.wave_BL, batch.wave_BL)
        assert torch.equal(other.mel_BMT, batch.mel_BMT)


def test_other_crops_are_refused_at_a_resume(made):
    module, other = made(), made(crop_sec=0.8)
    module.setup("fit")
    other.setup("fit")
    with pytest.raises(UserError, match="trained on other"):
        other.load_state_dict(module.state_dict())


def test_clips_shorter_than_a_crop_end_in_silence(made, tmp_path):
    lines = [json.loads(line) for line in (tmp_path / "corpus/train.jsonl").read_text().splitlines()]
    (tmp_path / "corpus/short.jsonl").write_text(json.dumps(lines[0] | {"duration": 0.6}) + "\n")
    (batch,) = first(made(train=[str(tmp_path / "corpus/short.jsonl")], crop_sec=1.0, batch_sec=1.0), 1)
    assert batch.frames == [50]
    assert batch.wave_BL[0, : 480 * 30].any()
    assert not batch.wave_BL[0, 480 * 31 :].any()
    assert torch.allclose(batch.mel_BMT[0, :, -15:], torch.tensor(1e-5).log())


def test_levels_change_by_at_most_the_gain(made):
    crops = Crops(seed=1, frames=20, gain_db=6.0)
    drawn = [crops.draw((0, n, 0), 100) for n in range(200)]
    assert {0, 80} <= {place for place, _ in drawn}
    assert max(place for place, _ in drawn) == 80
    gains = [gain for _, gain in drawn]
    assert 0.501 < min(gains) < 0.55
    assert 1.8 < max(gains) < 1.996


def test_unreadable_files_are_left_out_by_name(made, tmp_path):
    utterances = read_manifest(tmp_path / "corpus/train.jsonl")
    utterances[0].audio.write_bytes(b"no sound")
    module = made()
    module.setup("fit")
    keys = [[(0, 0, 0), (1, 0, 1)]]
    (batch,) = module.loader(module.training_set(), keys)
    assert batch.ids == [utterances[1].id]
    assert batch.skipped[0].startswith(utterances[0].key)
    (none,) = module.loader(module.training_set(), [[(0, 0, 0)]])
    assert len(none) == 0
    assert none.wave_BL.shape == (0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_sec": 2.0}, "crop_sec is 2.0 and data.batch_sec 1.6"),
        ({"gain_db": -1.0}, "gain_db is -1.0"),
        ({"train": []}, "data.train is empty"),
        ({"decoder": "runs/none"}, "runs/none"),
        ({"train_items": 0}, "train_items is 0, expected 1 or more"),
    ],
)
def test_options_that_do_not_fit_are_one_line(made, change, message):
    with pytest.raises(UserError, match=message):
        made(**change).setup("fit")


def test_a_part_of_the_utterances_is_drawn_with_the_seed(made, tmp_path):
    names = [u.id for u in read_manifest(tmp_path / "corpus/train.jsonl")]

    def drawn(**changes):
        module = made(**changes)
        module.setup("fit")
        seen = {i for n in range(module.order.batches_per_epoch) for i in module.order.batch(n)}
        assert seen == set(range(len(module.training_set().utterances)))
        return [u.id for u in module.training_set().utterances]

    some = drawn(train_items=3)
    assert len(some) == 3
    assert some == [name for name in names if name in some]
    assert drawn(train_items=3) == some
    assert any(drawn(train_items=3, seed=seed) != some for seed in range(2, 6))
    assert drawn(train_items=len(names) + 1) == drawn() == names


@pytest.fixture
def decoder(tiny_encoder, tmp_path, monkeypatch):
    """Folder of a small codec; codes and mels are kept in a cache of this test's own."""
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.nightly
def test_with_a_decoder_the_mels_are_those_of_its_stream(made, decoder, tmp_path):
    codec = Codec.from_pretrained(decoder)
    utterances = {
        u.id: u for part in ("train", "validation") for u in read_manifest(tmp_path / f"corpus/{part}.jsonl")
    }

    def streamed(name):
        (codes,) = codec.encode([io.read(utterances[name].audio, 16_000)], 16_000)
        stream = codec.flow.stream()
        return torch.cat([stream.push(codes), stream.flush()], dim=-1)[0]

    module = made(decoder=str(decoder), gain_db=0.0)
    for batch in first(module):
        assert batch.mel_BMT.shape == (4, 80, 20)
        for name, wave, mel in zip(batch.ids, batch.wave_BL, batch.mel_BMT, strict=True):
            truth, whole = streamed(name), io.read(utterances[name].audio, 24_000)
            places = range(truth.shape[1] - 19)
            errors = [float((truth[:, i : i + 20] - mel).abs().max()) for i in places]
            place = min(places, key=errors.__getitem__)
            assert errors[place] < 0.01  # kept in float16
            assert torch.allclose(whole[480 * place : 480 * (place + 20)], wave, atol=1e-3)
    (batch,) = module.val_dataloader()
    for name, frames, mel in zip(batch.ids, batch.frames, batch.mel_BMT, strict=True):
        truth = streamed(name)
        assert frames == min(truth.shape[1], len(io.read(utterances[name].audio, 24_000)) // 480)
        assert torch.allclose(mel[:, :frames], truth[:, :frames], atol=0.01)


@pytest.mark.nightly
def test_a_louder_crop_has_a_louder_mel_of_the_decoder(made, decoder):
    plain, louder = (first(made(decoder=str(decoder), gain_db=gain), 1)[0] for gain in (0.0, 6.0))
    factor = (louder.wave_BL.abs().amax(dim=1) / plain.wave_BL.abs().amax(dim=1)).log()
    assert factor.abs().max() > 0.1
    changed = louder.mel_BMT - plain.mel_BMT
    above = (plain.mel_BMT > -10) & (louder.mel_BMT > -10)
    assert above.any()
    assert torch.allclose(changed[above], factor[:, None, None].expand_as(changed)[above], atol=0.02)


@pytest.mark.nightly
def test_another_decoder_is_refused_at_a_resume(made, decoder, tiny_encoder, tmp_path):
    Codec(SpeechTokenizer(tiny_encoder()), small_flow(seed=1)).save_pretrained(tmp_path / "other")
    module = made(decoder=str(decoder))
    module.setup("fit")
    state = module.state_dict()
    for changes in ({"decoder": str(tmp_path / "other")}, {}):
        other = made(**changes)
        other.setup("fit")
        with pytest.raises(UserError, match="the mels of another decoder"):
            other.load_state_dict(state)
    alone = made()  # how it does on other mels may be asked
    alone.setup("validate")
    alone.load_state_dict(state)


@pytest.mark.slow
def test_a_file_that_the_decoder_could_not_hear_is_left_out_by_name(made, decoder, tmp_path):
    utterances = read_manifest(tmp_path / "corpus/train.jsonl")
    utterances[0].audio.write_bytes(b"no sound")
    module = made(decoder=str(decoder))
    module.setup("fit")
    (batch,) = module.loader(module.training_set(), [[(0, 0, 0), (1, 0, 1)]])
    assert batch.ids == [utterances[1].id]
    assert batch.skipped[0].startswith(utterances[0].key)


def test_a_decoder_without_a_tokenizer_is_refused(made, decoder):
    (decoder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="has no speech tokenizer"):
        made(decoder=str(decoder)).setup("fit")
