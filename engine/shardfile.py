"""One output file under construction: whole pages go straight to the disk, the rest through the page cache.

Writing past the page cache costs a tenth of the processor time, leaves the cache to the inputs, and what is written need not be flushed
again (docs/decisions/0007). It wants memory and file offset to lie alike in their pages; callers that arrange this are fast, others work.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

PAGE = 4096  #: what memory, offset and length of a direct write are multiples of
#: Larger writes through the page cache were at times many times slower (docs/decisions/0005).
MAX_WRITE_BYTES = 1 << 18
_LEAST_DIRECT = 1 << 16  # below this the page cache is as good
_MOST_DIRECT = 8 << 20  # one write cannot be interrupted: keep it short
_NO_DIRECT = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class ShardFile:
    """A file of known size that any thread may write any range of, once.

    Args:
        path: of the file; must not exist, unless it is continued.
        size: bytes, allocated at once so that a full disk shows now.
        direct: write whole pages past the page cache, where the filesystem can.
        existing: go on with a file that is there.

    Raises:
        OSError: the file cannot be made, or the disk is too full.
    """

    def __init__(self, path: Path, size: int, *, direct: bool = True, existing: bool = False) -> None:
        how = os.O_NOFOLLOW if existing else os.O_CREAT | os.O_EXCL
        self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | how, 0o666)
        self._direct = -1
        try:
            _reserve(self.fd, size)
            if direct and size >= _LEAST_DIRECT and hasattr(os, "O_DIRECT"):
                try:
                    self._direct = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno not in _NO_DIRECT:
                        raise
        except BaseException:
            self.close()
            raise

    @property
    def direct(self) -> bool:
        """Whether whole pages go past the page cache."""
        return self._direct >= 0

    def write(self, view: memoryview, address: int, offset: int) -> None:
        """Write bytes at an offset; thread-safe.

        Args:
            view: contiguous bytes.
            address: where they lie in memory; where that is unknown, -1.
            offset: in the file.

        Raises:
            OSError: the disk is full or fails.
        """
        first = -offset % PAGE
        last = first + (view.nbytes - first) // PAGE * PAGE
        if self._direct < 0 or address < 0 or (address - offset) % PAGE or last - first < _LEAST_DIRECT:
            self._buffered(view, offset)
            return
        self._buffered(view[:first], offset)
        done = self._past_cache(view[first:last], offset + first)
        self._buffered(view[first + done :], offset + first + done)

    def sync(self) -> None:
        """Make everything durable."""
        os.fsync(self.fd)

    def sync_data(self) -> None:
        """Make the bytes written so far durable, and as much of the rest as finding them again takes."""
        os.fdatasync(self.fd)

    def close(self) -> None:
        """Close the file; harmless when called again."""
        for fd in (self.fd, self._direct):
            if fd >= 0:
                os.close(fd)
        self.fd = self._direct = -1

    def _past_cache(self, view: memoryview, offset: int) -> int:
        """Bytes written directly: all, or fewer where the filesystem will not."""
        done = 0
        while done < view.nbytes:
            try:
                done += os.pwrite(self._direct, view[done : done + _MOST_DIRECT], offset + done)
            except OSError as error:
                if error.errno not in _NO_DIRECT:
                    raise
                break
            if done % PAGE:  # a short write, as before a full disk: the slow way tells why
                break
        return done

    def _buffered(self, view: memoryview, offset: int) -> None:
        done = 0
        while done < view.nbytes:
            done += os.pwrite(self.fd, view[done : done + MAX_WRITE_BYTES], offset + done)


def _reserve(fd: int, size: int) -> None:
    """Allocate a file's blocks, so that a full disk shows now; only set its size where the filesystem cannot."""
    # Not os.posix_fallocate: where the filesystem cannot allocate, glibc writes every block instead.
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is not None:
        fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
        while fallocate(fd, 0, 0, size):
            number = ctypes.get_errno()
            if number in _NO_FALLOCATE:
                break
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        else:
            return
    os.ftruncate(fd, size)
