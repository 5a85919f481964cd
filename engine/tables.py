"""Small vectors in which kernels look up a value for each element."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from plait.ops.errors import KernelError

_MOST = float(2**32 - 1)


def table(values: Any, dtype: str) -> npt.NDArray[Any]:
    """A small vector as a kernel takes it.

    Args:
        values: numbers `[entries]`.
        dtype: `float64`, or `uint32` for entries that are compared as integers.

    Raises:
        KernelError: an entry of an integer table is no whole number from 0 to 2^32 - 1.
    """
    found: npt.NDArray[Any] = np.ascontiguousarray(values, np.float64)
    if dtype == "float64":
        return found
    wrong = found[~((found >= 0.0) & (found <= _MOST) & (found == np.floor(found)))]
    if wrong.size:
        raise KernelError(f"a table for take(..., integer=True) holds {wrong[0]:.17g}; its entries must be whole numbers from 0 to {_MOST:.0f}")
    return found.astype(dtype)
