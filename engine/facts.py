"""What the bits of kept results depend on beside expressions and inputs: plait's own numerics, libraries, processor, device.

Numerics have no version number that somebody could forget to raise: they are known by a hash of the source files that compute.
"""

from __future__ import annotations

import inspect
import os
from functools import cache
from hashlib import blake2b
from pathlib import Path

from plait.engine.device import discover_devices
from plait.engine.libraries import library_version
from plait.engine.ratefile import describe_machine
from plait.ops.algebra import SOLVERS
from plait.ops.op import Op
from plait.planner.plan import Plan
from plait.planner.reuse import Facts, is_computed

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def result_facts(plan: Plan) -> Facts:
    """The facts for the results of a plan; nothing is asked of libraries that it does not use."""
    used = sorted({str(node.param("solver")) for p in plan.programs for node in p.nodes if node.op == "solve"})
    numpy = f"numpy {library_version('numpy')}" if used else ""
    whole = any(is_computed(node) for p in plan.programs for node in p.nodes)
    # the order in which a matrix library adds depends on processor and threads
    on_cpu = f"torch {library_version('torch')} {describe_machine()} {[os.environ.get(t, '') for t in _THREADS]}" if whole else ""
    on_gpu = f"torch {library_version('torch')} {sorted({d.name for d in discover_devices()})}" if plan.on_gpu else ""
    return Facts(numerics(), {name: f"{numpy} {_source_hash(name)}" for name in used}, (on_cpu, on_gpu))


@cache
def numerics() -> str:
    """A hash of everything here that computes: ops, kernels, blocks, engine."""
    ops, planner, engine = Path(inspect.getfile(Op)).parent, Path(inspect.getfile(Plan)).parent, Path(__file__).parent
    sources = [ops / "op.py", ops / "algebra.py", ops / "wholes.py", planner / "blocks.py", planner / "program.py"]
    state = blake2b(digest_size=16)
    for source in (*sources, *sorted((ops / "kernels").glob("*.py")), *sorted(engine.glob("*.py"))):
        state.update(source.name.encode() + source.read_bytes())
    return state.hexdigest()


@cache
def _source_hash(solver: str) -> str:
    """Of the module that a solver lies in: another version of it may give other numbers."""
    try:
        source = Path(inspect.getfile(SOLVERS[solver])).read_bytes()
    except (OSError, TypeError):  # typed in somewhere: known to this process alone
        source = f"{os.getpid()} {id(SOLVERS[solver])}".encode()
    return blake2b(source, digest_size=16).hexdigest()
