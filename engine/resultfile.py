"""One kept result as a file: a head that says what it is and proves it, numbers, and perhaps a tensor.

    0    magic, 8 bytes
    8    how often it was used; not part of the proof, so that it can be counted up in place (which also marks the time of use)
    16   content key, op, time of creation, seconds it took, count of numbers, bytes of the tensor, digest of the tensor
    112  digest of all that, and of the numbers
    128  numbers, float64; then the tensor, as the engine holds it

All little-endian. A file that is cut short, damaged or of another kind is told from a good one before any of it is used, but for the
tensor, whose digest is compared when it is read.
"""

from __future__ import annotations

import os
import struct
import time
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.checksum import RangeDigest, digest
from plait.planner.reuse import KEY_BYTES

MAGIC = b"plait-r1"
_HEAD = struct.Struct("<8sQ16s32sddQQ16s")
_HITS = struct.Struct("<Q")
_DIGEST_BYTES = 16
HEAD_BYTES = _HEAD.size + _DIGEST_BYTES
#: More numbers than any result has: a statistic of the whole model has two for each of its tensors.
MAX_NUMBERS = 1 << 20
_MOST_PER_CALL = 1 << 30


class Damaged(Exception):
    """A file of the cache is not the result that its name says; the message says why."""


@dataclass(slots=True)
class Entry:
    """A result that was found; its file stays open, so that nobody can take it away.

    Attributes:
        path, fd: of the file.
        nbytes: of the file.
        op, created, seconds, hits: what its head says.
        numbers: its numbers, float64.
        tensor_bytes: of its tensor, 0 where it has none.
    """

    path: Path
    fd: int
    nbytes: int
    op: str
    created: float
    seconds: float
    hits: int
    numbers: Any
    tensor_bytes: int
    _digest: bytes

    def read(self, out: Array) -> None:
        """Fill an array with the tensor.

        Raises:
            Damaged: it is not what was stored; `out` holds whatever was read.
        """
        view = out.data.cast("B")
        if view.nbytes != self.tensor_bytes:
            raise Damaged(f"it holds a tensor of {self.tensor_bytes} bytes, not {view.nbytes}")
        _fill(self.fd, view, self.tensor_at)
        if digest(out) != self._digest:
            raise Damaged("its tensor does not match its checksum")

    @property
    def tensor_at(self) -> int:
        """Where in the file its tensor begins."""
        return HEAD_BYTES + 8 * int(self.numbers.size)

    def read_part(self, first: int, out: Array) -> None:
        """Fill an array with the bytes of the tensor from byte `first` on, whose digest was compared before (`check_tensor`).

        Raises:
            Damaged: the file ends early.
        """
        _fill(self.fd, out.data.cast("B"), self.tensor_at + first)

    def used(self) -> None:
        """Count a use, and mark its time; where the file may not be written, nothing."""
        with suppress(OSError):
            os.pwrite(self.fd, _HITS.pack(self.hits + 1), len(MAGIC))

    def close(self) -> None:
        """Let go of the file; harmless when called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_result(path: Path, key: bytes, *, write: bool = True) -> Entry | None:
    """The result of a file, or None where there is no such file.

    Args:
        path: of the file.
        key: that it must have; empty for any.
        write: open it to be marked as used, where that is allowed.

    Raises:
        Damaged: the file is something else.
        OSError: it cannot be read.
    """
    fd = _open(path, write=write)
    if fd is None:
        return None
    try:
        return _parse(path, fd, key)
    except BaseException:
        os.close(fd)
        raise


def _open(path: Path, *, write: bool) -> int | None:
    flags = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if write:
            with suppress(PermissionError):
                return os.open(path, os.O_RDWR | flags)
        return os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        if path.is_symlink() or path.is_dir():
            raise Damaged("it is no plain file") from error
        raise


def _parse(path: Path, fd: int, key: bytes) -> Entry:
    nbytes = os.fstat(fd).st_size
    head = os.pread(fd, HEAD_BYTES, 0)
    if len(head) < HEAD_BYTES:
        raise Damaged("it is cut short")
    magic, hits, its_key, op, created, seconds, count, tensor_bytes, tensor_digest = _HEAD.unpack_from(head)
    if magic != MAGIC:
        raise Damaged("it is no result of this version of plait")
    if count > MAX_NUMBERS or HEAD_BYTES + 8 * count + tensor_bytes != nbytes:
        raise Damaged("its size is not what its head says")
    numbers = np.empty(count, "<f8")
    _fill(fd, numbers.data.cast("B"), HEAD_BYTES)
    if head[_HEAD.size :] != _proof(head, numbers):
        raise Damaged("its head does not match its checksum")
    if key and its_key != key:
        raise Damaged("it is another result than its name says")
    return Entry(path, fd, nbytes, op.rstrip(b"\0").decode("utf-8", "replace"), created, seconds, hits, numbers, tensor_bytes, tensor_digest)


def _proof(head: bytes, numbers: Any) -> bytes:
    state = blake2b(head[: len(MAGIC)] + head[len(MAGIC) + _HITS.size : _HEAD.size], digest_size=_DIGEST_BYTES)
    state.update(numbers.tobytes())
    return state.digest()


def _fill(fd: int, view: memoryview, offset: int) -> None:
    done = 0
    while done < view.nbytes:
        count = os.preadv(fd, [view[done : done + _MOST_PER_CALL]], offset + done)
        if not count:
            raise Damaged("it ended early")
        done += count


def result_bytes(numbers: int, tensor_bytes: int) -> int:
    """Size of the file of a result."""
    return HEAD_BYTES + 8 * numbers + tensor_bytes


def write_result(fd: int, key: bytes, op: str, numbers: Any, tensor: Array | None, seconds: float) -> None:
    """Write a result into an empty file; the tensor is written from where it lies.

    Raises:
        OSError: the file cannot take it.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a content key has {KEY_BYTES} bytes, not {len(key)}")
    values = np.asarray(numbers, "<f8").reshape(-1)
    nbytes = 0 if tensor is None else tensor.nbytes
    proof = bytes(_DIGEST_BYTES) if tensor is None else digest(tensor)
    head = _HEAD.pack(MAGIC, 0, key, op.encode()[:32], time.time(), seconds, values.size, nbytes, proof)
    _write(fd, memoryview(head + _proof(head, values) + values.tobytes()))
    if tensor is not None:
        _write(fd, tensor.data.cast("B"))


def _write(fd: int, view: memoryview) -> None:
    done = 0
    while done < view.nbytes:
        done += os.write(fd, view[done : done + _MOST_PER_CALL])


def check_tensor(entry: Entry, digests: RangeDigest | None = None) -> None:
    """Compare a tensor with its digest, a part of it in memory at a time.

    Args:
        entry: with the tensor.
        digests: whose buffer is used; one is made where there is none.

    Raises:
        Damaged: it differs.
    """
    if entry.tensor_bytes and (digests or RangeDigest()).of(entry.read_part, 0, entry.tensor_bytes) != entry._digest:
        raise Damaged("its tensor does not match its checksum")
