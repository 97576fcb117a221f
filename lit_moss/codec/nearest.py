"""Assigns a code to each pooled frame: the nearest codebook row, as computed in float64.

A code is an argmin, and float32 sums in another order differ in their last bits, which changes about one code
in 10^4, where two codebook rows are almost equally near. Therefore all codes are those of float64. Offline,
float32 decides where rounding cannot change the nearest code (`decide`), and float64 decides the others, 4 in
1000. A stream computes in float64 only, so that every push costs the same: recomputing near-ties would mean
encoding up to 30 s of speech in one push.

Shapes: B batch, N codes, S vectors, D width, K codebook entries.
"""

import torch
from torch import Tensor

from lit_moss.audio.precision import full_precision
from lit_moss.codec import quantizer
from lit_moss.codec.encoder import CausalEncoder
from lit_moss.errors import UserError

# A code is recomputed in float64 if moving the vector by this fraction of its length could change it.
# Measured: between chunked and whole runs, float32 moves pooled vectors by at most 4e-6 of their length (LJ
# Speech, 435 clips), and from float64 by at most 1.1e-5 (LibriSpeech, 5982 codes; 99 % below 1.5e-6).
AMBIGUOUS = 4e-5
ROUNDING = 2e-6  # of float32 sums of squares, relative to the largest term; 2^-23 is 1.2e-7
TIE = 1e-12  # as above in float64: equal rows, whose products may differ in the last bit, are a tie


def decide(pooled_BND: Tensor, codebook_KD: Tensor) -> tuple[Tensor, Tensor]:
    """Codes by float32, int64 (B, N), and whether rounding could have chosen another, int64 (B, N), 0 or 1.

    Moving x by e changes its distance to any code by at most e. So code 1 stays the nearest while (d2 - d1) >
    2 e, that is d2^2 - d1^2 > 2 e (d1 + d2), for any other codes nearby. Here e = AMBIGUOUS |x|, plus the
    rounding error of the squared distances themselves, which are sums of terms up to (|x| + |c|)^2. A code is
    -1 if a value is not finite, see `check_codes_known`.
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
    """The same network in float64, created on first use; on the CPU if the device lacks float64 (MPS).

    Args:
        encoder: The network in float32.
    """

    def __init__(self, encoder: CausalEncoder) -> None:
        self._encoder = encoder
        self._network: CausalEncoder | None = None
        self._squares_K: Tensor | None = None  # of the codebook rows

    @property
    def is_made(self) -> bool:
        """Whether the copy exists; it takes twice the memory of the network."""
        return self._network is not None

    @property
    def network(self) -> CausalEncoder:
        """The float64 copy of the network."""
        if self._network is None:
            with torch.device("meta"):  # takes no memory and no random numbers of the caller
                network = CausalEncoder(self._encoder.config)
            # Averages that are only needed in training.
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
        """Device of the copy."""
        return self.network.codebook.weight.device

    @torch.no_grad()
    def nearest(self, pooled_BND: Tensor) -> Tensor:
        """Index of the nearest codebook row (lowest on ties; -1 for non-finite values): int64 (B, N)."""
        codebook_KD = self.network.codebook.weight
        if self._squares_K is None:  # two passes over the codebook that a stream need not repeat
            self._squares_K = codebook_KD.square().sum(dim=1)
        longest, codes_S = self._squares_K.max().sqrt(), []
        for x_SD in pooled_BND.flatten(0, 1).split(1024):
            # Squared distances without |x|^2, which is equal for all rows.
            distance_SK = torch.addmm(self._squares_K, x_SD, codebook_KD.T, alpha=-2.0)
            tie_S1 = TIE * (x_SD.norm(dim=1, keepdim=True) + longest).square()
            within = distance_SK <= distance_SK.amin(dim=1, keepdim=True) + tie_S1
            codes_S.append(torch.where(tie_S1[:, 0].isfinite(), within.to(torch.uint8).argmax(dim=1), -1))
        return torch.cat(codes_S).view(pooled_BND.shape[:-1])


def check_codes_known(codes: Tensor) -> Tensor:
    """Moves the codes to the CPU and checks that none is unknown.

    Raises:
        UserError: if a code is -1.
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
