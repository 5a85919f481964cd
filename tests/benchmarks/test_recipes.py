"""The recipes of benchmarks: one for every method that needs weights alone, and each can be planned."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from plait.api import plan
from plait.method_recipe import example_parameters
from plait.ops.method import methods, steps

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(_BENCHMARKS))

import recipes  # noqa: E402
from make_checkpoint import PRESETS, make_set  # noqa: E402

KNOWN = {**methods(), **steps()}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_set(tmp_path_factory.mktemp("recipes"), PRESETS["tiny"], 3, sparse=True)


def test_every_method_that_needs_weights_alone_has_a_recipe():
    """The catalogue is covered, but for what needs statistics, and promises are made about methods that exist."""
    assert set(recipes.METHODS) == {name for name, m in KNOWN.items() if not m.statistics}
    assert set(recipes.PROMISED) | set(recipes.SORTED_THERE) <= set(recipes.FOR_BOTH)


@pytest.mark.parametrize("method", sorted(recipes.METHODS))
def test_recipes_can_be_planned(method: str, models: list[Path], tmp_path: Path):
    """Every recipe is one that plait reads, over the models that `models_of` names; parameters that are given are the method's."""
    path = tmp_path / f"{method}.yml"
    path.write_text(recipes.text_of(method, models))
    found = plan(path, memory="1GiB")
    assert {Path(ref.file).parent for c in found.components for ref in c.inputs} <= set(recipes.models_of(method, models))
    each, overall = example_parameters(KNOWN[method])
    assert {*each, *overall} <= {p.name for p in KNOWN[method].params}
