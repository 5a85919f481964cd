"""Ranks of magnitudes within rows: the reference of `jit_rank`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from plait.ops.kernels.select import keys


def row_ranks(x: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Rank of every |x| within its row, ascending and stable.

    Args:
        x: float32 `[rows, columns]`.

    Returns:
        int32 `[rows, columns]`: 0 for the smallest magnitude; equal magnitudes rank by column.
    """
    order = np.argsort(keys(x), axis=-1, kind="stable")
    ranks = np.empty(x.shape, np.int32)
    columns = np.broadcast_to(np.arange(x.shape[-1], dtype=np.int32), x.shape)
    np.put_along_axis(ranks, order, columns, axis=-1)
    return ranks
