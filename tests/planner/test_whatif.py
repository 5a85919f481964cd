"""What-if: the figures of other budgets are those of plans made for them."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import plait
from plait.planner.plan import Plan
from plait.planner.sizes import MIB
from plait.planner.whatif import enough_bytes, ladder, what_if
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))
SHAPES = {"model.embed_tokens.weight": (4000, 520), **{f"model.layers.{i}.mlp.up_proj.weight": (700, 520) for i in range(3)}, "model.norm.weight": (520,)}


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in tiny.recipes(tiny.write_set(folder, shapes=SHAPES)).items():
        found[name] = folder / f"{name}.yml"
        found[name].write_text(text)
    return found


def planned(recipe: Path, memory: int | str, residency: str = "keep", workers: int = 3) -> Plan:
    return plait.plan(recipe, plait.Options(memory=memory, workers=workers, device="cpu", residency=residency))


@pytest.mark.parametrize("name", NAMES)
def test_every_row_is_the_plan_of_its_budget(name: str, recipes: dict[str, Path]):
    """Peak, workers, passes and bytes of a row are those of a plan made for that budget; the seconds, too."""
    plan = planned(recipes[name], "256MiB")
    rows = what_if(plan)
    assert [r.budget_bytes for r in rows] == sorted({r.budget_bytes for r in rows})
    assert plan.budget_bytes in [r.budget_bytes for r in rows if r.asked]
    for row in rows:
        p = planned(recipes[name], row.budget_bytes)
        assert (row.peak_bytes, row.workers, row.passes) == (p.prediction.peak_bytes, p.workers, p.prediction.passes)
        assert (row.bytes_read, row.bytes_read_extra) == (p.prediction.bytes_read, p.prediction.bytes_read_extra)
        assert row.kept == sum(c.keep_inputs for c in p.components)
        assert row.seconds == pytest.approx(p.prediction.seconds, rel=0.05)  # memory that is free for the page cache may have changed


@pytest.mark.parametrize("residency", ["auto", "keep", "reread"])
@pytest.mark.parametrize("name", NAMES)
def test_the_ladder_ends_where_nothing_changes(name: str, residency: str, recipes: dict[str, Path]):
    """From the smallest budget that works to the first above which the plan stays the same: 2 MiB less is another plan."""
    plan = planned(recipes[name], "256MiB", residency)
    rows = what_if(plan)
    assert rows[0].smallest
    assert rows[0].budget_bytes == plan.prediction.minimum_bytes
    enough = enough_bytes(plan)
    assert next(r.budget_bytes for r in rows if r.enough) == enough
    below, at, far = what_if(plan, [max(enough - 2 * MIB, rows[0].budget_bytes), enough, 1 << 50])
    assert facts(at) == facts(far)
    assert below.budget_bytes == rows[0].budget_bytes or facts(below) != facts(far)


def facts(row: object) -> dict[str, object]:
    """A row without its budget and marks."""
    found = asdict(row)  # type: ignore[call-overload]
    return {k: v for k, v in found.items() if k not in ("budget_bytes", "asked", "smallest", "enough")}


def test_a_budget_that_is_too_small_is_a_row_that_says_so(recipes: dict[str, Path]):
    """Refused budgets stand in the table with the planner's own sentence, not as an error."""
    plan = planned(recipes["ties"], "256MiB")
    low, high = what_if(plan, [MIB, 1 << 30])
    assert "too small" in low.refused
    assert low.peak_bytes == low.workers == 0
    assert not high.refused


def test_asking_changes_nothing_about_the_plan(recipes: dict[str, Path]):
    """The plan, its fingerprint and its JSON, but for other budgets, are the same whether or not it knows what it was made for."""
    plan = planned(recipes["ties"], "256MiB")
    bare = replace(plan, resources=None)
    assert bare == plan
    assert bare.fingerprint == plan.fingerprint
    without, with_budgets = json.loads(bare.to_json()), json.loads(plan.to_json())
    assert without.pop("what_if") == []
    assert with_budgets.pop("what_if")
    assert without == with_budgets
    assert what_if(bare) == ()


def test_rungs_grow_by_one_factor():
    """A ladder is geometric, in whole MiB, and has no rung twice."""
    assert ladder(10 * MIB, 160 * MIB, 3) == [10 * MIB, 20 * MIB, 40 * MIB, 80 * MIB, 160 * MIB]
    assert ladder(10 * MIB, 11 * MIB, 9) == [10 * MIB, 11 * MIB]
