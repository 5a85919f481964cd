"""Compiled kernels give the bits of the torch interpreter, for every method and every stage of it; and they are cached."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from inspect import signature
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.engine import compile as compiling
from plait.engine.blockrun import RAW, BlockData, Window, make_runner
from plait.engine.codegen import generate
from plait.engine.compile import cache_folder, compile_missing
from plait.engine.kernel import Kernel
from plait.ops.algebra import below, dot, row_rank, solve, take, where
from plait.ops.algebra import random_bits as drawn
from plait.ops.errors import KernelError
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods, steps
from plait.ops.statistics import LayerScore
from plait.ops.tensor import LazyTensor, load
from plait.planner.blocks import NARROW, scratch_bytes
from plait.planner.program import Program, Stage, lower
from support.tiny import decode, encode

METHODS, STEPS = methods(), steps()
SHAPE = (9, 1301)  # rows of odd length, longer than a chunk
FIRST_ROW, ROWS = 3, 4  # the block under test: rows 3 to 6
W = (1.0, 0.5, 0.75)
D = (0.5, 0.25, 0.75)
EPS = (0.1, 0.1, 0.1)
DTYPES = {"BF16": ("BF16",) * 4, "F16": ("F16",) * 4, "F32": ("F32",) * 4, "mixed": ("F32", "BF16", "F16", "F32")}


@dataclass(frozen=True)
class Case:
    """A method (and perhaps a step after it) with parameters that reach its branches."""

    method: str
    build: Callable[..., LazyTensor]


def call(name: str, **params: Any) -> Case:
    return Case(name, lambda t, /, **change: METHODS[name].build(t, **{**params, **{k: v for k, v in change.items() if k in params}}))


def step(name: str, **params: Any) -> Case:
    def build(t: MergeInputs, /, **change: Any) -> LazyTensor:
        merged = METHODS["linear"].build(t, weight=change.get("weight", W))
        return STEPS[name].build(t, merged, **params)  # type: ignore[no-any-return]

    return Case(name, build)


def pair(case: Case) -> Case:
    """The same over the first expert alone, for methods that take one."""
    return Case(case.method, lambda t, /, **change: case.build(t.only([0]), **change))


def first(case: Case) -> Case:
    """The same over the first expert alone, for methods of which every expert adds the same to a kernel; numbers are changed in their first place."""
    return Case(case.method, lambda t, /, **change: case.build(t.only([0]), **{k: v[:1] if isinstance(v, tuple) else v for k, v in change.items()}))


def told(method: str, /, **change: Any) -> Case:
    """A merge that is told what is important, the weights themselves standing in for it."""

    def build(t: MergeInputs, /, **_: Any) -> LazyTensor:
        x, y, z = t.experts
        scores = tuple(LayerScore(0.2 * k, None) for k in range(3))
        node: LazyTensor = METHODS[method].build(replace(t, importance=(y, z, x), base_importance=(x, x, y), sensitivity=scores), **change)
        return node

    return Case(method, build)


CASES = {
    "linear": call("linear", weight=W),
    "passthrough": pair(call("passthrough", scale=(1.5,))),
    "task_arithmetic": call("task_arithmetic", weight=W, lam=0.7),
    "ties": call("ties", weight=W, density=D, lam=0.7),
    "ties_majority": call("ties", weight=W, density=D, zero_sign="majority", elect="normfrac", aggregate="max"),
    "ties_rescale": call("ties", weight=W, density=D, rescale=True, zero_sign="drop", elect="count", aggregate="sum", keep="threshold"),
    "ties_normmass": call("ties", weight=W, density=(1.0, 1.0, 1.0), elect="normmass"),
    "dare_linear": call("dare_linear", weight=W, density=D),
    "dare_ties": call("dare_ties", weight=W, density=D, lam=0.7, rescale_by="l1"),
    "della": call("della", weight=W, density=D, epsilon=EPS),
    "della_linear": call("della_linear", weight=W, density=D, epsilon=EPS, rescale=False),
    "breadcrumbs": first(call("breadcrumbs", weight=(0.7,), density=(0.5,), gamma=(0.01,), rescale=True)),
    "breadcrumbs_rows": first(call("breadcrumbs", weight=(0.7,), density=(0.5,), gamma=(0.01,), scope="row")),
    "breadcrumbs_ties": first(call("breadcrumbs_ties", weight=(0.7,), density=(0.5,), gamma=(0.01,), normalize=True)),
    "sce": call("sce", select_topk=0.3),
    "sce_weights_only": call("sce", select_topk=0.3, select_applies_to="weights_only"),
    "varm": call("varm", statistic="abs"),
    "arcee_fusion": pair(call("arcee_fusion")),
    "pcb": first(call("pcb", weight=(0.7,), ratio=0.2, lam=0.7)),
    "localize_stitch": first(call("localize_stitch", density=(0.3,))),
    "widen": call("widen", above_average_value_ratio=1.1, score_calibration_value=0.9),
    "widen_tokens": Case("widen", lambda t, /, **_: METHODS["widen"].build(replace(t, name="model.embed_tokens.weight"))),
    "uniform_soup": call("uniform_soup"),
    "nuslerp_rows": Case("nuslerp", lambda t, /, **_: METHODS["nuslerp"].build(t.only([0, 1]), weight=(0.7, 0.4), axis="in")),
    "nuslerp_columns": Case("nuslerp", lambda t, /, **_: METHODS["nuslerp"].build(t.only([0, 1]), weight=(0.7, 0.4), axis="out")),
    "multislerp": call("multislerp", weight=W),
    "karcher": call("karcher", weight=W, task_vectors=True),
    "nearswap": pair(call("nearswap", t=0.05)),
    "expo": pair(call("expo", alpha=0.3)),
    "magmax": call("magmax", lam=0.7),
    "ram": call("ram", epsilon=0.05),
    "ramplus_tl": call("ramplus_tl", epsilon=0.05),
    "emr": call("emr", lam=0.7),
    "consensus": call("consensus", k=2, tall_lambda=D, lam=0.7),
    "fisher": told("fisher", weight=W),
    "led": told("led", weight=W, density=D, lam=0.7),
    "sens": told("sens", density=(1.0, 1.0, 1.0)),
    "slerp": pair(call("slerp", t=0.3)),
    "model_stock_angle": call("model_stock", angle_mean="angle", filter_wise=True),
    "model_stock": call("model_stock", clamp=True),
    "model_stock_rows": call("model_stock", filter_wise=True),
    "iso_c": call("iso_c", lam=0.7),
    "iso_cts": call("iso_cts"),
    "tsv_m": call("tsv_m", weight=W),
    "star": call("star"),
    "knots": call("knots", topk=40.0, aggregate="max"),
    "drm": call("drm", coefficient=(1.0, 0.5, 2.0)),
    "opcm": call("opcm"),
    "doge_ta": call("doge_ta"),
    "svc": step("svc"),
    "wsc_l1": step("magic_wsc"),
    "wsc_l2": step("magic_wsc", norm="L2", target_scale=1.5),
    "wsc_linf": step("magic_wsc", norm="Linf", sensitive="rule"),
    "wsc_ellipsoid": step("magic_wsc", rule="ellipsoid"),
}
_TURN = list(DTYPES)
#: Each case in one combination of dtypes, in turn; the others take minutes to compile.
SUBSET = [pytest.param(name, _TURN[i % 4], id=f"{name}-{_TURN[i % 4]}") for i, name in enumerate(CASES)]
REST = [pytest.param(n, d, id=f"{n}-{d}", marks=pytest.mark.slow) for i, n in enumerate(CASES) for d in DTYPES if d != _TURN[i % 4]]


def lowered(case: Case, dtypes: str, **change: Any) -> Program:
    """The program of a case over one tensor of four models; the output has the base's dtype."""
    leaves = [load((name, "w.weight", 0, 0), SHAPE, dtype) for name, dtype in zip("bxyz", DTYPES[dtypes], strict=True)]
    t = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y", "z"), SHAPE, "layers.0.w.weight", "mlp")
    return lower(case.build(t, **change), DTYPES[dtypes][0], leaves)


def random_bits(storage: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Weights as they occur: a few of them equal, so that ties and zero deltas occur too."""
    x = rng.standard_normal(n).astype(np.float32) * np.float32(0.1)
    x[::7] = np.float32(0.125)
    return encode(x, storage)


SPECIAL = np.array([np.nan, np.inf, -np.inf, -0.0, 0.0, 1e-40, -1e-40, 1e-45, 6e-8, 65504.0, -65520.0, 3.3e38, -3.3e38, 1.0, -1.0, 1.5e-38], np.float32)


def special_bits(storage: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """Ordinary weights with every special value strewn in, in other places for every input."""
    with np.errstate(over="ignore"):
        stored = {"F32": SPECIAL, "F16": SPECIAL.astype(np.float16).view(np.uint16), "BF16": (SPECIAL.view(np.uint32) >> 16).astype(np.uint16)}[storage]
    bits = random_bits(storage, n, rng)
    places = rng.permutation(n)[: n // 3]
    bits[places] = stored[rng.integers(0, SPECIAL.size, places.size)]
    return bits


def small_values(program: Program, start: int, n: int) -> dict[int, Any]:
    """Plausible values for the numbers that the host would have computed, among them a threshold that many elements equal."""
    values: dict[int, Any] = {}
    for i, node in enumerate(program.nodes):
        if node.space != "small":
            continue
        if node.op == "const":
            values[i] = np.float64(node.param("value"))
        elif node.op == "solve" and node.shape and node.shape[0] > 2:
            values[i] = np.floor(np.linspace(0.3, 0.8, node.shape[0]) * 2**32)
        elif len(node.shape) == 2:
            values[i] = np.linspace(0.0, 1.0, node.shape[0] * node.shape[1]).reshape(node.shape)
        elif len(node.shape) == 1 and node.shape[0] > 2:
            values[i] = np.linspace(0.3, 0.8, node.shape[0])
        elif node.op == "item" and program.nodes[node.inputs[0]].op == "kth_magnitude":
            values[i] = np.float64(0x3D800000 if node.param("index") == 0 else start + n // 2)
        elif not node.shape:
            values[i] = np.float64(0.7)
    return values


def run_block(program: Program, stage: Stage, backend: str, inputs: list[np.ndarray], start: int, n: int) -> dict[str, Any]:
    """Everything that one block gives; bits of floats, histograms with all NaNs in one bin."""
    kernel = generate(program, stage)
    scratch = np.zeros(scratch_bytes(program.nodes, stage), np.uint8) if backend == "numba" else None
    runner = make_runner(program, stage, backend, kernel, scratch)
    out = np.zeros(n, RAW[program.dtype]) if stage.store else None
    keeps = [np.zeros(n, np.float32) for _ in stage.keeps]
    residents = [np.linspace(-1, 1, n, dtype=np.float32) for _ in stage.residents]
    streams = [(1, 2, 3, i) for i in range(len(kernel.streams))]
    windows = ([Window(0x3D800000, NARROW, 0), Window(), Window(0x3F7F0000)] * 4)[: len(kernel.selects)]
    data = BlockData(n, start, inputs, residents, out, keeps, small_values(program, start, n), streams, windows)
    result = runner.run(data)
    found: dict[str, Any] = {"sums": np.array(result.sums, np.float64)}
    if out is not None:
        found["out"] = decode(out, program.dtype)
    found.update({f"keep{i}": x for i, x in enumerate(keeps)})
    found.update({f"columns{k}": x for k, x in enumerate(result.columns)})
    found.update({f"rows{k}": x for k, x in enumerate(result.rows)})
    for k, counts in enumerate(result.counts):
        if counts.coarse is not None:
            found[f"coarse{k}"] = np.append(counts.coarse[:0x7F80], counts.coarse[0x7F80:].sum())
        else:
            places = counts.places if counts.dense is None else np.flatnonzero(counts.dense)
            fine = counts.fine if counts.dense is None else counts.dense[places]
            assert places is not None
            assert fine is not None
            found[f"fine{k}"] = np.concatenate([[counts.above], places, fine])
    return found


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, one NaN like another."""
    if a.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    bits = np.uint32 if a.dtype == np.float32 else np.uint64
    return a.shape == b.shape and bool(np.all((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))))


def assert_same_bits(name: str, dtypes: str, fill: Callable[..., np.ndarray], start: int, n: int) -> None:
    program = lowered(CASES[name], dtypes)
    assert program.stages
    for number, stage in enumerate(program.stages):
        rng = np.random.default_rng(number)
        inputs = [fill(str(program.nodes[i].param("storage")), n, rng) for i in stage.loads]
        with np.errstate(all="ignore"):
            got, expected = (run_block(program, stage, backend, inputs, start, n) for backend in ("numba", "torch"))
        assert expected.keys() == got.keys()
        wrong = [key for key in expected if not same(got[key], expected[key])]
        assert not wrong, f"stage {number}: {', '.join(wrong)} differ"


@pytest.mark.parametrize("fill", [random_bits, special_bits])
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_many_inner_products_are_swept_together(dtype: str, fill: Callable[..., np.ndarray]):
    """Eight tensors have 36 inner products, more than one sweep has registers for: each has the bits of its own sum."""
    leaves = [load((name, "w.weight", 0, 0), SHAPE, dtype) for name in "abcdefgh"]
    products = [dot(a, b) for n, a in enumerate(leaves) for b in leaves[n:]]
    program = lower(leaves[0] * reduce(add, products), dtype, leaves)
    stage = program.stages[0]
    assert generate(program, stage).source.count("sum_sweep((") == 2
    rng = np.random.default_rng(7)
    inputs = [fill(dtype, 1301, rng) for _ in leaves]
    with np.errstate(all="ignore"):
        got, expected = (run_block(program, stage, backend, inputs, 0, 1301)["sums"] for backend in ("numba", "torch"))
    assert got.size == 36
    assert same(got, expected)


START, COUNT = FIRST_ROW * SHAPE[1], ROWS * SHAPE[1]


def looking_up(*, both: bool) -> Program:
    """A table of thresholds that masks are compared with, and whose entries are perhaps values, too."""
    x = load(("x", "w.weight", 0, 0), SHAPE, "F32")
    rank = row_rank(x)
    table = solve("keep_thresholds", shape=(SHAPE[1],), density=0.5, epsilon=0.1, length=SHAPE[1])
    mask = below(drawn(x, 1, "drop", "x"), take(table, rank, integer=True))
    return lower(where(mask, take(table, rank) if both else x, 0.0), "F32", [x])


@pytest.mark.parametrize("both", [False, True])
def test_a_table_may_hold_integers_and_numbers(both: bool):
    """Whichever type the kernel takes it in, the bits are those of the interpreter."""
    program = looking_up(both=both)
    inputs = [random_bits("F32", COUNT, np.random.default_rng(1))]
    got, expected = (run_block(program, program.stages[0], backend, inputs, START, COUNT)["out"] for backend in ("numba", "torch"))
    assert same(got, expected)
    assert 0 < np.count_nonzero(got) < COUNT


@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("entry", [-1.0, 0.5, 2.0**32, np.nan])
def test_a_table_of_other_numbers_than_32_bit_integers_is_refused(monkeypatch: pytest.MonkeyPatch, backend: str, entry: float):
    """A method that would look up what a comparison of 32 bits cannot hold is told so."""
    program = looking_up(both=False)
    monkeypatch.setitem(
        globals(),
        "small_values",
        lambda program, *_: (
            {i: np.full(SHAPE[1], entry) for i, node in enumerate(program.nodes) if node.op == "solve"}
            | {i: np.float64(0.0) for i, node in enumerate(program.nodes) if node.op == "const"}
        ),
    )
    with pytest.raises(KernelError, match=r"integer=True\) holds .*; its entries must be whole numbers from 0 to 4294967295"):
        run_block(program, program.stages[0], backend, [random_bits("F32", COUNT, np.random.default_rng(1))], START, COUNT)


@pytest.mark.parametrize(("name", "wide"), [("linear", False), ("ties", False), ("dare_linear", True), ("della", True), ("arcee_fusion", True), ("pcb", True)])
def test_kernels_with_much_arithmetic_ask_for_wide_vectors(name: str, wide: bool):
    """Where random bits or exponentials are computed; others are as fast in half the width."""
    program = lowered(CASES[name], "BF16")
    assert any("with_wide_vectors()" in generate(program, stage).source for stage in program.stages) == wide


def test_every_method_and_step_has_a_case():
    """A method that is added must be compared too."""
    assert {case.method for case in CASES.values()} == METHODS.keys() | STEPS.keys()


@pytest.mark.parametrize(("name", "dtypes"), SUBSET + REST)
def test_kernel_and_interpreter_agree_in_mid_tensor(name: str, dtypes: str):
    """A block of ordinary weights that begins inside the tensor: outputs, kept tensors, folds and histograms, bit for bit."""
    assert_same_bits(name, dtypes, random_bits, START, COUNT)


@pytest.mark.parametrize(("name", "dtypes"), SUBSET + REST)
def test_kernel_and_interpreter_agree_on_special_values(name: str, dtypes: str):
    """NaN, infinities, signed zeros, subnormals and overflow meet the same rules in both."""
    assert_same_bits(name, dtypes, special_bits, 0, COUNT)


@pytest.mark.parametrize("n", [1, 7, 8, 1023, 1025, 1301])
@pytest.mark.parametrize("name", ["linear", "ties_normmass", "slerp"])
def test_blocks_of_any_length_agree(name: str, n: int):
    """Lengths around the lanes and chunks of the reduction."""
    assert_same_bits(name, _TURN[list(CASES).index(name) % 4], random_bits, START, n)


def test_values_are_not_all_alike():
    """The comparison means something: a block's output has many values, and its sums are not zero."""
    program = lowered(CASES["slerp"], "F32")
    inputs = [random_bits("F32", COUNT, np.random.default_rng(i)) for i in range(2)]
    folds = run_block(program, program.stages[0], "torch", inputs, START, COUNT)
    out = run_block(program, program.stages[1], "torch", inputs, START, COUNT)
    assert np.all(folds["sums"] != 0)
    assert np.unique(out["out"]).size > COUNT // 2


#: Cases without weights or densities.
NO_WEIGHTS = {"passthrough", "model_stock", "model_stock_rows", "iso_c", "slerp", "arcee_fusion", "sce", "sce_weights_only", "varm", "widen", "widen_tokens"}


@pytest.mark.parametrize("name", [n for n in CASES if n not in NO_WEIGHTS])
def test_other_weights_need_no_other_kernel(name: str):
    """Numbers of a recipe are arguments of the kernel, so changing them compiles nothing (1 and 0, and equal ones, simplify)."""
    # for each element another number: equal literals are one node
    changes = [{"weight": (0.9, 0.3, 0.45), "density": (0.4, 0.35, 0.6), "lam": 0.7}, {"weight": (0.8, 0.2, 0.65), "density": (0.55, 0.25, 0.75), "lam": 1.3}]
    if name == "ties_normmass":
        changes = [{"weight": c["weight"], "lam": c["lam"]} for c in changes]
    one, two = ([generate(p, s).key for p in [lowered(CASES[name], "BF16", **change)] for s in p.stages] for change in changes)
    assert one == two


def test_other_t_and_lambda_need_no_other_kernel():
    """The same for the interpolation parameter of slerp and the scale of iso_c."""
    for name, change in (("slerp", {"t": 0.6}), ("iso_c", {"lam": 0.2})):
        p, q = lowered(CASES[name], "BF16"), lowered(CASES[name], "BF16", **change)
        assert [generate(p, s).key for s in p.stages] == [generate(q, s).key for s in q.stages]


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize("name", [name for name, m in METHODS.items() if any(p.name == "lambda" for p in m.params)])
def test_a_sweep_of_lambda_through_one_compiles_nothing(name: str, equal: bool):
    """Elsewhere factors of one are dropped; here that would mean another kernel for one value of a sweep, and seconds of waiting."""
    of_experts = {k for k, p in signature(METHODS[name].build).parameters.items() if p.annotation == "tuple[float, ...]"}
    each = {p.name: (p.default,) * 3 if equal else (0.3 * p.default, 0.45 * p.default, 0.6 * p.default) for p in METHODS[name].params if p.name in of_experts}
    programs = [lowered(told(name, lam=lam, **each), "BF16") for lam in (0.7, 1.0, -2.0)]
    assert programs[0].stages
    assert len({tuple(generate(p, s).key for s in p.stages) for p in programs}) == 1


# -- the cache on disk ------------------------------------------------------------------------------
_SCRIPT = """
import sys, numpy as np
from plait.engine.codegen import generate
from plait.engine.compile import cache_folder, compile_missing
from plait.engine.blockrun import BlockData, make_runner
from plait.ops.tensor import load
from plait.planner.program import lower
a, b = (load((n, "w", 0, 0), (64,), "F32") for n in "ab")
p = lower(a * 0.25 + b * 0.5, "F32", [a, b])
k = generate(p, p.stages[0])
made = compile_missing([k, k], 2)
x = np.arange(64, dtype=np.float32)
out = np.zeros(64, np.float32)
smalls = {i: n.param("value") for i, n in enumerate(p.nodes) if n.op == "const"}
make_runner(p, p.stages[0], "numba", k).run(BlockData(64, 0, [x, x], [], out, [], smalls, [], []))
assert np.array_equal(out, x * np.float32(0.75))
assert not {"numba", "torch"} & set(sys.modules)
print(cache_folder() / f"k_{k.key}.o", made)
"""


def run_script(cache: Path) -> tuple[Path, int]:
    """Compile and use a kernel in a process of its own: its file, and how many were compiled."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SCRIPT)], env={**os.environ, "PLAIT_CACHE_DIR": str(cache)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    path, made = done.stdout.split()
    return Path(path), int(made)


def test_cache(tmp_path: Path):
    """A second process compiles nothing; damaged machine code is made again, and right; Numba is in neither process."""
    path, made = run_script(tmp_path)
    assert path.is_relative_to(tmp_path)
    assert made == 1
    good = path.read_bytes()
    assert run_script(tmp_path) == (path, 0)
    path.write_bytes(good[: len(good) // 2])
    assert run_script(tmp_path) == (path, 1)
    assert path.stat().st_size > 100


def test_damaged_machine_code_is_made_again(monkeypatch: pytest.MonkeyPatch):
    """Whatever the damage: it is not loaded, and what takes its place is."""
    leaf = load(("a", "w", 0, 0), (64,), "F32")
    program = lower(leaf * 0.125 + 0.375, "F32", [leaf])
    kernel = generate(program, program.stages[0])
    monkeypatch.setattr(compiling, "_COMPILED", {})
    compile_missing([kernel], 1)
    path = cache_folder() / f"k_{kernel.key}.o"
    good = path.read_bytes()
    for damage in (good[: len(good) // 2], b"", b"\0" * len(good), good[:-1] + bytes([good[-1] ^ 1])):
        path.write_bytes(damage)
        for made in (1, 0):
            compiling._COMPILED.clear()
            assert compile_missing([kernel], 1) == made


def test_cache_that_cannot_be_written(tmp_path: Path):
    """A cache folder that cannot be made is no reason to fail."""
    (tmp_path / "file").write_text("in the way")
    path, made = run_script(tmp_path / "file" / "cache")
    assert not path.is_relative_to(tmp_path)
    assert made == 1


def test_a_kernel_that_does_not_compile_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    """In this process and in one of its own, the error names the file and says what to do."""
    for number, elsewhere in enumerate((False, True)):
        broken = Kernel(source=f"SIGNATURE = ()\n\n\ndef kernel():\n    return undefined_name{number}\n", key=f"broken{number}")
        monkeypatch.setattr(compiling, "compile_here", not elsewhere)
        with pytest.raises(KernelError, match=rf"k_broken{number}.py.*undefined_name{number}.*--backend torch"):
            compile_missing([broken], 1)
