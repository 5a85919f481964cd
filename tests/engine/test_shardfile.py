"""A file under construction holds what was written, whichever way the bytes took."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.engine.shardfile import PAGE, ShardFile

SIZE = 40 * PAGE + 123


def memory_like(data: bytes, shift: int) -> np.ndarray:
    """The bytes in memory that lies `shift` bytes behind a page."""
    buffer = np.empty(len(data) + 2 * PAGE, np.uint8)
    start = -buffer.ctypes.data % PAGE + shift % PAGE
    buffer[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return buffer[start : start + len(data)]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, SIZE - 1), max_size=6, unique=True), alike=st.booleans(), direct=st.booleans(), seed=st.integers(0, 99))
def test_any_ranges_in_any_order(tmp_path: Path, cuts: list[int], alike: bool, direct: bool, seed: int):
    """Ranges that begin and end anywhere, in memory that lies like the file or not, from several threads."""
    random = np.random.default_rng(seed)
    data = random.bytes(SIZE)
    path = tmp_path / f"{os.urandom(8).hex()}"
    bounds = [0, *sorted(cuts), SIZE]
    ranges = [(a, b) for a, b in pairwise(bounds)]
    file = ShardFile(path, SIZE, direct=direct)

    def put(part: tuple[int, int]) -> None:
        first, last = part
        block = memory_like(data[first:last], first if alike else first + 8)
        file.write(block.data, block.ctypes.data, first)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(put, [ranges[i] for i in random.permutation(len(ranges))]))
    file.sync()
    file.close()
    file.close()
    assert path.read_bytes() == data


def test_whole_pages_go_past_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where memory lies like the file, only the broken pages at both ends take the slow way."""
    file = ShardFile(tmp_path / "f", 1 << 20)
    if not file.direct:
        pytest.skip("this filesystem has no direct writes")
    seen: list[tuple[bool, int, int]] = []
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, at: (seen.append((fd == file.fd, at, len(view))), real(fd, view, at))[1])
    block = memory_like(bytes(range(256)) * 2048, 100)
    file.write(block.data, block.ctypes.data, 100)
    past = 100 + block.size
    assert seen == [(True, 100, PAGE - 100), (False, PAGE, (past // PAGE - 1) * PAGE), (True, past // PAGE * PAGE, past % PAGE)]
    file.close()


def test_a_filesystem_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Refused when opening or when writing: the page cache takes the bytes."""
    data = np.random.default_rng(0).bytes(1 << 18)
    real_open, real_write = os.open, os.pwrite

    def no_open(path: object, flags: int, *rest: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no such way")
        return real_open(path, flags, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", no_open)
        file = ShardFile(tmp_path / "a", len(data))
        assert not file.direct
    block = memory_like(data, 0)
    file.write(block.data, block.ctypes.data, 0)
    file.close()
    assert (tmp_path / "a").read_bytes() == data
    file = ShardFile(tmp_path / "b", len(data))

    def no_write(fd: int, view: memoryview, at: int) -> int:
        if fd != file.fd:
            raise OSError(errno.EINVAL, "not like this")
        return real_write(fd, view, at)

    monkeypatch.setattr(os, "pwrite", no_write)
    file.write(block.data, block.ctypes.data, 0)
    file.close()
    assert (tmp_path / "b").read_bytes() == data


def test_errors_of_the_disk_are_not_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A full disk is an error on either way."""
    file = ShardFile(tmp_path / "f", 1 << 20)
    block = memory_like(bytes(1 << 18), 0)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    for address in (block.ctypes.data, -1):
        with pytest.raises(OSError, match="No space"):
            file.write(block.data, address, 0)
    file.close()
