"""The public Python interface: open, plan, merge, write."""

from __future__ import annotations

import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plait.engine.device import SIMULATED, simulated_sizes
from plait.engine.events import Events, Report
from plait.engine.machine import available_memory, cores, gpu_memory
from plait.engine.ratefile import load_rates
from plait.models import Model, left_out, output_specs
from plait.ops.dtypes import BY_CODE, BY_NAME, RECIPE_FLOATS
from plait.ops.errors import KernelError, PlaitError, PlanError
from plait.planner.assemble import assemble
from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.collector import collector_paused
from plait.planner.donor import side_files
from plait.planner.expressions import OutputSpec, job_specs
from plait.planner.layers import split
from plait.planner.layout import make_layout
from plait.planner.optimisations import KEEP_INPUTS, checked
from plait.planner.plan import Plan
from plait.planner.recipe import load_recipe
from plait.planner.residency import CHOICES
from plait.planner.resources import Resources
from plait.planner.schedule import make_plan
from plait.planner.sizes import MIB, parse_size, size
from plait.planner.types import Checkpoint, Job, SideFile
from plait.running import Audience, run_plan

if TYPE_CHECKING:
    from plait.engine.cache import ResultCache

#: Largest size of one output file unless asked otherwise.
SHARD_SIZE = "5GB"
#: Largest size of a result cache unless asked otherwise.
CACHE_SIZE = "20GiB"


@dataclass(frozen=True, slots=True)
class Options:
    """How a plan may use the machine.

    Attributes:
        memory: budget for private memory, such as `4GiB`; None for half of what is free.
        workers: worker threads; None for the number of cores.
        device: where whole-tensor ops run: `auto`, `cpu` or `cuda`.
        gpu_memory: budget on each GPU; None for 90 % of what is free there.
        backend: `auto` (numba where it is installed), `numba` or `torch`.
        shard_size: most bytes of one output file.
        residency: whether inputs stay in memory between passes: `auto` where that is predicted to be faster, `keep` wherever the
            budget allows, `reread` nowhere. The output is the same.
        maps: where streamed work runs: `cpu`, or `cuda`. Streaming is bound by disk and PCIe, so the CPU is the default; the output is
            the same.
        restart: drop what an interrupted run left beside the destination, instead of continuing it.
        overwrite: replace a checkpoint at the destination; it stays until the new one is whole.
        allow_nonfinite: infinite values and NaN, in inputs or made by the merge, are counted in the report; without it they end the run.
        cache: folder in which expensive results (polar factors, thresholds, Gram matrices) are kept for other merges of the same inputs; None,
            the default, keeps nothing. The output is the same. Whoever may write to the folder can change what is merged from it.
        cache_size: most bytes of that folder; the results longest unused go first.
        without: optimisations that are switched off, by name (`plait.planner.optimisations`). The output is the same.
    """

    memory: str | int | None = None
    workers: int | None = None
    device: str = "auto"
    gpu_memory: str | int | None = None
    backend: str = "auto"
    shard_size: str | int = SHARD_SIZE
    residency: str = "auto"
    maps: str = "cpu"
    restart: bool = False
    overwrite: bool = False
    allow_nonfinite: bool = False
    cache: str | Path | None = None
    cache_size: str | int = CACHE_SIZE
    without: tuple[str, ...] = ()


def plan(recipe: str | Path, options: Options | None = None, *, memory: str | int | None = None) -> Plan:
    """Plan a recipe from headers alone.

    Args:
        recipe: path of a YAML recipe.
        options: how the machine may be used.
        memory: shorthand for `Options(memory=...)`.

    Raises:
        PlaitError: anything wrong with recipe, models or budget; see `plait.ops.errors`.
    """
    options = _options(options, memory)
    return _with_outlook(_plan_recipe(recipe, options)[0], options)


def merge(
    recipe: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    memory: str | int | None = None,
    events: Events | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
    trace: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Merge as a recipe says; go on where an interrupted run of the same merge ended.

    Args:
        recipe: path of a YAML recipe.
        out: folder to make; must not exist or be empty.
        options: how the machine may be used.
        memory: shorthand for `Options(memory=...)`.
        events: hears how the run goes on; see `plait.engine.events`.
        on_event: is called with each event as a dictionary, in the form of `docs/events.md`.
        trace: file that becomes a Chrome/Perfetto trace of the run.
        stop: set it, from any thread or signal handler, to have the run finish the blocks in hand, keep them and raise `Stopped`.

    Returns:
        What the run did: seconds and bytes.

    Raises:
        ResumeError: an interrupted run of another recipe, of other inputs or with other options is kept there.
        PlaitError: as for `plan`, or the destination or the run failed; nothing is at `out`. Where finished work was kept, the fact `kept` of the
            error is the folder that holds it, and the same call continues it.
    """
    options = _options(options, memory)
    try:
        with ExitStack() as stack:
            heard = Audience(events, on_event, trace).begin(stack)
            planned, sides, inputs = _plan_recipe(recipe, options)
            return run_plan(planned, out, sides, inputs, heard, options, _cache_to_fill(options), source=str(recipe), stop=stop)
    except KernelError as error:
        with suppress(PlaitError):  # the recipe itself may be gone by now
            error.message = f"{load_recipe(recipe).mark}: {planned.title}: {error.message}"
            error.args = (error.message,)
        raise


def plan_model(model: Model, options: Options | None = None, *, memory: str | int | None = None, dtype: str | None = None) -> Plan:
    """Plan the writing of a model expression; arguments as for `write`."""
    options = _options(options, memory)
    return _with_outlook(_plan_model(model, options, dtype)[0], options)


def _with_outlook(planned: Plan, options: Options) -> Plan:
    """The plan with a word on what the cache of the options would save now."""
    if options.cache is None:
        return planned
    from plait.engine.facts import result_facts
    from plait.engine.outlook import outlook

    return replace(planned, outlook=outlook(planned, _cache(options, options.cache, make=False), result_facts(planned)))


def _cache(options: Options, folder: str | Path, *, make: bool) -> ResultCache:
    from plait.engine.cache import ResultCache

    return ResultCache(Path(os.path.abspath(Path(folder).expanduser())), _cache_bytes(options), make=make)


def _cache_to_fill(options: Options) -> ResultCache | None:
    return None if options.cache is None else _cache(options, options.cache, make=True)


def _cache_bytes(options: Options) -> int:
    """Size of the result cache; 0 where the options have none."""
    if options.cache is None:
        return 0
    nbytes = checked_size(options.cache_size, "cache size")
    if nbytes < 1:
        raise PlanError("a cache of no bytes keeps nothing: give another --cache-size, or leave out --cache")
    return nbytes


def write(
    model: Model,
    out: str | Path,
    options: Options | None = None,
    *,
    memory: str | int | None = None,
    dtype: str | None = None,
    events: Events | None = None,
    on_event: Callable[[dict[str, Any]], object] | None = None,
    trace: str | Path | None = None,
    stop: threading.Event | None = None,
) -> Report:
    """Compute a model expression and write it as a checkpoint folder; go on where an interrupted run of the same expression ended.

    Args:
        model: from `plait.open`, operators and `plait.methods`.
        out: folder to make; must not exist or be empty.
        options: how the machine may be used.
        memory: shorthand for `Options(memory=...)`.
        dtype: of the output's float tensors (`float16`, `bfloat16`, `float32`); None for that of the inputs.
        events, on_event, trace: as for `merge`.
        stop: as for `merge`.

    Raises:
        PlaitError: as for `merge`.
    """
    options = _options(options, memory)
    with ExitStack() as stack:
        heard = Audience(events, on_event, trace).begin(stack)
        planned, sides, inputs = _plan_model(model, options, dtype)
        return run_plan(planned, out, sides, inputs, heard, options, _cache_to_fill(options), stop=stop)


# -- from recipes and models to plans ---------------------------------------------------------------
def _options(options: Options | None, memory: str | int | None) -> Options:
    options = options or Options()
    return options if memory is None else replace(options, memory=memory)


@collector_paused()
def _plan_recipe(path: str | Path, options: Options) -> tuple[Plan, tuple[SideFile, ...], list[str]]:
    recipe = load_recipe(path)
    near = Path(path).resolve().parent

    def open_near(text: str) -> Checkpoint:
        return open_checkpoint(resolve_model(text, near), text)

    assembly = assemble(recipe, open_near, find=lambda text: resolve_model(text, near))
    specs = job_specs(assembly.jobs, options.without)
    title = " + ".join([recipe.method, *dict.fromkeys(step.name for job in assembly.jobs for step in job.steps)])
    shapes = {job.output: job.shape for job in assembly.jobs}
    read = (*assembly.checkpoints, *assembly.statistics)
    planned = _make(title, specs, shapes, read, options, assembly.notes)
    summary = {"method": title, "models": [c.label for c in assembly.checkpoints], "notes": list(planned.notes)}
    sides = side_files(
        assembly.donor,
        dtype_name=assembly.dtype_name,
        num_layers=assembly.num_layers,
        recipe_text=recipe.text,
        summary=summary,
        layer_sources=_layer_sources(assembly.jobs) if assembly.num_layers is not None else None,
    )
    return planned, sides, [c.path for c in read]


def _layer_sources(jobs: Sequence[Job]) -> list[int]:
    """For each output layer the layer that its first tensor comes from."""
    sources: dict[int, int] = {}
    for job in jobs:
        place = split(job.experts[0].name)
        if job.layer is not None and place is not None:
            sources.setdefault(job.layer, place[1])
    return [sources[layer] for layer in sorted(sources)]


@collector_paused()
def _plan_model(model: Model, options: Options, dtype: str | None) -> tuple[Plan, tuple[SideFile, ...], list[str]]:
    if dtype is not None and dtype not in RECIPE_FLOATS:
        raise PlanError(f"dtype {dtype!r} is not one of {', '.join(RECIPE_FLOATS)}")
    specs, notes = output_specs(model, BY_NAME[dtype].code if dtype else None, options.without)
    shapes = {spec.name: spec.leaves[0].shape for spec in specs}
    checkpoints = _checkpoints(model)
    notes += left_out(model.donor, checkpoints)
    planned = _make("expression", specs, shapes, checkpoints, options, notes)
    floats = [spec.dtype for spec in specs if BY_CODE[spec.dtype].kind == "f"]
    name = BY_CODE[max(set(floats), key=floats.count)].name if floats else None
    summary = {"method": "a plait expression", "models": [c.label for c in checkpoints], "notes": notes}
    sides = side_files(model.donor, dtype_name=name, num_layers=None, recipe_text="# written by plait.write from an expression in Python\n", summary=summary)
    return planned, sides, [c.path for c in checkpoints]


def _checkpoints(model: Model) -> tuple[Checkpoint, ...]:
    found: dict[str, Checkpoint] = {}
    stack: list[object] = [model]
    while stack:
        item = stack.pop()
        if isinstance(item, Model):
            found.setdefault(item.donor.path, item.donor)
            stack += [part for part in vars(item).values() if isinstance(part, (Model, tuple, list))]
        elif isinstance(item, (tuple, list)):
            stack += [part for part in item if isinstance(part, Model)]
    return tuple(found.values())


def _make(
    title: str, specs: Sequence[OutputSpec], shapes: dict[str, tuple[int, ...]], checkpoints: Sequence[Checkpoint], options: Options, notes: Sequence[str]
) -> Plan:
    layout = make_layout([(s.name, s.dtype, shapes[s.name]) for s in specs], checked_size(options.shard_size, "shard size"))
    files = [f for c in checkpoints for f in c.files]
    resources, more = resolve(options)
    return make_plan(title, specs, layout, files, resources, (*notes, *more))


def resolve(options: Options) -> tuple[Resources, list[str]]:
    """The resources that options mean on this machine, and what the user should know about them.

    Raises:
        PlanError: an option makes no sense here.
    """
    notes = []
    memory = checked_size(options.memory, "memory") if options.memory is not None else available_memory() // 2 // MIB * MIB
    if options.memory is None:
        notes.append(f"no --memory given: half of the free memory, {size(memory)}, is the budget")
    if options.workers is not None and options.workers < 1:
        raise PlanError(f"{options.workers} workers cannot merge anything; give at least 1")
    gpu, found = _gpus(options)
    backend, more = _backend("torch" if options.maps == "cuda" else options.backend)
    if options.residency not in CHOICES:
        raise PlanError(f"residency {options.residency!r} is not one of {', '.join(CHOICES)}")
    rates, odd = load_rates()
    device = "cuda" if gpu and options.device != "cpu" else "cpu"
    why = "" if device == "cuda" else "as asked (--device cpu)" if options.device == "cpu" else "no CUDA device is found"
    resources = Resources(memory, options.workers or cores(), backend, device, gpu, rates, available_memory(), options.residency, options.maps)
    without = checked(options.without)
    if KEEP_INPUTS in without:
        if options.residency == "keep":
            raise PlanError("--residency keep and --no-keep-inputs ask for opposites; give one of them")
        resources = replace(resources, residency="reread")
    resources = replace(resources, cache_bytes=_cache_bytes(options), without=without, device_why=why)
    return resources, [*notes, *found, *more, *odd]


def _gpus(options: Options) -> tuple[tuple[int, ...], list[str]]:
    """The budget on each GPU that the options want used, and what the user should know about it."""
    if options.maps not in ("cpu", "cuda"):
        raise PlanError(f"maps {options.maps!r} is not one of cpu, cuda")
    if options.maps == "cuda" and options.backend == "numba":
        raise PlanError("--backend numba was asked for, but maps on CUDA run in torch; leave out --backend, or use --maps cpu")
    wanted = options.maps == "cuda" or options.device in ("auto", "cuda")
    free = gpu_memory() if wanted else ()
    for option, value in (("device", options.device), ("maps", options.maps)):
        if value == "cuda" and not free:
            raise PlanError(f"--{option} cuda was asked for, but torch finds no CUDA device here; use --{option} {'auto or ' * (option == 'device')}cpu")
    notes = [f"{SIMULATED} is set: GPUs are simulated on the CPU"] if free and simulated_sizes() else []
    if options.maps == "cuda" and importlib.util.find_spec("triton") is None:
        notes.append("Triton is not installed: maps run op by op on the GPU instead of as one kernel; pip install 'plait[cuda]'")
    if options.gpu_memory is None:
        return tuple(nbytes * 9 // 10 for nbytes in free), notes
    asked = checked_size(options.gpu_memory, "GPU memory")
    if any(asked > nbytes for nbytes in free):
        notes.append(f"--gpu-memory is {size(asked)}, but of the GPUs {', '.join(map(size, free))} are free: no more than that is used")
    return tuple(min(asked, nbytes) for nbytes in free), notes


def _backend(wanted: str) -> tuple[str, list[str]]:
    from plait.engine.compile import numba_available

    if wanted == "auto":
        if numba_available():
            return "numba", []
        return "torch", ["Numba is not installed: maps run in the torch interpreter, several times slower; pip install numba"]
    if wanted == "numba" and not numba_available():
        raise PlanError("the numba backend was asked for, but Numba is not installed; pip install numba, or use --backend torch")
    return wanted, []


def checked_size(value: str | int, what: str) -> int:
    """Bytes of a size given as text or number.

    Raises:
        PlanError: it is no size.
    """
    try:
        return value if isinstance(value, int) else parse_size(value)
    except ValueError as error:
        raise PlanError(f"{what}: {error}") from error
