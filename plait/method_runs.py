"""Every method on the same models: a merge of each in a process of its own, what it took beside what its plan predicted."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from plait.api import Options, plan
from plait.engine.machine import available_memory
from plait.measuring import Measured, import_bytes, noted, noting
from plait.method_recipe import recipe_of
from plait.ops.errors import BudgetTooSmall, OutputError, PlaitError
from plait.ops.method import Method, methods, nearest, steps
from plait.planner.plan import Plan
from plait.planner.sizes import size
from plait.synthetic import open_base, write_layer_scores, write_like
from plait.watching import Command, watch_each

#: Compiles the kernels of a plan, imports what the merge imports, and reads the inputs once.
_PREPARE = """
import json, sys
from pathlib import Path
from plait.api import Options, plan
from plait.engine.floor import warm
from plait.engine.prepare import prepare_kernels
recipe, options = sys.argv[1:]
planned = plan(recipe, Options(**json.loads(options)))
prepare_kernels(planned)
if any(stage.wholes for program in planned.programs for stage in program.stages):
    import torch
warm([Path(file.path) for file in planned.files])
"""
STREAMING_MEMORY = "128MiB"


@dataclass(frozen=True, slots=True)
class Settings:
    """How methods are run.

    Attributes:
        memory: budget of each merge; None for 128 MiB, or half of the free memory where that is too small.
        workers: threads; None for the cores.
        limit_s: after which a merge is stopped; one that is predicted to take more than twice as long is not begun. None for no limit.
        warm_up: kernels are compiled, and inputs read, before the clock.
        through: a command put before each measured one.
    """

    memory: str | None = None
    workers: int | None = None
    limit_s: float | None = None
    warm_up: bool = True
    through: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MethodRun:
    """One method; sizes in bytes, and what is not known 0.

    Attributes:
        method, family: its names.
        state: `ran`, `stopped` at the limit, `refused` by the budget, `skipped` or `failed`.
        why: what stands against it, else empty.
        streams: no op needs a whole tensor in memory.
        experts: how many were merged.
        made_up: statistics that it was given and that are seeded numbers.
        budget_bytes: of the merge.
        predicted_peak_bytes, peak_bytes: private memory above that of the imports.
        private_bytes: measured, imports included.
        predicted_seconds, seconds: of the whole command with compiled kernels.
        cpu_s: of all threads.
        prepare_s: compiling kernels and reading the inputs once, apart.
        passes: most reads of any input.
        predicted_read_bytes, read_bytes: of inputs, all passes.
        written_bytes: of the output.
    """

    method: str
    family: str
    state: str = "ran"
    why: str = ""
    streams: bool = True
    experts: int = 0
    made_up: tuple[str, ...] = ()
    budget_bytes: int = 0
    predicted_peak_bytes: int = 0
    peak_bytes: int = 0
    private_bytes: int = 0
    predicted_seconds: float = 0.0
    seconds: float = 0.0
    cpu_s: float = 0.0
    prepare_s: float = 0.0
    passes: int = 0
    predicted_read_bytes: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    @property
    def within(self) -> bool:
        """The measured peak, where there is one, is within prediction and budget."""
        return self.state != "ran" or self.peak_bytes <= min(self.predicted_peak_bytes, self.budget_bytes)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {**{f.name: getattr(self, f.name) for f in fields(self)}, "made_up": list(self.made_up), "within": self.within}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> MethodRun:
        """From what `to_dict` gave."""
        known = {f.name: data[f.name] for f in fields(cls) if f.name in data}
        return cls(**{**known, "made_up": tuple(known.get("made_up", ()))})


@dataclass(slots=True)
class Models:
    """What is merged: a base, experts, and statistics that are made when a method asks for them.

    Attributes:
        base, experts: folders of checkpoints.
        scratch: folder for statistics.
        made: statistics so far, by kind.
    """

    base: Path
    experts: Sequence[Path]
    scratch: Path
    made: dict[str, list[Path]] = field(default_factory=dict)

    def statistics(self, method: Method, tell: Callable[[str], None]) -> dict[str, list[Path]]:
        """For each statistic of a method a made-up file or checkpoint an expert."""
        found: dict[str, list[Path]] = {}
        for number, statistic in enumerate(method.statistics):
            if statistic.kind not in self.made:
                tell(f"making up statistics for {method.name}")
                self.made[statistic.kind] = self._make(statistic.kind)
            paths = self.made[statistic.kind]
            found[statistic.name] = paths[number % len(paths) :] + paths[: number % len(paths)]
        return found

    def _make(self, kind: str) -> list[Path]:
        base = open_base(self.base)
        numbers = range(1, len(self.experts) + 1)
        if kind == "layers":
            return [write_layer_scores(list(base.tensors), self.scratch / f"scores{k}.json", k) for k in numbers]
        need_space(self.scratch, len(self.experts) * sum(f.size for f in base.files), "the statistics that are made up")
        return [write_like(base, self.scratch / f"statistics{k}", k, positive=True) for k in numbers]


def chosen(names: Sequence[str]) -> list[Method]:
    """The methods of some names, or all; those that stream first.

    Raises:
        PlaitError: there is no such method.
    """
    known = {**methods(), **steps()}
    for name in names:
        if name not in known:
            raise PlaitError(f"no merge method called {name!r}{nearest(name, known)}; `plait methods` lists them")
    return sorted((known[n] for n in dict.fromkeys(names or known)), key=lambda m: ("whole" in m.kinds, m.family, m.name))


def need_space(folder: Path, nbytes: int, what: str) -> None:
    """Checks that a disk has room.

    Raises:
        OutputError: it has not.
    """
    import shutil

    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise OutputError(f"{what} need {size(nbytes)}, and the disk under {folder} has {size(free)} free: give --folder, smaller shapes or fewer experts")


def run_methods(wanted: Sequence[Method], models: Models, folder: Path, settings: Settings, tell: Callable[[str], None]) -> Iterator[MethodRun]:
    """Each method in turn; a method that cannot run says why, and the others go on.

    Args:
        wanted: methods and steps.
        models: to merge.
        folder: outputs go into temporary folders here, one at a time.
        settings: how they run.
        tell: hears what is being done.
    """
    for number, method in enumerate(wanted, 1):
        count = min(len(models.experts), method.experts[1] or len(models.experts))
        blank = MethodRun(method.name, method.family, experts=count, made_up=tuple(s.name for s in method.statistics))
        if count < method.experts[0]:
            yield replace(blank, state="skipped", why=f"takes {method.experts[0]} experts, and there are {count}")
            continue
        with tempfile.TemporaryDirectory(prefix=".plait-bench-", dir=folder) as scratch:
            try:
                statistics = models.statistics(method, tell)
                recipe = Path(scratch) / "recipe.yml"
                recipe.write_text(json.dumps(recipe_of(method, models.base, models.experts, statistics)))
                planned, memory = _planned(recipe, settings)
            except BudgetTooSmall as error:
                yield replace(_at_least(blank, recipe, error, settings), state="refused", why=error.message)
                continue
            except PlaitError as error:
                yield replace(blank, state="skipped", why=error.message)
                continue
            run = _predicted(blank, planned)
            tell(f"{number} of {len(wanted)}: {method.name}, about {run.predicted_seconds:.0f} s")
            yield _run(run, recipe, planned, memory, settings)


def _planned(recipe: Path, settings: Settings) -> tuple[Plan, str | int]:
    """The plan, and the budget that it was asked for."""
    memory: str | int = settings.memory or STREAMING_MEMORY
    try:
        return plan(recipe, Options(memory=memory, workers=settings.workers)), memory
    except BudgetTooSmall:
        if settings.memory is not None:
            raise
    memory = available_memory() // 2
    return plan(recipe, Options(memory=memory, workers=settings.workers)), memory


def _at_least(run: MethodRun, recipe: Path, refusal: BudgetTooSmall, settings: Settings) -> MethodRun:
    """What a merge would take in the smallest budget that works, for one that has less."""
    needed = refusal.facts.get("needed")
    try:
        return _predicted(run, plan(recipe, Options(memory=needed, workers=settings.workers))) if isinstance(needed, int) else run
    except PlaitError:
        return run


def _predicted(run: MethodRun, planned: Plan) -> MethodRun:
    p = planned.prediction
    return replace(
        run,
        streams=not any(stage.wholes for program in planned.programs for stage in program.stages),
        budget_bytes=planned.budget_bytes,
        predicted_peak_bytes=p.peak_bytes,
        predicted_seconds=p.seconds,
        predicted_read_bytes=p.bytes_read,
        written_bytes=p.bytes_written,
        passes=p.passes,
    )


def _run(run: MethodRun, recipe: Path, planned: Plan, memory: str | int, settings: Settings) -> MethodRun:
    """The merge itself, beside the recipe."""
    limit = settings.limit_s
    if limit is not None and run.predicted_seconds > 2 * limit:
        return replace(run, state="skipped", why=f"predicted to take {run.predicted_seconds:.0f} s, more than twice the limit of {limit:g} s")
    out, names = recipe.parent / "out", recipe.parent / "modules.json"
    need_space(recipe.parent, planned.prediction.bytes_written, "the output")
    words: list[str | Path] = ["merge", recipe, out, "--memory", str(memory), "--quiet"]
    words += ["--workers", str(settings.workers)] if settings.workers is not None else []
    merge = noting(names, words, limit)
    before = [Command((sys.executable, "-c", _PREPARE, str(recipe), json.dumps({"memory": memory, "workers": settings.workers})))] if settings.warm_up else []
    *prepared, last = watch_each([*before, merge], settings.through)
    found = noted(last, names)
    if found.status != 0 or len(prepared) < len(before):
        stopped = found.status is None
        why = f"not finished in {limit:g} s" if stopped else (found.output.strip().splitlines() or ["it said nothing"])[-1]
        return replace(run, state="stopped" if stopped else "failed", why=why, seconds=found.wall_s, private_bytes=found.peak_bytes)
    return replace(_measured(run, found, out), prepare_s=sum(p.wall_s for p in prepared))


def _measured(run: MethodRun, found: Measured, out: Path) -> MethodRun:
    told = json.loads((out / "plait.json").read_text())["measured"]
    peak = max(0, found.peak_bytes - _imports(found.modules))
    return replace(run, seconds=found.wall_s, cpu_s=found.cpu_s, private_bytes=found.peak_bytes, peak_bytes=peak, read_bytes=told["bytes_read"])


@lru_cache(maxsize=64)
def _imports(modules: tuple[str, ...]) -> int:
    return import_bytes([name for name in modules if not name.startswith("plait_kernel_")])
