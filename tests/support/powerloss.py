"""A disk that records what is asked of it, and what it would hold if its power failed after any of that."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from plait.engine import shardfile


@dataclass
class Disk:
    """Records every operation on files below a folder, to play any prefix of them back onto another disk.

    Attributes:
        home: the folder.
        log: operations in order: kind, path or file number, arguments.
    """

    home: Path
    log: list[tuple[Any, ...]] = field(default_factory=list)
    files: dict[int, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Wrap the calls that the engine makes."""
        real = {name: getattr(os, name) for name in ("open", "close", "pwrite", "fsync", "fdatasync", "rename", "mkdir", "unlink", "ftruncate")}

        def wrapped(name: str, note: Callable[..., Any]) -> None:
            def call(*args: Any, **kwargs: Any) -> Any:
                with self.lock:
                    result = real[name](*args, **kwargs)
                    note(result, *args)
                return result

            patch.setattr(os, name, call)

        wrapped("open", self._opened)
        wrapped("close", lambda result, fd: self.files.pop(fd, None))
        wrapped("pwrite", lambda count, fd, data, at: self.log.append(("write", self.files[fd], at, bytes(data)[:count])) if fd in self.files else None)
        wrapped("ftruncate", lambda result, fd, size: self.log.append(("size", self.files[fd], size)) if fd in self.files else None)
        for name in ("fsync", "fdatasync"):
            wrapped(name, self._synced)
        wrapped("rename", lambda result, old, new: self.log.append(("rename", str(old), str(new))))
        wrapped("mkdir", lambda result, path, *mode: self.log.append(("mkdir", str(path))))
        wrapped("unlink", lambda result, path: self.log.append(("unlink", str(path))))
        patch.setattr(shardfile, "_reserve", lambda fd, size: os.ftruncate(fd, size))

    def _opened(self, fd: int, path: Any, flags: int, *mode: Any) -> None:
        text = os.fspath(path)
        if isinstance(text, str) and text.startswith(str(self.home)) and not flags & os.O_DIRECTORY and ".plait-lock" not in text:
            number = os.fstat(fd).st_ino
            self.files[fd] = number
            if flags & os.O_CREAT:
                self.log.append(("create", number, text, bool(flags & os.O_TRUNC)))

    def _synced(self, result: None, fd: int) -> None:
        if fd in self.files:
            self.log.append(("sync", self.files[fd]))
            return
        path = Path(f"/proc/self/fd/{fd}").resolve()
        if path.is_dir():
            self.log.append(("sync folder", str(path)))
        else:  # a side file, written in one piece
            number = os.fstat(fd).st_ino
            self.log += [("create", number, str(path), True), ("write", number, 0, path.read_bytes()), ("sync", number)]


def after_power_loss(log: list[tuple[Any, ...]], home: Path, new: Path, how: str, draw: random.Random) -> None:
    """What a disk holds that lost its power after the last operation of `log`.

    Args:
        log: operations.
        home: where they happened.
        new: where the disk's contents are put.
        how: what becomes of writes that were not flushed: `lost`, `kept`, or `mixed` by halves and sectors.
        draw: decides the latter.
    """
    content: dict[int, bytearray] = {}
    synced = {}
    names: dict[str, int | None] = {str(home): None}
    for index, (kind, *args) in enumerate(log):
        if kind == "sync":
            synced[args[0]] = index
    last_folder_sync = max((i for i, (kind, *_) in enumerate(log) if kind == "sync folder"), default=-1)
    for index, (kind, *args) in enumerate(log):
        unflushed = kind in ("write", "size") and index > synced.get(args[0], -1)
        if kind in ("create", "rename", "mkdir", "unlink") and index > last_folder_sync and how == "lost":
            continue  # names that no folder's flush made sure of
        if kind == "create":
            content.setdefault(args[0], bytearray())
            names[args[1]] = args[0]
        elif kind == "mkdir":
            names[args[0]] = None
        elif kind == "unlink":
            names.pop(args[0], None)
        elif kind == "rename":
            old, target = args
            for name in [n for n in names if n == target or n.startswith(target + "/")]:
                del names[name]
            for name in [n for n in names if n == old or n.startswith(old + "/")]:
                names[target + name[len(old) :]] = names.pop(name)
        elif kind == "size":
            if not unflushed or how != "lost":
                data = content.setdefault(args[0], bytearray())
                data.extend(bytes(max(0, args[1] - len(data))))
        elif kind == "write" and (not unflushed or how == "kept" or (how == "mixed" and draw.random() < 0.5)):
            number, at, part = args
            if unflushed and how == "mixed":
                part = part[: draw.randrange(len(part) + 1)]
            data = content.setdefault(number, bytearray())
            data.extend(bytes(max(0, at + len(part) - len(data))))
            data[at : at + len(part)] = part
    for name, number in sorted(names.items()):
        target = new / os.path.relpath(name, home)
        if number is None:
            target.mkdir(parents=True, exist_ok=True)
        elif target.parent.is_dir():
            target.write_bytes(bytes(content.get(number, b"")))
