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
        x: float64 tensor on the CPU. For a dot product or a sum of magnitudes, pass the products or
            magnitudes, formed in float64.

    Returns:
        float64 `[...]`, bit-equal to `jit_reduce` over the same elements.
    """
    import torch

    if x.dtype != torch.float64 or x.device.type != "cpu":
        raise ValueError(f"lane_sum takes float64 on the CPU, not {x.dtype} on {x.device}")
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % LANES))
    lanes = torch.zeros((*x.shape[:-1], LANES), dtype=torch.float64)
    if padded.shape[-1]:
        # cumsum on the CPU adds one element after the other; sum would add in an order of its own
        lanes += padded.reshape(*x.shape[:-1], -1, LANES).cumsum(-2)[..., -1, :]
    fours = lanes[..., :4] + lanes[..., 4:]
    twos = fours[..., :2] + fours[..., 2:]
    return twos[..., 0] + twos[..., 1]
