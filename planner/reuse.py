"""Results that may be kept on disk between merges: what names them, which are worth it, and what is left to do when some are there.

A result is a fold of one tensor, a statistic of the whole model, or what an op on whole matrices gives. Its *content key* is a hash of everything
that its bits follow from: the ops below it with their parameters and shapes, for stored tensors the file's identity (size, time of change, hash of
the header, not its path), name and byte range, for random bits the names that key them, and the facts about libraries and device that the engine
gives. Names of slots, of experts and of the recipe take no part, so another recipe, another lambda or another set of experts finds it again.

Everything here is arithmetic on programs; `plait.engine.reuse` asks a cache and tells it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from plait.ops.dtypes import BY_CODE
from plait.ops.wholes import is_view
from plait.planner import blocks
from plait.planner.cost import input_bytes, looking_bytes, stage_read_bytes
from plait.planner.liveness import made_by, value_bytes
from plait.planner.plan import Component, Keeping, Plan, Result
from plait.planner.program import Node, Program, Stage, data_inputs, part_of_stage, scope_of
from plait.planner.timing import Setting, pass_seconds, whole_seconds

KEY_BYTES = 16
#: Opening, checking and marking one entry.
OPEN_S = 1.5e-4
#: What an entry takes beside its tensor, with its numbers.
ENTRY_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides bits beside expressions and inputs.

    Attributes:
        numerics: of everything that plait computes itself.
        solvers: of each solver of small systems, by name.
        wholes: where and by what ops on whole tensors run on the CPU, and on a GPU.
    """

    numerics: str
    solvers: Mapping[str, str]
    wholes: tuple[str, str]


# -- what names a result ---------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Skeleton:
    """A node and everything below it, without the tensors that it is bound to.

    Attributes:
        digest: of ops, parameters, shapes and facts.
        slots: inputs that it is computed from, in the order in which they are met.
        named: for each random stream the input whose name keys it, -1 where the output's name does.
        scopes: model-wide statistics that it uses.
    """

    digest: bytes
    slots: tuple[int, ...]
    named: tuple[int, ...]
    scopes: tuple[str, ...]


def skeleton(program: Program, i: int, facts: Facts, *, on_gpu: bool) -> Skeleton:
    """The skeleton of node `i`; a model-wide statistic that is asked for itself is taken as this tensor's share of it."""
    row_lengths = {fold: stage.row_length for stage in program.stages for fold in stage.folds}
    numbers: dict[int, int] = {}
    slots: dict[int, int] = {}
    named: list[int] = []
    scopes: dict[str, int] = {}
    lines = [facts.numerics, f"{blocks.BLOCK} {blocks.STORED} {blocks.CHUNK}"]
    for j in _below(program, i):
        node = program.nodes[j]
        if node.op == "later":  # says when, not what
            numbers[j] = numbers[node.inputs[0]]
            continue
        inputs = [numbers[k] for k in data_inputs(node)] if j == i or not scope_of(node) else []
        params = {k: v for k, v in node.params if k not in ("scope", "again", "use")}
        more: object = row_lengths.get(j, "")  # sums are added up by rows
        if node.op == "load":
            more = slots.setdefault(int(params.pop("slot")), len(slots))
        elif node.op == "random_bits":
            named.append(_naming_slot(program, node))
        elif j != i and scope_of(node):
            more = f"of the model, {scopes.setdefault(scope_of(node), len(scopes))}"
        elif node.op == "solve":
            more = facts.solvers[str(params["solver"])]
        elif is_computed(node):
            more = facts.wholes[on_gpu]
        numbers[j] = len(lines)
        lines.append(f"{node.op}|{sorted(params.items())!r}|{node.shape}|{node.dtype}|{inputs}|{more}")
    if scopes:
        named.append(-1)  # which ties of a model-wide threshold are kept depends on the tensor's place among the others
    digest = blake2b("\n".join(lines).encode(), digest_size=KEY_BYTES).digest()
    return Skeleton(digest, tuple(slots), tuple(named), tuple(scopes))


def _below(program: Program, i: int) -> list[int]:
    """Node `i` and what it is computed from, inputs first, in an order that follows from the expression alone."""
    order: dict[int, None] = {}
    stack = [(i, False)]
    while stack:
        j, done = stack.pop()
        if done:
            order[j] = None
        elif j not in order:
            stack.append((j, True))
            node = program.nodes[j]
            if j == i or not scope_of(node):
                stack.extend((k, False) for k in reversed(data_inputs(node)) if k not in order)
    return list(order)


def is_computed(node: Node) -> bool:
    """Whether a node is an op on whole matrices that computes something, and does not only name memory."""
    return node.kind == "whole" and node.op != "part" and not is_view(node.op, node)


def part_key(key: bytes, index: int) -> bytes:
    """Content key of one of the matrices that an op gives."""
    return blake2b(key + index.to_bytes(2, "little"), digest_size=KEY_BYTES).digest()


def parts(program: Program, w: int) -> dict[int, int]:
    """The matrices that an op gives and something uses: for each the node that owns it, with its number among the op's results."""
    return {j: int(program.nodes[j].param("index")) if program.nodes[j].op == "part" else 0 for j in made_by(program, w)}


def _naming_slot(program: Program, node: Node) -> int:
    like = program.nodes[node.inputs[0]]
    while like.op == "cast":
        like = program.nodes[like.inputs[0]]
    return int(like.param("slot")) if like.op == "load" else -1


class Names:
    """Content keys of the results of a plan; skeletons are made once a program.

    Args:
        plan: whose results.
        facts: of the engine.
    """

    def __init__(self, plan: Plan, facts: Facts) -> None:
        self._plan, self._facts = plan, facts
        self._files = {f.path: f"{f.header} {f.size} {f.mtime_ns}" for f in plan.files}
        self._skeletons: dict[tuple[int, int], Skeleton] = {}
        #: Content key of each model-wide statistic.
        self.scopes: dict[str, bytes] = {}
        for scope in plan.scopes:  # in the order in which they are completed: a later one may be made with an earlier one
            self.scopes[scope.key] = self._scope(scope.key)

    def key(self, component: Component, i: int) -> bytes:
        """Content key of node `i` of a component."""
        made = self._skeletons.get((component.program, i))
        if made is None:
            program = self._plan.programs[component.program]
            made = skeleton(program, i, self._facts, on_gpu=component.program in self._plan.on_gpu)
            self._skeletons[component.program, i] = made
        state = blake2b(made.digest, digest_size=KEY_BYTES)
        for slot in made.slots:
            ref = component.inputs[slot]
            state.update(f"{self._files[ref.file]} {ref.name!r} {ref.start} {ref.nbytes}\n".encode())
        for slot in made.named:
            state.update(f"{component.inputs[slot].name if slot >= 0 else component.name!r}\n".encode())
        for scope in made.scopes:
            state.update(self.scopes[scope])
        return state.digest()

    def _scope(self, scope: str) -> bytes:
        """Of all that tensors add to it, by name: their order decides how it is added up and which ties are kept."""
        adding = scope_nodes(self._plan.programs, scope)
        state = blake2b(digest_size=KEY_BYTES)
        for component in sorted((c for c in self._plan.components if c.program in adding), key=lambda c: c.name):
            state.update(f"{component.name!r} ".encode() + self.key(component, adding[component.program]))
        return state.digest()


def scope_nodes(programs: Sequence[Program], scope: str) -> dict[int, int]:
    """For each program that adds to a model-wide statistic, the fold that does."""
    found: dict[int, int] = {}
    for number, program in enumerate(programs):
        for stage in program.stages:
            for i in stage.folds if scope in stage.scopes else ():
                if scope_of(program.nodes[i]) == scope:
                    found[number] = i
    return found


# -- what is worth keeping -------------------------------------------------------------------------
def keeping(program: Program, number: int, setting: Setting, limit: int, *, cold: bool) -> Keeping:
    """The results of a program that are kept, and the seconds of its passes.

    A result is kept when to compute it again takes longer than to read it from a disk, and it fits into the cache. Where the blocks of a pass
    want a matrix, to compute it again means to read what it is made from, too. A map is never kept.

    Args:
        program, number: which of the plan.
        setting: workers, rates and the rest.
        limit: bytes of the cache.
        cold: the page cache does not hold the inputs.
    """
    seconds = tuple(pass_seconds(program, stage, setting, cold=cold) for stage in program.stages)
    alone = tuple((i, whole_seconds(program.nodes[i], number, setting)) for s in program.stages for i in s.wholes if is_computed(program.nodes[i]))
    wanted = {j for k, node in enumerate(program.nodes) if node.kind == "map" for j in _made_from(program, k)}
    results: list[Result] = []
    again: dict[int, float] = {}  # seconds until a result is there again

    def offer(result: Result) -> None:
        again[result.node] = result.seconds
        if result.seconds > result.reading_s and result.nbytes + ENTRY_BYTES <= limit:
            results.append(result)
            again[result.node] = result.reading_s

    for stage, its in zip(program.stages, seconds, strict=True):
        share = its / max(1, len(stage.folds) + len(stage.keeps)) if stage.has_pass else 0.0
        if not blocks.seen_whole(program, stage):
            for i in stage.folds:
                if not scope_of(program.nodes[i]):
                    offer(Result(i, 1, 0, share, reading_seconds(0, setting)))
        for i in filter(dict(alone).__contains__, stage.wholes):
            sizes = [value_bytes(program.nodes[j]) for j in made_by(program, i)]
            before = sum(again.get(j, 0.0) for j in _made_from(program, i)) if i in wanted else 0.0
            offer(Result(i, max(1, len(sizes)), sum(sizes), share + dict(alone)[i] + before, sum(reading_seconds(n, setting) for n in sizes or [0])))
    return Keeping(tuple(results), seconds, alone)


def _made_from(program: Program, i: int) -> set[int]:
    """The ops on whole matrices whose results an op uses, straight or by a view or a part of them."""
    found: set[int] = set()
    waiting = list(data_inputs(program.nodes[i]))
    while waiting:
        j = waiting.pop()
        if is_computed(program.nodes[j]):
            found.add(j)
        elif program.nodes[j].kind == "whole":
            waiting.extend(data_inputs(program.nodes[j]))
    return found


def reading_seconds(nbytes: int, setting: Setting) -> float:
    """Until a result is in memory, from a disk."""
    return OPEN_S + nbytes / setting.rates.cold_read_bytes_s


# -- what is left to do ----------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Work:
    """A component's passes when some results are there.

    Attributes:
        stages: each pass without what need not be computed; None where nothing is left of it.
    """

    stages: tuple[Stage | None, ...]


def demand(program: Program, scopes: frozenset[str], found: Callable[[int], bool]) -> tuple[frozenset[int], frozenset[int]]:
    """What the output needs, and which of it is there; what only leads up to that is neither computed nor asked for.

    Args:
        program: of the component.
        scopes: model-wide statistics that are there.
        found: whether a result is there.

    Returns:
        The nodes that are needed, and those of them that are there.
    """
    adding = {i for stage in program.stages for i in stage.folds if scope_of(program.nodes[i]) and scope_of(program.nodes[i]) not in scopes}
    needed = {program.root} | adding
    there: set[int] = set()
    for i in range(program.root, -1, -1):
        if i not in needed:
            continue
        node = program.nodes[i]
        scope = scope_of(node)
        if scope in scopes if scope else (node.kind == "fold" or is_computed(node)) and found(i):
            there.add(i)
        else:
            needed.update(data_inputs(node))
    return frozenset(needed), frozenset(there)


def work(program: Program, needed: frozenset[int], there: frozenset[int]) -> Work:
    """The passes that are left."""
    return Work(tuple(_left(program, stage, needed - there) for stage in program.stages))


def _left(program: Program, stage: Stage, missing: frozenset[int]) -> Stage | None:
    if stage.store:
        return stage
    wanted = {j for i in missing if program.nodes[i].kind == "whole" for j in program.nodes[i].inputs}
    folds = tuple(i for i in stage.folds if i in missing)
    wholes = tuple(i for i in stage.wholes if i in missing)
    keeps = tuple(j for j in stage.keeps if j in wanted)
    if (folds, wholes, keeps) == (stage.folds, stage.wholes, stage.keeps):
        return stage
    return part_of_stage(program, stage, folds, keeps, wholes) if folds or wholes or keeps else None


def read_bytes(program: Program, stages: Iterable[Stage | None], *, keep: bool) -> int:
    """Stored bytes that these passes read; with `keep`, inputs of several passes are read once."""
    left = [stage for stage in stages if stage is not None]
    if keep and sum(bool(stage.loads) for stage in left) > 1:
        return sum(program.numel * BY_CODE[str(program.nodes[i].param("storage"))].itemsize for i in {i for stage in left for i in stage.loads})
    return sum(stage_read_bytes(program, stage) + (0 if keep else looking_bytes(program, stage)[0]) for stage in left)


def spared_bytes(program: Program, stages: Sequence[Stage], left: Sequence[Stage | None], *, keep: bool) -> int:
    """Predicted bytes of these passes that are not read, because of what is left of them only `left` is run."""
    full = input_bytes(program) if keep else read_bytes(program, stages, keep=False)
    return max(0, full - read_bytes(program, left, keep=keep))
