"""CTC and alignment were means over a micro-batch's own labels or places, beside a mean over its targets.

Their strength depended on how a step was divided into micro-batches and ranks: a micro-batch of text halved
that of the speech beside it. And a step whose only loss was one of them, or distillation, was skipped as one
without a target.
"""

import numpy as np
import pytest
import torch
import yaml
from backbones import config_of
from lm_recipe import lm_recipe, tokenizer_of_bytes
from recording import curves, fit

from lit_moss.data.packed_documents import CollatePacks
from lit_moss.llm import SplitLM
from lit_moss.llm.rows import RowFormat
from lit_moss.modules.auxiliary_losses import AuxiliaryLosses
from lit_moss.modules.teacher import FrozenText
from lit_moss.modules.text_distill import TextDistill, TextDistiller
from lit_moss.modules.trunk_align import TrunkAlign, TrunkAligner
from lit_moss.modules.trunk_ctc import TextLabels, TrunkCtc, TrunkCtcHead

V, CODES, D = 260, 30, 32
FORM = RowFormat(V, 40, 250, CODES, 251, 35, end_id=252)
SPEECH = [250, *(V + i for i in range(8)), V + CODES, 13, 14, 17, 252]
SAID = [(1, 4, [13, 14]), (4, 9, [17])]
TEXT = [5, 6, 7, 8, 9, 10, 252]
PACKS = [[("a", SPEECH, SAID)], [("b", TEXT, []), ("c", SPEECH[3:], [])], [("d", TEXT[2:], [])]]


def batch(*packs):
    return CollatePacks(32, FORM)(
        [[(n, np.array(r), np.ones(len(r), bool), s) for n, r, s in pack] for pack in packs]
    )


def made(option: str) -> tuple[SplitLM, AuxiliaryLosses]:
    torch.manual_seed(1)
    config = config_of("llama", vocab_size=V, num_hidden_layers=4, hidden_size=D, intermediate_size=48)
    lm = SplitLM.from_backbone(config, 1, 40, row_format=FORM)
    lm.keep_hidden, lm.keep_text = 2, option == "distill"
    ctc, align = (
        TrunkCtc(weight=2.0, layer=2),
        TrunkAlign(layer=2, weight=2.0, contrast=0.0, keep=0.0, alone=False),
    )
    distill = TextDistill(weight=2.0)
    losses = AuxiliaryLosses(*(x if name == option else None for name, x in
                          (("ctc", ctc), ("align", align), ("distill", distill))))  # fmt: skip
    teacher = FrozenText.copy_of(lm, torch.float32, 2), FrozenText.copy_of(lm, torch.float32)
    losses.head = TrunkCtcHead(TextLabels([13, 14, 17]), lm.model.embed_tokens.weight.detach())
    losses.aligner = TrunkAligner(align, teacher[0], tokenizer_of_bytes()) if option == "align" else None
    losses.distiller = TextDistiller(distill, teacher[1]) if option == "distill" else None
    with torch.no_grad():
        for p in lm.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return lm, losses


@pytest.mark.parametrize("option", ["ctc", "align", "distill"])
def test_micro_batches_weighed_by_their_targets_are_the_whole_batch(option):
    lm, losses = made(option)

    def loss(*packs):
        packed = batch(*packs)
        split = lm.loss(packed.rows_BL, packed.document_ids_BL, packed.loss_mask_BL)
        return losses.compute(lm, packed, split), int(split.text_count + split.speech_count)

    whole, targets = loss(*PACKS)
    parts = [loss(pack) for pack in PACKS]
    want = sum(float(part.losses[0].detach()) * n for part, n in parts)
    assert whole.count == sum(part.count for part, _ in parts) > 0
    assert sum(n for _, n in parts) == targets
    assert float(whole.losses[0].detach()) * targets == pytest.approx(want, rel=1e-4)
    assert want > 0.1


@pytest.mark.slow
def test_a_step_of_distillation_alone_is_taken(tmp_path):
    path = lm_recipe(tmp_path, 2, kind="text", stages=[{"policy": "full"}], lr=0.1,
                     distill={"weight": 1.0}, text_weight=0.0)  # fmt: skip
    config = yaml.safe_load(path.read_text())
    config["trainer"]["val_check_interval"] = 1
    path.write_text(yaml.safe_dump(config))
    # Weight decay alone moves the model away from the backbone; a skipped step would not.
    fit(tmp_path, path, "--model.init_args.weight_decay", "0.5")
    found = curves(tmp_path)
    assert found["train/distill"][0][1] == pytest.approx(0.0, abs=1e-6)
    assert found["val/distill"][-1][1] > 1e-4
    assert "train/empty_steps" not in found or not found["train/empty_steps"][-1][1]
