"""Optimisations can be switched off by name: the output keeps its bits, the plan shows what each was worth, and runs keep to the plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.cli import main
from plait.ops.errors import PlanError
from plait.planner.explain import to_text
from plait.planner.optimisations import OPTIMISATIONS
from plait.planner.plan import Plan
from plait.planner.savings import savings
from plait.planner.sizes import size
from plait.planner.words import counted
from support import tiny

#: Large enough for a sample to be less than all, small enough to be quick; a vector; two layers.
SHAPES = {"model.embed_tokens.weight": (900, 96), **{f"model.layers.{i}.mlp.up_proj.weight": (700, 96) for i in range(2)}, "model.norm.weight": (96,)}
OPTIONS = plait.Options(memory="512MiB", workers=2, device="cpu")


def texts(models: list[Path]) -> dict[str, str]:
    """Recipes that between them give every optimisation something to do."""
    base, *experts = models
    some = {"weight": [{"filter": "mlp", "value": 0.5}, {"value": 0}]}
    return {
        **tiny.recipes(models),
        "twice": tiny.recipe("linear", [experts[0], experts[1], experts[1]], each={"weight": 1.0}),
        "karcher": tiny.recipe("karcher", experts),
        "multislerp": tiny.recipe("multislerp", experts, each={"weight": 0.5}),
        "breadcrumbs": tiny.recipe("breadcrumbs", experts, base=base, each={"weight": 0.5, "density": 0.7, "gamma": 0.1}),
        "tsv_m": tiny.recipe("tsv_m", experts, base=base, each={"weight": 1.0}),
        "opcm": tiny.recipe("opcm", experts, base=base),
        "zero": tiny.recipe("task_arithmetic", experts, base=base, each=some, parameters={"lambda": 0.5}),
    }


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in texts(tiny.write_set(folder, shapes=SHAPES)).items():
        found[name] = folder / f"{name}.yml"
        found[name].write_text(text)
    return found


NAMES = list(texts([Path("b"), Path("x"), Path("y")]))
#: Their plans change with the same optimisations as those of others: ties, karcher and iso_c.
ALIKE = ("breadcrumbs", "multislerp", "tsv_m")
OTHERS = [name for name in NAMES if name not in ALIKE]


@pytest.fixture(scope="module")
def outputs(recipes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """What a recipe gives with every optimisation on."""
    folder = tmp_path_factory.mktemp("outputs")
    return cache(lambda name: merged(recipes[name], folder / name, OPTIONS))


def merged(recipe: Path, out: Path, options: plait.Options) -> bytes:
    """The output's bytes; the run stays within what its plan says of memory and reading."""
    p = plait.plan(recipe, options).prediction
    report = tiny.bounded(lambda: plait.merge(recipe, out, options))
    assert report.leased_peak_bytes <= p.peak_bytes
    assert p.bytes_read <= report.bytes_read <= p.bytes_read + p.bytes_read_extra
    return (out / "model.safetensors").read_bytes()


def planned(recipe: Path, *without: str, residency: str = "auto") -> Plan:
    return plait.plan(recipe, replace(OPTIONS, without=without, residency=residency))


# -- the same bits ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*OTHERS, *(pytest.param(name, marks=pytest.mark.slow) for name in ALIKE)])
def test_without_each_and_without_all_the_bits_are_the_same(name: str, recipes: dict[str, Path], outputs: Callable[[str], bytes], tmp_path: Path):
    """No optimisation decides a bit of the output; where the plan stays as it is, there is nothing to run."""
    usual = planned(recipes[name])
    for off in [*((o,) for o in OPTIMISATIONS), tuple(OPTIMISATIONS)]:
        other = planned(recipes[name], *off)
        if replace(other, without=usual.without, resources=usual.resources) != usual:
            assert merged(recipes[name], tmp_path / "-".join(off), replace(OPTIONS, without=off)) == outputs(name), off


@pytest.mark.parametrize("off", OPTIMISATIONS)
def test_each_changes_some_plan(off: str, recipes: dict[str, Path]):
    """The comparison of bits means something: every optimisation has a recipe whose plan is another without it."""
    found = ((planned(path), planned(path, off)) for path in recipes.values())
    assert any(replace(other, without=usual.without, resources=usual.resources) != usual for usual, other in found)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(OTHERS), st.sets(st.sampled_from(list(OPTIMISATIONS))), st.integers(1, 3), st.integers(0, 8))
def test_any_of_them_together(
    recipes: dict[str, Path], outputs: Callable[[str], bytes], tmp_path_factory: pytest.TempPathFactory, name: str, off: set[str], workers: int, more: int
):
    """Any set of them, under any number of workers and a budget that is hardly enough."""
    least = planned(recipes[name], *off).prediction.minimum_bytes
    options = plait.Options(memory=least + more * (1 << 20), workers=workers, device="cpu", without=tuple(off))
    assert merged(recipes[name], tmp_path_factory.mktemp("out") / "o", options) == outputs(name)


# -- what each is worth ----------------------------------------------------------------------------
def test_the_plan_shows_what_switching_off_costs(recipes: dict[str, Path]):
    """Each has a recipe in which it is worth something, and the plan without it says how much."""
    assert planned(recipes["passthrough"], "byte-copy").prediction.bytes_copied == 0
    assert planned(recipes["passthrough"]).prediction.bytes_copied > 0
    ties = planned(recipes["ties"])
    longer = planned(recipes["ties"], "foresight")
    assert longer.prediction.passes == ties.prediction.passes + 1
    assert longer.prediction.bytes_read > ties.prediction.bytes_read
    assert longer.prediction.bytes_read_extra < ties.prediction.bytes_read_extra
    assert planned(recipes["ties"], "shared-passes").prediction.bytes_read > ties.prediction.bytes_read
    assert planned(recipes["twice"], "shared-inputs").prediction.bytes_read * 2 == planned(recipes["twice"]).prediction.bytes_read * 3
    kept = planned(recipes["slerp"], residency="keep")
    assert planned(recipes["slerp"], "keep-inputs").prediction.bytes_read > kept.prediction.bytes_read
    assert work(planned(recipes["karcher"], "common-subexpressions")) > work(planned(recipes["karcher"]))
    assert work(planned(recipes["ties"], "constant-folding")) > work(ties)


def work(plan: Plan) -> float:
    """Predicted seconds of computing, and ops of the programs."""
    return plan.timing.computing_s + 1e-3 * sum(len(p.nodes) for p in plan.programs)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_spared_is_what_switching_off_costs(name: str, recipes: dict[str, Path]):
    """Bytes of reading that a plan says were spared are those that the plan without the optimisation reads more."""
    plan = planned(recipes[name])
    for saving in savings(plan):
        if saving.name in ("shared-passes", "foresight", "keep-inputs") and saving.count:
            more = planned(recipes[name], saving.name).prediction.bytes_read - plan.prediction.bytes_read
            assert more == saving.nbytes
        elif saving.name == "byte-copy":
            assert saving.nbytes == plan.prediction.bytes_copied
            assert bool(saving.words) == bool(saving.nbytes)


def test_unread_inputs_are_counted(recipes: dict[str, Path]):
    """Of a model whose weight is zero for some tensors, those are said not to be read."""
    culled = next(s for s in savings(planned(recipes["zero"])) if s.name == "culled")
    outside = [name for name in SHAPES if "mlp" not in name]
    assert culled.count == 2 * len(outside)
    assert counted(culled.count, "input tensor") in culled.words


# -- names -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("command", ["plan", "merge"])
def test_each_has_a_switch(command: str):
    """`--no-<name>` for each, with its sentence in the help."""
    text = " ".join(CliRunner().invoke(main, [command, "--help"]).output.split())
    for o in OPTIMISATIONS.values():
        assert f"--no-{o.name} Switch off: {o.does[0].lower()}{o.does[1:]}" in text


def test_a_name_that_is_not_known_is_refused(recipes: dict[str, Path]):
    """With the nearest that is."""
    with pytest.raises(PlanError, match="no optimisation called 'forsight' \\(did you mean 'foresight'\\?\\)"):
        planned(recipes["linear"], "forsight")
    with pytest.raises(PlanError, match="opposites"):
        planned(recipes["linear"], "keep-inputs", residency="keep")


def test_a_plan_says_what_is_switched_off(recipes: dict[str, Path]):
    """As data and in the tree."""
    plan = planned(recipes["ties"], "shared-passes", "foresight")
    assert plan.without == ("foresight", "shared-passes")
    assert [name for name, on in plan.to_dict()["optimisations"].items() if not on] == ["foresight", "shared-passes"]
    assert "switched off" in to_text(plan)
    assert OPTIMISATIONS["foresight"].does in " ".join(to_text(plan, 400).split())


def test_the_command_line_says_what_switching_off_costs(recipes: dict[str, Path]):
    """`plait plan --no-foresight` plans with it, too, and tells the difference."""
    result = CliRunner().invoke(main, ["plan", str(recipes["ties"]), "-m", "256MiB", "--no-foresight", "--no-byte-copy"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    more = planned(recipes["ties"], "foresight").prediction.bytes_read - planned(recipes["ties"]).prediction.bytes_read
    assert f"foresight: {size(more)} more to read" in result.output
    assert "byte-copy: costs nothing here" in result.output
