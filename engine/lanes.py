"""What each thread of a run does, moment by moment: reading, computing, writing, or waiting for something.

A lane is always in exactly one state, so that its times add up to the time that has passed. Changing the state costs one look at the clock;
blocks are megabytes, so nothing of it is seen in the time of a merge. Who wants every slice of time (a trace) asks for them, nobody else pays.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter_ns
from typing import NamedTuple

READING, COMPUTING, WRITING, FOR_WORK, FOR_MEMORY, FOR_DISK = range(6)
#: The states by number.
STATES = ("reading", "computing", "writing", "waiting for work", "waiting for memory", "waiting for the disk")
#: What the states amount to, for people.
SHARES = {"reading": (READING,), "computing": (COMPUTING,), "writing": (WRITING,), "waiting": (FOR_WORK, FOR_MEMORY, FOR_DISK)}

#: Hears of a lane's slice: the lane, its state, and from when to when in nanoseconds of `perf_counter_ns`.
Slices = Callable[["Lane", int, int, int], None]


class Spent(NamedTuple):
    """What a lane did between two looks.

    Attributes:
        ns: nanoseconds in each state.
        read, written: bytes that it read, and that it wrote or handed over to be written.
    """

    ns: tuple[int, ...]
    read: int
    written: int


class Lane:
    """One thread of a run; it alone changes its lane, anybody may look at it.

    Args:
        name: for people, such as `worker 1`.
        number: position among the lanes of the run.
        slices: hears of every slice of time.

    Attributes:
        task: what the lane works on, for traces.
        read, written: bytes so far.
    """

    __slots__ = ("_cut", "_ns", "_since", "_slices", "name", "number", "read", "state", "task", "written")

    def __init__(self, name: str, number: int = 0, slices: Slices | None = None) -> None:
        self.name, self.number, self._slices = name, number, slices
        self.state, self.task, self.read, self.written = FOR_WORK, "", 0, 0
        self._ns = [0] * len(STATES)
        self._since = perf_counter_ns()
        self._cut = Spent((0,) * len(STATES), 0, 0)

    def switch(self, state: int) -> int:
        """Go over to another state; gives the one before."""
        now, before = perf_counter_ns(), self.state
        if self._slices is not None and before != state:
            self._slices(self, before, self._since, now)
        elif self._slices is not None:
            return before  # the slice goes on
        self._ns[before] += now - self._since
        self._since, self.state = now, state
        return before

    def spent_in(self, state: int, ns: int) -> None:
        """Of the time that the lane is in its state now, so many nanoseconds were spent in another."""
        if self._slices is not None:
            self._slices(self, state, self._since, self._since + ns)
        self._ns[state] += ns
        self._since += ns

    @contextmanager
    def writing(self, nbytes: int) -> Iterator[None]:
        """The lane writes so many bytes while this is entered."""
        before = self.switch(WRITING)
        try:
            yield
        finally:
            self.switch(before)
        self.written += nbytes

    def spent(self) -> tuple[int, ...]:
        """Nanoseconds in each state so far, the one it is in included."""
        ns, since, state = list(self._ns), self._since, self.state
        ns[state] += max(0, perf_counter_ns() - since)
        return tuple(ns)

    def cut(self) -> Spent:
        """What the lane did since it was last asked; for its own thread."""
        before = self._cut
        self._cut = now = Spent(self.spent(), self.read, self.written)
        return Spent(tuple([a - b for a, b in zip(now.ns, before.ns, strict=True)]), now.read - before.read, now.written - before.written)


class Lanes:
    """The lanes of a run, and which of them the calling thread is on.

    Args:
        slices: hears of every slice of time of every lane, on the lane's own thread.
    """

    def __init__(self, slices: Slices | None = None) -> None:
        self._slices, self._lock = slices, threading.Lock()
        self._here = threading.local()
        self._all: list[Lane] = []

    def all(self) -> tuple[Lane, ...]:
        """Every lane, in the order in which they came."""
        return tuple(self._all)

    def lane(self, name: str) -> Lane:
        """The lane of a name, made when it is first asked for."""
        with self._lock:
            found = next((lane for lane in self._all if lane.name == name), None)
            if found is None:
                found = Lane(name, len(self._all), self._slices)
                self._all.append(found)
            return found

    def sit(self, lane: Lane) -> Lane:
        """The calling thread is on this lane from now on."""
        self._here.lane = lane
        return lane

    def here(self) -> Lane:
        """The lane of the calling thread; a thread that sits on none gets one that nobody looks at."""
        try:
            lane: Lane = self._here.lane
        except AttributeError:
            lane = self._here.lane = Lane("")
        return lane
