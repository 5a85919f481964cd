"""Why one tensor is computed so: an expression that evaluates to what the program computes, byte ranges that hold what they say, reasons that hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.ops.errors import PlanError
from plait.ops.tensor import LazyTensor, load
from plait.planner.algebra_text import definitions
from plait.planner.blocks import BLOCK
from plait.planner.plan import Plan
from plait.planner.program import Program, lower
from plait.planner.why import why, why_text
from support import tiny
from support.stored import read_folder

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("set"))


def planned(models: list[Path], name: str, folder: Path, **options: Any) -> Plan:
    (folder / "r.yml").write_text(tiny.recipes(models)[name])
    return plait.plan(folder / "r.yml", plait.Options(**{"memory": "96MiB", "workers": 2, "device": "cpu", "backend": "numba", **options}))


# -- the expression --------------------------------------------------------------------------------
def expressions() -> st.SearchStrategy[LazyTensor]:
    """Arithmetic over three leaves and numbers, with parts used several times."""
    leaves = [load(("leaf", k), (4,), "F32") for k in range(3)]

    def grown(children: st.SearchStrategy[LazyTensor]) -> st.SearchStrategy[LazyTensor]:
        pair = st.tuples(children, children)
        return st.one_of(
            pair.map(lambda p: p[0] + p[1]),
            pair.map(lambda p: p[0] - p[1]),
            pair.map(lambda p: p[0] * p[1]),
            st.tuples(children, st.sampled_from([0.5, 3.0, -2.0])).map(lambda p: p[1] - p[0] / p[1]),
            children.map(lambda x: -x),
            children.map(abs),
            children.map(lambda x: x * x - x),
        )

    return st.recursive(st.sampled_from(leaves), grown, max_leaves=12)


def evaluated(program: Program, values: list[Any]) -> Any:
    """The program's root, node by node in float32."""
    done: list[Any] = []
    f = np.float32
    for node in program.nodes:
        x = [done[j] for j in node.inputs]
        if node.op == "load":
            done.append(values[int(node.param("slot"))])
        elif node.op == "const":
            done.append(f(node.param("value")))
        else:
            work = {"add": lambda a, b: a + b, "sub": lambda a, b: a - b, "mul": lambda a, b: a * b, "div": lambda a, b: a / b}
            done.append({"neg": lambda a: -a, "abs": np.abs, **work}[node.op](*x))
    return done[-1]


@settings(max_examples=150, deadline=None)
@given(expressions(), st.integers(0, 1 << 16))
def test_the_text_evaluates_to_the_same_bits(root: LazyTensor, seed: int):
    """Names, parentheses and order are exact: run as Python, the text gives the bits of the program."""
    leaves = [load(("leaf", k), (4,), "F32") for k in range(3)]
    program = lower(root, "F32", leaves)
    rng = np.random.default_rng(seed)
    values = [(rng.standard_normal(4) * 10.0 ** rng.integers(-6, 6)).astype(np.float32) for _ in leaves]
    scope: dict[str, Any] = {"float32": np.float32, "a": values[0], "b": values[1], "c": values[2], "f": np.float32, "abs": np.abs}
    with np.errstate(all="ignore"):
        for d in definitions(program, ["a", "b", "c"]):
            scope[d.name] = eval(_python(d.text), {"__builtins__": {}}, scope)
        expected = evaluated(program, values)
    assert np.asarray(scope["output"], np.float32).tobytes() == np.asarray(expected, np.float32).tobytes()


def _python(text: str) -> str:
    """Numbers as float32."""
    return re.sub(r"(?<![\w.])(\d+(?:\.\d+)?)(?![\w.])", r"f(\1)", text.removesuffix(", byte for byte"))


@pytest.mark.parametrize(
    ("name", "tensor", "last"),
    [
        ("linear", "model.norm.weight", "bfloat16((base + expert1 + expert2) / 3)"),
        ("passthrough", "model.norm.weight", "base, byte for byte"),
        ("slerp", "lm_head.weight", "bfloat16(k1[0] * base + k1[1] * expert1)"),
    ],
)
def test_expressions_read_like_the_method(name: str, tensor: str, last: str, models: list[Path], tmp_path: Path):
    """Inputs are called after their models."""
    assert why(planned(models, name, tmp_path), tensor).expression[-1].text == last


def test_statistics_and_common_parts_have_names(models: list[Path], tmp_path: Path):
    """Each delta and each threshold of TIES is defined once, before it is used, thresholds in the first pass."""
    found = why(planned(models, "ties", tmp_path), "lm_head.weight").expression
    assert [(d.name, d.text) for d in found if d.name[0] in "dt"] == [
        ("d1", "expert1 - base"),
        ("t1", "threshold(d1, top 0.5)"),
        ("d2", "expert2 - base"),
        ("t2", "threshold(d2, top 0.5)"),
    ]
    assert {d.stage for d in found if d.name[0] == "t"} == {0}


# -- inputs and reasons ----------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
def test_byte_ranges_hold_the_inputs(name: str, models: list[Path], tmp_path: Path):
    """The bytes of the range are the stored tensor."""
    for tensor in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        found = why(planned(models, name, tmp_path), tensor)
        for i in found.inputs:
            raw = Path(i.file).read_bytes()[i.start : i.start + i.nbytes]
            value = read_folder(Path(i.file).parent)[i.name].value
            assert np.array_equal(tiny.decode(np.frombuffer(raw, np.uint16), "BF16").reshape(value.shape), value)
        assert len({i.label for i in found.inputs}) == len(found.inputs)


def test_reasons_are_those_of_the_plan(models: list[Path], tmp_path: Path):
    """Residency, device and algorithm follow what was decided."""
    kept, again = (planned(models, "slerp", tmp_path, residency=r) for r in ("keep", "reread"))
    assert "stay in memory" in dict(why(kept, "lm_head.weight").reasons)["residency"]
    assert "as asked" in dict(why(again, "lm_head.weight").reasons)["residency"]
    assert "once, in one pass" in dict(why(planned(models, "linear", tmp_path), "lm_head.weight").reasons)["residency"]
    iso = [text for _, text in why(planned(models, "iso_c", tmp_path), "lm_head.weight").reasons]
    assert any("polar of 50x70: Gram matrix in float64" in text and "an SVD takes over" in text for text in iso)
    assert any("whole matrices on the CPU: as asked (--device cpu)" in text for text in iso)
    assert any(f"up to {min(BLOCK, 50 * 70):,} elements" in text for text in iso)


def test_exactly_the_tensor_that_sets_the_peak_says_so(models: list[Path], tmp_path: Path):
    """One tensor sets the peak, and its figures are those of the plan."""
    plan = planned(models, "iso_c", tmp_path)
    assert [c.name for c in plan.components if why(plan, c.name).sets_peak] == [plan.prediction.peak_task]
    assert "sets the peak of memory" in why_text(why(plan, plan.prediction.peak_task))
    assert sum(why(plan, c.name).bytes_read for c in plan.components) == plan.prediction.bytes_read


def test_an_unknown_tensor_names_the_nearest(models: list[Path], tmp_path: Path):
    """At most three, the nearest first."""
    with pytest.raises(PlanError) as caught:
        why(planned(models, "linear", tmp_path), "model.layers.0.mlp.up_proj.wieght")
    assert caught.value.facts["nearest"][0] == "model.layers.0.mlp.up_proj.weight"
