"""`SpeechDataModule`: batches are a function of the data and n, bad files are named, resumes are checked."""

import json
import shutil
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch

from lit_moss.audio import io, rates
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import SpeechDataModule
from lit_moss.errors import UserError

OPTIONS = {"batch_sec": 24.0, "max_sec": 10.0, "workers": 0, "time_masks": 1, "speeds": [0.9, 1.0, 1.1]}


def module(corpus, **changes):
    options = {
        "train": [str(corpus / "train.jsonl")],
        "validation": [str(corpus / "validation.jsonl")],
    } | OPTIONS
    data = SpeechDataModule(**(options | changes))
    data.setup("fit")
    return data


def batches(data, count):
    return list(islice(iter(data.train_dataloader()), count))


def assert_same(a, b):
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert (x.ids, x.texts, x.freq_masks, x.time_masks, x.skipped) == (
            y.ids, y.texts, y.freq_masks, y.time_masks, y.skipped)  # fmt: skip
        assert torch.equal(x.wave_BT, y.wave_BT)
        assert torch.equal(x.samples_B, y.samples_B)


@pytest.fixture(scope="module")
def twelve(corpus):
    """The first twelve batches, loaded in this process: more than an epoch."""
    data = module(corpus)
    assert data.order.batches_per_epoch < 12
    return batches(data, 12)


# Order.


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1, 4])
def test_workers_change_nothing(corpus, twelve, workers):
    assert_same(batches(module(corpus, workers=workers), 12), twelve)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("first", [1, 5, 11])
def test_setting_next_batch_continues_from_there(corpus, twelve, first, workers):
    data = module(corpus, workers=workers)
    data.next_batch = first
    assert_same(batches(data, 12 - first), twelve[first:])


def test_two_ranks_share_the_batches_of_one(corpus, twelve):
    found = []
    for rank in (0, 1):
        data = module(corpus)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
        found.append(batches(data, 6))
    assert_same([batch for step in zip(*found, strict=True) for batch in step], twelve)


def test_an_epoch_holds_every_utterance_once(corpus, twelve):
    count = module(corpus).order.batches_per_epoch
    seen = [name for batch in twelve[:count] for name in batch.ids]
    assert sorted(seen) == sorted(u.id for u in read_manifest(corpus / "train.jsonl"))


def test_loading_does_not_draw_from_the_random_numbers_of_training(corpus):
    data = module(corpus, workers=1)
    before = torch.get_rng_state()
    batches(data, 2)
    assert torch.equal(torch.get_rng_state(), before)


# Contents.


def test_without_augmentation_the_waves_are_the_files(corpus):
    data = module(corpus, speeds=[1.0])
    files = {u.id: u for u in read_manifest(corpus / "train.jsonl")}
    for batch in batches(data, 3):
        for i, name in enumerate(batch.ids):
            wave = io.read(files[name].audio, rates.TOKENIZER_RATE_HZ)
            got = batch.wave_BT[i, : batch.samples_B[i]]
            # The manifest rounds a length to 0.1 ms.
            assert abs(len(got) - len(wave)) <= 2
            shorter = min(len(got), len(wave)) - 100  # the resampler's tail sees where the wave ends
            assert torch.equal(got[:shorter], wave[:shorter])
            assert not batch.wave_BT[i, batch.samples_B[i] :].any()
        assert batch.wave_BT.shape[1] % rates.SAMPLES_PER_CODE == 0
        assert batch.audio_sec == pytest.approx(float(batch.samples_B.sum()) / 16_000)
        assert len(batch) == len(batch.ids) == len(batch.texts) == len(batch.wave_BT)


def test_speed_perturbation_is_a_function_of_seed_and_place(corpus, twelve):
    plain = {}
    for batch in batches(module(corpus, speeds=[1.0]), 12):  # more than an epoch
        plain |= dict(zip(batch.ids, batch.samples_B.tolist(), strict=True))
    factors = [
        plain[name] / samples
        for batch in twelve
        for name, samples in zip(batch.ids, batch.samples_B.tolist(), strict=True)
    ]
    assert {round(factor, 2) for factor in factors} == {0.9, 1.0, 1.1}
    other = batches(module(corpus, seed=2), 2)
    assert [batch.ids for batch in other] != [batch.ids for batch in twelve[:2]]


def test_batches_stay_inside_the_budget_with_speeds(corpus, twelve):
    for batch in twelve:
        padded_sec = len(batch) * int(batch.samples_B.max()) / rates.TOKENIZER_RATE_HZ
        assert padded_sec <= OPTIONS["batch_sec"] + 0.01


def test_every_item_has_its_own_masks(twelve):
    for batch in twelve:
        assert len(batch.freq_masks) == len(batch.time_masks) == len(batch)
        for samples, freq, time in zip(
            batch.samples_B.tolist(), batch.freq_masks, batch.time_masks, strict=True
        ):
            assert (len(freq), len(time)) == (2, 1)
            assert all(0 <= start <= end <= 80 for start, end in freq)
            assert all(0 <= start <= end <= samples // rates.WHISPER_HOP_SAMPLES for start, end in time)
    assert len({str(freq) for batch in twelve for freq in batch.freq_masks}) > 12


def test_validation_is_plain_complete_and_in_order_of_length(corpus):
    data = module(corpus, validation=[str(corpus / "train.jsonl")], validation_batch_sec=15.0)
    found = list(data.val_dataloader())
    assert len(found) > 2
    assert_same(found, list(data.val_dataloader()))
    lengths = [samples for batch in found for samples in batch.samples_B.tolist()]
    assert lengths == sorted(lengths)
    assert sorted(name for batch in found for name in batch.ids) == sorted(
        u.id for u in read_manifest(corpus / "train.jsonl")
    )
    for batch in found:
        assert not any(batch.freq_masks + batch.time_masks)
        assert len(batch) * int(batch.samples_B.max()) <= 15.0 * rates.TOKENIZER_RATE_HZ + 100


def test_the_probe_shows_the_next_batches_without_augmentation(corpus):
    data = module(corpus)
    data.next_batch = 3
    probed = list(data.probe_loader(2))
    assert [batch.ids for batch in probed] == [batch.ids for batch in batches(data, 2)]
    assert not any(mask for batch in probed for mask in batch.freq_masks)
    files = {u.id: u for u in read_manifest(corpus / "train.jsonl")}
    for batch in probed:
        for name, samples in zip(batch.ids, batch.samples_B.tolist(), strict=True):
            assert samples == pytest.approx(files[name].duration_sec * rates.TOKENIZER_RATE_HZ, abs=2)


# Bad files.


@pytest.fixture
def damaged(corpus, tmp_path):
    """Manifest with durations of six good utterances and one of each kind of damage; and the kinds' names."""
    good = [u for u in read_manifest(corpus / "train.jsonl") if u.duration_sec < 6][:6]
    entries = []
    for u in good:
        shutil.copy(u.audio, tmp_path)
        entries.append({"audio_filepath": u.audio.name, "duration": u.duration_sec, "text": u.text})
    sound = good[0].audio.read_bytes()
    (tmp_path / "zero.flac").write_bytes(b"")
    (tmp_path / "words.wav").write_text("this is no sound\n" * 100)
    (tmp_path / "half.flac").write_bytes(sound[: len(sound) // 2])
    flipped = bytearray(sound)
    flipped[len(sound) // 2] ^= 0xFF
    (tmp_path / "flipped.flac").write_bytes(flipped)
    wave = np.full(32_000, 0.1, dtype=np.float32)
    wave[7000] = np.nan
    soundfile.write(tmp_path / "nan.wav", wave, 16_000, subtype="FLOAT")
    bad = ("zero.flac", "words.wav", "half.flac", "flipped.flac", "nan.wav", "gone.flac")
    entries += [
        {"audio_filepath": name, "duration": 2.0 + 0.1 * i, "text": "lost"} for i, name in enumerate(bad)
    ]
    entries[6 + bad.index("half.flac")]["duration"] = good[0].duration_sec
    entries[6 + bad.index("flipped.flac")]["duration"] = good[0].duration_sec
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return manifest, [u.id for u in good], bad


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_files_are_skipped_by_name_and_the_others_are_intact(damaged, workers):
    manifest, good, bad = damaged
    options = {"validation": [], "speeds": [1.0], "batch_sec": 30.0, "workers": workers}
    data = module(manifest.parent, **options)
    epoch = batches(data, data.order.batches_per_epoch)
    assert sorted(name for batch in epoch for name in batch.ids) == sorted(good)
    skipped = {Path(key).stem: why for key, why in (line.split("\t") for b in epoch for line in b.skipped)}
    assert set(skipped) == {name.partition(".")[0] for name in bad}
    assert sum(len(batch.skipped) for batch in epoch) == len(bad)
    for name in bad:
        assert str(manifest.parent / name) in skipped[name.partition(".")[0]]
    # What came with a bad file is what comes without it.
    clean = manifest.with_name("clean.jsonl")
    clean.write_text("".join(line + "\n" for line in manifest.read_text().splitlines()[: len(good)]))
    alone = module(manifest.parent, **(options | {"train": [str(clean)]}))
    waves = {}
    for batch in batches(alone, alone.order.batches_per_epoch):
        waves |= {name: batch.wave_BT[i, : batch.samples_B[i]] for i, name in enumerate(batch.ids)}
    for batch in epoch:
        assert (
            len(batch.wave_BT)
            == len(batch.samples_B)
            == len(batch.texts)
            == len(batch.freq_masks)
            == len(batch.ids)
        )
        for i, name in enumerate(batch.ids):
            assert torch.equal(batch.wave_BT[i, : batch.samples_B[i]], waves[name])


def test_a_batch_of_only_bad_files_is_empty_and_names_them(damaged):
    manifest, _, _ = damaged
    lines = manifest.read_text().splitlines()
    manifest.write_text("".join(line + "\n" for line in lines if "zero" in line or "gone" in line))
    data = module(manifest.parent, validation=[], speeds=[1.0], batch_sec=30.0)
    (batch,) = batches(data, 1)
    assert len(batch) == 0
    assert batch.wave_BT.shape[0] == 0
    assert batch.audio_sec == 0.0
    assert len(batch.skipped) == 2


def test_without_durations_files_with_bad_headers_are_skipped_at_setup(damaged):
    manifest, good, _ = damaged
    entries = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("".join(json.dumps({"audio_filepath": e["audio_filepath"]}) + "\n" for e in entries))
    data = module(manifest.parent, validation=[], speeds=[1.0])
    assert {Path(key).stem for key in data.skipped} == {"zero", "words", "gone"}
    epoch = batches(data, data.order.batches_per_epoch)
    assert {Path(line.split("\t")[0]).stem for b in epoch for line in b.skipped} == {"half", "flipped", "nan"}
    assert sorted(name for batch in epoch for name in batch.ids) == sorted(good)


def test_too_long_and_too_short_are_left_out_and_named(corpus, caplog):
    lengths = {u.id: u.duration_sec for u in read_manifest(corpus / "train.jsonl")}
    low, high = sorted(lengths.values())[2], sorted(lengths.values())[-3]
    with caplog.at_level("INFO"):
        data = module(corpus, validation=[], min_sec=low, max_sec=high, speeds=[1.0])
    inside = {name for name, seconds in lengths.items() if low <= seconds <= high}
    seen = {name for batch in batches(data, data.order.batches_per_epoch) for name in batch.ids}
    assert seen == inside
    outside = set(lengths) - inside
    assert f"{len(outside)} utterances outside" in caplog.text
    assert all(name in caplog.text for name in outside)


def test_nothing_inside_the_limits_is_an_error(corpus):
    with pytest.raises(UserError, match=r"train\.jsonl: no utterance of 9\.9 to 10\.0 s"):
        module(corpus, validation=[], min_sec=9.9)


# Resume.


def test_the_state_restores_next_batch_and_skipped(corpus, twelve):
    data = module(corpus)
    data.next_batch, data.skipped = 7, {"x": "x.wav: empty file"}
    state = json.loads(json.dumps(data.state_dict()))  # plain types alone: a checkpoint is loaded as data
    fresh = module(corpus)
    fresh.load_state_dict(state)
    assert (fresh.next_batch, fresh.skipped) == (7, {"x": "x.wav: empty file"})
    assert_same(batches(fresh, 5), twelve[7:])


@pytest.mark.parametrize(
    ("changes", "what"), [({"seed": 5}, "order"), ({"batch_sec": 25.0}, "order"), ({}, "data")]
)
def test_a_resume_with_other_data_or_order_names_both_fingerprints(corpus, tmp_path, changes, what):
    data = module(corpus)
    if what == "data":
        lines = [json.loads(line) for line in (corpus / "train.jsonl").read_text().splitlines()]
        for entry in lines:
            entry["audio_filepath"] = str(corpus / entry["audio_filepath"])
        lines[0]["text"] = "changed"
        other = tmp_path / "train.jsonl"
        other.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
        changes = {"train": [str(other)]}
    fresh = module(corpus, **changes)
    assert fresh.fingerprints() != data.fingerprints()
    with pytest.raises(UserError, match=f"other {what}") as caught:
        fresh.load_state_dict(data.state_dict())
    assert data.fingerprints()[what] in str(caught.value)
    assert fresh.fingerprints()[what] in str(caught.value)
    assert fresh.next_batch == 0


# Options.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": [1.0, 2.0]}, r"data\.weights has 2 entries for 1 manifests"),
        ({"weights": [0.0]}, r"data\.weights is \[0\.0\], expected numbers above 0"),
        ({"weights": [float("nan")]}, r"data\.weights"),
        ({"speeds": [1.0, 3.0]}, r"data\.speeds is \[1\.0, 3\.0\], expected factors from 0\.5 to 2"),
        ({"speeds": [0.0]}, r"data\.speeds"),
        ({"max_sec": 31.0, "batch_sec": 40.0}, r"data\.max_sec is 31\.0, expected at most 30"),
        ({"batch_sec": 9.0}, r"data\.batch_sec 9\.0 is less than data\.max_sec 10\.0"),
        ({"batch_sec": 11.0, "speeds": [0.9, 1.0]}, r"slowest speed 0\.9"),
        ({"train": []}, r"data\.train is empty"),
        ({"train": ["gone.jsonl"]}, r"no manifest gone\.jsonl"),
        (
            {"train": ["embedded:gone"]},
            r"no embedded corpus 'embedded:gone', expected 'embedded:everyday-en'",
        ),
    ],
)
def test_invalid_options_are_named(corpus, changes, message):
    with pytest.raises(UserError, match=message):
        module(corpus, **changes)


def test_weights_are_how_often_an_epoch_contains_a_manifest(corpus):
    both = [str(corpus / "train.jsonl"), str(corpus / "validation.jsonl")]
    data = module(corpus, train=both, weights=[1.0, 2.0], speeds=[1.0])
    first, second = (len(read_manifest(path)) for path in both)
    seen = [name for batch in batches(data, data.order.batches_per_epoch) for name in batch.ids]
    assert len(seen) == first + 2 * second
    assert all(seen.count(u.id) == 2 for u in read_manifest(both[1]))
