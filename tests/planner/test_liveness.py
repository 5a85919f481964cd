"""Whole values come when they are needed and go after their last use, in the order that the engine runs."""

from __future__ import annotations

import pytest

from plait.ops import algebra as al
from plait.ops import matrix as mx
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods, steps
from plait.ops.order import top
from plait.ops.tensor import LazyTensor, load
from plait.planner.cost import component_bytes
from plait.planner.graph import verify
from plait.planner.liveness import lifetimes, made_by, matrix_inputs, moments, owner, recomputed
from plait.planner.program import Program, lower

SHAPE = (1024, 1024)
MIB4 = 4 << 20
WHOLE = sorted(name for name, m in methods().items() if "whole" in m.kinds)


def leaves(count: int, shape: tuple[int, ...] = SHAPE) -> list[LazyTensor]:
    return [load((str(i),), shape, "F32") for i in range(count)]


def merge(name: str, experts: int, shape: tuple[int, ...] = SHAPE, **params: object) -> Program:
    """A method over a base and experts, lowered."""
    base, *rest = xs = leaves(experts + 1, shape)
    t = MergeInputs(base, tuple(rest), tuple(f"e{i}" for i in range(experts)), shape, "model.layers.0.mlp.up_proj.weight", "mlp")
    method = methods()[name]
    given = {p.keyword: (p.default,) * experts if p.per_expert else p.default for p in method.params}
    return lower(method.build(t, **{**given, **params}), "F32", xs)


def check(program: Program) -> None:
    """Every whole op finds its inputs, nothing is held after its last use, and nothing outlives the component."""
    verify(program)
    nodes, held = program.nodes, set[int]()
    for stage, life in zip(program.stages, lifetimes(program), strict=True):
        held |= set(stage.keeps)
        assert {owner(nodes, r) for r in stage.residents} <= held
        held -= set(life.after_pass)
        for w, dead in zip(stage.wholes, life.after_whole, strict=True):
            assert {owner(nodes, j) for j in matrix_inputs(nodes, w)} <= held, nodes[w].op
            held |= set(made_by(program, w))
            assert set(dead) <= held
            held -= set(dead)
    assert not held


@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("name", WHOLE)
def test_every_method_keeps_the_rules(name: str, experts: int):
    """All registered methods with whole ops, with their defaults."""
    check(merge(name, experts, (24, 16)))
    check(merge(name, experts, (16, 24)))


@pytest.mark.parametrize(("name", "params"), [("opcm", {}), ("star", {}), ("tsv_m", {}), ("iso_cts", {})])
def test_memory_does_not_grow_with_the_number_of_experts(name: str, params: dict[str, object]):
    """One task vector is held, however many there are: what grows is the methods' own results (TSV's parts of r / K columns do not)."""
    few, many = (component_bytes(merge(name, count, **params)) for count in (2, 8))
    assert many <= few + 2 * MIB4


def test_joint_methods_hold_all_experts_once():
    """KnOTS holds K task vectors, then K rotated ones: never both sets whole."""
    four, eight = (component_bytes(merge("knots", count)) for count in (4, 8))
    assert 3 * MIB4 < eight - four <= 5 * MIB4


def test_views_take_no_memory():
    """A tensor seen as a matrix and streamed again is held once."""
    (x,) = leaves(1)
    program = lower(mx.stream(mx.matrix(al.later(x * 2.0)), SHAPE) * 3.0, "F32", [x])
    assert max(m.held_bytes for m in moments(program)) == MIB4


def test_parts_that_nothing_uses_go_at_once():
    """Of a decomposition only U is wanted: Vh is gone when the product begins."""
    (x,) = leaves(1)
    a = mx.matrix(x)
    program = lower(mx.stream(mx.matmul(mx.svd(a).u, a), SHAPE), "F32", [x])
    check(program)
    product = next(m for m in moments(program) if m.node >= 0 and program.nodes[m.node].op == "matmul")
    assert (product.held_bytes, product.result_bytes) == (2 * MIB4, MIB4)  # U and the matrix, and the result


# -- sweeps ------------------------------------------------------------------------------------------------


def test_whole_results_are_made_again_in_the_sweep_that_uses_them():
    """KnOTS with global thresholds decomposes in the sweep that counts and again in the one that merges; DOGE corrects in the last alone."""
    knots = merge("knots", 2, (24, 16), topk=20.0, scope="global")
    check(knots)
    assert [recomputed(stage, knots.nodes) for stage in knots.stages] == [False, False, True, False, False]
    assert [bool(stage.scopes) for stage in knots.stages] == [False, True, False, False, False]
    doge = merge("doge_ta", 2, (24, 16))
    check(doge)
    assert sum(node.op == "doge_correction" for node in doge.nodes) == 1
    assert not any(recomputed(stage, doge.nodes) for stage in doge.stages)
    counted = next(n for n, stage in enumerate(doge.stages) if stage.scopes)
    assert all(not stage.wholes for stage in doge.stages[: counted + 1])


def test_a_step_after_a_model_wide_merge_waits_for_it():
    """SVC after OPCM: three uses of the same sum, in two sweeps, every rule kept."""
    base, *rest = xs = leaves(3, (24, 16))
    t = MergeInputs(base, tuple(rest), ("a", "b"), (24, 16), "mlp.weight", "mlp")
    merged = methods()["opcm"].build(t)
    check(lower(steps()["svc"].build(t, merged), "F32", xs))
    check(lower(steps()["magic_wsc"].build(t, merged, rule="spectral"), "F32", xs))


def test_ties_of_a_model_wide_threshold_over_whole_results_are_all_kept():
    """The first of them cannot be found again after the sweep: one sentence says so."""
    (x,) = leaves(1, (24, 16))
    p = al.polar(x)
    with pytest.raises(ValueError, match="keeps all ties"):
        lower(al.where(top(p, 0.5, scope="model"), p, 0.0), "F32", [x])


def test_a_long_chain_is_planned():
    """A hundred experts one after the other: no recursion that a chain could exhaust."""
    program = merge("opcm", 100, (24, 16))
    assert sum(stage.store for stage in program.stages) == 1
    assert component_bytes(program) <= component_bytes(merge("opcm", 3, (24, 16))) + 200 * 4096
