"""16-bit floats as bits: every pattern both ways, against torch and NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numba import njit

from plait.ops.kernels import jit_bits
from plait.ops.kernels.jit_bits import bits_to_f32, f32_to_bits, load_bf16, load_f16, store_bf16, store_f16

ALL = np.arange(1 << 16).astype(np.uint16)


@njit
def loaded_bf16(a, out):
    for i in range(a.size):
        out[i] = load_bf16(a[i])


@njit
def stored_bf16(a, out):
    for i in range(a.size):
        out[i] = store_bf16(a[i])


@njit
def loaded_f16(a, out):
    for i in range(a.size):
        out[i] = load_f16(a[i])


@njit
def stored_f16(a, out):
    for i in range(a.size):
        out[i] = store_f16(a[i])


@njit
def round_trip_bits(a, out):
    for i in range(a.size):
        out[i] = bits_to_f32(f32_to_bits(a[i]))


@njit
def scaled_bf16(a, out, w):
    for i in range(a.size):
        out[i] = store_bf16(load_bf16(a[i]) * w)


FORMATS = {"bf16": (loaded_bf16, stored_bf16, torch.bfloat16), "f16": (loaded_f16, stored_f16, torch.float16)}


def run(kernel, a, dtype, *args):
    out = np.empty(a.size, dtype)
    kernel(a, out, *args)
    return out


def torch_loaded(bits, dtype):
    return torch.from_numpy(bits.view(np.int16).copy()).view(dtype).float().numpy()


def torch_stored(x, dtype):
    return torch.from_numpy(x.copy()).to(dtype).view(torch.int16).numpy().view(np.uint16)


def hard_floats():
    """Random bit patterns, every 16-bit value, the midpoints between neighbours and their two float32 neighbours."""
    rng = np.random.default_rng(0)
    anywhere = rng.integers(0, 1 << 32, 1 << 20, dtype=np.uint64).astype(np.uint32)
    upper = ALL.astype(np.uint32) << 16
    middles = [upper + np.uint32(0x8000 + d) for d in (-1, 0, 1)]
    halves = ALL.view(np.float16).astype(np.float32).view(np.uint32)
    half_middles = [halves + np.uint32(0x1000 + d) for d in (-1, 0, 1)]
    tiny = (rng.random(1 << 16).astype(np.float32) * np.float32(2.0**-13)).view(np.uint32)
    tiny_ties = ((np.arange(1 << 11) + 0.5) * 2.0**-24).astype(np.float32).view(np.uint32)
    return np.concatenate([anywhere, upper, halves, tiny, tiny_ties, *middles, *half_middles]).view(np.float32)


@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_loads_as_in_torch(name):
    """All 65536 patterns load to torch's bits; NaN loads to NaN."""
    load, _, dtype = FORMATS[name]
    ours, theirs = run(load, ALL, np.float32), torch_loaded(ALL, dtype)
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(ours.view(np.uint32)[number], theirs.view(np.uint32)[number])
    assert np.isnan(ours[~number]).all()


@pytest.mark.parametrize("name", FORMATS)
def test_every_pattern_survives_a_load_and_a_store(name):
    """Storing what was loaded gives the same bits, and a NaN stays a quiet NaN."""
    load, store, _ = FORMATS[name]
    values = run(load, ALL, np.float32)
    stored, number = run(store, values, np.uint16), ~np.isnan(values)
    np.testing.assert_array_equal(stored[number], ALL[number])
    quiet = 0x7FC0 if name == "bf16" else 0x7E00
    assert ((stored[~number] & quiet) == quiet).all()


@pytest.mark.parametrize("name", FORMATS)
def test_rounding_is_to_nearest_even_as_in_torch(name):
    """Random floats, ties, overflow and subnormals store to torch's bits."""
    _, store, dtype = FORMATS[name]
    x = hard_floats()
    ours, theirs = run(store, x, np.uint16), torch_stored(x, dtype)
    number = ~np.isnan(x)
    np.testing.assert_array_equal(ours[number], theirs[number])
    assert np.isnan(torch_loaded(ours[~number], dtype)).all()


def test_f16_edges():
    """65504 is the largest float16, 65520 the first float32 that overflows, 2^-24 the smallest subnormal, half of it rounds to zero."""
    x = np.array([65504, 65519.996, 65520, -65520, np.inf, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001, -0.0], np.float32)
    assert run(stored_f16, x, np.uint16).tolist() == [0x7BFF, 0x7BFF, 0x7C00, 0xFC00, 0x7C00, 1, 0, 1, 0x8000]


def test_float_bits_round_trip():
    """Every kind of float32 keeps its bits through f32_to_bits and bits_to_f32."""
    x = hard_floats()
    x = x[~np.isnan(x)]
    np.testing.assert_array_equal(run(round_trip_bits, x, np.float32).view(np.uint32), x.view(np.uint32))


def test_scaling_equals_torch():
    """A generated-style loop rounds once: load, multiply in float32, store."""
    w = np.float32(1 / 3)
    product = torch.from_numpy(torch_loaded(ALL, torch.bfloat16)) * float(w)
    expected = torch_stored(product.numpy(), torch.bfloat16)
    number = ~np.isnan(torch_loaded(ALL, torch.bfloat16))
    np.testing.assert_array_equal(run(scaled_bf16, ALL, np.uint16, w)[number], expected[number])


@pytest.mark.parametrize(
    ("triple", "features", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "+avx,+avx2,+f16c", True),
        ("x86_64-unknown-linux-gnu", "+avx,+avx2,-f16c", False),
        ("x86_64-pc-windows-msvc", "", False),
        ("arm64-apple-darwin23", "+neon", True),
    ],
)
def test_half_instructions_are_used_only_where_they_exist(triple, features, expected):
    """F16C on x86 has to be named among the features; ARM64 always converts."""
    codegen = SimpleNamespace(magic_tuple=lambda: (triple, "cpu", features))
    assert jit_bits.converts_half(SimpleNamespace(codegen=lambda: codegen)) is expected


def test_a_processor_without_half_instructions_gives_the_same_bits(monkeypatch):
    """The integer path agrees with torch on every pattern and on every hard float."""
    monkeypatch.setattr(jit_bits, "converts_half", lambda context: False)
    load, store = njit(loaded_f16.py_func), njit(stored_f16.py_func)
    values, x = run(load, ALL, np.float32), hard_floats()
    assert "fpext" not in next(iter(load.inspect_llvm().values()))
    theirs = torch_loaded(ALL, torch.float16)
    number = ~np.isnan(theirs)
    np.testing.assert_array_equal(values.view(np.uint32)[number], theirs.view(np.uint32)[number])
    assert np.isnan(values[~number]).all()
    ours, number = run(store, x, np.uint16), ~np.isnan(x)
    np.testing.assert_array_equal(ours[number], torch_stored(x, torch.float16)[number])
    assert np.isnan(torch_loaded(ours[~number], torch.float16)).all()
