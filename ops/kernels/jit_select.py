"""Counting kernels for exact order statistics, over one block of float32 values (see `select`)."""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call,var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import int32, int64, njit, types, uint32, uint64
from numba.core.errors import TypingError
from numba.extending import intrinsic

from plait.ops.kernels.jit_bits import f32_to_bits

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_COARSE_SHIFT = np.uint32(16)
_FINE_MASK = np.uint32(0xFFFF)
_GROUP = 16  #: values compared at once: one AVX-512 register, two of AVX2
_SCAN = 64  #: fine counters looked at together when they are gathered
_I32X16, _F32X16 = (ir.VectorType(t, _GROUP) for t in (ir.IntType(32), ir.FloatType()))


@intrinsic
def _compare(typingctx: Any, x: Any, first: Any, top: Any, bottom: Any, value: Any) -> Any:
    """Compare the keys of `x[first:first + 16]` with three int32: masks of those above `top`, from `bottom` up, and equal to `value`.

    Numba would widen the keys to 64 bits, and count a quarter as many at once.
    """
    if not (isinstance(x, types.Array) and x.ndim == 1 and x.layout == "C" and x.dtype == types.float32):
        raise TypingError(f"keys are taken of contiguous float32, not of {x}")

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        array, start, *limits = args
        data = context.make_array(signature.args[0])(context, b, array).data
        home = b.bitcast(b.gep(data, [start]), _F32X16.as_pointer())
        keys = b.and_(b.bitcast(b.load(home, align=4), _I32X16), ir.Constant(_I32X16, [0x7FFFFFFF] * _GROUP))
        masks = []
        for how, limit in zip((">", ">=", "=="), limits, strict=True):
            one = b.insert_element(ir.Constant(_I32X16, ir.Undefined), limit, ir.Constant(ir.IntType(32), 0))
            every = b.shuffle_vector(one, ir.Constant(_I32X16, ir.Undefined), ir.Constant(_I32X16, [0] * _GROUP))
            masks.append(b.zext(b.bitcast(b.icmp_signed(how, keys, every), ir.IntType(_GROUP)), ir.IntType(32)))
        return context.make_tuple(b, signature.return_type, masks)

    return types.UniTuple(types.uint32, 3)(x, types.uint64, types.int32, types.int32, types.int32), codegen


@intrinsic
def _ones(typingctx: Any, mask: Any) -> Any:
    """How many bits of a uint32 are set."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.zext(b.ctpop(args[0]), ir.IntType(64))

    return types.int64(types.uint32), codegen


@intrinsic
def _lowest(typingctx: Any, mask: Any) -> Any:
    """Place of the lowest set bit of a uint32 that is not 0."""

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        return b.zext(b.cttz(args[0], ir.Constant(ir.IntType(1), 1)), ir.IntType(64))

    return types.uint64(types.uint32), codegen


@njit(nogil=True, boundscheck=False, error_model="numpy")
def count_digits(x: Any, n: Any, bucket: Any, heavy: Any, coarse: Any, fine: Any) -> Any:
    """Count `x[:n]` for an order statistic, in one of two ways.

    Args:
        x: float32 values.
        n: how many of them, int64.
        bucket: int64; -1 counts the coarse digits, 0 or more looks into that bucket, below -1 counts nothing.
        heavy: int64; a fine digit that most elements of the bucket are thought to have, or -1. It decides the speed, not the counts.
        coarse: int64 `[32768]`, added to when `bucket` is -1.
        fine: int32 `[65536]`, the fine digits of the bucket's elements, added to.

    Returns:
        How many elements lie above the bucket (int64), 0 without one.
    """
    if bucket < -1:
        return int64(0)
    if bucket == -1:
        for i in range(uint64(n)):
            coarse[(f32_to_bits(x[i]) & _MAGNITUDE) >> _COARSE_SHIFT] += 1
        return int64(0)
    return _count_bucket(x, uint64(n), uint32(bucket) << _COARSE_SHIFT, heavy, fine)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _count_bucket(x: Any, n: Any, low: Any, heavy: Any, fine: Any) -> Any:
    """Comparisons count what lies above the bucket and the heavy digit in it; only what lies beside that one is looked at singly."""
    # keys are below 2^31, so they compare as signed numbers, and none equals -1
    bottom, top = int32(low), int32(low | _FINE_MASK)
    value = int32(low | uint32(heavy)) if heavy >= 0 else int32(-1)
    above, equal = int64(0), int64(0)
    whole = n // uint64(_GROUP) * uint64(_GROUP)
    for first in range(uint64(0), whole, uint64(_GROUP)):
        higher, inside, same = _compare(x, first, top, bottom, value)
        above += _ones(higher)
        equal += _ones(same)
        beside = uint32(inside & ~(higher | same))
        while beside != uint32(0):
            i = first + _lowest(beside)
            fine[(f32_to_bits(x[i]) & _MAGNITUDE) - low] += 1
            beside = uint32(beside & (beside - uint32(1)))
    for i in range(whole, n):
        key = f32_to_bits(x[i]) & _MAGNITUDE
        above += int64(key > (low | _FINE_MASK))
        if key - low <= _FINE_MASK:
            fine[key - low] += 1
    if heavy >= 0:
        fine[heavy] += int32(equal)
    return above


@njit(nogil=True, boundscheck=False, error_model="numpy")
def harvest(fine: Any, places: Any, times: Any, most: Any) -> Any:
    """Gather the fine digits that occur.

    Args:
        fine: int32 `[65536]` counts.
        places: uint32 `[most]`, the digits found, ascending.
        times: int64 `[most]`, how often each occurs.
        most: int64.

    Returns:
        How many occur (int64); one more than `most` stands for any larger number.
    """
    found = int64(0)
    for first in range(uint64(0), uint64(_FINE_MASK) + uint64(1), uint64(_SCAN)):
        some = int32(0)
        for i in range(first, first + uint64(_SCAN)):
            some |= fine[i]
        if some != 0:
            for i in range(first, first + uint64(_SCAN)):
                if fine[i] != 0:
                    if found == most:
                        return found + 1
                    places[found] = uint32(i)
                    times[found] = int64(fine[i])
                    found += 1
    return found
