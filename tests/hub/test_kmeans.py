"""The tokenizer made on the spot: the same each time, in the released layout, without a trace in a run."""

import json
from dataclasses import replace

import pytest
import torch

from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.manifest import read_manifest, write_manifest
from lit_moss.errors import UserError
from lit_moss.hub import open_tokenizer, speech_tokenizer_fingerprint
from lit_moss.hub.kmeans import KMEANS, kmeans_tokenizer, make_kmeans_tokenizer


@pytest.fixture
def folder(tmp_path, tiny_encoder):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.nightly
@pytest.mark.network
def test_made_twice_it_is_the_same_and_leaves_random_numbers_alone(corpus, speech):
    state = torch.get_rng_state()
    one, two = (make_kmeans_tokenizer(corpus / "train.jsonl", size=64) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.encoder.codebook.weight, two.encoder.codebook.weight)
    codes = torch.cat(one.encode(speech, 16_000))
    assert torch.equal(codes, torch.cat(two.encode(speech, 16_000)))
    assert codes.max() < 64
    assert len(codes.unique()) > 40  # real speech uses most of its centres
    # Moving averages that say the same as the codebook: training may go on from here.
    e = one.encoder
    assert torch.allclose(e.ema_weight / e.ema_count[:, None], e.codebook.weight, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.network
def test_it_streams_the_codes_it_gives_offline(corpus, speech):
    tok = make_kmeans_tokenizer(corpus / "train.jsonl", size=64)
    stream = tok.stream()
    pushed = [stream.push(piece) for piece in speech[0].split(3000)] + [stream.flush()]
    assert torch.equal(torch.cat(pushed), tok.encode(speech[0], 16_000))


@pytest.mark.network
def test_fewer_frames_than_codes_is_an_error(corpus, tmp_path):
    write_manifest(tmp_path / "one.jsonl", read_manifest(corpus / "train.jsonl")[:1])
    with pytest.raises(UserError, match="expected 1024"):
        make_kmeans_tokenizer(tmp_path / "one.jsonl")


@pytest.mark.network
def test_parts_of_files_are_read_as_parts_and_unreadable_ones_left_out(corpus, tmp_path, capsys):
    """Each part was read as the whole file, and an unreadable one was a traceback."""
    one = read_manifest(corpus / "train.jsonl")[0]
    parts = [replace(one, offset_sec=start, duration_sec=0.48) for start in (0.0, 0.5)]
    gone = replace(one, audio=tmp_path / "gone.wav")
    write_manifest(tmp_path / "parts.jsonl", [*parts, gone])
    with pytest.raises(UserError, match="has 12 frames, expected 13"):
        make_kmeans_tokenizer(tmp_path / "parts.jsonl", size=13)
    assert "left out" in capsys.readouterr().err


@pytest.mark.nightly
@pytest.mark.network
def test_its_name_opens_it_everywhere(speech):
    made = kmeans_tokenizer()
    config = json.loads((made / "config.json").read_text())
    assert config["quantize_vocab_size"] == 1024
    by_name, by_folder = SpeechTokenizer.from_pretrained(KMEANS), open_tokenizer(str(made))
    assert torch.equal(by_name.encode(speech[0], 16_000), by_folder.encode(speech[0], 16_000))
    assert kmeans_tokenizer() == made
    assert speech_tokenizer_fingerprint(KMEANS) == speech_tokenizer_fingerprint(str(made))
    assert [p.name for p in made.parent.iterdir() if p.name.startswith("tmp")] == []


def test_opening_a_codec_leaves_random_numbers_alone(folder):
    state = torch.get_rng_state()
    open_tokenizer(str(folder))
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fingerprint_is_of_weights_and_settings(folder, tmp_path, tiny_encoder):
    first = speech_tokenizer_fingerprint(str(folder))
    assert first == speech_tokenizer_fingerprint(str(folder))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"log_mel": "whisper"}))
    settings = speech_tokenizer_fingerprint(str(folder))
    encoder = tiny_encoder()
    encoder.codebook.weight.add_(1.0)
    SpeechTokenizer(encoder).save_pretrained(folder)
    assert len({first, settings, speech_tokenizer_fingerprint(str(folder))}) == 3
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds neither"):
        speech_tokenizer_fingerprint(str(tmp_path / "empty"))


@pytest.mark.nightly
@pytest.mark.network
def test_prepare_codec_makes_one_for_speech_of_ones_own(corpus, speech, tmp_path, capsys):
    from lit_moss.cli.main import main

    words = [
        "prepare",
        "kmeans-tokenizer",
        str(corpus / "train.jsonl"),
        "--out",
        str(tmp_path / "own"),
        "--codes",
        "32",
    ]
    assert main(words) == 0
    assert speech_tokenizer_fingerprint(str(tmp_path / "own")) in capsys.readouterr().out
    assert int(open_tokenizer(str(tmp_path / "own")).encode(speech[0], 16_000).max()) < 32
    assert main(words) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words[:-1], "1"]) == 2
    assert "--codes is 1" in capsys.readouterr().err
    lower = [*words[:3], "--out", str(tmp_path / "lower"), "--codes", "32", "--layers"]
    assert main([*lower, "5"]) == 2
    assert "--layers is 5, expected 1 to 4" in capsys.readouterr().err
    assert main([*lower, "2"]) == 0
    opened = open_tokenizer(str(tmp_path / "lower"))
    assert (opened.config.quantize_position, len(opened.encoder.layers)) == (2, 2)
    assert int(opened.encode(speech[0], 16_000).max()) < 32
