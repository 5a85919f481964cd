"""Ranks of magnitudes within a row: kernel against reference, reference against a plain sort."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from plait.ops.kernels import jit_buckets, jit_rank, rank
from plait.planner import blocks

rows = hnp.arrays(np.float32, st.integers(1, 120), elements=st.one_of(st.floats(width=32, allow_nan=False), st.sampled_from([0.0, -0.0, 1.0, -1.0])))


def kernel_ranks(x):
    n = x.size
    ranks = np.full(n + 1, -7, np.int32)
    size = n + jit_buckets.MORE_BUCKETS
    a, b = np.full(size + 1, 99, np.uint64), np.full(size + 1, 99, np.uint64)
    counts = np.full(jit_rank.COUNTS + 1, 99, np.uint32)
    jit_rank.row_ranks(x, n, ranks, a[:size], b[:size], counts[:-1])
    assert (ranks[-1], a[-1], b[-1], counts[-1]) == (-7, 99, 99, 99), "wrote beyond its arrays"
    return ranks[:n].tolist()


def by_counting(x):
    """Whether the row was ranked by counting, and the ranks."""
    n = x.size
    ranks = np.full(n, -7, np.int32)
    scratch = [np.full(size, 99, np.uint32) for size in (n + jit_buckets.MORE_BUCKETS, n + jit_buckets.MORE_BUCKETS, n, n)]
    return jit_buckets.ranks_by_counting(x, n, ranks, *scratch), ranks.tolist()


def changes(rng, n):
    """Differences of bfloat16 weights, in float32."""
    weights = [(x.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for x in _tuned(rng, n)]
    return weights[1] - weights[0]


def _tuned(rng, n):
    base = rng.standard_normal(n) * 0.02
    return base, base + rng.standard_normal(n) * 0.002


#: Rows of length n of which one bucket holds nearly all elements, in few runs that fall.
CROWDED = {
    "one fall, first bucket": lambda n: np.concatenate([np.full(n // 2, 2.0), np.full(n - n // 2 - 1, 1.0), [1e9]]),
    "one fall, last bucket": lambda n: np.concatenate([np.full(n - n // 8, 2.0**-30), np.full(n // 16, 2.0), np.full(n - (n - n // 8) - n // 16, 1.0)]),
}


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
@pytest.mark.parametrize("kind", ["normal", "tied", "zeros", "subnormal", "descending", "huge", "16-bit", "nan", *CROWDED])
def test_kernel_equals_the_reference_on_long_rows(n, kind):
    """Lengths on both sides of every change of algorithm."""
    rng = np.random.default_rng(n)
    x = {
        "normal": lambda: rng.standard_normal(n),
        "tied": lambda: rng.integers(-3, 4, n),
        "zeros": lambda: np.where(rng.random(n) < 0.5, 0.0, -0.0),
        "subnormal": lambda: rng.integers(-9, 9, n) * 1e-44,
        "descending": lambda: np.arange(n, 0, -1),
        "huge": lambda: rng.integers(-3, 4, n) * 1e38,
        "16-bit": lambda: changes(rng, n),
        "nan": lambda: np.where(rng.random(n) < 0.01, np.nan, rng.integers(-3, 4, n)),
        **{name: lambda name=name: CROWDED[name](n) for name in CROWDED},
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


@pytest.mark.parametrize("n", [49, 300, 2048, 5632])
def test_changes_of_16_bit_weights_are_ranked_by_counting(n):
    """The light path takes them, and finds every rank, those of magnitudes that share a bucket too."""
    x = changes(np.random.default_rng(n), n)
    done, ranks = by_counting(x)
    assert done
    assert ranks == rank.row_ranks(x[None])[0].tolist()


@pytest.mark.parametrize("kind", [*CROWDED, "continuous", "overflowing"])
def test_rows_that_counting_would_take_long_for_are_left_to_the_sort(kind):
    """However many elements fall into one bucket, the steps of inserting them stay in proportion to the row."""
    n = 4096
    other = {"continuous": np.random.default_rng(1).standard_normal(n), "overflowing": np.full(n, 3e38)}
    x = (CROWDED[kind](n) if kind in CROWDED else other[kind]).astype(np.float32)
    assert not by_counting(x)[0]
    assert kernel_ranks(x) == rank.row_ranks(x[None])[0].tolist()


def test_rows_are_ranked_one_by_one():
    """The reference ranks each row of a matrix by itself."""
    x = np.array([[3, -1, 2], [0, 0, -5]], np.float32)
    assert rank.row_ranks(x).tolist() == [[2, 0, 1], [0, 1, 2]]


def test_scratch_is_what_the_kernel_takes():
    """The planner counts the arrays that the kernel needs."""
    assert (blocks.RANK_COUNTS, blocks.RANK_SPARE) == (jit_rank.COUNTS, jit_buckets.MORE_BUCKETS)
    assert jit_rank.scratch_bytes(100) == (100 + blocks.RANK_SPARE) * 16 + blocks.RANK_COUNTS * 4
