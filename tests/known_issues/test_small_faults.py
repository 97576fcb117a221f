"""Faults of one line each, seen once."""

import pytest
import torch

from lit_moss.audio import io
from lit_moss.audio.segments import cut_at_pauses
from lit_moss.codec import SpeechTokenizer
from lit_moss.codec.encoder import EncoderConfig
from lit_moss.errors import UserError


def test_opus_is_written_without_naming_the_format(tmp_path):
    io.write(tmp_path / "x.opus", torch.zeros(48_000), 48_000)
    assert io.info(tmp_path / "x.opus").rate_hz == 48_000


def test_a_limit_shorter_than_the_pause_does_not_crash_the_cut():
    pieces = cut_at_pauses(torch.randn(10_000), 16_000, longest_sec=0.1, pause_sec=0.2)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == 10_000
    assert all(a[1] == b[0] for a, b in zip(pieces, pieces[1:], strict=False))  # noqa: RUF007 - reads as it is
    assert max(end - start for start, end in pieces) <= 1600


def test_a_limit_of_no_samples_is_an_error_not_an_endless_loop():
    with pytest.raises(ValueError, match="two samples"):
        cut_at_pauses(torch.randn(100), 16_000, longest_sec=0.0)


def test_the_float64_copy_does_not_draw_from_the_callers_random_numbers(tiny_encoder):
    tokenizer = SpeechTokenizer(tiny_encoder())
    before = torch.get_rng_state()
    assert tokenizer.float64.network.codebook.weight.dtype == torch.float64
    assert torch.equal(before, torch.get_rng_state())


def test_a_codebook_of_one_code_is_refused_at_once():
    with pytest.raises(UserError, match="2 or more"):
        EncoderConfig(quantize_vocab_size=1)


@pytest.mark.parametrize("damage", ["model.safetensors", "config.json", "model.bin"])
def test_a_damaged_folder_is_one_line(tiny_encoder, tmp_path, damage):
    SpeechTokenizer(tiny_encoder()).save_pretrained(tmp_path)
    (tmp_path / damage).write_bytes(b"{ cut off")
    with pytest.raises(UserError) as error:
        SpeechTokenizer.from_pretrained(tmp_path)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
