"""The Python interface: models as values, operators and methods over them, and what goes wrong with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import plait
from plait.ops.method import methods, steps
from plait.ops.tensor import LazyTensor
from support import tiny
from support.stored import Stored, read_folder

F32 = np.float32


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return tiny.write_set(tmp_path / "models", dtype="F32")


@pytest.fixture
def models(paths: list[Path]) -> list[plait.Model]:
    return [plait.open(p) for p in paths]


def written(model: plait.Model, out: Path, **options: Any) -> dict[str, Stored]:
    plait.write(model, out, memory="256MiB", **options)
    return read_folder(out)


def values(path: Path) -> dict[str, np.ndarray]:
    return {name: t.value.astype(F32) for name, t in read_folder(path).items()}


def assert_equal(found: Mapping[str, Stored], expected: Mapping[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor.value.astype(F32), expected[name], err_msg=name)


# -- operators --------------------------------------------------------------------------------------
def test_operators_are_numpy_float32(paths: list[Path], models: list[plait.Model], tmp_path: Path):
    """Each operator gives, bit for bit, what NumPy gives in float32, one operation after the other."""
    base, a, b = models
    x, y, z = (values(p) for p in paths)
    cases = {
        "task": (base + 0.3 * (a - base), lambda n: x[n] + F32(0.3) * (y[n] - x[n])),
        "mean": ((a + b) / 2, lambda n: (y[n] + z[n]) / F32(2)),
        "scaled": (a * 1.7 - b * 0.7, lambda n: y[n] * F32(1.7) - z[n] * F32(0.7)),
        "negated": (base + (-(a - base)) / 3, lambda n: x[n] + (F32(-1) * (y[n] - x[n])) / F32(3)),
        "itself": (base, lambda n: x[n]),
        "shared": ((a - base) + (a - base), lambda n: (y[n] - x[n]) + (y[n] - x[n])),
    }
    for name, (model, expected) in cases.items():
        assert_equal(written(model, tmp_path / name), {n: expected(n) for n in tiny.SHAPES})


def test_operators_and_task_arithmetic_agree(models: list[plait.Model], tmp_path: Path):
    """`base + 0.3 (a - base)` is task arithmetic of weight 0.3, up to rounding."""
    base, a, _ = models
    by_hand = written(base + 0.3 * (a - base), tmp_path / "hand")
    by_name = written(plait.methods.task_arithmetic(base=base, experts=[a], weight=0.3), tmp_path / "name")
    for name in tiny.SHAPES:
        np.testing.assert_allclose(by_hand[name].value, by_name[name].value, rtol=0, atol=1e-8)


def test_nothing_is_read_before_it_is_written(models: list[plait.Model], paths: list[Path], tmp_path: Path):
    """An expression is only headers: its data may even be missing until it is planned to be read."""
    base, a, b = models
    merged = plait.methods.ties(base=base, experts=[a, b], weight=1.0, density=0.2)
    lazy = merged["model.norm.weight"]
    assert isinstance(lazy, LazyTensor)
    assert lazy.shape == (70,)
    assert merged["model.norm.weight"] is lazy
    for path in paths:
        (path / "model.safetensors").unlink()
    assert "ties" not in repr(merged["lm_head.weight"].key)
    with pytest.raises(plait.CheckpointError):
        plait.write(merged, tmp_path / "out", memory="256MiB")
    assert tiny.leftovers(tmp_path / "out") == []


@pytest.mark.parametrize("wrong", [lambda m: m + 1, lambda m: m * m, lambda m: m * "2", lambda m: m / True, lambda m: m - None])
def test_operators_take_models_and_numbers(wrong: Any, models: list[plait.Model]):
    """Anything else is a TypeError that says what was given."""
    with pytest.raises(TypeError, match="a model can be"):
        wrong(models[0])


# -- methods ----------------------------------------------------------------------------------------
def test_methods_and_recipes_agree(paths: list[Path], models: list[plait.Model], tmp_path: Path):
    """A method called in Python writes the bytes of the same method in a recipe."""
    base, a, b = models
    half = {"weight": 1.0, "density": 0.5}
    calls = {
        "linear": plait.methods.linear(experts=models, weight=1.0),
        "slerp": plait.methods.slerp(base=base, experts=[a], t=0.4),
        "ties": plait.methods.ties(base=base, experts=[a, b], **half),
        "ties_global": plait.methods.ties(base=base, experts=[a, b], scope="global", **half),
        "della": plait.methods.della(base=base, experts=[a, b], epsilon=0.1, **half),
        "model_stock": plait.methods.model_stock(base=base, experts=[a, b]),
        "linear_wsc": plait.methods.magic_wsc(plait.methods.linear(experts=[a, b], weight=1.0), base=base, experts=[a, b], rule="ellipsoid"),
        "passthrough": plait.methods.passthrough(experts=[base]),
    }
    for name, model in calls.items():
        (tmp_path / f"{name}.yml").write_text(tiny.recipes(paths)[name])
        plait.merge(tmp_path / f"{name}.yml", tmp_path / f"recipe-{name}", memory="256MiB")
        plait.write(model, tmp_path / name, memory="256MiB")
        assert (tmp_path / name / "model.safetensors").read_bytes() == (tmp_path / f"recipe-{name}" / "model.safetensors").read_bytes(), name


def test_one_value_an_expert(models: list[plait.Model], tmp_path: Path):
    """A list gives each expert its own value; its length must fit."""
    base, a, b = models
    two = written(plait.methods.task_arithmetic(base=base, experts=[a, b], weight=[0.25, 0.5]), tmp_path / "two")
    by_hand = written(base + (0.25 * (a - base) + 0.5 * (b - base)), tmp_path / "hand")
    for name in tiny.SHAPES:
        np.testing.assert_allclose(two[name].value, by_hand[name].value, rtol=0, atol=1e-8)
    with pytest.raises(plait.PlanError, match="weight has 3 values for 2 experts"):
        plait.methods.task_arithmetic(base=base, experts=[a, b], weight=[1, 2, 3])


def test_methods_nest(paths: list[Path], models: list[plait.Model], tmp_path: Path):
    """Methods of methods run in one pass over the inputs, with no model in between on disk, and give what two merges give."""
    base, a, b = models
    average = plait.methods.linear(experts=[a, b], weight=1.0)
    nested = plait.methods.ties(base=base, experts=[average, a], weight=1.0, density=0.5)
    direct = written(nested, tmp_path / "nested")
    plait.write(average, tmp_path / "average", memory="256MiB")
    staged = written(plait.methods.ties(base=base, experts=[plait.open(tmp_path / "average"), a], weight=1.0, density=0.5), tmp_path / "staged")
    for name in tiny.SHAPES:
        np.testing.assert_array_equal(direct[name].value, staged[name].value, err_msg=name)
    x, y, z = (values(p) for p in paths)
    doubled = written(plait.methods.slerp(base=base * 2.0, experts=[(a + b) / 2], t=1.0), tmp_path / "ends")
    assert_equal(doubled, {n: (y[n] + z[n]) / F32(2) for n in x})


def test_every_method_is_a_documented_function():
    """`plait.methods` lists the registry; each function says its parameters, defaults and source."""
    assert set(dir(plait.methods)) == methods().keys() | steps().keys()
    for name, method in {**methods(), **steps()}.items():
        function = getattr(plait.methods, name)
        assert function.__name__ == name
        assert method.source in function.__doc__
        assert all(f"{p.keyword}: {p.doc}" in function.__doc__ for p in method.params)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda m, base, a, b: m.tise, AttributeError, "no merge method called 'tise'.*did you mean 'ties'"),
        (lambda m, base, a, b: m.ties(base=base, experts=[a, b], densty=0.5), plait.PlanError, "ties has no parameter 'densty'.*did you mean 'density'"),
        (lambda m, base, a, b: m.ties(base=base, experts=[a], density=2), plait.PlanError, "density must be between 0 and 1, not 2"),
        (lambda m, base, a, b: m.ties(base=base, experts=[a], lam="x"), plait.PlanError, "lambda must be a number, not 'x'"),
        (lambda m, base, a, b: m.ties(base=base, experts=[a], scope="globl"), plait.PlanError, "one of tensor, global.*did you mean 'global'"),
        (lambda m, base, a, b: m.ties(experts=[a, b]), plait.PlanError, "ties needs a base model"),
        (lambda m, base, a, b: m.ties(base=base, experts=[]), plait.PlanError, "ties takes at least 1 experts?, not 0"),
        (lambda m, base, a, b: m.linear(base=base, experts=[a]), plait.PlanError, "linear uses no base model"),
        (lambda m, base, a, b: m.slerp(base=base, experts=[a, b]), plait.PlanError, "slerp takes 1 experts?, not 2"),
        (lambda m, base, a, b: m.model_stock(base=base, experts=[a]), plait.PlanError, "model_stock takes at least 2 experts, not 1"),
    ],
)
def test_wrong_calls(call: Any, error: type[Exception], words: str, models: list[plait.Model]):
    """A wrong call is refused where it is made, with the nearest right name."""
    with pytest.raises(error, match=words):
        call(plait.methods, *models)


def test_a_method_may_refuse_when_planned(models: list[plait.Model]):
    """What only the expression shows is a PlanError of the plan, and names the first tensor."""
    cancelled = plait.methods.linear(experts=models[:2], weight=[0.5, -0.5])
    with pytest.raises(plait.PlanError, match=r"sum to zero.*first met at tensor model\.embed_tokens\.weight"):
        plait.plan_model(cancelled, memory="256MiB")


# -- models that do not fit together ----------------------------------------------------------------
def test_missing_tensor(models: list[plait.Model], tmp_path: Path):
    """All tensors that another model lacks are named at once."""
    few = {name: np.zeros(shape, F32) for name, shape in tiny.SHAPES.items() if "norm" not in name}
    other = plait.open(tiny.write_model(tmp_path / "few", few, "F32"))
    with pytest.raises(plait.PlanError) as caught:
        plait.plan_model(models[0] + other, memory="256MiB")
    lines = caught.value.message.splitlines()
    assert len(lines) == 3
    assert all("norm.weight" in line and "missing in another model" in line for line in lines)


def test_extra_tensors_are_said(models: list[plait.Model], tmp_path: Path):
    """Tensors that only another model has are left out, and a note says so."""
    more = {name: np.ones(shape, F32) for name, shape in {**tiny.SHAPES, "extra.weight": (3, 3)}.items()}
    other = plait.open(tiny.write_model(tmp_path / "more", more, "F32"))
    plan = plait.plan_model(models[0] + other, memory="256MiB")
    assert "extra.weight" not in {c.name for c in plan.components}
    assert any("extra.weight" in note for note in plan.notes)


def test_other_shape(models: list[plait.Model], tmp_path: Path):
    """Both shapes and both files are named."""
    wide = {name: np.zeros((*shape[:-1], 71), F32) for name, shape in tiny.SHAPES.items()}
    other = plait.open(tiny.write_model(tmp_path / "wide", wide, "F32"))
    with pytest.raises(plait.PlanError, match=r"model\.norm\.weight has shape \[70\] in .*base.* but \[71\] in .*wide"):
        plait.plan_model(plait.methods.ties(base=models[0], experts=[other], weight=1.0), memory="256MiB")


def test_asking_for_a_tensor_that_is_not_there(models: list[plait.Model]):
    """The nearest name is offered."""
    with pytest.raises(KeyError, match=r"did you mean 'model\.norm\.weight'"):
        models[0]["model.nrom.weight"]


def test_integer_tensors_are_the_donors(tmp_path: Path):
    """Integers are copied from the leftmost model, and a note says so."""
    found = []
    for k in range(2):
        (tmp_path / f"m{k}").mkdir()
        ids, weight = np.arange(4, dtype=np.int64) + k, np.full(4, k, F32)
        tiny.write_file(tmp_path / f"m{k}" / "model.safetensors", {"position_ids": ("I64", (4,), ids.tobytes()), "w": ("F32", (4,), weight.tobytes())})
        found.append(plait.open(tmp_path / f"m{k}"))
    out = written((found[0] + found[1]) / 2, tmp_path / "out")
    assert out["position_ids"].value.tolist() == [0, 1, 2, 3]
    assert out["w"].value.tolist() == [0.5] * 4
    assert any("not floats" in note for note in plait.plan_model(found[0] + found[1], memory="256MiB").notes)


def test_quantised_tensors_are_not_merged_silently(tmp_path: Path):
    """A model of 8-bit floats can be copied, but not added to another."""
    (tmp_path / "q").mkdir()
    tiny.write_file(tmp_path / "q" / "model.safetensors", {"w": ("F8_E4M3", (4,), b"\x38\x40\x44\x48")})
    model = plait.open(tmp_path / "q")
    plait.write(model, tmp_path / "copy", memory="256MiB")
    assert (tmp_path / "copy" / "model.safetensors").read_bytes()[-4:] == b"\x38\x40\x44\x48"
    with pytest.raises(plait.PlanError, match=r"w .*quantised.*unquantised"):
        plait.plan_model(0.5 * model, memory="256MiB")


def test_float64_is_refused_in_words(tmp_path: Path):
    """Float64 can be copied; computing on it, or rounding it, is refused with what to do."""
    (tmp_path / "d").mkdir()
    tiny.write_file(tmp_path / "d" / "model.safetensors", {"w": ("F64", (2,), np.array([1.0, 2.0]).tobytes())})
    model = plait.open(tmp_path / "d")
    assert written(model, tmp_path / "copy")["w"].dtype == "F64"
    for merged, dtype in ((0.5 * model, None), (model + model, None), (model, "float32")):
        with pytest.raises(plait.PlanError, match=r"float64.*float32"):
            plait.plan_model(merged, memory="256MiB", dtype=dtype)


# -- writing ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(("dtype", "code"), [("float16", "F16"), ("bfloat16", "BF16"), ("float32", "F32"), (None, "F32")])
def test_dtype_of_the_output(dtype: str | None, code: str, paths: list[Path], models: list[plait.Model], tmp_path: Path):
    """Values are computed in float32 and rounded once, and the configuration names the dtype."""
    out = written((models[0] + models[1]) / 2, tmp_path / "out", dtype=dtype)
    x, y = values(paths[0]), values(paths[1])
    for name, tensor in out.items():
        assert tensor.dtype == code
        np.testing.assert_array_equal(tensor.value.astype(F32), tiny.decode(tiny.encode((x[name] + y[name]) / F32(2), code), code))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == tiny.NAMES[code]


def test_mixed_dtypes_promote(models: list[plait.Model], tmp_path: Path):
    """Sixteen-bit floats of two kinds make a float32 output, as torch promotes."""
    half = plait.open(tiny.write_set(tmp_path / "h", dtype="F16")[0])
    brain = plait.open(tiny.write_set(tmp_path / "b", dtype="BF16")[0])
    assert {t.dtype for t in written((half + brain) / 2, tmp_path / "mixed").values()} == {"F32"}
    assert {t.dtype for t in written((half + half) / 2, tmp_path / "same").values()} == {"F16"}


def test_unknown_dtype(models: list[plait.Model], tmp_path: Path):
    """Only floats that recipes name."""
    with pytest.raises(plait.PlanError, match="'int8' is not one of float16, bfloat16, float32"):
        plait.write(models[0], tmp_path / "out", dtype="int8")


def test_explain(models: list[plait.Model]):
    """What writing would do, as text: passes, bytes, budget; nothing is read."""
    base, a, b = models
    text = plait.methods.ties(base=base, experts=[a, b], weight=1.0, density=0.2).explain(memory="96MiB")
    assert "of 96 MiB" in text
    assert "2 exact thresholds" in text
    assert "mlp.up_proj.weight" in text
    with pytest.raises(plait.BudgetTooSmall, match="give --memory"):
        base.explain(memory="1MiB")


def test_report(models: list[plait.Model], tmp_path: Path):
    """The report has the bytes and seconds of the run."""
    report = plait.write((models[0] + models[1]) / 2, tmp_path / "out", memory="256MiB")
    assert report.bytes_read == 2 * report.bytes_written == 2 * 4 * tiny.elements()
    assert 0 < report.seconds < 60
    assert 0 < report.leased_peak_bytes <= 256 << 20


def test_an_output_opens_again(models: list[plait.Model], tmp_path: Path):
    """What was written is a model like any other, with the tensors in the order of the donor."""
    plait.write(models[0] * 0.5, tmp_path / "out", memory="256MiB")
    again = plait.open(tmp_path / "out")
    assert again.names == models[0].names
    back = written(again * 2.0, tmp_path / "back")
    for name, tensor in back.items():
        np.testing.assert_array_equal(tensor.value, read_folder(tmp_path / "models" / "base")[name].value)


def test_options(models: list[plait.Model], tmp_path: Path):
    """`memory=` stands beside other options, and a plan takes sizes as text or bytes."""
    options = plait.Options(workers=1, backend="torch", shard_size="15KB")
    for memory in ("256MiB", 256 << 20):
        plan = plait.plan_model(models[0] * 0.5, options, memory=memory)
        assert (plan.budget_bytes, plan.workers, plan.backend) == (256 << 20, 1, "torch")
        assert len(plan.layout.shards) > 1
    with pytest.raises(plait.PlanError, match="'lots' is not a size"):
        plait.plan_model(models[0], memory="lots")


def test_public_names():
    """The names that programs may rely on."""
    assert plait.__all__ == sorted(plait.__all__)
    assert set(plait.__all__) >= {"open", "methods", "write", "merge", "plan", "plan_model", "Model", "Options", "PlaitError"}
    assert all(hasattr(plait, name) for name in plait.__all__)
