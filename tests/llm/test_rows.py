import pytest
import torch

from lit_moss.llm.rows import RowFormat, audio_vocab_for, default_eosp, from_grid, to_grid

# The released model's own numbers.
OFFICIAL = RowFormat(151680, 16512, 151646, 16384, 151667, 512, 151644, 151645, 151643)


def test_a_stretch_of_speech_is_framed():
    V = OFFICIAL.text_vocab_size
    assert OFFICIAL.speech([7, 512]) == [151646, V + 7, V + 512, V + 16384]
    assert OFFICIAL.speech([]) == [151646, V + 16384]


@pytest.mark.parametrize("codes", [[-1], [16384], [5, 99999]])
def test_what_is_no_code_is_refused(codes):
    with pytest.raises(ValueError, match="expected 0 to 16383"):
        OFFICIAL.speech(codes)


def test_rows_to_grid_as_drawn_in_the_contract():
    rows = torch.tensor([[42, *OFFICIAL.speech([3, 512]), 43]])
    grid = to_grid(rows, OFFICIAL)
    assert grid.tolist() == [
        [[42, 512], [151646, 512], [151667, 3], [151667, 512], [151667, 16384], [43, 512]]
    ]


def test_rows_to_grid_and_back_is_the_identity():
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(0, OFFICIAL.text_vocab_size + OFFICIAL.audio_vocab_size, (64, 257), generator=g)
    rows = rows.masked_fill(rows == OFFICIAL.modality_pad_token_id, 5)  # no row has it
    assert torch.equal(from_grid(to_grid(rows, OFFICIAL), OFFICIAL), rows)


def test_the_code_that_equals_audio_pad_is_speech_all_the_same():
    row = torch.tensor([OFFICIAL.text_vocab_size + 512])
    assert from_grid(to_grid(row, OFFICIAL), OFFICIAL) == row
    assert from_grid(torch.tensor([[9, 512]]), OFFICIAL).tolist() == [9]


@pytest.mark.parametrize(("codes", "ids"), [(16384, 16512), (1024, 1152), (256, 384), (4096, 4224)])
def test_vocabulary_of_a_codebook(codes, ids):
    assert audio_vocab_for(codes) == ids
    assert default_eosp(ids) == codes


def test_fingerprint_tells_formats_apart():
    other = RowFormat(**(OFFICIAL.to_dict() | {"eosp_token_id": 16383}))
    assert OFFICIAL.fingerprint != other.fingerprint
    assert OFFICIAL.fingerprint == RowFormat(**OFFICIAL.to_dict()).fingerprint
