"""Runs a command as a whole process and measures it: wall and CPU seconds, and private memory (RssAnon) over time.

    python benchmarks/measure.py python -m plait merge recipe.yml out --memory 128MiB

Private memory is sampled, so a peak shorter than the interval can be missed; pages of the page cache do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.engine.compile import cache_folder
from plait.watching import Command, variables, watch_each

MIB = 1 << 20
SAMPLE_S = 0.005

#: Ends a `python -m plait …` by printing every module it has imported.
WITH_MODULES = """
import json, runpy, sys
try:
    runpy.run_module("plait", run_name="__main__", alter_sys=True)
finally:
    print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""

#: Imports the modules named on standard input and waits to be measured.
IMPORT_ONLY = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception:
        pass
print("ready", flush=True)
import time
time.sleep(60)
"""


class CommandFailed(Exception):
    """A measured command ended with another status than 0."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"exit status {status} of: {' '.join(command)}\n{output[-4000:]}")
        self.status = status
        self.output = output


@dataclass(frozen=True)
class Measured:
    """A whole process, from its start to its end.

    Attributes:
        wall_s: seconds on the clock.
        cpu_s: seconds of all its threads, user and system.
        peak_bytes: most private memory of any sample.
        samples: seconds since the start and private bytes.
        output: what it printed.
    """

    wall_s: float
    cpu_s: float
    peak_bytes: int
    samples: tuple[tuple[float, int], ...]
    output: str


def private_bytes(pid: int) -> int:
    """RssAnon of a process: memory that no file backs."""
    with open(f"/proc/{pid}/status") as status:
        return next((int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon")), 0)


def run(command: Sequence[str], every_s: float = SAMPLE_S, environment: Mapping[str, str] | None = None) -> Measured:
    """Runs a command to its end.

    Raises:
        CommandFailed: it ended with another status than 0.
    """
    samples: list[tuple[float, int]] = []
    with tempfile.TemporaryFile() as log:
        start = time.perf_counter()
        process = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=variables(environment))
        try:
            while True:
                pid, status, usage = os.wait4(process.pid, os.WNOHANG)
                if pid:
                    break
                samples.append((time.perf_counter() - start, private_bytes(process.pid)))
                time.sleep(every_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        output = log.read().decode(errors="replace")
    if process.returncode:
        raise CommandFailed(command, process.returncode, output)
    return Measured(wall, usage.ru_utime + usage.ru_stime, max((b for _, b in samples), default=0), tuple(samples), output)


def plait(*arguments: str | Path, python: str = sys.executable) -> list[str]:
    """The command line of plait as a process of its own."""
    return [python, "-m", "plait", *map(str, arguments)]


def planned(recipe: Path, memory: str) -> dict[str, Any]:
    """`plait plan` as data."""
    found: dict[str, Any] = json.loads(run(plait("plan", recipe, "--memory", memory, "--format", "json")).output)
    return found


def import_baseline(recipe: Path, out: Path, memory: str) -> int:
    """Private memory of a process that only imports what merging this recipe imports.

    Args:
        recipe: over a tiny checkpoint; it is merged once to see what is imported.
        out: folder for that merge.
        memory: budget for that merge.
    """
    command = [sys.executable, "-c", WITH_MODULES, "merge", str(recipe), str(out), "--memory", memory]
    done = subprocess.run(command, capture_output=True, text=True, env=variables())
    if done.returncode:
        raise CommandFailed(command, done.returncode, done.stderr)
    names = [n for n in json.loads(done.stderr.splitlines()[-1]) if not n.startswith("plait_kernel_") and n != "__main__"]
    with subprocess.Popen([sys.executable, "-c", IMPORT_ONLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables()) as process:
        stdout, stdin = process.stdout, process.stdin
        if stdin is None or stdout is None:
            raise AssertionError("both are pipes")
        stdin.write(json.dumps(names))
        stdin.close()
        stdout.readline()
        size = private_bytes(process.pid)
        process.kill()
    return size


def calibrated(scratch: Path, through: Sequence[str] = ()) -> dict[str, Any]:
    """Measures the machine in the folder that merges will write to; plans of this process's children use it from here on."""
    kernels = cache_folder().parent
    (scratch / "calibration").mkdir()
    (scratch / "calibration" / "kernels").symlink_to(kernels)  # it times how kernels run; how they compile, with one that no cache has
    os.environ["PLAIT_CACHE_DIR"] = str(scratch / "calibration")
    (found,) = watch_each([Command(plait("bench", "machine", "--whole", "--folder", scratch))], through)
    if found.status:
        raise SystemExit(f"the machine cannot be measured: {found.output}")
    rates: dict[str, Any] = json.loads((scratch / "calibration" / "machine.json").read_text())["rates"]
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs=argparse.REMAINDER, help="what to run")
    found = run(parser.parse_args().command)
    print(found.output, end="")
    print(f"{found.wall_s:.2f} s, {found.cpu_s:.2f} s of CPU, {found.peak_bytes / MIB:.1f} MiB private at its peak", file=sys.stderr)


if __name__ == "__main__":
    main()
