"""Plans and merges through the public command, as a user would, and watches the merge's memory from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from plait.ops.errors import PlaitError

SAMPLE_S = 0.01


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


@dataclass(frozen=True, slots=True)
class Watched:
    """What was seen of a process from outside: its largest private memory, and whether it loaded torch."""

    peak_bytes: int | None
    torch: bool


def plait_command(*arguments: str | Path) -> list[str]:
    """The `plait` command of this very installation."""
    return [sys.executable, "-m", "plait", *map(str, arguments)]


def plan_and_merge(recipe: Path, out: Path, memory: str, console: Console) -> Cost:
    """Show the plan of a recipe, merge it into `out`, and measure.

    Raises:
        PlaitError: the command failed; the message holds its own.
    """
    console.print(f"[dim]$[/dim] plait plan {recipe} --memory {memory}", highlight=False)
    console.print(Text.from_ansi(_output(plait_command("plan", recipe, "--memory", memory), console)))
    predicted = predicted_peak(json.loads(_output(plait_command("plan", recipe, "--memory", memory, "--format", "json"), console)), recipe)
    console.print(f"[dim]$[/dim] plait merge {recipe} {out} --memory {memory}", highlight=False)
    begin = time.monotonic()
    seen = run_watched(plait_command("merge", recipe, out, "--memory", memory), console)
    seconds = time.monotonic() - begin
    return Cost(seconds, predicted, seen.peak_bytes, import_baseline(seen.torch), sum(file.stat().st_size for file in out.glob("*.safetensors")))


def predicted_peak(plan: dict[str, Any], recipe: Path) -> int:
    """The peak that `plait plan --format json` promises.

    Raises:
        PlaitError: the plan has no such figure.
    """
    value = plan.get("predicted_peak_bytes")
    if not isinstance(value, int):
        raise PlaitError(f"`plait plan {recipe} --format json` gave no predicted_peak_bytes: reinstall plait, its parts are of different versions")
    return value


def run_watched(command: Sequence[str], console: Console) -> Watched:
    """Run a command to its end with its output shown, and watch its memory.

    On a terminal the command draws on it directly, so that its progress bar lives; otherwise its output is
    printed when it ends.

    Raises:
        PlaitError: it ended with another status than 0.
    """
    live = console.is_terminal and console.file in (sys.stdout, sys.stderr)
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as kept:
        out = None if live else kept
        process = subprocess.Popen(list(command), stdout=out, stderr=None if live else subprocess.STDOUT, env=_environment(console))
        try:
            seen = _watch(process)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        kept.seek(0)
        text = kept.read().rstrip()
    if process.returncode != 0:
        raise PlaitError(_failure(command, process.returncode, text), status=process.returncode)
    if text:
        console.print(Text.from_ansi(text))
    return seen


def _watch(process: subprocess.Popen[bytes]) -> Watched:
    """Sample a process until it ends; the map of its libraries is longer to read and looked at less often."""
    peak: int | None = None
    torch, samples = False, 0
    while process.poll() is None:
        now = private_bytes(process.pid)
        if now is not None:
            peak = now if peak is None else max(peak, now)
        if not torch and samples % 10 == 0:
            torch = loaded_torch(process.pid)
        samples += 1
        time.sleep(SAMPLE_S)
    return Watched(peak, torch)


_BASELINE = """
import sys, plait.cli, plait.engine.executor, plait.engine.codegen
if "torch" in sys.argv:
    import torch
for line in open("/proc/self/status"):
    if line.startswith("RssAnon:"):
        print(int(line.split()[1]) * 1024)
"""


@cache
def import_baseline(torch: bool) -> int | None:
    """Private memory of a Python that has imported what a merge imports and done nothing, or None where the system does not tell.

    Args:
        torch: a merge that only streams works without torch; one that needs whole tensors imports it.
    """
    if not Path("/proc/self/status").exists():
        return None
    done = subprocess.run([sys.executable, "-c", _BASELINE, *(["torch"] if torch else [])], capture_output=True, text=True, check=True)
    return int(done.stdout) if done.stdout.strip() else None


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


def loaded_torch(pid: int) -> bool:
    """Whether a process has torch in its address space."""
    try:
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            return any("libtorch" in line for line in maps)
    except OSError:
        return False


def _environment(console: Console) -> dict[str, str]:
    env = dict(os.environ, COLUMNS=str(console.width), PYTHONIOENCODING="utf-8")
    if console.is_terminal:
        env.setdefault("FORCE_COLOR", "1")
    return env


def _output(command: list[str], console: Console) -> str:
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=_environment(console))
    if done.returncode != 0:
        raise PlaitError(_failure(command, done.returncode, done.stderr.strip()), status=done.returncode)
    return done.stdout.rstrip()


def _failure(command: Sequence[str], status: int, text: str) -> str:
    said = f" and said: {text}" if text else "; its message is above"
    return f"`plait {' '.join(command[3:])}` ended with status {status}{said}"
