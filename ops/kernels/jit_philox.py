"""Philox4x32-10 at the speed of the multiplier: the same words as `philox.random_u32`, written into a caller's buffer.

Most words come from `_group`, written in LLVM's own vectors: LLVM's vectoriser makes one block's ten rounds a single chain, in which
most of a processor's units wait for the last product. Here several blocks side by side go through a round together, the high halves of
products are taken by a shuffle, which another unit does than the multiplications, and what the first two rounds have in common for all
blocks is computed once: 0.38 ns a word instead of 0.51 (AVX-512).
"""

# numba shows mypy an intrinsic as its typing function, with one argument more
# mypy: disable-error-code="call-arg,operator,no-untyped-call,var-annotated"

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import njit, types, uint32, uint64
from numba.core.errors import TypingError
from numba.extending import intrinsic

_M0, _M1 = 0xD2511F53, 0xCD9E8D57  # Python integers, for the generated code; the NumPy ones are for numba's
_MULTIPLIER0, _MULTIPLIER1 = np.uint64(_M0), np.uint64(_M1)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_WEYL0, _WEYL1 = np.uint64(_W0), np.uint64(_W1)
_MASK = np.uint64(0xFFFFFFFF)
_32, _2_32 = np.uint64(32), np.uint64(1 << 32)

_LANES = 8  #: blocks of a vector: each has 64 bits, one product of two words
#: Vectors that go through a round together: as many as there are registers for.
_VECTORS = 4 if binding.get_host_cpu_features().get("avx512f") else 1
_GROUP = _LANES * _VECTORS  #: blocks that `_group` makes at once
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_BLOCKS, _WORDS = ir.VectorType(_I64, _LANES), ir.VectorType(_I32, 2 * _LANES)


class _Vectors:
    """Writes the operations of a group into a function: on lists of vectors, one block in each lane of 64 bits."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def every(self, scalar: Any) -> Any:
        """A vector of one value."""
        none = ir.Constant(_BLOCKS, ir.Undefined)
        return self.b.shuffle_vector(self.b.insert_element(none, scalar, ir.Constant(_I32, 0)), none, self._places([0] * _LANES))

    def low(self, value: Any) -> Any:
        """The low word of every lane, or of a scalar."""
        kind = value.type
        return self.b.and_(value, ir.Constant(kind, [0xFFFFFFFF] * _LANES if kind == _BLOCKS else 0xFFFFFFFF))

    def times(self, value: Any, multiplier: int) -> Any:
        """Products of the low words, all 64 bits of them."""
        kind = value.type
        return self.b.mul(self.low(value), ir.Constant(kind, [multiplier] * _LANES if kind == _BLOCKS else multiplier))

    def high(self, product: Any) -> Any:
        """The high word of every lane in its low place; what the high place holds is never looked at."""
        return self._shuffled(product, [i | 1 for i in range(2 * _LANES)])

    def turned(self, product: Any) -> Any:
        """The two words of every lane in each other's place."""
        return self._shuffled(product, [i ^ 1 for i in range(2 * _LANES)])

    def _shuffled(self, value: Any, places: list[int]) -> Any:
        words = self.b.bitcast(value, _WORDS)
        return self.b.bitcast(self.b.shuffle_vector(words, ir.Constant(_WORDS, ir.Undefined), self._places(places)), _BLOCKS)

    def xor(self, *values: Any) -> Any:
        """Of any number of vectors."""
        result = values[0]
        for value in values[1:]:
            result = self.b.xor(result, value)
        return result

    def _places(self, places: list[int]) -> Any:
        return ir.Constant(ir.VectorType(_I32, len(places)), places)

    def store(self, first: Any, second: Any, home: Any, at: int) -> None:
        """Write blocks whose words 0 and 1 are the lanes of one vector, words 2 and 3 of the other."""
        for half in range(2):
            pairs = [lane for i in range(_LANES // 2) for lane in (half * _LANES // 2 + i, _LANES + half * _LANES // 2 + i)]
            words = self.b.bitcast(self.b.shuffle_vector(first, second, self._places(pairs)), _WORDS)
            self.b.store(words, self.b.gep(home, [ir.Constant(_I32, at + half)]), align=4)


@intrinsic
def _group(typingctx: Any, dst: Any, at: Any, block: Any, k0: Any, k1: Any, c2: Any, c3: Any) -> Any:
    """Write the words of blocks `block` to `block + _GROUP` to `dst[at:]`; the first word of their counters must not overflow."""
    if not (isinstance(dst, types.Array) and dst.ndim == 1 and dst.layout == "C" and dst.dtype == types.uint32):
        raise TypingError(f"random words are written to contiguous uint32, not to {dst}")

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        array, at, block, k0, k1, c2, c3 = args
        home = b.bitcast(b.gep(context.make_array(signature.args[0])(context, b, array).data, [at]), _WORDS.as_pointer())
        v = _Vectors(b)
        keys = [tuple(v.low(b.add(key, ir.Constant(_I64, r * weyl & 0xFFFFFFFFFFFFFFFF))) for key, weyl in ((k0, _W0), (k1, _W1))) for r in range(10)]
        shift = ir.Constant(_I64, 32)
        # the first two rounds: c2 and c3 are the same for all blocks, then c0 and c1 are
        product = v.times(c2, _M1)
        same0, same1 = v.xor(b.lshr(product, shift), b.lshr(block, shift), keys[0][0]), v.low(product)
        blocks = [b.add(v.every(block), ir.Constant(_BLOCKS, list(range(g * _LANES, (g + 1) * _LANES)))) for g in range(_VECTORS)]
        x3 = [v.times(x, _M0) for x in blocks]
        x2 = [v.xor(v.high(p), v.every(v.xor(c3, keys[0][1]))) for p in x3]
        product = v.times(same0, _M0)
        x1 = [v.times(x, _M1) for x in x2]
        x0 = [v.xor(v.high(p), v.every(v.xor(same1, keys[1][0]))) for p in x1]
        x2 = [v.xor(x, v.every(v.xor(b.lshr(product, shift), keys[1][1]))) for x in x3]
        x3 = [v.every(v.low(product))] * _VECTORS
        for key0, key1 in keys[2:-1]:
            first, second = [v.times(x, _M0) for x in x0], [v.times(x, _M1) for x in x2]
            x0, x2 = (
                [v.xor(v.high(p), x, v.every(key0)) for p, x in zip(second, x1, strict=True)],
                [v.xor(v.high(p), x, v.every(key1)) for p, x in zip(first, x3, strict=True)],
            )
            x1, x3 = second, first
        # the last round: the low half of a product is the word after that which its high half goes into
        key0, key1 = keys[-1]
        for g in range(_VECTORS):
            words01 = v.xor(v.turned(v.times(x2[g], _M1)), v.low(v.xor(x1[g], v.every(key0))))
            words23 = v.xor(v.turned(v.times(x0[g], _M0)), v.low(v.xor(x3[g], v.every(key1))))
            v.store(words01, words23, home, 2 * g)
        return context.get_dummy_value()

    return types.void(dst, *[types.uint64] * 6), codegen


@intrinsic
def with_wide_vectors(typingctx: Any) -> Any:
    """Let LLVM use the widest vectors for the loops of the function that calls this, as `_group` does.

    Its own choice on AVX-512 is half of their width, for the sake of the clock frequency; with random words or exponentials in the loop, a
    tenth to a fifth slower.
    """

    def codegen(context: Any, b: Any, signature: Any, args: Any) -> Any:
        # llvmlite knows the attributes without a value alone, and `add` takes no others; a set of text is what it writes out
        set.add(b.function.attributes, '"prefer-vector-width"="512"')
        return context.get_dummy_value()

    return types.void(), codegen


@njit(inline="always")  # inlined before LLVM sees it: else the loop over blocks stays scalar, four times slower
def philox_block(block: Any, k0: Any, k1: Any, c2: Any, c3: Any) -> Any:
    """The four words of one block, as uint64 below 2^32; all arguments are uint64, words below 2^32.

    Words are carried in 64-bit lanes: a product of two 32-bit words is then one SIMD multiply (`vpmuludq`),
    and its halves need no shuffles.
    """
    c0, c1 = block & _MASK, block >> _32
    for r in range(10):
        p0, p1 = c0 * _MULTIPLIER0, c2 * _MULTIPLIER1
        w0, w1 = (k0 + uint64(r) * _WEYL0) & _MASK, (k1 + uint64(r) * _WEYL1) & _MASK
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ w0, p1 & _MASK, (p0 >> _32) ^ c3 ^ w1, p0 & _MASK
    return c0, c1, c2, c3


@njit(nogil=True, boundscheck=False, error_model="numpy")
def philox_fill(dst: Any, start: Any, count: Any, k0: Any, k1: Any, c2: Any, c3: Any) -> None:
    """Write the random words of elements `start` to `start + count` to `dst[:count]`.

    Args:
        dst: uint32 buffer of at least `count` elements.
        start: first element offset in the tensor, int64, at least 0, of any alignment.
        count: how many, int64.
        k0, k1, c2, c3: the stream's key, from `philox.stream_key`.
    """
    key0, key1, word2, word3 = uint64(k0) & _MASK, uint64(k1) & _MASK, uint64(c2) & _MASK, uint64(c3) & _MASK
    head = min(count, -start & 3)
    for i in range(head):
        dst[i] = _word(uint64(start + i), key0, key1, word2, word3)
    blocks = (count - head) >> 2
    first = uint64((start + head) >> 2)
    groups = uint64(blocks) // uint64(_GROUP) if (first & _MASK) + uint64(blocks) <= _2_32 else uint64(0)
    for g in range(groups):
        _group(dst, uint64(head) + uint64(4 * _GROUP) * g, first + uint64(_GROUP) * g, key0, key1, word2, word3)
    for b in range(groups * uint64(_GROUP), uint64(blocks)):  # unsigned indices: numba adds no wrap-around test, and the loop becomes SIMD
        a0, a1, a2, a3 = philox_block(first + b, key0, key1, word2, word3)
        i = uint64(head) + uint64(4) * b
        dst[i] = uint32(a0)
        dst[i + uint64(1)] = uint32(a1)
        dst[i + uint64(2)] = uint32(a2)
        dst[i + uint64(3)] = uint32(a3)
    for i in range(head + 4 * blocks, count):
        dst[i] = _word(uint64(start + i), key0, key1, word2, word3)


@njit(boundscheck=False)
def _word(offset: Any, k0: Any, k1: Any, c2: Any, c3: Any) -> Any:
    a0, a1, a2, a3 = philox_block(offset >> uint64(2), k0, k1, c2, c3)
    lane = offset & uint64(3)
    if lane == 0:
        return uint32(a0)
    if lane == 1:
        return uint32(a1)
    return uint32(a2) if lane == 2 else uint32(a3)
