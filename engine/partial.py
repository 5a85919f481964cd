"""A working folder that outlives its run: what of it is durable, and how the next run takes it up."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from plait.engine.blockrun import Array
from plait.engine.checksum import PIECE, OwnDigests, RangeDigest
from plait.engine.commits import Commits
from plait.engine.identity import differences
from plait.engine.journal import ENTRY, JOURNAL_NAME, VERSION, Entries, Found, JournalWriter, entry, read_journal, sorted_entries
from plait.engine.publish import output_errors, remove_working, sync_folder
from plait.engine.shardfile import ShardFile
from plait.ops.errors import ResumeError
from plait.planner.safetensors_header import size_text
from plait.planner.types import Layout

_SAMPLED = 8  # ranges of a shard that are read again when it is continued


class Partial:
    """What of an output is durable: found at the beginning, and added to as it is written.

    Args:
        working: the working folder.
        destination: what it will become, for messages.
        layout: of the output.
        identity: says what is being made; asked when there is something to compare or to record.
    """

    def __init__(self, working: Path, destination: Path, layout: Layout, identity: Callable[[], dict[str, Any]]) -> None:
        """Look at nothing yet."""
        self._working, self._destination, self._layout, self._identity = working, destination, layout, identity
        self._entries: Entries = np.empty(0, ENTRY)
        self.found = Found()
        self._journal: JournalWriter | None = None
        self._files: Sequence[ShardFile] = ()
        self.commits = Commits(self._sync, self._record)
        self._own = OwnDigests()

    # -- at the beginning -------------------------------------------------------------------------
    def take_up(self, restart: bool) -> bool:
        """Whether the working folder is there to be continued; what cannot be continued is removed.

        Raises:
            ResumeError: finished work of another recipe, other inputs or other options is there, and `restart` does not say to drop it.
        """
        if restart or self._working.is_symlink() or not self._working.is_dir():
            remove_working(self._working)
            return False
        with output_errors(self._working / JOURNAL_NAME, "read the journal"):
            recovered = read_journal(self._working / JOURNAL_NAME)
        if recovered.version not in (0, VERSION):
            self._refuse(0, [f"its journal is of version {recovered.version} and this plait writes {VERSION}"])
        if recovered.head is None or not recovered.entries.size:
            remove_working(self._working)
            return False
        differs = differences(recovered.head, self._identity())
        if differs:
            self._refuse(int(recovered.entries["nbytes"].sum()), differs)
        with output_errors(self._working, "continue the output"):
            self._entries = self._still_there(recovered.entries)
            self.found = Found(self._entries)
            # anew, so that it neither ends in a torn record nor names ranges of a file that is made again
            self._journal = JournalWriter(self._working / JOURNAL_NAME, self._identity(), self._entries)
        return True

    def _refuse(self, done: int, differs: list[str]) -> None:
        what = f"{size_text(done)} of an interrupted run are kept for it" if done else "something of an interrupted run is kept for it"
        advice = "put that back and give the same command to continue it, or give --restart to drop it and begin anew"
        raise ResumeError(f"{self._destination}: {what}, but {'; '.join(differs)}: {advice}", path=str(self._destination), differs=tuple(differs))

    def _still_there(self, entries: Entries) -> Entries:
        """Entries of the shards that are there, under their working names; whatever else lies in the folder is removed."""
        good, kept = [], {JOURNAL_NAME}
        for number, shard in enumerate(self._layout.shards):
            partial, final = self._working / partial_name(number), self._working / shard.name
            if not partial.exists() and final.is_file() and not final.is_symlink():  # the run ended while it was being published
                os.rename(final, partial)
            if partial.is_file() and not partial.is_symlink() and partial.stat().st_size == shard.size:
                good.append(number)
                kept.add(partial.name)
        for path in list(self._working.iterdir()):
            if path.name not in kept:
                remove_working(path)
        found: Entries = entries[np.isin(entries["shard"], [n for n in good if self._holds(n, entries[entries["shard"] == n])])]
        return found

    def _holds(self, shard: int, entries: Entries) -> bool:
        """Whether a shard's file holds what the journal says, judged by a few ranges from end to end: it may have been replaced meanwhile."""
        chosen = entries[np.unique(np.linspace(0, len(entries) - 1, min(_SAMPLED, len(entries))).astype(int))]
        digests = RangeDigest()
        fd = os.open(self._working / partial_name(shard), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            return all(digests.of(partial(_fill, fd), int(e["offset"]), int(e["nbytes"])) == e["digest"].tobytes() for e in chosen)
        finally:
            os.close(fd)

    def start(self, files: Sequence[ShardFile]) -> None:
        """The shard files are open: what is written from now on goes into the journal."""
        self._files = files
        if self._journal is not None:  # shards that were made anew must be found again
            with output_errors(self._working, "flush the folder to disk"):
                sync_folder(self._working)

    # -- while it runs ----------------------------------------------------------------------------
    def wrote(self, shard: int, offset: int, nbytes: int, known: bytes) -> None:
        """Bytes of a known digest were written: they are to become durable."""
        self.commits.note(shard, nbytes, entry(shard, offset, nbytes, known))

    def copied(self, shard: int, offset: int, nbytes: int, read: Callable[[int, Array], None], source_offset: int) -> None:
        """Bytes were copied from an input file, which `read` reads again to take their digests."""
        packed = b""
        for first in range(0, nbytes, PIECE):
            length = min(PIECE, nbytes - first)
            packed += entry(shard, offset + first, length, self._own.digests.of(read, source_offset + first, length))
        self.commits.note(shard, nbytes, packed)

    def _sync(self, shards: Iterable[int]) -> None:
        for number in shards:
            with output_errors(self._working / partial_name(number), "flush the data to disk"):
                self._files[number].sync_data()

    def _record(self, packed: bytes) -> None:
        with output_errors(self._working / JOURNAL_NAME, "write the journal"):
            if self._journal is None:
                journal = JournalWriter(self._working / JOURNAL_NAME, self._identity())
                sync_folder(self._working.parent)  # the working folder itself must be found again
                self._journal = journal
            self._journal.append(packed)

    # -- at the end -------------------------------------------------------------------------------
    @property
    def durable_bytes(self) -> int:
        """Bytes that the next run will find."""
        return self.found.nbytes + self.commits.durable_bytes

    def settle(self) -> None:
        """Everything is written and flushed: say so in the journal, where there is one."""
        self.commits.finish(commit=self._journal is not None)

    def stop(self) -> bool:
        """Commit what was written in whole, and close the journal; whether the next run will find anything."""
        try:
            self.commits.finish(commit=True)
        except Exception:  # the disk is full or fails, which is why the run ends: what was committed before stays good
            pass
        finally:
            if self._journal is not None:
                self._journal.close()
        return self.durable_bytes > 0

    def entries(self) -> Entries:
        """Digests of everything that is there, by shard and offset."""
        return sorted_entries(np.concatenate((self._entries, np.frombuffer(bytes(self.commits.all), ENTRY))))


def _fill(fd: int, offset: int, buffer: Array) -> None:
    done = 0
    while done < buffer.size and (count := os.preadv(fd, [buffer[done:].data], offset + done)):
        done += count
    buffer[done:] = 0  # a file that ends early has another digest


def partial_name(number: int) -> str:
    """Name of a shard's file while it grows; no loader takes it for one."""
    return f"shard-{number + 1:05d}.partial"
