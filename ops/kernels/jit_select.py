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
from plait.ops.kernels.select import SCAN

_MAGNITUDE = np.uint32(0x7FFFFFFF)
_COARSE_SHIFT = np.uint32(16)
_SCAN = np.uint32(SCAN)
_GROUP = 16  #: values compared at once: one AVX-512 register, two of AVX2
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
def count_keys(x: Any, n: Any, low: Any, width: Any, heavy: Any, coarse: Any, fine: Any, used: Any) -> Any:
    """Count `x[:n]` for an order statistic, in one of two ways.

    Args:
        x: float32 values.
        n: how many of them, int64.
        low: int64; -1 counts the coarse digits, 0 or more is the first key of a window that is looked into, below -1 counts nothing.
        width: int64, keys of the window; the last of them is below 2^31.
        heavy: int64; place in the window of a key that most elements there are thought to have, or -1. It decides the speed, not the counts.
        coarse: int64 `[32768]`, added to when `low` is -1.
        fine: int32 `[at least width]`, how often each key of the window occurs, added to.
        used: uint8 `[a byte for every SCAN of fine]`, 1 where any of these counters was added to.

    Returns:
        How many elements lie above the window (int64), 0 without one.
    """
    if low < -1:
        return int64(0)
    if low == -1:
        for i in range(uint64(n)):
            coarse[(f32_to_bits(x[i]) & _MAGNITUDE) >> _COARSE_SHIFT] += 1
        return int64(0)
    return _count_window(x, uint64(n), uint32(low), uint32(width - 1), heavy, fine, used)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def _count_window(x: Any, n: Any, low: Any, last: Any, heavy: Any, fine: Any, used: Any) -> Any:
    """Comparisons count what lies above the window and the heavy key in it; only what lies beside that one is looked at singly."""
    # keys are below 2^31, so they compare as signed numbers, and none equals -1
    bottom, top = int32(low), int32(low + last)
    value = int32(low + uint32(heavy)) if heavy >= 0 else int32(-1)
    above, equal = int64(0), int64(0)
    whole = n // uint64(_GROUP) * uint64(_GROUP)
    for first in range(uint64(0), whole, uint64(_GROUP)):
        higher, inside, same = _compare(x, first, top, bottom, value)
        above += _ones(higher)
        equal += _ones(same)
        beside = uint32(inside & ~(higher | same))
        while beside != uint32(0):
            i = first + _lowest(beside)
            place = (f32_to_bits(x[i]) & _MAGNITUDE) - low
            fine[place] += 1
            used[place // _SCAN] = 1
            beside = uint32(beside & (beside - uint32(1)))
    for i in range(whole, n):
        key = f32_to_bits(x[i]) & _MAGNITUDE
        above += int64(key > low + last)
        if key - low <= last:
            fine[key - low] += 1
            used[(key - low) // _SCAN] = 1
    if heavy >= 0:
        fine[heavy] += int32(equal)
        used[uint64(heavy) // _SCAN] = 1
    return above


@njit(nogil=True, boundscheck=False, error_model="numpy")
def harvest(fine: Any, used: Any, places: Any, times: Any, most: Any) -> Any:
    """Gather the keys of a window that occur.

    Args:
        fine, used: as `count_keys` leaves them.
        places: uint32 `[most]`, their places in the window, ascending.
        times: int64 `[most]`, how often each occurs.
        most: int64.

    Returns:
        How many occur (int64); one more than `most` stands for any larger number.
    """
    found = int64(0)
    for group in range(uint64(used.size)):
        if used[group] != 0:
            for i in range(group * _SCAN, (group + uint64(1)) * _SCAN):
                if fine[i] != 0:
                    if found == most:
                        return found + 1
                    places[found] = uint32(i)
                    times[found] = int64(fine[i])
                    found += 1
    return found
