"""Gram matrices against NumPy in float64: streamed by rows or columns, in one piece or in many."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import KernelError
from plait.ops.kernels import gram as module
from plait.ops.kernels.gram import add_columns, add_rows, block_buffer, eigh, mirror, new_gram, require_finite


@settings(deadline=None, max_examples=40)
@given(side=st.integers(1, 200), rows=st.lists(st.integers(1, 300), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_streamed_rows_add_up(side, rows, seed):
    """Row blocks of any height give the Gram matrix of them stacked, within n eps64 of the products of norms."""
    rng = np.random.default_rng(seed)
    parts = [rng.standard_normal((r, side)).astype(np.float32) for r in rows]
    total = new_gram(side)
    for part in parts:
        add_rows(total, torch.from_numpy(part))
    x = np.concatenate(parts).astype(np.float64)
    norms = np.linalg.norm(x, axis=0)
    assert np.all(np.abs(mirror(total).numpy() - x.T @ x) <= len(x) * 2.0**-52 * np.outer(norms, norms))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_any_float_dtype_is_taken_exactly(dtype):
    """Values are widened before they are multiplied."""
    x = torch.randn(9, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    wide = x.double()
    torch.testing.assert_close(mirror(add_columns(new_gram(9), x)), wide @ wide.T)


def test_blocks_and_a_buffer_of_another_matrix_change_nothing(monkeypatch):
    """Many narrow blocks, in a buffer made for a wider matrix, give what one block gives."""
    x = torch.randn(70, 3000, generator=torch.Generator().manual_seed(1))
    whole = mirror(add_columns(new_gram(70), x))
    buffer = block_buffer(70, 10_000)
    monkeypatch.setattr(module, "block_columns", lambda short, long: 333)
    torch.testing.assert_close(mirror(add_columns(new_gram(70), x, buffer)), whole, rtol=1e-12, atol=1e-10)


def test_small_singular_values_survive():
    """A value of 1e-5 beside 1 is found within 1e-4, where a float32 Gram matrix is off by more than a tenth."""
    rng = np.random.default_rng(2)
    q, _ = np.linalg.qr(rng.standard_normal((300, 20)))
    v, _ = np.linalg.qr(rng.standard_normal((20, 20)))
    x = ((q * np.geomspace(1, 1e-5, 20)) @ v.T).astype(np.float32)
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False)[-1]
    values, _ = eigh(add_rows(new_gram(20), torch.from_numpy(x)), x.shape)
    assert abs(float(values[0]) ** 0.5 / expected - 1) < 1e-4
    narrow = np.linalg.eigvalsh((x.T @ x).astype(np.float64))[0]
    assert abs(max(narrow, 0) ** 0.5 / expected - 1) > 0.1


def test_mirror_fills_the_upper_triangle():
    """Whatever was above the diagonal is replaced, over more than one band."""
    g = torch.randn(600, 600, dtype=torch.float64)
    expected = g.tril() + g.tril(-1).T
    assert torch.equal(mirror(g), expected)


def test_not_finite_is_named():
    """NaN or infinity anywhere shows on the diagonal, and the error gives the shape."""
    x = torch.ones(4, 8)
    x[2, 3] = float("inf")
    with pytest.raises(KernelError, match="4 x 8 holds NaN or infinity, so it has no polar factor"):
        require_finite(add_columns(new_gram(4), x), (4, 8), "polar factor")
