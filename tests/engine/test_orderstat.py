"""Order statistics added up block by block give what a sort of all magnitudes gives."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.engine.blockrun import Counts
from plait.engine.orderstat import NO_LIMIT, Guess, Statistic, Threshold, foresee, tie_limit
from plait.planner.blocks import COARSE
from plait.planner.cost import SPARSE_LIMIT

Blocks = list[np.ndarray]


def keys(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32).view(np.uint32) & np.uint32(0x7FFFFFFF)


def rank_text(density: str, ties: str) -> str:
    return f"{'released' if ties == 'all' else 'top'} {density}"


def count(block: np.ndarray, bucket: int) -> Counts:
    """What one block adds, counted by NumPy."""
    k = keys(block)
    if bucket < 0:
        return Counts(coarse=np.bincount(k >> 16, minlength=COARSE))
    places, fine = np.unique(k[(k >> 16) == bucket] & 0xFFFF, return_counts=True)
    return Counts(int((k >> 16 > bucket).sum()), places, fine)


def counted(blocks: Blocks, order: list[int], density: str, ties: str, bucket: int) -> tuple[Statistic, int]:
    """A statistic after all its passes, and how many passes there were."""
    statistic = Statistic(rank_text(density, ties), ties, sum(b.size for b in blocks), Guess(bucket))

    def sweep() -> None:
        for number in order:
            statistic.add(number, count(blocks[number], statistic.bucket))

    sweep()
    if statistic.foreseen():
        return statistic, 1
    passes = 2
    if bucket >= 0:
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
    right = expected[0] >> 16
    bucket = {"right": right, "wrong": (right + 1) % COARSE, "none": -1}[guess]  # one too high, and at the top one too low
    statistic, passes = counted(blocks, order, density, ties, bucket)
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
    statistic, _ = counted(blocks, order, density, "first", -1)
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
    statistic, _ = counted([x[:3], x[3:]], [1, 0], "0.5", "first", -1)
    threshold = statistic.threshold()
    limit = tie_limit(threshold, 0, [(0, 0, 3), (1, 3, 5)], lambda b: [1, 3][b], lambda b, n: [[2], [0, 1, 2]][b][n - 1])
    kept = (keys(x) > threshold.key) | ((keys(x) == threshold.key) & (np.arange(8) < limit))
    assert kept.tolist() == [True, False, True, True, True, False, False, False]


def test_blocks_of_many_values_are_not_remembered():
    """Past the limit a block forgets its fine counts and says so, while totals stay exact."""
    many = (np.uint32(0x3D800000) + np.arange(SPARSE_LIMIT + 1, dtype=np.uint32)).view(np.float32)
    few_values = np.repeat(many[:SPARSE_LIMIT], 3)
    statistic, _ = counted([many, few_values, many[:0]], [0, 1, 2], "0.5", "first", 0x3D80)
    threshold = statistic.threshold()
    assert (threshold.key, threshold.quota, threshold.equal) == sorted_threshold(np.concatenate([many, few_values]), "0.5", "first")
    assert statistic.equal_in(0, threshold) is None
    assert statistic.equal_in(1, threshold) == 3
    assert statistic.equal_in(2, threshold) == 0
    assert statistic.equal_in("never added", threshold) is None


def test_all_ties_and_no_ties_need_no_reading():
    """Where every tie or none is kept, no block is looked at."""

    def never(*_: Any) -> int:
        raise AssertionError("a block was looked at")

    assert tie_limit(Threshold(5, 3, 3), 0, [(0, 0, 9)], never, never) == NO_LIMIT
    assert tie_limit(Threshold(5, 3, 8), 3, [(0, 0, 9)], never, never) == 0.0
    assert tie_limit(Threshold(5, 3, 8), 2, [], never, never) == NO_LIMIT


@pytest.mark.parametrize("density", ["0.1", "0.5", "0.9", "0.999"])
def test_a_sample_foresees_the_digit_of_its_own_kind(density: str):
    """The digit of a sample is that of a tensor which the sample is a fair picture of."""
    x = np.random.default_rng(3).standard_normal(65536).astype(np.float32)
    right = sorted_threshold(x, density, "first")[0] >> 16
    assert foresee(x, f"top {density}")[0] == right
    if density in ("0.1", "0.5"):  # where elements are dense the digits of sample and tensor lie close
        assert abs(foresee(x[::16], f"top {density}")[0] - right) <= 1
    assert foresee(x[:0], f"top {density}") == Guess()


def test_a_common_value_is_foreseen_with_its_digit():
    """Where ties make up most of a digit the sample names them, not where values are many or the sample is small."""
    x = np.random.default_rng(3).standard_normal(65536).astype(np.float32)
    assert foresee(x, "top 0.2")[1] == -1
    steps = np.round(x * 8) / 8
    bucket, heavy, *_ = foresee(steps, "top 0.2")
    assert (bucket << 16 | heavy) == sorted_threshold(steps, "0.2", "first")[0]
    assert foresee(steps[:5], "top 0.2")[1] == -1


@given(seed=st.integers(0, 2**32 - 1), density=st.sampled_from(["0.02", "0.1", "0.3", "0.5", "0.8"]))
@settings(deadline=None, max_examples=30)
def test_a_second_guess_is_put_right_by_the_count(seed: int, density: str):
    """A sample that misses the digit gives, with the exact counts at its guess, another near by; what comes out is exact.

    How far to go is told by the few values of the sample that lie near: of a step of one or two digits they may make twice as many.
    """
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(200_000) ** 2).astype(np.float32)
    guess = foresee(x[:20_000], f"top {density}")
    statistic = Statistic(f"top {density}", "first", x.size, guess)
    statistic.add(0, count(x, statistic.bucket))
    right = sorted_threshold(x, density, "first")
    if statistic.foreseen():
        assert guess.bucket == right[0] >> 16
        return
    assert statistic.guess_again()
    assert (statistic.bucket > guess.bucket) == (right[0] >> 16 > guess.bucket), "the exact counts tell the direction"
    assert abs(statistic.bucket - (right[0] >> 16)) <= 2 * abs(guess.bucket - (right[0] >> 16)) + 1
    statistic.add(0, count(x, statistic.bucket))
    if statistic.foreseen():
        threshold = statistic.threshold()
        assert (threshold.key, threshold.quota, threshold.equal) == right
    assert not statistic.guess_again(), "there is one second guess"


def test_ranks_of_the_two_rules():
    """Exactly floor(density n) and at least one, or the released code's order statistic, never beyond the tensor."""
    assert [Statistic(f"top {d}", "first", 100).k for d in ("0.29", "0.001", "0.999")] == [29, 1, 99]
    assert [Statistic(f"released {d}", "all", 100).k for d in ("0.29", "0.001", "0.999", "1")] == [30, 1, 100, 100]


def test_a_wider_statistic_adds_up_tensors():
    """What tensors counted each for itself, handed up, is what one statistic over all of them counts."""
    x, y = np.array([3, 1, 2, 2], np.float32), np.array([-2, 2, 1, 0, 5], np.float32)
    digit = sorted_threshold(np.concatenate([x, y]), "0.5", "first")[0] >> 16
    for bucket in (-1, digit):
        whole, wide = Statistic("top 0.5", "first", 9, Guess(bucket)), Statistic("top 0.5", "first", 9, Guess(bucket))
        for number, part in enumerate((x, y)):
            whole.add(number, count(part, bucket))
            local = Statistic("top 0.5", "first", part.size, Guess(bucket))
            local.add(0, count(part, bucket))
            wide.add(number, local.counts())
        assert (wide.above, wide.fine.tolist()) == (whole.above, whole.fine.tolist())
        assert (wide.coarse is None) == (bucket >= 0)
        if bucket >= 0:
            assert wide.threshold() == whole.threshold()
