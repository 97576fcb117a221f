"""Recordings -> codes: in their order, in batches, with reasons for those that cannot be read."""

import json

import pytest
import torch

from lit_moss.audio import io
from lit_moss.codec import SpeechTokenizer
from lit_moss.corpora.manifest import Utterance
from lit_moss.hub.audio_to_codes import encode_audio, write_codes


@pytest.fixture
def utterances(tmp_path):
    """Three files of 1, 2 and 1 s of noise; the second cannot be read."""
    noise = 0.1 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))
    io.write(tmp_path / "a.wav", noise[:16_000], 16_000)
    (tmp_path / "b.wav").write_bytes(b"no sound")
    io.write(tmp_path / "c.wav", noise, 16_000)
    return [Utterance(tmp_path / f"{name}.wav") for name in "abc"]


@pytest.mark.parametrize("batch_sec", [0.5, 240.0])
def test_codes_do_not_depend_on_the_batch(utterances, tiny_encoder, batch_sec):
    tokenizer = SpeechTokenizer(tiny_encoder())
    encoded = {e.utterance.audio.stem: e for e in encode_audio(utterances, tokenizer, batch_sec)}
    for name, seconds in (("a", 1.0), ("c", 2.0)):
        alone = tokenizer.encode(io.read(encoded[name].utterance.audio, 16_000), 16_000)
        assert encoded[name].codes == alone.tolist()
        assert encoded[name].seconds == seconds
    assert encoded["b"].codes is None
    assert "b.wav" in encoded["b"].reason


def test_the_file_appears_when_all_is_done(utterances, tiny_encoder, tmp_path, monkeypatch):
    tokenizer, path = SpeechTokenizer(tiny_encoder()), tmp_path / "codes.jsonl"
    summary = write_codes(path, utterances, tokenizer)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert (summary.files, summary.seconds, len(summary.reasons)) == (2, 3.0, 1)
    assert summary.codes == sum(len(line["codes"]) for line in lines)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "encode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_codes(tmp_path / "other.jsonl", utterances, tokenizer)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.wav", "b.wav", "c.wav", "codes.jsonl"]
