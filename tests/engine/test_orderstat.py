"""Order statistics added up block by block give what a sort of all magnitudes gives."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine.blockrun import Counts, Window
from plait.engine.foresight import Guess, Sampled
from plait.engine.orderstat import NO_LIMIT, Statistic, Threshold, few_or_dense, tie_limit
from plait.planner.blocks import COARSE, NARROW, SPAN, SPARSE_LIMIT

Blocks = list[np.ndarray]


def keys(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def rank_text(density: str, ties: str) -> str:
    return f"{'released' if ties == 'all' else 'top'} {density}"


def count(block: np.ndarray, window: Window) -> Counts:
    """What one block adds, counted by NumPy."""
    k = keys(block).astype(np.int64)
    if window.low < 0:
        return Counts(coarse=np.bincount(k >> 16, minlength=COARSE))
    places = k - window.low
    return few_or_dense(int((places >= window.width).sum()), np.bincount(places[(places >= 0) & (places < window.width)], minlength=window.width))


def counted(blocks: Blocks, order: list[int], density: str, ties: str, window: Window) -> tuple[Statistic, int]:
    """A statistic after all its passes, and how many passes there were."""
    statistic = Statistic(rank_text(density, ties), ties, sum(b.size for b in blocks), Guess(window))

    def sweep() -> None:
        for number in order:
            statistic.add(number, count(blocks[number], statistic.window))

    sweep()
    if statistic.foreseen():
        return statistic, 1
    passes = 2
    if window.low >= 0:
        statistic.start_over()
        sweep()
        passes = 3
    statistic.look_into_right_digit()
    sweep()
    assert statistic.foreseen()
    return statistic, passes


def sorted_threshold(x: np.ndarray, density: str, ties: str) -> tuple[int, int, int]:
    """Key, quota and count of ties by sorting."""
    k = np.sort(keys(x))[::-1]
    floor = int(Fraction(density) * x.size)
    rank = min(floor + 1, x.size) if ties == "all" else max(1, floor)
    key = int(k[rank - 1])
    equal = int((k == key).sum())
    return key, equal if ties == "all" else rank - int((k > key).sum()), equal


#: Few distinct magnitudes, as deltas of 16-bit weights have, and arbitrary ones.
few = st.sampled_from([0.0, -0.0, 0.5, -0.5, 0.500001, 1.0, 1e-40, 3.0e38])
any_float = st.floats(width=32, allow_nan=False)
values = st.lists(st.one_of(few, any_float), min_size=1, max_size=60)
densities = st.integers(1, 99).map(lambda n: f"{n / 100:g}")


@st.composite
def cut(draw: st.DrawFn) -> tuple[Blocks, list[int]]:
    """Values cut into blocks, and an order to add them in."""
    x = np.array(draw(values), np.float32)
    places = sorted(draw(st.sets(st.integers(1, max(1, x.size - 1)), max_size=4)))
    blocks = np.split(x, [p for p in places if p < x.size])
    return blocks, draw(st.permutations(range(len(blocks))))


@given(cut(), densities, st.sampled_from(["first", "all"]), st.sampled_from(["right", "wrong", "none"]))
@settings(deadline=None, max_examples=150)
def test_threshold_equals_a_sort(blocks_order: tuple[Blocks, list[int]], density: str, ties: str, guess: str):
    """Any cut, any order of adding, a digit that was foreseen, missed or not tried: the same threshold."""
    blocks, order = blocks_order
    x = np.concatenate(blocks)
    expected = sorted_threshold(x, density, ties)
    right = max(expected[0] - 77, 0)
    beside = expected[0] + 1 if expected[0] < (1 << 31) - SPAN else expected[0] - SPAN  # above it, or just below
    window = {"right": Window(right), "wrong": Window(beside), "none": Window()}[guess]
    statistic, passes = counted(blocks, order, density, ties, window)
    threshold = statistic.threshold()
    assert (threshold.key, threshold.quota, threshold.equal) == expected
    assert passes == {"right": 1, "none": 2, "wrong": 3}[guess]
    for number, block in enumerate(blocks):
        assert statistic.equal_in(number, threshold) == int((keys(block) == threshold.key).sum())


@given(cut(), densities, st.integers(0, 30))
@settings(deadline=None, max_examples=150)
def test_tie_limit_keeps_exactly_the_quota(blocks_order: tuple[Blocks, list[int]], density: str, before: int):
    """Ties below the limit are the first `quota - before` of the tensor in row-major order."""
    blocks, order = blocks_order
    x = np.concatenate(blocks)
    statistic, _ = counted(blocks, order, density, "first", Window())
    threshold = statistic.threshold()
    starts = np.cumsum([0, *(b.size for b in blocks)])
    spans = [(i, int(starts[i]), b.size) for i, b in enumerate(blocks)]

    def nth(block: int, n: int) -> int:
        return int(np.flatnonzero(keys(blocks[block]) == threshold.key)[n - 1])

    limit = tie_limit(threshold, before, spans, lambda b: statistic.equal_in(b, threshold) or 0, nth)
    kept = int(((keys(x) == threshold.key) & (np.arange(x.size) < limit)).sum())
    if threshold.all_ties:
        assert limit == NO_LIMIT
    else:
        assert kept == min(threshold.equal, max(0, threshold.quota - before))


def test_top_of_the_density_is_what_the_limit_keeps():
    """Threshold and limit together keep exactly floor(density n) elements, the first of those that tie."""
    x = np.array([3, 1, 2, 2, -2, 2, 1, 0], np.float32)
    statistic, _ = counted([x[:3], x[3:]], [1, 0], "0.5", "first", Window())
    threshold = statistic.threshold()
    limit = tie_limit(threshold, 0, [(0, 0, 3), (1, 3, 5)], lambda b: [1, 3][b], lambda b, n: [[2], [0, 1, 2]][b][n - 1])
    kept = (keys(x) > threshold.key) | ((keys(x) == threshold.key) & (np.arange(8) < limit))
    assert kept.tolist() == [True, False, True, True, True, False, False, False]


def test_blocks_of_many_values_are_not_remembered():
    """Past the limit a block forgets its fine counts and says so, while totals stay exact."""
    many = (np.uint32(0x3D800000) + np.arange(SPARSE_LIMIT + 1, dtype=np.uint32)).view(np.float32)
    few_values = np.repeat(many[:SPARSE_LIMIT], 3)
    statistic, _ = counted([many, few_values, many[:0]], [0, 1, 2], "0.5", "first", Window(0x3D800000))
    threshold = statistic.threshold()
    assert (threshold.key, threshold.quota, threshold.equal) == sorted_threshold(np.concatenate([many, few_values]), "0.5", "first")
    assert statistic.equal_in(0, threshold) is None
    assert statistic.equal_in(1, threshold) == 3
    assert statistic.equal_in(2, threshold) == 0
    assert statistic.equal_in("never added", threshold) is None


def test_a_tensor_whose_blocks_remember_too_much_together_is_not_remembered():
    """What a tensor hands up is counted in full, and remembered only up to the limit that memory is predicted for."""
    many = (np.uint32(0x3D800000) + np.arange(3 * SPARSE_LIMIT, dtype=np.uint32)).view(np.float32)
    window = Window(0x3D800000)
    local, _ = counted(np.split(many, 3), [0, 1, 2], "0.5", "first", window)
    assert local.dense is None, "each block remembers its own"
    wide = Statistic("top 0.5", "first", many.size + 5, Guess(window))
    wide.add("few", count(many[:5], window))
    wide.add("many", local.counts())
    assert wide.sparse["many"] is None
    threshold = wide.threshold()
    assert (threshold.key, threshold.quota, threshold.equal) == sorted_threshold(np.concatenate([many[:5], many]), "0.5", "first")
    assert wide.equal_in("few", threshold) == 0
    assert wide.equal_in("many", threshold) is None


def test_all_ties_and_no_ties_need_no_reading():
    """Where every tie or none is kept, no block is looked at."""

    def never(*_: Any) -> int:
        raise AssertionError("a block was looked at")

    assert tie_limit(Threshold(5, 3, 3), 0, [(0, 0, 9)], never, never) == NO_LIMIT
    assert tie_limit(Threshold(5, 3, 8), 3, [(0, 0, 9)], never, never) == 0.0
    assert tie_limit(Threshold(5, 3, 8), 2, [], never, never) == NO_LIMIT


def guess(sample: np.ndarray, density: str) -> Guess:
    return Sampled(sample).guess(f"top {density}")


@pytest.mark.parametrize("density", ["0.1", "0.5", "0.9", "0.999"])
def test_a_sample_foresees_the_window_of_its_own_kind(density: str):
    """The window of a sample holds the threshold of a tensor which the sample is a fair picture of."""
    x = np.random.default_rng(3).standard_normal(65536).astype(np.float32)
    right = sorted_threshold(x, density, "first")[0]
    assert guess(x, density).window == Window(right - SPAN // 2, SPAN, -1), "of the whole tensor it is in the middle"
    if density in ("0.1", "0.5"):  # where elements are dense the thresholds of sample and tensor lie close
        assert abs(guess(x[::4], density).window.low + SPAN // 2 - right) <= SPAN
    assert guess(x[:0], density) == Guess()


@given(values, densities, st.integers(0, 9))
@settings(deadline=None, max_examples=100)
def test_a_sample_that_is_all_there_is_foresees_exactly(found: list[float], density: str, zeros: int):
    """The key in the middle of the window is the one of a sort, also among the elements that are not zero; at either end the window stays within the keys."""
    x = np.array([*found, *[0.0] * zeros], np.float32)
    sampled = Sampled(x)
    for nonzero in (False, True):
        there = x[x != 0] if nonzero else x
        window = sampled.guess(f"top {density}", nonzero=nonzero).window
        key = sorted_threshold(there, density, "first")[0] if there.size else int(keys(x).max())
        assert window.low == min(max(key - window.width // 2, 0), (1 << 31) - window.width)


def test_a_common_value_is_foreseen_with_its_window():
    """Where ties make up most of a window the sample names them and the window is narrow, not where values are many or the sample is small."""
    x = np.random.default_rng(3).standard_normal(65536).astype(np.float32)
    assert guess(x, "0.2").window.heavy == -1
    steps = np.round(x * 8) / 8
    window = guess(steps, "0.2").window
    assert (window.low + window.heavy, window.width) == (sorted_threshold(steps, "0.2", "first")[0], NARROW)
    assert guess(steps[:5], "0.2").window.heavy == -1


@given(
    seed=st.integers(0, 2**32 - 1),
    density=st.sampled_from(["0.02", "0.1", "0.3", "0.5", "0.8"]),
    power=st.sampled_from([1, 2, 5]),
    size=st.integers(50, 20_000),
)
@settings(deadline=None, max_examples=60)
def test_a_second_guess_goes_the_way_that_the_counts_say(seed: int, density: str, power: int, size: int):
    """Where a sample misses, the exact counts tell on which side: the next window lies there, beside the first. What comes out is exact."""
    x = (np.random.default_rng(seed).standard_normal(200_000) ** power).astype(np.float32)
    statistic = Statistic(f"top {density}", "first", x.size, guess(x[:size], density))
    first = statistic.window
    statistic.add(0, count(x, first))
    right = sorted_threshold(x, density, "first")
    assert statistic.foreseen() == (first.low <= right[0] < first.low + first.width)
    if not statistic.foreseen():
        if not statistic.guess_again():
            return
        second = statistic.window
        assert second.low >= first.low + first.width if right[0] > first.low else second.low + second.width <= first.low
        statistic.add(0, count(x, second))
        assert not statistic.guess_again(), "there is one second guess"
    if statistic.foreseen():
        threshold = statistic.threshold()
        assert (threshold.key, threshold.quota, threshold.equal) == right


@pytest.mark.parametrize("density", ["0.02", "0.1", "0.3", "0.5", "0.8"])
def test_a_second_guess_is_nearly_always_right(density: str):
    """Of a hundred samples that miss, the second window holds the threshold of at least ninety."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(400_000) ** 2).astype(np.float32)
    right = sorted_threshold(x, density, "first")[0]
    missed = found = 0
    while missed < 100:
        statistic = Statistic(f"top {density}", "first", x.size, guess(rng.choice(x, 20_000), density))
        statistic.add(0, count(x, statistic.window))
        if not statistic.foreseen():
            missed += 1
            assert statistic.guess_again()
            found += statistic.window.low <= right < statistic.window.low + statistic.window.width
    assert found >= 90


def test_ranks_of_the_two_rules():
    """Exactly floor(density n) and at least one, or the released code's order statistic, never beyond the tensor."""
    assert [Statistic(f"top {d}", "first", 100).k for d in ("0.29", "0.001", "0.999")] == [29, 1, 99]
    assert [Statistic(f"released {d}", "all", 100).k for d in ("0.29", "0.001", "0.999", "1")] == [30, 1, 100, 100]


def test_a_wider_statistic_adds_up_tensors():
    """What tensors counted each for itself, handed up, is what one statistic over all of them counts."""
    x, y = np.array([3, 1, 2, 2], np.float32), np.array([-2, 2, 1, 0, 5], np.float32)
    key = sorted_threshold(np.concatenate([x, y]), "0.5", "first")[0]
    for window in (Window(), Window(key - 100)):
        whole, wide = Statistic("top 0.5", "first", 9, Guess(window)), Statistic("top 0.5", "first", 9, Guess(window))
        for number, part in enumerate((x, y)):
            whole.add(number, count(part, window))
            local = Statistic("top 0.5", "first", part.size, Guess(window))
            local.add(0, count(part, window))
            wide.add(number, local.counts())
        assert (wide.above, wide.inside) == (whole.above, whole.inside)
        assert (wide.coarse is None) == (window.low >= 0)
        if window.low >= 0:
            assert wide.threshold() == whole.threshold()
