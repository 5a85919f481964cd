"""exp, tanh and log: close to the exact values, and the same bits in torch, NumPy and compiled code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numba import njit

from plait.ops.kernels import elementary
from plait.ops.kernels.jit_elementary import exp_f32, log_f64, tanh_f32

SPECIAL = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 88.7, 88.73, 89.1, -87.4, -103.9, -104.1, 0.625, -0.625, 3e38, -3e38], np.float32)


def arguments(name: str) -> np.ndarray:
    """Float32 arguments over the whole useful range, dense near zero, and every special value."""
    rng = np.random.default_rng(5)
    wide = rng.uniform(-104, 89, 400_000) if name == "exp" else rng.uniform(-12, 12, 400_000)
    near = np.exp(rng.uniform(-40, 3, 200_000)) * rng.choice([-1, 1], 200_000)
    return np.concatenate([wide, near, SPECIAL]).astype(np.float32)


@njit
def each(function: Any, x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = function(x[i])


def compiled(function: Any, x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    each(function, x, out)
    return out


def alike(a: np.ndarray, b: np.ndarray) -> bool:
    """The same bits, one NaN like another."""
    bits = np.uint32 if a.dtype == np.float32 else np.uint64
    return bool(np.all((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))))


@pytest.mark.parametrize(
    ("name", "jitted", "exact", "units"),
    [("exp", exp_f32, np.exp, 1.5), ("tanh", tanh_f32, np.tanh, 2.0)],
)
def test_float32(name: str, jitted: Any, exact: Callable[..., Any], units: float):
    """Within the stated units in the last place of float64's value, and bit for bit alike on three backends."""
    x = arguments(name)
    function = getattr(elementary, name)
    with np.errstate(all="ignore"):
        got = function(np, x)
        wanted = exact(x.astype(np.float64))
    assert alike(got, function(torch, torch.from_numpy(x)).numpy())
    assert alike(got, compiled(jitted, x))
    with np.errstate(all="ignore"):
        normal = np.isfinite(wanted) & (np.abs(wanted) < 3.4e38) & (np.abs(wanted) > 2.0**-126)
        off = np.abs(got.astype(np.float64) - wanted)[normal] / np.spacing(np.abs(wanted[normal]).astype(np.float32)).astype(np.float64)
    assert off.max() <= units
    assert np.abs(got[np.abs(wanted) <= 2.0**-126] - wanted[np.abs(wanted) <= 2.0**-126]).max() <= 2.0**-149
    assert np.array_equal(np.isnan(got), np.isnan(wanted))


def test_float32_limits():
    """Nothing overflows early: exp is finite up to 88.72, infinite from 88.73, and 1 at 0; tanh ends at 1."""
    with np.errstate(over="ignore"):
        found = elementary.exp(np, np.array([88.72, 88.73, 0.0, -0.0, np.inf, -np.inf], np.float32))
    assert np.isfinite(found[0])
    assert found[1:].tolist() == [np.inf, 1.0, 1.0, np.inf, 0.0]
    with np.errstate(all="ignore"):
        ends = elementary.tanh(np, np.array([np.inf, -np.inf, 20.0, -20.0, -0.0], np.float32))
    assert ends.tolist() == [1.0, -1.0, 1.0, -1.0, 0.0]


def test_log():
    """Within two units in the last place of float64 and alike on three backends; nothing is lost near 1."""
    rng = np.random.default_rng(6)
    x = np.concatenate([np.exp(rng.uniform(-700, 700, 20_000)), 1 + rng.uniform(-1e-3, 1e-3, 20_000), [1.0, 2.0, 0.5, 0.0, -1.0, np.inf, np.nan]])
    with np.errstate(all="ignore"):
        got, wanted = elementary.log(np, x), np.log(x.astype(np.longdouble))
    assert alike(got, elementary.log(torch, torch.from_numpy(x)).numpy())
    assert alike(got, compiled(log_f64, x))
    finite = np.isfinite(wanted) & (wanted != 0)
    assert (np.abs(got[finite] - wanted[finite]) <= 2 * np.spacing(np.abs(wanted[finite]).astype(np.float64))).all()
    assert got[np.isinf(x)].tolist() == [np.inf]
    assert got[x == 1.0].tolist() == [0.0]
    assert np.isnan(got[-1])
