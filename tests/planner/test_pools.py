"""Pools and algorithms: peaks are those of the plan, and the algorithm that is told is the one that the kernels take."""

from __future__ import annotations

from pathlib import Path

import pytest

import plait
from plait.ops.kernels.thin_svd import DIRECT_SIDE, svd_route
from plait.planner.algorithms import algorithm
from plait.planner.pools import pools
from plait.planner.program import Node
from plait.planner.wholework import whole_work
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))
ROUTES = {"direct": "SVD in float64", "gram": "Gram matrix in float64", "randomized": "random sketch"}


@pytest.mark.parametrize("name", NAMES)
def test_the_host_pool_is_the_prediction(name: str, tmp_path: Path):
    """Budget, peak and task of the plan; whoever sets a peak has a reason."""
    (tmp_path / "r.yml").write_text(tiny.recipes(tiny.write_set(tmp_path))[name])
    plan = plait.plan(tmp_path / "r.yml", plait.Options(memory="96MiB", workers=2, device="cpu"))
    (host,) = pools(plan)
    assert (host.name, host.budget_bytes, host.peak_bytes, host.task) == ("host", plan.budget_bytes, plan.prediction.peak_bytes, plan.prediction.peak_task)
    assert bool(host.why) == bool(host.task)


@pytest.mark.parametrize("shape", [(64, 64), (DIRECT_SIDE - 1, 30), (DIRECT_SIDE, 30), (2048, 2048), (300, 5000)])
@pytest.mark.parametrize("rank", [4, 30])
@pytest.mark.parametrize("accuracy", ["exact", "fast"])
def test_the_svd_that_is_told_is_the_one_that_runs(shape: tuple[int, int], rank: int, accuracy: str):
    """The same decision as the kernel's, and an error for each way."""
    node = Node("svd", (0,), (("accuracy", accuracy), ("rank", rank)), shape, "float32", "matrix")
    told = algorithm(node)
    assert told.name == ROUTES[svd_route(*shape, rank, accuracy)]  # type: ignore[arg-type]
    assert told.why
    assert told.error
    assert ("accuracy: fast" in told.why) is (accuracy == "fast" and told.name != ROUTES["direct"])


def test_all_whole_ops_of_a_plan_are_told(tmp_path: Path):
    """Counts, work and seconds add up to those of the plan."""
    shapes = {"a.weight": (80, 60), "b.weight": (80, 60), "model.norm.weight": (60,)}
    models = tiny.write_set(tmp_path, shapes=shapes)
    (tmp_path / "r.yml").write_text(tiny.recipe("tsv_m", models[1:], base=models[0], each={"weight": 1.0}))
    plan = plait.plan(tmp_path / "r.yml", plait.Options(memory="256MiB", workers=2, device="cpu"))
    work = whole_work(plan)
    assert sum(w.count for w in work if w.op == "svd") == 4
    assert sum(w.count for w in work if w.op == "polar") == 4
    assert [w.flops * w.count for w in work] == sorted((w.flops * w.count for w in work), reverse=True)
    assert {w.device_why for w in work} == {"as asked (--device cpu)"}
    assert 0 < sum(w.seconds for w in work) <= plan.timing.computing_s
