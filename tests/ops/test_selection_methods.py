"""Selection methods against their formulas in plain NumPy, and what their papers promise; through the engine, on the interpreter."""

from __future__ import annotations

from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.methods.disentangled import widen_ranks
from plait.ops.methods.variance import shares
from plait.ops.tensor import LazyTensor
from support.evaluate import evaluate

F64 = npt.NDArray[np.float64]
SHAPE = (30, 21)


def merged(name: str, base: F64, experts: list[F64], tensor: str = "w.weight", role: str = "mlp", **given: Any) -> F64:
    """A method on float32 arrays; per-expert parameters are spread."""
    method, count = methods()[name], len(experts)
    labels = tuple(f"expert{k}" for k in range(count))
    leaves = {"base": base.astype(np.float32), **{label: e.astype(np.float32) for label, e in zip(labels, experts, strict=True)}}
    params = {}
    for p in method.params:
        value = given.get(p.keyword, p.default)
        params[p.keyword] = (value if isinstance(value, tuple) else (value,) * count) if p.per_expert else value

    def make(**nodes: LazyTensor) -> LazyTensor:
        t = MergeInputs(nodes["base"], tuple(nodes[label] for label in labels), labels, base.shape, tensor, role)
        result: LazyTensor = method.build(t, **params)
        return result

    return evaluate({tensor: leaves}, make, backend="torch")[tensor].astype(np.float64)


def family(count: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> tuple[F64, list[F64]]:
    """A base and experts on a grid of 1/256, so that differences and sums are exact in float32; few distinct magnitudes."""
    rng = np.random.default_rng(seed)
    base = rng.integers(-64, 64, shape) / 256
    return base, [base + rng.integers(-20, 21, shape) / 256 for _ in range(count)]


# -- breadcrumbs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "gamma"), [(0.5, 0.1), (0.9, 0.1), (1.0, 0.1), (0.3, 0.0), (0.001, 0.01), (0.6, 0.6)])
@pytest.mark.parametrize("scope", ["tensor", "row"])
def test_breadcrumbs_keeps_an_interval_of_ranks(scope: str, density: float, gamma: float):
    """Exactly the ranks of a stable sort; with density 1 only the outliers go, and a tiny density keeps one element."""
    base, (expert,) = family(1)
    delta = expert - base
    got = merged("breadcrumbs", base, [expert], density=density, gamma=gamma, scope=scope, weight=1.0) - base
    rows = delta.reshape(-1 if scope == "row" else 1, SHAPE[1] if scope == "row" else delta.size)
    wanted = np.zeros_like(rows)
    for values, out in zip(rows, wanted, strict=True):
        first = floor(gamma * values.size)
        chosen = np.argsort(-np.abs(values), kind="stable")[first : first + max(1, floor(density * values.size))]
        out[chosen] = values[chosen]
    assert (got == wanted.reshape(SHAPE)).all()


def test_breadcrumbs_keep_small_tensors():
    """A tensor so small that gamma n is below 1 loses no outlier and is not erased."""
    base, (expert,) = family(1, shape=(7,))
    got = merged("breadcrumbs", base, [expert], density=0.9, gamma=0.01, weight=1.0)
    assert (got != base).sum() >= np.count_nonzero(expert != base) - 1
    alone = merged("breadcrumbs", np.zeros(1), [np.ones(1)], density=0.1, gamma=0.01, weight=1.0)
    assert alone.tolist() == [1.0]


# -- SCE and VaRM ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("applies", ["all", "weights_only"])
def test_sce_is_its_formula(applies: str):
    """Selected positions, weights from them, sums of agreeing changes."""
    base, experts = family(3)
    got = merged("sce", base, experts, select_topk=0.4, select_applies_to=applies)
    deltas = np.stack([e - base for e in experts])
    spread = deltas.astype(np.float32).var(0)
    count = floor(0.4 * np.count_nonzero(spread > 1e-12))
    threshold = np.sort(spread, axis=None)[::-1][count - 1]
    sure = np.abs(spread - threshold) > 1e-6 * threshold  # of equal variances only some are selected
    mask = spread > threshold * (1 + 1e-6)
    chosen = np.argsort(-spread, axis=None, kind="stable")[:count]
    exact = np.zeros(spread.size, bool)
    exact[chosen] = True
    assert sure.mean() > 0.5
    eta = ((deltas * exact.reshape(SHAPE)) ** 2).sum((1, 2))
    eta = (eta / eta.sum()).reshape(3, 1, 1)
    taken = deltas * mask if applies == "all" else deltas
    agree = np.sign(taken) == np.where(taken.sum(0) >= 0, 1, -1)
    below = (eta * agree).sum(0)
    wanted = base + (eta * agree * taken).sum(0) / np.where(below > 0, below, 1)
    slack = 2e-2 if not sure.all() else 1e-6  # which of equal variances count for the weights changes them a little
    assert np.abs(got - wanted)[sure if applies == "all" else ...].max() <= slack * np.abs(deltas).max()
    if applies == "all":
        assert (got[sure & ~mask] == base[sure & ~mask]).all()


def test_sce_counts_the_positions_where_experts_differ():
    """floor(tau m) of the m positions of unequal changes; equal experts have none, and then all positions take part."""
    base = np.zeros((10, 10))
    one, other = base + 0.5, base + 0.5
    other[0, :5] = [1, 2, 3, 4, 5]
    got = merged("sce", base, [one, other], select_topk=0.4)
    assert np.flatnonzero(got).tolist() == [3, 4]
    assert (merged("sce", base, [one, one], select_topk=0.4) == one).all()


def test_shares_are_equal_only_where_nothing_else_is_defined():
    """Tiny masses are not taken for zero; a zero among others is a weight of zero, or for VaRM a reason for equal weights."""
    assert shares(2.0**-100, 3 * 2.0**-100).tolist() == [0.25, 0.75]
    assert shares(0.0, 0.0).tolist() == [0.5, 0.5]
    assert shares(0.0, 2.0).tolist() == [0.0, 1.0]
    assert shares(0.0, 2.0, zero_is_uniform=True).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("statistic", "power"), [("square", 2), ("abs", 1)])
def test_varm_weights_by_variation(statistic: str, power: int):
    """An expert that changed c times as much counts c^power times as much; the weights sum to 1."""
    base, (expert, other) = family(2)
    masses = [(np.abs(e - base) ** power).sum() for e in (expert, other)]
    wanted = (masses[0] * expert + masses[1] * other) / sum(masses)
    assert np.abs(merged("varm", base, [expert, other], statistic=statistic) - wanted).max() <= 1e-7
    assert np.abs(merged("varm", base, [expert, base], statistic=statistic) - (expert + base) / 2).max() <= 1e-7


# -- Arcee Fusion ---------------------------------------------------------------------------------------------


def test_arcee_fusion_takes_what_stands_out():
    """The mask is that of the formula in float64, but for elements within 0.1 % of the threshold; other elements are the base's or the expert's own."""
    rng = np.random.default_rng(3)
    base = rng.standard_normal((40, 64)).astype(np.float32).astype(np.float64)
    expert = (base + rng.standard_normal((40, 64)) * 0.01 * rng.uniform(0, 3, (40, 1))).astype(np.float32).astype(np.float64)
    got = merged("arcee_fusion", base, [expert])
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (expert, base))
    importance = np.abs((expert - base).astype(np.float32)) * (p * np.log(p / q)).sum(1, keepdims=True)
    low, median, high = (np.sort(importance, axis=None)[floor(share * (importance.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (high - low)
    sure = np.abs(importance - threshold) > 1e-3 * threshold
    assert (got == np.where(importance >= threshold, expert, base))[sure].all()
    assert 0.02 < (got != base).mean() < 0.25
    assert sure.mean() > 0.99


def test_the_divergence_of_near_rows_is_exact_and_never_negative():
    """Rows that differ by 1e-4 keep five digits of a divergence of 1e-9, where p log(p/q) in float32 has none; equal rows have 0."""
    from plait.ops.methods.fusion import divergence

    rng = np.random.default_rng(4)
    base = (rng.standard_normal((6, 512)) * 0.02).astype(np.float32)
    expert = (base + rng.standard_normal((6, 512)) * 1e-4).astype(np.float32)
    expert[0] = base[0]
    expert[1, 0] = 30.0  # nearly all the weight of its row
    got = evaluate({"w": {"a": expert, "b": base}}, lambda a, b: 0.0 * a + divergence(a, b), backend="torch")["w"][:, 0]
    wide = [x.astype(np.longdouble) for x in (expert, base)]
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in wide)
    wanted = (p * np.log(p / q)).sum(1).astype(np.float64)
    assert got[0] == 0.0
    np.testing.assert_allclose(got[1:], wanted[1:], rtol=2e-5)
    assert (got >= 0).all()


# -- PCB --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["A", "B", "C"])
def test_pcb_of_one_expert_keeps_its_largest_changes(variant: str):
    """Alone, the score grows with magnitude: the largest changes stay, at most as many as the ratio says, at their clipped size."""
    rng = np.random.default_rng(5)
    base = np.zeros((50, 40))
    expert = rng.standard_normal((50, 40))
    got = merged("pcb", base, [expert], ratio=0.1, variant=variant, clip=0.01)
    size = np.abs(expert.astype(np.float32)).astype(np.float64)
    kept = got != 0
    assert 0.08 * kept.size <= kept.sum() <= 0.1 * kept.size
    assert size[kept].min() >= size[~kept].max()
    low, high = np.sort(size, axis=None)[floor(0.01 * size.size)], np.sort(size, axis=None)[floor(0.99 * size.size - 1)]
    np.testing.assert_allclose(got[kept], (np.sign(expert) * np.clip(size, low, high))[kept], rtol=1e-6)


def test_pcb_of_opposed_experts_is_the_base():
    """Changes that cancel everywhere score nothing and sum to nothing."""
    base, (expert, _) = family(2)
    got = merged("pcb", base, [expert, 2 * base - expert], ratio=0.2)
    assert np.abs(got - base).max() <= 1e-7


def test_pcb_is_defined_for_tiny_and_unchanged_tensors():
    """One element, equal magnitudes, no change: finite, and the base where nothing changed."""
    assert merged("pcb", np.zeros(1), [np.ones(1)]).tolist() == [1.0]
    assert (merged("pcb", np.zeros((3, 3)), [np.full((3, 3), 0.5)] * 2) == 0.5).all()
    base, _ = family(0)
    assert (merged("pcb", base, [base, base]) == base).all()


# -- Localize-and-Stitch ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["tensor", "global"])
@pytest.mark.parametrize("keep", ["exact", "above"])
def test_stitched_positions_are_their_owners(scope: str, keep: str):
    """A position of one owner is that expert's value bit for bit, of several their mean, of none the base's."""
    base, experts = family(3)
    got = merged("localize_stitch", base, experts, density=0.3, scope=scope, keep=keep)
    masks = []
    for expert in experts:
        size = np.abs(expert - base).reshape(-1)
        order = np.argsort(-size, kind="stable")
        mask = np.zeros(size.size, bool)
        mask[order[: floor(0.3 * size.size)]] = True
        masks.append((size > size[order[floor(0.3 * size.size) - 1]] if keep == "above" else mask).reshape(SHAPE))
    owners = np.sum(masks, 0)
    owned = np.sum([np.where(m, e, 0) for m, e in zip(masks, experts, strict=True)], 0)
    assert {0, 1, 2} <= set(np.unique(owners))
    assert (got[owners == 0] == base[owners == 0]).all()
    assert (got[owners == 1] == owned[owners == 1]).all()
    assert np.abs(got - owned / np.maximum(owners, 1))[owners > 1].max() <= 1e-7


# -- WIDEN ------------------------------------------------------------------------------------------------------


def widen(base: F64, experts: list[F64], ratio: float, calibration: float) -> F64:
    """The paper's formula by columns, in float64, with 1 - cos from unit vectors."""

    def ranks(change: F64) -> F64:
        found = np.empty(change.size)
        found[np.argsort(change, kind="stable")] = np.arange(change.size) / change.size
        return found

    size, turn = [], []
    for expert in experts:
        a, b = np.linalg.norm(expert, axis=0), np.linalg.norm(base, axis=0)
        size.append(ranks(np.abs(a - b)))
        turn.append(ranks(0.5 * ((expert / a - base / b) ** 2).sum(0)))
    total = base.copy()
    for k, expert in enumerate(experts):
        weight = np.zeros(base.shape[1])
        for rho in (size, turn):
            score = np.exp(rho[k]) / sum(np.exp(r) for r in rho)
            weight += 0.5 * np.where(rho[k] > ratio * rho[k].mean(), calibration, score)
        total = total + (expert - base) * weight
    return total


@pytest.mark.parametrize(("ratio", "calibration"), [(1.0, 1.0), (0.7, 0.9), (3.0, 1.0)])
def test_widen_is_its_formula(ratio: float, calibration: float):
    """By columns, and by rows for a table of tokens; a convolution's columns are its flattened inputs."""
    rng = np.random.default_rng(6)
    base = rng.standard_normal((40, 24)).astype(np.float32).astype(np.float64)
    experts = [(base + 0.1 * rng.standard_normal(base.shape)).astype(np.float32).astype(np.float64) for _ in range(3)]
    given = {"above_average_value_ratio": ratio, "score_calibration_value": calibration}
    wanted = widen(base, experts, ratio, calibration)
    assert np.abs(merged("widen", base, experts, **given) - wanted).max() <= 1e-6
    tokens = merged("widen", base.T, [e.T for e in experts], tensor="model.embed_tokens.weight", role="embedding", **given)
    assert np.abs(tokens.T - wanted).max() <= 1e-6
    shape = (40, 6, 2, 2)
    assert np.abs(merged("widen", base.reshape(shape), [e.reshape(shape) for e in experts], **given).reshape(40, 24) - wanted).max() <= 1e-6


def test_widen_of_vectors_weighs_elements():
    """Of a vector |delta| itself is the rank: a softmax over experts, 1 above the mean."""
    base, experts = family(2, shape=(50,))
    sizes = np.abs(np.stack(experts) - base)
    weights = np.where(sizes > sizes.mean(1, keepdims=True), 1.0, np.exp(sizes) / np.exp(sizes).sum(0))
    wanted = base + ((np.stack(experts) - base) * weights).sum(0)
    assert np.abs(merged("widen", base, experts) - wanted).max() <= 1e-6


def test_columns_without_change_or_length_rank_in_order():
    """Equal columns and columns of zeros have not turned: exactly 0, so that they rank by position."""
    expert, base = np.array([4.0, 9.0, 0.0, 5.0, 3.0]), np.array([4.0, 9.0, 1.0, 5.0, 3.0])
    both = np.array([4.0, 9.0, 0.0, 5.0, 2.9])
    assert widen_ranks(expert, base, both)[1].tolist() == [0.0, 0.2, 0.4, 0.6, 0.8]
    assert widen_ranks(expert, base, both)[0].tolist() == [0.0, 0.2, 0.8, 0.4, 0.6]
