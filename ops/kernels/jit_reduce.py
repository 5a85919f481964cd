"""Sums by the fixed tree of `reduce`, over one block of float32 values.

The eight lanes are one LLVM vector of eight float64: each element is added to its own lane, in order, so
SIMD changes no bit. (LLVM may not make a vector of a plain float sum, since that would reorder it.) A
block may be accumulated in several calls, as long as all but the last are a multiple of 8 long; the
caller pads the last with zeros.
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import float32, float64, njit, types, uint32, uint64
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from plait.ops.kernels.jit_bits import bits_to_f32, f32_to_bits

_MAGNITUDE, _SIGN, _INFINITY = np.uint32(0x7FFFFFFF), np.uint32(0x80000000), np.uint32(0x7F800000)
_LEAST_KEY = np.uint32(0x007FFFFF)  # of -inf
_F32X8, _F64X8, _I32X8 = (ir.VectorType(t, 8) for t in (ir.FloatType(), ir.DoubleType(), ir.IntType(32)))


def _data(context: Any, b: ir.IRBuilder, kind: Any, array: ir.Value) -> ir.Value:
    return context.make_array(kind)(context, b, array).data


def _eight(b: ir.IRBuilder, pointer: ir.Value, group: ir.Value) -> ir.Value:
    """Elements 8 * group to 8 * group + 7 as float32."""
    start = b.gep(pointer, [b.mul(group, ir.Constant(group.type, 8))])
    return b.load(b.bitcast(start, _F32X8.as_pointer()), align=4)


def _magnitude(b: ir.IRBuilder, values: ir.Value) -> ir.Value:
    mask = ir.Constant(_I32X8, [0x7FFFFFFF] * 8)
    return b.bitcast(b.and_(b.bitcast(values, _I32X8), mask), _F32X8)


def _adder(term: Callable[[ir.IRBuilder, list[ir.Value]], ir.Value], operands: int) -> Callable[..., Any]:
    """Code for `acc += term(operands)` over groups of eight; arguments are acc, the operands and n."""

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointers = [_data(context, b, kind, value) for kind, value in zip(signature.args[: operands + 1], args[: operands + 1], strict=True)]
        home = b.bitcast(pointers[0], _F64X8.as_pointer())
        lanes = cgutils.alloca_once_value(b, b.load(home, align=8))
        groups = b.ashr(args[-1], ir.Constant(args[-1].type, 3))
        with cgutils.for_range(b, groups) as loop:
            values = [_eight(b, pointer, loop.index) for pointer in pointers[1:]]
            b.store(b.fadd(b.load(lanes), term(b, values)), lanes)
        b.store(b.load(lanes), home, align=8)
        return context.get_dummy_value()

    return codegen


def _signature(acc: Any, operands: tuple[Any, ...], n: Any) -> Any:
    """The typed call; strided arrays and other dtypes are refused, because the code reads eight neighbours at once."""
    wanted = (types.float64, *(types.float32 for _ in operands))
    for array, dtype in zip((acc, *operands), wanted, strict=True):
        if not (isinstance(array, types.Array) and array.ndim == 1 and array.layout == "C" and array.dtype == dtype):
            raise TypingError(f"a sum takes contiguous one-dimensional arrays, {wanted}; {array} is none")
    return types.void(acc, *operands, types.int64)


@intrinsic
def _add(typingctx: Any, acc: Any, x: Any, n: Any) -> Any:
    return _signature(acc, (x,), n), _adder(lambda b, v: b.fpext(v[0], _F64X8), 1)


@intrinsic
def _add_abs(typingctx: Any, acc: Any, x: Any, n: Any) -> Any:
    return _signature(acc, (x,), n), _adder(lambda b, v: b.fpext(_magnitude(b, v[0]), _F64X8), 1)


@intrinsic
def _add_product(typingctx: Any, acc: Any, x: Any, y: Any, n: Any) -> Any:
    return _signature(acc, (x, y), n), _adder(lambda b, v: b.fmul(b.fpext(v[0], _F64X8), b.fpext(v[1], _F64X8)), 2)


@njit(nogil=True)
def accumulate(acc: Any, x: Any, n: Any) -> None:
    """Add `x[:n]` to the lanes.

    Args:
        acc: float64 `[8]`, added to; begin with zeros.
        x: float32, contiguous.
        n: how many, int64, a multiple of 8 (a remainder is not read).
    """
    _add(acc, x, n)


@njit(nogil=True)
def accumulate_abs(acc: Any, x: Any, n: Any) -> None:
    """Add the magnitudes of `x[:n]` to the lanes; arguments as for `accumulate`."""
    _add_abs(acc, x, n)


@njit(nogil=True)
def accumulate_dot(acc: Any, x: Any, y: Any, n: Any) -> None:
    """Add the products of `x[:n]` and `y[:n]` to the lanes; arguments as for `accumulate`.

    A product of two float32 is exact in float64, so it makes no difference whether the processor fuses it with the sum.
    """
    _add_product(acc, x, y, n)


@cache
def sum_sweep(sums: tuple[tuple[int, ...], ...]) -> Any:
    """A function `(acc, x, n)` that adds up several sums and sums of products in one sweep, each operand converted to float64 once.

    Every sum has lanes of its own, added to in the order of the elements: the bits are those of `accumulate` and `accumulate_dot` called for one
    after the other, which waits for each sum before it begins the next addition to it and reads every operand again.

    Args:
        sums: for each the row of `acc` it is added to, and the rows of `x` that are its one or two operands.

    Returns:
        A function for compiled code: `acc` float64 `[rows, 8]`, `x` float32 `[rows, length]`, both contiguous, `n` a multiple of 8.
    """
    operands = sorted({row for _, *rows in sums for row in rows})

    @intrinsic
    def add(typingctx: Any, acc: Any, x: Any, n: Any) -> Any:
        for array, dtype in ((acc, types.float64), (x, types.float32)):
            if not (isinstance(array, types.Array) and array.ndim == 2 and array.layout == "C" and array.dtype == dtype):
                raise TypingError(f"a sweep takes contiguous arrays of rows, float64 and float32; {array} is neither")

        def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
            rows = context.make_array(signature.args[1])(context, b, args[1])
            length = cgutils.unpack_tuple(b, rows.shape)[1]
            homes = [b.gep(_data(context, b, signature.args[0], args[0]), [ir.Constant(ir.IntType(64), 8 * place)]) for place, *_ in sums]
            homes = [b.bitcast(home, _F64X8.as_pointer()) for home in homes]
            lanes = [cgutils.alloca_once_value(b, b.load(home, align=8)) for home in homes]
            pointers = {row: b.gep(rows.data, [b.mul(length, ir.Constant(length.type, row))]) for row in operands}
            kind = ir.FunctionType(_F64X8, [_F64X8] * 3)
            fused = cgutils.get_or_insert_function(b.module, kind, "llvm.fmuladd.v8f64")  # a product of two float32 is exact: fused or not, the same bits
            with cgutils.for_range(b, b.ashr(args[-1], ir.Constant(args[-1].type, 3))) as loop:
                wide = {row: b.fpext(_eight(b, pointer, loop.index), _F64X8) for row, pointer in pointers.items()}
                for (_, *factors), lane in zip(sums, lanes, strict=True):
                    value = wide[factors[0]]
                    b.store(b.call(fused, [value, wide[factors[1]], b.load(lane)]) if len(factors) > 1 else b.fadd(b.load(lane), value), lane)
            for home, lane in zip(homes, lanes, strict=True):
                b.store(b.load(lane), home, align=8)
            return context.get_dummy_value()

        return types.void(acc, x, types.int64), codegen

    @njit(nogil=True)
    def sweep(acc: Any, x: Any, n: Any) -> None:
        add(acc, x, n)

    return sweep


@njit(nogil=True, boundscheck=False, error_model="numpy")
def combine(acc: Any) -> Any:
    """The total of eight lanes, float64, in the fixed order."""
    return ((acc[0] + acc[4]) + (acc[2] + acc[6])) + ((acc[1] + acc[5]) + (acc[3] + acc[7]))


@njit(nogil=True, boundscheck=False, error_model="numpy")
def row_max(x: Any, n: Any) -> Any:
    """Largest magnitude of `x[:n]`, float32: 0 where n is 0, NaN where any is NaN. Any n.

    Taken over the bits: an integer maximum has no order to keep, and NaN lies above infinity.
    """
    top = uint32(0)
    for i in range(uint64(n)):
        top = max(top, uint32(f32_to_bits(x[i]) & _MAGNITUDE))
    return bits_to_f32(top)


@intrinsic
def _top_of_eights(typingctx: Any, x: Any, n: Any) -> Any:
    """Largest key of the whole groups of eight among `x[:n]`, as uint32; LLVM makes no vectors of the scalar loop."""

    def constant(value: Any) -> ir.Constant:
        return ir.Constant(_I32X8, [int(value)] * 8)

    def codegen(context: Any, b: ir.IRBuilder, signature: Any, args: Any) -> Any:
        pointer = _data(context, b, signature.args[0], args[0])
        lanes = cgutils.alloca_once_value(b, constant(_LEAST_KEY))
        with cgutils.for_range(b, b.ashr(args[1], ir.Constant(args[1].type, 3))) as loop:
            bits = b.bitcast(_eight(b, pointer, loop.index), _I32X8)
            turned = b.xor(bits, b.or_(b.ashr(bits, constant(31)), constant(_SIGN)))
            key = b.select(b.icmp_unsigned(">", b.and_(bits, constant(_MAGNITUDE)), constant(_INFINITY)), constant(0xFFFFFFFF), turned)
            top = b.load(lanes)
            b.store(b.select(b.icmp_unsigned(">", key, top), key, top), lanes)
        reduce = cgutils.get_or_insert_function(b.module, ir.FunctionType(ir.IntType(32), [_I32X8]), "llvm.vector.reduce.umax.v8i32")
        return b.call(reduce, [b.load(lanes)])

    if not (isinstance(x, types.Array) and x.ndim == 1 and x.layout == "C" and x.dtype == types.float32):
        raise TypingError(f"eight neighbours are read at once from a contiguous float32 array; {x} is none")
    return types.uint32(x, types.int64), codegen


@njit(nogil=True, boundscheck=False, error_model="numpy")
def row_largest(x: Any, n: Any) -> Any:
    """Largest of `x[:n]`, float32: -inf where n is 0, NaN where any is NaN, +0 for zeros of either sign. Any n.

    Taken over whole numbers that are in the order of the values, with every NaN above them.
    """
    top = uint32(_top_of_eights(x, n))
    for i in range(uint64(n) & ~uint64(7), uint64(n)):
        bits: Any = f32_to_bits(x[i])
        turned = uint32(~bits) if bits > _MAGNITUDE else uint32(bits | _SIGN)
        top = max(top, uint32(0xFFFFFFFF) if uint32(bits & _MAGNITUDE) > _INFINITY else turned)
    if top == uint32(0xFFFFFFFF):
        return bits_to_f32(uint32(0x7FC00000))
    return bits_to_f32(uint32(top & _MAGNITUDE) if top > _MAGNITUDE else uint32(~top)) + float32(0.0)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def accumulate_columns(columns: Any, x: Any, y: Any, first: Any, n: Any) -> None:
    """Add the products of `x[:n]` and `y[:n]` to `columns[first:first + n]`, float64: a row's part of the columns' inner products."""
    for i in range(uint64(n)):
        columns[uint64(first) + i] += float64(x[i]) * float64(y[i])


@njit(inline="always")
def larger(a: Any, b: Any) -> Any:
    """The larger of two float64; NaN where either is, as `row_max` has it."""
    b64 = float64(b)
    return a if (a > b64 or a != a) else b64
