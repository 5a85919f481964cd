"""Maps and the folds over them in one loop of vectors: nothing between the stored bits and the sums is written to memory.

For stages that only fold, without rows. Each step takes sixteen elements of every input, computes the maps on vectors of float32, and adds
the first and then the second eight to lanes of eight float64. The bits are those of the same maps and of `jit_reduce.sum_sweep`. A last step of
fewer elements adds zeros, and counts and compares only what is there.
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call"

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import float32, njit, types, uint32
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from plait.ops.kernels.jit_bits import bits_to_f32, converts_half, load_f16_integer

_F32, _F64, _I1, _I16, _I32, _I64 = ir.FloatType(), ir.DoubleType(), *(ir.IntType(n) for n in (1, 16, 32, 64))
_WIDTH = 16  #: elements of a step
_F32S, _I1S, _I16S, _I32S = (ir.VectorType(t, _WIDTH) for t in (_F32, _I1, _I16, _I32))
_F64X8, _I64X8 = ir.VectorType(_F64, 8), ir.VectorType(_I64, 8)
_LEAST_KEY, _MAGNITUDE, _SIGN, _INFINITY = 0x007FFFFF, 0x7FFFFFFF, 0x80000000, 0x7F800000
least_key = np.uint32(_LEAST_KEY)  #: of which a search for the largest element begins
_COMPARE = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "eq": "=="}


class Folds(NamedTuple):
    """What a loop computes. Values are numbered, loads first; an operand below 0 is number -1 - it of the scalars.

    Attributes:
        loads: storage code of each input.
        maps: op, with its operands.
        sums: row of the accumulators, with one or two values.
        counts: masks of which the elements that hold are counted.
        tops: values of which the largest is wanted.
        checked: inputs whose largest magnitude is wanted.
    """

    loads: tuple[str, ...]
    maps: tuple[tuple[Any, ...], ...]
    sums: tuple[tuple[int, ...], ...]
    counts: tuple[int, ...]
    tops: tuple[int, ...]
    checked: tuple[int, ...]


def _i32(value: int) -> ir.Constant:
    return ir.Constant(_I32S, [value] * _WIDTH)


def _splat(b: ir.IRBuilder, value: ir.Value, kind: ir.VectorType) -> ir.Value:
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(_I32, 0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), _i32(0))


class _Loop:
    """Writes the body of the loop.

    Args:
        context: Numba's.
        b: where to write.
        folds: what to compute.
        scalars: of the maps, as vectors.
        acc, found: where the lanes of the sums and the other results are.
    """

    def __init__(self, context: Any, b: ir.IRBuilder, folds: Folds, scalars: dict[int, ir.Value], acc: ir.Value, found: ir.Value) -> None:
        self.context, self.b, self.folds, self.scalars = context, b, folds, scalars
        places = range(len(folds.counts) + len(folds.tops) + len(folds.checked))
        self.sums = [b.bitcast(b.gep(acc, [ir.Constant(_I64, 8 * row)]), _F64X8.as_pointer()) for row, *_ in folds.sums]
        self.results = [b.gep(found, [ir.Constant(_I64, place)]) for place in places]
        self.lanes = [cgutils.alloca_once_value(b, b.load(home, align=8)) for home in self.sums]
        numbers = [b.load(home) for home in self.results]
        counts, tops = len(folds.counts), len(folds.counts) + len(folds.tops)
        self.counters = [cgutils.alloca_once_value(b, number) for number in numbers[:counts]]
        self.tops = [cgutils.alloca_once_value(b, _splat(b, number, _I32S)) for number in numbers[counts:tops]]
        self.peaks = [cgutils.alloca_once_value(b, _splat(b, number, _I32S)) for number in numbers[tops:]]

    def step(self, raw: Sequence[ir.Value], mask: ir.Value | None) -> None:
        """Sixteen elements: bits of each input, and which of them are there (None: all)."""
        b, folds = self.b, self.folds
        values = [self._load(bits, storage) for bits, storage in zip(raw, folds.loads, strict=True)]
        for op, *operands in folds.maps:
            values.append(self._map(op, [values[o] if o >= 0 else self.scalars[o] for o in operands]))
        zeros = ir.Constant(_F32S, [0.0] * _WIDTH)
        magnitude = ir.Constant(_I64X8, [(1 << 63) - 1] * 8)
        wide: dict[int, list[ir.Value]] = {}
        for v in sorted({v for _, *factors in folds.sums for v in factors}):
            inner = folds.maps[v - len(folds.loads)][1] if self._is_magnitude(v) else -1
            if inner in wide:  # the magnitude of what is wide already
                wide[v] = [b.bitcast(b.and_(b.bitcast(half, _I64X8), magnitude), _F64X8) for half in wide[inner]]
                continue
            there = self._float(values[v])
            wide[v] = self._halves(there if mask is None else b.select(mask, there, zeros))
        fused = cgutils.get_or_insert_function(b.module, ir.FunctionType(_F64X8, [_F64X8] * 3), "llvm.fmuladd.v8f64")  # exact products
        for (_, *factors), lane in zip(folds.sums, self.lanes, strict=True):
            for half in range(2):
                first = wide[factors[0]][half]
                added = b.call(fused, [first, wide[factors[1]][half], b.load(lane)]) if len(factors) > 1 else b.fadd(b.load(lane), first)
                b.store(added, lane)
        popcount = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I16, [_I16]), "llvm.ctpop.i16")
        for v, counter in zip(folds.counts, self.counters, strict=True):
            held = values[v] if mask is None else b.and_(values[v], mask)
            ones = b.call(popcount, [b.bitcast(held, _I16)])  # on a port that vectors leave free
            b.store(b.add(b.load(counter), b.zext(ones, _I32)), counter)
        for v, top in zip(folds.tops, self.tops, strict=True):
            key = self._key(self._float(values[v]), self._is_magnitude(v))
            self._larger(top, key if mask is None else b.select(mask, key, _i32(_LEAST_KEY)))
        for k, peak in zip(folds.checked, self.peaks, strict=True):
            bits = raw[k] if folds.loads[k] == "F32" else b.zext(raw[k], _I32S)  # those that are not there are zero
            self._larger(peak, b.and_(bits, _i32(_MAGNITUDE if folds.loads[k] == "F32" else 0x7FFF)))

    def _halves(self, value: ir.Value) -> list[ir.Value]:
        """The first and the second eight elements in float64: lanes take one after the other."""
        places = [ir.Constant(ir.VectorType(_I32, 8), list(range(first, first + 8))) for first in (0, 8)]
        return [self.b.fpext(self.b.shuffle_vector(value, ir.Constant(_F32S, ir.Undefined), p), _F64X8) for p in places]

    def _larger(self, home: ir.Value, key: ir.Value) -> None:
        top = self.b.load(home)
        self.b.store(self.b.select(self.b.icmp_unsigned(">", key, top), key, top), home)

    def _load(self, bits: ir.Value, storage: str) -> ir.Value:
        b = self.b
        if storage == "F32":
            return b.bitcast(bits, _F32S)
        if storage == "BF16":
            return b.bitcast(b.shl(b.zext(bits, _I32S), _i32(16)), _F32S)
        if converts_half(self.context):
            return b.fpext(b.bitcast(bits, ir.VectorType(ir.HalfType(), _WIDTH)), _F32S)
        found = ir.Constant(_F32S, ir.Undefined)
        for lane in range(_WIDTH):
            place = ir.Constant(_I32, lane)
            found = b.insert_element(found, load_f16_integer(b, b.extract_element(bits, place)), place)
        return found

    def _float(self, value: ir.Value) -> ir.Value:
        """A value as float32; a mask as 1 and 0."""
        if value.type == _F32S:
            return value
        return self.b.select(value, ir.Constant(_F32S, [1.0] * _WIDTH), ir.Constant(_F32S, [0.0] * _WIDTH))

    def _is_magnitude(self, v: int) -> bool:
        return v >= len(self.folds.loads) and self.folds.maps[v - len(self.folds.loads)][0] == "abs"

    def _key(self, value: ir.Value, magnitude: bool) -> ir.Value:
        """Whole numbers in the order of the values, with every NaN above that of infinity; as in `jit_reduce.row_largest`."""
        b, bits = self.b, self.b.bitcast(value, _I32S)
        if magnitude:
            return b.or_(bits, _i32(_SIGN))
        turned = b.xor(bits, b.or_(b.ashr(bits, _i32(31)), _i32(_SIGN)))
        return b.select(b.icmp_unsigned(">", b.and_(bits, _i32(_MAGNITUDE)), _i32(_INFINITY)), _i32(0xFFFFFFFF), turned)

    def _map(self, op: str, operands: list[ir.Value]) -> ir.Value:
        b = self.b
        if op in ("and", "or"):
            return (b.and_ if op == "and" else b.or_)(*operands)
        if op == "not":
            return b.xor(operands[0], ir.Constant(_I1S, [1] * _WIDTH))
        if op == "where":
            return b.select(operands[0], self._float(operands[1]), self._float(operands[2]))
        floats = [self._float(o) for o in operands]
        if op in _COMPARE:
            return b.fcmp_ordered(_COMPARE[op], *floats)
        if op == "ne":
            return b.fcmp_unordered("!=", *floats)
        if op in ("neg", "abs"):
            bits = b.bitcast(floats[0], _I32S)
            return b.bitcast(b.xor(bits, _i32(_SIGN)) if op == "neg" else b.and_(bits, _i32(_MAGNITUDE)), _F32S)
        return {"add": b.fadd, "sub": b.fsub, "mul": b.fmul, "div": b.fdiv}[op](*floats)


@cache
def fold_sweep(folds: Folds) -> Any:
    """A function `(acc, found, s, inputs, n)` for compiled code, which goes on from what `acc` and `found` hold: pieces may follow one another.

    `acc` float64 `[rows, 8]` holds the lanes of the sums, `found` uint32 first the counts, then the keys of the largest elements
    (`largest_of_key`; they begin with `least_key`), then the largest magnitudes of inputs as bits. `s` holds the scalars in float64,
    `inputs` is a tuple of arrays of bits.
    """

    @intrinsic
    def sweep(typingctx: Any, acc: Any, found: Any, s: Any, inputs: Any, n: Any) -> Any:
        for array, dtype, ndim in ((acc, types.float64, 2), (found, types.uint32, 1), (s, types.float64, 1)):
            if not (isinstance(array, types.Array) and array.ndim == ndim and array.layout == "C" and array.dtype == dtype):
                raise TypingError(f"folds go to and take contiguous arrays; {array} is none")
        return types.void(acc, found, s, inputs, types.int64), lambda context, b, signature, args: _write(context, b, signature, args, folds)

    @njit(nogil=True)
    def call(acc: Any, found: Any, s: Any, inputs: Any, n: Any) -> None:
        sweep(acc, found, s, inputs, n)

    return call


def _write(context: Any, b: ir.IRBuilder, signature: Any, args: Any, folds: Folds) -> Any:
    def data(kind: Any, value: ir.Value) -> ir.Value:
        return context.make_array(kind)(context, b, value).data

    count = args[4]
    kinds = [_I32S if storage == "F32" else _I16S for storage in folds.loads]
    pointers = [data(kind, value) for kind, value in zip(signature.args[3], cgutils.unpack_tuple(b, args[3]), strict=True)]
    pointers = [b.bitcast(p, kind.as_pointer()) for p, kind in zip(pointers, kinds, strict=True)]
    numbers = data(signature.args[2], args[2])
    used = sorted({o for _, *operands in folds.maps for o in operands if o < 0})
    scalars = {o: _splat(b, b.fptrunc(b.load(b.gep(numbers, [ir.Constant(_I64, -1 - o)])), _F32), _F32S) for o in used}
    loop = _Loop(context, b, folds, scalars, data(signature.args[0], args[0]), data(signature.args[1], args[1]))
    groups = b.ashr(count, ir.Constant(count.type, 4))
    with cgutils.for_range(b, groups) as steps:
        loop.step([b.load(b.gep(p, [steps.index]), align=kind.element.width // 8) for p, kind in zip(pointers, kinds, strict=True)], None)
    rest = b.and_(count, ir.Constant(count.type, _WIDTH - 1))
    with b.if_then(b.icmp_signed(">", rest, ir.Constant(rest.type, 0))):
        lanes = ir.Constant(_I32S, list(range(_WIDTH)))
        mask = b.icmp_signed("<", lanes, _splat(b, b.trunc(rest, _I32), _I32S))
        loop.step([_partial(b, p, kind, groups, rest) for p, kind in zip(pointers, kinds, strict=True)], mask)
    _store(b, loop)
    return context.get_dummy_value()


def _partial(b: ir.IRBuilder, pointer: ir.Value, kind: ir.VectorType, groups: ir.Value, rest: ir.Value) -> ir.Value:
    """The last elements, fewer than a step takes, with zeros behind; nothing beyond them is read."""
    home = cgutils.alloca_once_value(b, ir.Constant(kind, [0] * _WIDTH))
    b.store(ir.Constant(kind, [0] * _WIDTH), home)
    source = b.bitcast(b.gep(pointer, [groups]), kind.element.as_pointer())
    target = b.bitcast(home, kind.element.as_pointer())
    with cgutils.for_range(b, rest) as steps:
        b.store(b.load(b.gep(source, [steps.index])), b.gep(target, [steps.index]))
    return b.load(home)


def _store(b: ir.IRBuilder, loop: _Loop) -> None:
    for home, lane in zip(loop.sums, loop.lanes, strict=True):
        b.store(b.load(lane), home, align=8)
    greatest = cgutils.get_or_insert_function(b.module, ir.FunctionType(_I32, [_I32S]), "llvm.vector.reduce.umax.v16i32")
    results = [*(b.load(home) for home in loop.counters), *(b.call(greatest, [b.load(home)]) for home in (*loop.tops, *loop.peaks))]
    for home, result in zip(loop.results, results, strict=True):
        b.store(result, home)


@njit(nogil=True, boundscheck=False, error_model="numpy")
def largest_of_key(top: Any) -> Any:
    """The float32 that a key means: NaN above that of infinity, +0 for zeros of either sign."""
    if top > uint32(_INFINITY | _SIGN):
        return bits_to_f32(uint32(0x7FC00000))
    return bits_to_f32(uint32(top & np.uint32(_MAGNITUDE)) if top > np.uint32(_MAGNITUDE) else uint32(~top)) + float32(0.0)
