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
from plait.ops.kernels.jit_select import count_digits as count_digits_with

finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
few_values = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.0000001, 1e-45, -1e-45, 2.0**-126, 3.4e38])
arrays = st.one_of(hnp.arrays(np.float32, st.integers(1, 200), elements=finite), hnp.arrays(np.float32, st.integers(1, 200), elements=few_values))


def count_digits(x, n, bucket, coarse, fine, heavy=-1):
    return count_digits_with(x, n, bucket, heavy, coarse, fine)


def histograms(x, bucket=-1):
    """Coarse digits, fine digits of the bucket, and how many elements lie above it."""
    coarse, fine = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.FINE_BINS, np.int32)
    above = count_digits(x, x.size, bucket, coarse, fine)
    return coarse, fine.astype(np.int64), above


def kth_largest(x, k):
    """Threshold, how many are greater and how many equal, by the two passes."""
    bucket, above = select.coarse_bucket(histograms(x)[0], k)
    _, fine, counted = histograms(x, bucket)
    assert counted == above
    low, greater, equal = select.fine_threshold(fine, k - above)
    return select.key_value(bucket << 16 | low), above + greater, equal


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
    bucket, _ = select.coarse_bucket(histograms(x)[0], 2000)
    coarse, fine, above = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.FINE_BINS, np.int32), 0
    for start in range(0, x.size, 777):
        part = x[start : start + 777]
        above += count_digits(part, part.size, bucket, coarse, fine)
        count_digits(part, part.size, -1, coarse, fine)
    np.testing.assert_array_equal(coarse, np.bincount(keys >> 16, minlength=select.COARSE_BINS))
    np.testing.assert_array_equal(fine, np.bincount(keys[keys >> 16 == bucket] & 0xFFFF, minlength=select.FINE_BINS))
    assert above == np.count_nonzero(keys >> 16 > bucket)


def test_a_statistic_that_is_not_wanted_counts_nothing():
    """A bucket below -1 leaves both histograms alone."""
    x = np.ones(100, np.float32)
    coarse, fine = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.FINE_BINS, np.int32)
    assert count_digits(x, x.size, -2, coarse, fine) == 0
    assert not coarse.any()
    assert not fine.any()


def test_only_the_first_n_elements_count():
    """A scratch buffer longer than its content is read up to n."""
    x = np.ones(64, np.float32)
    coarse, fine = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.FINE_BINS, np.int32)
    count_digits(x, 10, -1, coarse, fine)
    assert count_digits(x, 10, 0x3F80, coarse, fine) == 0
    assert coarse.sum() == fine.sum() == 10


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(0, 5000), share=st.floats(0, 1), data=st.data())
def test_the_heavy_digit_changes_no_count(seed, size, share, data):
    """Whether it is the common value of the bucket, a rare one or one that does not occur, and however much lies beside it."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(size).astype(np.float32) * np.float32(1.5)
    x[random.random(size) < share] = random.choice([1.0, -1.0, 1.0000001, 1.0078125, 0.99])
    low, high = (int(digit) for digit in sorted(random.integers(0, select.FINE_BINS, 2)))
    heavy = data.draw(st.sampled_from([0, 1, low, high, select.FINE_BINS - 1]))
    bucket = data.draw(st.sampled_from([0x3F80, 0x3F7F, 0x3F81, 0, 0x7FFF]))
    coarse, fine = np.zeros(select.COARSE_BINS, np.int64), np.zeros(select.FINE_BINS, np.int32)
    above = count_digits(x, x.size, bucket, coarse, fine, heavy)
    _, expected, beyond = histograms(x, bucket)
    assert above == beyond
    np.testing.assert_array_equal(fine, expected)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_a_rank_outside_the_elements_is_refused(k):
    """k = 0, a negative k and k > n are errors, in either digit."""
    x = np.array([1, 2, 3], np.float32)
    with pytest.raises(ValueError, match="rank"):
        select.coarse_bucket(histograms(x)[0], k)
    with pytest.raises(ValueError, match="rank"):
        select.fine_threshold(histograms(x, 0x4000)[1], k)


def test_a_histogram_of_the_wrong_size_is_refused():
    """The two digits cannot be mixed up."""
    with pytest.raises(ValueError, match="shape"):
        select.coarse_bucket(np.ones(select.FINE_BINS, np.int64), 1)


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
