"""The folder of kept results: found by content key, written aside and renamed, the longest unused removed when room is needed.

    CACHEDIR.TAG             says that this is a cache, to backup programs and to plait
    lock                     held with flock while room is made or given; holds an upper bound of the bytes that are taken
    ab/ab34....result        an entry (engine/resultfile.py); its time of change is the time of its last use
    ab/.ab34....PID-N.partial    one that is being written, with flock held on it

Any number of processes use one folder at once. Guarantees: an entry is there whole or not at all, and is checked when it is used; a damaged
one counts as not there and is removed; the files together take no more than the size given, those being written included; nothing that is
wrong with the cache fails a merge. Not covered: entries are not flushed to disk (after a power cut the checksum finds what was lost), and who
may write to the folder can put wrong results there. Bytes are counted in pages of 4 KiB, as a disk has them.

The bound in `lock` is raised before a file is made and lowered after one is gone, so a run that is killed leaves it too high, never too low;
making room counts anew. There is no index: a damaged `lock` is counted anew, too.
"""

from __future__ import annotations

import fcntl
import itertools
import math
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from plait.engine.blockrun import Array
from plait.engine.events import CacheUse
from plait.engine.resultfile import Damaged, Entry, open_result, result_bytes, write_result
from plait.ops.errors import OutputError
from plait.planner.blocks import aligned

_TAG = "CACHEDIR.TAG"
_TAG_TEXT = "Signature: 8a477f597d28d172789f06886806bc55\n# Results that plait keeps between merges, format 1. Removing the folder is safe.\n"
_RESULT, _PARTIAL = ".result", ".partial"
_TOTAL = struct.Struct("<QQ")  # the bound, and its complement to know it by
#: When room is made, this part of the size is kept at most, so that it is not made again for the next entry.
_KEPT_SHARE = 0.9
_CLASSES, _TEN_YEARS_MS = 4096, 3.2e11  # of ages


class ResultCache:
    """A folder of results; every method may be called from any thread.

    Args:
        folder: is made where it is missing.
        limit: most bytes of all files together.
        make: make the folder where it is missing; False for one that is only looked into.

    Attributes:
        use: what was found and stored through this object.

    Raises:
        OutputError: the folder cannot be made, or holds something else.
    """

    def __init__(self, folder: Path, limit: int, *, make: bool = True) -> None:
        self.folder, self.limit, self.use = folder, limit, CacheUse()
        self._mutex = threading.Lock()
        self._number = itertools.count()
        prepare_folder(folder, make=make)

    # -- asking ---------------------------------------------------------------------------------
    def find(self, key: bytes, *, numbers: int | None = None, tensor_bytes: int = 0) -> Entry | None:
        """The entry of a key, open; None where there is none that is whole and has what is wanted.

        Args:
            key: content key.
            numbers: how many numbers it must have; None for any.
            tensor_bytes: bytes of its tensor.
        """
        path = self._path(key)
        try:
            entry = open_result(path, key)
            if entry is not None and (numbers not in (None, entry.numbers.size) or tensor_bytes != entry.tensor_bytes):
                entry.close()
                raise Damaged("it holds other values than its name says")
        except Damaged as error:
            self._drop(path, str(error))
            entry = None
        except OSError as error:
            self._note(f"{path} cannot be read ({error.strerror})")
            entry = None
        with self._mutex:
            self.use.hits += entry is not None
            self.use.misses += entry is None
        if entry is not None:
            entry.used()
        return entry

    def holds(self, key: bytes) -> bool:
        """Whether there is an entry of a key, for all that its head says; changes nothing."""
        try:
            entry = open_result(self._path(key), key, write=False)
        except (Damaged, OSError):
            return False
        if entry is not None:
            entry.close()
        return entry is not None

    def spoiled(self, entry: Entry, why: str, *, in_use: bool = False) -> None:
        """An entry that was found proved damaged: it goes, and counts as not found.

        Args:
            entry: which.
            why: what is wrong with it.
            in_use: other threads may be reading it; whoever found it closes it when they are done.
        """
        if not in_use:
            entry.close()
        self._drop(entry.path, why)
        with self._mutex:
            self.use.hits -= 1
            self.use.misses += 1

    def _drop(self, path: Path, why: str) -> None:
        with suppress(OSError):
            path.unlink()
            with self._mutex, locked(self.folder) as lock:
                forget_total(lock)  # its size may not be what was counted
        with self._mutex:
            self.use.damaged += 1
            self.use.trouble = self.use.trouble or f"{path.name}: {why}"

    def _note(self, trouble: str) -> None:
        with self._mutex:
            self.use.trouble = self.use.trouble or trouble

    # -- telling --------------------------------------------------------------------------------
    def store(self, key: bytes, op: str, numbers: Any, tensor: Array | None = None, seconds: float = 0.0) -> bool:
        """Keep a result, where there is room or can be; what fails is noted and changes nothing.

        Args:
            key: content key.
            op: name of the op, for those who look into the cache.
            numbers: its numbers.
            tensor: its tensor, contiguous.
            seconds: what it took to compute.
        """
        path = self._path(key)
        nbytes = result_bytes(len(numbers), 0 if tensor is None else tensor.nbytes)
        try:
            begun = None if path.exists() else self._begin(path, nbytes)
            if begun is None:
                return False
            fd, partial = begun
            try:
                write_result(fd, key, op, numbers, tensor, seconds)
                with self._mutex, locked(self.folder):  # whoever counts the files meanwhile could see it under neither name
                    partial.rename(path)
            except BaseException:
                with suppress(OSError):
                    partial.unlink()
                    self._release(nbytes)
                raise
            finally:
                os.close(fd)
        except OSError as error:
            self._note(f"{self.folder} takes no more results ({error.strerror or error})")
            return False
        with self._mutex:
            self.use.stored += 1
            self.use.stored_bytes += nbytes
        return True

    def _begin(self, path: Path, nbytes: int) -> tuple[int, Path] | None:
        """A file of so many bytes to write into, locked, and its name; None where there is no room for it."""
        taken = aligned(nbytes)
        if taken > self.limit:
            return None
        with self._mutex, locked(self.folder) as lock:
            total = _read_total(lock)
            if total is None or total + taken > self.limit:
                total = make_room(self.folder, min(self.limit - taken, int(self.limit * _KEPT_SHARE)))
            if total + taken > self.limit:
                _write_total(lock, total)
                return None
            _write_total(lock, total + taken)
            path.parent.mkdir(exist_ok=True, mode=0o700)
            partial = path.with_name(f".{path.stem}.{os.getpid()}-{next(self._number)}{_PARTIAL}")
            fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                os.ftruncate(fd, nbytes)  # whoever makes room meanwhile counts it whole
            except BaseException:
                os.close(fd)
                raise
            return fd, partial

    def _release(self, nbytes: int) -> None:
        with self._mutex, locked(self.folder) as lock:
            total = _read_total(lock)
            if total is not None:
                _write_total(lock, max(0, total - aligned(nbytes)))

    def _path(self, key: bytes) -> Path:
        name = key.hex()
        return self.folder / name[:2] / f"{name}{_RESULT}"


def prepare_folder(folder: Path, *, make: bool = True) -> None:
    """Make a cache folder, or see that it is one or can become one.

    Raises:
        OutputError: it cannot be made, or holds something else.
    """
    try:
        if make:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if is_cache(folder) or not (make or folder.exists()):
            return
        others = any(not name.startswith(_TAG) for name in os.listdir(folder))
        if others and not is_cache(folder):  # another process may have made it one since
            raise OutputError(f"{folder} is not empty and no cache of plait; give an empty or a new folder as --cache", path=str(folder))
        if not make:
            return
        partial = folder / f"{_TAG}.{os.getpid()}.{threading.get_ident()}{_PARTIAL}"
        partial.write_text(_TAG_TEXT)
        partial.replace(folder / _TAG)
    except OSError as error:
        raise OutputError(f"{folder} cannot be used as a cache ({error.strerror}); give another --cache", path=str(folder)) from error


def is_cache(folder: Path) -> bool:
    """Whether a folder is a cache of this version of plait."""
    try:
        return (folder / _TAG).read_text() == _TAG_TEXT
    except (OSError, UnicodeDecodeError):
        return False


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """The lock of a cache, held; gives its descriptor.

    Raises:
        OSError: it cannot be had, for example on a filesystem without locks.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _read_total(fd: int) -> int | None:
    found = os.pread(fd, _TOTAL.size + 1, 0)
    if len(found) != _TOTAL.size:
        return None
    total, complement = _TOTAL.unpack(found)
    return int(total) if total ^ complement == (1 << 64) - 1 else None


def _write_total(fd: int, total: int) -> None:
    os.pwrite(fd, _TOTAL.pack(total, total ^ ((1 << 64) - 1)), 0)


def forget_total(fd: int) -> None:
    """Whoever stores next counts what is taken."""
    os.ftruncate(fd, 0)


def files(folder: Path) -> Iterator[os.DirEntry[str]]:
    """Every file of a cache that holds a result or is to; others are left alone and not counted."""
    for first in _scan(folder):
        if len(first.name) == 2 and first.is_dir(follow_symlinks=False):
            yield from (e for e in _scan(first.path) if e.name.endswith((_RESULT, _PARTIAL)) and not e.is_dir(follow_symlinks=False))


def _scan(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            yield from found
    except FileNotFoundError:
        return


def make_room(folder: Path, limit: int) -> int:
    """Remove what killed runs left, and the entries longest unused until the rest takes at most `limit` bytes; gives what is taken. Needs the lock.

    Ages are sorted into a fixed number of classes, each half a percent wider than the one before: however many entries there are, this takes no
    memory to speak of.
    """
    now = time.time()
    classes, writing = [0] * (_CLASSES + 1), 0
    for file in files(folder):
        with suppress(FileNotFoundError):
            status = file.stat(follow_symlinks=False)
            if not file.name.endswith(_PARTIAL):
                classes[_class(now - status.st_mtime)] += aligned(status.st_size)
            elif not abandoned(file.path):
                writing += aligned(status.st_size)
    total = left = sum(classes) + writing
    oldest = _CLASSES + 1
    while left > limit and oldest:
        oldest -= 1
        left -= classes[oldest]
    if total <= limit:
        return total
    for file in files(folder):
        with suppress(FileNotFoundError):
            status = file.stat(follow_symlinks=False)
            age = _class(now - status.st_mtime)
            if file.name.endswith(_RESULT) and (age > oldest or (age == oldest and total > limit)):
                os.unlink(file.path)
                total -= aligned(status.st_size)
    return total


def _class(age_s: float) -> int:
    """Class of an age, from 0 for a millisecond to the last for ten years and more."""
    return min(_CLASSES, int(_CLASSES * math.log1p(max(0.0, age_s) * 1e3) / math.log1p(_TEN_YEARS_MS)))


def abandoned(path: str) -> bool:
    """Remove a file whose writer is gone; whether it was so. Needs the lock, under which writers make and lock theirs."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
