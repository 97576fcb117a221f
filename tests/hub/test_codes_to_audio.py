"""Codes -> sound: batches equal single decoding, names of files, streams that write while they decode."""

import json

import pytest
import soundfile
import torch
from decoders import small_flow, small_prompt

from lit_moss.codec import Codec, SpeechTokenizer
from lit_moss.codec.vocoder import GriffinLim
from lit_moss.hub.codes_to_audio import CodeLine, decode_batches, read_code_lines, write_streams


@pytest.fixture
def codec(tiny_encoder, tmp_path):
    Codec(SpeechTokenizer(tiny_encoder()), small_flow()).save_pretrained(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.slow
def test_a_wave_does_not_depend_on_its_batch(codec):
    whole = Codec.from_pretrained(codec)
    whole.vocoder = GriffinLim(2)
    rows = [CodeLine("a", [3] * 9), CodeLine("b", list(range(14))), CodeLine("c", [5])]
    made = {line.name: wave for group, waves in decode_batches(whole, rows, None, 100)
            for line, wave in zip(group, waves, strict=True)}  # fmt: skip
    for line in rows:
        assert torch.allclose(made[line.name], whole.decode(line.codes), atol=1e-3)


@pytest.mark.slow
def test_the_limit_of_a_batch_includes_the_prompt(codec):
    whole = Codec.from_pretrained(codec)
    whole.vocoder = GriffinLim(1)
    rows = [CodeLine(str(n), [3] * 5) for n in range(12)]
    sizes = [len(group) for group, _ in decode_batches(whole, rows, small_prompt(20), 100)]
    assert sizes == [4, 4, 4]


def test_names_of_files_are_unique_and_keep_the_ids(tmp_path):
    ids = ["one", "one", "one-2", "a@12.345", "a@12.900", "x/y"]
    rows = [{"id": name, "codes": [1], "text": "a\u2028b"} for name in ids]
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "codes.jsonl").write_text(text, encoding="utf-8")
    names = [line.name for line in read_code_lines(tmp_path / "codes.jsonl")]
    assert names == ["one", "one-2", "one-2-2", "a@12.345", "a@12.900", "x_y"]


@pytest.mark.slow
def test_a_stream_writes_all_samples_and_times_the_first(codec, tmp_path):
    whole = Codec.from_pretrained(codec)
    whole.vocoder = GriffinLim(1)
    lines = [CodeLine("long", [3] * 30), CodeLine("empty", [])]
    assert write_streams(whole, lines, None, tmp_path) > 0
    assert [soundfile.info(tmp_path / f"{line.name}.wav").frames for line in lines] == [30 * 1920, 0]
