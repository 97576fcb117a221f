"""The end of a run crashed where the client of MLflow raised an error without a message: `TimeoutError()`."""

import pytest

from lit_moss.errors import first_line
from lit_moss.runs.tracking import Tracker


class Unreachable:
    """A client of MLflow whose server does not answer."""

    def __getattr__(self, name):
        def call(*args, **kwargs):
            raise TimeoutError

        return call


def test_a_server_that_is_away_at_the_end_is_a_warning(tmp_path):
    tracker = Tracker("name", "version", str(tmp_path), system_metrics=False)
    tracker._client = Unreachable()
    with pytest.warns(UserWarning, match="the MLflow run stays open: TimeoutError"):
        tracker.finalize("success")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (TimeoutError(), "TimeoutError"),
        (ValueError("\n  a\nb"), "a"),
        (ValueError("x" * 300), "x" * 200),
        (KeyError("k"), "'k'"),
    ],
)
def test_the_first_line_of_an_error(error, line):
    assert first_line(error) == line
