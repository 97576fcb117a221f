"""Vector quantization functions: nearest code, moving-average codebook, k-means, restarts of dead codes.

Shapes: S vectors, D width, K codebook entries. Under `torch.distributed` every rank passes its own vectors
and all ranks end with the same codebook: sums are all-reduced, and random choices are made on rank 0. Source:
the exponential-moving-average codebook of VQ-VAE (arXiv:1711.00937, appendix A.1), with the decay and the
restarts of the GLM-4-Voice tokenizer; the threshold of a restart is an argument.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def squared_distances(x_SD: Tensor, codebook_KD: Tensor) -> Tensor:
    """||x||^2 + ||c||^2 - 2 x.c: (S, K)."""
    squares_S1 = x_SD.square().sum(dim=1, keepdim=True)
    return torch.addmm(squares_S1 + codebook_KD.square().sum(dim=1), x_SD, codebook_KD.T, alpha=-2.0)


@torch.no_grad()
def nearest(x_SD: Tensor, codebook_KD: Tensor, block: int = 4096) -> Tensor:
    """Index of the nearest row, the lowest on ties: int64 (S,).

    Computed in blocks, so that memory stays at block x K distances.
    """
    # Autocast would compute the product in bfloat16, whose 8 bits cannot distinguish close codes.
    with torch.autocast(x_SD.device.type, enabled=False):
        x_SD = x_SD.to(codebook_KD.dtype)
        return torch.cat([squared_distances(x, codebook_KD).argmin(dim=1) for x in x_SD.split(block)])


def straight_through(x_SD: Tensor, quantized_SD: Tensor) -> Tensor:
    """The value of `quantized`, with the gradient passed to `x` unchanged."""
    return x_SD + (quantized_SD - x_SD).detach()


def commitment_loss(x_SD: Tensor, quantized_SD: Tensor) -> Tensor:
    """Mean squared error between vectors and their codes; no gradient flows to the codes."""
    return F.mse_loss(x_SD, quantized_SD.detach())


def perplexity(count_K: Tensor) -> Tensor:
    """exp of the entropy of code usage, from counts (K,).

    K if all codes are equally frequent, 1 if only one is used.
    """
    share_K = count_K.double() / count_K.sum().clamp(min=1)
    return torch.exp(torch.special.entr(share_K).sum())


def sum_over_ranks(*values: float) -> list[float]:
    """Sums each number over all ranks."""
    if not _distributed():
        return list(values)
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return _all_sum(torch.tensor(values, dtype=torch.float64, device=device)).tolist()


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _all_sum(x: Tensor) -> Tensor:
    if _distributed():
        dist.all_reduce(x)
    return x


def _gather(x_SD: Tensor) -> Tensor:
    """Vectors of all ranks, in rank order; ranks may hold different numbers."""
    if not _distributed():
        return x_SD
    sizes = _all_sum(
        torch.bincount(
            torch.tensor([dist.get_rank()]), torch.tensor([float(len(x_SD))]), dist.get_world_size()
        )
        .long()
        .to(x_SD.device)
    ).tolist()
    if not sum(sizes):
        return x_SD
    parts = [x_SD.new_empty(max(sizes), x_SD.shape[1]) for _ in sizes]
    dist.all_gather(parts, F.pad(x_SD, (0, 0, 0, max(sizes) - len(x_SD))))
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


def _pick(pool_SD: Tensor, n: int) -> Tensor:
    """n random rows of the pool, the same on every rank; without repetition if there are enough."""
    order = torch.randperm(len(pool_SD)) if len(pool_SD) >= n else torch.randint(len(pool_SD), (n,))
    rows = pool_SD[order[:n].to(pool_SD.device)].contiguous()
    if _distributed():
        dist.broadcast(rows, src=0)
    return rows


@torch.no_grad()
def ema_update(
    codebook_KD: Tensor,
    ema_count_K: Tensor,
    ema_weight_KD: Tensor,
    x_SD: Tensor,
    codes_S: Tensor,
    decay: float,
    skip: Tensor | None = None,
) -> Tensor:
    """One update of the moving averages n and m, in place; the codebook is m / n with Laplace smoothing of n.

    n <- decay n + (1 - decay) count;  m <- decay m + (1 - decay) sum of assigned vectors
    n^ = (n + 1e-5) / (sum n + K 1e-5) sum n

    A rank without vectors passes an empty tensor and adds zeros to the sums. If `skip` is True (bool (), on
    the device) nothing changes, without the host having to know.

    Returns:
        Number of occurrences of each code on all ranks, int64 (K,).
    """
    size = len(codebook_KD)
    x_SD = x_SD.to(ema_weight_KD.dtype)
    use_K = _all_sum(counts(codes_S, size))
    count_K = use_K.to(ema_count_K.dtype)
    sums_KD = _all_sum(torch.zeros_like(ema_weight_KD).index_add_(0, codes_S, x_SD))
    new_count_K = (ema_count_K * decay).add_(count_K, alpha=1 - decay)
    total = new_count_K.sum()
    new_count_K = (new_count_K + 1e-5) / (total + size * 1e-5) * total
    new_weight_KD = (ema_weight_KD * decay).add_(sums_KD, alpha=1 - decay)
    for old, new in (
        (codebook_KD, new_weight_KD / new_count_K[:, None]),
        (ema_count_K, new_count_K),
        (ema_weight_KD, new_weight_KD),
    ):
        old.copy_(new if skip is None else torch.where(skip, old, new))
    return use_K


def counts(codes_S: Tensor, size: int) -> Tensor:
    """Occurrences of each code, int64 (K,); `torch.bincount` on a GPU would wait to find the largest code."""
    return codes_S.new_zeros(size).index_add_(0, codes_S, torch.ones_like(codes_S))


@torch.no_grad()
def restart_dead(
    codebook_KD: Tensor, ema_count_K: Tensor, ema_weight_KD: Tensor, x_SD: Tensor, threshold: float
) -> int:
    """Replaces codes whose average count fell below `threshold` by random vectors of `x` with count 1.

    Returns the number of restarted codes: 0 if no rank has a vector.
    """
    dead_K = ema_count_K < threshold
    n = int(dead_K.sum())
    pool_SD = _gather(x_SD.to(codebook_KD.dtype)) if n else x_SD
    n = n if len(pool_SD) else 0
    if n:
        rows = _pick(pool_SD, n)
        codebook_KD[dead_K] = rows
        ema_weight_KD[dead_K] = rows
        ema_count_K[dead_K] = 1.0
    return n


@torch.no_grad()
def kmeans(x_SD: Tensor, size: int, iterations: int = 20) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from random vectors: centres (size, D) and the number of vectors of each, (size,).

    An empty centre is moved to a random vector, in each iteration except the last.
    """
    x_SD = _gather(x_SD.float())
    centres_KD = _pick(x_SD, size)
    count_K = x_SD.new_ones(size)
    for i in range(iterations):
        codes_S = nearest(x_SD, centres_KD)
        count_K = counts(codes_S, size).to(x_SD.dtype)
        sums_KD = torch.zeros_like(centres_KD).index_add_(0, codes_S, x_SD)
        centres_KD = torch.where(count_K[:, None] > 0, sums_KD / count_K[:, None].clamp(min=1), centres_KD)
        empty_K = count_K == 0
        if i + 1 < iterations and empty_K.any():
            centres_KD[empty_K] = _pick(x_SD, int(empty_K.sum()))
    return centres_KD, count_K
