"""The polar factor against a float64 SVD in NumPy, on matrices of every shape, scale and rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import KernelError
from plait.ops.kernels import gram
from plait.ops.kernels import polar as module
from plait.ops.kernels.polar import polar, polar_workspace_bytes
from support.workspace import measured_bytes, needs_rss_anon

EPS32 = np.finfo(np.float32).eps


def reference(x):
    """U Vh over singular values above the tolerance, and how many."""
    u, s, vh = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    rank = int((s > max(x.shape) * EPS32 * s[0]).sum()) if s[0] > 0 else 0
    return u[:, :rank] @ vh[:rank], rank


def relative_error(got, expected):
    return np.linalg.norm(got - expected) / np.linalg.norm(expected)


def with_spectrum(m, n, spectrum, seed=0):
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, min(m, n))))
    v, _ = np.linalg.qr(rng.standard_normal((n, min(m, n))))
    return ((u * spectrum) @ v.T).astype(np.float32)


def run(x, **options):
    factor, rank = polar(torch.from_numpy(x), **options)
    assert factor.dtype == torch.float32
    return factor.double().numpy(), rank


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (17, 17), (8, 1000), (1000, 8), (64, 200), (200, 64)])
def test_equals_the_svd(shape):
    """Tall, wide, square and single rows and columns, to float32 rounding."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    expected, rank = reference(x)
    got, kept = run(x)
    assert kept == rank == min(shape)
    assert relative_error(got, expected) < 1e-7


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 40), n=st.integers(1, 40), rank=st.integers(1, 40), exponent=st.integers(-30, 30), seed=st.integers(0, 99))
def test_is_a_partial_isometry_along_the_kept_directions(m, n, rank, exponent, seed):
    """Singular values are 1 (rank many) or 0, at any scale from 1e-30 to 1e30, and the rank is the true one."""
    rank = min(m, n, rank)
    rng = np.random.default_rng(seed)
    x = with_spectrum(m, n, np.where(np.arange(min(m, n)) < rank, rng.uniform(0.1, 1, min(m, n)), 0), seed).astype(np.float64)
    got, kept = run((x * 10.0**exponent).astype(np.float32))
    assert kept == rank
    values = np.linalg.svd(got, compute_uv=False)
    np.testing.assert_allclose(values, np.arange(min(m, n)) < rank, atol=2e-6)


@pytest.mark.parametrize("kappa", [1e1, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.parametrize("shape", [(8, 8), (32, 64), (200, 100)])
def test_ill_conditioned_matrices_stay_accurate(shape, kappa):
    """Whatever the condition number, the error over the kept directions stays under the stated limit."""
    x = with_spectrum(*shape, np.geomspace(1, 1 / kappa, min(shape)))
    expected, rank = reference(x)
    got, kept = run(x)
    assert kept == rank
    assert relative_error(got, expected) < module.ERROR_LIMIT + 1e-7


def test_the_gram_route_alone_would_miss_the_limit(monkeypatch):
    """With the switch to SVD disabled some 8 x 8 matrix with condition 1e6 is wrong by more than the limit: the criterion is needed.

    How wrong a single one is depends on the processor's linear algebra, so the worst of many counts.
    """
    matrices = [with_spectrum(8, 8, np.geomspace(1, 1e-6, 8), seed) for seed in range(60)]
    limit = module.ERROR_LIMIT
    monkeypatch.setattr(module, "ERROR_LIMIT", np.inf)
    assert max(relative_error(run(x)[0], reference(x)[0]) for x in matrices) > 2 * limit


def test_the_limit_binds_only_small_matrices():
    """The largest condition that the rank tolerance leaves, at a side of 512, is within the Gram route's limit."""
    side = module._SVD_SIDE
    assert module._GRAM_FACTOR * module._EPS64 / (side * module._EPS32) ** 2 <= module.ERROR_LIMIT


@pytest.mark.parametrize("shape", [(300, 300), (300, 700), (700, 300)])
@pytest.mark.parametrize("kappa", [4.0, 300.0, 1e4])
def test_float32_products_keep_the_limit(shape, kappa):
    """Large matrices, whose well-conditioned part is multiplied in float32, stay within the stated limit at every condition."""
    spectrum = np.maximum(np.random.default_rng(0).uniform(0, 1, 300), 1 / kappa)
    spectrum[:2] = 1, 1 / kappa
    x = with_spectrum(*shape, np.sort(spectrum)[::-1])
    expected, rank = reference(x)
    got, kept = run(x)
    assert kept == rank
    assert relative_error(got, expected) < module.ERROR_LIMIT


@pytest.mark.parametrize("spikes", [0, 20])
@pytest.mark.parametrize("shape", [(600, 600), (400, 900)])
def test_noise_and_what_stands_out_of_it_are_multiplied_in_float32(monkeypatch, shape, spikes):
    """Noise, square the hardest of random matrices, and with strong directions as fine-tuning leaves them, goes the fast way within the limit."""
    rng = np.random.default_rng(3)
    x = rng.standard_normal(shape) + 0.5 * rng.standard_normal((shape[0], spikes)) @ rng.standard_normal((spikes, shape[1]))
    monkeypatch.setattr(module, "_multiply_wide", lambda *args: pytest.fail("float64 products"))
    expected, rank = reference(x.astype(np.float32))
    got, kept = run(x.astype(np.float32))
    assert kept == rank
    assert relative_error(got, expected) < module.ERROR_LIMIT


@pytest.mark.parametrize("middle", [365, 8])
def test_what_is_below_the_noise_stays_out_of_float32_products(monkeypatch, middle):
    """Directions just below the tolerance, which is above the weaker directions kept by a few parts in a hundred, come back as zero."""
    monkeypatch.setattr(module, "_multiply_wide", lambda *args: pytest.fail("float64 products"))
    spectrum = np.concatenate([np.full(25, 1000.0), np.linspace(1.2, 1.0, middle), np.full(375 - middle, 0.04)])
    x = with_spectrum(400, 900, spectrum)
    expected, rank = reference(x)
    got, kept = run(x)
    assert kept == rank == 25 + middle
    assert relative_error(got, expected) < module.ERROR_LIMIT


def test_zero_rows_stay_zero():
    """Rows and columns of zeros give zeros, and do not count in the rank."""
    x = np.random.default_rng(2).standard_normal((20, 30)).astype(np.float32)
    x[3], x[:, 7] = 0, 0
    got, rank = run(x)
    assert rank == 19
    assert np.abs(got[3]).max() < 1e-7
    assert np.abs(got[:, 7]).max() == 0


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (0, 4), (4, 0)])
@pytest.mark.parametrize("policy", ["numerical", "full"])
def test_the_zero_matrix_gives_zeros(shape, policy):
    """Zeros and rank 0, also for matrices without elements."""
    got, rank = run(np.zeros(shape, np.float32), rank_policy=policy)
    assert rank == 0
    assert got.shape == shape
    assert not got.any()


def test_directions_below_the_tolerance_are_left_out():
    """A singular value at half the tolerance is noise, one at twice the tolerance is not."""
    tolerance = 64 * EPS32
    spectrum = np.ones(32)
    for last, rank in ((0.5, 31), (2.0, 32)):
        spectrum[-1] = last * tolerance
        assert run(with_spectrum(32, 64, spectrum))[1] == rank


def test_full_rank_policy_keeps_null_directions():
    """As in the released code: every singular value becomes 1, so the result is orthogonal even for a deficient matrix."""
    x = with_spectrum(12, 20, np.where(np.arange(12) < 5, 1.0, 0.0))
    got, rank = run(x, rank_policy="full")
    assert rank == 12
    np.testing.assert_allclose(got @ got.T, np.eye(12), atol=1e-6)
    partial, _ = reference(x)
    np.testing.assert_allclose(got @ partial.T @ partial, partial, atol=1e-5)


def test_orthogonal_equivariance():
    """polar(Q X R) = Q polar(X) R for orthogonal Q and R."""
    rng = np.random.default_rng(5)
    x = rng.standard_normal((24, 40))
    q, _ = np.linalg.qr(rng.standard_normal((24, 24)))
    r, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    assert relative_error(run((q @ x @ r).astype(np.float32))[0], q @ run(x.astype(np.float32))[0] @ r) < 1e-5


def test_many_blocks_give_what_one_gives(monkeypatch):
    """The long side is cut in blocks; the result hardly depends on where."""
    x = np.random.default_rng(6).standard_normal((16, 5000)).astype(np.float32)
    whole, _ = run(x)
    for place in (gram, module):
        monkeypatch.setattr(place, "block_columns", lambda short, long: 333)
    assert relative_error(run(x)[0], whole) < 1e-7


def test_out_is_written_and_strided_input_is_read():
    """The result lands in the caller's buffer; a transposed view works as the matrix it shows."""
    x = torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    out = torch.empty(20, 30)
    got, _ = polar(x.T, out=out)
    assert got is out
    assert relative_error(out.numpy(), polar(x)[0].T.numpy()) < 1e-6


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("policy", ["numerical", "full"])
def test_not_a_number_is_an_error(bad, policy):
    """NaN and infinity have no polar factor."""
    x = torch.ones(4, 6)
    x[1, 2] = bad
    with pytest.raises(KernelError, match="NaN or infinity"):
        polar(x, rank_policy=policy)


def test_other_input_is_refused():
    """Vectors and other dtypes are errors of the caller."""
    with pytest.raises(ValueError, match="float32 matrix"):
        polar(torch.zeros(4))
    with pytest.raises(ValueError, match="float32 matrix"):
        polar(torch.zeros(4, 4, dtype=torch.float64))


@needs_rss_anon
@pytest.mark.parametrize(
    ("m", "n", "policy"),
    [
        (1024, 4096, "numerical"),
        pytest.param(2048, 2048, "numerical", marks=pytest.mark.slow),
        (768, 3072, "full"),
    ],
)
def test_measured_memory_is_within_the_declared_workspace_and_near_it(m, n, policy):
    """Private memory sampled in a fresh process: at most what is declared, and at least 1/1.25 of it."""
    setup = f"""from plait.ops.kernels.polar import polar; policy = {policy!r}; polar(torch.randn(40, 50), rank_policy=policy)
x, out = torch.randn({m}, {n}), torch.zeros({m}, {n})"""
    measured, declared = measured_bytes(setup, "polar(x, rank_policy=policy, out=out)"), polar_workspace_bytes(m, n, policy, threads=1)
    assert measured <= declared <= 1.25 * measured
