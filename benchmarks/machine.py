"""Describes the machine that a benchmark ran on: cores, processor, memory, disk, versions. No names of hosts or folders.

python benchmarks/machine.py --set /data/tl
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from plait.engine.machine import cores
from plait.engine.surroundings import filesystem, processor

PACKAGES = ("plait", "numpy", "numba", "llvmlite")


def describe(folder: Path) -> dict[str, Any]:
    """The machine as data.

    Args:
        folder: where the checkpoints lie; the disk under it is described.
    """
    return {
        "cpu": processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk": disk(folder),
        "system": f"{platform.system()} {platform.release().partition('-')[0]} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := installed(name))},
    }


def disk(folder: Path) -> dict[str, Any]:
    """File system and kind of the disk under a folder, and its free bytes."""
    space = os.statvfs(folder)
    found: dict[str, Any] = {"file_system": filesystem(folder), "free_bytes": space.f_bavail * space.f_frsize}
    device = os.stat(folder).st_dev
    block = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    queue = next((p / "queue" for p in (block, block.parent) if (p / "queue" / "rotational").exists()), None)
    if queue is not None:
        found["virtual"] = queue.parent.name.startswith(("vd", "xvd"))
        if not found["virtual"]:  # a virtual disk does not know what it lies on
            found["rotational"] = (queue / "rotational").read_text().strip() == "1"
    return found


def installed(package: str) -> str | None:
    """A package's version, None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def line(facts: dict[str, Any]) -> str:
    """The machine in one line, for a table's caption."""
    drive = facts["disk"]
    kind = ", virtual disk" if drive.get("virtual") else ", rotating disk" if drive.get("rotational") else ""
    return f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_bytes'] / 2**30:.0f} GiB, {drive['file_system']}{kind}, Python {facts['python']}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", type=Path, default=Path("."), help="folder whose disk is described")
    print(json.dumps(describe(parser.parse_args().set), indent=1))


if __name__ == "__main__":
    main()
