"""A folder that was exported or imported again kept its card word for word: `--license` did not reach the
card that the hub shows, a folder of bfloat16 was described as F32, and one with a codec as one without."""

import shutil

import pytest
from huggingface_hub import ModelCard
from talker import model_folder

from lit_moss.release.card import CARD
from lit_moss.release.export import export
from lit_moss.release.import_model import import_model

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("cards") / "tiny")


@pytest.fixture(scope="module")
def exported(model):
    """A folder with a card of ours, without a codec."""
    plain = shutil.copytree(model, model.parent / "plain", ignore=shutil.ignore_patterns("codec"))
    return export(str(plain), model.parent / "exported").folder


def test_what_is_another_now_is_in_the_card(model, exported, tmp_path):
    before = (exported / CARD).read_text()
    assert "license: unknown" in before
    assert "Stored as F32 safetensors." in before
    assert "There is no codec in this folder" in before
    assert "--model . --codec CODEC" in before
    codec = str(model / "codec")
    made = export(str(exported), tmp_path / "b", dtype="bfloat16", license="Apache-2.0", codec=codec)
    card = (made.folder / CARD).read_text()
    assert ModelCard(card).data.license == "apache-2.0"
    assert "## Licence\n\nThe weights are under Apache-2.0.\n" in card
    assert "Stored as BF16 safetensors." in card
    assert "no codec" not in card
    assert "CODEC" not in card
    # Nothing else has changed.
    kept = [line for line in before.splitlines() if line in card.splitlines()]
    assert len(before.splitlines()) - len(kept) == 7  # licence twice, numbers, codec, three commands


def test_an_import_with_a_codec_says_so(model, exported, tmp_path):
    import_model(exported, tmp_path / "in", codec=str(model / "codec"))
    assert "no codec" not in (tmp_path / "in" / CARD).read_text()
    import_model(exported, tmp_path / "same")
    assert (tmp_path / "same" / CARD).read_bytes() == (exported / CARD).read_bytes()


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (
            "---\nlicense: other\nlicense_name: x\n---\n# A\n",
            "---\nlicense: mit\nlicense_name: x\n---\n# A\n",
        ),
        ("---\nlicense:\n- mit\n- x\ntags:\n- a\n---\n# A\n", "---\nlicense: mit\ntags:\n- a\n---\n# A\n"),
        ("---\r\ntags: a\r\n---\r\n# A\r\n", "---\r\nlicense: mit\ntags: a\r\n---\r\n# A\r\n"),
        ("# A\n\nlicense: other\n", "---\nlicense: mit\n---\n\n# A\n\nlicense: other\n"),
    ],
)
def test_cards_from_elsewhere_change_in_their_header_alone(exported, tmp_path, card, expected):
    theirs = shutil.copytree(exported, tmp_path / "theirs")
    (theirs / CARD).write_bytes(card.encode())
    made = export(str(theirs), tmp_path / "b", license="MIT")
    assert (made.folder / CARD).read_bytes().decode() == expected
