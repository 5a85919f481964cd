"""Looking into a folder of kept results, and making it smaller: what `plait cache` does."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from plait.engine.cache import abandoned, files, forget_total, is_cache, locked, make_room
from plait.engine.resultfile import Damaged, check_tensor, open_result
from plait.ops.errors import OutputError
from plait.planner.blocks import aligned


@dataclass(slots=True)
class Kind:
    """The entries of one op.

    Attributes:
        entries, nbytes, hits: how many, what they take on the disk, how often they were used.
        youngest_s, oldest_s: seconds since the last use of the latest and of the longest unused.
        seconds: predicted, to compute all of them again.
    """

    entries: int = 0
    nbytes: int = 0
    hits: int = 0
    youngest_s: float = 0.0
    oldest_s: float = 0.0
    seconds: float = 0.0


@dataclass(slots=True)
class Survey:
    """What a cache holds.

    Attributes:
        path: the folder.
        kinds: entries by op.
        partial_bytes: of entries being written, or left by runs that were killed.
        odd: files that are no whole entries for all that their heads say.
    """

    path: str
    kinds: dict[str, Kind] = field(default_factory=dict)
    partial_bytes: int = 0
    odd: int = 0

    @property
    def entries(self) -> int:
        """All of them."""
        return sum(kind.entries for kind in self.kinds.values())

    @property
    def nbytes(self) -> int:
        """Of all of them."""
        return sum(kind.nbytes for kind in self.kinds.values())

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"entries": self.entries, "nbytes": self.nbytes, **asdict(self)}


def _known(folder: Path) -> Path:
    """The folder, when it is a cache.

    Raises:
        OutputError: it is none.
    """
    if not is_cache(folder):
        raise OutputError(f"{folder} is no result cache of plait; give the folder that `plait merge --cache` was given", path=str(folder))
    return folder


def survey(folder: Path) -> Survey:
    """What a cache holds; reads the heads of entries and changes nothing.

    Raises:
        OutputError: it is no cache.
    """
    found, kinds, now = Survey(str(_known(folder))), defaultdict[str, Kind](Kind), time.time()
    for file in files(folder):
        with suppress(FileNotFoundError):
            status = file.stat(follow_symlinks=False)
            if file.name.endswith(".partial"):
                found.partial_bytes += aligned(status.st_size)
                continue
            try:
                entry = open_result(Path(file.path), _key(file.name), write=False)
            except (Damaged, OSError):
                found.odd += 1
                continue
            if entry is not None:
                entry.close()
                kind, age = kinds[entry.op], max(0.0, now - status.st_mtime)
                kind.youngest_s = min(kind.youngest_s, age) if kind.entries else age
                kind.oldest_s = max(kind.oldest_s, age)
                kind.entries, kind.nbytes, kind.hits = kind.entries + 1, kind.nbytes + aligned(status.st_size), kind.hits + entry.hits
                kind.seconds += entry.seconds
    found.kinds = dict(sorted(kinds.items()))
    return found


def _key(name: str) -> bytes:
    """The content key that a file name says.

    Raises:
        Damaged: it says none.
    """
    try:
        return bytes.fromhex(name.split(".")[0])
    except ValueError:
        raise Damaged("its name is no content key") from None


def prune_to(folder: Path, limit: int) -> int:
    """Remove entries until the rest takes no more than `limit` bytes; gives how many bytes went.

    Raises:
        OutputError: it is no cache, or cannot be changed.
    """
    try:
        with locked(_known(folder)) as lock:
            before = sum(aligned(f.stat(follow_symlinks=False).st_size) for f in files(folder))
            after = make_room(folder, limit)
            forget_total(lock)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made smaller ({error.strerror})", path=str(folder)) from error
    return before - after


def check_entries(folder: Path) -> list[str]:
    """Read every entry, remove what is damaged and what killed runs left; gives a sentence on each damaged one.

    Raises:
        OutputError: it is no cache, or cannot be changed.
    """
    told: list[str] = []
    try:
        for file in files(_known(folder)):
            path = Path(file.path)
            if file.name.endswith(".partial"):
                with locked(folder), suppress(FileNotFoundError):
                    abandoned(file.path)
                continue
            try:
                entry = open_result(path, _key(file.name), write=False)
                if entry is not None:
                    try:
                        check_tensor(entry)
                    finally:
                        entry.close()
            except Damaged as error:
                told.append(f"{path.name}: {error}")
                with suppress(FileNotFoundError):
                    os.unlink(path)
        with locked(folder) as lock:
            forget_total(lock)
    except OSError as error:
        raise OutputError(f"{folder} cannot be checked ({error.strerror})", path=str(folder)) from error
    return told
