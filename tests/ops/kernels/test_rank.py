"""Ranks of magnitudes within a row: kernel against reference, reference against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plait.ops.kernels import jit_rank, rank

rows = hnp.arrays(np.float32, st.integers(1, 120), elements=st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, -1.0])))


def kernel_ranks(x):
    n = x.size
    ranks = np.full(n + 1, -7, np.int32)
    a, b, counts = np.full(n, 99, np.uint64), np.full(n, 99, np.uint64), np.full(jit_rank.COUNTS, 99, np.uint32)
    jit_rank.row_ranks(x, n, ranks, a, b, counts)
    assert ranks[-1] == -7, "wrote beyond the row"
    return ranks[:n].tolist()


def sorted_ranks(x):
    """By Python's sort of (magnitude, column)."""
    order = sorted(range(len(x)), key=lambda c: (abs(float(x[c])), c))
    ranks = [0] * len(x)
    for place, column in enumerate(order):
        ranks[column] = place
    return ranks


@settings(deadline=None)
@given(x=rows)
def test_kernel_and_reference_equal_a_plain_sort(x):
    """Any short row, with ties, zeros of both signs, infinities and subnormals: ties rank by column."""
    expected = sorted_ranks(x)
    assert rank.row_ranks(x[None])[0].tolist() == expected
    assert kernel_ranks(x) == expected


@pytest.mark.parametrize("n", [48, 49, 2047, 2048, 4096, 70_000])
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros", "subnormal", "descending"])
def test_kernel_equals_the_reference_on_long_rows(n, kind):
    """Lengths on both sides of every change of algorithm."""
    rng = np.random.default_rng(n)
    x = {
        "normal": lambda: rng.standard_normal(n),
        "tied": lambda: rng.integers(-3, 4, n),
        "zeros": lambda: np.where(rng.random(n) < 0.5, 0.0, -0.0),
        "subnormal": lambda: rng.integers(-9, 9, n) * 1e-44,
        "descending": lambda: np.arange(n, 0, -1),
    }[kind]().astype(np.float32)
    assert kernel_ranks(x) == rank.row_ranks(x[None])[0].tolist()


@settings(deadline=None, max_examples=150)
@given(n=st.sampled_from([49, 300, 2047, 2048, 3000]), width=st.integers(1, 31), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_keys_may_differ_in_any_run_of_bits(n, width, seed, data):
    """However many bits they differ in, wherever these lie, and whatever the bits around them are that all share."""
    low = data.draw(st.integers(0, 31 - width))
    rng = np.random.default_rng(seed)
    shared = np.uint32(rng.integers(0, 1 << 31)) & ~np.uint32(((1 << width) - 1) << low)
    bits = (rng.integers(0, 1 << width, n).astype(np.uint32) << np.uint32(low)) | shared | (rng.integers(0, 2, n).astype(np.uint32) << np.uint32(31))
    x = bits.view(np.float32)
    assert kernel_ranks(x) == rank.row_ranks(x[None])[0].tolist()


def test_rows_are_ranked_one_by_one():
    """The reference ranks each row of a matrix by itself."""
    x = np.array([[3, -1, 2], [0, 0, -5]], np.float32)
    assert rank.row_ranks(x).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_scratch_is_what_the_kernel_takes():
    """The declared bytes are those of the arrays passed above."""
    assert jit_rank.scratch_bytes(100) == 2 * np.empty(100, np.uint64).nbytes + np.empty(jit_rank.COUNTS, np.uint32).nbytes
