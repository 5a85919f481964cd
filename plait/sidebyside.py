"""A merge beside the cost of moving its bytes and beside other programs: whole processes in alternating runs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from plait.engine.floor import floor, warm, writes_direct
from plait.ops.errors import KernelError, PlaitError
from plait.planner.plan import Plan
from plait.watching import Command, watch

#: No program is to look for models or updates on a network.
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Peer:
    """Another program that merges: what it is called, and its command line with `{recipe}` and `{out}` in it."""

    name: str
    words: tuple[str, ...]

    def command(self, recipe: Path, out: Path) -> list[str]:
        """The command line for one merge."""
        return [word.replace("{recipe}", str(recipe)).replace("{out}", str(out)) for word in self.words]


@dataclass(slots=True)
class Row:
    """One subject, and what each of its runs took.

    Attributes:
        subject: `plait`, `floor` or a peer's name.
        wall_s, cpu_s: seconds of each run, start-up included for programs.
        peak_bytes: most private memory (RssAnon) of each run, imports included.
    """

    subject: str
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    peak_bytes: list[int] = field(default_factory=list)

    @property
    def wall(self) -> float:
        """Median seconds."""
        return median(self.wall_s)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"subject": self.subject, "wall_s": self.wall_s, "median_wall_s": self.wall, "cpu_s": self.cpu_s, "peak_bytes": self.peak_bytes}


def mergekit(venv: Path | None) -> Peer | None:
    """mergekit with its default options: of a virtual environment, or the one that is found on PATH; None where there is none.

    Raises:
        PlaitError: the virtual environment has none.
    """
    program = str(venv / "bin" / "mergekit-yaml") if venv is not None else shutil.which("mergekit-yaml")
    if venv is not None and not Path(str(program)).exists():
        raise PlaitError(f"{venv} has no mergekit-yaml: make it with `python -m venv {venv}`, then install mergekit into it")
    return Peer("mergekit", (program, "{recipe}", "{out}", "--quiet")) if program else None


def other(text: str) -> Peer:
    """A program from `NAME=COMMAND`.

    Raises:
        PlaitError: it is not of that form.
    """
    name, equals, template = text.partition("=")
    if not equals or not name or "{out}" not in template or "{recipe}" not in template:
        raise PlaitError(f"--peer {text!r} is not NAME=COMMAND with {{recipe}} and {{out}} in it")
    return Peer(name, tuple(template.split()))


def compare(recipe: Path, plan: Plan, peers: Sequence[Peer], folder: Path, repeat: int, options: Sequence[str], tell: Callable[[str], None]) -> list[Row]:
    """Run floor, plait and peers in turns, everything in the page cache where it fits.

    Args:
        recipe: what all programs merge; peers run in its folder, for paths in it.
        plan: of the recipe, for the floor's bytes and passes.
        peers: programs beside plait.
        folder: outputs go into a temporary folder here, one at a time.
        repeat: runs of each.
        options: of `plait merge`.
        tell: hears what is being done.

    Raises:
        KernelError: a program fails; its last words are in the message.
    """
    files = sorted({Path(ref.file) for c in plan.components for ref in c.inputs})
    plait = Peer("plait", (sys.executable, "-m", "plait", "merge", "{recipe}", "{out}", "--quiet", *options))
    programs = [plait, *peers]
    rows = {name: Row(name) for name in ("floor", *(p.name for p in programs))}
    with tempfile.TemporaryDirectory(prefix=".plait-bench-", dir=folder.resolve()) as scratch:
        tell("reading the inputs once, and merging once unmeasured")
        warm(files)
        _run(plait, recipe, Path(scratch) / "out", Row(""))
        for turn in range(repeat):
            subjects: list[Peer | None] = [None, *programs]
            for subject in subjects[turn % len(subjects) :] + subjects[: turn % len(subjects)]:
                name = subject.name if subject else "floor"
                tell(f"run {turn + 1} of {repeat}: {name}")
                if subject is None:
                    _floor(files, plan, Path(scratch) / "floor.bin", rows["floor"])
                else:
                    _run(subject, recipe, Path(scratch) / "out", rows[name])
    return list(rows.values())


def _floor(files: Sequence[Path], plan: Plan, out: Path, row: Row) -> None:
    """The inputs read as often as the plan reads them, and as many bytes written as the output has."""
    way = "direct" if writes_direct(out.parent) else "buffered"
    found = floor(files, out, plan.prediction.bytes_written, max(1, plan.prediction.passes), write=way)
    row.wall_s.append(found.wall_s)
    row.cpu_s.append(found.cpu_s)
    row.peak_bytes.append(0)
    os.sync()


def _run(peer: Peer, recipe: Path, out: Path, row: Row) -> None:
    try:
        found = watch(Command(peer.command(recipe.resolve(), out), _OFFLINE, str(recipe.resolve().parent)))
    except OSError as error:
        raise KernelError(f"{peer.name} cannot be started ({error.strerror}: {peer.words[0]})", peer=peer.name) from error
    row.wall_s.append(found.wall_s)
    row.cpu_s.append(found.cpu_s)
    row.peak_bytes.append(found.peak_bytes)
    shutil.rmtree(out, ignore_errors=True)
    os.sync()
    if found.status:
        raise KernelError(f"{peer.name} ended with status {found.status}: {found.output.strip()[-1500:] or 'it said nothing'}", peer=peer.name)
