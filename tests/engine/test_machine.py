"""What the machine offers is read from the system, within the control group's limits, and without torch."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from plait.engine import machine

GIB = 1 << 30


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which files of /proc and /sys may be put; what is not put there does not exist."""
    monkeypatch.setattr(machine, "Path", lambda path: tmp_path / str(path).lstrip("/").replace("/", "_"))
    return tmp_path


def put(system: Path, path: str, text: str) -> None:
    (system / path.lstrip("/").replace("/", "_")).write_text(text)


def test_available_memory_is_what_the_kernel_says(system: Path):
    """MemAvailable, in bytes."""
    put(system, "/proc/meminfo", "MemTotal:       16384000 kB\nMemFree:          100 kB\nMemAvailable:    8192000 kB\n")
    assert machine.available_memory() == 8192000 * 1024


def test_a_control_group_leaves_less(system: Path):
    """A container's limit less what it uses counts, where that is less."""
    put(system, "/proc/meminfo", f"MemAvailable:    {64 * GIB // 1024} kB\n")
    put(system, "/sys/fs/cgroup/memory.max", f"{4 * GIB}\n")
    put(system, "/sys/fs/cgroup/memory.current", f"{GIB}\n")
    assert machine.available_memory() == 3 * GIB
    put(system, "/sys/fs/cgroup/memory.max", "max\n")
    assert machine.available_memory() == 64 * GIB


def test_a_system_without_proc(system: Path):
    """Without /proc the physical memory is taken."""
    assert machine.available_memory() == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert machine.private_memory() == 0


def test_a_control_group_that_is_full_leaves_nothing_but_an_answer(system: Path):
    """A container at its limit has no memory to give, whatever the host has free."""
    put(system, "/proc/meminfo", f"MemAvailable:    {64 * GIB // 1024} kB\n")
    put(system, "/sys/fs/cgroup/memory.max", f"{GIB}\n")
    put(system, "/sys/fs/cgroup/memory.current", f"{2 * GIB}\n")
    assert machine.available_memory() < GIB


@pytest.mark.parametrize(
    ("quota", "expected"), [("100000 100000", 1), ("150000 100000", 2), ("50000 100000", 1), ("max 100000", 4), ("900000 100000", 4), ("odd", 4)]
)
def test_cores_within_the_quota(system: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int):
    """Cores of the affinity mask, at most those that the quota pays for, at least one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2, 3})
    put(system, "/sys/fs/cgroup/cpu.max", quota)
    assert machine.cores() == expected


def test_this_machine():
    """Figures of the machine that runs the tests are possible ones."""
    assert 1 <= machine.cores() <= (os.cpu_count() or 1)
    assert 0 < machine.available_memory() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_private_memory_grows_with_what_is_touched():
    """RssAnon counts pages that were written to; in a process of its own, where nothing else gives memory back meanwhile."""
    code = """
import numpy as np
from plait.engine.machine import private_memory
before = private_memory()
block = np.ones(64 << 20, np.uint8)
print((private_memory() - before) / block.nbytes)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert 0.9 <= float(done.stdout) <= 1.2


def test_no_gpu_and_no_torch(system: Path):
    """Without the driver's device file there is no GPU memory."""
    assert machine.gpu_memory() == ()


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
def test_asking_for_a_gpu_where_there_is_none_imports_no_torch():
    """Looking for a GPU costs nothing on a machine without one."""
    code = "import sys; from plait.engine.machine import gpu_memory; assert gpu_memory() == (); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
