"""Distillation of text from the backbone as it was: which rows, closed forms, gradients, whole runs."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import config_of
from lm_recipe import lm_recipe
from recording import assert_equal, assert_resumes, curves, fit

from lit_moss.data.packed_documents import CollatePacks
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.rows import RowFormat
from lit_moss.modules import SplitLLM
from lit_moss.modules.teacher import FrozenText
from lit_moss.modules.text_distill import TextDistill, TextDistiller, kept_text
from lit_moss.modules.trunk_align import TrunkAlign

V, CODES, D = 260, 30, 32
FORM = RowFormat(V, 40, 250, CODES, 251, 35, end_id=252)
SPEECH = [250, V + 3, V + 1, V + CODES]
DOCUMENTS = {
    "text alone": [5, 6, 7, 8, 252],
    "text, speech, text": [9, 10, *SPEECH, 11, 12, 13, 252],
    "speech first": [*SPEECH, 14, 15, 252],
    "one row before speech": [16, *SPEECH, 252],
    "prompt and reply": [17, 18, 19, 20, 252],
    "prompt and speech": [21, 22, *SPEECH, 252],
}
PROMPTS = {"prompt and reply": 3, "prompt and speech": 2}  # their rows are no targets
KEPT = [[5, 6, 7, 8, 252], [9, 10], [16], [17, 18, 19], [21, 22]]


def split_lm():
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=4, hidden_size=D, intermediate_size=48)
    return SplitLM.from_backbone(config, 1, 40, row_format=FORM)


def batch(documents=DOCUMENTS, context=40, sequences=1):
    made = [(n, np.array(r), np.arange(len(r)) >= PROMPTS.get(n, 0), []) for n, r in documents.items()]
    return CollatePacks(context, FORM)([made] * sequences)


def moved(lm):
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return lm


# --- rows and losses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sequences", [1, 2])
def test_rows_are_those_before_the_first_speech_or_reply_of_their_document(sequences):
    packed = batch(sequences=sequences)
    at, documents = kept_text(packed.rows_BL, packed.document_ids_BL, packed.loss_mask_BL, FORM)
    assert packed.rows_BL.flatten()[at].tolist() == [row for rows in KEPT for row in rows] * sequences
    _, lengths = documents.unique_consecutive(return_counts=True)
    assert lengths.tolist() == [len(rows) for rows in KEPT] * sequences


def test_filler_is_not_text():
    packed = batch({"short": [5, 6, 252]}, context=16)
    at, _ = kept_text(packed.rows_BL, packed.document_ids_BL, packed.loss_mask_BL, FORM)
    assert at.tolist() == [0, 1, 2]


def distilled(lm, teacher, packed):
    lm.keep_text = True
    loss = lm.loss(packed.rows_BL, packed.document_ids_BL, packed.loss_mask_BL)
    return TextDistiller(TextDistill(), teacher)(lm, packed, loss.text_BLD)


def test_the_loss_is_the_divergence_of_the_two_models_on_each_text_by_itself():
    lm = split_lm()
    backbone = copy.deepcopy(lm)
    found = distilled(moved(lm), FrozenText.copy_of(backbone, torch.float32), batch())
    want = torch.zeros(())
    for rows in KEPT:
        logits, before = (model(torch.tensor([rows])).text_logits[0, :-1] for model in (lm, backbone))
        want = want + F.kl_div(logits.log_softmax(1), before.log_softmax(1), reduction="sum", log_target=True)
    assert found.rows == sum(len(rows) - 1 for rows in KEPT)
    assert float(want.detach()) > 0.01
    torch.testing.assert_close(found.nats, want, rtol=1e-4, atol=1e-6)
    ours, theirs = (
        torch.autograd.grad(x, list(lm.parameters()), allow_unused=True) for x in (found.nats, want)
    )
    for (name, _), a, b in zip(lm.named_parameters(), ours, theirs, strict=True):
        assert (a is None) == (b is None), name
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6, msg=name)


def test_before_training_nothing_is_lost_and_nothing_moves():
    lm = split_lm()
    found = distilled(lm, FrozenText.copy_of(lm, torch.float32), batch())
    found.nats.backward()
    assert abs(float(found.nats.detach())) < 1e-5
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-5 for p in lm.parameters())


def test_the_teacher_stays_as_it_was():
    lm = split_lm()
    teacher = FrozenText.copy_of(lm, torch.float32)
    before = copy.deepcopy(teacher.state_dict())
    moved(lm)
    assert_equal(dict(teacher.state_dict()), dict(before))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_batch_without_text_has_a_gradient_of_zero():
    lm = split_lm()
    packed = batch({k: DOCUMENTS[k] for k in ("speech first", "one row before speech")})
    found = distilled(lm, FrozenText.copy_of(split_lm(), torch.float32), packed)
    assert (found.rows, float(found.nats.detach())) == (0, 0)
    found.nats.backward()
    grad = lm.trunk.layers[0].self_attn.q_proj.weight.grad
    assert grad is not None
    assert not grad.any()


def test_a_validation_without_text_targets_still_gives_the_texts_states():
    lm, packed = split_lm().eval(), batch()
    mask = packed.loss_mask_BL & (packed.rows_BL >= V)
    assert lm.loss(packed.rows_BL, packed.document_ids_BL, mask).text_BLD is None
    lm.keep_text = True
    assert lm.loss(packed.rows_BL, packed.document_ids_BL, mask).text_BLD is not None


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_resumes_to_the_bit_and_logs_what_it_does(tmp_path):
    options = {"distill": {"weight": 2.0}, "stages": [{"policy": "full"}]}
    assert_resumes(tmp_path, partial(lm_recipe, **options))
    found = curves(tmp_path / "whole")
    assert found["val/distill"][0][1] == pytest.approx(0, abs=1e-5)  # before the first step
    assert found["val/distill"][-1][1] > 0
    assert len(found["train/distill"]) == 15


@pytest.mark.slow
def test_text_stays_nearer_to_the_backbone(tmp_path):
    last = {}
    for weight in (1e-6, 10.0):
        folder = tmp_path / str(weight)
        fit(folder, lm_recipe(folder, 15, distill={"weight": weight}, stages=[{"policy": "full"}]))
        last[weight] = curves(folder)["val/distill"][-1][1]
    assert last[10.0] < 0.7 * last[1e-6]


@pytest.mark.nightly
def test_a_later_stage_is_measured_against_the_backbone_not_against_its_start(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"distill": {"weight": 0.1}, "stages": [{"policy": "full"}]}
    fit(one, lm_recipe(one, 5, **options), "--trainer.val_check_interval", "5")
    fit(two, lm_recipe(two, 5, init_from=str(one / "runs/tiny"), **options))
    end, start = curves(one)["val/distill"][-1][1], curves(two)["val/distill"][0][1]
    assert start == pytest.approx(end, rel=1e-3)
    assert start > 1e-3


@pytest.mark.slow
def test_conversations_whose_prompts_are_targets_too_are_refused(tmp_path, capsys):
    """Replies cannot be told from prompts there, and were distilled from the backbone too."""
    path = lm_recipe(tmp_path, 2, kind="sft", stages=[{"policy": "full"}], distill={"weight": 1.0})
    meta = tmp_path.parent / "sft-train" / "meta.json"
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"options": {"train_on": "all"}}))
    fit(tmp_path, path, expected=2)
    assert "model.distill with conversations made with train_on all" in capsys.readouterr().err


@pytest.mark.slow
def test_a_joint_model_is_refused_in_one_line(tmp_path, capsys):
    config = lm_recipe(tmp_path / "run", 3, distill={"weight": 1.0}, joint=True)
    fit(tmp_path / "run", config, expected=2)
    assert "model.distill with model.joint" in capsys.readouterr().err.splitlines()[-1]


def test_mistakes_are_named():
    with pytest.raises(UserError, match=r"distill.weight is 0"):
        TextDistill(weight=0.0)
    with pytest.raises(UserError, match=r"model.distill needs all"):
        SplitLLM(align=TrunkAlign(), distill=TextDistill())
