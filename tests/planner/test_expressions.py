"""From jobs to expressions: which tensors share a program, which inputs are one, and where complaints are said."""

from __future__ import annotations

from typing import Any

import pytest

from plait.ops.algebra import sum_all
from plait.ops.errors import PlanError
from plait.ops.tensor import LazyTensor, load
from plait.planner.expressions import OutputSpec, compile_specs, job_specs, leaf_of, used_inputs
from plait.planner.types import Job, Mark, StepCall, TensorRef

TIES = (
    ("weight", (1.0, 1.0)),
    ("density", (0.5, 0.5)),
    ("lam", 1.0),
)


def ref(model: str, name: str, shape: tuple[int, ...] = (6, 4), dtype: str = "BF16") -> TensorRef:
    size = 2 if dtype != "F32" else 4
    count = 1
    for n in shape:
        count *= n
    return TensorRef(f"/{model}/model.safetensors", name, dtype, shape, 100, count * size)


def job(name: str, method: str = "ties", params: tuple[tuple[str, Any], ...] = TIES, shape: tuple[int, ...] = (6, 4), **given: Any) -> Job:
    facts: dict[str, Any] = {
        "base": ref("base", name, shape),
        "experts": (ref("a", name, shape), ref("b", name, shape)),
        "labels": ("a", "b"),
        "dtype": "BF16",
    }
    return Job(output=name, shape=shape, method=method, params=params, **{**facts, **given})


def compiled(*jobs: Job) -> tuple[list[Any], list[int]]:
    return compile_specs(job_specs(jobs))[:2]


def test_tensors_of_one_shape_share_a_program():
    """80 layers compile one program; another shape, dtype or parameter is another; what makes no difference to the expression is none."""
    programs, numbers = compiled(*(job(f"layers.{i}.w") for i in range(80)))
    assert (len(programs), set(numbers)) == (1, {0})
    other = [
        job("layers.0.w"),
        job("layers.1.w", shape=(4, 6)),
        job("layers.2.w", dtype="F32"),
        job("layers.3.w", base=ref("base", "layers.3.w", dtype="F16")),
        job("layers.4.w", params=(("weight", (1.0, 0.5)), *TIES[1:])),
        job("layers.5.w", labels=("a", "c")),  # ties draws nothing at random
        job("layers.6.w", load_dtype="F16"),
        job("layers.7.w", steps=(StepCall("magic_wsc", ()),)),  # not for a tensor of this name
        job("layers.8.w", method="task_arithmetic"),
        job("layers.9.w"),
    ]
    programs, numbers = compiled(*other)
    assert numbers == [0, 1, 2, 3, 4, 0, 5, 0, 6, 0]


def test_methods_that_see_the_name_share_where_they_decide_alike():
    """iso_c and magic_wsc decide by name: one program for each decision, not for each name."""
    params = (("lam", 1.0),)
    assert len(compiled(*(job(f"layers.{i}.weight", "iso_c", params) for i in range(80)))[0]) == 1
    assert len(compiled(job("x.weight", "iso_c", params), job("x.text_projection", "iso_c", params))[0]) == 2
    steps = (StepCall("magic_wsc", (("rule", "sphere"),)),)
    assert len(compiled(job("x.weight", steps=steps), job("x.ln.weight", steps=steps))[0]) == 2


def test_a_stored_tensor_used_twice_is_one_input():
    """The base among the experts, or a model given twice, is read once."""
    same = job(
        "w",
        experts=(ref("base", "w"), ref("a", "w"), ref("a", "w")),
        labels=("base", "a", "a"),
        params=(("weight", (1.0, 1.0, 0.5)), ("lam", 0.7)),
        method="task_arithmetic",
    )
    (spec,) = job_specs([same])
    assert [leaf.file for leaf in spec.leaves] == ["/base/model.safetensors", "/a/model.safetensors"]
    programs, *_ = compile_specs([spec])
    assert len([s for s in programs[0].slots if s >= 0]) == 2


def test_copies_and_unread_inputs():
    """`copy` takes its one tensor's bytes, integers too; an expert of weight 0 is not among what is read."""
    integer = job("steps")._replace(method="copy", params=(), base=None, experts=(ref("a", "steps", dtype="I64"),), labels=("a",), dtype="I64")
    weightless = job("w", params=(("weight", (1.0, 0.0)), ("density", (0.5, 0.5)), ("lam", 1.0)))
    specs = job_specs([integer, weightless])
    programs, numbers, _ = compile_specs(specs)
    first, second = (programs[n] for n in numbers)
    assert first.copy == 0
    assert used_inputs(first, specs[0].leaves) == [integer.experts[0]]
    assert used_inputs(second, specs[1].leaves) == [weightless.base, weightless.experts[0]]


def test_inputs_are_rounded_on_load_where_the_recipe_says_so():
    """`dtype: float16` over bfloat16 inputs: each is cast once, before anything else; without it none is."""
    rounded, _ = compiled(job("w", load_dtype="F16"))
    plain, _ = compiled(job("w"))
    assert sum(n.op == "cast" for n in rounded[0].nodes) == 3
    assert not any(n.op == "cast" for n in plain[0].nodes)


def test_a_leaf_is_its_bytes():
    """File, name and byte range are the identity of a stored tensor."""
    a = ref("a", "w")
    assert leaf_of(a) is leaf_of(a._replace())
    for other in (a._replace(start=164), a._replace(file="/b/model.safetensors"), a._replace(name="v"), a._replace(dtype="F16")):
        assert leaf_of(other) is not leaf_of(a)


def test_every_distinct_complaint_is_said_once_with_its_place():
    """A method that refuses its parameters for 80 layers says so once, with the recipe's line and the first tensor; other complaints beside it."""
    mark = Mark("recipe.yml", 3, 7)
    bad = (("weight", (1.0, 1.0)), ("density", (0.1, 0.5)), ("epsilon", (0.2, 0.2)))
    zero = (("weight", (1.0, -1.0)),)
    jobs = [job(f"layers.{i}.w", "della", bad, mark=mark) for i in range(80)]
    jobs += [job("head", "linear", zero, base=None)]
    with pytest.raises(PlanError) as error:
        compiled(*jobs)
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("recipe.yml:3:7: density 0.1 and epsilon 0.2")
    assert "layers.0.w" in lines[0]
    assert "sum to zero" in lines[1]
    assert "head" in lines[1]
    assert len(error.value.facts["problems"]) == 2


def test_an_expression_that_is_only_numbers_is_refused():
    """A sum is no tensor to write."""

    def build(nodes: Any) -> LazyTensor:
        return sum_all(nodes[0])

    with pytest.raises(PlanError, match="gives numbers, not a tensor"):
        compile_specs([OutputSpec("w", "BF16", (ref("a", "w"),), "sum", build)])


def test_building_depends_on_nothing_but_the_leaves():
    """The same spec over other leaves gives the same structure: what signature sharing relies on."""
    (spec,) = job_specs([job("w")])
    ours = [load(("x", n, 0, 0), (6, 4), "BF16") for n in ("base", "a", "b")]
    assert spec.build(ours) is spec.build(ours)
    assert spec.build(ours) is not spec.build(ours[::-1])
