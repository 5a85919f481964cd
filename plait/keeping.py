"""`plait status` and `plait verify`: what lies at a destination, and whether it is what was written."""

from __future__ import annotations

import os
import shlex
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from plait.api import Options, _plan_recipe
from plait.engine.identity import identity
from plait.engine.journal import JOURNAL_NAME, read_journal
from plait.engine.machine import cores
from plait.engine.manifest import read_manifest
from plait.engine.publish import is_locked, old_folder, output_errors, working_folder
from plait.engine.verify import Checked, recompute
from plait.engine.verify import verify as verify_manifest
from plait.ops.errors import CheckpointError, VerifyError
from plait.planner.sizes import size


@dataclass(frozen=True, slots=True)
class Status:
    """What lies at a destination.

    Attributes:
        path: the destination.
        state: `nothing`, `running`, `interrupted`, `whole`, or `other` for a folder or file that plait did not write.
        title: method and steps of what is or was being made.
        recipe: where its recipe was read from.
        done_bytes: of tensors, for good on the disk.
        total_bytes: of all tensors and headers of the output; 0 where nothing says it.
        working: folder of unfinished work.
        whole: whether a whole output of plait is at the destination, perhaps beside unfinished work that is to replace it.
        old: where the old output lies that a killed run was about to replace.
    """

    path: str
    state: str
    title: str = ""
    recipe: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    working: str = ""
    whole: bool = False
    old: str = ""

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def sentences(self) -> list[str]:
        """For people: what is there and how to go on."""
        of = f", {self.title}" + (f" from {self.recipe}" if self.recipe else "") if self.title else ""
        done = f"{size(self.done_bytes)} of {size(self.total_bytes)}" if self.total_bytes else f"{size(self.done_bytes)}"
        if self.state == "running":
            return [f"{self.path}: running{of}; {done} are on the disk for good"]
        if self.state == "interrupted" and self.old:
            return [f"{self.path}: interrupted while its old output was replaced; that lies whole in {self.old}, and the next merge puts it back first"]
        if self.state == "interrupted":
            again = f"`plait merge {shlex.quote(self.recipe)} {shlex.quote(self.path)}`" if self.recipe else "the same command"
            drops = f"`rm -r {shlex.quote(self.working)}` drops it"
            if not self.done_bytes:
                told = [f"{self.path}: interrupted before anything was finished{of}", f"{again} begins anew, {drops}"]
            else:
                told = [f"{self.path}: interrupted at {done}{of}", f"{again} continues, --restart begins anew, {drops}"]
            return told + (["an older whole output is at the destination"] if self.whole else [])
        if self.state == "whole":
            told = [f"{self.path}: whole, {size(self.total_bytes)}{of}; `plait verify {shlex.quote(self.path)}` reads it again"]
            return told + ([f"`rm -r {shlex.quote(self.working)}` drops what a killed run left beside it"] if self.working else [])
        if self.state == "other":
            return [f"{self.path}: not written by plait, or written without a manifest"]
        return [f"{self.path}: nothing is there"]


def status(out: str | Path) -> Status:
    """What lies at a destination, finished or not; reads a few files and changes nothing."""
    destination = Path(os.path.realpath(Path(out).expanduser()))
    working, here = working_folder(destination), str(destination)
    finished, made = _finished(destination)
    running = is_locked(destination)
    with output_errors(working, "look at what is there"):
        journal = read_journal(working / JOURNAL_NAME) if working.is_dir() and not working.is_symlink() else None
    if running or (journal is not None and journal.entries.size):
        head = (journal.head if journal is not None else None) or {}
        done = int(journal.entries["nbytes"].sum()) if journal is not None else 0
        total = sum(shard[1] for shard in head.get("shards", []))
        state = "running" if running else "interrupted"
        return Status(here, state, str(head.get("title", "")), str(head.get("source", "")), done, total, str(working), finished)
    old = old_folder(destination)
    left = str(working) if os.path.lexists(working) else ""
    if finished:
        total = sum(int(shard["bytes"]) for shard in made["shards"])
        beside = left or (str(old) if os.path.lexists(old) else "")
        return Status(here, "whole", str(made.get("title", "")), str(made.get("source", "")), total, total, working=beside, whole=True)
    if not destination.exists() and (left or old.is_dir()):
        return Status(here, "interrupted", working=left, old=str(old) if old.is_dir() else "")
    occupied = os.path.lexists(destination) and not (destination.is_dir() and not any(destination.iterdir()))
    return Status(here, "other" if occupied else "nothing")


def _finished(destination: Path) -> tuple[bool, dict[str, Any]]:
    try:
        made = read_manifest(destination)
    except CheckpointError:
        return False, {}
    there = all((destination / str(s.get("name"))).is_file() for s in made["shards"] if isinstance(s, dict))
    return there, made


def verify(
    out: str | Path,
    against: str | Path | None = None,
    *,
    options: Options | None = None,
    blocks: int = 32,
    seed: int = 0,
    started: Callable[[int], None] = lambda nbytes: None,
    progress: Callable[[int], None] = lambda nbytes: None,
    stop: threading.Event | None = None,
) -> Checked:
    """Check an output: every byte against its manifest, and with `against` a sample of blocks against what the recipe gives.

    Args:
        out: folder that plait wrote.
        against: recipe that is said to give it.
        options: how the machine may be used for that; `shard_size` is taken from the output.
        blocks: how many blocks are computed again, at most.
        seed: of their choice.
        started: hears how many bytes will be read.
        progress: hears of bytes read.
        stop: ends the computing early.

    Raises:
        CheckpointError: `out` has no manifest.
        VerifyError: something differs.
        PlaitError: the recipe cannot be planned any more.
    """
    folder = Path(out)
    made = read_manifest(folder)
    if against is None:
        started(sum(int(row.get("bytes", 0)) for row in made["tensors"].values()))
        return verify_manifest(folder, progress, min(4, cores()), made)
    planned, _, _ = _plan_recipe(against, options or Options())
    now = identity(planned, "", "")
    if made.get("layout") != now["layout"]:
        why = "its files hold other tensors, dtypes or shapes, or are cut at other sizes (give the --shard-size of the merge)"
        raise VerifyError(f"{folder} is not what {against} gives: {why}", path=str(folder))
    for shard in planned.layout.shards:
        path = folder / shard.name
        if not path.is_file() or path.stat().st_size != shard.size:
            raise VerifyError(f"{path} is missing or has another size; merge again", path=str(path))
    done = recompute(folder, planned, blocks, seed, stop)
    return Checked(len(planned.components), planned.prediction.bytes_written, 0, done)


__all__ = ["Checked", "Status", "status", "verify"]
