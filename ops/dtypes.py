"""Storage dtypes of checkpoints: the names of three worlds for one thing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class DType:
    """A storage dtype.

    Attributes:
        code: name in a safetensors header, such as `BF16`.
        name: name in recipes, configs and torch, such as `bfloat16`.
        bits: size of one element in bits.
        kind: `f` float that plait computes on, `q` quantised float (copied only), `i` integer or bool.
    """

    code: str
    name: str
    bits: int
    kind: Literal["f", "q", "i"]

    @property
    def itemsize(self) -> int:
        """Bytes of one element; sub-byte dtypes have none and are refused before this is asked."""
        return self.bits // 8


_ALL = (
    DType("F64", "float64", 64, "f"),
    DType("F32", "float32", 32, "f"),
    DType("BF16", "bfloat16", 16, "f"),
    DType("F16", "float16", 16, "f"),
    DType("F8_E4M3", "float8_e4m3fn", 8, "q"),
    DType("F8_E5M2", "float8_e5m2", 8, "q"),
    DType("F8_E8M0", "float8_e8m0fnu", 8, "q"),
    DType("I64", "int64", 64, "i"),
    DType("U64", "uint64", 64, "i"),
    DType("I32", "int32", 32, "i"),
    DType("U32", "uint32", 32, "i"),
    DType("I16", "int16", 16, "i"),
    DType("U16", "uint16", 16, "i"),
    DType("I8", "int8", 8, "i"),
    DType("U8", "uint8", 8, "i"),
    DType("BOOL", "bool", 8, "i"),
)
BY_CODE = {d.code: d for d in _ALL}
BY_NAME = {d.name: d for d in _ALL}

#: Floats that a recipe may name for `dtype` and `out_dtype`.
RECIPE_FLOATS = ("float16", "bfloat16", "float32")


def promote(codes: list[str]) -> str:
    """Smallest float code that holds every one of `codes` exactly, as torch promotes (F16 + BF16 -> F32)."""
    unique = sorted(set(codes), key=lambda c: BY_CODE[c].bits)
    if len(unique) == 1:
        return unique[0]
    top = unique[-1]
    return "F32" if BY_CODE[top].bits == 16 else top
