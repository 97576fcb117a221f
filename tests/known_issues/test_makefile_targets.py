"""A target that was written twice made `make test` run the GPU tests alone, which all skip, and succeed."""

import re
from pathlib import Path

import pytest

MAKEFILE = Path(__file__).resolve().parents[2] / "Makefile"


def test_every_target_is_written_once_and_is_phony():
    text = MAKEFILE.read_text()
    targets = re.findall(r"^([a-z-]+):", text, re.MULTILINE)
    assert len(targets) == len(set(targets))
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == set(targets)


@pytest.mark.parametrize(
    ("target", "left_out"), [("test", '-m "not nightly"'), ("test-nightly", "-m nightly")]
)
def test_two_targets_run_the_whole_suite_between_them(target, left_out):
    recipe = re.search(rf"^{target}:.*\n\t(.*)$", MAKEFILE.read_text(), re.MULTILINE)
    assert recipe is not None
    assert recipe[1].endswith(f"-m pytest -n 2 --dist worksteal {left_out}")
