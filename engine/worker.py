"""What worker threads own and what they share."""

from __future__ import annotations

import threading
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.engine.blockrun import Array, BlockRunner, Counts, make_runner
from plait.engine.codegen import generate
from plait.engine.events import Report, Several
from plait.engine.finite import Finiteness
from plait.engine.journal import Found
from plait.engine.kernel import Kernel
from plait.engine.lanes import FOR_DISK, Lane
from plait.engine.orderstat import Statistic
from plait.engine.pool import DevicePool, take_seat
from plait.engine.prepare import kernel_key
from plait.engine.reader import Reader
from plait.engine.sink import Sink
from plait.engine.ticker import Watch
from plait.engine.writebehind import Ticket, WriteBehind
from plait.planner.blocks import PAGE, StageBuffers, compiled_on_cpu, output_buffer, stage_buffers
from plait.planner.optimisations import FORESIGHT
from plait.planner.plan import Plan
from plait.planner.program import Program, Stage

if TYPE_CHECKING:
    from plait.engine.reuse import Reuse


class Worker:
    """One worker's buffers, allocated once and used for every block it runs.

    Args:
        plan: what will run.
        kernels: generated kernels, shared by all workers.
        pool: GPUs, where the plan uses any; with maps there, the worker has a place on one and its memory is pinned for it.
        lane: where its time is counted.
    """

    def __init__(self, plan: Plan, kernels: dict[Hashable, Kernel], pool: DevicePool, lane: Lane) -> None:
        self.plan, self.kernels, self.lane = plan, kernels, lane
        self.seat = take_seat(pool, plan)
        memory = np.empty(plan.prediction.worker_bytes, np.uint8) if self.seat is None else self.seat.device.pinned(plan.prediction.worker_bytes)
        memory = memory[-memory.__array_interface__["data"][0] % PAGE :]
        self._pulled = compiled_on_cpu(plan.backend, plan.maps)
        size = output_buffer(plan.programs, pulled=self._pulled)
        self._outputs = (memory[:size], memory[size : 2 * size])
        self._tickets: list[Ticket | None] = [None, None]
        self._filling = 0
        self._arena = memory[2 * size :]
        self.inputs: dict[int, Array] = {}
        self.residents: dict[int, Array] = {}
        self.values: Array = memory[:0]
        self.scratch: Array = memory[:0]
        self._runners: dict[Hashable, BlockRunner] = {}
        self._arranged: Hashable = None
        self._sizes: dict[Hashable, StageBuffers] = {}

    def arrange(self, program: Program, stage: Stage) -> None:
        """Divide the memory as a stage needs it."""
        key = (id(program), id(stage))
        if key == self._arranged:
            return
        self._arranged = key
        sizes = self._sizes.get(key)
        if sizes is None:
            sizes = self._sizes[key] = stage_buffers(program, stage, pulled=self._pulled, cached=bool(self.plan.keeping))
        self.inputs, self.residents, at = {}, {}, 0
        for rooms, nodes, buffers in ((self.inputs, stage.loads, sizes.inputs), (self.residents, stage.residents, sizes.residents)):
            for node, nbytes in zip(nodes, buffers, strict=False):  # without a cache there is no room for residents
                rooms[node] = self._arena[at : at + nbytes]
                at += nbytes
        self.values = self._arena[at : at + sizes.values]
        self.scratch = self._arena[at + sizes.values : at + sizes.values + sizes.scratch]

    def output(self, nbytes: int, offset: int, itemsize: int) -> Array:
        """Memory for a block that goes to a file offset: of two such buffers the one that was not given out last, once it is written."""
        self._filling = 1 - self._filling
        ticket = self._tickets[self._filling]
        if ticket is not None:
            before = self.lane.switch(FOR_DISK)
            ticket.wait()
            self.lane.switch(before)
            self._tickets[self._filling] = None
        return like_in_page(self._outputs[self._filling], nbytes, offset, itemsize)

    def sent(self, ticket: Ticket, nbytes: int) -> None:
        """So many bytes of the buffer given out last are on their way to the disk."""
        self._tickets[self._filling] = ticket
        self.lane.written += nbytes

    def pulls(self, kernel: Kernel) -> bool:
        """Whether a kernel reads its inputs itself."""
        return self._pulled and kernel.pulls

    def runner(self, program_number: int, stage: Stage, what: Hashable) -> BlockRunner:
        """The runner of a stage; `what` tells a probe from the stage itself."""
        # the working arrays are cut from this worker's scratch, whose place depends on the arrangement
        named = kernel_key(program_number, stage, what)
        key = (*named, self._arranged)
        runner = self._runners.get(key)
        if runner is None:
            if len(self._runners) > 256:
                self._runners.clear()
            program = self.plan.programs[program_number]
            kernel = self.kernels.get(named)
            if kernel is None:
                kernel = self.kernels[named] = generate(program, stage)
            runner = self._runners[key] = make_runner(program, stage, self.plan.backend, kernel, self.scratch, self.seat)
        return runner


def like_in_page(buffer: Array, nbytes: int, offset: int, itemsize: int) -> Array:
    """A part of a page-aligned buffer that lies in its page as `offset` does in its page of a file, to a multiple of the element.

    The kernel copies bytes that lie otherwise up to four times slower (docs/decisions/0005), and cannot write them past its cache.
    """
    shift = offset % PAGE // itemsize * itemsize
    return buffer[shift : shift + nbytes]


@dataclass(slots=True)
class Host:
    """What all components of a run share.

    Attributes:
        plan, reader, sink, events, report, pool, watch: of the run.
        writing: writes blocks to the sink while others are computed.
        finite: looks for infinity and NaN.
        sweeps: for each program, the sweep of each stage.
        statistics: model-wide order statistics, by scope key.
        sums: model-wide sums: scope key -> tensor name -> partial.
        probes: stages that only look at values, by the stage they look into and the nodes.
        found: what an earlier run made durable.
        copied: bytes copied without decoding.
        done_read, done_written: of the predicted bytes, those that are done or spared.
        reuse: results of earlier runs, where the run has a cache of them.
        scope_values: finished model-wide statistics: scope key -> tensor name -> value ("" for all).
    """

    plan: Plan
    reader: Reader
    sink: Sink
    writing: WriteBehind
    finite: Finiteness
    events: Several
    report: Report
    sweeps: list[list[int]]
    statistics: dict[str, Statistic] = field(default_factory=dict)
    sums: dict[str, dict[str, float]] = field(default_factory=dict)
    scope_values: dict[str, dict[str, Any]] = field(default_factory=dict)
    workers: dict[int, Worker] = field(default_factory=dict)
    probes: dict[Hashable, Stage] = field(default_factory=dict)
    slabs: list[Array] = field(default_factory=list)
    pool: DevicePool = field(default_factory=lambda: DevicePool(()))
    found: Found = field(default_factory=Found)
    copied: int = 0
    done_read: int = 0
    done_written: int = 0
    watch: Watch = field(default_factory=Watch)
    reuse: Reuse | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def spare_worker(self) -> Worker:
        """The worker of the calling thread."""
        return self.workers[threading.get_ident()]

    def take_slab(self) -> Array:
        """Memory for a component's inputs; slabs go round, for fresh memory costs a page fault every 4 KiB."""
        with self._lock:
            if self.slabs:
                return self.slabs.pop()
        seat, nbytes = self.spare_worker().seat, self.plan.prediction.slab_bytes
        return np.empty(nbytes, np.uint8) if seat is None else seat.device.pinned(nbytes)

    def give_slab(self, slab: Array) -> None:
        """Let another component have it."""
        with self._lock:
            self.slabs.append(slab)

    def progress(self, read: int = 0, written: int = 0) -> None:
        """Count predicted bytes that are done, and report them."""
        if read or written:
            with self._lock:
                self.done_read += read
                self.done_written += written
            self.events.progress(read, written)

    def count_recounts(self, count: int) -> None:
        """Note order statistics whose place was not foreseen, where that was tried."""
        if FORESIGHT in self.plan.without:
            return
        with self._lock:
            self.report.recounted += count

    def count_whole(self, op: str) -> None:
        """Note an op on whole matrices that was computed."""
        with self._lock:
            self.report.wholes[op] = self.report.wholes.get(op, 0) + 1

    def count_spared(self, passes: int, nbytes: int) -> None:
        """Note passes that a cache spared, and predicted bytes that were not read."""
        if passes or nbytes:
            with self._lock:
                assert self.report.cache is not None
                self.report.cache.spared_passes += passes
                self.report.cache.spared_bytes += nbytes
            self.progress(nbytes)

    def count_copied(self, nbytes: int) -> None:
        """Note bytes copied without decoding."""
        with self._lock:
            self.copied += nbytes

    def add_sum(self, scope: str, tensor: str, value: float) -> None:
        """A tensor's share of a model-wide sum."""
        with self._lock:
            self.sums.setdefault(scope, {})[tensor] = value

    def add_counts(self, scope: str, tensor: str, counts: Counts, padding: int = 0) -> None:
        """What a tensor adds to a model-wide order statistic; `padding` of its elements do not count."""
        with self._lock:
            self.statistics[scope].add(tensor, counts)
            self.statistics[scope].numel -= padding

    def scope_value(self, scope: str, tensor: str) -> Any:
        """The finished model-wide statistic, as a tensor uses it."""
        values = self.scope_values[scope]
        return values[tensor] if tensor in values else values[""]
