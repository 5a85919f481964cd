"""Runs plait in processes of their own and measures them: wall time, and private memory (RssAnon) above what the imports alone take.

Private memory is sampled, so a peak shorter than the interval can be missed; pages of the page cache do not count.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.ops.errors import KernelError
from plait.watching import Command, Watched, private_bytes, variables, watch

#: `plait ARGS`, and then the names of all imported modules in the file that is named first.
_WITH_MODULES = """
import json, runpy, sys
names = sys.argv.pop(1)
try:
    runpy.run_module("plait", run_name="__main__", alter_sys=True)
finally:
    with open(names, "w") as file:
        json.dump(sorted(sys.modules), file)
"""
#: Imports the modules named on standard input, says so, and waits until that is closed.
_IMPORT_ONLY = """
import importlib, json, sys
for name in json.loads(sys.stdin.readline()):
    try:
        importlib.import_module(name)
    except Exception:
        pass
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One process of plait from its start to its end.

    Attributes:
        status: its exit status; None where it was stopped at its time limit.
        wall_s, cpu_s: seconds on the clock, and of all threads.
        peak_bytes: most private memory of any sample, imports included.
        output: what it printed.
        modules: what it had imported at its end.
    """

    status: int | None
    wall_s: float
    cpu_s: float
    peak_bytes: int
    output: str
    modules: tuple[str, ...]


def measured(arguments: Sequence[str | Path]) -> Measured:
    """Run `plait ARGUMENTS` and sample its memory until it ends."""
    with tempfile.TemporaryDirectory(prefix="plait-measure-") as folder:
        names = Path(folder) / "modules.json"
        return noted(watch(noting(names, arguments)), names)


def noting(names: Path, arguments: Sequence[str | Path], limit_s: float | None = None) -> Command:
    """`plait ARGUMENTS`, which at its end writes the names of all that it imported into a file."""
    return Command((sys.executable, "-c", _WITH_MODULES, str(names), *map(str, arguments)), limit_s=limit_s)


def noted(found: Watched, names: Path) -> Measured:
    """What was measured, with the names of that file."""
    modules = json.loads(names.read_text()) if names.exists() else []
    return Measured(found.status, found.wall_s, found.cpu_s, found.peak_bytes, found.output, tuple(modules))


def import_bytes(modules: Sequence[str]) -> int:
    """Private memory of a process that has only imported some modules."""
    wanted = [name for name in modules if name != "__main__"]
    with subprocess.Popen([sys.executable, "-c", _IMPORT_ONLY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(wanted) + "\n")
        process.stdin.flush()
        process.stdout.readline()
        return private_bytes(process.pid)


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """A merge in one budget; what was measured is 0 where the budget is refused.

    Attributes:
        budget: as it was asked for.
        budget_bytes: the same in bytes.
        refused: the plan does not fit into it.
        predicted_peak_bytes, peak_bytes: private memory above the imports.
        predicted_seconds, seconds: wall time of the whole command.
        bytes_read: predicted, all passes.
        passes: most reads of any input.
    """

    budget: str
    budget_bytes: int
    refused: bool
    predicted_peak_bytes: int = 0
    peak_bytes: int = 0
    predicted_seconds: float = 0.0
    seconds: float = 0.0
    bytes_read: int = 0
    passes: int = 0

    @property
    def within(self) -> bool:
        """The measured peak is within prediction and budget."""
        return self.refused or self.peak_bytes <= min(self.predicted_peak_bytes, self.budget_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "within": self.within}


def merge_measured(recipe: Path, folder: Path, budget: str, more: Sequence[str] = ()) -> Measured:
    """A merge in a process of its own, into a temporary folder inside `folder` that is removed.

    Raises:
        KernelError: the merge fails.
    """
    with tempfile.TemporaryDirectory(prefix=".plait-bench-", dir=folder) as scratch:
        found = measured(["merge", recipe, Path(scratch) / "out", "--memory", budget, "--quiet", *more])
    if found.status:
        raise KernelError(f"the merge at --memory {budget} failed with exit status {found.status}: {found.output.strip()[-2000:] or 'it said nothing'}")
    return found
