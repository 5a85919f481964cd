"""Truncated SVD by sketches: nearness to the best approximation, the measured error, and the same bits always."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import KernelError
from plait.ops.kernels.randomized import OVERSAMPLE, randomized_flops, randomized_svd, sketch


def with_spectrum(m, n, spectrum, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, len(spectrum))))
    v, _ = np.linalg.qr(rng.standard_normal((n, len(spectrum))))
    return torch.from_numpy(((u * np.asarray(spectrum)) @ v.T).astype(np.float32))


def rebuilt(found):
    return ((found.u * found.s) @ found.vh).double().numpy()


@settings(deadline=None, max_examples=25)
@given(m=st.integers(1, 120), n=st.integers(1, 120), rank=st.integers(1, 20), true=st.integers(1, 20), krylov=st.booleans(), seed=st.integers(0, 9))
def test_low_rank_matrices_come_back_whole(m, n, rank, true, krylov, seed):
    """A matrix of rank at most the sketch's width is found to rounding, with orthonormal factors and zeros beyond its rank."""
    true = min(true, m, n)
    x = with_spectrum(m, n, np.geomspace(1, 0.1, true), seed)
    found = randomized_svd(x, rank, krylov=krylov)
    q = min(rank, m, n)
    assert (found.u.shape, found.vh.shape) == ((m, q), (q, n))
    kept = min(q, true)
    assert int(np.count_nonzero(found.s)) == kept
    np.testing.assert_allclose(found.s[:kept], np.geomspace(1, 0.1, true)[:kept], rtol=1e-5)
    for factor in (found.u[:, :kept], found.vh[:kept].T):
        np.testing.assert_allclose(factor.T @ factor, np.eye(kept), atol=5e-6)
    if kept == true:
        np.testing.assert_allclose(rebuilt(found), x, atol=2e-6)


@pytest.mark.parametrize("krylov", [False, True])
@pytest.mark.parametrize("shape", [(300, 500), (500, 300), (400, 400)])
@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_spectral_error_keeps_its_bound(shape, power, krylov):
    """The 2-norm of what is left is within the bound of Halko, Martinsson and Tropp over the first value left out."""
    spectrum = np.arange(1, min(shape) + 1) ** -power
    x = with_spectrum(*shape, spectrum)
    found = randomized_svd(x, 20, krylov=krylov)
    left = np.linalg.norm(x.double().numpy() - rebuilt(found), 2)
    bound = (1 + 4 * np.sqrt(2 * min(shape) / (OVERSAMPLE - 1))) ** (1 / 5)
    assert left <= bound * spectrum[20]


def test_the_reported_errors_are_measured():
    """`error` is the Frobenius norm of the remainder, never below Eckart and Young's, and `deviation` bounds the error of every value."""
    spectrum = np.arange(1, 301) ** -0.7
    x = with_spectrum(300, 400, spectrum)
    found = randomized_svd(x, 20)
    assert found.error == pytest.approx(np.linalg.norm(x.double().numpy() - rebuilt(found)), rel=1e-4)
    assert found.error >= np.sqrt((spectrum[20:] ** 2).sum()) * (1 - 1e-5)
    true = np.linalg.svd(x.double().numpy(), compute_uv=False)
    assert all(np.abs(true - s).min() <= found.deviation + 1e-6 for s in found.s.tolist())
    assert np.isnan(randomized_svd(x, 20, estimate=False).error)


def test_krylov_is_nearer_where_the_spectrum_is_flat():
    """On noise, with the same products, block Krylov captures more than subspace iteration, and both no more than there is."""
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((400, 800)).astype(np.float32))
    best = np.sqrt((np.linalg.svd(x.double().numpy(), compute_uv=False)[24:] ** 2).sum())
    plain, krylov = (randomized_svd(x, 24, krylov=k).error for k in (False, True))
    assert best * (1 - 1e-5) <= krylov < plain < 1.03 * best


def test_more_iterations_are_never_worse():
    """The remainder shrinks with each."""
    x = with_spectrum(200, 300, np.arange(1, 201) ** -0.4)
    errors = [randomized_svd(x, 10, iterations=p).error for p in range(4)]
    assert errors == sorted(errors, reverse=True)


def test_the_same_bits_every_time():
    """The sketch depends on seed and shape alone."""
    x = with_spectrum(200, 300, np.arange(1, 201) ** -0.5)
    first, second, other = randomized_svd(x, 8), randomized_svd(x, 8), randomized_svd(x, 8, seed=1)
    assert torch.equal(first.u, second.u)
    assert not torch.equal(first.u, other.u)


def test_the_sketch_is_signs_in_balance():
    """Only 1 and -1, about as many of each, and no two columns alike."""
    signs = sketch(1000, 40, 0)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 0.02
    gram = (signs.T @ signs / 1000).fill_diagonal_(0)
    assert float(gram.abs().max()) < 0.2


def test_bad_input_is_refused():
    """NaN by name and shape; ranks below 1 and other dtypes as errors of the caller."""
    x = torch.ones(40, 60)
    x[3, 4] = float("nan")
    for rank in (2, 40):
        with pytest.raises(KernelError, match="40 x 60 holds NaN or infinity"):
            randomized_svd(x, rank)
    with pytest.raises(ValueError, match="rank 0"):
        randomized_svd(torch.ones(4, 4), 0)
    with pytest.raises(ValueError, match="float32 matrix"):
        randomized_svd(torch.ones(4, 4, dtype=torch.float64), 1)


def test_the_cost_grows_with_what_is_asked():
    """More triplets, more iterations and a kept basis cost more."""
    base = randomized_flops(2048, 4096, 64)
    assert base < randomized_flops(2048, 4096, 128)
    assert base < randomized_flops(2048, 4096, 64, iterations=4)
    assert base < randomized_flops(2048, 4096, 64, krylov=True)
