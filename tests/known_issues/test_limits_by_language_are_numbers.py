"""A limit by language of `check-transcripts` that is no number ended in a traceback at the first item, and
a single further stock phrase in place of a list was taken apart into letters.
"""

import pytest

from lit_moss.errors import UserError
from lit_moss.prepare.check_transcripts import CheckTranscriptsOptions


@pytest.mark.parametrize("name", ["max_characters_per_sec", "max_word_letters"])
@pytest.mark.parametrize("limit", ["fast", None, [1], float("nan"), True])
def test_a_limit_is_a_number(name, limit):
    with pytest.raises(UserError, match=f"{name} of 'de' is .*, expected a number"):
        CheckTranscriptsOptions(**{name: {"other": 25, "de": limit}})


def test_further_phrases_are_a_list():
    with pytest.raises(
        UserError, match="more_stock_phrases of 'en' is 'see you', expected a list of phrases"
    ):
        CheckTranscriptsOptions(more_stock_phrases={"en": "see you"})
    CheckTranscriptsOptions(more_stock_phrases={"en": ["see you"]}, max_characters_per_sec=None)
