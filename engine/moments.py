"""The data of events: what listeners of a run are given. Plain values, made a few times a second or once a tensor."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from plait.engine.lanes import STATES, Spent
from plait.planner.plan import Component


@dataclass(slots=True)
class Task:
    """One output tensor on its way through one sweep.

    Attributes:
        number: in the order in which tasks begin.
        component: the output tensor.
        sweep: of the plan, from 0.
        begun_s, ended_s: since the run began.
        leased_bytes: what it holds of the budget.
        passes: that have ended.
        read_bytes, written_bytes: by it, measured.
        spent_ns: of the workers on it, by state of `lanes.STATES`.
    """

    number: int
    component: Component
    sweep: int
    begun_s: float
    leased_bytes: int
    ended_s: float = 0.0
    passes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0
    spent_ns: list[int] = field(default_factory=lambda: [0] * len(STATES))

    def add(self, spent: Spent) -> None:
        """Count what a worker did for it."""
        self.spent_ns = [a + b for a, b in zip(self.spent_ns, spent.ns, strict=True)]
        self.read_bytes += spent.read
        self.written_bytes += spent.written


class Step(NamedTuple):
    """One pass over a tensor.

    Attributes:
        task: whose.
        number: of the pass, from 0.
        units: blocks, or other pieces of work, that it is made of.
        at_s: when it began or ended, since the run began.
        lane: worker that began it, or that finished its last unit.
    """

    task: Task
    number: int
    units: int
    at_s: float
    lane: str


class Prepared(NamedTuple):
    """The kernels are ready.

    Attributes:
        kernels: that the plan needs.
        compiled: of them, those that no earlier run had left.
        seconds: that it took.
    """

    kernels: int
    compiled: int
    seconds: float


class Open(NamedTuple):
    """A task in progress: its output tensor, its pass from 0, and how many of the pass's units are done."""

    component: Component
    number: int
    done: int
    units: int


class Level(NamedTuple):
    """What a lane has done so far: its name, the state it is in, nanoseconds by state, bytes read and written."""

    lane: str
    state: int
    spent_ns: tuple[int, ...]
    read: int
    written: int


class Sample(NamedTuple):
    """A look at a run in progress, taken several times a second.

    Attributes:
        at_s: since the run began.
        private_bytes: private memory of the process above what it had before the run; 0 where the system does not say.
        leased_bytes: of the memory budget.
        gpu_leased_bytes: on each GPU.
        read_bytes, written_bytes: measured, all lanes together.
        done_read, done_written: of the predicted bytes, those that are done or spared.
        lanes: what each thread has done so far.
        open: tasks in progress.
    """

    at_s: float
    private_bytes: int
    leased_bytes: int
    gpu_leased_bytes: tuple[int, ...]
    read_bytes: int
    written_bytes: int
    done_read: int
    done_written: int
    lanes: tuple[Level, ...]
    open: tuple[Open, ...]


class Note(NamedTuple):
    """Something happened that a plan does not foresee, so often since the last look.

    Attributes:
        kind: `recount`, `gpu_retry`, `cache_hit`, `cache_miss`, `cache_stored`, `cache_damaged`, or `stall`: every worker has waited for
            long, for what `words` says.
        times: how often.
        at_s: since the run began.
        words: more about it, for people.
    """

    kind: str
    times: int
    at_s: float
    words: str = ""
