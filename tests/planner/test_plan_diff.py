"""Two plans side by side: what is said to keep its bits keeps them, what is said to change is named with what changes it."""

from __future__ import annotations

from itertools import permutations
from pathlib import Path

import pytest

import plait
from plait.planner.plan import Plan
from plait.planner.plan_diff import EXPRESSION, GONE, INPUTS, NEW, PARAMETERS, SAME, diff_text, plan_diff
from support import tiny
from support.stored import read_folder

OPTIONS = plait.Options(memory="256MiB", workers=2, device="cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("set"))


def planned(folder: Path, text: str, name: str = "r") -> Plan:
    (folder / f"{name}.yml").write_text(text)
    return plait.plan(folder / f"{name}.yml", OPTIONS)


def ties(models: list[Path], density: float = 0.5, **keys: object) -> str:
    return tiny.recipe("ties", models[1:], base=models[0], each={"weight": 1.0, "density": density}, **keys)


def test_a_recipe_against_itself(models: list[Path], tmp_path: Path):
    """All bits are the same, and so are the figures."""
    plan = planned(tmp_path, ties(models))
    found = plan_diff(plan, plan)
    assert found.count(SAME) == len(tiny.SHAPES)
    assert all(f.before == f.after for f in found.figures)
    assert "have the same bits" in diff_text(found)
    assert "the same memory, bytes and time" in diff_text(found)


def test_a_parameter_is_named(models: list[Path], tmp_path: Path):
    """Another density changes thresholds, and both densities are told."""
    found = plan_diff(planned(tmp_path, ties(models)), planned(tmp_path, ties(models, 0.4)))
    assert found.count(PARAMETERS) == len(tiny.SHAPES)
    assert {d for c in found.changes for d in c.details} == {"threshold: top 0.5 -> top 0.4"}


def test_only_some_tensors_change(models: list[Path], tmp_path: Path):
    """A filter that concerns one kind of tensor leaves the bits of the others."""
    some = {"weight": 1.0, "density": [{"filter": "mlp", "value": 0.3}, {"value": 0.5}]}
    found = plan_diff(planned(tmp_path, ties(models)), planned(tmp_path, tiny.recipe("ties", models[1:], base=models[0], each=some)))
    changed = [c for c in found.changes if c.what != SAME]
    assert [(c.label, c.what, c.count) for c in changed] == [("model.layers.*.mlp.up_proj.weight", PARAMETERS, 2)]
    assert found.count(SAME) == len(tiny.SHAPES) - 2


def test_other_inputs(models: list[Path], tmp_path: Path):
    """The same method over other models is the same computation of other inputs."""
    a = planned(tmp_path, tiny.recipe("linear", models[:2], each={"weight": 1.0}))
    b = planned(tmp_path, tiny.recipe("linear", [models[0], models[2]], each={"weight": 1.0}))
    assert plan_diff(a, b).count(INPUTS) == len(tiny.SHAPES)


def test_outputs_that_only_one_has(models: list[Path], tmp_path: Path):
    """New and missing tensors are told."""
    shapes = {**tiny.SHAPES, "model.extra.weight": (4, 4)}
    more = tiny.write_set(tmp_path / "more", shapes=shapes)
    a, b = planned(tmp_path, tiny.recipes(models)["linear"]), planned(tmp_path, tiny.recipes(more)["linear"])
    assert plan_diff(a, b).count(NEW) == 1
    assert plan_diff(b, a).count(GONE) == 1
    assert "only in the second" in diff_text(plan_diff(a, b))


@pytest.mark.parametrize("pair", list(permutations(["linear", "ties", "ties_global", "iso_c", "passthrough"], 2)), ids="-".join)
def test_what_is_said_to_be_the_same_is(pair: tuple[str, str], models: list[Path], tmp_path: Path):
    """Of any two recipes, outputs that are said to have the same bits have them."""
    first, second = (tmp_path / name for name in pair)
    for name in pair:
        (tmp_path / f"{name}.yml").write_text(tiny.recipes(models)[name])
    found = plan_diff(*(plait.plan(tmp_path / f"{name}.yml", OPTIONS) for name in pair))
    assert found.count(SAME) + found.count(EXPRESSION) + found.count(PARAMETERS) + found.count(INPUTS) == len(tiny.SHAPES)
    if found.count(SAME):
        for name, out in zip(pair, (first, second), strict=True):
            plait.merge(tmp_path / f"{name}.yml", out, OPTIONS)
        a, b = read_folder(first), read_folder(second)
        same = {c.label for c in found.changes if c.what == SAME}
        for name in tiny.SHAPES:
            if name in same:
                assert (a[name].value == b[name].value).all()


def test_names_of_models_do_not_count(models: list[Path], tmp_path: Path):
    """A model under another spelling is the same input; its order in a sum that rounds otherwise is not."""
    text = tiny.recipe("linear", models, each={"weight": 1.0})
    swapped = tiny.recipe("linear", [models[1], models[0], models[2]], each={"weight": 1.0})
    spelt = text.replace(str(models[0]), f"{models[0]}/../base")
    plan = planned(tmp_path, text)
    assert plan_diff(plan, planned(tmp_path, spelt)).count(SAME) == len(tiny.SHAPES)
    assert plan_diff(plan, planned(tmp_path, swapped)).count(SAME) == 0
