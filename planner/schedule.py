"""Order, residency and the memory prediction: from specs to a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from plait.ops.errors import BudgetTooSmall, PlanError
from plait.ops.wholes import is_view
from plait.planner.blocks import SCOPE_PIECE, SCOPE_PIECES
from plait.planner.device_cost import device_whole_bytes, device_worker_bytes, spread
from plait.planner.expressions import OutputSpec, compile_specs
from plait.planner.memory import Memory, fit
from plait.planner.moved import moved_bytes
from plait.planner.optimisations import FORESIGHT
from plait.planner.plan import Component, Keeping, Plan, Prediction, Scope
from plait.planner.program import Program
from plait.planner.residency import KEPT, residency, slab_bytes
from plait.planner.resources import Resources
from plait.planner.reuse import keeping
from plait.planner.sizes import size, size_up
from plait.planner.timing import Setting, Timing, predict_seconds, reads_from_disk
from plait.planner.types import FileIdentity, Layout
from plait.planner.whole_notes import whole_notes
from plait.planner.windows import widest_window


def make_plan(title: str, specs: Sequence[OutputSpec], layout: Layout, files: Sequence[FileIdentity], resources: Resources, notes: Sequence[str] = ()) -> Plan:
    """Plan the outputs inside the given resources.

    Raises:
        PlanError: a method refuses its inputs.
        BudgetTooSmall: not even one worker fits; names the task that needs most.
    """
    programs, numbers, made = compile_specs(specs, resources.without)
    components = [Component(s.name, n, s.leaves, False, s.role, s.layer, s.origin) for s, n in zip(specs, numbers, strict=True)]
    order = files_order(files)
    read = [_slots_read(p) for p in programs]
    components.sort(key=lambda c: min([(order.get(c.inputs[s].file, 0), c.inputs[s].start) for s in read[c.program]]))
    return replace(schedule(title, programs, components, layout, files, resources, notes), made=tuple(made))


def schedule(
    title: str,
    programs: Sequence[Program],
    components: Sequence[Component],
    layout: Layout,
    files: Sequence[FileIdentity],
    resources: Resources,
    notes: Sequence[str],
) -> Plan:
    """The plan of compiled programs, whose components stand in running order, inside the given resources.

    Raises:
        PlanError, BudgetTooSmall: as for `make_plan`.
    """
    asked = resources
    scopes, sweeps = _scopes(programs, components)
    resources = _seated(programs, components, resources)
    on_gpu, gpu_notes = _gpu_programs(programs, resources)
    memory = fit(programs, components, resources, on_gpu)
    counts = Counter(c.program for c in components)
    setting = _setting(programs, scopes, layout, memory, resources, on_gpu)
    stays = residency(programs, counts, resources.residency, memory.keep_limit, setting)
    keeps = [word == KEPT for word in stays]
    components = [c if c.keep_inputs is keeps[c.program] else c._replace(keep_inputs=keeps[c.program]) for c in components]
    slab = max((slab_bytes(programs[n]) for n in counts if keeps[n]), default=0)
    timing = predict_seconds(programs, counts, keeps, replace(setting, slab_bytes=slab))
    prediction = _predict(programs, keeps, components, memory, timing, setting.foreseen)
    return Plan(
        title,
        tuple(programs),
        tuple(components),
        layout,
        tuple(files),
        scopes,
        sweeps,
        resources.backend,
        resources.device if on_gpu else "cpu",
        memory.workers,
        resources.memory_bytes,
        prediction,
        (*notes, *gpu_notes, *whole_notes(programs, counts)),
        on_gpu,
        timing,
        stays,
        resources.maps,
        resources.gpu_memory_bytes if on_gpu or resources.maps == "cuda" else (),
        device_worker_bytes(programs) if resources.maps == "cuda" else 0,
        memory.lean,
        _keeping(programs, counts, setting, resources.cache_bytes),
        without=resources.without,
        resources=asked,
    )


def _keeping(programs: Sequence[Program], counts: Mapping[int, int], setting: Setting, limit: int) -> tuple[Keeping, ...]:
    """What a result cache keeps of each program."""
    if not limit:
        return ()
    cold = reads_from_disk(programs, counts, setting)
    return tuple(keeping(p, n, setting, limit, cold=cold) for n, p in enumerate(programs))


def _seated(programs: Sequence[Program], components: Sequence[Component], resources: Resources) -> Resources:
    """The resources with no more workers than have a place on a GPU, where maps run there.

    Raises:
        BudgetTooSmall: no GPU has room for the blocks of one worker.
    """
    if resources.maps != "cuda":
        return resources
    needs = [device_worker_bytes([p]) for p in programs]
    needed = max(needs, default=0)
    _, seats = spread(resources.gpu_memory_bytes, needed, resources.workers)
    if not seats:
        name, budget = next(c.name for c in components if needs[c.program] == needed), max(resources.gpu_memory_bytes)
        raise BudgetTooSmall(
            f"{size(budget)} on the GPU are too little for maps there: blocks of {name} need {size(needed)}; give --gpu-memory {size_up(needed)} or --maps cpu",
            task=name,
            needed=needed,
            budget=budget,
        )
    return replace(resources, workers=seats)


def _gpu_programs(programs: Sequence[Program], resources: Resources) -> tuple[tuple[int, ...], list[str]]:
    """Programs whose whole ops fit the GPU, and a word on those that do not."""
    if resources.device != "cuda":
        return (), []
    wholes = {n: [p.nodes[w] for s in p.stages for w in s.wholes if not is_view(p.nodes[w].op, p.nodes[w])] for n, p in enumerate(programs)}
    needs = {n: max(map(device_whole_bytes, ws)) for n, ws in wholes.items() if ws}
    taken = device_worker_bytes(programs) if resources.maps == "cuda" else 0
    room = max(spread(resources.gpu_memory_bytes, taken, resources.workers)[0], default=0)
    fits = tuple(n for n, need in needs.items() if need <= room)
    large = [n for n in needs if n not in fits]
    notes = []
    if large:
        worst = max(large, key=lambda n: needs[n])
        notes.append(
            f"{len(large)} kinds of matrix run on the CPU: {list(programs[worst].shape)} needs {size(needs[worst])} on the GPU "
            f"and --gpu-memory allows {size(room)}" + (" beside the blocks of the workers" if taken else "")
        )
    return fits, notes


def _setting(programs: Sequence[Program], scopes: Sequence[Scope], layout: Layout, memory: Memory, resources: Resources, on_gpu: tuple[int, ...]) -> Setting:
    """What the predicted time depends on besides the programs."""
    after = {scope.key: scope.sweep for scope in scopes}
    sweeps = tuple(tuple(stage_sweeps(p, after)) for p in programs) if scopes else ()
    free = resources.free_memory_bytes
    cache = None if free is None else max(0, free - memory.runtime - memory.workers * memory.per_worker)
    foreseen = FORESIGHT not in resources.without
    return Setting(
        memory.workers,
        resources.rates,
        resources.backend,
        cache,
        files=len(layout.shards),
        on_gpu=on_gpu,
        sweeps=sweeps,
        maps=resources.maps,
        foreseen=foreseen,
    )


def files_order(files: Sequence[FileIdentity]) -> dict[str, int]:
    """Position of each file, so that reading follows the files."""
    return {f.path: i for i, f in enumerate(files)}


def _slots_read(program: Program) -> tuple[int, ...]:
    """The inputs that a program reads; all of them where it reads none, so that it has a place in the order."""
    if program.copy is not None:
        return (program.copy,)
    return tuple(s for s, slot in enumerate(program.slots) if slot >= 0) or tuple(range(len(program.slots)))


# -- model-wide statistics -----------------------------------------------------------------------
def _scopes(programs: Sequence[Program], components: Sequence[Component]) -> tuple[tuple[Scope, ...], int]:
    """When each model-wide statistic is complete: after the sweep in which its last contributor adds to it.

    Raises:
        PlanError: one statistic is asked for with different parameters in different tensors.
    """
    after: dict[str, int] = {}
    changed = True
    while changed:
        changed = False
        for program in programs:
            for stage, sweep in zip(program.stages, stage_sweeps(program, after), strict=True):
                for key in stage.scopes:
                    if after.get(key, -1) < sweep:
                        after[key] = sweep
                        changed = True
    _check_scopes(after)
    numel = dict.fromkeys(after, 0)
    if numel:
        for n, count in Counter(c.program for c in components).items():
            for key in {key for stage in programs[n].stages for key in stage.scopes}:
                numel[key] += count * programs[n].numel
    sweeps = 1 + max((max(stage_sweeps(p, after), default=0) for p in programs), default=0)
    return tuple(Scope(k, s, numel[k]) for k, s in sorted(after.items(), key=lambda i: (i[1], i[0]))), sweeps


def stage_sweeps(program: Program, after: dict[str, int]) -> list[int]:
    """The sweep in which each stage runs: later than every statistic it waits for."""
    sweeps: list[int] = []
    for stage in program.stages:
        earliest = max((after[key] + 1 for key in stage.waits if key in after), default=0)
        sweeps.append(max(earliest, sweeps[-1] if sweeps else 0))
    return sweeps


def _check_scopes(after: dict[str, int]) -> None:
    by_model: dict[str, set[str]] = {}
    for key in after:
        op, *values = key.split("|")
        if op == "kth_magnitude":
            rank, scope, _ties = values
            by_model.setdefault(scope, set()).add(" and ".join(rank.split()[1:]))
    for scope, densities in by_model.items():
        if len(densities) > 1:
            raise PlanError(
                f"one threshold for the whole of {scope} needs one density, but {', '.join(sorted(densities))} are asked of its tensors: "
                "give a single density, or set scope: tensor",
                model=scope,
            )


# -- the prediction ------------------------------------------------------------------------------
def _predict(programs: Sequence[Program], keeps: Sequence[bool], components: Sequence[Component], memory: Memory, timing: Timing, foreseen: bool) -> Prediction:
    used = Counter(c.program for c in components)
    slab = max((slab_bytes(programs[n]) for n in used if keeps[n]), default=0)
    peak_state, peak_at = widest_window([memory.held[c.program] for c in components], memory.workers, memory.state_limit - memory.workers * slab)
    moved = {n: moved_bytes(programs[n], keeps[n], foreseen) for n in used}
    extra = sum(moved[n].extra * count for n, count in used.items())
    looks = max((sum(any(key.startswith("kth_magnitude") for key in s.scopes) for s in p.stages) for p in programs), default=0)
    if looks and foreseen:
        extra += looks * SCOPE_PIECES * SCOPE_PIECE * 4 * max(len(s.loads) for p in programs for s in p.stages)
    return Prediction(
        peak_bytes=memory.runtime + memory.workers * (memory.per_worker + slab) + peak_state,
        runtime_bytes=memory.runtime,
        worker_bytes=memory.per_worker,
        state_bytes=peak_state,
        slab_bytes=slab,
        peak_task=components[peak_at].name if components and peak_state > memory.per_worker else memory.peak_task,
        bytes_read=sum(moved[n].read * count for n, count in used.items()),
        bytes_read_extra=extra,
        bytes_written=sum(moved[n].written * count for n, count in used.items()),
        bytes_copied=sum(moved[n].copied * count for n, count in used.items()),
        passes=max((m.passes for m in moved.values()), default=0),
        minimum_bytes=memory.minimum,
        seconds=timing.seconds,
    )
