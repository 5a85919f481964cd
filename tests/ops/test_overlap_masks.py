"""Elementwise merges of two models, overlaps, masks and importance: the invariants of their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.methods.sens import coefficients
from plait.ops.statistics import LayerScore
from support.merging import CLOSE, F64, build, inputs, normal, run


def grid(seed: int, count: int, *shape: int) -> list[F64]:
    """Values whose sums and halves are exact, many of them equal or zero."""
    random = np.random.default_rng(seed)
    return [random.integers(-3, 4, shape) / 4.0 for _ in range(count)]


def test_nearswap_takes_near_values_whole():
    """Within t the other model's value exactly, further away ever less of it; t of 0 is the base."""
    base, other = np.zeros(5), np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    assert np.allclose(run("nearswap", base, [other], t=1.0), [0.0, 0.5, 1.0, 1.0, 1.0], rtol=CLOSE)
    t = inputs(1)
    assert build("nearswap", t, t=0.0) is t.origin


def test_expo_goes_on_from_the_expert():
    """theta_1 + alpha delta; alpha 0 is the expert itself, -1 the base."""
    base, expert = grid(1, 2, 9)
    assert (run("expo", base, [expert], alpha=0.5) == expert + 0.5 * (expert - base)).all()
    t = inputs(1)
    assert build("expo", t, alpha=0.0) is t.experts[0]
    assert build("expo", t, alpha=-1.0) is t.origin


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 4))
def test_magmax_takes_the_largest_change(seed: int, count: int):
    """Its magnitude is the largest, and of equal ones the later expert's sign counts."""
    base, *experts = grid(seed, count + 1, 40)
    got = run("magmax", base, experts, lam=1.0) - base
    deltas = np.stack([e - base for e in experts])
    place = count - 1 - np.abs(deltas)[::-1].argmax(0)
    assert (got == np.take_along_axis(deltas, place[None], 0)[0]).all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 4))
def test_ram_keeps_unique_changes_and_averages_shared_ones(seed: int, count: int):
    """As numpy does it; ramplus_tl raises the unique ones by their expert's ratio, and with r 0 it is ram."""
    base, *experts = grid(seed, count + 1, 6, 7)
    deltas = np.stack([e - base for e in experts])
    active = np.abs(deltas) > 0.3
    number = active.sum(0)
    wanted = (deltas * active).sum(0) / np.maximum(number, 1)
    assert np.allclose(run("ram", base, experts, epsilon=0.3) - base, wanted, atol=4 * CLOSE)
    assert np.allclose(run("ramplus_tl", base, experts, epsilon=0.3, r=0.0) - base, wanted, atol=4 * CLOSE)
    raised = np.zeros(wanted.shape)
    for delta, mask in zip(deltas, active, strict=True):
        unique, shared = (mask & (number == 1)).sum(), (mask & (number > 1)).sum()
        factor = 1 + 0.5 * min(shared / unique if unique else 0.0, 2.0)
        raised += delta * mask * np.where(number == 1, factor, 1.0)
    for scope in ("tensor", "global"):  # a model of one tensor
        got = run("ramplus_tl", base, experts, epsilon=0.3, r=0.5, alpha=2.0, scope=scope) - base
        assert np.allclose(got, raised / np.maximum(number, 1), atol=4 * CLOSE)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), count=st.integers(1, 4))
def test_emr_has_the_elected_sign_and_the_largest_magnitude(seed: int, count: int):
    """At least as large as every change that agrees, never of another sign than the sum; one expert is itself."""
    base, *experts = grid(seed, count + 1, 40)
    tau = run("emr", base, experts) - base
    deltas = np.stack([e - base for e in experts])
    sign = np.where(deltas.sum(0) > 0, 1.0, -1.0)
    agree = deltas * sign > 0
    assert (tau == sign * (np.abs(deltas) * agree).max(0)).all()
    t = inputs(1)
    assert build("emr", t) is t.experts[0]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), k=st.integers(0, 4))
def test_consensus_keeps_what_k_tasks_need(seed: int, k: int):
    """k 0 is task arithmetic, k above the number of experts the base, and in between the count decides; a stricter k keeps a subset."""
    base, *experts = grid(seed, 4, 40)
    tau = sum(e - base for e in experts)
    needed = sum((np.abs(e - base) > 0.5 * np.abs(tau - (e - base))).astype(int) for e in experts)
    got = run("consensus", base, experts, k=k, tall_lambda=0.5) - base
    assert (got == np.where(needed >= k, tau, 0.0)).all()


def test_consensus_at_its_ends():
    """With a mask lambda of 0 an expert needs what it changed; k beyond the experts is the base's own node."""
    base, expert = grid(3, 2, 40)
    assert (run("consensus", base, [expert], k=1, tall_lambda=0.0) == expert).all()
    t = inputs(2)
    assert build("consensus", t, k=3) is t.origin


# -- importance ------------------------------------------------------------------------------------------


def test_fisher_averages_by_certainty():
    """Equal information is the weighted mean, ten thousandfold information that model; the result lies between the models."""
    experts, ones = [normal(1, 5, 4), normal(2, 5, 4)], [np.ones((5, 4))] * 2
    base = np.zeros((5, 4))
    got = run("fisher", base, experts, importance=ones, weight=(1.0, 3.0))
    assert np.allclose(got, (experts[0] + 3 * experts[1]) / 4, rtol=8 * CLOSE, atol=CLOSE)
    sure = run("fisher", base, experts, importance=[1e8 * ones[0], ones[1]], normalize="none")
    assert np.allclose(sure, experts[0], rtol=1e-6, atol=1e-6)
    mixed = run("fisher", base, experts, importance=[np.abs(normal(3, 5, 4)), np.abs(normal(4, 5, 4))])
    assert (mixed >= np.minimum(*experts) - CLOSE * 4).all()
    assert (mixed <= np.maximum(*experts) + CLOSE * 4).all()


@pytest.mark.parametrize("normalize", ["model", "tensor", "none"])
def test_fisher_does_not_depend_on_the_scale_of_all_information(normalize: str):
    """Scaled alike, and without a floor, nothing changes; normalised, each model's own scale does not matter either."""
    experts, told = [normal(1, 30), normal(2, 30)], [np.abs(normal(3, 30)), np.abs(normal(4, 30))]
    factors = (1.0, 1.0) if normalize == "none" else (1.0, 64.0)
    once = run("fisher", np.zeros(30), experts, importance=told, normalize=normalize, floor=0.0)
    other = run("fisher", np.zeros(30), experts, importance=[8.0 * f * x for f, x in zip(factors, told, strict=True)], normalize=normalize, floor=0.0)
    assert np.allclose(once, other, rtol=8 * CLOSE, atol=CLOSE)


def test_fisher_without_information_is_the_mean():
    """All zero and no floor: the models by weight, not 0/0; no weight above 0 is refused, one alone is that model."""
    experts = [normal(1, 6), normal(2, 6)]
    got = run("fisher", np.zeros(6), experts, importance=[np.zeros(6)] * 2, floor=0.0)
    assert np.allclose(got, np.mean(experts, 0), rtol=4 * CLOSE, atol=CLOSE)
    with pytest.raises(ValueError, match="not negative, and one above 0"):
        build("fisher", inputs(2), weight=(0.0, 0.0))
    t = inputs(2)
    assert build("fisher", t, weight=(0.0, 2.0)) is t.experts[1]


def test_led_masks_are_disjoint():
    """Each element has at most one expert's change, and only where base and expert both rank it high; all of everything leaves nothing."""
    base, experts = np.zeros(60), [1.0 + np.zeros(60), 2.0 + np.zeros(60), 4.0 + np.zeros(60)]
    own, of_base = [np.abs(normal(k, 60)) for k in (1, 2, 3)], [np.abs(normal(k, 60)) for k in (4, 5, 6)]
    got = run("led", base, experts, importance=own, base_importance=of_base, density=0.5)
    located = []
    for x, y in zip(own, of_base, strict=True):
        located.append((x >= np.sort(x)[-30]) & (y >= np.sort(y)[-30]))
    wanted = sum(e * (mask & ~np.any([m for j, m in enumerate(located) if j != i], axis=0)) for i, (e, mask) in enumerate(zip(experts, located, strict=True)))
    assert (got == wanted).all()
    assert set(np.unique(got)) == {0.0, 1.0, 2.0, 4.0}
    assert (run("led", base, experts, importance=own, base_importance=of_base, density=1.0) == 0).all()
    alone = run("led", base, experts[:1], importance=own[:1], base_importance=of_base[:1], density=1.0)
    assert (alone == experts[0]).all()


def test_sens_coefficients():
    """They sum to 1; hot they are equal, and then sens is task arithmetic; equal scores are equal; alignment turns the order round."""
    scores = (LayerScore(0.2, 1.0), LayerScore(0.9, 3.0))

    def sigma(temperature: float, tau: str = "distance", given: tuple[LayerScore, ...] = scores) -> list[float]:
        t = inputs(2)
        object.__setattr__(t, "sensitivity", given)
        return coefficients(t, temperature, tau)

    assert np.isclose(sum(sigma(0.1)), 1.0)
    assert np.allclose(sigma(1e9), 0.5)
    assert sigma(1.0, given=(scores[0], scores[0])) == [0.5, 0.5]
    assert np.allclose(sigma(1.0), np.exp([0.05, 0.675]) / np.exp([0.05, 0.675]).sum())
    assert np.allclose(sigma(1.0, "alignment"), np.exp([0.15, 0.225]) / np.exp([0.15, 0.225]).sum())
    base, experts = np.zeros(8), [normal(1, 8), normal(2, 8)]
    hot = run("sens", base, experts, sensitivity=scores, temperature=1e9, lam=0.3)
    assert np.allclose(hot, 0.3 * sum(experts), rtol=8 * CLOSE)
