"""The one reduction tree of every float sum, so that all backends give the same bits.

    lane j     float64 sum of the elements i with i % 8 == j, one after the other, from +0.0
    total      ((l0 + l4) + (l2 + l6)) + ((l1 + l5) + (l3 + l7))

Eight lanes are two SIMD registers of float64; halving them is what a vector unit does anyway. A block's
length is padded with zeros to a multiple of 8, which changes no sum. This module is the reference, in
torch and in NumPy; `jit_reduce` has the kernels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

LANES = 8


def combine(lanes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Add up lanes `[..., 8]` along the last axis, in the fixed order."""
    fours = lanes[..., :4] + lanes[..., 4:]
    twos = fours[..., :2] + fours[..., 2:]
    total: npt.NDArray[np.float64] = twos[..., 0] + twos[..., 1]
    return total


def lane_sum_numpy(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Sum of float64 `[..., n]` along the last axis by the fixed tree; `lane_sum` without torch."""
    n = x.shape[-1]
    padded = np.concatenate([x, np.zeros((*x.shape[:-1], -n % LANES))], axis=-1)
    lanes = np.zeros((*x.shape[:-1], LANES))
    # adding whole rows of lanes one by one is sequential by construction; np.sum would add pairwise
    for start in range(0, padded.shape[-1], LANES):
        lanes += padded[..., start : start + LANES]
    return combine(lanes)


def lane_sum(x: torch.Tensor) -> torch.Tensor:
    """Sum of float64 `[..., n]` along the last axis by the fixed tree; give it one block at a time.

    Args:
        x: float64 tensor on any device. For a dot product or a sum of magnitudes, pass the products or
            magnitudes, formed in float64.

    Returns:
        float64 `[...]`, bit-equal to `jit_reduce` over the same elements.
    """
    import torch

    return combine_lanes(add_to_lanes(torch.zeros((*x.shape[:-1], LANES), dtype=torch.float64, device=x.device), x))


def add_to_lanes(lanes: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Lanes `[..., 8]` after the elements of `[..., n]` were added to them; all but the last part of a block are a multiple of 8 long."""
    import torch

    if x.dtype != torch.float64:
        raise ValueError(f"sums take float64, not {x.dtype}")
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES)) if x.shape[-1] % LANES else x
    rows = torch.cat([lanes.unsqueeze(-2), padded.reshape(*x.shape[:-1], -1, LANES)], dim=-2)
    # cumsum adds one element after the other, on the CPU and along an outer axis on CUDA too; sum would add in an order of its own
    return rows.cumsum(-2).select(-2, -1).clone()


def combine_lanes(lanes: torch.Tensor) -> torch.Tensor:
    """`combine` for torch."""
    fours = lanes.narrow(-1, 0, 4) + lanes.narrow(-1, 4, 4)
    twos = fours.narrow(-1, 0, 2) + fours.narrow(-1, 2, 2)
    return twos.select(-1, 0) + twos.select(-1, 1)
