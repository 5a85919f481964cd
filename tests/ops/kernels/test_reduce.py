"""The fixed reduction tree: torch, NumPy, Numba and a plain Python loop give the same bits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numba.core.errors import TypingError

from plait.ops.kernels import jit_reduce, reduce

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = hnp.arrays(np.float32, st.integers(0, 100), elements=floats)


def plain_sum(values):
    """The definition, in Python floats."""
    lanes = [0.0] * 8
    for i, value in enumerate(values):
        lanes[i % 8] += value
    a, b, c, d, e, f, g, h = lanes
    return ((a + e) + (c + g)) + ((b + f) + (d + h))


def same_bits(a, b):
    return np.float64(a).tobytes() == np.float64(b).tobytes()


def kernel_sum(kernel, *operands):
    n = operands[0].size
    padded = [np.concatenate([x, np.zeros(-n % 8, np.float32)]) for x in operands]
    lanes = np.zeros(8)
    kernel(lanes, *padded, padded[0].size)
    return jit_reduce.combine(lanes)


def assert_all_equal(terms, kernel_total):
    expected = plain_sum(terms.tolist())
    assert same_bits(reduce.lane_sum(torch.from_numpy(terms)).item(), expected)
    assert same_bits(reduce.lane_sum_numpy(terms), expected)
    assert same_bits(kernel_total, expected)


@settings(deadline=None)
@given(x=rows)
def test_sums_have_the_same_bits(x):
    """Any row of any length, padded with zeros where a kernel needs it; sums and sums of magnitudes."""
    wide = x.astype(np.float64)
    assert_all_equal(wide, kernel_sum(jit_reduce.accumulate, x))
    assert_all_equal(np.abs(wide), kernel_sum(jit_reduce.accumulate_abs, x))


@settings(deadline=None)
@given(data=st.data())
def test_dot_products_have_the_same_bits(data):
    """Products are formed in float64, where they are exact."""
    x = data.draw(rows)
    y = data.draw(hnp.arrays(np.float32, x.size, elements=floats))
    assert_all_equal(x.astype(np.float64) * y.astype(np.float64), kernel_sum(jit_reduce.accumulate_dot, x, y))


@pytest.mark.parametrize("threads", [1, 2])
def test_long_rows_have_the_same_bits(threads):
    """A block of 2^17 numbers over 16 decades, with one and two torch threads: cumsum stays sequential."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal(1 << 17) * 10.0 ** rng.integers(-8, 8, 1 << 17)).astype(np.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert_all_equal(x.astype(np.float64), kernel_sum(jit_reduce.accumulate, x))
    finally:
        torch.set_num_threads(before)
    assert not same_bits(x.astype(np.float64).sum(), plain_sum(x.tolist())), "this input does not tell orders apart"


def test_a_block_may_be_added_in_pieces():
    """Pieces that are multiples of 8 long give the bits of one call."""
    x = np.random.default_rng(2).standard_normal(4096).astype(np.float32)
    whole, pieces = np.zeros(8), np.zeros(8)
    jit_reduce.accumulate(whole, x, 4096)
    for start, end in ((0, 8), (8, 1000), (1000, 1000), (1000, 4096)):
        jit_reduce.accumulate(pieces, x[start:end], end - start)
    np.testing.assert_array_equal(whole, pieces)


def test_the_reference_sums_along_the_last_axis():
    """A batch of rows gives each row's own sum."""
    x = torch.randn(3, 5, 1003, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    got = reduce.lane_sum(x)
    assert got.shape == (3, 5)
    assert all(same_bits(got[i, j].item(), plain_sum(x[i, j].tolist())) for i in range(3) for j in range(5))
    np.testing.assert_array_equal(reduce.lane_sum_numpy(x.numpy()), got.numpy())


def test_the_sum_is_accurate():
    """The tree agrees with an exactly rounded sum to a few units in the last place of the magnitudes' sum."""
    x = np.random.default_rng(3).standard_normal(100_000)
    assert abs(float(reduce.lane_sum_numpy(x)) - math.fsum(x)) < 1e-12 * np.abs(x).sum()


def test_other_dtypes_are_refused():
    """float32 input would be summed in float32: an error, in torch and in the kernels."""
    with pytest.raises(ValueError, match="float64"):
        reduce.lane_sum(torch.zeros(8))
    with pytest.raises(TypingError, match="contiguous"):
        jit_reduce.accumulate(np.zeros(8), np.zeros(8), 8)
    with pytest.raises(TypingError, match="contiguous"):
        jit_reduce.accumulate(np.zeros(8), np.zeros(16, np.float32)[::2], 8)


@settings(deadline=None)
@given(x=hnp.arrays(np.float32, st.integers(0, 70), elements=st.floats(width=32)))
def test_row_max_is_the_largest_magnitude(x):
    """Zero for an empty row, NaN where there is one."""
    expected = np.abs(x).max() if x.size else np.float32(0)
    np.testing.assert_array_equal(jit_reduce.row_max(x, x.size), expected)
