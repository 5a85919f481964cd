"""Where a run took place: processor, memory, system, versions and filesystems. No names of hosts or users."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from plait.engine.libraries import library_version
from plait.engine.machine import cores

_LIBRARIES = ("numpy", "numba", "torch", "triton")


def surroundings(inputs: Iterable[str], output: Path) -> dict[str, Any]:
    """The machine and the libraries of this process, as data.

    Args:
        inputs: files that were read.
        output: folder that was written.
    """
    found = {name: str(getattr(sys.modules[name], "__version__", "unknown")) for name in _LIBRARIES if name in sys.modules}
    if "numba" not in found and "llvmlite" in sys.modules:  # its kernels ran, and it was not loaded for that
        found["numba"] = library_version("numba")
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.system(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "libraries": found,
        "input_filesystems": sorted({filesystem(folder) for folder in {os.path.dirname(file) for file in inputs}}),
        "output_filesystem": filesystem(output),
    }


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Hardware"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def filesystem(folder: str | os.PathLike[str]) -> str:
    """Type of the filesystem that holds a folder, such as `ext4`; `unknown` where the system does not say."""
    try:
        device = os.stat(folder).st_dev
        wanted = f"{os.major(device)}:{os.minor(device)}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                return right.split()[0]
    except (OSError, IndexError):
        pass
    return "unknown"
