"""Faults of files and devices on demand: which kind of call fails, how, and from which call on.

    with faults.injected("a full disk", at=3):
        plait.merge(...)

The calls are those that plait's readers, writers, journal and publication make of the operating system, so nothing of plait is replaced. Devices
fail through `engine/simulated.py`. Every kind of fault can be made to happen at every k-th call: see `tests/engine/test_faults.py`.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from plait.engine import commits, reader, shardfile
from plait.engine import device as devices
from plait.engine.simulated import SimulatedDevice
from plait.planner import safetensors_header


@dataclass
class Counter:
    """How often the calls of a fault were made, and how often they failed."""

    calls: int = 0
    failed: int = 0
    lock: Any = field(default_factory=threading.Lock)

    def due(self, at: int, times: int) -> bool:
        """Whether this call is one of those that fail: `times` of them from the `at`-th on."""
        with self.lock:
            self.calls += 1
            now = at <= self.calls < at + times
            self.failed += now
            return now


@dataclass(frozen=True)
class Fault:
    """One way in which the system fails.

    Attributes:
        names: functions of `os` that fail (or `_reserve`, for the allocation of a shard).
        error: errno of the failure; 0 for a call that does only a part of its work.
        of: which calls, by their arguments.
        says: what plait's message holds, as a regular expression; "" where the run is to go on as if nothing had happened.
    """

    names: tuple[str, ...]
    error: int
    says: str
    of: Callable[..., bool] = lambda *args: True


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


def _input_opened(path: Any, *rest: Any) -> bool:
    return str(path).endswith(".safetensors") and ".plait-partial" not in str(path)


def _data(fd: int, *rest: Any) -> bool:
    return _path(fd).endswith((".partial", ".safetensors"))


def _journal(fd: int, *rest: Any) -> bool:
    return ".plait-journal" in _path(fd)


FAULTS = {
    "a read error": Fault(("preadv",), errno.EIO, r"could not be read at byte \d+ \(Input/output error\)|cannot be read \(Input/output error\)"),
    "a read error in a header": Fault(("pread",), errno.EIO, r"cannot be read \(Input/output error\)"),
    "short reads": Fault(("preadv",), 0, ""),
    "an input that is gone": Fault(("open",), errno.ENOENT, "there is no such file", _input_opened),
    "a full disk": Fault(("pwrite",), errno.ENOSPC, "free some space and run again", _data),
    "a used-up quota": Fault(("pwrite",), errno.EDQUOT, "quota is used up: free some space", _data),
    "a write error": Fault(("pwrite",), errno.EIO, "Input/output error.*check the disk", _data),
    "short writes": Fault(("pwrite",), 0, ""),
    "a full disk for the journal": Fault(("pwrite",), errno.ENOSPC, "cannot write the journal.*free some space", _journal),
    "a flush that fails": Fault(("fsync", "fdatasync"), errno.EIO, "cannot .*Input/output error"),
    "a rename that fails": Fault(("rename",), errno.EIO, "Input/output error"),
    "a full disk at the beginning": Fault(("_reserve",), errno.ENOSPC, r"cannot reserve \d+ bytes.*free some space"),
    "a quota at the beginning": Fault(("_reserve",), errno.EDQUOT, r"cannot reserve \d+ bytes.*quota"),
    "a filesystem that turned read-only": Fault(
        ("pwrite", "fsync", "fdatasync", "rename", "unlink", "rmdir", "mkdir"),
        errno.EROFS,
        "filesystem is read-only: choose another folder|Read-only file system",
    ),
    "a copy in the kernel that fails": Fault(("copy_file_range",), errno.EIO, ""),
    "no copies in the kernel": Fault(("copy_file_range",), errno.EXDEV, ""),
}


@contextmanager
def injected(name: str, at: int = 1, times: int = 1 << 40) -> Iterator[Counter]:
    """Have calls fail from the `at`-th on (counted from 1), `times` of them; `at=0` only counts. Gives the counter."""
    fault, counter = FAULTS[name], Counter()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "_RETRIES_S", (0.0, 0.0, 0.0))
        patch.setattr(safetensors_header, "READ_RETRIES_S", (0.0, 0.0, 0.0))
        patch.setattr(commits.Commits.__init__, "__defaults__", (0.0, 1 << 20))  # many records, early
        for function in fault.names:
            home = shardfile if function == "_reserve" else os
            patch.setattr(home, function, _failing(getattr(home, function), function, fault, counter, at, times))
        yield counter


def _failing(real: Callable[..., Any], name: str, fault: Fault, counter: Counter, at: int, times: int) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if not fault.of(*args) or not counter.due(at if at else 1 << 60, times):
            return real(*args, **kwargs)
        if fault.error:
            raise OSError(fault.error, os.strerror(fault.error))
        if name == "preadv":
            return real(args[0], [memoryview(args[1][0])[:1009]], *args[2:])
        return real(args[0], memoryview(args[1])[: max(1, len(args[1]) // 3)], *args[2:])

    return call


@contextmanager
def devices_that_fail(
    sizes: Sequence[int], allocations: frozenset[int] = frozenset(), transfers: frozenset[int] = frozenset()
) -> Iterator[list[SimulatedDevice]]:
    """Simulated GPUs whose numbered allocations or transfers find no memory."""
    made = [SimulatedDevice(f"simulated {i}", nbytes) for i, nbytes in enumerate(sizes)]
    for one in made:
        one.fail_at, one.fail_transfer_at = allocations, transfers
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(devices.SIMULATED, ",".join(map(str, sizes)))
        patch.setattr("plait.engine.pool.discover_devices", lambda: made)
        yield made


def spread(count: int, most: int) -> list[int]:
    """Up to `most` numbers from 1 to `count`, evenly, first and last among them."""
    if count <= most:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (most - 1)) for i in range(most)})
