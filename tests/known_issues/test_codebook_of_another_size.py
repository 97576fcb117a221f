"""A codebook whose shape did not fit config.json was left random without a word."""

import json

import pytest

from lit_moss.codec import SpeechTokenizer
from lit_moss.errors import UserError


def test_it_is_refused(tiny_encoder, tmp_path):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantize_vocab_size": 300}))
    with pytest.raises(UserError, match="300 codes"):
        SpeechTokenizer.from_pretrained(tmp_path)
