"""A file of zeros, room that a download has reserved, took 0.2 s for each of its megabytes to be refused."""

import time

import pytest

from lit_moss.audio import io


def test_it_is_refused_at_once(tmp_path):
    path = tmp_path / "reserved.mp3"
    path.write_bytes(bytes(30_000_000))
    io.info  # noqa: B018 - imported before the clock starts
    start = time.process_time()
    with pytest.raises(io.UnreadableAudio, match="no readable sound"):
        io.info(path)
    assert time.process_time() - start < 2.0  # it took 6
