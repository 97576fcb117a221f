"""A resume read the whole checkpoint three times for its sha256, which takes minutes each at 8B."""

import io

import pytest
import torch

from lit_moss.runs import checkpoints


@pytest.fixture
def sealed(tmp_path):
    path = tmp_path / "a.ckpt"
    content = io.BytesIO()
    torch.save({"state_dict": {"w": torch.zeros(9)}}, content)
    checkpoints.seal_file(content)
    path.write_bytes(content.getvalue())
    return path


def test_a_whole_file_is_read_once_and_a_changed_one_again(sealed, monkeypatch):
    readings = []
    digest = checkpoints._digest
    monkeypatch.setattr(checkpoints, "_digest", lambda *args: readings.append(1) or digest(*args))
    assert checkpoints.is_whole(sealed)
    assert checkpoints.is_whole(sealed)
    assert len(readings) == 1
    content = bytearray(sealed.read_bytes())
    content[len(content) // 2] ^= 1
    sealed.unlink()  # a new file, whatever the resolution of the file system's clock
    sealed.write_bytes(content)
    assert not checkpoints.is_whole(sealed)
    assert not checkpoints.is_whole(sealed)
    assert len(readings) == 3
