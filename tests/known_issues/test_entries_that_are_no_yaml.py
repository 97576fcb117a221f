"""`--set.trainer.max_steps "[1"` was a traceback of the YAML parser, as was an entry of no mapping."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from lit_moss.cli.yaml_options import OptionsParser
from lit_moss.errors import UserError


@dataclass
class Options:
    """Options.

    Args:
        set: Entries.
    """

    set: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    "value", ["[1", "a: b: c", "2024-13-45", "!!python/object:os.system x", "\0", "[" * 5000]
)
@pytest.mark.parametrize("joined", [True, False])
def test_they_are_one_line_with_word_and_value(value, joined):
    words = [f"--set.trainer.max_steps={value}"] if joined else ["--set.trainer.max_steps", value]
    with pytest.raises(UserError) as error:
        OptionsParser(Options, "x").read(words)
    message = str(error.value)
    assert message.startswith(f"--set.trainer.max_steps is {value[:60]!r}, which is no YAML (")
    assert "\n" not in message
    assert "expected a value such as 20" in message


def test_an_entry_of_no_mapping_is_one_line(tmp_path):
    (tmp_path / "c.yaml").write_text("set: [1]\n")
    with pytest.raises(UserError, match=r"set is \[1\] in the YAML, expected a mapping"):
        OptionsParser(Options, "x").read(["-c", str(tmp_path / "c.yaml"), "--set.a", "1"])


def test_values_are_still_read_as_in_a_yaml():
    words = ["--set.a", "20", "--set.b=[1, x]", "--set.c", '"[1"', "--set.d", "text"]
    options, _ = OptionsParser(Options, "x").read(words)
    assert options.set == {"a": 20, "b": [1, "x"], "c": "[1", "d": "text"}
