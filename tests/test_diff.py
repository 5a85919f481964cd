"""`plait.diff`: every figure against numpy in float64, the same bits however it runs, and what cannot be compared said in words."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.differences import Diff, figures
from support.tiny import decode, encode, write_file

SHAPES = [(), (1,), (7,), (1031,), (3, 5), (40, 70), (64, 3, 2, 2), (5, 1), (1, 9)]
CODES = ["BF16", "F16", "F32"]
INTEGER = np.dtype(np.int64)


def save(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> Path:
    """One file of float tensors, and of integers under the code I64."""
    stored: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, (code, values) in tensors.items():
        data = values.astype(INTEGER).tobytes() if code == "I64" else values.astype(np.float64).tobytes() if code == "F64" else encode(values, code).tobytes()
        stored[name] = (code, values.shape, data)
    write_file(path, stored)
    return path


def kept(values: np.ndarray, code: str) -> np.ndarray:
    """Values as a file of that dtype holds them, in float64."""
    return decode(encode(values.astype(np.float32), code), code).reshape(values.shape).astype(np.float64)


@st.composite
def sets_of_tensors(draw: st.DrawFn) -> list[tuple[tuple[int, ...], list[str], int, bool]]:
    """For each tensor its shape, its dtypes in A, B and C, a seed, and whether many elements are equal."""
    one = st.tuples(st.sampled_from(SHAPES), st.lists(st.sampled_from(CODES), min_size=3, max_size=3), st.integers(0, 2**31), st.booleans())
    return draw(st.lists(one, min_size=1, max_size=4))


def models(chosen: list[tuple[tuple[int, ...], list[str], int, bool]]) -> list[dict[str, tuple[str, np.ndarray]]]:
    """A, B and C of the chosen tensors."""
    found: list[dict[str, tuple[str, np.ndarray]]] = [{}, {}, {}]
    for number, (shape, codes, seed, sparse) in enumerate(chosen):
        rng = np.random.default_rng(seed)
        base = rng.standard_normal(shape)
        for which in range(3):
            change = 0.1 * rng.standard_normal(shape) * (rng.random(shape) < 0.3 if sparse else 1.0)
            values = base + (0.0 if which == 2 else change)
            found[which][f"layers.{number}.w"] = (codes[which], np.asarray(values, np.float32))
    return found


def close(got: float | None, want: float, scale: float = 1.0) -> bool:
    """Equal up to the rounding of differences to float32."""
    if got is None or not math.isfinite(want):
        return got is None and not math.isfinite(want)
    return abs(got - want) <= 2e-6 * max(abs(want), scale)


def change_of(old: np.ndarray, new: np.ndarray) -> dict[str, float]:
    """The figures of a change as `docs/inspect.md` defines them."""
    d = new - old
    square = float((d * d).sum())
    with np.errstate(all="ignore"):
        return {
            "norm": math.sqrt(square),
            "relative": float(np.float64(math.sqrt(square)) / np.linalg.norm(old.reshape(-1))),
            "largest": float(np.abs(d).max()),
            "unchanged": float((old == new).mean()),
            "spread": float(np.float64(np.abs(d).sum() ** 2) / (d.size * square)),
        }


def cosine_of(x: np.ndarray, y: np.ndarray) -> float:
    with np.errstate(all="ignore"):
        return float(np.float64((x * y).sum()) / (np.linalg.norm(x.reshape(-1)) * np.linalg.norm(y.reshape(-1))))


def signs_of(x: np.ndarray, y: np.ndarray) -> float:
    both = (x != 0) & (y != 0)
    return float((np.sign(x) == np.sign(y))[both].mean()) if both.any() else math.nan


@given(sets_of_tensors())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("with_base", [False, True])
def test_every_figure_is_that_of_float64(tmp_path_factory: pytest.TempPathFactory, with_base: bool, chosen: Any):
    """Norms, relative changes, cosines, signs, spreads and shares of all dtypes and shapes, a tensor at a time."""
    folder = tmp_path_factory.mktemp("diff")
    stored = models(chosen)
    paths = [save(folder / f"{name}.safetensors", tensors) for name, tensors in zip("abc", stored, strict=True)]
    found = plait.diff(paths[0], paths[1], paths[2] if with_base else None, memory="64MiB")
    assert len(found.tensors) == len(chosen)
    for tensor in found.tensors:
        a, b, c = (kept(part[tensor.name][1], part[tensor.name][0]) for part in stored)
        got = tensor.figures
        olds, news, x, y = ([c, c], [a, b], a - c, b - c) if with_base else ([a], [b], a, b)
        for change, old, new in zip(got.changes, olds, news, strict=True):
            scale = float(np.abs(old).max(initial=0.0))
            for key, want in change_of(old, new).items():
                assert close(getattr(change, key), want, scale if key in ("norm", "largest") else 1.0), (tensor.name, key)
        assert close(got.cosine, cosine_of(x, y))
        assert close(got.sign_agreement, signs_of(x, y))
        assert close(got.both, float(((x != 0) & (y != 0)).mean()))
        for norm, whole in zip(got.norms, [c] if with_base else [a, b], strict=True):
            assert close(norm, float(np.linalg.norm(whole.reshape(-1))))


def large(tmp_path: Path) -> list[Path]:
    """Three models with a tensor of several blocks."""
    rng = np.random.default_rng(3)
    base = {"layers.0.w": rng.standard_normal((1300, 1700)), "layers.1.w": rng.standard_normal((1300, 1700)), "norm.w": rng.standard_normal(1700)}
    return [
        save(tmp_path / f"{name}.safetensors", {k: ("BF16", (v + size * rng.standard_normal(v.shape)).astype(np.float32)) for k, v in base.items()})
        for name, size in (("a", 0.1), ("b", 0.1), ("c", 0.0))
    ]


def bits(found: Diff) -> str:
    """All numbers of a comparison; `repr` shows every bit of a float."""
    return repr([(t.name, t.sums, t.nonfinite) for t in found.tensors])


def test_the_same_bits_however_it_runs(tmp_path: Path):
    """Budget and workers decide nothing."""
    a, b, c = large(tmp_path)
    runs = [{"memory": "32MiB", "workers": 1}, {"memory": "64MiB", "workers": 2}, {"memory": "1GiB", "workers": 3}]
    assert len({bits(plait.diff(a, b, c, rank=True, **run)) for run in runs}) == 1  # type: ignore[arg-type]


def test_the_interpreter_gives_the_same_bits(tmp_path: Path):
    """torch without Numba finds the same sums."""
    a, b, c = large(tmp_path)
    assert bits(plait.diff(a, b, c, memory="1GiB")) == bits(plait.diff(a, b, c, memory="1GiB", backend="torch"))


def test_totals_are_those_of_all_elements_together(tmp_path: Path):
    """A group's norm is that of its tensors laid end to end."""
    a, b, _ = large(tmp_path)
    found = plait.diff(a, b, memory="64MiB")
    total = found.total
    assert total is not None
    assert total.elements == 2 * 1300 * 1700 + 1700
    parts = [t.figures for t in found.tensors]
    assert math.isclose(total.norms[0], math.sqrt(sum(p.norms[0] ** 2 for p in parts)), rel_tol=1e-12)
    assert math.isclose(total.changes[0].norm, math.sqrt(sum(p.changes[0].norm ** 2 for p in parts)), rel_tol=1e-12)
    assert total.changes[0].largest == max(p.changes[0].largest for p in parts)
    assert set(found.by_layer()) == {0, 1}


@pytest.mark.parametrize(("shape", "rank"), [((60, 80), 3), ((80, 60), 60), ((24, 4, 3, 3), 5), ((2, 500), 2)])
def test_stable_ranks_are_those_of_a_decomposition(tmp_path: Path, shape: tuple[int, ...], rank: int):
    """Lanczos' steps find the largest singular value of low-rank and of full-rank changes, and never too large a one."""
    rng = np.random.default_rng(11)
    rows, columns = shape[0], math.prod(shape[1:])
    base = rng.standard_normal((rows, columns)).astype(np.float32)
    new = base + (rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, columns))).astype(np.float32)
    a, b = (save(tmp_path / f"{n}.safetensors", {"w": ("F32", x.reshape(shape))}) for n, x in (("a", base), ("b", new)))
    change = plait.diff(a, b, rank=True, memory="64MiB").tensors[0].figures.changes[0]
    s = np.linalg.svd(new.astype(np.float64) - base, compute_uv=False)
    want = float((s**2).sum() / s[0] ** 2)
    assert change.stable_rank is not None
    assert want * (1 - 1e-6) <= change.stable_rank <= want * (1.0001 if rank <= 8 else 1.05)


def test_vectors_and_unchanged_matrices_have_no_stable_rank(tmp_path: Path):
    x = np.ones((4, 6), np.float32)
    paths = [save(tmp_path / f"{n}.safetensors", {"w": ("F32", x), "v": ("F32", x[0] * k)}) for n, k in (("a", 1), ("b", 2))]
    found = {t.name: t.figures.changes[0].stable_rank for t in plait.diff(*paths, rank=True, memory="64MiB").tensors}
    assert found == {"w": None, "v": None}


def test_what_cannot_be_compared_is_said(tmp_path: Path):
    """Missing, of another shape, empty, of other kinds: each has a reason; integers are compared bit by bit."""
    x, ids = np.ones((4, 6), np.float32), np.arange(5)
    shared = {"w": ("F32", x), "empty": ("F32", np.ones((0, 3), np.float32)), "ids": ("I64", ids), "wide": ("F64", x)}
    a = save(tmp_path / "a.safetensors", {**shared, "mine": ("F32", x), "shape": ("F32", x), "kind": ("I64", ids), "moved": ("I64", ids)})
    b = save(tmp_path / "b.safetensors", {**shared, "theirs": ("F32", x), "shape": ("F32", x.T), "kind": ("F32", ids), "moved": ("I64", ids + 1)})
    found = plait.diff(a, b, memory="64MiB")
    assert [t.name for t in found.tensors] == ["w"]
    assert found.left_out == {
        "empty": "empty: [0, 3]",
        "mine": "only in A",
        "theirs": "only in B",
        "shape": "shapes differ: [4, 6] in A, [6, 4] in B",
        "kind": "dtypes that are not computed on: int64 in A, float32 in B",
    }
    assert found.bitwise == {"ids": True, "wide": True, "moved": False}


def test_models_without_a_common_tensor_are_refused(tmp_path: Path):
    a, b = (save(tmp_path / f"{n}.safetensors", {n: ("F32", np.ones(3, np.float32))}) for n in "ab")
    with pytest.raises(plait.PlanError, match="no tensor in common"):
        plait.diff(a, b)


def test_zeros_have_no_ratios(tmp_path: Path):
    """Zero norms give no relative change and no cosine, and an unchanged tensor no spread; none of it is an error."""
    zero, one = np.zeros(9, np.float32), np.ones(9, np.float32)
    a = save(tmp_path / "a.safetensors", {"z": ("BF16", zero), "same": ("BF16", one)})
    b = save(tmp_path / "b.safetensors", {"z": ("BF16", one), "same": ("BF16", one)})
    found = {t.name: t.figures for t in plait.diff(a, b, memory="64MiB").tensors}
    assert found["z"].changes[0].relative is None
    assert found["z"].cosine is None
    assert found["z"].sign_agreement is None
    assert found["same"].changes[0].relative == 0.0
    assert found["same"].changes[0].spread is None
    assert found["same"].cosine == 1.0


def test_nan_and_infinity_are_counted_and_left_out_of_totals(tmp_path: Path):
    x, bad = np.ones(9, np.float32), np.ones(9, np.float32)
    bad[:3] = np.nan, np.inf, np.nan
    a = save(tmp_path / "a.safetensors", {"bad": ("F32", bad), "w": ("F32", x)})
    b = save(tmp_path / "b.safetensors", {"bad": ("F32", x), "w": ("F32", 2 * x)})
    found = plait.diff(a, b, memory="64MiB")
    assert {t.name: t.nonfinite for t in found.tensors} == {"bad": (3, 0), "w": (0, 0)}
    total = found.total
    assert total is not None
    assert (total.tensors, total.changes[0].relative) == (1, 1.0)
    assert any(reading["measure"] == "nonfinite" for reading in found.readings())
    listed = json.loads(found.to_json())
    assert next(t for t in listed["tensors"] if t["name"] == "bad")["delta"]["norm"] is None


def test_the_first_model_with_itself(tmp_path: Path):
    """One file on both sides differs in nothing."""
    a, _, _ = large(tmp_path)
    found = plait.diff(a, a, memory="64MiB")
    total = found.total
    assert total is not None
    assert (total.changes[0].norm, total.changes[0].unchanged, total.cosine) == (0.0, 1.0, 1.0)
    assert found.readings()[0]["text"].startswith("A and B hold the same values")


def test_figures_of_opposite_changes(tmp_path: Path):
    """Two changes of opposite sign: cosine -1, no agreement, and the reading says so."""
    base, step = np.zeros((8, 8), np.float32) + 1, np.linspace(0.1, 1, 64, dtype=np.float32).reshape(8, 8)
    paths = [save(tmp_path / f"{n}.safetensors", {"w": ("F32", x)}) for n, x in (("a", base + step), ("b", base - step), ("c", base))]
    found = plait.diff(*paths, memory="64MiB")
    total = figures(found.tensors)
    assert math.isclose(total.cosine or 0.0, -1.0, rel_tol=1e-6)
    assert total.sign_agreement == 0.0
    assert "oppose" in next(r["text"] for r in found.readings() if r["measure"] == "cosine")
