"""Memory over time: its peak is the prediction's, whatever the budget, and it is drawn with few points."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.planner.plan import Plan
from plait.planner.sizes import MIB
from plait.planner.timeline import PUBLISHING, STARTING, timeline
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in tiny.recipes(tiny.write_set(folder)).items():
        found[name] = folder / f"{name}.yml"
        found[name].write_text(text)
    return found


def planned(recipes: dict[str, Path], name: str, memory: int | str = "2GiB", workers: int = 2) -> Plan:
    return plait.plan(recipes[name], plait.Options(memory=memory, workers=workers, device="cpu"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.integers(0, 40 * MIB), st.integers(1, 6), st.integers(3, 40))
def test_the_peak_is_that_of_the_prediction(recipes: dict[str, Path], name: str, more: int, workers: int, most: int):
    """Under any budget, with any number of workers and however few points: the highest point is the predicted peak, time runs on, the end is the end."""
    least = planned(recipes, name).prediction.minimum_bytes
    plan = planned(recipes, name, least + more, workers)
    line = timeline(plan, most)
    assert line.peak.host_bytes == plan.prediction.peak_bytes <= plan.budget_bytes
    assert len(line.points) <= most
    times = [p.seconds for p in line.points]
    assert times == sorted(times)
    assert times[0] == 0
    assert times[-1] == pytest.approx(plan.timing.seconds - plan.timing.publishing_s)
    assert line.seconds == pytest.approx(plan.prediction.seconds)


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_has_its_time(name: str, recipes: dict[str, Path]):
    """Each output tensor is the one at work once a sweep, in the order of the plan, between starting and publishing."""
    plan = planned(recipes, name)
    tasks = [p.task for p in timeline(plan).points]
    assert [tasks[0], tasks[-1]] == [STARTING, PUBLISHING]
    assert set(tasks[1:-1]) == {c.name for c in plan.components}
    first = list(dict.fromkeys(tasks[1:-1]))
    assert first == [c.name for c in plan.components]


def test_fewer_points_hide_no_height(recipes: dict[str, Path]):
    """At any moment the short staircase is at least as high as the long one."""
    plan = planned(recipes, "iso_c")
    long, short = timeline(plan).points, timeline(plan, 4).points
    assert len(short) < len(long)
    for point in long:
        at = max((p for p in short if p.seconds <= point.seconds), key=lambda p: p.seconds)
        assert at.host_bytes >= point.host_bytes


def test_gpus_have_their_own_level(recipes: dict[str, Path]):
    """A plan that uses GPUs says for each how much is leased there, never more than its budget."""
    plan = planned(recipes, "iso_c")
    plan = replace(plan, on_gpu=tuple(range(len(plan.programs))), gpu_budget_bytes=(256 * MIB, 64 * MIB))
    levels = {p.gpu_bytes for p in timeline(plan).points}
    assert (0, 0) in levels
    assert max(levels)[0] > 96 * MIB
    assert all(a <= 256 * MIB and b <= 64 * MIB for a, b in levels)
