"""Counter-based random bits: a mask bit depends on (seed, purpose, model, tensor, draw, element), never on order.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011). One stream is one 128-bit key made by hashing what the
bits are for; element `o` of a tensor (flat, row-major, of the whole tensor) takes word `o % 4` of block
`o // 4`. Any range can be made again by itself, on any machine.

    counter word   c0            c1             c2          c3
                   block & mask  block >> 32    hash[2]     hash[3]       key = hash[0], hash[1]

This module is the reference; `jit_philox` has the fast kernel, with the same bits.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from plait.ops.kernels.select import Number, exact_fraction

#: key0, key1, c2, c3
StreamKey = tuple[int, int, int, int]

_MULTIPLIER0, _MULTIPLIER1 = 0xD2511F53, 0xCD9E8D57
_WEYL0, _WEYL1 = 0x9E3779B9, 0xBB67AE85
_MASK = 0xFFFFFFFF
_U32 = np.uint64(32)
_UMASK = np.uint64(_MASK)
_CHUNK_BLOCKS = 1 << 12  # 16 Ki elements: the temporaries stay in the cache


def stream_key(seed: int, purpose: str, label: str, tensor: str, draw: int = 0) -> StreamKey:
    """The key of one stream: BLAKE2b-128 over "mm-rng-v1" and the arguments, separated by zero bytes.

    Args:
        seed: the recipe's seed.
        purpose: what the bits are for (`dare`, `della`), so that methods do not share masks.
        label: the model as the recipe names it; never its position in a list.
        tensor: the tensor's name in the source model.
        draw: number of the draw, for ensembles.

    Returns:
        Four 32-bit words: key 0, key 1, and the upper two counter words.
    """
    parts = ("mm-rng-v1", str(seed), purpose, label, tensor, str(draw))
    digest = hashlib.blake2b(b"\0".join(p.encode() for p in parts), digest_size=16).digest()
    k0, k1, c2, c3 = (int.from_bytes(digest[i : i + 4], "little") for i in (0, 4, 8, 12))
    return k0, k1, c2, c3


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """One block of four words, in Python integers: the definition, for tests and single elements."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIER0, c2 * _MULTIPLIER1
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + _WEYL0) & _MASK, (k1 + _WEYL1) & _MASK
    return c0, c1, c2, c3


def random_u32(key: StreamKey, start: int, count: int) -> npt.NDArray[np.uint32]:
    """The random words of elements `start` to `start + count` of a stream.

    Args:
        key: from `stream_key`.
        start: first element offset, at least 0; need not be a multiple of 4.
        count: how many.

    Returns:
        uint32 `[count]`, uniform over all 2^32 values.
    """
    if start < 0 or count < 0:
        raise ValueError(f"element offset {start} and count {count} must not be negative")
    first, last = start // 4, -(-(start + count) // 4)
    words = np.empty((last - first, 4), np.uint32)
    for low in range(first, last, _CHUNK_BLOCKS):
        high = min(last, low + _CHUNK_BLOCKS)
        _fill_blocks(words[low - first : high - first], low, key)
    skip = start - 4 * first
    return words.reshape(-1)[skip : skip + count]


def _fill_blocks(out: npt.NDArray[np.uint32], first: int, key: StreamKey) -> None:
    """Philox blocks `first` onwards, one a row; 32-bit words are carried in 64 bits, so products do not wrap."""
    block = np.arange(first, first + len(out), dtype=np.uint64)
    k0, k1 = key[0], key[1]
    c0, c1 = block & _UMASK, block >> _U32
    c2, c3 = np.full_like(block, key[2]), np.full_like(block, key[3])
    for _ in range(10):
        p0, p1 = c0 * np.uint64(_MULTIPLIER0), c2 * np.uint64(_MULTIPLIER1)
        c0, c1 = (p1 >> _U32) ^ c1 ^ np.uint64(k0), p1 & _UMASK
        c2, c3 = (p0 >> _U32) ^ c3 ^ np.uint64(k1), p0 & _UMASK
        k0, k1 = (k0 + _WEYL0) & _MASK, (k1 + _WEYL1) & _MASK
    for lane, word in enumerate((c0, c1, c2, c3)):
        out[:, lane] = word


def threshold(density: Number) -> int:
    """The integer T such that `random word < T` keeps a fraction `density` of the elements.

    Computed exactly from the decimal text ("0.29" is 29/100, not the nearest binary float), rounded half to even.

    Returns:
        An integer from 0 to 2^32 inclusive: 33 bits, so compare in int64.

    Raises:
        ValueError: `density` is not a number from 0 to 1.
    """
    exact = exact_fraction(density)
    if not 0 <= exact <= 1:
        raise ValueError(f"density {density} is outside 0 to 1")
    return round(exact * 2**32)
