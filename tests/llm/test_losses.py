"""The chunked head: equal to the plain cross-entropy, and small in memory at the released model's
width of words."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from lit_moss.llm import losses
from lit_moss.llm.losses import Head, divergence, head_loss


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [50, 1000, 2**25])
def test_equal_to_plain_cross_entropy(monkeypatch, dtype, chunk):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", {"cpu": chunk})
    g = torch.Generator().manual_seed(0)
    h = torch.randn(37, 16, generator=g).to(dtype).requires_grad_()
    w = torch.randn(101, 16, generator=g).to(dtype).requires_grad_()
    t = torch.randint(0, 101, (37,), generator=g)
    plain = F.cross_entropy((h @ w.T).float(), t, reduction="sum")
    wanted = torch.autograd.grad(plain * 0.5, (h, w))
    found = head_loss(h, w, t)
    grads = torch.autograd.grad(found.nll * 0.5, (h, w))
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    torch.testing.assert_close(found.nll, plain, rtol=1e-5, atol=1e-4)
    for a, b in zip(grads, wanted, strict=True):
        torch.testing.assert_close(a, b, **near)
    assert found.correct == ((h @ w.T).float().argmax(1) == t).sum()
    torch.testing.assert_close(found.nll_N.sum(), plain.detach(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("chunk", [50, 1000, 2**25])
def test_the_divergence_of_two_heads_is_the_plain_one(monkeypatch, chunk):
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", {"cpu": chunk})
    g = torch.Generator().manual_seed(0)
    h, teacher_h = torch.randn(37, 16, generator=g).requires_grad_(), torch.randn(37, 24, generator=g)
    w, teacher_w = torch.randn(101, 16, generator=g).requires_grad_(), torch.randn(101, 24, generator=g)
    p, q = (h @ w.T).log_softmax(1), (teacher_h @ teacher_w.T).log_softmax(1)
    plain = F.kl_div(p, q, reduction="sum", log_target=True)
    wanted = torch.autograd.grad(plain * 0.5, (h, w))
    found = divergence(h, w, teacher_h, teacher_w)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-4)
    for a, b in zip(torch.autograd.grad(found * 0.5, (h, w)), wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert divergence(h, w, h.detach(), w.detach()).abs() < 1e-4


def test_a_frozen_head_makes_no_weight_gradient():
    head = Head(8, 20, bias=False).requires_grad_(False)
    h = torch.randn(5, 8, requires_grad=True)
    head(h, torch.arange(5)).nll.backward()
    assert head.weight.grad is None
    assert h.grad is not None


def test_autocast_is_followed():
    head = Head(8, 20, bias=False)
    h = torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        half = head(h, torch.arange(5)).nll
    whole = head(h, torch.arange(5)).nll
    assert half.dtype == torch.float32
    assert half != whole
    torch.testing.assert_close(half, whole, rtol=0.02, atol=0.1)


MEASURE = """
import resource, torch
from lit_moss.llm.losses import Head
torch.set_num_threads(1)
V, N, D = 151_680, 14_336, 16
heads = [Head(D, V, bias=False), Head(D, 16_512, bias=False)]
h = torch.randn(N, D, requires_grad=True)
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
half = N // 2
for rows in (2, half):
    text = heads[0](h[:rows], torch.randint(0, V, (rows,)))
    speech = heads[1](h[-rows:], torch.randint(0, 16_512, (rows,)))
    (text.nll + speech.nll).backward()
    if rows == 2:
        before = peak()
print(peak() - before)
"""


@pytest.mark.nightly
def test_heads_add_at_most_half_a_gigabyte_at_released_size():
    done = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.5
