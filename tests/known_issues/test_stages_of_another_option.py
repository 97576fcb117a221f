"""A stage that failed at once with a changed option counted as done when the option was changed back."""

import pytest

from experiments.studies.stages import Stage, Stages


def test_a_stage_that_began_with_another_option_is_made_again(tmp_path):
    made = tmp_path / "made"

    def stage(option: int, fails: bool = False) -> Stage:
        def run(_: str) -> int:
            made.write_text(str(option))
            if fails:
                raise ValueError("interrupted")
            return option

        return Stage("one", option, (), run, [made])

    Stages(tmp_path).run(stage(6))
    with pytest.raises(ValueError, match="interrupted"):
        Stages(tmp_path).run(stage(3, fails=True))
    Stages(tmp_path).run(stage(6))
    assert made.read_text() == "6"
