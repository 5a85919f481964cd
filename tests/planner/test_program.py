"""Lowering: which pass each node belongs to, what is read, and what is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.ops import algebra as al
from plait.ops import order
from plait.ops.errors import PlanError
from plait.ops.tensor import LazyTensor, load
from plait.planner.program import Program, lower, probe_stage, scope_of, topological
from support.evaluate import evaluate, raw, write_model, write_out

SHAPE = (6, 4)


def leaves(count: int, shape: tuple[int, ...] = SHAPE, storage: str = "BF16") -> list[LazyTensor]:
    return [load(("file", f"x{i}", 0, 0), shape, storage) for i in range(count)]


def lowered(build: Callable[..., LazyTensor], count: int = 2, dtype: str = "BF16", shape: tuple[int, ...] = SHAPE) -> Program:
    xs = leaves(count, shape)
    return lower(build(*xs), dtype, xs)


def ops(program: Program, indices: tuple[int, ...]) -> list[str]:
    return [program.nodes[i].op for i in indices]


def check(program: Program) -> None:
    """The rules that every program keeps."""
    for i, node in enumerate(program.nodes):
        assert all(j < i for j in node.inputs), "topological"
    assert program.root == len(program.nodes) - 1
    for number, stage in enumerate(program.stages):
        assert stage.store == (number == len(program.stages) - 1), "the root is stored by the last stage, and by no other"
        known = set(stage.loads) | set(stage.residents) | set(stage.compute)
        for i in stage.compute:
            tensors = [j for j in program.nodes[i].inputs if program.nodes[j].space != "small" and program.nodes[i].op != "random_bits"]
            assert known.issuperset(tensors), "a stage computes from what it reads"
        assert all(program.nodes[i].kind == "fold" for i in stage.folds)
        assert all(program.slots[int(program.nodes[i].param("slot"))] == i for i in stage.loads)
        before = {i for s in program.stages[:number] for i in s.wholes}
        assert set(stage.residents) <= before, "whole results exist before they are read"
        assert len({program.nodes[i].param("row_length") for i in stage.compute if program.nodes[i].kind == "rows"}) <= 1
    folds = [i for s in program.stages for i in s.folds]
    assert len(folds) == len(set(folds)), "each fold ends once"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_random_expressions_keep_the_rules(data: st.DataObject):
    """Maps, folds, rows, whole ops and holds stacked at random: every program is ordered, computes from what it has and stores once."""
    shape = data.draw(st.sampled_from([(6, 4), (4, 3, 2, 2)]))
    xs = leaves(3, shape)
    pool = list(xs)
    for _ in range(data.draw(st.integers(1, 8))):
        a, b = data.draw(st.sampled_from(pool)), data.draw(st.sampled_from(pool))
        makes: list[Callable[[], LazyTensor]] = [
            lambda a=a, b=b: a - b,
            lambda a=a, b=b: al.where(a > b, a, 0.0),
            lambda a=a: a * al.sum_all(abs(a)),
            lambda a=a, b=b: a * al.dot(a, b),
            lambda a=a: al.where(order.top(a, 0.5), a, 0.0),
            lambda a=a, b=b: a * al.row_dot(a, b, "output"),
            lambda a=a: al.where(al.row_rank(a) > 1.0, a, 0.0),
        ]
        if len(shape) == 2:
            makes.append(lambda a=a: al.polar(a) * al.info(al.polar(a))[1])
        pool.append(data.draw(st.sampled_from(makes))())
    try:
        program = lower(pool[-1], "F32", xs)
    except ValueError as error:
        if "write the inner merge out first" not in str(error):  # rows of two lengths that nothing can separate
            raise
        return
    check(program)


# -- stages -------------------------------------------------------------------------------------------


def test_a_map_is_one_pass():
    """Everything elementwise is read once and stored."""
    program = lowered(lambda a, b: (a + b) / 2.0)
    check(program)
    (stage,) = program.stages
    assert stage.store
    assert ops(program, stage.compute) == ["add", "div"]
    assert len(stage.loads) == 2


def test_a_fold_ends_a_pass_and_maps_are_computed_again():
    """b's norm needs a pass over b alone; the next reads both, and b's deltas are computed in each."""
    program = lowered(lambda a, b: a + (b * 2.0) / al.sum_all(abs(b * 2.0)))
    check(program)
    first, second = program.stages
    assert [len(first.loads), len(second.loads)] == [1, 2]
    assert ops(program, first.folds) == ["sum"]
    assert ops(program, first.compute) == ["mul", "abs"]
    assert "mul" in ops(program, second.compute)


def test_independent_folds_share_a_pass_and_chained_ones_do_not():
    """Two norms take one pass; a norm of what a norm scaled takes two, and the store a third."""
    together = lowered(lambda a, b: a / al.sum_all(abs(a)) + b / al.sum_all(abs(b)))
    chained = lowered(lambda a, b: (a * al.sum_all(a)) * al.sum_all(b * al.sum_all(a)))
    check(together)
    check(chained)
    assert [len(s.folds) for s in together.stages] == [2, 0]
    assert [len(s.folds) for s in chained.stages] == [1, 1, 0]


def test_rows_stay_in_their_pass():
    """Row folds, arithmetic on them and the maps that use them are one pass of whole rows."""
    program = lowered(lambda a, b: (a - b) / al.sqrt(al.row_dot(a - b, a - b)))
    check(program)
    (stage,) = program.stages
    assert stage.row_length == 4
    assert stage.folds == ()


def test_a_whole_op_keeps_its_input_and_is_read_back():
    """The sum is kept by the first pass; the second reads the base and the result, not the experts again."""
    program = lowered(lambda base, a, b: base + al.info(al.polar(a + b))[1] * al.polar(a + b), 3)
    check(program)
    first, second = program.stages
    assert ops(program, first.keeps) == ["add"]
    assert ops(program, first.wholes) == ["polar"]
    assert ops(program, second.residents) == ["polar"]
    assert [program.nodes[i].param("slot") for i in second.loads] == [0]


def test_the_order_statistic_of_two_experts_is_one_pass():
    """All experts that share a base are counted in one sweep."""
    program = lowered(lambda base, a, b: base + al.where(order.top(a - base, 0.5), a - base, 0.0) + al.where(order.top(b - base, 0.2), b - base, 0.0), 3)
    check(program)
    first, second = program.stages
    assert ops(program, first.folds) == ["kth_magnitude", "kth_magnitude"]
    assert len(first.loads) == len(second.loads) == 3


def test_model_wide_statistics_are_named():
    """The pass that adds to one says so, and the one that needs it waits; their key holds everything but the tensor."""
    program = lowered(lambda a, b: al.where(order.top(a, 0.5, scope="m"), a, 0.0) * al.sum_all(b, "signs"))
    check(program)
    first, second = program.stages
    assert len(first.scopes) == 2
    assert second.scopes == ()
    assert second.waits == first.scopes
    keys = {scope_of(n) for n in program.nodes} - {""}
    assert keys == set(first.scopes)
    other = lowered(lambda a, b: al.where(order.top(b, 0.5, scope="m"), a, 0.0))
    assert {scope_of(n) for n in other.nodes} - {""} < keys, "the same statistic in another program"


def test_a_probe_computes_one_node_and_nothing_else():
    """To look at values a pass is cut down to what they need."""
    program = lowered(lambda a, b: b + al.where(order.top(abs(a), 0.5), a, 0.0))
    stage = program.stages[0]
    node = next(program.nodes[i].inputs[0] for i in stage.folds)
    probe = probe_stage(program, stage, (node,))
    assert probe.keeps == (node,)
    assert not probe.store
    assert not probe.folds
    assert [program.nodes[i].param("slot") for i in probe.loads] == [0]


# -- what is not read ------------------------------------------------------------------------------------


def test_inputs_that_the_expression_does_not_use_are_not_read():
    """A slot without a node is marked, and no stage loads it."""
    program = lowered(lambda a, b, c: a + c, 3)
    assert [i >= 0 for i in program.slots] == [True, False, True]
    assert {int(program.nodes[i].param("slot")) for s in program.stages for i in s.loads} == {0, 2}


def test_a_random_mask_needs_the_name_of_its_tensor_and_not_its_values():
    """The expert whose stream decides is not read when only its mask is used."""
    program = lowered(lambda a, b: al.where(al.below(al.random_bits(b, 0, "p", "m"), 2.0**31), a, 0.0))
    check(program)
    assert program.slots[1] == -1
    assert [program.nodes[i].param("slot") for i in program.stages[0].loads] == [0]
    assert ops(program, program.streams) == ["random_bits"]


def test_an_untouched_tensor_is_copied():
    """The root is a stored tensor of the output's dtype: no stage at all; of another dtype: one that converts."""
    copied = lowered(lambda a, b: b)
    assert copied.copy == 1
    assert copied.stages == ()
    converted = lowered(lambda a, b: b, dtype="F32")
    assert converted.copy is None
    assert [s.store for s in converted.stages] == [True]
    assert lowered(lambda a, b: b * 1.0).copy == 1
    assert lowered(lambda a, b: al.cast(b, "BF16")).copy == 1
    assert lowered(lambda a, b: al.cast(b, "F16"), dtype="F16").copy is None


@pytest.mark.parametrize("shape", [(0,), (0, 4), (3, 0)])
def test_an_empty_tensor_needs_no_pass(shape: tuple[int, ...]):
    """Nothing to read, compute or write, whatever the expression."""
    assert lowered(lambda a, b: a * al.row_sum(b) if len(shape) > 1 else a + b, shape=shape).stages == ()


def test_a_program_knows_no_names():
    """The same expression over other stored tensors lowers to an equal program, so that layers share one."""

    def make(names: tuple[str, str]) -> Program:
        a, b = (load(("file", n, 0, 0), SHAPE, "BF16") for n in names)
        return lower(a + 0.3 * (b - a), "BF16", [a, b])

    assert make(("layers.0.w", "layers.0.v")) == make(("layers.1.w", "layers.1.v"))


def test_topological_order_visits_each_node_once():
    """A diamond of depth 40 has 41 nodes, not 2^40 paths."""
    (node,) = leaves(1)
    for _ in range(40):
        node = node + node
    assert len(topological(node)) == 41


# -- rows of two lengths ---------------------------------------------------------------------------------

CONV = (4, 3, 2, 2)


def conv(seed: int, base: np.ndarray[Any, Any] | float = 0.0) -> np.ndarray[Any, Any]:
    return np.asarray(base + np.random.default_rng(seed).standard_normal(CONV), np.float32)


@pytest.mark.parametrize("storage", ["F32", "BF16"])
def test_two_row_lengths_are_separated_by_a_held_tensor(storage: str):
    """Rank along the last axis, then norms of output channels: the first is held, and each pass has rows of one length."""
    (x,) = leaves(1, CONV, storage)
    dropped = al.where(al.row_rank(x) > 0.0, x, 0.0)
    program = lower(dropped * al.row_dot(dropped, dropped, "output"), storage, [x])
    check(program)
    assert [s.row_length for s in program.stages] == [2, 12]
    assert ops(program, program.stages[0].wholes) == ["hold"]
    turned = x * al.row_sum(abs(x), "output")
    program = lower(al.where(al.row_rank(turned) > 0.0, turned, 0.0), storage, [x])
    check(program)
    assert [s.row_length for s in program.stages] == [12, 2], "the longer rows first: held for the shorter ones"


def test_a_matrix_needs_no_hold():
    """Its rows along the last axis are its output rows."""
    (x,) = leaves(1)
    dropped = al.where(al.row_rank(x) > 0.0, x, 0.0)
    program = lower(dropped * al.row_sum(abs(dropped), "output"), "BF16", [x])
    assert [s.row_length for s in program.stages] == [4]


@pytest.mark.parametrize("backend", ["numba", "torch"])
def test_held_rows_give_numpys_numbers(backend: str):
    """Both orders of the two row lengths on a convolution, computed by the engine and by numpy."""
    x = conv(1)
    ranks = np.argsort(np.argsort(np.abs(x), -1, kind="stable"), -1)
    kept = np.where(ranks > 0, x, 0)
    wanted = kept * np.abs(kept).reshape(4, -1).sum(1).reshape(4, 1, 1, 1)

    def last_then_output(x: LazyTensor) -> LazyTensor:
        d = al.where(al.row_rank(x) > 0.0, x, 0.0)
        return d * al.row_sum(abs(d), "output")

    assert np.allclose(evaluate({"w": {"x": x}}, last_then_output, backend=backend)["w"], wanted, rtol=1e-6)
    sized = (x * np.abs(x).reshape(4, -1).sum(1).reshape(4, 1, 1, 1)).astype(np.float32)
    ranks = np.argsort(np.argsort(np.abs(sized), -1, kind="stable"), -1)

    def output_then_last(x: LazyTensor) -> LazyTensor:
        d = x * al.row_sum(abs(x), "output")
        return al.where(al.row_rank(d) > 0.0, d, 0.0)

    assert np.allclose(evaluate({"w": {"x": x}}, output_then_last, backend=backend)["w"], np.where(ranks > 0, sized, 0), rtol=1e-6)


def models(folder: Path) -> tuple[plait.Model, list[plait.Model]]:
    base = {"conv.weight": conv(0), "w.weight": np.float32(np.random.default_rng(9).standard_normal((6, 4)))}
    experts = [{n: np.asarray(t + 0.1 * np.random.default_rng(k).standard_normal(t.shape), np.float32) for n, t in base.items()} for k in (1, 2)]
    return plait.open(write_model(folder / "base", base)), [plait.open(write_model(folder / f"e{k}", e)) for k, e in enumerate(experts)]


@pytest.mark.parametrize("backend", ["torch", pytest.param("numba", marks=pytest.mark.slow)])
def test_della_then_magic_in_one_go_is_the_same_as_in_two(backend: str, tmp_path: Path):
    """The calibration of a float32 merge written to disk and read back gives the bits of both at once, convolution included."""
    base, experts = models(tmp_path)
    merged = plait.methods.della(base=base, experts=experts, density=0.5, epsilon=0.2)
    at_once = plait.methods.magic_wsc(merged, base=base, experts=experts, rule="ellipsoid", norm="L2")
    write_out(merged, tmp_path / "merged", backend=backend)
    afterwards = plait.methods.magic_wsc(plait.open(tmp_path / "merged"), base=base, experts=experts, rule="ellipsoid", norm="L2")
    write_out(at_once, tmp_path / "at-once", backend=backend)
    write_out(afterwards, tmp_path / "afterwards", backend=backend)
    assert raw(tmp_path / "at-once") == raw(tmp_path / "afterwards")
    plan = plait.plan_model(at_once, memory="1GiB")
    lengths = {c.name: [s.row_length for s in plan.program_of(c).stages] for c in plan.components}
    assert lengths == {"conv.weight": [2, 12], "w.weight": [4]}


def test_della_over_model_stock_ranks_the_right_rows(tmp_path: Path):
    """Longer rows under shorter ones: what DELLA keeps of a filter-wise merge is divided by 0.4 or 0.6, the chances in rows of two."""
    base, experts = models(tmp_path)
    stock = plait.methods.model_stock(base=base, experts=experts, filter_wise=True)
    nested = plait.methods.della(base=base, experts=[stock], density=0.5, epsilon=0.1)
    whole = write_out(stock, tmp_path / "stock", backend="torch")["conv.weight"].value - conv(0)
    kept = write_out(nested, tmp_path / "nested", backend="torch")["conv.weight"].value - conv(0)
    share = whole[kept != 0] / kept[kept != 0]
    assert 0 < share.size < whole.size
    assert set(np.round(share, 2)) <= {0.4, 0.6}


def test_rows_of_two_lengths_in_one_pass_are_refused():
    """Where no held tensor can separate them the plan ends in a sentence, not in wrong rows."""
    (x,) = leaves(1, CONV)
    held = al.where(al.row_rank(x) > 0.0, x, 0.0) * al.row_sum(x, "output")
    with pytest.raises(ValueError, match=r"rows of 2 and 12 elements.*write the inner merge out first"):
        lower(held * al.sum_all(x * al.row_sum(x, "output")), "F32", [x])


# -- model-wide statistics -----------------------------------------------------------------------------------


def test_statistics_of_statistics_take_sweeps_in_order(tmp_path: Path):
    """A global threshold, then the norm of what it left, then the majority: three sweeps and a last one that stores."""
    base, experts = models(tmp_path)
    plan = plait.plan_model(plait.methods.ties(base=base, experts=experts, density=0.5, scope="global", elect="normmass", zero_sign="majority"), memory="1GiB")
    kinds = [(scope.sweep, scope.key.split("|")[0]) for scope in plan.scopes]
    assert kinds == [(0, "kth_magnitude"), (0, "kth_magnitude"), (1, "dot"), (1, "dot"), (2, "sum")]
    assert plan.sweeps == 4
    assert {scope.numel for scope in plan.scopes} == {48 + 24}
    assert not any(c.keep_inputs for c in plan.components), "nothing is held from one sweep to the next"


def test_a_model_wide_statistic_under_a_whole_op_is_known_before_it_runs(tmp_path: Path):
    """iso_c over ties with a global threshold gives what iso_c of the trimmed models written out gives, in two sweeps and from one decomposition."""
    base, experts = models(tmp_path)
    inner = plait.methods.ties(base=base, experts=experts, density=0.5, scope="global")
    at_once = plait.methods.iso_c(base=base, experts=[inner])
    plan = plait.plan_model(at_once, memory="1GiB")
    assert plan.sweeps == 2
    assert not any("again" in note for note in plan.notes)
    found = write_out(at_once, tmp_path / "at_once", backend="torch")
    write_out(inner, tmp_path / "inner", backend="torch")
    wanted = write_out(plait.methods.iso_c(base=base, experts=[plait.open(tmp_path / "inner")]), tmp_path / "in_two", backend="torch")
    for name, tensor in wanted.items():
        assert np.abs(found[name].value - tensor.value).max() <= 2e-6 * np.abs(tensor.value).max(), name


def test_one_threshold_needs_one_density(tmp_path: Path):
    """Densities that differ by tensor name contradict one threshold a model; the sentence names both."""
    models(tmp_path)
    recipe = {
        "merge_method": "ties",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / "e0"), "parameters": {"weight": 1.0, "density": [{"filter": "conv", "value": 0.5}, {"value": 0.2}]}}],
        "parameters": {"scope": "global"},
    }
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
    with pytest.raises(PlanError, match=r"needs one density, but 0\.2, 0\.5"):
        plait.plan(tmp_path / "recipe.yml", memory="1GiB")


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**6))
def test_a_model_of_one_tensor_has_its_own_threshold_as_the_global_one(seed: int):
    """scope: global over a single tensor is scope: tensor, bit for bit."""
    x = np.random.default_rng(seed).standard_normal((17, 9)).astype(np.float32)

    def trimmed(scope: str) -> bytes:
        return bytes(evaluate({"w": {"x": x}}, lambda x: al.where(order.top(x, 0.29, scope=scope), x, 0.0), backend="torch")["w"].tobytes())

    assert trimmed("all of it") == trimmed("")
