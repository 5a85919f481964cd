"""The plan: plain data that says what will run, in which order, and what it will need.

A plan is made from headers alone and can be printed, stored as JSON and compared; the engine runs it.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from plait.planner.program import Program
from plait.planner.resources import Resources
from plait.planner.timing import Timing
from plait.planner.types import FileIdentity, Layout, TensorRef

if TYPE_CHECKING:
    import networkx

VERSION = 1


class Component(NamedTuple):
    """One output tensor: a program bound to stored tensors.

    Attributes:
        name: of the output tensor.
        program: index into `Plan.programs`.
        inputs: for each slot of the program, the stored tensor.
        keep_inputs: inputs are read once and stay in memory for all passes.
        role: embedding, attention, mlp, norm, head or other.
        layer: layer number, or None.
        origin: recipe place to name in errors, or an empty string.
    """

    name: str
    program: int
    inputs: tuple[TensorRef, ...]
    keep_inputs: bool = False
    role: str = "other"
    layer: int | None = None
    origin: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """A model-wide statistic.

    Attributes:
        key: identity, as `program.scope_of` gives it.
        sweep: number of the sweep over the components after which it is complete.
        numel: elements of all tensors that add to it.
    """

    key: str
    sweep: int
    numel: int


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the plan will need and move.

    Attributes:
        peak_bytes: private memory above the import baseline, never exceeded.
        runtime_bytes: part of it for compiled code, the plan itself and thread stacks.
        worker_bytes: part of it for each worker's buffers.
        state_bytes: part of it for what components hold between and beside blocks.
        slab_bytes: size of each worker's slab, in which inputs stay between passes.
        peak_task: name of the component that sets the peak.
        bytes_read: stored bytes read, all passes.
        bytes_read_extra: more at most, should the places of order statistics not be foreseen.
        bytes_written: bytes of output tensors.
        bytes_copied: part of `bytes_written` that is copied without decoding.
        passes: largest number of times that any input is read.
        minimum_bytes: smallest budget that works.
        seconds: wall time of the whole command, with compiled kernels.
    """

    peak_bytes: int
    runtime_bytes: int
    worker_bytes: int
    state_bytes: int
    slab_bytes: int
    peak_task: str
    bytes_read: int
    bytes_read_extra: int
    bytes_written: int
    bytes_copied: int
    passes: int
    minimum_bytes: int
    seconds: float = 0.0


class Made(NamedTuple):
    """What building the expression of a program spared.

    Attributes:
        folded: operations on numbers that were done while planning, and factors of one that were dropped.
        shared: stored tensors that are named in several places and read in one.
    """

    folded: int
    shared: int


class Result(NamedTuple):
    """A value of a program that is worth keeping on disk.

    Attributes:
        node: its node.
        entries: files that it takes: one, or one for each matrix of a decomposition.
        nbytes: of its matrices; 0 for a few numbers.
        seconds: predicted, to compute it again with the part of the pass before it.
        reading_s: predicted, to read it from a disk.
    """

    node: int
    entries: int
    nbytes: int
    seconds: float
    reading_s: float


@dataclass(frozen=True, slots=True)
class Keeping:
    """What a result cache keeps of a program, and what that costs to compute.

    Attributes:
        results: values that are kept.
        pass_s: seconds of each pass.
        whole_s: nodes of ops on whole tensors, with the seconds of each.
    """

    results: tuple[Result, ...]
    pass_s: tuple[float, ...]
    whole_s: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What a result cache may save a run that begins now; the prediction stays that of a run without it.

    Attributes:
        folder: of the cache.
        limit_bytes: its size.
        results: values of the plan that are kept.
        hits: of them, values that are there.
        spared_bytes: of inputs that need not be read.
        spared_s: seconds saved.
        stored_bytes: what the others would add.
    """

    folder: str
    limit_bytes: int
    results: int
    hits: int
    spared_bytes: int
    spared_s: float
    stored_bytes: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything the engine needs, and everything a person wants to know first.

    Attributes:
        title: method and steps, such as `ties + magic_wsc`.
        programs: distinct programs.
        components: output tensors, in running order.
        layout: the files of the output.
        files: the input files with their identities.
        scopes: model-wide statistics.
        sweeps: how many times the components are gone through.
        backend: `numba` or `torch`.
        device: where whole ops run: `cpu` or `cuda`.
        on_gpu: programs whose whole ops fit the GPU's budget and run there.
        maps: where streamed work runs: `cpu` or `cuda`.
        gpu_budget_bytes: the budget on each GPU that the run may use.
        gpu_worker_bytes: what each worker leases on a GPU for its blocks, where maps run there.
        lean: programs of `on_gpu` whose whole ops the memory budget could not hold on the CPU.
        workers: worker threads.
        budget_bytes: the memory budget.
        prediction: memory and bytes.
        notes: what the user should know.
        timing: what the predicted seconds are made of.
        residency: for each program what becomes of its inputs between passes, in the words of `planner/residency.py`.
        keeping: for each program what a result cache keeps; empty where the run has none.
        outlook: what the cache may save; None where it was not looked into.
        without: optimisations that were switched off.
        made: for each program what building its expression spared.
        resources: what the plan was made for, to make it again for another budget; no part of its JSON.
    """

    title: str
    programs: tuple[Program, ...]
    components: tuple[Component, ...]
    layout: Layout
    files: tuple[FileIdentity, ...]
    scopes: tuple[Scope, ...]
    sweeps: int
    backend: str
    device: str
    workers: int
    budget_bytes: int
    prediction: Prediction
    notes: tuple[str, ...] = field(default=())
    on_gpu: tuple[int, ...] = field(default=())
    timing: Timing = field(default=Timing())
    residency: tuple[str, ...] = field(default=())
    maps: str = "cpu"
    gpu_budget_bytes: tuple[int, ...] = field(default=())
    gpu_worker_bytes: int = 0
    lean: tuple[int, ...] = field(default=())
    keeping: tuple[Keeping, ...] = field(default=())
    outlook: Outlook | None = None
    without: tuple[str, ...] = field(default=())
    made: tuple[Made, ...] = field(default=())
    resources: Resources | None = field(default=None, repr=False, compare=False)

    def program_of(self, component: Component) -> Program:
        """The program that a component runs."""
        return self.programs[component.program]

    @property
    def fingerprint(self) -> str:
        """Hash of what decides the output's bits: programs, inputs with their identities, and layout."""
        digest = blake2b(digest_size=16)
        for part in (self.programs, self.files):
            digest.update(repr(part).encode())
        paths = {f.path: repr(f.path) for f in self.files}
        for c in sorted(self.components, key=attrgetter("name")):
            inputs = ", ".join([f"({paths.get(r.file) or repr(r.file)}, {r.name!r}, {r.start})" for r in c.inputs])
            digest.update(f"({c.name!r}, {c.program}, [{inputs}])".encode())
        for shard in self.layout.shards:
            digest.update(shard.header)
        return digest.hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as `docs/plan-format.md` describes it; the figures that people and scripts ask for stand at the top level."""
        return {**self._facts(), "components": [self._component(c) for c in self.components]}

    def _facts(self) -> dict[str, Any]:
        from plait.planner.plan_facts import reader_facts  # reads plans, and so comes after them

        p = self.prediction
        return {
            **reader_facts(self),
            "version": VERSION,
            "title": self.title,
            "fingerprint": self.fingerprint,
            "predicted_peak_bytes": p.peak_bytes,
            "minimum_budget_bytes": p.minimum_bytes,
            "budget_bytes": self.budget_bytes,
            "bytes_read": p.bytes_read,
            "bytes_written": p.bytes_written,
            "passes": p.passes,
            "predicted_seconds": p.seconds,
            "workers": self.workers,
            "backend": self.backend,
            "device": self.device,
            "on_gpu": list(self.on_gpu),
            "maps": self.maps,
            "gpu_budget_bytes": list(self.gpu_budget_bytes),
            "gpu_worker_bytes": self.gpu_worker_bytes,
            "lean": list(self.lean),
            "prediction": asdict(p),
            "timing": {**asdict(self.timing), "seconds": self.timing.seconds},
            "residency": list(self.residency),
            "cache": None if self.outlook is None else asdict(self.outlook),
            "sweeps": self.sweeps,
            "scopes": [asdict(s) for s in self.scopes],
            "notes": list(self.notes),
            "programs": [asdict(q) for q in self.programs],
            "shards": [{"name": s.name, "bytes": s.size} for s in self.layout.shards],
            "files": [asdict(f) for f in self.files],
        }

    def _component(self, c: Component) -> dict[str, Any]:
        return {
            "name": c.name,
            "program": c.program,
            "keep_inputs": c.keep_inputs,
            "role": c.role,
            "layer": c.layer,
            "inputs": [{"file": r.file, "name": r.name, "dtype": r.dtype, "start": r.start, "nbytes": r.nbytes} for r in c.inputs],
            "output": self.layout.places[c.name]._asdict(),
        }

    def _repr_html_(self) -> str:
        """What a notebook shows of the plan."""
        from plait.planner.notebook import plan_html  # it needs the plan

        return plan_html(self)

    def to_json(self) -> str:
        """`to_dict` as text, a component a line: there may be 100,000, and they are not all held as objects at once."""
        facts = json.dumps(self._facts(), indent=1).removesuffix("\n}")
        components = ",\n  ".join([json.dumps(self._component(c)) for c in self.components])
        return f'{facts},\n "components": [\n  {components}\n ]\n}}'

    def explain(self, width: int = 100) -> str:
        """The plan as a tree of text: what it needs, what other budgets would take, and how every group of tensors is computed.

        Args:
            width: columns.
        """
        from plait.planner.explain import to_text

        return to_text(self, width)

    def to_networkx(self) -> networkx.DiGraph:
        """The tensor tasks as a `networkx.DiGraph`; `plait.planner.plan_graph.to_networkx` lists nodes and attributes."""
        from plait.planner.plan_graph import to_networkx

        return to_networkx(self)
