"""Loads and stores of 16-bit floats as bits, for generated kernels: float32 inside, rounded once on the way out.

Each function is one LLVM expression on scalars, without branches, so that a loop over it becomes SIMD.
bfloat16 is the upper half of a float32. float16 goes through LLVM's `half` where the processor converts
it (F16C on x86, always on ARM64), and through integer arithmetic elsewhere, because LLVM would then call
a run-time library that the JIT does not link. Both ways give the same bits for every number (not for every NaN).
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types, uint16, uint32, uint64
from numba.extending import intrinsic

_MAGNITUDE16, _MAGNITUDE32 = np.uint16(0x7FFF), np.uint32(0x7FFFFFFF)
_F32, _I32, _I16 = ir.FloatType(), ir.IntType(32), ir.IntType(16)


def _c(value: int) -> ir.Constant:
    return ir.Constant(_I32, value)


def _is_nan(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    return b.fcmp_unordered("uno", x, x)


def converts_half(context: Any) -> bool:
    """Whether the processor compiled for has instructions between float16 and float32."""
    triple, _, features = context.codegen().magic_tuple()
    return "+f16c" in features.split(",") or triple.startswith(("aarch64", "arm64"))


@intrinsic
def bits_to_f32(typingctx: Any, bits: Any) -> Any:
    """The float32 whose bits are the uint32 `bits`."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], _F32)

    return types.float32(types.uint32), codegen


@intrinsic
def f32_to_bits(typingctx: Any, x: Any) -> Any:
    """The bits of a float32 as uint32."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], _I32)

    return types.uint32(types.float32), codegen


@intrinsic
def load_bf16(typingctx: Any, bits: Any) -> Any:
    """The float32 equal to a bfloat16 given as its uint16 bits."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(b.shl(b.zext(args[0], _I32), _c(16)), _F32)

    return types.float32(types.uint16), codegen


@intrinsic
def store_bf16(typingctx: Any, x: Any) -> Any:
    """The uint16 bits of the bfloat16 nearest to a float32: ties to even, overflow to infinity, NaN stays a quiet NaN."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        bits = b.bitcast(args[0], _I32)
        upper = b.lshr(bits, _c(16))
        half_ulp = b.add(_c(0x7FFF), b.and_(upper, _c(1)))
        rounded = b.lshr(b.add(bits, half_ulp), _c(16))
        return b.trunc(b.select(_is_nan(b, args[0]), _c(0x7FC0), rounded), _I16)

    return types.uint16(types.float32), codegen


@intrinsic
def load_f16(typingctx: Any, bits: Any) -> Any:
    """The float32 equal to a float16 given as its uint16 bits."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if converts_half(context):
            return b.fpext(b.bitcast(args[0], ir.HalfType()), _F32)
        return load_f16_integer(b, args[0])

    return types.float32(types.uint16), codegen


@intrinsic
def store_f16(typingctx: Any, x: Any) -> Any:
    """The uint16 bits of the float16 nearest to a float32: ties to even, overflow to infinity, NaN stays a quiet NaN."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        if converts_half(context):
            return b.bitcast(b.fptrunc(args[0], ir.HalfType()), _I16)
        return _store_f16_integer(b, args[0])

    return types.uint16(types.float32), codegen


def load_f16_integer(b: ir.IRBuilder, half: ir.Value) -> ir.Value:
    """Shift the fields into place, rebias the exponent (15 to 127), and let a float subtraction renormalise subnormals."""
    wide = b.zext(half, _I32)
    fields = b.shl(b.and_(wide, _c(0x7FFF)), _c(13))
    exponent = b.and_(fields, _c(0x0F800000))
    normal = b.add(fields, _c((127 - 15) << 23))
    special = b.add(normal, _c((128 - 16) << 23))
    tiny = b.fsub(b.bitcast(b.add(normal, _c(1 << 23)), _F32), ir.Constant(_F32, 2.0**-14))
    magnitude = b.select(b.icmp_unsigned("==", exponent, _c(0x0F800000)), special, normal)
    magnitude = b.select(b.icmp_unsigned("==", exponent, _c(0)), b.bitcast(tiny, _I32), magnitude)
    return b.bitcast(b.or_(magnitude, b.shl(b.and_(wide, _c(0x8000)), _c(16))), _F32)


def _store_f16_integer(b: ir.IRBuilder, x: ir.Value) -> ir.Value:
    """Round in integers; a subnormal result is rounded by adding 0.5, whose last bit is the smallest float16."""
    bits = b.bitcast(x, _I32)
    magnitude = b.and_(bits, _c(0x7FFFFFFF))
    odd = b.and_(b.lshr(magnitude, _c(13)), _c(1))
    rebiased = b.sub(magnitude, _c((127 - 15) << 23))
    normal = b.lshr(b.add(b.add(rebiased, _c(0xFFF)), odd), _c(13))
    shifted = b.fadd(b.bitcast(magnitude, _F32), ir.Constant(_F32, 0.5))
    tiny = b.sub(b.bitcast(shifted, _I32), _c(0x3F000000))
    finite = b.select(b.icmp_unsigned("<", magnitude, _c((127 - 14) << 23)), tiny, normal)
    # 65520 is the first float32 that rounds to infinity
    beyond = b.select(_is_nan(b, x), _c(0x7E00), _c(0x7C00))
    half = b.select(b.icmp_unsigned(">=", magnitude, _c(0x477FF000)), beyond, finite)
    return b.trunc(b.or_(half, b.and_(b.lshr(bits, _c(16)), _c(0x8000))), _I16)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def peak16(bits: Any, n: Any, top: Any) -> Any:
    """Largest magnitude among `top` and the first n of 16-bit floats given as bits (uint16), as bits (uint32): infinity and NaN lie above all numbers."""
    found = uint16(0)
    for i in range(uint64(n)):
        found = max(found, uint16(bits[i] & _MAGNITUDE16))
    return max(top, uint32(found))


@njit(nogil=True, boundscheck=False, error_model="numpy")
def add_words16(sums: Any, bits: Any, first: Any, n: Any, width: Any) -> None:
    """Add the first n of 16-bit words to uint32 sums: word `first + j` to sum `(first + j) % width`."""
    at, j = first % width, 0
    while j < n:
        count = min(n - j, width - at)
        for i in range(uint64(count)):
            sums[uint64(at) + i] += uint32(bits[uint64(j) + i])
        j += count
        at = 0


@njit(nogil=True, boundscheck=False, error_model="numpy")
def add_words32(sums: Any, x: Any, first: Any, n: Any, width: Any) -> None:
    """The same of the bits of float32 values, to uint64 sums."""
    at, j = first % width, 0
    while j < n:
        count = min(n - j, width - at)
        for i in range(uint64(count)):
            sums[uint64(at) + i] += uint64(f32_to_bits(x[uint64(j) + i]))
        j += count
        at = 0


@njit(nogil=True, boundscheck=False, error_model="numpy")
def peak32(x: Any, n: Any, top: Any) -> Any:
    """The same of float32 values."""
    found = uint32(0)
    for i in range(uint64(n)):
        found = max(found, uint32(f32_to_bits(x[i]) & _MAGNITUDE32))
    return max(top, found)
