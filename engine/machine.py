"""What this machine offers: memory, cores, GPUs. Reads the system, starts nothing, imports torch only when a GPU is there."""

from __future__ import annotations

import os
from pathlib import Path

from plait.engine.device import discover_devices

_PAGE = os.sysconf("SC_PAGE_SIZE")


def available_memory() -> int:
    """Bytes that a process may take now without pushing others out: free memory, or what the control group leaves."""
    known = [limit for limit in (_meminfo(), _cgroup_memory()) if limit is not None]
    return min(known, default=4 << 30)


def _meminfo() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _cgroup_memory() -> int | None:
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        return max(0, int(text) - used) if text != "max" else None
    except (OSError, ValueError):
        return None


def cores() -> int:
    """Cores that this process may use: its affinity, within the control group's quota."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            count = min(count, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(1, count)


def gpu_memory() -> tuple[int, ...]:
    """Free bytes of each GPU, in order; none where there is none."""
    return tuple(device.free_bytes for device in discover_devices())


def private_memory() -> int:
    """Private memory of this process now (RssAnon), in bytes; 0 where the system does not say.

    It is what is resident and not shared: shorter to say for the system, and to read, than the table that holds RssAnon itself.
    """
    try:
        _, resident, shared, *_ = Path("/proc/self/statm").read_text().split()
    except (OSError, ValueError):
        return 0
    return (int(resident) - int(shared)) * _PAGE
