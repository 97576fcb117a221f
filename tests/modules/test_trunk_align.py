"""Alignment of the trunk's states at the ends of words: places, closed forms, gradients, whole runs."""

import copy
import math
import re
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from backbones import config_of
from lm_recipe import backbone_folder, lm_recipe, tokenizer_of_bytes
from recording import assert_equal, assert_resumes, curves, fit

from lit_moss.cli.main import main
from lit_moss.data.batches import SpeechText
from lit_moss.data.packed_documents import CollatePacks
from lit_moss.errors import UserError
from lit_moss.llm import SplitLM
from lit_moss.llm.rows import RowFormat
from lit_moss.modules import SplitLLM
from lit_moss.modules.teacher import FrozenText
from lit_moss.modules.trunk_align import (
    TrunkAlign,
    TrunkAligner,
    WordTest,
    contrast,
    places_of,
    relative_error,
)
from lit_moss.modules.trunk_ctc import TrunkCtc

V, CODES, D = 260, 30, 32
FORM = RowFormat(V, 40, 250, CODES, 251, 35, end_id=252)
LISTENING = [{"policy": "listening", "layers": 2}]
TEXT = ["--data.init_args.speech_text", "true"]


def split_lm():
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=4, hidden_size=D, intermediate_size=48)
    return SplitLM.from_backbone(config, 1, 40, row_format=FORM)


def batch():
    """Two documents in one pack: words of 3 and 5 codes with 2 and 1 ids, and one of 6 codes with 3."""
    a = [250, *(V + i for i in range(8)), V + CODES, 13, 14, 17, 252]
    b = [17, 250, *(V + 2 * i for i in range(6)), V + CODES, 252]
    said = [(1, 4, [13, 14]), (4, 9, [17])], [(2, 8, [19, 13, 17])]
    documents = [
        (n, np.array(r), np.ones(len(r), bool), s) for n, r, s in zip("ab", (a, b), said, strict=True)
    ]
    return CollatePacks(32, FORM)([documents])


def aligner(lm, **options):
    option = TrunkAlign(**{"layer": 2} | options)
    return TrunkAligner(option, FrozenText.copy_of(lm, torch.float32, option.layer), tokenizer_of_bytes())


# --- places and losses --------------------------------------------------------------------------------------


def test_ids_are_at_codes_of_their_word_and_the_last_one_at_its_last_code():
    spans = [
        SpeechText(0, 1, 9, [5, 6, 7], [(3, 2), (5, 1)]),  # 3 codes for 2 ids: the second and the third
        SpeechText(1, 2, 8, [8, 9, 9, 4], [(6, 3), (0, 1)]),  # the last word has no code of its own
        SpeechText(1, 12, 13, [], [(1, 0)]),  # says nothing
        SpeechText(1, 14, 20, [1] * 13, [(6, 13)]),  # no word: its times are not known
    ]
    places = places_of(spans, 100, 250, lambda ids: len(ids) < 13)
    assert places.at == [2, 3, 8, 103, 105, 107, 107]
    assert places.rows == [250, 5, 6, 7, 250, 8, 9, 9, 4]
    assert places.text_at == [1, 2, 3, 5, 6, 7, 8]
    assert places.ids == [5, 6, 7, 8, 9, 9, 4] == [places.rows[i] for i in places.text_at]
    assert places.lengths == [4, 5]


def test_several_words_are_no_word():
    tokenizer = tokenizer_of_bytes()
    is_word = WordTest(tokenizer)
    assert is_word(tokenizer.encode(" cats"))
    assert not is_word(tokenizer.encode("a cat"))
    assert not is_word(tokenizer.encode("a" * 13))


def test_losses_are_their_closed_forms():
    s, t = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3)).unbind()
    want = sum(float((a - b) ** 2) for a, b in zip(s.flatten(), t.flatten(), strict=True))
    spread = sum(float(x) for x in ((t - t.mean(0)) ** 2).flatten())
    assert float(relative_error(s, t)) == pytest.approx(want / spread, rel=1e-5)
    assert float(relative_error(s[:1], t[:1])) == 0  # one place has no variance
    ids = torch.tensor([3, 4, 3, 5, 4])
    nats = right = 0
    for i in range(5):
        cosines = [float(F.cosine_similarity(s[i] - t.mean(0), x - t.mean(0), dim=0)) / 0.05 for x in t]
        right += ids[max(range(5), key=cosines.__getitem__)] == ids[i]
        others = [c for j, c in enumerate(cosines) if j == i or ids[j] != ids[i]]
        nats += math.log(sum(math.exp(c) for c in others)) - cosines[i]
    found, count = contrast(s, t, ids)
    assert float(found) == pytest.approx(nats / 5, rel=1e-4)
    assert int(count) == right


def test_before_training_text_is_as_it_was_and_speech_is_not_there_yet():
    lm = split_lm()
    losses = aligner(lm)(lm, batch())
    assert losses.places == 6
    assert float(losses.keep) == 0
    assert float(losses.align) > 0.1
    want = losses.align + 0.3 * losses.contrast
    assert float(losses.total.detach()) == pytest.approx(float(want), rel=1e-6)


def test_the_teachers_states_are_those_of_the_backbones_text():
    lm = split_lm()
    teacher = FrozenText.copy_of(lm, torch.float32, 2)
    rows, ids = torch.tensor([[250, 13, 14, 250, 19]]), torch.tensor([[0, 0, 0, 1, 1]])
    h = lm.hidden(rows, ids, 2)
    assert torch.equal(teacher(rows, ids, [[0, 3, 5]]), h)
    assert torch.allclose(teacher.normed(h), lm.trunk.layers[2].input_layernorm(h))
    lm.keep_hidden = 2
    assert torch.equal(lm.loss(rows, ids).hidden_BLD, h)  # a forward that stops is one that is kept
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(1.0)
    assert_equal(dict(teacher.state_dict()), dict(before))
    assert not any(p.requires_grad for p in teacher.parameters())


def test_gradients_are_those_of_the_first_layers_and_the_codes():
    lm = split_lm()
    aligner(lm)(lm, batch()).total.backward()
    moved = {name for name, p in lm.named_parameters() if p.grad is not None and p.grad.any()}
    assert "model.audio_embed.weight" in moved
    layers = {n.split(".")[3] for n in moved if n.startswith("model.shared_block")}
    assert layers == {"0", "1"}
    other = moved - {n for n in moved if n.startswith("model.shared_block")}
    assert other == {"model.audio_embed.weight", "model.embed_tokens.weight"}  # sosp, which runs freeze


def test_a_batch_without_a_word_has_a_gradient_of_zero():
    lm, empty = split_lm(), batch()
    empty.speech_text = []
    losses = aligner(lm)(lm, empty)
    losses.total.backward()
    assert (losses.places, float(losses.total.detach())) == (0, 0)
    grad = lm.model.audio_embed.weight.grad
    assert grad is not None
    assert not grad.any()


# --- runs ---------------------------------------------------------------------------------------------------


@pytest.mark.nightly
@pytest.mark.parametrize("alone", [True, False])
def test_a_run_resumes_to_the_bit_and_trains_what_it_says(tmp_path, alone):
    align = {"layer": 2, "alone": alone}
    stages = LISTENING if alone else [{"policy": "full"}]
    options = {"stages": stages, "kind": "transcripts", "align": align}
    ours = assert_resumes(tmp_path, partial(lm_recipe, **options), *TEXT)
    found = curves(tmp_path / "whole")
    assert found["train/align"][-1][1] < found["train/align"][0][1]
    assert found["val/align_keep"][0][1] == 0  # before the first step
    assert {"train/align_contrast", "train/align_keep", "val/align", "val/align_found"} <= set(found)
    assert ("val/text_loss" in found) == (not alone)
    assert "val/loss" in found
    if not alone:
        return
    first = SplitLM.from_backbone(backbone_folder(tmp_path / "backbone"), 1, 128).state_dict()
    state = ours["state_dict"]
    same = [n for n in first if not n.startswith("audio_lm") and torch.equal(first[n], state[f"lm.{n}"])]
    changed = {n for n in first if n not in same} - {"audio_lm_head.weight"}
    assert changed == {
        n for n in first
        if n.startswith(("model.shared_block.layers.0.", "model.shared_block.layers.1.", "model.audio_embed"))
    }  # fmt: skip


@pytest.mark.nightly
@pytest.mark.parametrize("alone", [True, False])
def test_validate_measures_what_the_runs_own_validation_measured(tmp_path, monkeypatch, capsys, alone):
    stages = LISTENING if alone else [{"policy": "full"}]
    align = {"layer": 2, "alone": alone}
    config = lm_recipe(tmp_path / "run", 8, stages=stages, kind="transcripts", align=align)
    fit(tmp_path / "run", config, *TEXT)
    monkeypatch.chdir(tmp_path / "run")
    capsys.readouterr()
    assert main(["validate", "-c", str(config), *TEXT, "--ckpt_path", "last"]) == 0
    said = capsys.readouterr().out
    metrics = {name: float(value) for name, value in re.findall(r"(val/\w+)\W+([-\d.e]+)", said)}
    assert {"val/loss", "val/align", "val/align_found"} <= metrics.keys()
    found = curves(tmp_path / "run")
    for name, value in metrics.items():
        assert found[name][-1] == (8, pytest.approx(value, rel=1e-4, abs=1e-6)), name


@pytest.mark.nightly
def test_a_later_stage_is_measured_against_the_backbone_not_against_its_start(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    options = {"kind": "transcripts", "align": {"layer": 2}, "stages": LISTENING}
    fit(one, lm_recipe(one, 5, **options), *TEXT)
    later = options | {"init_from": str(one / "runs/tiny"), "align": {"layer": 2, "alone": False}}
    fit(two, lm_recipe(two, 5, **later | {"stages": [{"policy": "full"}]}), *TEXT)
    end, start = curves(one), curves(two)
    assert start["val/align_keep"][0][1] > 0
    assert start["val/align"][0][1] < end["val/align"][0][1]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model", "stages", "more", "message"),
    [
        ({"align": {"layer": 2}}, LISTENING, [], "model.align needs the text of the speech"),
        ({"align": {"layer": 9}}, LISTENING, TEXT, "model.align.layer is 9, the trunk has 3 layers"),
        ({"align": {"layer": 2}}, [{"policy": "full"}], TEXT, "give StagedFreezing {policy: listening"),
        ({}, [{"policy": "listening"}], TEXT, "expected a number of layers"),
        ({"align": {"layer": 2}, "joint": True}, LISTENING, TEXT, "model.align with model.joint"),
    ],
)
def test_what_the_option_lacks_is_said_in_one_line(tmp_path, capsys, model, stages, more, message):
    config = lm_recipe(tmp_path / "run", 3, kind="transcripts", stages=stages, **model)
    fit(tmp_path / "run", config, *more, expected=2)
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_mistakes_are_named():
    with pytest.raises(UserError, match="layer is 0"):
        TrunkAlign(layer=0)
    with pytest.raises(UserError, match="weight or contrast above 0"):
        TrunkAlign(weight=0.0, contrast=0.0)
    with pytest.raises(UserError, match=r"model.align.alone computes the first layers only"):
        SplitLLM(align=TrunkAlign(), ctc=TrunkCtc())
    assert SplitLLM().align is None
