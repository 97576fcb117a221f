"""A full disk, and an output folder that cannot be made, ended `prepare` with a traceback."""

import json
import os
import resource
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT

from lit_moss.cli.main import main
from lit_moss.errors import UserError
from lit_moss.prepare.storage import refusals_to_write

sys.path.insert(0, str(ROOT / "tests" / "prepare"))


@pytest.fixture
def words(tmp_path) -> list[str]:
    source = tmp_path / "source.jsonl"
    source.write_text("".join(json.dumps({"id": f"t{i}", "text": "a" * 100}) + "\n" for i in range(200)))
    return ["prepare", "counting.CountingStage", str(source), "--track", "false", "--out"]


def with_small_files(largest: int, call, errors: Path) -> int:
    """Exit code of `call` in a process whose files cannot grow: as on a full disk, writes fail half-way."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.dup2(os.open(errors, os.O_WRONLY | os.O_CREAT), 2)
            sys.stderr = os.fdopen(2, "w")
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
            code = call()
            sys.stderr.flush()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(words, tmp_path):
    out = tmp_path / "out"
    assert with_small_files(9_000, lambda: main([*words, str(out)]), tmp_path / "errors") == 2
    (line,) = (tmp_path / "errors").read_text().splitlines()
    assert line.startswith(f"error: step counting.CountingStage: {out}")
    assert "cannot be written (File too large): make room" in line
    assert main([*words, str(out)]) == 0
    assert main([*words, str(tmp_path / "whole")]) == 0
    for name in ("manifest.jsonl", "parts/part-00003.jsonl"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_full_disk_under_documents_is_one_line(tmp_path):
    def write() -> int:
        table = pa.table({"rows": list(range(100_000))})
        try:
            with refusals_to_write("step interleave", str(tmp_path)):
                pq.write_table(table, tmp_path / "x.parquet", compression="NONE")
        except UserError as error:
            return 2 * str(error).startswith(
                f"step interleave: {tmp_path} cannot be written (File too large)"
            )
        return 1

    assert with_small_files(9_000, write, tmp_path / "errors") == 2


@pytest.mark.parametrize("name", ["file", "file/out"])
def test_a_file_in_place_of_a_folder_is_one_line(name, words, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert main([*words, str(tmp_path / name)]) == 2
    assert f"{tmp_path}/file" in capsys.readouterr().err


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_one_line(words, tmp_path, capsys):
    (tmp_path / "out").mkdir(mode=0o555)
    assert main([*words, str(tmp_path / "out")]) == 2
    assert "cannot be written (Permission denied)" in capsys.readouterr().err
