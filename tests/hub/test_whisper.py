"""Whisper by name."""

import pytest
import torch

from lit_moss.errors import UserError
from lit_moss.hub.whisper import open_whisper, whisper_fingerprint

pytest.importorskip("faster_whisper")


@pytest.mark.network
def test_opening_leaves_the_threads_of_this_process_alone():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        model = open_whisper("embedded:whisper-tiny", "cpu", threads=1, compute_type="int8")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert model.model.compute_type.startswith("int8")
    assert len(whisper_fingerprint("embedded:whisper-tiny")) == 16


@pytest.mark.parametrize("name", ["no-such-size", "embedded:no-such-part"])
def test_an_unknown_name_is_refused_in_one_line(name):
    with pytest.raises(UserError, match=name.rpartition(":")[2]) as caught:
        open_whisper(name)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        open_whisper(str(tmp_path))
    with pytest.raises(UserError, match=r"model\.bin"):
        whisper_fingerprint(str(tmp_path))
