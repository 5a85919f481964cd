"""Orthogonal Procrustes and whitening against NumPy and their defining properties."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import KernelError
from plait.ops.kernels.procrustes import procrustes, whitening


@settings(deadline=None, max_examples=30)
@given(n=st.integers(5, 60), p=st.integers(1, 20), seed=st.integers(0, 99))
def test_a_rotation_is_found_again(n, p, seed):
    """Points and the same points turned: the turn comes back, as far as the points span the space."""
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((n, min(n // 2, p)))  # twice as many points as axes, which span the space well
    p = a.shape[1]
    turn, _ = np.linalg.qr(rng.standard_normal((p, p)))
    found = procrustes(torch.from_numpy(a.astype(np.float32)), torch.from_numpy((a @ turn).astype(np.float32))).double().numpy()
    assert np.linalg.norm(a @ found - a @ turn) <= 1e-4 * np.linalg.norm(a)


def test_no_other_rotation_is_nearer():
    """On points that no turn brings together, small turns of the answer only lose."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((2, 40, 6)).astype(np.float32)
    best = procrustes(torch.from_numpy(a), torch.from_numpy(b)).double().numpy()
    np.testing.assert_allclose(best.T @ best, np.eye(6), atol=1e-6)
    for i in range(20):
        skew = np.random.default_rng(i).standard_normal((6, 6)) * 1e-2
        turn, _ = np.linalg.qr(np.eye(6) + skew - skew.T)
        turn *= np.sign(np.diag(turn))
        assert np.linalg.norm(a @ best @ turn - b) >= np.linalg.norm(a @ best - b)


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 60), p=st.integers(1, 30), seed=st.integers(0, 99))
def test_whitened_rows_have_unit_covariance_where_they_span(n, p, seed):
    """X W is an orthogonal projection's isometry of the true rank, and W is symmetric."""
    x = np.random.default_rng(seed).standard_normal((n, p)).astype(np.float32)
    w, rank = whitening(torch.from_numpy(x))
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    assert rank == int((expected > max(n, p) * np.finfo(np.float32).eps * expected[0]).sum())
    assert torch.equal(w, w.T)
    np.testing.assert_allclose(np.linalg.svd(x @ w.numpy(), compute_uv=False)[:rank], 1, atol=1e-3)


def test_whitening_of_nothing_and_of_nan():
    """Zeros have no direction; NaN is an error with the shape."""
    w, rank = whitening(torch.zeros(5, 3))
    assert rank == 0
    assert not w.any()
    with pytest.raises(KernelError, match="5 x 3 holds NaN"):
        whitening(torch.full((5, 3), float("nan")))


def test_shapes_must_agree():
    """Points come in pairs."""
    with pytest.raises(ValueError, match="one shape"):
        procrustes(torch.ones(4, 3), torch.ones(5, 3))
