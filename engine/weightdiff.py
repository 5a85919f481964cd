"""What fine-tuning changed in one tensor, read from both models a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from plait.engine.reader import Reader
from plait.ops.dtypes import BY_CODE
from plait.planner.lora_targets import PIECE, Target
from plait.planner.types import TensorRef

_RAW: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def changed(target: Target, reader: Reader, progress: Callable[[int], None]) -> bool:
    """Whether any value differs from the base; equal bits are equal, NaN or not."""
    if target.base is None:
        return True
    same = target.base.dtype == target.model.dtype
    for new, old in zip(pieces(target.model, reader), pieces(target.base, reader), strict=True):
        progress(new.nbytes + old.nbytes)
        if not np.array_equal(new, old) if same else not np.array_equal(values(new, target.model.dtype), values(old, target.base.dtype)):
            return True
    return False


def delta_of(target: Target, reader: Reader, progress: Callable[[int], None]) -> npt.NDArray[np.float32]:
    """W - W_0, flat: subtracted in float32, or in float64 where one of them is stored so."""
    if target.base is None:
        raise ValueError(f"{target.name} has no counterpart")
    delta = np.empty(math.prod(target.model.shape), np.float32)
    at = 0
    for new, old in zip(pieces(target.model, reader), pieces(target.base, reader), strict=True):
        delta[at : at + new.size] = values(new, target.model.dtype) - values(old, target.base.dtype)
        progress(new.nbytes + old.nbytes)
        at += new.size
    return delta


def pieces(ref: TensorRef, reader: Reader) -> Iterator[npt.NDArray[Any]]:
    """The stored bits of a tensor, `PIECE` elements at a time, each in the same buffer."""
    count, itemsize = math.prod(ref.shape), BY_CODE[ref.dtype].itemsize
    buffer = np.empty(min(count, PIECE), _RAW[itemsize])
    for start in range(0, count, PIECE):
        part = buffer[: min(PIECE, count - start)]
        reader.read_into(ref.file, ref.start + start * itemsize, part)
        yield part


def values(raw: npt.NDArray[Any], dtype: str) -> npt.NDArray[Any]:
    """Values of stored bits: float32, float64 for `F64`, and the bits themselves for what is no plain float."""
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    return raw.view({"F32": np.float32, "F64": np.float64}.get(dtype, raw.dtype))
