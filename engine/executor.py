"""The executor: worker threads run the units of passes, components open in order as the ledger admits them.

State, all guarded by one condition variable:
    waiting    components of this sweep that have not begun, in plan order
    open       components that have begun, in order, each with the pass it is in
    error      the first exception of any worker; everybody leaves when it is set

A free worker takes, in this order: a unit of the oldest open component that has one; a new component, if
fewer than `workers` are open, it lies within the window, and the ledger leases what it will hold; or it waits.
The worker that finishes the last unit of a pass runs the component on to its next pass.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from plait.engine.cache import ResultCache
from plait.engine.component import ComponentRun
from plait.engine.events import Events, Report, Several
from plait.engine.facts import result_facts
from plait.engine.faults import named
from plait.engine.finite import Finiteness
from plait.engine.journal import Found
from plait.engine.lanes import COMPUTING, FOR_MEMORY, FOR_WORK, Lane
from plait.engine.ledger import Ledger
from plait.engine.looks import counts, look
from plait.engine.moments import Step, Task
from plait.engine.orderstat import Statistic
from plait.engine.passes import Pass
from plait.engine.pool import DevicePool
from plait.engine.prepare import prepare_kernels
from plait.engine.reader import Reader
from plait.engine.resuming import Remaining
from plait.engine.reuse import Reuse
from plait.engine.scopes import finish_scopes, foresee_scopes
from plait.engine.sink import Sink
from plait.engine.ticker import Ticker, Watch
from plait.engine.worker import Host, Worker
from plait.engine.writebehind import WriteBehind
from plait.ops.errors import KernelError, Stopped
from plait.ops.kernels.heap import keep_large_apart
from plait.planner.cost import Lease, lease_of
from plait.planner.plan import Component, Plan
from plait.planner.schedule import stage_sweeps
from plait.planner.windows import WINDOW

#: Blocks on their way to the disk at once; more gain nothing.
_WRITERS = 2


@dataclass(slots=True, eq=False)
class _Open:
    number: int
    component: Component
    passes: Iterator[Pass]
    leased: Lease
    task: Task
    current: Pass | None = None
    issued: int = 0
    done: int = 0


def execute(
    plan: Plan,
    sink: Sink,
    reader: Reader,
    events: Events | None = None,
    pool: DevicePool | None = None,
    found: Found | None = None,
    stop: threading.Event | None = None,
    *,
    cache: ResultCache | None = None,
    allow_nonfinite: bool = False,
    watch: Watch | None = None,
) -> Report:
    """Run a plan into a sink that has begun; the sink is not published here.

    Args:
        plan: what to run.
        sink, reader: where to and from.
        events: hears how it goes on.
        pool: GPUs, where the plan uses any.
        found: what the sink has already.
        stop: when it is set, the blocks in hand are finished and written, and the run ends.
        cache: of results that earlier runs had; the plan was made for one.
        watch: clock, memory baseline and lanes of the run, where the caller keeps them.
        allow_nonfinite: infinite values and NaN are counted in the report, and do not end the run.

    Raises:
        Stopped: `stop` was set.
        PlaitError: whatever went wrong first; no worker runs any more when it is raised.
    """
    found, watch = found or Found(), watch or Watch()
    if any(stage.wholes for program in plan.programs for stage in program.stages):
        keep_large_apart()
    reader.lanes = watch.lanes
    report = Report(bytes_resumed=found.nbytes)
    for number in range(1, plan.workers + 1):
        watch.lanes.lane(f"worker {number}")
    after = {scope.key: scope.sweep for scope in plan.scopes}
    writing = WriteBehind(sink, min(plan.workers, _WRITERS), lambda nbytes: host.progress(written=nbytes), watch.lanes)
    sweeps = [stage_sweeps(p, after) for p in plan.programs]
    host = Host(
        plan,
        reader,
        sink,
        writing,
        Finiteness(plan, reader, report, allow=allow_nonfinite),
        events if isinstance(events, Several) else Several([events] if events is not None else []),
        report,
        sweeps,
        pool=pool or DevicePool(()),
        found=found,
        watch=watch,
    )
    if cache is not None and plan.keeping:
        host.reuse, report.cache = Reuse(plan, cache, result_facts(plan), reader, report), cache.use
    try:
        host.events.started(plan)
        remaining = Remaining(plan, sweeps, found)
        for component in plan.components:
            if component.name in remaining.complete:
                host.events.finished_component(component)
        if not remaining.nothing:
            run = _Run(host, remaining, stop or threading.Event())
            if host.reuse is not None:
                host.scope_values.update(host.reuse.ask_scopes())
            with Ticker(host.events, partial(look, run), partial(counts, host), run.fail):
                for sweep in range(plan.sweeps):
                    foresee_scopes(run, sweep)
                    run.sweep(sweep, frozenset())
                    finish_scopes(run, sweep)
                writing.close()
            report.leased_peak_bytes = run.ledger.peak_bytes
            sums = [scope.key for scope in plan.scopes if scope.key not in host.statistics and scope.key in host.scope_values]
            report.statistics = {key.replace("|", " "): float(host.scope_values[key][""]) for key in sums}
    except Stopped:
        raise
    except BaseException as error:
        writing.give_up(error)
        raise
    finally:
        writing.close()
    writing.check()
    report.bytes_read, report.bytes_written = reader.bytes_read + host.copied, sink.bytes_written
    report.gpu_retries = host.pool.retries
    return report


class _Run:
    def __init__(self, host: Host, remaining: Remaining, stop: threading.Event) -> None:
        self.host, self.remaining, self.stop, plan = host, remaining, stop, host.plan
        fixed = plan.prediction.runtime_bytes + plan.workers * (plan.prediction.worker_bytes + plan.prediction.slab_bytes)
        self.ledger = Ledger(max(plan.budget_bytes, fixed), fixed, fixed)
        self.needs = [lease_of(program, on_gpu=n in plan.on_gpu, lean=n in plan.lean) for n, program in enumerate(plan.programs)]
        lanes = host.watch.lanes
        lanes.sit(lanes.all()[0]).switch(COMPUTING)
        kernels, prepared = prepare_kernels(plan, stop)
        host.events.prepared(prepared)
        self.workers = [Worker(plan, kernels, host.pool, lane) for lane in lanes.all()[: plan.workers]]
        self.tasks, self.short = 0, False
        self.runs: dict[str, ComponentRun] = {}
        self.condition = threading.Condition()
        self.waiting: deque[tuple[int, Component]] = deque()
        self.open: list[_Open] = []
        self.error: BaseException | None = None
        self.identities = {file.path: file for file in plan.files}
        self.readers = Counter(file for c in plan.components if c.name not in remaining.complete for file in {ref.file for ref in c.inputs})
        for scope in plan.scopes:
            op, *values = scope.key.split("|")
            if op == "kth_magnitude":
                host.statistics[scope.key] = Statistic(values[0], values[2], scope.numel)

    def sweep(self, number: int, recount: frozenset[str]) -> None:
        """Run every component through its stages of one sweep."""
        self.number, self.recount = number, recount
        self.waiting = deque((n, c) for n, c in enumerate(self.host.plan.components) if self.remaining.runs(c, number))
        if not recount and self.remaining.complete:
            self.host.progress(*map(sum, zip((0, 0), *self._spared(number), strict=True)))
        threads = [threading.Thread(target=self._work, args=(w,), name=f"plait-{i}", daemon=True) for i, w in enumerate(self.workers[1:], 1)]
        for thread in threads:
            thread.start()
        try:
            self._work(self.workers[0])
        finally:
            with self.condition:
                if self.error is None and (self.waiting or self.open):
                    self.error = KernelError("the run was interrupted; give the same command again")
                self.condition.notify_all()
            _join(threads)
        if self.error is not None:
            raise self.error

    def _spared(self, number: int) -> Iterator[tuple[int, int]]:
        return (self.remaining.spared(c, number) for c in self.host.plan.components if not self.remaining.runs(c, number))

    # -- one worker -----------------------------------------------------------------------------
    def _work(self, worker: Worker) -> None:
        self.host.workers[threading.get_ident()] = worker
        lane = self.host.watch.lanes.sit(worker.lane)
        try:
            while (taken := self._take(lane)) is not None:
                task, unit = taken
                lane.task = task.component.name
                with named(task.component.name):
                    if unit >= 0:
                        assert task.current is not None
                        task.current.run(worker, unit)
                    else:
                        self.host.events.task_started(task.task)
                    if unit < 0 or self._unit_done(task, lane):
                        self._advance(task, lane)
        except BaseException as error:
            self.fail(error)
        lane.switch(FOR_WORK)

    def fail(self, error: BaseException) -> None:
        """End the run with the first error."""
        with self.condition:
            self.error = self.error or error
            self.condition.notify_all()

    def _take(self, lane: Lane) -> tuple[_Open, int] | None:
        """A unit to run (its number), a component to begin (-1), or None when all is done or lost."""
        lane.switch(FOR_WORK)
        taken = self._next(lane)
        lane.switch(COMPUTING)
        lane.cut()
        return taken

    def _next(self, lane: Lane) -> tuple[_Open, int] | None:
        with self.condition:
            while True:
                if self.stop.is_set() and (self.open or self.waiting):
                    self.error = self.error or Stopped("the run was stopped before it was finished")
                    self.condition.notify_all()
                if self.error is not None:
                    return None
                for task in self.open:
                    if task.current is not None and task.issued < task.current.units:
                        task.issued += 1
                        return task, task.issued - 1
                opened = self._try_open()
                if opened is not None:
                    return opened, -1
                if not self.open:
                    if self.waiting:  # nothing that could give memory back: waiting would never end
                        name = self.waiting[0][1].name
                        raise KernelError(f"{name} does not fit into the budget although nothing else runs; please report this", tensor=name)
                    self.condition.notify_all()
                    return None
                lane.switch(FOR_MEMORY if self.short else FOR_WORK)
                self.condition.wait()

    def _try_open(self) -> _Open | None:
        plan, self.short = self.host.plan, False
        if not self.waiting or len(self.open) >= plan.workers:
            return None
        number, component = self.waiting[0]
        if self.open and number - self.open[0].number >= WINDOW * plan.workers:
            return None
        needed = self.needs[component.program]
        if not self.ledger.lease(*needed):
            self.short = True
            return None
        self.waiting.popleft()
        seen = Task(self.tasks, component, self.number, self.host.watch.now(), sum(needed))
        self.tasks += 1
        task = _Open(number, component, self.component_run(component).passes(self.number, self.recount), needed, seen)
        self.open.append(task)
        return task

    def component_run(self, component: Component) -> ComponentRun:
        """The run of a component; with several sweeps its small values live from one to the next."""
        run = self.runs.get(component.name)
        if run is None:
            run = ComponentRun(self.host, component)
            if self.host.plan.sweeps > 1:
                self.runs[component.name] = run
        return run

    def _unit_done(self, task: _Open, lane: Lane) -> bool:
        with self.condition:
            task.task.add(lane.cut())
            task.done += 1
            return task.current is not None and task.done == task.current.units

    def _advance(self, task: _Open, lane: Lane) -> None:
        """Go on to the component's next pass that has units, or close it."""
        seen, events, now = task.task, self.host.events, self.host.watch.now
        if task.current is not None:
            events.pass_finished(Step(seen, seen.passes, task.current.units, now(), lane.name))
            seen.passes += 1
        following = next((p for p in task.passes if p.units), None)
        if following is not None:
            events.pass_started(Step(seen, seen.passes, following.units, now(), lane.name))
        with self.condition:
            seen.add(lane.cut())
            task.current, task.issued, task.done = following, 0, 0
            if following is None:
                self.open.remove(task)
                self.ledger.release(*task.leased)
            self.condition.notify_all()
        if following is None:
            seen.ended_s = now()
            events.task_finished(seen)
            self.host.reader.done_with(task.component.inputs)
        if following is None and self.number + 1 == self.host.plan.sweeps and task.component.name not in self.remaining.complete:
            self._check_inputs(task.component)
            self.host.events.finished_component(task.component)

    def _check_inputs(self, component: Component) -> None:
        """Where a component was the last to read a file: is it still the file that the plan was made for?"""
        files = {ref.file for ref in component.inputs}
        with self.condition:
            self.readers.subtract(files)
            ended = [file for file in files if not self.readers[file]]
        self.host.reader.check_unchanged(self.identities[file] for file in ended if file in self.identities)


def _join(threads: list[threading.Thread]) -> None:
    """Wait for the workers even while the user interrupts: what they write to must not be closed under them."""
    interrupted: BaseException | None = None
    for thread in threads:
        while thread.is_alive():
            try:
                thread.join()
            except KeyboardInterrupt as error:
                interrupted = error
    if interrupted is not None:
        raise interrupted
