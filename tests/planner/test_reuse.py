"""What names a result: everything that its bits follow from, and nothing else; and what is left to do when results are there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import plait.ops.methods.geometry  # noqa: F401  declares its solver
from plait.ops import matrix as mx
from plait.ops.algebra import below, cast, dot, gram, info, polar, random_bits, row_sum, solve, sum_all, where
from plait.ops.order import top
from plait.ops.tensor import LazyTensor, load
from plait.planner.plan import Component
from plait.planner.program import Program, lower
from plait.planner.rates import DEFAULT_RATES
from plait.planner.reuse import Facts, demand, keeping, skeleton, work
from plait.planner.timing import Setting
from plait.planner.types import TensorRef

FACTS = Facts("n1", {"slerp_coefficients": "s1"}, ("cpu1", "gpu1"))
SHAPE = (64, 32)


def leaves(count: int = 3, storage: str = "BF16", shape: tuple[int, ...] = SHAPE) -> list[LazyTensor]:
    return [load((f"file{k}", "w", 0, 1), shape, storage) for k in range(count)]


def program(root: LazyTensor, given: list[LazyTensor]) -> Program:
    return lower(root, "BF16", given)


def node(p: Program, op: str) -> int:
    return next(i for i, n in enumerate(p.nodes) if n.op == op)


def digest(root: LazyTensor, given: list[LazyTensor], op: str, facts: Facts = FACTS, *, on_gpu: bool = False) -> Any:
    p = program(root, given)
    return skeleton(p, node(p, op), facts, on_gpu=on_gpu).digest


def trimmed(x: LazyTensor, base: LazyTensor, density: float = 0.3, **more: Any) -> LazyTensor:
    delta = x - base
    return base + where(top(delta, density, **more), delta, 0.0)


def test_what_comes_after_a_result_takes_no_part():
    """A strength, further experts, and the number of a slot change nothing of a polar factor or a threshold."""
    a, b, c = leaves()
    one = a + 0.3 * polar(b - a)
    other = a + 0.7 * polar(b - a) + (c - a)
    assert digest(one, [a, b, c], "polar") == digest(other, [a, b, c], "polar") == digest(one, [b, c, a], "polar")
    assert digest(trimmed(b, a), [a, b], "kth_magnitude") == digest(2.0 * trimmed(b, a) + c, [c, a, b], "kth_magnitude")


def test_slots_are_named_in_the_order_in_which_they_are_met():
    """Which of the inputs plays which part is told by the order of the slots."""
    a, b, _ = leaves()
    p = program(a + polar(b - a), [a, b])
    assert skeleton(p, node(p, "polar"), FACTS, on_gpu=False).slots == (1, 0)
    q = program(a + polar(a - b), [a, b])
    assert skeleton(q, node(q, "polar"), FACTS, on_gpu=False).slots == (0, 1)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda a, b: trimmed(b, a), lambda a, b: trimmed(b, a, 0.31)),
        (lambda a, b: trimmed(b, a), lambda a, b: trimmed(b, a, ties="all")),
        (lambda a, b: trimmed(b, a), lambda a, b: trimmed(cast(b, "F16"), a)),
        (lambda a, b: trimmed(b, a), lambda a, b: trimmed(2.0 * b, a)),
    ],
)
def test_parameters_and_expressions_take_part(one: Any, other: Any):
    """Another density, rule of ties, rounding or expression is another threshold."""
    a, b, _ = leaves()
    assert digest(one(a, b), [a, b], "kth_magnitude") != digest(other(a, b), [a, b], "kth_magnitude")


def test_shapes_and_stored_types_take_part():
    """The same expression over other tensors has another skeleton."""
    found = {digest(trimmed(b, a), [a, b], "kth_magnitude") for a, b in (leaves(2), leaves(2, "F16"), leaves(2, shape=(32, 64)), leaves(2, shape=(2048,)))}
    assert len(found) == 4


def test_sums_know_the_rows_of_their_pass():
    """A sum is added up by rows where its pass has rows, so it is another result there."""
    a, b, _ = leaves()
    alone = b * sum_all(a)
    with_rows = b * sum_all(a) + where(row_sum(b) > sum_all(b * row_sum(a)), 1.0, 0.0) * b
    p = program(with_rows, [a, b])
    first = next(i for i in p.stages[0].folds if p.nodes[i].op == "sum")
    assert p.stages[0].row_length == SHAPE[1]
    assert skeleton(p, first, FACTS, on_gpu=False).digest != digest(alone, [a, b], "sum")


def test_facts_take_part_where_they_decide():
    """Numerics always, the place of whole ops and the source of solvers only where there are any below."""
    a, b, _ = leaves()
    folded, whole = b * dot(a, b), a + polar(b - a)
    solved = solve("slerp_coefficients", gram([a, b]), shape=(2,), t=0.5)
    mixed = solved[0] * a + sum_all(solved[1] * b) * b
    moved, other_solver = replace(FACTS, wholes=("cpu2", "gpu1")), replace(FACTS, solvers={"slerp_coefficients": "s2"})
    numerics = replace(FACTS, numerics="n2")
    assert digest(folded, [a, b], "dot") != digest(folded, [a, b], "dot", numerics)
    assert digest(folded, [a, b], "dot") == digest(folded, [a, b], "dot", moved)
    assert digest(whole, [a, b], "polar") != digest(whole, [a, b], "polar", moved)
    assert digest(whole, [a, b], "polar") != digest(whole, [a, b], "polar", on_gpu=True)
    assert digest(whole, [a, b], "polar", on_gpu=True) == digest(whole, [a, b], "polar", moved, on_gpu=True)
    assert digest(mixed, [a, b], "sum") != digest(mixed, [a, b], "sum", other_solver)


def test_random_streams_are_named():
    """Seed and label take part, and the name that keys the stream comes from its own input."""
    a, b, _ = leaves()

    def dropped(seed: int, label: str) -> LazyTensor:
        kept = where(below(random_bits(b, seed, "drop", label), 2.0**31), b - a, 0.0)
        return a + kept * sum_all(kept)

    assert len({digest(dropped(s, x), [a, b], "sum") for s, x in ((0, "m"), (1, "m"), (0, "n"))}) == 3
    p = program(dropped(0, "m"), [a, b])
    assert skeleton(p, node(p, "sum"), FACTS, on_gpu=False).named == (1,)


# -- what is left -------------------------------------------------------------------------------------
def test_passes_that_lead_to_found_results_alone_are_left_out():
    """With the polar factor there, the pass before it is gone and the result is recalled in its place."""
    a, b, c = leaves()
    p = program(a + polar(b + c - a) * info(polar(b + c - a))[1], [a, b, c])
    factor = node(p, "polar")
    left = work(p, *demand(p, frozenset(), lambda i: i == factor))
    assert left.stages == (None, p.stages[1])
    nothing = work(p, *demand(p, frozenset(), lambda i: False))
    assert nothing.stages == p.stages
    assert all(x is y for x, y in zip(nothing.stages, p.stages, strict=True))


def test_a_pass_reads_only_what_its_missing_folds_need():
    """Of two thresholds one is there: the other expert alone is read, in blocks of the same size."""
    a, b, c = leaves()
    p = program(trimmed(b, a) + trimmed(c, a), [a, b, c])
    first, second = p.stages[0].folds
    stage = work(p, *demand(p, frozenset(), lambda i: i == first)).stages[0]
    assert stage is not None
    assert stage.folds == (second,)
    assert len(stage.loads) == 2
    assert stage.row_length == p.stages[0].row_length


@pytest.mark.parametrize("flops_s", [3e10, 1.5e11])
def test_what_passes_want_is_kept_though_its_last_step_is_cheap(flops_s: float):
    """The matrix that blocks use spares reading what it is made from; between the two, what costs little is not kept."""
    given = leaves(3, shape=(256, 2048))
    base, *experts = given
    joined = mx.concat([mx.svd(mx.matrix(e - base), 128).vh for e in experts], rows=True)
    merged = mx.matmul(mx.svd(mx.matrix(experts[0] - base), 256).u, polar(joined))
    p = program(base + mx.stream(merged, (256, 2048)), given)
    kept = keeping(p, 0, Setting(2, replace(DEFAULT_RATES, whole_flops_s=flops_s, cold_read_bytes_s=6e8)), 1 << 30, cold=False)
    ops = {p.nodes[r.node].op for r in kept.results}
    assert ops == {"svd", "polar", "matmul"}


def test_nothing_is_asked_for_that_only_leads_to_something_found():
    """A sum that scales a matrix before its polar factor is not looked up when the factor is there."""
    a, b, _ = leaves()
    p = program(a + polar((b - a) * sum_all(b)), [a, b])
    asked: list[str] = []

    def found(i: int) -> bool:
        asked.append(p.nodes[i].op)
        return p.nodes[i].op == "polar"

    left = work(p, *demand(p, frozenset(), found))
    assert asked == ["polar"]
    assert [s is None for s in left.stages] == [True, True, False]


def test_statistics_of_the_model_are_added_to_until_they_are_there():
    """A tensor's share of one is computed even where its own output does not wait for it, unless the statistic was found."""
    a, b, _ = leaves()
    p = program(trimmed(b, a, scope="model"), [a, b])
    (scope,) = p.stages[0].scopes
    assert work(p, *demand(p, frozenset(), lambda i: False)).stages[0] is p.stages[0]
    assert work(p, *demand(p, frozenset({scope}), lambda i: False)).stages[0] is None


def test_a_component_binds_a_skeleton_to_files():
    """Keys follow header, size, time of change, name and range of an input; its path takes no part."""
    from plait.planner.layout import make_layout
    from plait.planner.plan import Plan, Prediction
    from plait.planner.reuse import Names
    from plait.planner.types import FileIdentity

    a, b = leaves(2)
    p = program(trimmed(b, a), [a, b])
    (fold,) = p.stages[0].folds
    prediction = Prediction(0, 0, 0, 0, 0, "", 0, 0, 0, 0, 0, 0)

    def key(path: str = "x", name: str = "w", start: int = 8, size: int = 100, mtime: int = 5, header: str = "h") -> bytes:
        files = (FileIdentity("base", 100, 5, "h0"), FileIdentity(path, size, mtime, header))
        refs = (TensorRef("base", "w", "BF16", SHAPE, 8, 4096), TensorRef(path, name, "BF16", SHAPE, start, 4096))
        component = Component("out", 0, refs)
        plan = Plan("", (p,), (component,), make_layout([("out", "BF16", SHAPE)], 1 << 30), files, (), 1, "torch", "cpu", 1, 0, prediction)
        return Names(plan, FACTS).key(component, fold)

    assert key() == key(path="elsewhere")
    assert len({key(), key(name="v"), key(start=16), key(size=101), key(mtime=6), key(header="g")}) == 6
