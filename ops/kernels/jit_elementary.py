"""exp, tanh and log for generated kernels, operation by operation as in `elementary`, without branches, so that loops over them become SIMD."""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, float64, njit, types
from numba.extending import intrinsic

from plait.ops.kernels import elementary as e

_F32, _I32, _F64, _I64 = ir.FloatType(), ir.IntType(32), ir.DoubleType(), ir.IntType(64)


@intrinsic
def _times_power_of_two(typingctx: Any, y: Any, n: Any) -> Any:
    """y * 2^n for whole float32 n, in two factors; in 32 bits, which Numba would widen."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        whole = b.fptosi(args[1], _I32)
        half = b.ashr(whole, ir.Constant(_I32, 1))
        value = args[0]
        for part in (half, b.sub(whole, half)):
            value = b.fmul(value, b.bitcast(b.shl(b.add(part, ir.Constant(_I32, 127)), ir.Constant(_I32, 23)), _F32))
        return value

    return types.float32(types.float32, types.float32), codegen


@intrinsic
def _f64_to_bits(typingctx: Any, x: Any) -> Any:
    """The bits of a float64 as int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], _I64)

    return types.int64(types.float64), codegen


@intrinsic
def _bits_to_f64(typingctx: Any, bits: Any) -> Any:
    """The float64 whose bits are an int64."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.bitcast(args[0], _F64)

    return types.float64(types.int64), codegen


_EXP = tuple(np.float32(t) for t in e.EXP_TERMS)
_TANH = tuple(np.float32(t) for t in e.TANH_TERMS)
_MOST, _LEAST, _LOG2_E, _HIGH, _LOW, _ROUNDING = (np.float32(t) for t in (e.EXP_MOST, e.EXP_LEAST, e.LOG2_E, e.LN2_HIGH, e.LN2_LOW, e.ROUNDING))
_SMALL, _ONE, _TWO = np.float32(e.TANH_SMALL), np.float32(1.0), np.float32(2.0)
_LOG, _SQRT_HALF, _HIGH_64, _LOW_64 = e.LOG_TERMS, np.int64(e.SQRT_HALF_BITS), e.LN2_HIGH_64, e.LN2_LOW_64


@njit(inline="always")
def exp_f32(x: Any) -> Any:
    """e to the x, float32."""
    x = _MOST if x > _MOST else (_LEAST if x < _LEAST else x)
    n = float32(float32(x * _LOG2_E + _ROUNDING) - _ROUNDING)
    r = float32(float32(x - n * _HIGH) - n * _LOW)
    p = float32(r * _EXP[0] + _EXP[1])
    p = float32(p * r + _EXP[2])
    p = float32(p * r + _EXP[3])
    p = float32(p * r + _EXP[4])
    p = float32(p * r + _EXP[5])
    return _times_power_of_two(float32(float32(p * (r * r) + r) + _ONE), n)


@njit(inline="always")
def tanh_f32(x: Any) -> Any:
    """Hyperbolic tangent, float32."""
    square = float32(x * x)
    p = float32(square * _TANH[0] + _TANH[1])
    p = float32(p * square + _TANH[2])
    p = float32(p * square + _TANH[3])
    p = float32(p * square + _TANH[4])
    small = float32(p * square * x + x)
    large = float32(_ONE - _TWO / float32(exp_f32(float32(abs(x) * _TWO)) + _ONE))
    return small if abs(x) < _SMALL else (-large if x < float32(0.0) else large)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def log_f64(x: Any) -> Any:
    """Natural logarithm, float64, of normal numbers; -inf of 0, NaN of what is negative."""
    if not x > 0.0:
        return -np.inf if x == 0.0 else np.nan
    if not x < np.inf:
        return x
    bits: Any = _f64_to_bits(x)
    exponent = (bits - _SQRT_HALF) >> 52
    mantissa = _bits_to_f64(bits - (exponent << 52))
    scale = float64(exponent)
    f = (mantissa - 1.0) / (mantissa + 1.0)
    square = f * f
    p = square * _LOG[0] + _LOG[1]
    for k in range(2, 10):
        p = p * square + _LOG[k]
    return scale * _HIGH_64 + ((p * square * f + f) * 2.0 + scale * _LOW_64)
