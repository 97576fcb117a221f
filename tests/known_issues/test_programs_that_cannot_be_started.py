"""A voice whose script has no `#!` line, or one that names no program, was a traceback."""

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.voice_command import CommandVoice
from lit_moss.prepare.voice_protocol import Wording


@pytest.mark.parametrize(
    ("content", "why"),
    [("echo hello\n", "Exec format error"), ("#!/nowhere/python\n", "No such file")],
    ids=["no first line", "no interpreter"],
)
def test_they_are_one_line(tmp_path, content, why):
    script = tmp_path / "voice"
    script.write_text(content)
    script.chmod(0o755)
    voice = CommandVoice(f"{script} {{text_file}} {{out}}", 10.0)
    voice.open()
    with pytest.raises(UserError) as error:
        voice.say(Wording("hello", "en"))
    said = str(error.value)
    assert "\n" not in said
    assert str(script) in said
    assert why in said
    assert "expected a program" in said
