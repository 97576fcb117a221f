"""An utterance without a transcript, beside others that have one, was trained as silence.

CTC had to find no character in its speech.
"""

import json

import pytest
from decoders import made_up_codec

from lit_moss.corpora.manifest import read_manifest
from lit_moss.data import DecoderDataModule, SpeechDataModule


@pytest.fixture
def manifest(corpus, tmp_path):
    """Six utterances: two with words, two without a transcript, one with an empty one, one of signs alone."""
    utterances = read_manifest(corpus / "train.jsonl")[:6]
    texts = ["one two", "three", None, None, "", "…"]
    lines = []
    for u, text in zip(utterances, texts, strict=True):
        line = {"audio_filepath": str(u.audio), "duration": u.duration_sec}
        lines.append(line if text is None else line | {"text": text})
    path = tmp_path / "mixed.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, [u.id for u in utterances]


def test_it_is_left_out_of_the_training_and_named(manifest, caplog):
    path, ids = manifest
    data = SpeechDataModule(train=[str(path)], validation=[str(path)], weights=[2.0], workers=0)
    with caplog.at_level("INFO"):
        data.setup("fit")
    learnt = [u.id for u in data.training_set().utterances]
    assert learnt == [ids[0], ids[1], ids[4], ids[5]]  # what says that nobody speaks stays
    assert f"2 utterances without a transcript left out (text '' says silence): {ids[2]}, {ids[3]}" in (
        caplog.text
    )
    drawn = [
        name
        for _, batch in zip(range(data.order.batches_per_epoch), data.train_dataloader(), strict=False)
        for name in batch.ids
    ]
    assert sorted(drawn) == sorted(2 * learnt)
    # It has codes, for `predict` and for what a validation says of the codebook.
    assert [u.id for u in data.validation_set().utterances] == ids


def test_a_decoder_needs_none(manifest, tmp_path):
    path, ids = manifest
    codec = made_up_codec(tmp_path / "codec")
    data = DecoderDataModule(train=[str(path)], speech_tokenizer=str(codec), cache=False, workers=0)
    data.setup("fit")
    assert [u.id for u in data.training_set().utterances] == ids
