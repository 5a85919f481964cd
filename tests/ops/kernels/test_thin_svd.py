"""The thin SVD, exact and fast, and joint bases against NumPy's float64 SVD, for every shape, rank and condition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.ops.errors import KernelError
from plait.ops.kernels import thin_svd
from plait.ops.kernels.thin_svd import joint_basis, joint_basis_workspace_bytes, svd, svd_flops, svd_route, svd_workspace_bytes
from support.workspace import measured_bytes, needs_rss_anon

EPS32 = np.finfo(np.float32).eps


def with_spectrum(m, n, spectrum, seed=0):
    """A float32 matrix of those singular values and random vectors."""
    rng = np.random.default_rng(seed)
    u, _ = np.linalg.qr(rng.standard_normal((m, len(spectrum))))
    v, _ = np.linalg.qr(rng.standard_normal((n, len(spectrum))))
    return ((u * np.asarray(spectrum)) @ v.T).astype(np.float32)


def run(x, *args, **options):
    """U, S and Vh in float64."""
    found = svd(torch.from_numpy(x), *args, **options)
    assert {t.dtype for t in found} == {torch.float32}
    return [t.double().numpy() for t in found]


def rebuilt(u, s, vh):
    return (u * s) @ vh


@pytest.fixture(params=["direct", "gram"])
def route(request, monkeypatch):
    """Both exact ways, whatever the shape."""
    monkeypatch.setattr(thin_svd, "DIRECT_SIDE", 10**9 if request.param == "direct" else 0)
    return request.param


@pytest.mark.parametrize("shape", [(1, 1), (1, 70), (70, 1), (33, 33), (20, 90), (90, 20)])
@pytest.mark.parametrize("rank", [None, 1, 7, 500])
def test_equals_the_svd(route, shape, rank):
    """Values, shapes, orthonormal vectors and the best approximation of that rank, wide, tall and square."""
    x = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
    q = min(rank or 10**9, *shape)
    u, s, vh = run(x, rank)
    wu, ws, wvh = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    assert (u.shape, s.shape, vh.shape) == ((shape[0], q), (q,), (q, shape[1]))
    np.testing.assert_allclose(s, ws[:q], rtol=1e-6)
    np.testing.assert_allclose(u.T @ u, np.eye(q), atol=1e-6)
    np.testing.assert_allclose(vh @ vh.T, np.eye(q), atol=1e-6)
    np.testing.assert_allclose(rebuilt(u, s, vh), rebuilt(wu[:, :q], ws[:q], wvh[:q]), atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 40), n=st.integers(1, 40), exponent=st.integers(-30, 30), seed=st.integers(0, 99), direct=st.booleans(), data=st.data())
def test_any_rank_and_scale(m, n, exponent, seed, direct, data):
    """U S Vh gives the matrix back and the true rank is found, at scales from 1e-30 to 1e30."""
    rank = data.draw(st.integers(1, min(m, n)))
    spectrum = np.where(np.arange(min(m, n)) < rank, np.random.default_rng(seed).uniform(0.1, 1, min(m, n)), 0)
    x = (with_spectrum(m, n, spectrum, seed).astype(np.float64) * 10.0**exponent).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thin_svd, "DIRECT_SIDE", 10**9 if direct else 0)
        u, s, vh = run(x)
    assert np.count_nonzero(s) == rank
    assert np.all(np.diff(s) <= 0)
    np.testing.assert_allclose(rebuilt(u, s, vh), x, atol=2e-6 * float(np.abs(s).max()))


@pytest.mark.parametrize("kappa", [1e1, 1e3, 1.5e4])
def test_the_gram_way_keeps_its_bound(kappa):
    """Relative error of every value, and orthogonality, within 1e-6 up to the condition that the noise limit leaves at 512."""
    x = with_spectrum(60, 512, np.geomspace(1, 1 / kappa, 60))
    assert svd_route(60, 512) == "gram"
    u, s, vh = run(x)
    expected = np.linalg.svd(x.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(s, expected, rtol=1e-6)
    np.testing.assert_allclose(vh @ vh.T, np.eye(60), atol=1e-6)
    np.testing.assert_allclose(u.T @ u, np.eye(60), atol=1e-6)


@pytest.mark.parametrize("shape", [(20, 600), (600, 20), (20, 30)])
def test_noise_comes_back_as_zeros(shape):
    """Directions at half of max(m, n) eps32 are left out and those at twice it are kept; zeros fill up the asked shape."""
    tolerance = max(shape) * EPS32
    for last, rank in ((0.5, 19), (2.0, 20)):
        spectrum = np.ones(20)
        spectrum[-1] = last * tolerance
        u, s, vh = run(with_spectrum(*shape, spectrum))
        assert np.count_nonzero(s) == rank
        assert not u[:, rank:].any()
        assert not vh[rank:].any()


def test_full_rank_policy_keeps_null_directions():
    """As LAPACK does: orthonormal vectors also where there is no value."""
    x = with_spectrum(20, 600, [1.0] * 5)
    assert svd_route(20, 600, rank_policy="full") == "direct"
    u, s, vh = run(x, rank_policy="full")
    np.testing.assert_allclose(vh @ vh.T, np.eye(20), atol=1e-6)
    np.testing.assert_allclose(u.T @ u, np.eye(20), atol=1e-6)
    assert s[5:].max() < 1e-6


def test_zeros_and_nothing(route):
    """A zero matrix has zero triplets, an empty one has none or empty ones."""
    for shape in ((4, 6), (0, 5), (5, 0)):
        u, s, vh = run(np.zeros(shape, np.float32))
        assert (u.shape, vh.shape) == ((shape[0], min(shape)), (min(shape), shape[1]))
        assert not u.any()
        assert not s.any()
        assert not vh.any()


def test_a_batch_is_its_matrices():
    """Small matrices of one shape go through in one batch, each with its own noise limit, and large ones one by one."""
    x = np.stack([with_spectrum(12, 30, np.geomspace(1, 0.1, 12), 1), with_spectrum(12, 30, [1.0, 0.5], 2)])
    found = run(x, 4)
    for i in range(2):
        for got, one in zip(found, run(x[i], 4), strict=True):
            np.testing.assert_allclose(got[i], one, atol=1e-6)
    large = np.random.default_rng(0).standard_normal((2, 5, 600)).astype(np.float32)
    np.testing.assert_allclose(run(large)[1][1], np.linalg.svd(large[1], compute_uv=False), rtol=1e-5)


def test_orthogonal_equivariance():
    """Values do not change, and left vectors turn with the matrix, up to sign."""
    x = with_spectrum(24, 600, np.geomspace(1, 0.01, 24))
    q, _ = np.linalg.qr(np.random.default_rng(5).standard_normal((24, 24)))
    u, s, _ = run(x)
    turned, same, _ = run((q @ x).astype(np.float32))
    np.testing.assert_allclose(s, same, rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum((q @ u) * turned, 0)), 1, atol=1e-3)


def test_fast_is_near_the_best_where_the_spectrum_decays():
    """At half the decay of a power law the Frobenius error is within one percent of Eckart and Young's."""
    spectrum = np.arange(1, 301) ** -1.0
    x = with_spectrum(300, 700, spectrum)
    assert svd_route(300, 700, 16, "fast") == "randomized"
    u, s, vh = run(x, 16, "fast")
    best = np.sqrt((spectrum[16:] ** 2).sum())
    assert best * (1 - 1e-4) <= np.linalg.norm(x - rebuilt(u, s, vh)) <= 1.01 * best
    np.testing.assert_allclose(s, spectrum[:16], rtol=1e-2)


def test_fast_with_most_of_the_triplets_goes_the_exact_way():
    """A sketch as wide as the matrix costs more than the Gram matrix, so the cost decides for that."""
    assert svd_route(1024, 4096, 16, "fast") == "randomized"
    assert svd_route(1024, 4096, 1000, "fast") == "gram"
    assert svd_route(1024, 4096, None, "fast") == "gram"
    assert svd_route(1024, 4096, 16, "exact") == "gram"
    assert svd_flops(2048, 2048, 64, "fast") < svd_flops(2048, 2048, 64, "exact") < svd_flops(2048, 2048, 64, "exact", "full")


@pytest.mark.parametrize("side", ["left", "right"])
def test_joint_basis_is_that_of_the_concatenation(side):
    """Values and spanned space of the SVD of all matrices side by side, with as many columns as asked."""
    rng = np.random.default_rng(3)
    parts = [rng.standard_normal((30, n)).astype(np.float32) for n in (20, 7, 40)]
    if side == "right":
        parts = [p.T.copy() for p in parts]
    u, s, _ = np.linalg.svd(np.concatenate([p if side == "left" else p.T for p in parts], axis=1).astype(np.float64), full_matrices=False)
    found = joint_basis((torch.from_numpy(p) for p in parts), side, rank=12)
    assert found.rank == 12
    np.testing.assert_allclose(found.s.numpy(), s[:12], rtol=1e-6)
    got = found.vectors.double().numpy()
    np.testing.assert_allclose(got @ got.T, u[:, :12] @ u[:, :12].T, atol=1e-5)


def test_joint_basis_of_low_rank_matrices():
    """Experts of rank 2 and 3 span five directions; the rest are zero columns."""
    parts = [torch.from_numpy(with_spectrum(40, 25, [1.0] * r, r)) for r in (2, 3)]
    found = joint_basis(parts)
    assert found.rank == 5
    assert found.vectors.shape == (40, 40)
    assert not found.vectors[:, 5:].any()
    for part in parts:
        torch.testing.assert_close(found.vectors @ (found.vectors.T @ part), part, atol=1e-5, rtol=0)


def test_joint_basis_refuses_what_does_not_fit():
    """No matrices, or sides that differ."""
    with pytest.raises(ValueError, match="one matrix or more"):
        joint_basis([])
    with pytest.raises(ValueError, match=r"\(3, 4\) has no left side of 2"):
        joint_basis([torch.ones(2, 4), torch.ones(3, 4)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize(("shape", "options"), [((4, 6), {}), ((20, 600), {}), ((300, 700), {"rank": 4, "accuracy": "fast"})])
def test_not_a_number_is_an_error(bad, shape, options):
    """NaN and infinity are named, with the shape, on every way."""
    x = torch.ones(shape)
    x[1, 2] = bad
    with pytest.raises(KernelError, match=f"{shape[0]} x {shape[1]} holds NaN or infinity"):
        svd(x, **options)


def test_failures_are_tried_another_way_and_then_named(monkeypatch):
    """An eigenvalue iteration that fails once is done in reverse order, with the same result; twice is an error with the shape."""
    x = torch.from_numpy(with_spectrum(20, 600, np.geomspace(1, 0.1, 20)))
    expected = svd(x)
    real, calls = torch.linalg.eigh, []

    def failing(times):
        def eigh(matrix, UPLO="L"):
            calls.append(UPLO)
            if len(calls) <= times:
                raise torch.linalg.LinAlgError("no convergence")
            return real(matrix, UPLO)

        calls.clear()
        return eigh

    monkeypatch.setattr(torch.linalg, "eigh", failing(1))
    again = svd(x)
    assert calls == ["U", "L"]
    torch.testing.assert_close(again.s, expected.s)
    torch.testing.assert_close((again.u * again.s) @ again.vh, x, atol=1e-6, rtol=0)
    monkeypatch.setattr(torch.linalg, "eigh", failing(2))
    with pytest.raises(KernelError, match="20 x 600 matrix did not converge") as caught:
        svd(x)
    assert caught.value.facts["shape"] == (20, 600)


def test_other_input_is_refused():
    """Vectors, other dtypes, ranks and accuracies are errors of the caller."""
    for x in (torch.zeros(4), torch.zeros(4, 4, dtype=torch.float64)):
        with pytest.raises(ValueError, match="float32 matrix"):
            svd(x)
    with pytest.raises(ValueError, match="rank 0"):
        svd(torch.zeros(4, 4), 0)
    with pytest.raises(ValueError, match="'exact' or 'fast'"):
        svd(torch.zeros(4, 4), accuracy="quick")


@needs_rss_anon
@pytest.mark.parametrize(
    ("m", "n", "rank", "accuracy"),
    [
        (1024, 1024, None, "exact"),
        (1024, 3072, 128, "exact"),
        (3072, 1024, None, "exact"),
        (2048, 4096, 256, "fast"),
        pytest.param(2048, 2048, None, "exact", marks=pytest.mark.slow),
    ],
)
def test_measured_memory_is_within_the_declared_workspace_and_near_it(m, n, rank, accuracy):
    """Private memory sampled in a fresh process, outputs included: at most what is declared with them, and at least 1/1.25 of the workspace."""
    work = "svd(x, rank, accuracy)"
    # a small matrix first, so that code is loaded; a large one would leave memory behind for the measured one to use
    setup = (
        f"from plait.ops.kernels.thin_svd import svd; rank, accuracy = {rank}, {accuracy!r}; svd(torch.randn(40, 600), 8, accuracy); x = torch.randn({m}, {n})"
    )
    measured, declared = measured_bytes(setup, work), svd_workspace_bytes(m, n, rank, accuracy, threads=1)
    outputs = 4 * (rank or min(m, n)) * (m + n + 1)
    assert measured <= declared + outputs
    assert declared <= 1.25 * measured


@needs_rss_anon
def test_measured_memory_of_a_joint_basis():
    """The same for the joint basis of four matrices, one at a time."""
    setup = "from plait.ops.kernels.thin_svd import joint_basis; joint_basis([torch.randn(50, 60)]); x = torch.randn(1280, 2048)"
    measured = measured_bytes(setup, "joint_basis(x for _ in range(4))")
    declared = joint_basis_workspace_bytes(1280, threads=1)
    assert measured <= declared + 4 * 1280 * 1280
    assert declared <= 1.25 * measured
