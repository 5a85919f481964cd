"""Write output tensors straight to their final offsets in pre-sized shard files.

All offsets are known from the layout, so blocks arrive from any thread in any order, no shard is
held in memory, and a disk that is too small is found before anything is computed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.checksum import digest
from plait.engine.copying import kernel_copy, read_source
from plait.engine.journal import ENTRY, JOURNAL_NAME, Found
from plait.engine.manifest import MANIFEST_NAME, file_sum, manifest
from plait.engine.partial import Partial, partial_name
from plait.engine.publish import (
    DestinationLock,
    check_destination,
    drop_replaced,
    finish_folder,
    output_error,
    output_errors,
    place_folder,
    recover_old,
    remove_working,
    replace_folder,
    sync_folder,
    working_folder,
)
from plait.engine.shardfile import MAX_WRITE_BYTES, ShardFile
from plait.ops.errors import OutputError
from plait.planner.layout import INDEX_NAME, index_json
from plait.planner.safetensors_header import size_text
from plait.planner.types import Layout, SideFile

_ROW_BYTES = 160  # of a tensor in the manifest and the index, without its name
_ENTRY_EVERY = 1 << 20  # bytes of output for an entry of the journal


@dataclass(frozen=True, slots=True)
class Kept:
    """Finished work that a run leaves for the next one.

    Attributes:
        working: folder that holds it.
        nbytes: of tensors that are done.
        total: bytes of all tensors.
    """

    working: Path
    nbytes: int
    total: int


class OutputFolder:
    """A checkpoint folder that appears whole or not at all; a context manager that abandons on error.

    Args:
        destination: folder to make; must not exist, or be empty.
        layout: of the files.
        inputs: folders and files of the input models, which the destination must not touch.
        identity: says what is being made (`engine/identity.py`). With it finished work is kept when a run ends early, the next run of the same
            identity takes it up, and the output has a manifest.
        restart: drop what an earlier run left, whatever it was.
        overwrite: replace a checkpoint that is at the destination, once this one is whole.
    """

    def __init__(
        self,
        destination: Path,
        layout: Layout,
        inputs: Sequence[str] = (),
        *,
        identity: Callable[[], dict[str, Any]] | None = None,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
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
        self._restart, self._overwrite, self._identity = restart, overwrite, identity
        self._partial = Partial(self.working, self.destination, layout, identity) if identity is not None else None
        self._expected = sum(place.nbytes for place in layout.places.values())
        self.kept: Kept | None = None

    @property
    def found(self) -> Found:
        """What an earlier run made durable; it need not be written again."""
        return self._partial.found if self._partial is not None else Found()

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors written so far, without headers."""
        return self._bytes_written

    def begin(self) -> None:
        """Check the destination, lock it, reserve the disk space and write the headers.

        Raises:
            OutputError: the destination cannot take the result; nothing is left behind.
        """
        check_destination(self.destination, self._inputs, overwrite=self._overwrite)
        try:
            self._make_parents()
            self._lock.acquire()
            recover_old(self.destination)
            check_destination(self.destination, self._inputs, overwrite=self._overwrite)  # another run may have ended meanwhile
            if self._partial is None or not self._partial.take_up(self._restart):
                remove_working(self.working)
                with output_errors(self.working, "create the working folder"):
                    os.mkdir(self.working)
                self._removable = True
            self._check_space()
            for number, shard in enumerate(self._layout.shards):
                self._create(partial_name(number), shard.size, shard.header)
            if self._partial is not None:
                self._partial.start(self._files)
        except BaseException:
            self.abandon()
            raise

    def write(self, shard: int, offset: int, data: memoryview | bytes | np.ndarray, known: bytes = b"") -> None:
        """Write contiguous bytes at an absolute offset of a shard's file; thread-safe. `known` is their digest, where it was taken already.

        Raises:
            OutputError: the disk is full or fails.
        """
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        if not view.nbytes:
            return
        self._check_range(shard, offset, view.nbytes)
        view = view.cast("B")
        if self._partial is not None and not known:
            known = digest(view)  # now, while the processor's cache holds them
        self._write(shard, view, offset, data.__array_interface__["data"][0] if isinstance(data, np.ndarray) else -1)
        if self._partial is not None:
            self._partial.wrote(shard, offset, view.nbytes, known)
        self._count(view.nbytes)

    def past_cache(self, shard: int) -> bool:
        """Whether whole pages of a shard are written past the page cache."""
        return self._files[shard].direct

    def copy(self, shard: int, offset: int, source_fd: int, source_offset: int, nbytes: int, see: Callable[[Array], None] | None = None) -> None:
        """Copy bytes of an input file inside the kernel where it can, else through a buffer of 1 MiB; thread-safe.

        Raises:
            CheckpointError: the input ends early or cannot be read.
            OutputError: the disk is full or fails.
            PlaitError: `see` objects to what it sees; the bytes do not count as written then.
        """
        if not nbytes:
            return
        self._check_range(shard, offset, nbytes)
        try:
            done = kernel_copy(self._files[shard].fd, offset, source_fd, source_offset, nbytes)
        except OSError as error:
            raise output_error(error, self.destination, f"copy into {self._layout.shards[shard].name}") from error
        buffer = np.empty(MAX_WRITE_BYTES if done < nbytes else 0, np.uint8)
        while done < nbytes:
            part = buffer[: min(buffer.size, nbytes - done)]
            read_source(source_fd, source_offset + done, part)
            self._write(shard, part.data, offset + done)
            done += part.size
        if self._partial is not None:
            self._partial.copied(shard, offset, nbytes, partial(_read_and_show, source_fd, see), source_offset)
        elif see is not None:
            buffer = np.empty(min(MAX_WRITE_BYTES, nbytes), np.uint8)
            for first in range(0, nbytes, MAX_WRITE_BYTES):
                _read_and_show(source_fd, see, source_offset + first, buffer[: min(buffer.size, nbytes - first)])
        self._count(nbytes)

    def publish(self, extra_side_files: Iterable[SideFile] = (), facts: Mapping[str, Any] | None = None) -> None:
        """Make everything durable, then visible under the destination's name in one rename.

        Args:
            extra_side_files: small files beside those of the layout; they replace those of the same name. Asked for when the data is on the disk.
            facts: further entries of the manifest.

        Raises:
            OutputError: a step failed. If only the last one did, the whole result is kept where the message says.
        """
        layout = self._layout
        done = self._bytes_written + self.found.nbytes
        if done < self._expected:
            why = f"only {done} of {self._expected} bytes were written: the run is not finished"
            raise OutputError(f"{self.destination}: {why}; run it again", path=str(self.destination))
        try:
            for number, file in enumerate(self._files):
                with output_errors(self.working / partial_name(number), "flush the data to disk"):
                    file.sync()
        except OutputError as error:
            if self._partial is not None:
                self._partial.commits.give_up(error)
            raise
        if self._partial is not None:
            self._partial.settle()
        index = [SideFile(INDEX_NAME, content=index_json(layout))] if len(layout.shards) > 1 else []
        names = {partial_name(number): shard.name for number, shard in enumerate(layout.shards)}
        sides = list({side.name: side for side in (*layout.side_files, *extra_side_files)}.values())
        manifests = self._manifest([*sides, *index], facts or {}) if self._partial is not None else ()
        finish_folder(self.working, names, sides, chain(index, manifests))
        self._removable = False
        replaced = self._overwrite and self.destination.is_dir() and any(self.destination.iterdir())
        (replace_folder if replaced else place_folder)(self.working, self.destination)
        self._published = True
        try:
            self._make_sure(replaced)
        finally:
            self.abandon()

    def _make_sure(self, replaced: bool) -> None:
        """The output is in place: make its name durable, and only then remove what it replaced."""
        try:
            sync_folder(self.destination.parent)
        except OutputError as error:
            why = f"{self.destination} is in place and whole, but its name may not outlive a power failure ({error.message})"
            raise OutputError(f"{why}; check the disk, then `plait verify` it", path=str(self.destination)) from error
        if replaced:
            with suppress(OutputError):  # it is no part of the output, and `plait status` names it
                drop_replaced(self.working, self.destination)

    def _manifest(self, sides: Sequence[SideFile], facts: Mapping[str, Any]) -> Iterator[SideFile]:
        """The manifest, made when the files that it names lie in the folder."""
        assert self._partial is not None
        assert self._identity is not None
        sums = {side.name: file_sum(self.working / side.name) for side in sides}
        yield SideFile(MANIFEST_NAME, content=manifest(self._identity(), self._layout, self._partial.entries(), sums, facts))

    def abandon(self) -> None:
        """Close the files and free the lock; what is durable stays for the next run, else the working folder goes. Harmless when called again."""
        if self._partial is not None and not self._published and self._partial.stop() and self._lock.held:
            self._removable = False
            self.kept = Kept(self.working, self._partial.durable_bytes, self._expected)
            self._made_parents.clear()
        self._close()

    def discard(self) -> None:
        """Close the files, remove the working folder with whatever is in it, and free the lock."""
        if self._partial is not None:
            self._partial.stop()
        self._removable = self._lock.held and not self._published
        self._close()

    def _close(self) -> None:
        while self._files:
            self._files.pop().close()
        try:
            if self._removable:
                with suppress(OutputError):  # why the run ends is the news; the next one removes it, or says why it cannot
                    remove_working(self.working)
                self._removable = False
            if self._published:  # the journal has done its work, and is harmless where it cannot be removed
                with suppress(OSError):
                    (self.destination / JOURNAL_NAME).unlink()
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
            sync_folder(parent.parent)  # else a power loss may take the way to what is kept

    def _check_space(self) -> None:
        there = {p.name for p in self.working.iterdir()}
        needed = sum(shard.size for number, shard in enumerate(self._layout.shards) if partial_name(number) not in there)
        needed += self._bookkeeping()
        for side in self._layout.side_files:
            needed += len(side.content or b"") if side.source is None else os.stat(side.source).st_size if os.path.exists(side.source) else 0
        with output_errors(self.working, "ask for the free space"):
            disk = os.statvfs(self.working)
        free = disk.f_bavail * disk.f_frsize
        if disk.f_blocks and needed > free:  # some filesystems report no sizes at all
            raise self._too_full(needed, free)

    def _bookkeeping(self) -> int:
        """Roughly what index, journal and manifest take, where there are any."""
        rows = sum(len(name) + _ROW_BYTES for name in self._layout.places) if self._partial is not None else 0
        return rows + (self._expected // _ENTRY_EVERY * ENTRY.itemsize if self._partial is not None else 0)

    def _too_full(self, needed: int, free: int) -> OutputError:
        figures = f"needs {size_text(needed)} ({needed} bytes), the disk has {size_text(free)} free ({free} bytes)"
        message = f"{self.destination}: the output {figures}; free some space or choose another folder"
        return OutputError(message, path=str(self.destination), needed=needed, free=free)

    def _create(self, name: str, size: int, header: bytes) -> None:
        path = self.working / name
        with output_errors(path, f"reserve {size} bytes"):
            self._files.append(ShardFile(path, size, existing=path.exists()))
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

    def _count(self, nbytes: int) -> None:
        with self._count_lock:
            self._bytes_written += nbytes


def _read_and_show(source_fd: int, see: Callable[[Array], None] | None, offset: int, buffer: Array) -> None:
    """Fill a buffer from an input file, and show it."""
    read_source(source_fd, offset, buffer)
    if see is not None:
        see(buffer)
