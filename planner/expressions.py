"""From resolved jobs to expressions, one for each kind of tensor rather than one for each tensor.

Jobs that differ only in which stored tensors they read share a *signature*, and so one program. Building
and lowering an expression is the costly part of planning; binding it to another layer's tensors is not.
Methods that look at names have a signature a tensor; where they make the same expression of two, it is lowered once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

from plait.ops.algebra import cast
from plait.ops.errors import PlanError
from plait.ops.inputs import MergeInputs
from plait.ops.method import Method, methods, steps
from plait.ops.statistics import LayerScore
from plait.ops.tensor import LazyTensor, constant_folding, load
from plait.planner.graph import verify
from plait.planner.optimisations import CONSTANT_FOLDING, SHARED_INPUTS
from plait.planner.plan import Made
from plait.planner.program import Program, lower
from plait.planner.types import Job, TensorRef

Build = Callable[[Sequence[LazyTensor]], LazyTensor]
#: Storage code of outputs that are a few numbers, which are kept as they are computed.
NUMBERS = "F64"


class OutputSpec(NamedTuple):
    """An output tensor before planning.

    Attributes:
        name: of the output.
        dtype: storage code of the output; `NUMBERS` where it is a small value.
        leaves: the stored tensors it may read, each once.
        signature: equal for outputs whose expressions differ in the leaves alone.
        build: from leaves to expression.
        role, layer: for the reader of the plan.
        origin: recipe place to name in errors.
        named: stored tensors that it names, those that it names twice counted twice; 0 where none is.
    """

    name: str
    dtype: str
    leaves: tuple[TensorRef, ...]
    signature: Hashable
    build: Build
    role: str = "other"
    layer: int | None = None
    origin: str = ""
    named: int = 0


def leaf_of(ref: TensorRef) -> LazyTensor:
    """The stored tensor as a lazy one; its key names file, tensor and byte range."""
    return load((ref.file, ref.name, ref.start, ref.nbytes), ref.shape, ref.dtype)


def job_specs(jobs: Sequence[Job], without: Collection[str] = ()) -> list[OutputSpec]:
    """Specs of a recipe's jobs, made without some optimisations."""
    shared = SHARED_INPUTS not in without
    known_methods, known_steps = methods(), steps()
    origins: dict[int, str] = {}  # the text of each mark, by identity: jobs of one part share theirs
    return [_spec(job, known_methods, known_steps, origins.get(id(job.mark)) or origins.setdefault(id(job.mark), str(job.mark or "")), shared) for job in jobs]


def _spec(job: Job, known: Mapping[str, Method], known_steps: Mapping[str, Method], origin: str, shared: bool) -> OutputSpec:
    named = job.method != "copy" and (known[job.method].uses_name or any(known_steps[s.name].uses_name for s in job.steps))
    leaves = refs = (*job.experts, *job.statistics) if job.base is None else (job.base, *job.experts, *job.statistics)
    if shared and len(set(refs)) < len(refs):  # one tensor in two places: each is a leaf once
        leaves = tuple(dict.fromkeys(refs))
    places = tuple(range(len(refs))) if leaves is refs else tuple([leaves.index(ref) for ref in refs])
    base, rest = (None, places) if job.base is None else (places[0], places[1:])
    experts, statistics = rest[: len(job.experts)], rest[len(job.experts) :]
    storages = tuple([ref.dtype for ref in leaves])
    signature = (
        job.method,
        job.params,
        job.shape,
        storages,
        base,
        experts,
        statistics,
        job.scores,
        job.labels,
        job.load_dtype,
        job.dtype,
        job.steps,
        (job.output, job.role) if named else None,
    )

    def build(nodes: Sequence[LazyTensor]) -> LazyTensor:
        return _job_expression(job, nodes, base, experts, statistics, known, known_steps)

    return OutputSpec(job.output, job.dtype, leaves, signature, build, job.role, job.layer, origin, len(refs))


def _job_expression(
    job: Job,
    nodes: Sequence[LazyTensor],
    base: int | None,
    experts: tuple[int, ...],
    statistics: tuple[int, ...],
    known: Mapping[str, Method],
    known_steps: Mapping[str, Method],
) -> LazyTensor:
    if job.method == "copy":
        return nodes[experts[0]]
    rounded = [n if job.load_dtype is None else cast(n, job.load_dtype) for n in nodes]
    origin = None if base is None else rounded[base]
    method = known[job.method]
    given = by_statistic(method, [nodes[s] for s in statistics], job.scores)  # as stored, whatever dtype the models are rounded to
    t = MergeInputs(origin, tuple(rounded[e] for e in experts), job.labels, job.shape, job.output, job.role, **given)
    merged: LazyTensor = method.build(t, **dict(job.params))
    for call in job.steps:
        merged = known_steps[call.name].build(t, merged, **dict(call.params))
    return merged


def by_statistic(method: Method, tensors: Sequence[LazyTensor], scores: Sequence[LayerScore]) -> dict[str, Any]:
    """What a method is given beside the weights, as fields of `MergeInputs`: of each statistic one value an expert."""
    kinds = [s for s in method.statistics if s.kind == "tensors"]
    each = len(tensors) // len(kinds) if kinds else 0
    found: dict[str, Any] = {s.name: tuple(tensors[n * each : (n + 1) * each]) for n, s in enumerate(kinds)}
    return found | {s.name: tuple(scores) for s in method.statistics if s.kind == "layers"}


class Compiled(NamedTuple):
    """Programs that outputs share.

    Attributes:
        programs: the distinct ones.
        numbers: of each output's program.
        made: for each program what building its expression spared.
    """

    programs: list[Program]
    numbers: list[int]
    made: list[Made]


def compile_specs(specs: Sequence[OutputSpec], without: Collection[str] = ()) -> Compiled:
    """Distinct programs, and the number of each spec's program.

    Args:
        specs: of the outputs.
        without: names of optimisations that are not made.

    Raises:
        PlanError: a method refuses its parameters or inputs; every distinct complaint is listed.
    """
    programs: list[Program] = []
    made: list[Made] = []
    known: dict[Hashable, int] = {}
    roots: dict[Hashable, int] = {}  # expressions of different names are often the same
    numbers: list[int] = []
    problems: dict[str, str] = {}
    for spec in specs:
        number = known.get(spec.signature)
        if number is None:
            try:
                leaves = tuple([load(("slot", i), ref.shape, ref.dtype) for i, ref in enumerate(spec.leaves)])
                with constant_folding(CONSTANT_FOLDING not in without) as folding:
                    expression = (_root(spec, leaves), spec.dtype, leaves)
                number = roots.get(expression)
                if number is None:
                    programs.append(_program(*expression, without))
                    made.append(Made(folding.done, max(0, spec.named - len(leaves))))
                    number = roots[expression] = len(programs) - 1
                known[spec.signature] = number
            except ValueError as error:
                where = f"{spec.origin}: " if spec.origin else ""
                problems.setdefault(str(error), f"{where}{error} (first met at tensor {spec.name})")
                number = -1
        numbers.append(number)
    if problems:
        raise PlanError("\n".join(problems.values()), problems=list(problems))
    return Compiled(programs, numbers, made)


def _root(spec: OutputSpec, leaves: Sequence[LazyTensor]) -> LazyTensor:
    root = spec.build(leaves)
    if root.space != ("small" if spec.dtype == NUMBERS and root.op.name != "load" else "tensor"):
        raise ValueError("the expression gives numbers, not a tensor")
    return root


def _program(root: LazyTensor, dtype: str, leaves: Sequence[LazyTensor], without: Collection[str]) -> Program:
    program = lower(root, dtype, leaves, without)
    if os.environ.get("PLAIT_VERIFY"):
        verify(program)
    return program


def used_inputs(program: Program, leaves: tuple[TensorRef, ...]) -> list[TensorRef]:
    """Stored tensors that a program reads."""
    if program.copy is not None:
        return [leaves[program.copy]]
    return [ref for ref, slot in zip(leaves, program.slots, strict=True) if slot >= 0]
