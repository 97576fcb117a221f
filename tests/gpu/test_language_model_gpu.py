"""The language model on a CUDA device: the CPU's numbers, varlen attention, stages, replies, resuming."""

import copy
import warnings

import pytest
import torch
from backbones import folder_of, mixed_rows
from lm_recipe import lm_recipe
from standin_trainer import fit_on

from lit_moss.llm import SplitLM
from lit_moss.llm.attention import Segments
from lit_moss.llm.generate import Sampling
from lit_moss.llm.rows import RowFormat

DEVICE = "cuda"
FORM = RowFormat(199, 40, 190, 32, 198, 5, im_start_id=191, im_end_id=192, end_id=193)
PROMPTS = [[4, 9, 60, 3], [4, 9, 190], [17]]
UNFREEZE = {"class_path": "callbacks.ReverseUnfreeze", "init_args": {"k": 2, "w": 1, "total_steps": 12}}
STAGES = {
    "stage1": {"stages": [{"policy": "stage1"}]},
    "full": {"stages": [{"policy": "full"}]},
    "shared": {"stages": [{"policy": "shared"}]},
    "layerwise": {"stages": [{"policy": "layerwise"}], "rates": UNFREEZE},
    "sft": {"stages": [{"policy": "full"}], "kind": "sft"},
    "no split": {"stages": [{"policy": "full"}], "joint": True},
}


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def lm(request, tmp_path_factory):
    folder, _ = folder_of(tmp_path_factory.mktemp("lm"), request.param)
    torch.manual_seed(5)
    return SplitLM.from_backbone(folder, 2, 40, row_format=FORM).eval()


def packed(lm, length=64):
    """Rows of two sequences of several documents each, the last rows of one of them filler."""
    rows = mixed_rows(lm, 2, length)
    ids = torch.stack([torch.arange(length) // 17, torch.arange(length) // 30])
    ids[1, -5:] = -1
    return rows, ids


def measured(lm, device, kind, dtype=torch.float32):
    """Negative log-likelihood of each row, hits of both heads, and gradients; all on the CPU in float32."""
    model = copy.deepcopy(lm).train().to(device, dtype)
    model.attention = kind
    rows, ids = packed(lm)
    loss = model.loss(rows.to(device), ids.to(device))
    loss.total.backward()
    gradients = {n: p.grad.float().cpu() for n, p in model.named_parameters() if p.grad is not None}
    return loss.nll_BL.float().cpu(), loss.total.float().cpu(), gradients


def assert_gradients_close(found, wanted, share):
    """Difference of each gradient, as a share of its length."""
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        length = gradient.norm().clamp_min(1e-6)
        assert (found[name] - gradient).norm() / length < share, name


def test_losses_and_gradients_are_the_cpus(lm):
    nll, total, gradients = measured(lm, DEVICE, "mask")
    nll_cpu, total_cpu, gradients_cpu = measured(lm, "cpu", "segments")
    torch.testing.assert_close(nll, nll_cpu, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(total, total_cpu, rtol=1e-4, atol=1e-4)
    assert_gradients_close(gradients, gradients_cpu, 1e-2)


def test_varlen_attention_is_the_masks(lm):
    nll, total, gradients = measured(lm, DEVICE, "varlen", torch.bfloat16)
    nll_mask, total_mask, gradients_mask = measured(lm, DEVICE, "mask", torch.bfloat16)
    assert (nll - nll_mask).abs().mean() < 5e-2  # bfloat16 keeps 8 bits
    torch.testing.assert_close(total, total_mask, rtol=2e-2, atol=2e-2)
    assert_gradients_close(gradients, gradients_mask, 0.1)
    exact = measured(lm, "cpu", "segments")[0]
    # As far from float32 as the mask is: what differs is rounding, not what a row sees.
    assert (nll - exact).abs().mean() < 2 * (nll_mask - exact).abs().mean() + 1e-2


def test_half_precision_takes_varlen_by_itself(lm):
    _, ids = packed(lm)
    assert Segments.of(ids.to(DEVICE), "auto", torch.bfloat16).kind == "varlen"
    assert Segments.of(ids.to(DEVICE), "auto", torch.float32).kind == "mask"


def test_replies_are_the_cpus(lm):
    on_cpu = lm.generate(PROMPTS, max_new_tokens=20, greedy=True)
    model = copy.deepcopy(lm).to(DEVICE)
    assert model.generate(PROMPTS, max_new_tokens=20, greedy=True) == on_cpu
    stream = model.generate(PROMPTS[0], max_new_tokens=20, greedy=True, stream=True)
    assert list(stream) == model.generate(PROMPTS[0], max_new_tokens=20, greedy=True)


@pytest.mark.parametrize("generator_device", ["cuda", "cpu"])
def test_sampled_replies_follow_their_generator(lm, generator_device):
    model, how = copy.deepcopy(lm).to(DEVICE), Sampling(temperature=1.0, top_k=10)
    drawn = [
        model.generate(
            PROMPTS, max_new_tokens=10, text=how, speech=how,
            generator=torch.Generator(generator_device).manual_seed(seed),
        )
        for seed in (1, 1, 2)
    ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]


def test_rows_do_not_each_wait_for_the_device(lm):
    model = copy.deepcopy(lm).to(DEVICE)
    model.generate(PROMPTS, max_new_tokens=4, greedy=True)  # kernels and libraries are loaded

    def waits(rows):
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                model.generate(PROMPTS, max_new_tokens=rows, greedy=True)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing" in str(w.message) for w in found)

    assert waits(12) - waits(4) <= 4  # several rows are looked at together


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_of_each_stage_in_bfloat16(tmp_path, stage):
    on_cpu = fit_on("cpu", lm_recipe(tmp_path / "cpu", 3, **STAGES[stage]))
    on_gpu = fit_on(DEVICE, lm_recipe(tmp_path / "gpu", 3, **STAGES[stage]), precision="bf16-mixed")
    assert on_gpu.losses == pytest.approx(on_cpu.losses, rel=3e-2)


def test_a_resumed_run_goes_on_where_it_was(tmp_path):
    stages = [{"policy": "stage1", "until_step": 7}, {"policy": "full"}]
    whole = fit_on(DEVICE, lm_recipe(tmp_path / "whole", 12, stages=stages), precision="bf16-mixed")
    first = fit_on(DEVICE, lm_recipe(tmp_path / "parts", 5, stages=stages), precision="bf16-mixed")
    rest = fit_on(
        DEVICE,
        lm_recipe(tmp_path / "parts", 12, stages=stages),
        "--ckpt_path",
        "last",
        precision="bf16-mixed",
    )
    # Sums of attention's and embeddings' gradients have no fixed order on CUDA: close, not to the bit.
    assert [*first.losses, *rest.losses] == pytest.approx(whole.losses, rel=1e-2)
