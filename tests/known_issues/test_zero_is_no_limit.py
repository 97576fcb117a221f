"""`evaluate tokenizer_probe` took 0 items for all of them, or for none."""

import pytest

from lit_moss.errors import UserError
from lit_moss.evaluate.tokenizer_probe import Config


@pytest.mark.parametrize("key", ["dev_items", "limit", "train_items"])
def test_it_is_refused(key):
    for value in (0, -1):
        with pytest.raises(UserError, match=f"{key} is {value}, expected 1 or more, or null for all"):
            Config(["t"], "d", ["x"], **{key: value})
    assert getattr(Config(["t"], "d", ["x"], **{key: None}), key) is None
