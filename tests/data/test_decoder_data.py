"""Codes beside their mel: shapes, cache, bad files, resume."""

import shutil

import pytest
import torch

from lit_moss.audio import io
from lit_moss.audio.features import decoder_mel
from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import DecoderDataModule
from lit_moss.errors import UserError


@pytest.fixture
def codec(tiny_encoder, tmp_path):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.fixture
def made(corpus, codec, tmp_path, monkeypatch):
    """A datamodule with a cache of its own."""
    local = tmp_path / "corpus"
    shutil.copytree(corpus, local)
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))

    def make(**changes):
        options = {"train": [str(local / "train.jsonl")], "validation": [str(local / "validation.jsonl")],
                   "speech_tokenizer": str(codec), "batch_sec": 12, "max_sec": 10, "workers": 0}  # fmt: skip
        return DecoderDataModule(**(options | changes))

    return make


def first(module, n=3):
    module.setup("fit")
    loader = iter(module.train_dataloader())
    return [next(loader) for _ in range(n)]


@pytest.mark.slow
def test_a_batch_holds_codes_and_four_frames_of_mel_each(made, codec, tmp_path):
    tokenizer = SpeechTokenizer.from_pretrained(codec)
    utterances = {u.id: u for u in read_manifest(tmp_path / "corpus/train.jsonl")}
    for batch in first(made()):
        assert batch.mel_BMT.shape == (len(batch), 80, 4 * batch.codes_BN.shape[1])
        for i, name in enumerate(batch.ids):
            wave = io.read(utterances[name].audio, 24_000)
            mel, n = decoder_mel(wave[None])[0], int(batch.lengths_B[i])
            codes = tokenizer.encode(io.read(utterances[name].audio, 16_000), 16_000)
            assert n == min(mel.shape[-1] // 4, len(codes))
            assert torch.equal(batch.codes_BN[i, :n], codes[:n])
            assert torch.equal(batch.mel_BMT[i, :, : 4 * n], mel[:, : 4 * n])
            assert not batch.mel_BMT[i, :, 4 * n :].any()
        assert batch.speaker_BS.shape == (len(batch), 0)


@pytest.mark.slow
def test_the_cache_holds_what_is_computed_on_the_fly(made, monkeypatch):
    cached, direct = first(made()), first(made(cache=False))
    for a, b in zip(cached, direct, strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.mel_BMT, b.mel_BMT)
    # Resampling to 16 kHz from 24 kHz here, from the file's rate there: the same codes but for rounding.
    same = torch.cat([(a.codes_BN == b.codes_BN).flatten() for a, b in zip(cached, direct, strict=True)])
    assert same.float().mean() > 0.98
    again = made()
    monkeypatch.setattr(SpeechTokenizer, "encode", lambda *_: pytest.fail("computed again"))
    assert torch.equal(first(again)[0].codes_BN, cached[0].codes_BN)


@pytest.mark.slow
def test_a_changed_file_is_coded_anew(made, tmp_path):
    first(made())
    file = next((tmp_path / "corpus").rglob("*.flac"))
    file.touch()
    first(made())
    assert len(list((tmp_path / "cache/codes").rglob("*.parquet"))) == 3  # one of the two sets again


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, False])
def test_bad_files_are_skipped_by_name(made, tmp_path, cache):
    broken = read_manifest(tmp_path / "corpus/train.jsonl")[:2]
    broken[0].audio.write_bytes(b"")
    broken[1].audio.write_bytes(b"no sound at all")
    module = made(cache=cache)
    module.setup("fit")
    loader, skipped = iter(module.train_dataloader()), set()
    for _ in range(module.order.batches_per_epoch):
        skipped |= {line.split("\t")[0] for line in next(loader).skipped}
    assert skipped == {u.key for u in broken}


@pytest.mark.slow
@pytest.mark.parametrize("samples", [300, 1400])
def test_audio_shorter_than_its_manifest_says_is_skipped(made, tmp_path, samples):
    """25 ms stopped the loader, 60 ms gave an item without codes."""
    short = read_manifest(tmp_path / "corpus/train.jsonl")[0]
    io.write(short.audio, torch.zeros(samples), 24_000)
    module = made()
    module.setup("fit")
    loader, skipped = iter(module.train_dataloader()), []
    for _ in range(module.order.batches_per_epoch):
        skipped += next(loader).skipped
    assert [line.split("\t")[0] for line in skipped] == [short.key]
    assert "shorter than a code" in skipped[0]


@pytest.mark.slow
def test_two_that_write_the_cache_at_once_do_not_meet(made, tmp_path):
    """The name of the half-written file was made of the seed alone, which all ranks share."""
    import multiprocessing

    module = made()
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=module.setup, args=("fit",)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    assert not list((tmp_path / "cache/codes").rglob("*partial*"))
    first(module)


def test_another_speaker_encoder_under_the_same_name_is_another_cache(tmp_path):
    from lit_moss.codec.speaker import CampPlus, speaker_fingerprint

    encoder, found = CampPlus.__new__(CampPlus), []
    encoder.path = tmp_path / "campplus.onnx"
    for content in (b"one", b"two"):
        encoder.path.write_bytes(content)
        found.append(speaker_fingerprint(encoder))
    assert found[0] != found[1]


@pytest.mark.slow
def test_a_resume_on_other_codes_is_refused(made, tiny_encoder, tmp_path):
    module = made()
    module.setup("fit")
    state = module.state_dict()
    SpeechTokenizer(tiny_encoder(quantize_vocab_size=200)).save_pretrained(tmp_path / "other")
    other = made(speech_tokenizer=str(tmp_path / "other"))
    other.setup("fit")
    with pytest.raises(UserError, match="trained on codes of another speech tokenizer"):
        other.load_state_dict(state)
    module.load_state_dict(state)


# --- shifts of the code grid --------------------------------------------------------------------------------


@pytest.mark.slow
def test_shifted_clips_are_cut_at_their_start_and_one_shift_is_drawn_for_each_sample(made, codec, tmp_path):
    tokenizer = SpeechTokenizer.from_pretrained(codec)
    utterances = {u.id: u for u in read_manifest(tmp_path / "corpus/train.jsonl")}
    seen = set()
    for batch in first(made(shifts=[0, 20, 60]), 12):
        for i, name in enumerate(batch.ids):
            n = int(batch.lengths_B[i])
            found = batch.mel_BMT[i, :, : 4 * n]
            for ms in (0, 20, 60):
                wave = io.read(
                    utterances[name].audio, 24_000, ms / 1000, utterances[name].duration_sec - ms / 1000
                )
                mel = decoder_mel(wave[None])[0, :, : 4 * n]
                if mel.shape == found.shape and torch.equal(mel, found):
                    seen.add(ms)
                    wave16 = io.read(
                        utterances[name].audio, 16_000, ms / 1000, utterances[name].duration_sec - ms / 1000
                    )
                    assert torch.equal(batch.codes_BN[i, :n], tokenizer.encode(wave16, 16_000)[:n])
                    break
            else:
                pytest.fail(f"{name} has no expected shift")
    assert seen == {0, 20, 60}


@pytest.mark.slow
def test_shifts_follow_from_seed_and_batch_alone_and_are_cached(made, monkeypatch):
    options = {"shifts": [0, 20, 40, 60]}
    all_ = first(made(**options), 4)
    monkeypatch.setattr(SpeechTokenizer, "encode", lambda *_: pytest.fail("computed again"))
    resumed = made(**options, workers=1)
    resumed.next_batch = 2
    for a, b in zip(all_[2:], first(resumed, 2), strict=True):
        assert a.ids == b.ids
        assert torch.equal(a.codes_BN, b.codes_BN)
        assert torch.equal(a.mel_BMT, b.mel_BMT)
    monkeypatch.undo()


@pytest.mark.slow
def test_validation_is_not_shifted_and_a_resume_with_other_shifts_is_refused(made):
    plain, shifted = made(), made(shifts=[0, 40])
    for module in (plain, shifted):
        module.setup("fit")
    a, b = (next(iter(module.val_dataloader())) for module in (plain, shifted))
    assert torch.equal(a.mel_BMT, b.mel_BMT)
    assert made(shifts=[0]).fingerprints()["augmentation"] == plain.fingerprints()["augmentation"]
    with pytest.raises(UserError, match="trained on other augmentation"):
        shifted.load_state_dict(plain.state_dict())


@pytest.mark.parametrize("shifts", [[], [80], [-20, 0]])
def test_shifts_beyond_a_code_are_refused(made, shifts):
    with pytest.raises(UserError, match="expected milliseconds from 0 to 79"):
        made(shifts=shifts)


def test_clips_shorter_than_a_code_after_a_shift_are_refused(made):
    with pytest.raises(UserError, match="raise min_sec"):
        made(shifts=[0, 60], min_sec=0.1)


@pytest.mark.slow
def test_statistics_are_the_bands_means_and_deviations(made):
    module = made()
    module.setup("fit")
    mean_M, deviation_M, voice_S = module.statistics(utterances=1000)
    items = [module.training_set()[(n, 0, 0)] for n in range(len(module.training_set().utterances))]
    mel_MT = torch.cat([item[2] for item in items], dim=1).double()
    assert torch.allclose(mean_M.double(), mel_MT.mean(dim=1), atol=1e-4)
    assert torch.allclose(deviation_M.double(), mel_MT.var(dim=1, correction=0).sqrt(), atol=1e-4)
    assert voice_S.shape == (0,)
