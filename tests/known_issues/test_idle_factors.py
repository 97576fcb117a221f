"""A factor on the learning rate of a part that is frozen in the whole run had no effect, without a word."""

import pytest
from lm_recipe import lm_recipe
from recording import fit


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("factors", "said"), [({"text_tail": 2.0, "audio_head": 3.0}, True), ({"audio_head": 3.0}, False)]
)
def test_factors_of_frozen_parts_are_said(tmp_path, recwarn, factors, said):
    fit(tmp_path / "run", lm_recipe(tmp_path / "run", 2, stages=[{"policy": "stage1"}], lr_factors=factors))
    warned = [str(one.message) for one in recwarn]
    assert any("model.lr_factors names text_tail, frozen in all of this run" in w for w in warned) == said
