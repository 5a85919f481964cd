"""Reads safetensors files for comparison, apart from plait's own reader, and knows the spacing of each float format."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]

_NUMPY = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "I64": "<i8", "I32": "<i4", "U8": "u1"}
_FRACTION_BITS = {"F32": 23, "F16": 10, "BF16": 7}
_SMALLEST_EXPONENT = {"F32": -126, "F16": -14, "BF16": -126}


@dataclass(frozen=True)
class Stored:
    """A tensor as it lies in a file: safetensors dtype code and its values, exact in float64."""

    dtype: str
    value: F64

    @property
    def shape(self) -> tuple[int, ...]:
        return self.value.shape


def read_file(path: Path) -> dict[str, Stored]:
    """Every tensor of one safetensors file."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    out = {}
    for name, facts in header.items():
        begin, end = (8 + length + o for o in facts["data_offsets"])
        bits = np.frombuffer(raw[begin:end], dtype=_NUMPY[facts["dtype"]]).reshape(facts["shape"])
        out[name] = Stored(facts["dtype"], _widen(bits, facts["dtype"]))
    return out


def read_folder(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder: the files its index names, or `model.safetensors`."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        where = json.loads(index.read_text())["weight_map"]
        tensors = {name: t for shard in sorted(set(where.values())) for name, t in read_file(folder / shard).items()}
        assert set(tensors) == set(where), "the index names other tensors than its files hold"
        return tensors
    return read_file(folder / "model.safetensors")


def _widen(bits: NDArray[np.generic], dtype: str) -> F64:
    if dtype == "BF16":
        bits = (bits.astype(np.uint32) << 16).view(np.float32)
    return bits.astype(np.float64)


def rounded(value: F64, dtype: str) -> F64:
    """`value` rounded once, to nearest even, to what `dtype` can hold."""
    if dtype == "F32":
        return value.astype(np.float32).astype(np.float64)
    if dtype == "F16":
        return value.astype(np.float16).astype(np.float64)
    step = spacing(value, dtype)
    return np.rint(value / step) * step


def spacing(value: F64, dtype: str) -> F64:
    """Distance between neighbours of `dtype` around each value (one unit in the last place)."""
    exponent = np.frexp(np.abs(value))[1] - 1
    return np.ldexp(1.0, np.maximum(exponent, _SMALLEST_EXPONENT[dtype]) - _FRACTION_BITS[dtype])
