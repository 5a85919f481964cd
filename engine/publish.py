"""Where an output grows and how it appears: all at once, whole, or not at all.

    out/                     the destination: absent (or an empty folder, or with --overwrite the old one) until the last step
    .out.plait-partial/      the working folder beside it, on the same filesystem
        shard-00001.partial      data files, under names that no loader takes for a checkpoint
        .plait-journal           what of them is on the disk for good (engine/journal.py)
    .out.plait-lock          held with flock while a run lasts; the kernel drops it when the run dies
    .out.plait-old           what is being replaced, where names cannot be exchanged

Publication: fsync of the data, side files, shards get their names, index last, fsync of the folder,
one rename onto the destination, fsync of its parent, and the journal goes. A kill at any instant leaves
the destination as it was or whole; what was finished is taken up by the next run.

An old destination is replaced by exchanging the two names in one step (`renameat2` with RENAME_EXCHANGE), after which the old one, now under the
working name, is removed.
Where the system or the filesystem cannot exchange, the old one is renamed aside and the new one put in its place: a kill between the two leaves
the destination absent and the old one whole under `.out.plait-old`, and the next run puts it back first.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from plait.ops.errors import CheckpointError, OutputError
from plait.planner.safetensors_header import open_regular
from plait.planner.types import SideFile

_LOCK_TRIES, _LOCK_WAIT_S = 3, 0.02
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_HINTS = {
    errno.ENOSPC: "free some space and run again",
    errno.EDQUOT: "your disk quota is used up: free some space and run again",
    errno.EROFS: "the filesystem is read-only: choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EFBIG: "the filesystem takes no files this large: use smaller shards or another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of the path is a file: choose another folder",
}


@contextmanager
def output_errors(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn an OSError into an OutputError that names the path, the failed step and what to do."""
    try:
        yield
    except OSError as error:
        raise output_error(error, path, doing) from error


def output_error(error: OSError, path: str | os.PathLike[str], doing: str) -> OutputError:
    """The OutputError for an OSError met while `doing` something to `path`."""
    hint = _HINTS.get(error.errno or 0, "check the disk and run again")
    return OutputError(f"{os.fspath(path)}: cannot {doing} ({error.strerror}); {hint}", path=os.fspath(path), errno=error.errno)


def working_folder(destination: Path) -> Path:
    """The hidden folder beside `destination` in which its output grows.

    Raises:
        OutputError: the destination is the root of all folders, which has nothing beside it.
    """
    if not destination.name:
        raise OutputError(f"{destination} is the root of all folders and cannot be replaced; give a new folder", path=str(destination))
    return destination.with_name(f".{destination.name}.plait-partial")


def old_folder(destination: Path) -> Path:
    """The hidden name beside `destination` under which what it replaces lies until it is removed."""
    return destination.with_name(f".{destination.name}.plait-old")


def check_destination(destination: Path, inputs: Sequence[str] = (), *, overwrite: bool = False) -> None:
    """Refuse a destination that holds something, is a mount point, or touches an input model.

    Args:
        destination: real absolute path.
        inputs: folders and files of the input models.
        overwrite: allow a destination that holds a checkpoint.

    Raises:
        OutputError: with the reason; nothing was created.
    """
    for text in inputs:
        model = Path(os.path.realpath(text))
        inside = model.is_dir() and destination.is_relative_to(model)
        if inside or model.is_relative_to(destination):
            how = "is" if destination == model else "lies inside" if inside else "contains"
            raise OutputError(f"{destination} {how} the input model {text}, which must not be written to; give a new folder", path=str(destination), input=text)
    if destination == Path.cwd() or is_mount_point(destination):
        raise OutputError(f"{destination} is the current folder or a mount point and cannot be replaced; give a new folder inside it", path=str(destination))
    with output_errors(destination, "use this as the output folder"):
        try:
            mode = os.lstat(destination).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{destination} exists and is not a folder; give a new folder", path=str(destination))
        names = os.listdir(destination)
    checkpoint = any(name.endswith(".safetensors") or name in ("config.json", "plait.json") for name in names)
    if names and not checkpoint:
        more = " (it holds no checkpoint, so --overwrite does not replace it)" if overwrite else ""
        raise OutputError(f"{destination} is not empty; give a new folder{more}", path=str(destination))
    if names and not overwrite:
        raise OutputError(f"{destination} is not empty; give a new folder, or --overwrite to replace the checkpoint there", path=str(destination))


def is_mount_point(folder: Path) -> bool:
    """Whether something is mounted on a folder: no rename can put another one there. A folder bound from the same filesystem counts too."""
    if os.path.ismount(folder):
        return True
    try:
        with open("/proc/self/mountinfo", "rb") as stream:
            places = {line.split(b" ", 5)[4] for line in stream}
    except (OSError, IndexError):  # another system than Linux
        return False
    escaped = re.sub(rb"[ \t\n\\]", lambda found: b"\\%03o" % found[0][0], os.fsencode(folder))
    return escaped in places


class DestinationLock:
    """An flock on a hidden file beside the destination: one run at a time, freed by the kernel when the run dies."""

    def __init__(self, destination: Path) -> None:
        """Name the lock; nothing is taken yet."""
        self._destination = destination
        self._path = destination.with_name(f".{destination.name}.plait-lock")
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise OutputError at once when another run has it."""
        tries = 0
        while self._fd is None:
            with output_errors(self._path, "create the lock file of the output"):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have removed the file between our open and our lock.
                if os.path.samestat(os.fstat(fd), os.lstat(self._path)):
                    self._fd = fd
            except BlockingIOError as error:
                tries += 1
                if tries < _LOCK_TRIES:  # `plait status` holds it for an instant to see whether anybody does
                    time.sleep(_LOCK_WAIT_S)
                    continue
                raise OutputError(f"another run is writing to {self._destination}; wait for it or give another folder", path=str(self._destination)) from error
            except FileNotFoundError:
                pass
            except OSError as error:
                raise output_error(error, self._path, "lock the output") from error
            finally:
                if self._fd is None:
                    os.close(fd)

    @property
    def held(self) -> bool:
        """Whether this run has it."""
        return self._fd is not None

    def release(self) -> None:
        """Remove and free the lock; harmless when it is not held."""
        if self._fd is not None:
            # Removed while still held: whoever opened it meanwhile sees that the name is gone and starts over.
            with suppress(OSError):  # a file that nobody holds locks nobody out
                self._path.unlink()
            os.close(self._fd)
            self._fd = None


def is_locked(destination: Path) -> bool:
    """Whether a run has the lock of a destination now."""
    try:
        fd = os.open(destination.with_name(f".{destination.name}.plait-lock"), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def remove_working(working: Path) -> None:
    """Remove a working folder, whoever left it; a link of that name is removed, not followed."""
    with output_errors(working, "remove what an earlier run left"):
        if working.is_symlink() or working.is_file():
            working.unlink()
        elif working.exists():
            shutil.rmtree(working)


def finish_folder(working: Path, shards: Mapping[str, str], side_files: Iterable[SideFile], last: Iterable[SideFile] = ()) -> None:
    """Make a working folder a whole checkpoint: side files, final shard names, index and manifest last, all on disk.

    Args:
        working: holds the data files, already fsynced.
        shards: partial name -> final name.
        side_files: small files; a later one replaces an earlier one of the same name.
        last: what says that the rest is there; made one after the other when the rest is.
    """
    written = {s.name: s for s in side_files}
    for side in written.values():
        _write_side(working, side)
    with output_errors(working, "name the shards"):
        for partial, final in shards.items():
            os.rename(working / partial, working / final)
    for side in last:
        _write_side(working, side)
    for folder in {working, *(working / Path(name).parent for name in written)}:
        sync_folder(folder)


def place_folder(working: Path, destination: Path) -> None:
    """The step that makes the output visible: one rename, which also replaces an empty folder, or an exchange with what is there."""
    try:
        if destination.is_dir() and any(destination.iterdir()):
            raise OSError(errno.ENOTEMPTY, "somebody has put something there meanwhile")
        os.rename(working, destination)
    except OSError as error:
        raise _not_placed(error, working, destination) from error


def replace_folder(working: Path, destination: Path) -> None:
    """Put the output in the place of the folder that is there, which `drop_replaced` removes."""
    old = old_folder(destination)
    try:
        if not exchange(working, destination):
            os.rename(destination, old)
            try:
                os.rename(working, destination)
            except OSError:
                os.rename(old, destination)
                raise
    except OSError as error:
        raise _not_placed(error, working, destination) from error


def drop_replaced(working: Path, destination: Path) -> None:
    """Remove the folder that was replaced, under the working name: under its own only a whole one may ever be found."""
    old = old_folder(destination)
    with output_errors(old, "remove the old output"):
        if os.path.lexists(old):
            remove_working(working)
            os.rename(old, working)
    remove_working(working)


def recover_old(destination: Path) -> None:
    """After a crash in the middle of a replacement: the old folder goes back where nothing has taken its place, and away where something has."""
    old = old_folder(destination)
    if os.path.lexists(old):
        if os.path.lexists(destination):
            drop_replaced(working_folder(destination), destination)
        else:
            with output_errors(old, "put the old output back"):
                os.rename(old, destination)


def exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; False where the system or the filesystem cannot.

    Raises:
        OSError: it can, and failed.
    """
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    rename.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number))


def _not_placed(error: OSError, working: Path, destination: Path) -> OutputError:
    why = f"{destination} could not be put in place ({error.strerror})"
    return OutputError(f"{why}; the whole result is in {working}: move it before running again", path=str(destination), kept=str(working))


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    with output_errors(folder, "flush the folder to disk"):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EBADF):  # some network filesystems cannot sync a folder
                raise
        finally:
            os.close(fd)


def _read_side(source: BinaryIO, name: str) -> bytes:
    try:
        return source.read(1 << 20)
    except OSError as error:
        raise CheckpointError(f"{name} cannot be read ({error.strerror}); check the disk, or copy the file again", path=name) from error


def _write_side(working: Path, side: SideFile) -> None:
    name = Path(side.name)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise OutputError(f"the side file {side.name!r} would lie outside the output folder; remove it from the model", path=side.name)
    target = working / name
    with output_errors(target, "write this file"):
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "wb") as stream:
            if side.source is not None:
                fd, _ = open_regular(side.source)
                with open(fd, "rb") as source:
                    while part := _read_side(source, side.source):
                        stream.write(part)
            else:
                stream.write(side.content or b"")
            stream.flush()
            os.fsync(stream.fileno())
