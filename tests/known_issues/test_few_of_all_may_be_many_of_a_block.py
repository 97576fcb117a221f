"""`prepare interleave` and `sft` allowed 1 % of the recordings to be unreadable, whatever `max_bad_share`
said, and counted by blocks of 2000: two utterances without a transcript among the last three stopped a
corpus.
"""

import json

import numpy as np
import pytest
import soundfile
from decoders import made_up_codec
from lm_recipe import backbone_folder

from lit_moss.data.documents import read_documents
from lit_moss.errors import UserError
from lit_moss.prepare import document_folders
from lit_moss.prepare.chain import Chain, run_chain

RATE_HZ = 16_000


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "speech_tokenizer": str(made_up_codec(folder / "codec", codes=32)),
        "backbone": str(backbone_folder(folder / "backbone")),
    }


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LIT_MOSS_CACHE", str(tmp_path / "cache"))


def run(tmp_path, models, stage, items, max_bad_share=0.01, **options):
    source = tmp_path / "m.jsonl"
    source.write_text("".join(json.dumps(item) + "\n" for item in items))
    steps = {stage: models | options}
    out = str(tmp_path / "out")
    run_chain(Chain(out=out, steps=steps, sources=[str(source)], max_bad_share=max_bad_share, track=False))


def utterances(folder, number):
    """Each of its own recording."""
    path = folder / "talk.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, number * RATE_HZ // 5), RATE_HZ)
    return [
        {
            "audio_filepath": str(path),
            "offset": 0.2 * i,
            "duration": 0.2,
            "document": f"d{i}",
            "text": "one two",
        }
        for i in range(number)
    ]


def conversations(items):
    return [
        {"id": f"c{i}", "messages": [
            {"role": "user", "content": "one", "audio_filepath": item["audio_filepath"],
             "offset": item["offset"], "duration": item["duration"]},
            {"role": "assistant", "content": "two"},
        ]}
        for i, item in enumerate(items)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["interleave", "sft"])
@pytest.mark.parametrize("validation_share", [0.0, 0.3])
def test_the_share_is_that_of_the_chain_and_of_all_blocks(
    stage, validation_share, tmp_path, models, monkeypatch
):
    monkeypatch.setattr(document_folders, "BLOCK_ITEMS", 4)
    items = utterances(tmp_path, 12)
    (tmp_path / "broken.wav").write_bytes(b"no sound")
    for item in items[-2:]:
        item |= {"audio_filepath": str(tmp_path / "broken.wav"), "offset": 0.0}
    items = items if stage == "interleave" else conversations(items)
    options = {"validation_share": validation_share}
    with pytest.raises(UserError, match=r"2 or more of 12 recordings cannot be read.*max_bad_share") as error:
        run(tmp_path, models, stage, items, 0.1, **options)
    assert "blocks" not in str(error.value)
    run(tmp_path, models, stage, items, 0.2, **options)


@pytest.mark.slow
def test_transcripts_are_counted_over_all_blocks(tmp_path, models, monkeypatch):
    monkeypatch.setattr(document_folders, "BLOCK_ITEMS", 247)
    items = utterances(tmp_path, 250)
    items[-1]["text"] = items[-2]["text"] = ""
    run(tmp_path, models, "interleave", items)
    assert len(read_documents(tmp_path / "out/interleave/interleaved")) == 248
    items[0]["text"] = ""
    with pytest.raises(UserError, match=r"^interleaved: 3 of 250 utterances have no transcript"):
        run(tmp_path, models, "interleave", items)
