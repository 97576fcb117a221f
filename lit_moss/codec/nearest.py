"""Which code a pooled frame gets: the nearest codebook row, as float64 computes it.

A code is an argmin, and float32 sums taken in another order differ in their last bits, which flips about one
code in 10^4 where two codebook rows are nearly equally far. So all codes are those of float64. Offline,
float32 decides where its rounding cannot change the nearest code (`decide`), and float64 the others, 4 in
1000. A stream computes in float64 only, so that every push costs the same: computing near-ties again would
mean encoding up to 30 s of speech in one push.

Shapes: B batch, N codes, S vectors, D width, K codebook entries.
"""

import torch
from torch import Tensor

from lit_moss.audio.precision import full_precision
from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder
from lit_moss.errors import UserError

# A code is decided again in float64 when moving the vector by this share of its length could change it.
# Measured: float32 moves pooled vectors by at most 4e-6 of their length between chunked and whole runs
# (LJ Speech, 435 clips), and by at most 1.1e-5 from float64 (LibriSpeech, 5982 codes; 99 % below 1.5e-6).
AMBIGUOUS = 4e-5
ROUNDING = 2e-6  # of float32 sums of squares, as a share of the largest term; 2^-23 is 1.2e-7
TIE = 1e-12  # the same of float64: equal rows, whose products may differ in the last bit, are one tie


def decide(pooled_BND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Codes by float32, and whether rounding could have chosen another: int64 (B, N) and (B, N), 0 or 1.

    Moving x by e changes its distance to any code by at most e. So code 1 stays nearest while
    (d2 - d1) > 2 e, that is d2^2 - d1^2 > 2 e (d1 + d2), whatever other codes lie near.
    Here e = AMBIGUOUS |x|. To this the rounding of the squared distances themselves is added, which are sums
    of terms as large as (|x| + |c|)^2. A code is -1 where a number is not finite, see `check_codes_known`.
    """
    with full_precision(pooled_BND.device):
        longest = codebook_KD.norm(dim=1).max()
        codes_S, ambiguous_S = [], []
        for x_SD in pooled_BND.flatten(0, 1).split(4096):
            nearest_S2 = quantizer.squared_distances(x_SD, codebook_KD).topk(2, dim=1, largest=False)
            squared_S2 = nearest_S2.values.clamp(min=0.0)
            norm_S = x_SD.norm(dim=1)
            margin_S = nearest_S2.values[:, 1] - nearest_S2.values[:, 0]
            moved_S = 2.0 * AMBIGUOUS * norm_S * squared_S2.sqrt().sum(dim=1)
            reach_S = moved_S + ROUNDING * (norm_S + longest).square()
            finite_S = reach_S.isfinite()
            ambiguous_S.append(((margin_S <= reach_S) & finite_S).long())
            codes_S.append(torch.where(finite_S, nearest_S2.indices[:, 0], -1))
    shape = pooled_BND.shape[:-1]
    return torch.cat(codes_S).view(shape), torch.cat(ambiguous_S).view(shape)


class Float64Encoder:
    """The same network in float64, made on first use; on the CPU if the device has no float64 (MPS).

    Args:
        encoder: The network in float32.
    """

    def __init__(self, encoder: CausalEncoder) -> None:
        self._encoder = encoder
        self._network: CausalEncoder | None = None
        self._squares_K: Tensor | None = None  # of the codebook's rows

    @property
    def is_made(self) -> bool:
        """Whether the copy exists: it takes twice the memory of the network."""
        return self._network is not None

    @property
    def network(self) -> CausalEncoder:
        """The copy."""
        if self._network is None:
            with torch.device("meta"):  # no memory, and no draw from the caller's random numbers
                network = CausalEncoder(self._encoder.config)
            # Averages that only training needs.
            del network.ema_count, network.ema_weight
            device = _float64_device(self._encoder.codebook.weight.device)
            tensors = {
                name: self._encoder.get_parameter(name).detach().to(device=device, dtype=torch.float64)
                for name, _ in network.named_parameters()
            }
            network.load_state_dict(tensors, assign=True)
            self._network = network.eval().requires_grad_(False)
        return self._network

    @property
    def device(self) -> torch.device:
        """Where the copy is."""
        return self.network.codebook.weight.device

    @torch.no_grad()
    def nearest(self, pooled_BND: Tensor) -> Tensor:
        """Nearest codebook row, the lowest of equal ones, -1 where a number is not finite: int64 (B, N)."""
        codebook_KD = self.network.codebook.weight
        if self._squares_K is None:  # two passes over the codebook that a live push need not repeat
            self._squares_K = codebook_KD.square().sum(dim=1)
        longest, codes_S = self._squares_K.max().sqrt(), []
        for x_SD in pooled_BND.flatten(0, 1).split(1024):
            # Squared distances without |x|^2, which is the same for all rows.
            distance_SK = torch.addmm(self._squares_K, x_SD, codebook_KD.T, alpha=-2.0)
            tie_S1 = TIE * (x_SD.norm(dim=1, keepdim=True) + longest).square()
            within = distance_SK <= distance_SK.amin(dim=1, keepdim=True) + tie_S1
            codes_S.append(torch.where(tie_S1[:, 0].isfinite(), within.to(torch.uint8).argmax(dim=1), -1))
        return torch.cat(codes_S).view(pooled_BND.shape[:-1])


def check_codes_known(codes: Tensor) -> Tensor:
    """The codes, on the CPU.

    Raises:
        UserError: if one is -1.
    """
    if len(codes) and int(codes.min()) < 0:
        raise UserError(
            "the speech tokenizer computes numbers that are not finite: its weights are damaged, get it again"
        )
    return codes


def _float64_device(device: torch.device) -> torch.device:
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device
