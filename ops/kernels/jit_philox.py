"""Philox4x32-10 at memory speed: the same words as `philox.random_u32`, written into a caller's buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, uint32, uint64

_MULTIPLIER0, _MULTIPLIER1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL0, _WEYL1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_MASK = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)


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
    for b in range(uint64(blocks)):  # unsigned indices: numba adds no wrap-around test, and the loop becomes SIMD
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
