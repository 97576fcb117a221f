"""With a context shorter than most spoken conversations nearly all speech was left out, and the run went on.

One line said so among others, the exit code was 0, and the model was trained on the short texts.
"""

import pytest
from lm_recipe import backbone_folder, conversations, lm_recipe
from recording import fit

from lit_moss.data import MixtureDataModule, SFTDataModule
from lit_moss.errors import UserError

CONTEXT = 96
# 9 of 10 conversations are short, but the two long ones hold 400 of 940 rows.
LENGTHS = [30] * 18 + [180, 220]


@pytest.fixture
def talks(tmp_path):
    return conversations(tmp_path / "talks", backbone_folder(tmp_path / "backbone"), LENGTHS)


def data_of(folder, **options):
    backbone = str(folder.parent / "backbone")
    return SFTDataModule(train=[str(folder)], backbone=backbone, context=CONTEXT, **options)


def test_a_context_too_short_for_a_fifth_of_the_rows_is_refused(talks):
    with pytest.raises(UserError, match=r"42\.6% of the rows, left out") as error:
        data_of(talks).setup("fit")
    said = str(error.value)
    assert "expected 20.0% of the rows" in said
    assert "set data.context 220" in said
    assert "\n" not in said


def test_the_context_it_names_holds_every_document(talks):
    data = SFTDataModule(train=[str(talks)], backbone=str(talks.parent / "backbone"), context=220)
    data.setup("fit")
    assert data.left_out == 0


def test_validation_data_is_checked_too(talks):
    short = conversations(talks.parent / "short", talks.parent / "backbone", [30] * 8)
    data = data_of(short, validation=[str(talks)])
    with pytest.raises(UserError, match=r"talks: .* set data.context 220"):
        data.setup("fit")


def test_a_larger_share_can_be_allowed(talks):
    data = data_of(talks, max_left_out_share=0.5)
    data.setup("fit")
    assert data.left_out == 2


def test_the_share_of_a_mixture_is_that_of_its_parts(talks):
    options = {"backbone": str(talks.parent / "backbone"), "context": CONTEXT}
    with pytest.raises(UserError, match="max_left_out_share"):
        MixtureDataModule(parts=[SFTDataModule(train=[str(talks)])], **options).setup("fit")
    mixture = MixtureDataModule(parts=[SFTDataModule(train=[str(talks)])], max_left_out_share=1.0, **options)
    mixture.setup("fit")
    assert len(mixture.sources) == 1


def test_documents_without_a_target_do_not_count(tmp_path):
    """No context brings them back."""
    masks = [[False] * 30] * 5 + [None] * 5
    folder = conversations(
        tmp_path / "talks", backbone_folder(tmp_path / "backbone"), [30] * 10, masks, "text"
    )
    data = data_of(folder)
    data.setup("fit")
    assert data.left_out == 5


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_shares_outside_0_to_1_are_refused(share):
    with pytest.raises(UserError, match="max_left_out_share is"):
        SFTDataModule(max_left_out_share=share)


@pytest.mark.slow
def test_fit_ends_in_one_line_and_begins_no_run(tmp_path, capsys):
    path = lm_recipe(tmp_path / "run", 2, kind="sft")
    talks = conversations(tmp_path / "talks", tmp_path / "backbone", LENGTHS)
    fit(tmp_path / "run", path, "--data.init_args.train", f"[{talks}]", expected=2)
    said = capsys.readouterr().err
    assert "error: talks: 2 of 20 documents" in said
    assert not list((tmp_path / "run").glob("runs/*/*/run.json"))
