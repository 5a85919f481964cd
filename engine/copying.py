"""Copy bytes of an input file as they are: inside the kernel where it can, else through a buffer."""

from __future__ import annotations

import errno
import os

from plait.engine.blockrun import Array
from plait.engine.reader import read_some
from plait.ops.errors import CheckpointError

_COPY_BYTES = 32 << 20  # one copy_file_range cannot be interrupted: keep it short
# With an EIO the slow way tells which of the two files fails, and tries again where it is the source.
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY, errno.EIO}


def kernel_copy(fd: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> int:
    """Bytes copied by the kernel: all, or fewer where it cannot or the source ends.

    Raises:
        OSError: the disk is full or fails.
    """
    done = 0
    while done < nbytes and hasattr(os, "copy_file_range"):
        try:
            count = os.copy_file_range(source_fd, fd, min(_COPY_BYTES, nbytes - done), source_offset + done, offset + done)
        except OSError as error:
            if error.errno in _NO_KERNEL_COPY:
                break
            raise
        if not count:  # the end of the source, or a filesystem that pretends: the slow way tells which
            break
        done += count
    return done


def read_source(fd: int, offset: int, buffer: Array) -> None:
    """Fill a buffer from an open input file.

    Raises:
        CheckpointError: the input ends early or cannot be read.
    """
    done = 0
    while done < buffer.size:
        try:
            count = read_some(fd, buffer[done:].data, offset + done)
        except OSError as error:
            raise CheckpointError(f"{_name_of(fd)} cannot be read ({error.strerror}); check the disk", path=_name_of(fd)) from error
        if not count:
            why = f"ended early, at byte {offset + done}: it changed while being read"
            raise CheckpointError(f"{_name_of(fd)} {why}; put the whole file back and run again", path=_name_of(fd))
        done += count


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "an input file"
