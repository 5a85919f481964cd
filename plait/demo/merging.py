"""Plans and merges through the public command, as a user would, and watches the merge's memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from plait.ops.errors import PlaitError

SAMPLE_S = 0.01
HEAD_LINES = 8
"""Of a plan that is not shown whole: what it needs and moves."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a merge cost.

    Attributes:
        seconds: wall time of the whole command, start of Python included.
        predicted_peak_bytes: what the plan said before it ran.
        measured_peak_bytes: the largest private memory (RssAnon) seen; None where the system does not tell.
        baseline_bytes: the part of it that Python and its imports take before any work.
        written_bytes: size of the checkpoint's tensor files.
    """

    seconds: float
    predicted_peak_bytes: int
    measured_peak_bytes: int | None
    baseline_bytes: int | None
    written_bytes: int

    @property
    def measured_above_bytes(self) -> int | None:
        """The measured peak above the imports: what the prediction is about."""
        if self.measured_peak_bytes is None or self.baseline_bytes is None:
            return None
        return max(0, self.measured_peak_bytes - self.baseline_bytes)


def plait_command(*arguments: str | Path) -> list[str]:
    """The `plait` command of this very installation."""
    return [sys.executable, "-m", "plait", *map(str, arguments)]


def plan_and_merge(recipe: Path, out: Path, memory: str, whole_plan: bool, console: Console) -> Cost:
    """Show the plan of a recipe, whole or its first lines, merge it into `out`, and measure.

    Raises:
        PlaitError: the command failed; the message holds its own.
    """
    _show_command(f"plait plan {recipe} --memory {memory}" + ("" if whole_plan else f" | head -{HEAD_LINES}"), console)
    lines = _output(plait_command("plan", recipe, "--memory", memory), console).splitlines()
    console.print(Text.from_ansi("\n".join(lines if whole_plan else lines[:HEAD_LINES])), soft_wrap=True)
    predicted = predicted_peak(json.loads(_output(plait_command("plan", recipe, "--memory", memory, "--format", "json"), console)), recipe)
    _show_command(f"plait merge {recipe} {out} --memory {memory}", console)
    peak, baseline, seconds = watched_merge(recipe, out, memory, console)
    return Cost(seconds, predicted, peak, baseline, sum(file.stat().st_size for file in out.glob("*.safetensors")))


def predicted_peak(plan: dict[str, Any], recipe: Path) -> int:
    """The peak that `plait plan --format json` promises.

    Raises:
        PlaitError: the plan has no such figure.
    """
    value = plan.get("predicted_peak_bytes")
    if not isinstance(value, int):
        raise PlaitError(f"`plait plan {recipe} --format json` gave no predicted_peak_bytes: reinstall plait, its parts are of different versions")
    return value


def run_watched(command: Sequence[str], console: Console, environment: Mapping[str, str]) -> int | None:
    """Run a command to its end with its output shown, and give the largest private memory it was seen to hold.

    On a terminal the command draws on it directly, so that its progress bar lives; otherwise its output is
    printed when it ends.

    Raises:
        PlaitError: it ended with another status than 0.
    """
    live = console.is_terminal and console.file in (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept:
        out, err = (None, None) if live else (kept, subprocess.STDOUT)
        process = subprocess.Popen(list(command), stdout=out, stderr=err, env={**_environment(console), **environment})
        try:
            peak = _watch(process)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        kept.seek(0)
        text = kept.read().rstrip()
    if process.returncode != 0:
        raise _failure(command, process.returncode, text)
    if text:
        console.print(Text.from_ansi(text), soft_wrap=True)
    return peak


def _watch(process: subprocess.Popen[bytes]) -> int | None:
    peak: int | None = None
    while process.poll() is None:
        now = private_bytes(process.pid)
        if now is not None:
            peak = now if peak is None else max(peak, now)
        time.sleep(SAMPLE_S)
    return peak


# `python -m plait`, and at its end the names of what it has imported, into a file.
_RUN = """
import json, os, runpy, sys
try:
    runpy.run_module("plait", run_name="__main__", alter_sys=True)
finally:
    with open(os.environ["PLAIT_DEMO_MODULES"], "w", encoding="utf-8") as file:
        json.dump([name for name in sys.modules if name != "__main__" and not name.startswith("plait_kernel_")], file)
"""
_IMPORT = """
import importlib, json, sys
for name in json.load(sys.stdin):
    try:
        importlib.import_module(name)
    except Exception:
        pass  # some modules are made by others and cannot be imported by name
for line in open("/proc/self/status"):
    if line.startswith("RssAnon:"):
        print(int(line.split()[1]) * 1024)
"""


def watched_merge(recipe: Path, out: Path, memory: str, console: Console) -> tuple[int | None, int | None, float]:
    """Run `plait merge`: the largest private memory it was seen to hold, the part of it that its imports alone take, and seconds.

    Raises:
        PlaitError: the command failed.
    """
    with tempfile.TemporaryDirectory() as scratch:
        names = Path(scratch) / "modules.json"
        command = plait_command("merge", recipe, out, "--memory", memory)
        begin = time.monotonic()
        peak = run_watched([command[0], "-c", _RUN, *command[3:]], console, {"PLAIT_DEMO_MODULES": str(names)})
        seconds = time.monotonic() - begin
        imports = None if peak is None else import_baseline(tuple(sorted(json.loads(names.read_text(encoding="utf-8")))))
    return peak, imports, seconds


@cache
def import_baseline(modules: tuple[str, ...]) -> int:
    """Private memory of a Python that has imported these modules and done nothing."""
    done = subprocess.run([sys.executable, "-c", _IMPORT], input=json.dumps(modules), capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def private_bytes(pid: int) -> int | None:
    """Private resident memory of a process (RssAnon), or None where the system does not tell."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) * 1024
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None


def _environment(console: Console) -> dict[str, str]:
    env = dict(os.environ, COLUMNS=str(console.width), PYTHONIOENCODING="utf-8")
    if console.is_terminal:
        env.setdefault("FORCE_COLOR", "1")
    return env


def _output(command: list[str], console: Console) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=_environment(console))
    if done.returncode != 0:
        raise _failure(command, done.returncode, done.stderr.strip())
    return done.stdout.rstrip()


def _show_command(text: str, console: Console) -> None:
    console.print(Text.assemble(("$ ", "dim"), text), soft_wrap=True)


def _failure(command: Sequence[str], status: int, text: str) -> PlaitError:
    """The command's own message; the demo ends with the command's own status."""
    said = f" and said: {text.removeprefix('plait: ')}" if text else "; its message is above"
    error = PlaitError(f"`plait {' '.join(command[3:])}` ended with status {status}{said}", status=status)
    error.exit_status = status
    return error
