"""Where an output grows and how it appears: all at once, whole, or not at all.

    out/                     the destination: absent (or an empty folder) until the last step
    .out.plait-partial/      the working folder beside it, on the same filesystem
        shard-00001.partial      data files, under names that no loader takes for a checkpoint
    .out.plait-lock          held with flock while a run lasts; the kernel drops it when the run dies

Publication: fsync of the data, side files, shards get their names, index last, fsync of the folder,
one rename onto the destination, fsync of its parent. A kill at any instant leaves the destination
as it was or whole; what a killed run left beside it is removed by the next run.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from plait.ops.errors import OutputError
from plait.planner.safetensors_header import open_regular
from plait.planner.types import SideFile

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
    """The hidden folder beside `destination` in which its output grows."""
    return destination.with_name(f".{destination.name}.plait-partial")


def check_destination(destination: Path, inputs: Sequence[str] = ()) -> None:
    """Refuse a destination that holds something, is a mount point, or touches an input model.

    Args:
        destination: real absolute path.
        inputs: folders and files of the input models.

    Raises:
        OutputError: with the reason; nothing was created.
    """
    for text in inputs:
        model = Path(os.path.realpath(text))
        inside = model.is_dir() and destination.is_relative_to(model)
        if inside or model.is_relative_to(destination):
            how = "is" if destination == model else "lies inside" if inside else "contains"
            raise OutputError(f"{destination} {how} the input model {text}, which must not be written to; give a new folder", path=str(destination), input=text)
    if destination == Path.cwd() or os.path.ismount(destination):
        raise OutputError(f"{destination} is the current folder or a mount point and cannot be replaced; give a new folder inside it", path=str(destination))
    with output_errors(destination, "use this as the output folder"):
        try:
            mode = os.lstat(destination).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            raise OutputError(f"{destination} exists and is not a folder; give a new folder", path=str(destination))
        with os.scandir(destination) as entries:
            if next(entries, None) is not None:
                raise OutputError(f"{destination} is not empty; give a new folder", path=str(destination))


class DestinationLock:
    """An flock on a hidden file beside the destination: one run at a time, freed by the kernel when the run dies."""

    def __init__(self, destination: Path) -> None:
        """Name the lock; nothing is taken yet."""
        self._destination = destination
        self._path = destination.with_name(f".{destination.name}.plait-lock")
        self._fd: int | None = None

    def acquire(self) -> None:
        """Take the lock or raise OutputError at once when another run has it."""
        while self._fd is None:
            with output_errors(self._path, "create the lock file of the output"):
                fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The holder before us may have removed the file between our open and our lock.
                if os.path.samestat(os.fstat(fd), os.lstat(self._path)):
                    self._fd = fd
            except BlockingIOError as error:
                raise OutputError(f"another run is writing to {self._destination}; wait for it or give another folder", path=str(self._destination)) from error
            except FileNotFoundError:
                pass
            except OSError as error:
                raise output_error(error, self._path, "lock the output") from error
            finally:
                if self._fd is None:
                    os.close(fd)

    def release(self) -> None:
        """Remove and free the lock; harmless when it is not held."""
        if self._fd is not None:
            # Removed while still held: whoever opened it meanwhile sees that the name is gone and starts over.
            self._path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = None


def remove_working(working: Path) -> None:
    """Remove a working folder, whoever left it; a link of that name is removed, not followed."""
    with output_errors(working, "remove what an earlier run left"):
        if working.is_symlink() or working.is_file():
            working.unlink()
        elif working.exists():
            shutil.rmtree(working)


def finish_folder(working: Path, shards: Mapping[str, str], side_files: Sequence[SideFile], index: SideFile | None) -> None:
    """Make a working folder a whole checkpoint: side files, final shard names, index last, all on disk.

    Args:
        working: holds the data files, already fsynced.
        shards: partial name -> final name.
        side_files: small files; a later one replaces an earlier one of the same name.
        index: the index of the shards, where there are several.
    """
    for side in {s.name: s for s in side_files}.values():
        _write_side(working, side)
    with output_errors(working, "name the shards"):
        for partial, final in shards.items():
            os.rename(working / partial, working / final)
    if index is not None:
        _write_side(working, index)
    for folder in {working, *(working / Path(s.name).parent for s in side_files)}:
        sync_folder(folder)


def place_folder(working: Path, destination: Path) -> None:
    """The step that makes the output visible: one rename, which also replaces an empty folder."""
    try:
        os.rename(working, destination)
    except OSError as error:
        why = f"{destination} could not be put in place ({error.strerror})"
        raise OutputError(f"{why}; the whole result is in {working}: move it before running again", path=str(destination), kept=str(working)) from error
    sync_folder(destination.parent)


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
                    shutil.copyfileobj(source, stream, 1 << 20)
            else:
                stream.write(side.content or b"")
            stream.flush()
            os.fsync(stream.fileno())
