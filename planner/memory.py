"""How much private memory a merge takes, and how many workers a budget has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.ops.errors import BudgetTooSmall
from plait.planner.blocks import COARSE, PAGE, SPAN, SPARSE_LIMIT, compiled_on_cpu, output_buffer, stage_buffers
from plait.planner.cost import Lease, component_bytes, kernel_count, lease_of
from plait.planner.device_cost import device_block_bytes
from plait.planner.plan import Component
from plait.planner.program import Program
from plait.planner.resources import Resources
from plait.planner.sizes import MIB, size, size_up
from plait.planner.timing import uses_torch

# Private memory of a running merge that no block or tensor accounts for, measured above the imports (benchmarks/memory_70b.py):
RUNTIME_BYTES = 4 * MIB  #: thread stacks, the plan, LLVM's linker
KERNEL_BYTES = MIB // 8  #: each kernel that is loaded; compiling happens in processes of its own
TORCH_BYTES = 32 * MIB  #: thread pools and workspaces of torch, at most
LIBRARY_BYTES = 8 * MIB  #: that part of them which torch's linear algebra takes for the smallest matrices
_PER_COMPONENT = 6 * 1024
CACHE_BYTES = 2 * MIB  #: a result cache: what it knows of its entries while it makes room, small results on their way
#: The sample of the whole model that foresees one model-wide threshold, with what sorting it takes.
_SCOPE_SAMPLE_BYTES = 4 * MIB
#: Inputs are kept for later passes when they take no more than this part of what the budget leaves.
KEEP_SHARE = 0.9


@dataclass(frozen=True, slots=True)
class Memory:
    """How a budget is divided.

    Attributes:
        workers: worker threads that there is room for.
        runtime: bytes of the program itself.
        per_worker: of each worker's buffers.
        state_limit: for what components hold, and for inputs that stay between passes.
        keep_limit: most bytes of one worker's kept inputs.
        minimum: of the least budget that works.
        peak_task: the output that needs most.
        held: what a component of each program leases.
        lean: programs for which nothing is kept free to do again on the CPU what a GPU has no memory for.
    """

    workers: int
    runtime: int
    per_worker: int
    state_limit: int
    keep_limit: int
    minimum: int
    peak_task: str
    held: tuple[Lease, ...]
    lean: tuple[int, ...]


def worker_bytes(programs: Sequence[Program], *, pulled: bool = False, cached: bool = False) -> int:
    """Buffers that one worker needs for any stage of any program: an arena that stages divide, and two output buffers."""
    sizes = [stage_buffers(program, stage, pulled=pulled, cached=cached) for program in programs for stage in program.stages]
    return PAGE + max((s.arena for s in sizes), default=0) + 2 * output_buffer(programs, pulled=pulled)


def fit(programs: Sequence[Program], components: Sequence[Component], resources: Resources, on_gpu: tuple[int, ...]) -> Memory:
    """Divide a budget.

    Args:
        programs, components: of the plan.
        resources: with the budget, and the most workers.
        on_gpu: programs whose whole ops run on GPUs.

    Raises:
        BudgetTooSmall: not even one worker fits; names the task that needs most.
    """
    pulled, cached = compiled_on_cpu(resources.backend, resources.maps), bool(resources.cache_bytes)
    arenas = [worker_bytes([p], pulled=pulled, cached=cached) for p in programs]
    states = [component_bytes(p, workspace=n not in on_gpu) for n, p in enumerate(programs)]
    # the interpreter's values stand beside its buffers, on the CPU as they would on a GPU
    interpreted = resources.backend == "torch" and resources.maps == "cpu"
    values = max((device_block_bytes(p, s) for p in programs for s in p.stages), default=0) if interpreted else 0
    arena, state = worker_bytes(programs, pulled=pulled, cached=cached) + values, max(states, default=0)
    runtime = runtime_bytes(programs, resources.backend) + _PER_COMPONENT * len(components) + _scope_bytes(programs, components)
    runtime += CACHE_BYTES if resources.cache_bytes else 0
    minimum = runtime + arena + state
    heaviest = max(range(len(programs)), key=lambda i: arenas[i] + states[i], default=0)
    task = next((c for c in components if c.program == heaviest), None)
    name = task.name if task else ""
    if minimum > resources.memory_bytes:
        raise BudgetTooSmall(
            _too_small(programs[heaviest], name, arena, state, runtime, minimum, resources.memory_bytes),
            task=name,
            needed=minimum,
            budget=resources.memory_bytes,
        )
    retried = max(map(component_bytes, programs), default=0)  # room to do again here what a GPU has no memory for, where there is some
    lean = on_gpu if runtime + arena + retried > resources.memory_bytes else ()
    held = tuple(lease_of(p, on_gpu=n in on_gpu, lean=n in lean) for n, p in enumerate(programs))
    state = max((lease.most for lease in held), default=0)
    workers = max(1, min(resources.workers, (resources.memory_bytes - runtime - state) // max(arena, 1)))
    limit = resources.memory_bytes - runtime - workers * arena
    keep_limit = min(int(limit * KEEP_SHARE), limit - state) // workers  # the heaviest component must still fit beside every slab
    return Memory(workers, runtime, arena, limit, keep_limit, minimum, name, held, lean)


def _scope_bytes(programs: Sequence[Program], components: Sequence[Component]) -> int:
    """What model-wide order statistics hold while the model is gone through."""
    keys = {key for p in programs for s in p.stages for key in s.scopes if key.startswith("kth_magnitude")}
    return len(keys) * ((COARSE + SPAN) * 8 + _SCOPE_SAMPLE_BYTES + 2 * SPARSE_LIMIT * 8 * len(components))


def runtime_bytes(programs: Sequence[Program], backend: str) -> int:
    """What the program itself takes while it runs these programs; the interpreter brings torch instead of kernels."""
    kernels = KERNEL_BYTES * kernel_count(programs) if backend == "numba" else TORCH_BYTES
    # twice a matrix in float32: what remained on 96x96 to 4096x4096 beside the workspaces that the ops themselves say they need
    libraries = max((min(TORCH_BYTES, LIBRARY_BYTES + 8 * program.numel) for program in programs if uses_torch(program)), default=0)
    return RUNTIME_BYTES + kernels + libraries


def _too_small(program: Program, name: str, arena: int, state: int, runtime: int, minimum: int, budget: int) -> str:
    what = f"{size(state)} held while {name} {list(program.shape)} is merged, " if state > arena else ""
    return (
        f"a budget of {size(budget)} is too small: {name} {list(program.shape)} needs {size(minimum)} "
        f"({what}{size(arena)} of buffers for one worker, {size(runtime)} for the program itself); give --memory {size_up(minimum)} or more"
    )
