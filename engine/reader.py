"""Read byte ranges of input files: opened once, `pread` into the caller's buffers, nothing mapped.

A file that shrinks, vanishes or changes under a run gives an error here, never a signal (a mapped
file would) and never wrong bytes without a word: short reads stop at once, and `check_unchanged`
compares size and time of change when the run has read everything.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Iterable
from types import TracebackType

import numpy as np

from plait.engine.lanes import READING, Lanes
from plait.ops.errors import CheckpointError
from plait.planner.safetensors_header import READ_RETRIES_S, open_regular
from plait.planner.types import FileIdentity, TensorRef

_MOST_PER_CALL = 1 << 30  # below the 2 GiB at which Linux cuts a read short
_RETRIES_S = READ_RETRIES_S


class Reader:
    """Open input files and their byte counter; every method may be called from any thread.

    Args:
        drop_behind: the inputs do not fit into the page cache: what is done with leaves it, so that it does not push out what is to come.

    Attributes:
        lanes: of the run, in which the time of reading is counted.
    """

    def __init__(self, *, drop_behind: bool = False) -> None:
        """Open nothing yet."""
        self.lanes = Lanes()
        self._drop_behind = drop_behind and hasattr(os, "posix_fadvise")
        self._lock = threading.Lock()
        self._open: dict[str, int] = {}
        self._closed = False
        self._bytes_read = 0

    @property
    def bytes_read(self) -> int:
        """Bytes delivered so far."""
        return self._bytes_read

    def fd(self, file: str) -> int:
        """The file's descriptor, opened on first use; it stays the reader's to close.

        Raises:
            CheckpointError: the file is gone, unreadable or not a regular file.
        """
        fd = self._open.get(file)
        if fd is not None:
            return fd
        with self._lock:
            if self._closed:
                raise ValueError("the reader is closed")
            if file not in self._open:
                fd, _ = open_regular(file)
                if hasattr(os, "posix_fadvise"):
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                self._open[file] = fd
            return self._open[file]

    def read_into(self, file: str, offset: int, buffer: memoryview | bytearray | np.ndarray) -> None:
        """Fill a contiguous writable buffer with the bytes at `offset`, all of them.

        Raises:
            CheckpointError: the file ends before the buffer is full, or the disk fails.
        """
        view = buffer.data if isinstance(buffer, np.ndarray) else memoryview(buffer)
        if not view.nbytes:
            return
        lane = self.lanes.here()
        before = lane.switch(READING)
        try:
            done = self._fill(file, offset, view.cast("B"))
        finally:
            lane.switch(before)
        lane.read += done
        with self._lock:
            self._bytes_read += done

    def _fill(self, file: str, offset: int, view: memoryview) -> int:
        fd = self.fd(file)
        done = 0
        while done < view.nbytes:
            try:
                count = read_some(fd, view[done : done + _MOST_PER_CALL], offset + done)
            except OSError as error:
                why = f"could not be read at byte {offset + done} ({error.strerror})"
                raise CheckpointError(f"{file} {why}; check the disk, or copy the file again", path=file, offset=offset + done) from error
            if not count:
                why = f"ended early, at byte {offset + done}: it changed while being read"
                raise CheckpointError(f"{file} {why}; put the whole file back and run again", path=file, offset=offset + done)
            done += count
        return done

    def count(self, nbytes: int) -> None:
        """Bytes that a kernel has read itself."""
        self.lanes.here().read += nbytes
        with self._lock:
            self._bytes_read += nbytes

    def done_with(self, refs: Iterable[TensorRef]) -> None:
        """Tensors that will not be read again soon: with `drop_behind` the page cache lets go of them."""
        if self._drop_behind:
            for ref in refs:
                os.posix_fadvise(self.fd(ref.file), ref.start, ref.nbytes, os.POSIX_FADV_DONTNEED)

    def check_unchanged(self, identities: Iterable[FileIdentity]) -> None:
        """Compare each file with what the plan saw.

        Raises:
            CheckpointError: one was changed, replaced or removed; the message names what differs.
        """
        for identity in identities:
            try:
                status = os.stat(identity.path)
            except OSError as error:
                why = f"is gone ({error.strerror}) though the plan was made for it"
                raise CheckpointError(f"{identity.path} {why}; put it back and run again", path=identity.path) from error
            differs = []
            if status.st_size != identity.size:
                differs.append(f"size {identity.size} -> {status.st_size} bytes")
            if status.st_mtime_ns != identity.mtime_ns:
                differs.append(f"time of change {identity.mtime_ns} -> {status.st_mtime_ns} ns")
            fd = self._open.get(identity.path)
            if not differs and fd is not None and not os.path.samestat(os.fstat(fd), status):
                differs.append("another file under the same name")
            if differs:
                why = f"changed since the plan was made ({', '.join(differs)})"
                raise CheckpointError(f"{identity.path} {why}; run again", path=identity.path, differs=tuple(differs))

    def close(self) -> None:
        """Close every file; harmless when called again."""
        with self._lock:
            self._closed = True
            for fd in self._open.values():
                os.close(fd)
            self._open.clear()

    def __enter__(self) -> Reader:
        """The reader itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close the files."""
        self.close()


def read_some(fd: int, view: memoryview, offset: int) -> int:
    """`os.preadv`, tried again a few times when the disk reports an error."""
    for wait_s in _RETRIES_S:
        try:
            return os.preadv(fd, [view], offset)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
        time.sleep(wait_s)
    return os.preadv(fd, [view], offset)
