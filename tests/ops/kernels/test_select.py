"""The exact k-th largest magnitude from two histograms, against a full sort."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plait.ops.kernels import select
from plait.ops.kernels.jit_select import count_keys, harvest

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 1e-45, -1e-45, 2.0**-126, 3.4e38])
arrays = st.one_of(hnp.arrays(np.float32, st.integers(1, 200), elements=finite), hnp.arrays(np.float32, st.integers(1, 200), elements=few_values))


class Histograms:
    """Counters as a kernel has them: of coarse digits, of the keys of a window, and which of these are in use."""

    def __init__(self):
        self.coarse, self.fine = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.SPAN_BINS, np.int32)
        self.used = np.zeros(select.SPAN_BINS // select.SCAN, np.uint8)

    def count(self, x, low, n=None, width=1 << 16, heavy=-1):
        return count_keys(x, x.size if n is None else n, low, width, heavy, self.coarse, self.fine, self.used)


def coarse_digits(x):
    """How often each coarse digit occurs."""
    counted = Histograms()
    counted.count(x, -1)
    return counted.coarse


def window(x, low, width=1 << 16, heavy=-1):
    """How often each key of a window occurs, and how many elements lie above it."""
    counted = Histograms()
    above = counted.count(x, low, width=width, heavy=heavy)
    return counted.fine.astype(np.int64), above


def kth_largest(x, k):
    """Threshold, how many are greater and how many equal, by the two passes."""
    digit, above = select.coarse_digit(coarse_digits(x), k)
    fine, counted = window(x, digit << 16)
    assert counted == above
    place, greater, equal = select.place_in_window(fine, k - above)
    return select.key_value((digit << 16) + place), above + greater, equal


def check(x, k):
    magnitudes = np.abs(x)
    threshold, greater, equal = kth_largest(x, k)
    assert threshold == float(np.sort(magnitudes)[x.size - k])
    assert (greater, equal) == ((magnitudes > threshold).sum(), (magnitudes == threshold).sum())
    assert greater < k <= greater + equal


@settings(deadline=None)
@given(x=arrays, data=st.data())
def test_threshold_and_counts_equal_a_full_sort(x, data):
    """For any floats with any ties, zeros of both signs and subnormals, and any k including 1 and n."""
    for k in (1, x.size, data.draw(st.integers(1, x.size))):
        check(x, k)


@pytest.mark.parametrize("density", ["0.01", "0.2", "0.5", "0.95"])
def test_deltas_of_bfloat16_weights(density):
    """Deltas of bf16 weights take few distinct values, so the threshold is tied heavily; it is exact all the same."""
    generator = torch.Generator().manual_seed(0)
    base = (torch.randn(100_000, generator=generator) * 0.02).bfloat16()
    tuned = (base.float() + torch.randn(100_000, generator=generator) * 1e-3).bfloat16()
    x = (tuned.float() - base.float()).numpy()
    k = select.count_from_density(density, x.size)
    check(x, k)
    assert kth_largest(x, k)[2] > 10


def test_counts_add_up_over_chunks():
    """Chunks of any length, also ones that end inside a group of the SIMD loop, count what NumPy counts."""
    x = np.random.default_rng(1).standard_normal(10_001).astype(np.float32)
    keys = select.keys(x)
    low = (select.coarse_digit(coarse_digits(x), 2000)[0] << 16) - 12_345
    counted, above = Histograms(), 0
    for start in range(0, x.size, 777):
        part = x[start : start + 777]
        above += counted.count(part, low, width=100_000)
        counted.count(part, -1)
    np.testing.assert_array_equal(counted.coarse, np.bincount(keys >> 16, minlength=select.COARSE_BINS))
    inside = keys[(keys >= low) & (keys < low + 100_000)] - low
    np.testing.assert_array_equal(counted.fine, np.bincount(inside, minlength=select.SPAN_BINS))
    assert above == np.count_nonzero(keys >= low + 100_000)


def test_a_statistic_that_is_not_wanted_counts_nothing():
    """A window below -1 leaves all counters alone."""
    counted = Histograms()
    assert counted.count(np.ones(100, np.float32), -2) == 0
    assert not counted.coarse.any()
    assert not counted.fine.any()
    assert not counted.used.any()


def test_only_the_first_n_elements_count():
    """A scratch buffer longer than its content is read up to n."""
    x, counted = np.ones(64, np.float32), Histograms()
    counted.count(x, -1, n=10)
    assert counted.count(x, 0x3F80 << 16, n=10) == 0
    assert counted.coarse.sum() == counted.fine.sum() == 10


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 5000), share=st.floats(0, 1), data=st.data())
def test_the_heavy_key_changes_no_count(seed, size, share, data):
    """Whether it is the common value of the window, a rare one or one that does not occur, and however much lies beside it."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(size).astype(np.float32) * np.float32(1.5)
    x[random.random(size) < share] = random.choice([1.0, -1.0, 1.0000001, 1.0078125, 0.99])
    width = data.draw(st.sampled_from([1, 1000, 1 << 16, select.SPAN_BINS]))
    heavy = data.draw(st.sampled_from([0, width // 3, width - 1]))
    low = data.draw(st.sampled_from([0x3F800000, 0x3F7F0000, 0x3F7FFFF0, 0x3F810000, 0, (1 << 31) - width]))
    counted = Histograms()
    above = counted.count(x, low, width=width, heavy=heavy)
    expected, beyond = window(x, low, width)
    assert above == beyond == np.count_nonzero(select.keys(x).astype(np.int64) >= low + width)
    np.testing.assert_array_equal(counted.fine, expected)
    for most in (1, 5000):
        places, times = np.zeros(most, np.uint32), np.zeros(most, np.int64)
        found = harvest(counted.fine, counted.used, places, times, most)
        assert found == min(np.count_nonzero(expected), most + 1)
        if found <= most:
            np.testing.assert_array_equal(places[:found], np.flatnonzero(expected))
            np.testing.assert_array_equal(times[:found], expected[expected > 0])


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_rank_outside_the_elements_is_refused(k):
    """k = 0, a negative k and k > n are errors, of digits and in a window."""
    x = np.array([1, 2, 3], np.float32)
    with pytest.raises(ValueError, match="rank"):
        select.coarse_digit(coarse_digits(x), k)
    with pytest.raises(ValueError, match="rank"):
        select.place_in_window(window(x, 0x40000000)[0], k)


def test_a_histogram_of_the_wrong_size_is_refused():
    """The two histograms cannot be mixed up."""
    with pytest.raises(ValueError, match="shape"):
        select.coarse_digit(np.ones(select.SPAN_BINS, np.int64), 1)


@pytest.mark.parametrize(
    ("density", "n", "expected"),
    [
        (0.29, 100, 29),  # int(0.29 * 100) is 28
        ("0.29", 100, 29),
        (Decimal("0.29"), 100, 29),
        (np.float64(0.29), 100, 29),
        (0.7, 10, 7),
        (0.2, 7, 1),
        (0.01, 10, 1),
        (1e-9, 1, 1),
        (1, 5, 5),
        (1.0, 5, 5),
        (0, 5, 0),
        (0.5, 0, 0),
        (Fraction(1, 3), 9, 3),
    ],
)
def test_counts_are_exact_in_the_decimal_text(density, n, expected):
    """floor(d * n) of the decimal, but one where d is positive and the floor is zero."""
    assert select.count_from_density(density, n) == expected


@settings(deadline=None)
@given(x=hnp.arrays(np.float32, st.integers(2, 60), elements=few_values), percent=st.integers(1, 98))
def test_order_stat_is_the_rule_of_the_released_ties(x, percent):
    """The released code keeps |x| >= kthvalue(n - int(n * d)); our rank from the top gives the same threshold."""
    n, r = x.size, x.size * percent // 100
    released = torch.from_numpy(np.abs(x)).kthvalue(n - r).values.item()
    threshold, *_ = kth_largest(x, select.order_stat(Fraction(percent, 100), n))
    assert threshold == released


def test_order_stat_of_everything_is_the_smallest():
    """Density 1, where the released code fails, keeps all."""
    assert select.order_stat(1, 5) == 5
    assert select.order_stat(0, 5) == 1


@pytest.mark.parametrize("function", [select.count_from_density, select.order_stat])
@pytest.mark.parametrize(("density", "n"), [(1.5, 4), (-0.1, 4), ("x", 4), (0.5, -1)])
def test_no_density_is_refused(function, density, n):
    """Densities outside 0 to 1, words, and negative counts are errors."""
    with pytest.raises(ValueError, match=r"from 0 to 1|not a number|does not exist"):
        function(density, n)
