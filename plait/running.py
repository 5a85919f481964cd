"""From a plan to a folder: run it, listen to it, publish the output with its report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.engine.events import Events, Report, Several
from plait.engine.machine import available_memory, private_memory
from plait.engine.ticker import Watch
from plait.ops.errors import CheckpointError, PlaitError, ResumeError
from plait.ops.wholes import VIEWS, WHOLES
from plait.planner.donor import RECIPE_NAME
from plait.planner.plan import Plan
from plait.planner.sizes import size
from plait.planner.types import SideFile

if TYPE_CHECKING:
    from plait.api import Options
    from plait.engine.cache import ResultCache
    from plait.engine.reader import Reader
    from plait.engine.recording import Recording
    from plait.engine.trace import Trace
    from plait.engine.writer import OutputFolder


@dataclass(slots=True)
class Audience:
    """Who hears of a run.

    Attributes:
        events: hears everything.
        on_event: is called with each event as a dictionary, in the form of `docs/events.md`.
        trace: file that becomes a trace of the run.
    """

    events: Events | None = None
    on_event: Callable[[dict[str, Any]], object] | None = None
    trace: str | Path | None = None

    def begin(self, stack: ExitStack) -> tuple[Watch, Recording, Several]:
        """The clock of a run that begins now, what will remember it, and all who listen.

        Raises:
            OutputError: the trace cannot be written.
        """
        baseline = private_memory()
        watch = Watch(baseline_bytes=baseline)
        from plait.engine.recording import Recording

        recording = Recording(watch)
        listeners: list[Events] = [recording]
        if self.events is not None:
            listeners.append(self.events)
        if self.on_event is not None:
            from plait.engine.told import Told

            listeners.append(Told(self.on_event, watch.now))
        if self.trace is not None:
            listeners.append(_trace(Path(self.trace), watch, stack))
        return watch, recording, Several(listeners)


def _trace(path: Path, watch: Watch, stack: ExitStack) -> Trace:
    from plait.engine.lanes import Lanes
    from plait.engine.trace import Trace

    trace = stack.enter_context(Trace(path, watch.begun))
    watch.lanes = Lanes(trace.slice)
    return trace


def run_plan(
    planned: Plan,
    out: str | Path,
    sides: Sequence[SideFile],
    inputs: Sequence[str],
    heard: tuple[Watch, Recording, Several],
    options: Options,
    cache: ResultCache | None = None,
    *,
    source: str = "",
    stop: Any = None,
) -> Report:
    """Run a plan into a folder that appears whole or not at all.

    Args:
        planned: what to run.
        out: the folder.
        sides: small files of it.
        inputs: folders and files that were read for the plan.
        heard: as `Audience.begin` gave it, before the planning.
        options: that the plan was made with.
        cache: of results.
        source: where the recipe was read.
        stop: a `threading.Event` that ends the run early.
    """
    watch, recording, events = heard
    before = private_memory()
    from plait import __version__
    from plait.engine.executor import execute
    from plait.engine.identity import identity
    from plait.engine.manifest import figures
    from plait.engine.pool import open_pool
    from plait.engine.reader import Reader
    from plait.engine.runreport import REPORT_NAME, report_bytes, run_report
    from plait.engine.writer import OutputFolder

    watch.baseline_bytes += private_memory() - before
    text = next(((side.content or b"").decode() for side in sides if side.name == RECIPE_NAME), "")
    made = lru_cache(maxsize=1)(lambda: identity(planned, __version__, text, source))
    layout = replace(planned.layout, side_files=tuple(sides))
    folder = OutputFolder(Path(out), layout, inputs, identity=made, restart=options.restart, overwrite=options.overwrite)

    def written_last(report: Report) -> Iterator[SideFile]:
        """The report; asked for when the data is on the disk, so that it can say how long that took."""
        private = max(0, private_memory() - watch.baseline_bytes)
        found = run_report(planned, report, recording, made(), folder.working, private)
        report.off = tuple(found["verdict"]["sentences"])
        report.private_peak_bytes, report.compile_s = found["memory"]["measured_peak_bytes"], found["time"]["compile_s"]
        yield SideFile(REPORT_NAME, content=report_bytes(found))

    try:
        with folder, Reader(drop_behind=_overflow(planned)) as reader, open_pool(planned.gpu_budget_bytes) as pool:
            _load_libraries(planned, watch, recording, later=cache is not None)
            try:
                report = execute(planned, folder, reader, events, pool, folder.found, stop, cache=cache, allow_nonfinite=options.allow_nonfinite, watch=watch)
            except BaseException:
                with suppress(CheckpointError):
                    _check_inputs(reader, planned, folder)
                raise
            _check_inputs(reader, planned, folder)
            events.publishing()
            report.seconds = watch.now()
            folder.publish(written_last(report), figures(planned, report))
    except BaseException as error:
        if isinstance(error, PlaitError):
            _say_what_is_kept(error, folder)
        with suppress(Exception):  # why the run ended is the news
            events.failed(error)
        raise
    report.seconds = watch.now()
    events.ended(report)
    return report


def _load_libraries(planned: Plan, watch: Watch, recording: Recording, *, later: bool) -> None:
    """Load now what the run would load in its middle, where the memory of libraries could not be told from its own.

    Args:
        planned: what will run.
        watch: whose baseline takes the memory.
        recording: notes a library that may still come.
        later: a cache may have everything that torch would compute: it is loaded only when it is needed.
    """
    programs = [planned.programs[number] for number in sorted({component.program for component in planned.components})]
    stages = [(program, stage) for program in programs if program.copy is None for stage in program.stages]
    ops = {program.nodes[w].op for program, stage in stages for w in stage.wholes} - VIEWS
    before = private_memory()
    if planned.backend == "numba" and any(stage.has_pass for _, stage in stages):
        import_module("llvmlite.binding")
    if ops and later:
        recording.late_imports = "" if "torch" in sys.modules else "torch"
    elif ops:
        for module in {WHOLES[op].run.partition(":")[0] for op in ops} | {"torch", "plait.ops.kernels.results"}:
            import_module(module)
    elif planned.backend == "torch" and stages:
        import_module("torch")
    watch.baseline_bytes += private_memory() - before


def _check_inputs(reader: Reader, planned: Plan, folder: OutputFolder) -> None:
    """Inputs that changed under the run spoil what was computed from them: nothing of it is kept."""
    try:
        reader.check_unchanged(planned.files)
    except CheckpointError as error:
        if "differs" in error.facts:  # else it is out of reach, and may come back as it was
            folder.discard()
        raise


def _say_what_is_kept(error: PlaitError, folder: OutputFolder) -> None:
    kept = folder.kept
    if kept is None or "kept" in error.facts or isinstance(error, ResumeError):
        return
    error.facts.update(kept=str(kept.working), kept_bytes=kept.nbytes, total_bytes=kept.total)
    done = f"{size(kept.nbytes)} of {size(kept.total)} are done and kept"
    error.advice = f"{done}: the same command continues; --restart begins anew, `rm -r {shlex.quote(str(kept.working))}` drops them"


def _overflow(planned: Plan) -> bool:
    """Whether the inputs are larger than the memory that the page cache could take."""
    return sum(file.size for file in planned.files) > available_memory()
