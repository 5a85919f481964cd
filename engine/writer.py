"""Write output tensors straight to their final offsets in pre-sized shard files.

All offsets are known from the layout, so blocks arrive from any thread in any order, no shard is
held in memory, and a disk that is too small is found before anything is computed.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from plait.engine.publish import (
    DestinationLock,
    check_destination,
    finish_folder,
    output_error,
    output_errors,
    place_folder,
    remove_working,
    working_folder,
)
from plait.engine.shardfile import MAX_WRITE_BYTES, ShardFile
from plait.ops.errors import CheckpointError, OutputError
from plait.planner.layout import INDEX_NAME, index_json
from plait.planner.safetensors_header import size_text
from plait.planner.types import Layout, SideFile

_COPY_BYTES = 32 << 20  # one copy_file_range cannot be interrupted: keep it short
_NO_KERNEL_COPY = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.ETXTBSY}


class Sink(Protocol):
    """Takes the bytes of an output.

    `begin` once, then `write` and `copy` from any thread, then, when all of those have returned,
    `publish` or `abandon`.
    The sink owns what it opens; the data it is given stays the caller's and is not kept after the call.
    """

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors taken so far."""

    def begin(self) -> None:
        """Get ready, or raise OutputError before anything is computed."""

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray) -> None:
        """Take bytes for an absolute offset of a shard's file."""

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> None:
        """Take bytes straight from an input file."""

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Make the whole output visible."""

    def abandon(self) -> None:
        """Leave nothing behind; harmless after `publish`."""


class OutputFolder:
    """A checkpoint folder that appears whole or not at all; a context manager that abandons on error.

    Args:
        destination: folder to make; must not exist, or be empty.
        layout: of the files.
        inputs: folders and files of the input models, which the destination must not touch.
    """

    def __init__(self, destination: Path, layout: Layout, inputs: Sequence[str] = ()) -> None:
        """Touch nothing yet."""
        self.destination = Path(os.path.realpath(Path(destination).expanduser()))
        self.working = working_folder(self.destination)
        self._layout = layout
        self._inputs = tuple(inputs)
        self._lock = DestinationLock(self.destination)
        self._count_lock = threading.Lock()
        self._bytes_written = 0
        self._files: list[ShardFile] = []
        self._made_parents: list[Path] = []
        self._removable = False
        self._published = False

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors written so far, without headers."""
        return self._bytes_written

    def begin(self) -> None:
        """Check the destination, lock it, reserve the disk space and write the headers.

        Raises:
            OutputError: the destination cannot take the result; nothing is left behind.
        """
        check_destination(self.destination, self._inputs)
        try:
            self._make_parents()
            self._lock.acquire()
            check_destination(self.destination, self._inputs)  # another run may have ended meanwhile
            remove_working(self.working)
            with output_errors(self.working, "create the working folder"):
                os.mkdir(self.working)
            self._removable = True
            self._check_space()
            for number, shard in enumerate(self._layout.shards):
                self._create(self._partial(number), shard.size, shard.header)
        except BaseException:
            self.abandon()
            raise

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray) -> None:
        """Write contiguous bytes at an absolute offset of a shard's file; thread-safe.

        Raises:
            OutputError: the disk is full or fails.
        """
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        if not view.nbytes:
            return
        self._check_range(shard, offset, view.nbytes)
        self._write(shard, view.cast("B"), offset, data.__array_interface__["data"][0] if isinstance(data, np.ndarray) else -1)
        self._count(view.nbytes)

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> None:
        """Copy bytes of an input file inside the kernel where it can, else through a buffer of 1 MiB; thread-safe.

        Raises:
            CheckpointError: the input ends early or cannot be read.
            OutputError: the disk is full or fails.
        """
        if not nbytes:
            return
        self._check_range(shard, offset, nbytes)
        done = self._kernel_copy(shard, offset, source_fd, source_offset, nbytes)
        while done < nbytes:
            try:
                part = os.pread(source_fd, min(MAX_WRITE_BYTES, nbytes - done), source_offset + done)
            except OSError as error:
                raise CheckpointError(f"{_name_of(source_fd)} cannot be read ({error.strerror}); check the disk", path=_name_of(source_fd)) from error
            if not part:
                why = f"ended early, at byte {source_offset + done}: it changed while being read"
                raise CheckpointError(f"{_name_of(source_fd)} {why}; put the whole file back and run again", path=_name_of(source_fd))
            self._write(shard, memoryview(part), offset + done)
            done += len(part)
        self._count(nbytes)

    def publish(self, extra_side_files: Sequence[SideFile] = ()) -> None:
        """Make everything durable, then visible under the destination's name in one rename.

        Args:
            extra_side_files: small files beside those of the layout; they replace those of the same name.

        Raises:
            OutputError: a step failed. If only the last one did, the whole result is kept where the message says.
        """
        layout = self._layout
        expected = sum(place.nbytes for place in layout.places.values())
        if self._bytes_written < expected:
            why = f"only {self._bytes_written} of {expected} bytes were written: the run is not finished"
            raise OutputError(f"{self.destination}: {why}; run it again", path=str(self.destination))
        for number, file in enumerate(self._files):
            with output_errors(self.working / self._partial(number), "flush the data to disk"):
                file.sync()
        index = SideFile(INDEX_NAME, content=index_json(layout)) if len(layout.shards) > 1 else None
        names = {self._partial(number): shard.name for number, shard in enumerate(layout.shards)}
        finish_folder(self.working, names, (*layout.side_files, *extra_side_files), index)
        self._removable = False
        place_folder(self.working, self.destination)
        self._published = True
        self.abandon()

    def abandon(self) -> None:
        """Close the files, remove the working folder and free the lock; harmless when called again."""
        while self._files:
            self._files.pop().close()
        try:
            if self._removable:
                remove_working(self.working)
                self._removable = False
        finally:
            self._lock.release()
        if not self._published:
            for parent in reversed(self._made_parents):
                try:
                    parent.rmdir()
                except OSError:  # somebody else uses it by now, or the result is kept there
                    break
        self._made_parents.clear()

    def __enter__(self) -> OutputFolder:
        """Begin."""
        self.begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Abandon whatever was not published."""
        self.abandon()

    def _partial(self, number: int) -> str:
        return f"shard-{number + 1:05d}.partial"

    def _make_parents(self) -> None:
        missing: list[Path] = []
        folder = self.destination.parent
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for parent in reversed(missing):
            with output_errors(parent, "create this folder"):
                parent.mkdir(exist_ok=True)
            self._made_parents.append(parent)

    def _check_space(self) -> None:
        needed = sum(shard.size for shard in self._layout.shards)
        for side in self._layout.side_files:
            needed += len(side.content or b"") if side.source is None else os.stat(side.source).st_size if os.path.exists(side.source) else 0
        with output_errors(self.working, "ask for the free space"):
            disk = os.statvfs(self.working)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and needed > free:  # some filesystems report no sizes at all
            raise self._too_full(needed, free)

    def _too_full(self, needed: int, free: int) -> OutputError:
        figures = f"needs {size_text(needed)} ({needed} bytes), the disk has {size_text(free)} free ({free} bytes)"
        message = f"{self.destination}: the output {figures}; free some space or choose another folder"
        return OutputError(message, path=str(self.destination), needed=needed, free=free)

    def _create(self, name: str, size: int, header: bytes) -> None:
        path = self.working / name
        with output_errors(path, f"reserve {size} bytes"):
            self._files.append(ShardFile(path, size))
        self._write(len(self._files) - 1, memoryview(header), 0)

    def _check_range(self, shard: int, offset: int, nbytes: int) -> None:
        home = self._layout.shards[shard]
        if offset < len(home.header) or offset + nbytes > home.size:
            raise ValueError(f"bytes {offset} to {offset + nbytes} are not in the data of {home.name} ({len(home.header)} to {home.size})")

    def _write(self, shard: int, view: memoryview, offset: int, address: int = -1) -> None:
        try:
            self._files[shard].write(view, address, offset)
        except OSError as error:
            raise output_error(error, self.destination, f"write to {self._layout.shards[shard].name}") from error

    def _kernel_copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int) -> int:
        """Bytes copied by the kernel: all, or fewer where it cannot or the source ends."""
        done = 0
        while done < nbytes and hasattr(os, "copy_file_range"):
            try:
                count = os.copy_file_range(source_fd, self._files[shard].fd, min(_COPY_BYTES, nbytes - done), source_offset + done, offset + done)
            except OSError as error:
                if error.errno in _NO_KERNEL_COPY:
                    break
                raise output_error(error, self.destination, f"copy into {self._layout.shards[shard].name}") from error
            if not count:  # the end of the source, or a filesystem that pretends: the slow way tells which
                break
            done += count
        return done

    def _count(self, nbytes: int) -> None:
        with self._count_lock:
            self._bytes_written += nbytes


def _name_of(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return "an input file"
