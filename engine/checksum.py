"""Checksums of output bytes, cheap enough to be taken of everything that is written.

A cryptographic hash of every byte would cost more than a linear merge computes (BLAKE2b gives 0.6 to 1 GB/s a core). So a piece is folded
first: its 64-bit little-endian words are added, modulo 2^64, into 509 columns, word i into column i mod 509, at the speed of memory; BLAKE2b
then runs over the 509 sums, the bytes that fill no row, and the length. Any change of fewer than 64 bits in a row of a column shows, a torn or
misplaced sector or page shows (509 is prime to their sizes) but for one chance in 2^64 for each column it touches. It finds damage, it does
not withstand forgery. Pieces of at most 16 KiB go into BLAKE2b as they are. Compiled kernels add up what they store while it is in the
innermost cache: reading it once more took a tenth of a linear merge (docs/decisions/0007).

A tensor's checksum is BLAKE2b over the digests of its pieces in order, so workers, resumed runs and readers may take them in any order.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from hashlib import blake2b

import numpy as np

from plait.engine.blockrun import Array
from plait.planner.blocks import CHECKED_COLUMNS, COPY_PIECE

DIGEST_BYTES = 16
COLUMNS = CHECKED_COLUMNS
#: Longest piece that a tensor copied without decoding is summed in.
PIECE = COPY_PIECE
_ROW = 8 * COLUMNS
_SMALL = 1 << 14
_ROWS_AT_ONCE = 64


def digest(data: Array | bytes | memoryview) -> bytes:
    """The digest of one piece of contiguous bytes; leaves the GIL alone while it adds."""
    view = (data.data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")
    if view.nbytes <= _SMALL:
        return blake2b(view, digest_size=DIGEST_BYTES).digest()
    rows = view.nbytes // _ROW
    words = np.frombuffer(view, "<u8", rows * COLUMNS).reshape(rows, COLUMNS)
    return _ended(np.add.reduce(words, axis=0, dtype="<u8"), view)


def digest_of(sums: Array, data: Array) -> bytes:
    """The digest of a piece whose elements were added up when they were made.

    Args:
        sums: of the elements, taken as unsigned numbers, in as many columns as fit a row of words; of whole rows alone. `[2036]` of 16-bit or
            `[1018]` of 32-bit elements.
        data: the piece, contiguous.
    """
    view = data.data.cast("B")
    if view.nbytes <= _SMALL:
        return digest(view)
    parts = sums.reshape(COLUMNS, -1).astype("<u8")
    words, bits = parts[:, 0], 64 // parts.shape[1]
    for k in range(1, parts.shape[1]):
        words = words + (parts[:, k] << np.uint64(k * bits))
    return _ended(words, view)


def _ended(words: Array, view: memoryview) -> bytes:
    """The digest of the sums of a piece, the bytes of it that fill no row, and its length."""
    state = blake2b(words.tobytes(), digest_size=DIGEST_BYTES)
    state.update(view[view.nbytes // _ROW * _ROW :])
    state.update(view.nbytes.to_bytes(8, "little"))
    return state.digest()


def combined(digests: bytes) -> str:
    """The checksum of a tensor: hex of BLAKE2b over the digests of its pieces, in order."""
    return blake2b(digests, digest_size=DIGEST_BYTES).hexdigest()


class OwnDigests(threading.local):
    """`digests`: a `RangeDigest` for each thread, made once: fresh memory for each range would cost its first touch each time."""

    def __init__(self) -> None:
        """The calling thread's."""
        self.digests = RangeDigest()


class RangeDigest:
    """Digests of ranges that are read through one small buffer, for one thread at a time."""

    def __init__(self) -> None:
        """Take the buffer."""
        self._buffer = np.empty(_ROW * _ROWS_AT_ONCE, np.uint8)

    def of(self, read: Callable[[int, Array], None], offset: int, nbytes: int) -> bytes:
        """The digest of a range, the same as `digest` of its bytes.

        Args:
            read: fills a buffer with the bytes at an offset, or raises.
            offset, nbytes: the range.
        """
        if nbytes <= _SMALL:
            read(offset, self._buffer[:nbytes])
            return digest(self._buffer[:nbytes])
        sums = np.zeros(COLUMNS, "<u8")
        whole = nbytes // _ROW * _ROW
        for first in range(0, whole, self._buffer.size):
            part = self._buffer[: min(self._buffer.size, whole - first)]
            read(offset + first, part)
            sums += np.add.reduce(part.view("<u8").reshape(-1, COLUMNS), axis=0, dtype="<u8")
        tail = self._buffer[: nbytes - whole]
        if tail.size:
            read(offset + whole, tail)
        state = blake2b(sums.tobytes(), digest_size=DIGEST_BYTES)
        state.update(tail.data)
        state.update(nbytes.to_bytes(8, "little"))
        return state.digest()
