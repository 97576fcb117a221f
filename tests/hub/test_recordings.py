"""The one cache of codes: shared by documents and the decoder's data, per recording."""

import json

import numpy as np
import pyarrow as pa
import pytest
import soundfile
import torch
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.audio import io
from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import DecoderDataModule
from lit_moss.data.make_documents import make_documents
from lit_moss.errors import UserError
from lit_moss.hub import NamedTokenizer, recordings
from lit_moss.hub.code_cache import encode_utterances
from lit_moss.hub.recordings import RecordingCache, recordings_stamp
from lit_moss.hub.speech_parts import SpeechParts

RATE_HZ = 16_000


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def manifest(tmp_path):
    """Eight utterances; the last one is too short for the decoder's data."""
    lines = []
    for i in range(8):
        samples = 1600 if i == 7 else RATE_HZ + 1000 * i
        soundfile.write(tmp_path / f"x-{i}.wav", np.random.default_rng(i).normal(0, 0.1, samples), RATE_HZ)
        lines.append({"audio_filepath": f"x-{i}.wav", "duration": samples / RATE_HZ, "text": "word"})
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "m.jsonl"


@pytest.fixture
def encoded(monkeypatch):
    """Number of waves of each call of `SpeechTokenizer.encode`."""
    calls, encode = [], SpeechTokenizer.encode
    monkeypatch.setattr(
        SpeechTokenizer, "encode", lambda self, *args: calls.append(len(args[0])) or encode(self, *args)
    )
    return calls


def documents(manifest, codec, tmp_path):
    backbone = str(backbone_folder(tmp_path / "backbone"))
    return make_documents("unsupervised", [str(manifest)], "train", backbone, str(codec))


def decoder_data(manifest, codec):
    data = DecoderDataModule([str(manifest)], speech_tokenizer=str(codec), workers=0)
    data.setup("fit")
    return data


def test_the_decoders_data_takes_the_codes_of_documents(manifest, tmp_path, encoded):
    codec = made_up_codec(tmp_path / "codec")
    documents(manifest, codec, tmp_path)
    assert sum(encoded) == 8
    decoder_data(manifest, codec)
    assert sum(encoded) == 8


def test_documents_take_the_codes_of_the_decoders_data(manifest, tmp_path, encoded):
    codec = made_up_codec(tmp_path / "codec")
    decoder_data(manifest, codec)
    assert sum(encoded) == 7
    documents(manifest, codec, tmp_path)
    assert sum(encoded) == 8  # the short one


def test_codes_do_not_depend_on_what_is_encoded_with_them(manifest, tmp_path):
    codec = str(made_up_codec(tmp_path / "codec"))
    utterances, tokenizer = read_manifest(manifest), NamedTokenizer(codec)
    found = encode_utterances(utterances, tokenizer)
    one_by_one = [tokenizer.opened.encode(io.read(u.audio, RATE_HZ), RATE_HZ).tolist() for u in utterances]
    assert found.codes == one_by_one
    assert encode_utterances(utterances, tokenizer) == found  # from the cache
    assert encode_utterances(utterances[::-1], tokenizer).codes == found.codes[::-1]
    assert encode_utterances([], tokenizer).codes == []


def test_other_features_are_encoded_again(manifest, tmp_path, encoded, cache):
    codec, utterances = str(made_up_codec(tmp_path / "codec")), read_manifest(manifest)
    for log_mel in (None, "causal", "whisper"):
        encode_utterances(utterances, NamedTokenizer(codec, log_mel))
    assert sum(encoded) == 16
    assert len(list((cache / "codes").iterdir())) == 2


def test_parts_are_kept_as_they_are_done(manifest, tmp_path, encoded, monkeypatch, cache):
    codec, utterances = str(made_up_codec(tmp_path / "codec")), read_manifest(manifest)
    whole = encode_utterances(utterances, NamedTokenizer(codec))
    monkeypatch.setattr(recordings, "PART", 3)
    assert encode_utterances(utterances, NamedTokenizer(codec)) == whole
    assert sum(encoded) == 8
    assert len(list((cache / "codes").rglob("*.parquet"))) == 4
    assert not list((cache / "codes").rglob("*.partial*"))


def test_logs_say_how_far_encoding_is(manifest, tmp_path, monkeypatch, capsys):
    codec, utterances = str(made_up_codec(tmp_path / "codec")), read_manifest(manifest)
    monkeypatch.setattr(recordings, "_LINE_EVERY_SEC", -1.0)
    encode_utterances(utterances, NamedTokenizer(codec))
    assert "codes: 4 of 8 recordings\n" in capsys.readouterr().err
    encode_utterances(utterances, NamedTokenizer(codec))  # from the cache
    assert "recordings" not in capsys.readouterr().err


def test_a_recording_that_cannot_be_read_keeps_its_reason(manifest, tmp_path, encoded):
    codec = str(made_up_codec(tmp_path / "codec"))
    (tmp_path / "x-3.wav").write_bytes(b"no sound")
    utterances = read_manifest(manifest)
    for _ in range(2):  # computed, and from the cache
        found = encode_utterances(utterances, NamedTokenizer(codec))
        assert found.unread == [3]
        assert "x-3.wav" in found.reasons[0]
    assert sum(encoded) == 7
    soundfile.write(tmp_path / "x-3.wav", np.zeros(RATE_HZ + 3000), RATE_HZ)
    assert encode_utterances(utterances, NamedTokenizer(codec)).unread == []
    assert sum(encoded) == 8


def test_speaker_vectors_are_kept_apart_from_codes(manifest, tmp_path, encoded, monkeypatch):
    class Loudness:
        dim = 2

        def __call__(self, wave_T):
            return torch.stack([wave_T.abs().mean(), wave_T.std()])

    codec, utterances = str(made_up_codec(tmp_path / "codec")), read_manifest(manifest)
    plain = SpeechParts(codec, None).cached(utterances)
    parts = SpeechParts(codec, None)
    parts.speaker, parts.fingerprints = Loudness(), parts.fingerprints | {"speaker_encoder": "loudness"}
    coded = parts.cached(utterances)
    assert sum(encoded) == 8
    direct = parts.encode([torch.from_numpy(soundfile.read(u.audio, dtype="float32")[0]) for u in utterances])
    for a, b, c in zip(coded, direct, plain, strict=True):
        assert torch.equal(a.codes_N, b.codes_N)
        assert torch.equal(a.codes_N, c.codes_N)
        assert torch.equal(a.speaker_S, b.speaker_S)
        assert len(c.speaker_S) == 0
    monkeypatch.setattr(Loudness, "__call__", lambda *_: pytest.fail("computed again"))
    assert torch.equal(parts.cached(utterances)[0].speaker_S, coded[0].speaker_S)


def test_the_stamp_of_a_list_follows_files_and_parts(manifest):
    utterances = read_manifest(manifest)
    first = recordings_stamp(utterances)
    assert recordings_stamp(read_manifest(manifest)) == first
    assert recordings_stamp(utterances[1:]) != first
    utterances[0].audio.touch()
    assert recordings_stamp(utterances) != first


def test_a_cache_that_cannot_be_written_is_one_line(manifest, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be written .*set LIT_MOSS_CACHE"):
        RecordingCache("codes", "x", pa.int32(), None).entries(read_manifest(manifest))
