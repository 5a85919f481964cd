"""What must hold for every merge: the same bits however it runs, identities, symmetries, exact counts, honest figures.

Blocks are made tiny here (64 elements, or a few rows), so that small tensors have many of them; the block size decides bits, and is
the same for every budget and number of workers.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from math import floor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import plait
import plait.planner.blocks
import plait.planner.memory
from plait.ops.method import methods
from plait.planner.cost import input_bytes
from plait.planner.sizes import MIB
from support.evaluate import raw, write_model
from support.strategies import DENSITIES, Family, families, wide

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]
Make = Callable[[plait.Model, list[plait.Model]], plait.Model]

BLOCK = 16


@pytest.fixture(autouse=True, scope="module")
def tiny_blocks() -> Iterator[None]:
    """Many blocks in small tensors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", BLOCK)
        yield


def examples(count: int) -> Any:
    return settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)


@contextmanager
def on_disk(family: Family, shards: int = 1) -> Iterator[tuple[Path, plait.Model, list[plait.Model]]]:
    """The family as checkpoints, opened, and a folder to write into."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = plait.open(write_model(folder / "base", family.base, shards))
        yield folder, base, [plait.open(write_model(folder / f"expert{k}", e, shards)) for k, e in enumerate(family.experts)]


def run(model: plait.Model, out: Path, **options: Any) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    plait.write(model, out, plait.Options(**{"memory": "1GiB", "workers": 1, "backend": "torch", **options}))
    return raw(out)


def values(family: Family, make: Make, **options: Any) -> dict[str, F64]:
    """The merged tensors."""
    with on_disk(family) as (folder, base, experts):
        found = run(make(base, experts), folder / "out", **options)
    return {name: wide(np.frombuffer(data, {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[code]).reshape(shape)) for name, (code, shape, data) in found.items()}


def call(name: str, **params: Any) -> Make:
    """A method of the catalogue over a base and experts."""
    uses_base = methods()[name].base != "unused"
    return lambda base, experts: getattr(plait.methods, name)(**({"base": base} if uses_base else {}), experts=experts, **params)


def deltas(family: Family) -> list[dict[str, F64]]:
    return [{n: (wide(e[n]) - wide(family.base[n])) for n in family.names} for e in family.experts]


# -- however it runs -----------------------------------------------------------------------------------


def calibrated(base: plait.Model, experts: list[plait.Model]) -> plait.Model:
    merged = plait.methods.della(base=base, experts=experts, density=0.6, epsilon=0.2)
    return plait.methods.magic_wsc(merged, base=base, experts=experts, norm="L2")


RUNS: dict[str, tuple[tuple[str, ...], Make]] = {
    "linear": (("F32", "F16", "BF16"), call("linear", weight=[0.3, 0.9])),
    "slerp": (("BF16", "F16"), call("slerp", t=0.3)),
    "ties": (("BF16", "BF16", "BF16"), call("ties", density=[0.5, 0.29], weight=[0.7, 0.4])),
    "ties_global": (("BF16", "BF16", "BF16"), call("ties", density=0.29, scope="global", zero_sign="majority", elect="normmass")),
    "dare_ties": (("F32", "BF16", "F32"), call("dare_ties", density=0.57, seed=3, rescale_by="l1")),
    "della_and_magic": (("F16", "F16", "F16"), calibrated),
    "model_stock": (("BF16", "BF16", "F32"), call("model_stock")),
    "iso_c": (("F32", "F32", "F32"), call("iso_c", lam=0.7)),
    "breadcrumbs": (("BF16", "BF16"), call("breadcrumbs", density=0.5, gamma=0.1, scope="global")),
    "sce": (("BF16", "F16", "BF16"), call("sce", select_topk=0.4)),
    "arcee_fusion": (("BF16", "BF16"), call("arcee_fusion")),
    "pcb": (("F32", "BF16"), call("pcb", ratio=0.3, scope="global")),
    "widen": (("BF16", "F16", "BF16"), call("widen")),
    "nuslerp_in": (("BF16", "F16", "F32"), call("nuslerp", weight=[0.7, 0.4], axis="in")),
    "nuslerp_out": (("BF16", "F16", "F32"), call("nuslerp", weight=[0.7, 0.4], axis="out")),
    "karcher": (("BF16", "BF16", "BF16"), call("karcher", weight=[0.7, 0.4], task_vectors=True)),
    "ramplus_global": (("BF16", "BF16", "BF16"), call("ramplus_tl", epsilon=1.0, scope="global")),
    "consensus_ties": (("F16", "F16", "F16"), call("consensus", vector="ties", scope="global", density=0.5, k=1)),
    "fisher": (("BF16", "BF16", "BF16"), lambda base, experts: plait.methods.fisher(experts=experts, importance=[base, experts[0]])),
    "led": (
        ("F16", "BF16", "F32"),
        lambda base, experts: plait.methods.led(base=base, experts=experts, importance=experts, base_importance=[base, experts[0]], density=[0.5, 0.29]),
    ),
}


#: Those that are compiled, too: each kind of op is among them, and every method's kernels are compared in tests/engine/test_codegen.py.
COMPILED = {"linear", "slerp", "ties", "ties_global", "dare_ties", "della_and_magic", "iso_c", "breadcrumbs", "pcb", "widen", "nuslerp_in", "nuslerp_out"}
BACKENDS = [pytest.param(n, b, id=f"{n}-{b}", marks=[pytest.mark.slow] if b == "numba" and n not in COMPILED else []) for n in RUNS for b in ("torch", "numba")]


@pytest.mark.parametrize(("name", "backend"), BACKENDS)
def test_bits_do_not_depend_on_how_it_runs(name: str, backend: str):
    """Any budget that works, 1 to 4 workers, sharded or not on either side, inputs kept or re-read, either backend: the same bits."""
    codes, make = RUNS[name]

    @examples(5)
    @given(
        family=families(codes),
        extra=st.sampled_from([0, 1, 3 * MIB, 40 * MIB]),
        workers=st.integers(1, 4),
        shard_size=st.sampled_from([1, 300, "5GB"]),
        shards=st.integers(1, 3),
        residency=st.sampled_from(["keep", "reread"]),
    )
    def check(family: Family, extra: int, workers: int, shard_size: Any, shards: int, residency: str) -> None:
        with on_disk(family, min(shards, len(family.names))) as (folder, base, experts):
            model = make(base, experts)
            wanted = run(model, folder / "reference")
            least = plait.plan_model(model, plait.Options(memory="1GiB", backend=backend)).prediction.minimum_bytes
            how = {"memory": least + extra, "workers": workers, "shard_size": shard_size, "backend": backend, "residency": residency}
            assert run(model, folder / backend, **how) == wanted
            with pytest.raises(plait.BudgetTooSmall):
                plait.plan_model(model, plait.Options(memory=least - 1, backend=backend))

    check()


# -- one expert ------------------------------------------------------------------------------------------

ALONE: dict[str, Make] = {
    "linear": call("linear"),
    "linear unnormalised": call("linear", normalize=False),
    "linear weight 0.3": call("linear", weight=0.3),
    "passthrough": call("passthrough"),
    "task_arithmetic": call("task_arithmetic"),
    "ties": call("ties"),
    "ties global": call("ties", scope="global", zero_sign="majority"),
    "ties sum": call("ties", aggregate="sum", normalize=False),
    "dare_linear": call("dare_linear"),
    "dare_ties": call("dare_ties"),
    "della": call("della"),
    "della_linear": call("della_linear"),
    "slerp": call("slerp", t=1.0),
    "breadcrumbs": call("breadcrumbs", gamma=0.0),
    "breadcrumbs_ties": call("breadcrumbs_ties", gamma=0.0, normalize=True),
    "sce": call("sce"),
    "varm": call("varm"),
    "widen": call("widen"),
    "uniform_soup": call("uniform_soup"),
    "multislerp": call("multislerp"),
    "karcher": call("karcher", task_vectors=True),
    "expo": call("expo", alpha=0.0),
    "magmax": call("magmax", lam=1.0),
    "emr": call("emr"),
    "consensus": call("consensus", k=0),
    "fisher": lambda base, experts: plait.methods.fisher(experts=experts, importance=[base]),
}


@pytest.mark.parametrize("codes", [("F32", "F32"), ("BF16", "BF16"), ("F16", "F16"), ("BF16", "F32"), ("F32", "BF16")], ids="-".join)
def test_an_expert_alone_gives_itself(codes: tuple[str, str]):
    """Merged alone with weight 1 (and density 1) an expert is the output bit for bit, whatever the base and its magnitudes."""

    @examples(6)
    @given(family=families(codes, spread=True))
    def check(family: Family) -> None:
        expected = {n: wide(t) for n, t in family.experts[0].items()}
        with on_disk(family) as (folder, base, experts):
            for name, make in ALONE.items():
                got = run(make(base, experts), folder / name.replace(" ", "_"))
                for tensor, (code, shape, data) in got.items():
                    dtype = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}[code]
                    merged = np.frombuffer(data, dtype).reshape(shape)
                    assert wide(merged).tobytes() == expected[tensor].tobytes(), (name, tensor)

    check()


@pytest.mark.parametrize("name", ["linear", "passthrough", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "slerp"])
def test_an_expert_alone_is_copied(name: str):
    """The same as a plan: every byte is copied undecoded, in one pass, and the base is not read."""

    @examples(3)
    @given(family=families(("F32", "F32")))
    def check(family: Family) -> None:
        with on_disk(family) as (_, base, experts):
            planned = plait.plan_model(ALONE[name](base, experts), memory="1GiB").prediction
            size = sum(t.nbytes for t in family.experts[0].values())
            assert (planned.bytes_copied, planned.bytes_read, planned.bytes_written) == (size, size, size)

    check()


# -- nothing to merge ------------------------------------------------------------------------------------

EVERY: dict[str, Make] = {
    "linear": call("linear", weight=[0.3, 0.9]),
    "task_arithmetic": call("task_arithmetic", weight=[0.3, 0.9], lam=0.7),
    "ties": call("ties", density=0.5, lam=0.7),
    "ties global": call("ties", density=0.5, scope="global", elect="normfrac", zero_sign="majority"),
    "ties l1": call("ties", density=0.5, rescale=True),
    "dare_linear": call("dare_linear", density=0.5),
    "dare_ties": call("dare_ties", density=0.5, rescale_by="l1"),
    "della": call("della", density=0.5),
    "della_linear": call("della_linear", density=0.5),
    "model_stock": call("model_stock"),
    "model_stock rows": call("model_stock", filter_wise=True),
    "iso_c": call("iso_c"),
    "uniform_soup": call("uniform_soup"),
    "nuslerp": call("nuslerp", weight=[0.3, 0.9]),
    "nuslerp in": call("nuslerp", weight=[0.3, 0.9], axis="in"),
    "nuslerp out": call("nuslerp", weight=[0.3, 0.9], axis="out"),
    "multislerp": call("multislerp"),
    "karcher": call("karcher", task_vectors=True),
    "magmax": call("magmax"),
    "ram": call("ram"),
    "ramplus_tl": call("ramplus_tl"),
    "emr": call("emr", lam=0.7),
    "consensus": call("consensus"),
    "consensus ties": call("consensus", vector="ties", density=0.5, k=1, scope="global"),
    "led": lambda base, experts: plait.methods.led(base=base, experts=experts, importance=experts, base_importance=experts),
    "della and magic_wsc": calibrated,
    "magic_wsc ellipsoid": lambda base, experts: plait.methods.magic_wsc(
        plait.methods.ties(base=base, experts=experts), base=base, experts=experts, rule="ellipsoid"
    ),
    "breadcrumbs": call("breadcrumbs", density=0.5, gamma=0.1),
    "breadcrumbs rows": call("breadcrumbs", density=0.5, gamma=0.1, scope="row"),
    "breadcrumbs_ties global": call("breadcrumbs_ties", density=0.5, gamma=0.1, scope="global"),
    "sce": call("sce", select_topk=0.5),
    "sce weights": call("sce", select_topk=0.5, select_applies_to="weights_only"),
    "varm": call("varm"),
    "pcb A": call("pcb", variant="A"),
    "pcb B": call("pcb", variant="B"),
    "pcb C": call("pcb", ratio=0.5, scope="global"),
    "localize_stitch": call("localize_stitch"),
    "widen": call("widen"),
    "magic_wsc sphere": lambda base, experts: plait.methods.magic_wsc(plait.methods.linear(experts=experts), base=base, experts=experts),
}


@pytest.mark.parametrize("name", EVERY)
def test_experts_equal_to_the_base_give_the_base(name: str):
    """Zero task vectors: no 0/0 anywhere, the base comes out (averages of equal models may round once)."""

    @examples(4)
    @given(family=families(("F32", "F32", "F32")))
    def check(family: Family) -> None:
        got = values(Family(family.base, (family.base, family.base)), EVERY[name])
        for tensor, merged in got.items():
            wanted = wide(family.base[tensor])
            off = np.abs(merged - wanted) - (2.0**-23 * np.abs(wanted) if name in ("linear", "varm", "uniform_soup", "magic_wsc sphere") else 0.0)
            assert (off <= 0).all(), tensor

    check()


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "model_stock", "model_stock rows", "sce", "sce weights", "varm", "localize_stitch"])
def test_identical_experts_give_that_expert(name: str):
    """Three copies of an expert are the expert: averages of equal values, signs that agree, a cosine of 1."""
    make = {
        **EVERY,
        "linear": call("linear"),
        "task_arithmetic": call("task_arithmetic", normalize=True),
        "ties": call("ties"),
        "localize_stitch": call("localize_stitch", density=1.0),
    }[name]

    @examples(4)
    @given(family=families(("F32", "F32")))
    def check(family: Family) -> None:
        got = values(Family(family.base, family.experts * 3), make)
        for tensor, merged in got.items():
            wanted, base = wide(family.experts[0][tensor]), wide(family.base[tensor])
            assert (np.abs(merged - wanted) <= 2.0**-22 * (np.abs(wanted) + np.abs(base))).all(), tensor

    check()


@pytest.mark.parametrize("name", ["ties", "dare_linear", "dare_ties"])
def test_density_0_gives_the_base_and_density_1_drops_nothing(name: str):
    """Density 0 keeps nothing of any expert; density 1 is the same method without trimming or masks, whatever the seed or scope."""

    @examples(4)
    @given(family=families(("F32", "BF16", "F32")))
    def check(family: Family) -> None:
        for tensor, merged in values(family, call(name, density=0.0)).items():
            assert (merged == wide(family.base[tensor])).all()
        whole = call("task_arithmetic") if name == "dare_linear" else call("ties", normalize=name == "ties")
        other = {"scope": "global"} if name == "ties" else {"seed": 11}
        wanted, got = values(family, whole), values(family, call(name, density=1.0, **other))
        assert all(got[n].tobytes() == wanted[n].tobytes() for n in wanted)

    check()


# -- order ---------------------------------------------------------------------------------------------------

#: Parameters under which the methods with a continuous result are compared for three experts.
SMOOTH: dict[str, dict[str, Any]] = {
    "linear": {},
    "task_arithmetic": {},
    "dare_linear": {"density": 0.5},
    "della_linear": {"density": 0.5},
    "model_stock": {},
    "breadcrumbs": {"density": 0.5, "gamma": 0.1},
    "varm": {},
    "localize_stitch": {"density": 0.5},
    "widen": {},
    "uniform_soup": {},
    "multislerp": {},
    "karcher": {"task_vectors": True},
    "ram": {"epsilon": 0.5},
    "ramplus_tl": {"epsilon": 0.5},
}
#: The same for methods that take two.
PAIRS: dict[str, dict[str, Any]] = {"nuslerp": {"axis": "in"}}
ELECTING: dict[str, dict[str, Any]] = {
    "ties": {"density": 0.5},
    "dare_ties": {"density": 0.5},
    "della": {"density": 0.5, "epsilon": 0.2},
    "breadcrumbs_ties": {"density": 0.5, "gamma": 0.1},
    "emr": {},
    "consensus": {},
}
#: Scores of experts that exchange places may differ in the last place, and with them what is selected.
SCORING: dict[str, dict[str, Any]] = {"sce": {"select_topk": 0.5}, "pcb": {"ratio": 0.5}}


#: Compared in tests/ops/test_spectral_methods.py: their decompositions round differently for another order.
SPECTRAL = {"iso_cts", "tsv_m", "star", "knots", "drm", "doge_ta"}


def test_every_method_is_in_a_test_of_order():
    """Each registered method says whether order matters and is tested for it."""
    symmetric = {name for name, m in methods().items() if m.symmetric and m.experts != (1, 1) and not m.statistics}
    assert symmetric == {*SMOOTH, *PAIRS, *ELECTING, *SCORING, "iso_c", *SPECTRAL}
    assert {name for name, m in methods().items() if not m.symmetric} == {"slerp", "arcee_fusion", "nearswap", "expo", "magmax", "opcm"}


def opposed(a: F64, b: F64) -> bool:
    """Whether two vectors point in opposite directions."""
    return float((a * b).sum()) < -0.9999 * float(np.linalg.norm(a) * np.linalg.norm(b))


@pytest.mark.parametrize("name", [*SMOOTH, *PAIRS, *ELECTING, *SCORING, "iso_c"])
def test_two_experts_of_equal_weight_may_change_places(name: str):
    """Sums of two numbers commute: the same bits. Between opposite directions every way is as short, and Karcher's mean is the first's."""

    @examples(4)
    @given(family=families(("F32", "F32", "F32")))
    def check(family: Family) -> None:
        assume(name != "karcher" or not any(opposed(*(d[tensor] for d in deltas(family))) for tensor in family.base))
        make = call(name, **{**SMOOTH, **PAIRS, **ELECTING, **SCORING}.get(name, {}))
        with on_disk(family) as (folder, base, experts):
            assert run(make(base, experts), folder / "a") == run(make(base, experts[::-1]), folder / "b")

    check()


@pytest.mark.parametrize("name", SMOOTH)
def test_experts_may_stand_in_any_order(name: str):
    """Three experts and their weights in another order: within 2^-21 of the largest magnitudes that are added."""

    @examples(4)
    @given(family=families(("F32", "F32", "F32", "F32")), order=st.permutations(range(3)))
    def check(family: Family, order: list[int]) -> None:
        weight = [0.3, 0.5, 0.9]
        weighted = methods()[name].param("weight") is not None
        found = []
        with on_disk(family) as (folder, base, experts):
            for number, places in enumerate(([0, 1, 2], order)):
                params = {**SMOOTH[name], **({"weight": [weight[p] for p in places]} if weighted else {})}
                out = run(call(name, **params)(base, [experts[p] for p in places]), folder / str(number))
                found.append({n: np.frombuffer(data, "<f4").reshape(shape).astype(np.float64) for n, (_, shape, data) in out.items()})
        for tensor, merged in found[0].items():
            size = np.abs(wide(family.base[tensor])) + sum(4 * np.abs(d[tensor]) for d in deltas(family))
            assert (np.abs(merged - found[1][tensor]) <= 2.0**-21 * size).all(), tensor

    check()


@pytest.mark.parametrize("name", ELECTING)
def test_elections_do_not_depend_on_order(name: str):
    """On values whose sums are exact no vote depends on rounding: three experts in any order elect the same, bit for bit but for the mean."""

    @examples(4)
    @given(family=families(("BF16", "BF16", "BF16", "BF16"), grid=16), order=st.permutations(range(3)))
    def check(family: Family, order: list[int]) -> None:
        exact = {key: False for key in ("normalize", "rescale") if methods()[name].param(key) is not None}
        make = call(name, **ELECTING[name], **exact)
        with on_disk(family) as (folder, base, experts):
            first = run(make(base, experts), folder / "a")
            assert run(make(base, [experts[p] for p in order]), folder / "b") == first

    check()


# -- exact counts and thresholds, against a full sort ------------------------------------------------------------


def keep_first(delta: dict[str, F64], density: float, scope: str) -> dict[str, npt.NDArray[np.bool_]]:
    """Which elements a full sort keeps: the largest magnitudes, of equal ones the first by name, then by index."""
    groups = [sorted(delta)] if scope == "global" else [[name] for name in delta]
    kept: dict[str, npt.NDArray[np.bool_]] = {}
    for names in groups:
        flat = np.concatenate([np.abs(delta[n]).reshape(-1) for n in names])
        count = max(floor(Fraction(repr(density)) * flat.size), 1) if flat.size else 0
        mask = np.zeros(flat.size, bool)
        mask[np.argsort(-flat, kind="stable")[:count]] = True
        for name in names:
            kept[name], mask = mask[: delta[name].size].reshape(delta[name].shape), mask[delta[name].size :]
    return kept


@pytest.mark.parametrize("keep", [0.0, 0.25])
@pytest.mark.parametrize("backend", ["numba", "torch"])
@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_ties_keeps_exactly_the_largest(scope: str, backend: str, keep: float):
    """floor(d n) elements, at least one, and just those of a full sort in canonical order, however many are equal."""

    @examples(8)
    @given(family=families(("BF16", "BF16"), grid=4), density=st.sampled_from(DENSITIES), workers=st.integers(1, 3))
    def check(family: Family, density: float, workers: int) -> None:
        zero = Family({n: np.zeros_like(t) for n, t in family.base.items()}, family.experts)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plait.planner.memory, "KEEP_SHARE", keep)
            got = values(zero, call("ties", density=density, scope=scope), backend=backend, workers=workers)
        delta = deltas(zero)[0]
        kept = keep_first(delta, density, scope)
        for name, merged in got.items():
            assert (merged == np.where(kept[name], delta[name], 0.0)).all(), name

    check()


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_ties_is_what_the_formula_says(scope: str):
    """Trim, elect, disjoint mean of two experts with densities of their own, in exact arithmetic: every element equal."""

    @examples(8)
    @given(family=families(("F32", "BF16", "F16"), grid=8), density=st.tuples(*[st.sampled_from(DENSITIES)] * 2))
    def check(family: Family, density: tuple[float, float]) -> None:
        got = values(family, call("ties", density=list(density), scope=scope), backend="torch")
        kept = [keep_first(d, share, scope) for d, share in zip(deltas(family), density, strict=True)]
        for name, merged in got.items():
            parts = np.stack([np.where(k[name], d[name], 0.0) for k, d in zip(kept, deltas(family), strict=True)])
            sign = np.where(parts.sum(0) >= 0, 1.0, -1.0)
            agree = parts * sign > 0
            mean = (parts * agree).sum(0) / np.maximum(agree.sum(0), 1)
            assert (merged == wide(family.base[name]) + mean).all(), name

    check()


def test_a_missed_digit_costs_a_pass_and_no_bit():
    """A tensor whose sample foretells the wrong digit is counted again: more bytes, the same exact threshold."""
    random = np.random.default_rng(0)
    pieces, piece = plait.planner.blocks.SAMPLE_PIECES, plait.planner.blocks.SAMPLE_PIECE
    size = 3 * pieces * piece
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", 1 << 14)
        patch.setattr(plait.planner.memory, "KEEP_SHARE", 0.0)
        step = (size - piece) // (pieces - 1)
        sampled = np.zeros(size, bool)
        for k in range(pieces):
            sampled[k * step : k * step + piece] = True
        delta = np.where(sampled, 1e-4, 1.0) * random.uniform(1, 2, size)
        base = {"w": np.zeros(size, np.float32)}
        family = Family(base, ({"w": delta.astype(np.float32)},))
        with on_disk(family) as (folder, opened, experts):
            model = call("ties", density=0.29)(opened, experts)
            options = plait.Options(memory="1GiB", workers=2)
            report = plait.write(model, folder / "out", options)
            merged = np.frombuffer(raw(folder / "out")["w"][2], "<f4").astype(np.float64)
    exact = deltas(family)[0]
    assert (merged == np.where(keep_first(exact, 0.29, "tensor")["w"], exact["w"], 0.0)).all()
    assert report.recounted == 1


@pytest.mark.parametrize("change", [{}, {"keep": "threshold", "zero_sign": "drop"}, {"rescale": True}], ids=["first", "all", "rescaled"])
def test_a_small_tensor_is_settled_by_its_sample(change: dict[str, Any]):
    """Taken from the values at once or counted in passes, thresholds and ties come out the same; and only the first way reads less."""

    @examples(15)
    @given(family=families(), density=st.sampled_from(DENSITIES))
    def check(family: Family, density: float) -> None:
        with on_disk(family) as (folder, opened, experts):
            model = call("ties", density=density, **change)(opened, experts)
            got, plans = {}, {}
            for limit in (0, 1 << 16):
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(plait.planner.blocks, "BLOCK", 1 << 20)
                    patch.setattr(plait.planner.blocks, "SEEN_WHOLE", limit)
                    options = plait.Options(memory="1GiB", workers=1, backend="torch", residency="reread")
                    plans[limit] = plait.plan_model(model, options).prediction
                    report = plait.write(model, folder / f"{limit}", options)
                    assert plans[limit].bytes_read <= report.bytes_read <= plans[limit].bytes_read + plans[limit].bytes_read_extra
                    got[limit] = raw(folder / f"{limit}")
            assert got[0] == got[1 << 16]
            assert (plans[1 << 16].bytes_read_extra == 0) == ("rescale" not in change)  # rescaling sums in the same pass

    check()


# -- random masks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_random_masks_keep_the_share_they_should(name: str):
    """Over 2^17 elements the kept count is within 6 standard deviations of density * n."""
    size = 1 << 17
    family = Family({"w": np.zeros((128, size // 128), np.float32)}, ({"w": np.ones((128, size // 128), np.float32)},))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plait.planner.blocks, "BLOCK", 1 << 16)
        for density in (0.2, 0.5, 0.8):
            kept = np.count_nonzero(values(family, call(name, density=density, **({"epsilon": 0.1} if name == "della_linear" else {})))["w"])
            assert abs(kept - density * size) < 6 * (size * density * (1 - density)) ** 0.5


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_masks_do_not_depend_on_other_experts_or_on_order(name: str):
    """Each expert's masked change is the same alone and in company, in any place: changes add up exactly."""

    @examples(5)
    @given(family=families(("F32", "F32", "F32", "F32"), grid=8), seed=st.integers(0, 99))
    def check(family: Family, seed: int) -> None:
        family = Family({n: np.zeros_like(t) for n, t in family.base.items()}, family.experts)
        with on_disk(family) as (folder, base, experts):
            number = itertools.count()

            def merged(chosen: list[plait.Model]) -> dict[str, F64]:
                model = call(name, density=0.5, seed=seed, rescale=False)(base, chosen)
                return {n: np.frombuffer(d, "<f4").reshape(s).astype(np.float64) for n, (_, s, d) in run(model, folder / str(next(number))).items()}

            alone = [merged([e]) for e in experts]
            for chosen in itertools.permutations(range(3), 2):
                together = merged([experts[c] for c in chosen])
                assert all((together[n] == sum(alone[c][n] for c in chosen)).all() for n in together)

    check()


def test_masks_of_models_tensors_and_seeds_differ():
    """Equal experts under two names, equal tensors under two names, and two seeds: about half of the bits differ each time."""
    ones = np.ones(4096, np.float32)
    model = {"a": ones, "b": ones}
    family = Family({n: np.zeros_like(t) for n, t in model.items()}, (model, model))
    with on_disk(family) as (folder, base, experts):

        def masks(expert: int, seed: int) -> dict[str, F64]:
            made = call("dare_linear", density=0.5, seed=seed, rescale=False)(base, [experts[expert]])
            return {n: np.frombuffer(d, "<f4").astype(np.float64) for n, (_, _, d) in run(made, folder / f"{expert}{seed}").items()}

        first = masks(0, 0)
        for other in (first["b"], masks(1, 0)["a"], masks(0, 1)["a"]):
            assert abs(np.mean(first["a"] != other) - 0.5) < 6 * 0.5 / 4096**0.5


@pytest.mark.parametrize(("della", "dare"), [("della_linear", "dare_linear"), ("della", "dare_ties")])
def test_della_without_epsilon_is_dare(della: str, dare: str):
    """One stream of random bits for both: the same bits out, also for densities whose 2^-32 fraction rounds differently."""

    @examples(6)
    @given(family=families(("BF16", "F32", "BF16")), density=st.sampled_from([0.001, 0.004, 0.079, 0.3, 0.5, 0.9, 1.0]), seed=st.integers(0, 9))
    def check(family: Family, density: float, seed: int) -> None:
        with on_disk(family) as (folder, base, experts):
            shared = {"density": density, "seed": seed, "normalize": False}
            a = run(call(della, epsilon=0.0, **shared)(base, experts), folder / "a")
            assert a == run(call(dare, **shared)(base, experts), folder / "b")

    check()


# -- figures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("residency", ["keep", "reread"])
@pytest.mark.parametrize("name", RUNS)
def test_bytes_are_as_predicted(name: str, residency: str):
    """Written exactly; read at least as predicted, and at most by the extra that order statistics may need."""
    codes, make = RUNS[name]

    @examples(4)
    @given(family=families(codes), workers=st.integers(1, 3))
    def check(family: Family, workers: int) -> None:
        with on_disk(family) as (folder, base, experts):
            model, options = make(base, experts), plait.Options(memory="1GiB", workers=workers, residency=residency, backend="torch")
            plan = plait.plan_model(model, options)
            report = plait.write(model, folder / "out", options)
        predicted = plan.prediction
        read = report.bytes_read
        assert report.bytes_written == predicted.bytes_written == sum(p.nbytes for p in plan.layout.places.values())
        assert predicted.bytes_read <= read <= predicted.bytes_read + predicted.bytes_read_extra
        assert report.leased_peak_bytes <= plan.budget_bytes
        if all(c.keep_inputs for c in plan.components):
            assert read == sum(input_bytes(plan.programs[c.program]) for c in plan.components)

    check()


def test_a_weight_of_zero_reads_nothing():
    """An expert without weight is not read, and the result is the same as without it."""

    @examples(4)
    @given(family=families(("F32", "F32", "F32")))
    def check(family: Family) -> None:
        assume(any(t.size for t in family.base.values()))
        one = Family(family.base, family.experts[:1])
        for name, params in {
            "linear": {},
            "task_arithmetic": {"lam": 0.7},
            "ties": {"density": 0.5},
            "dare_ties": {"density": 0.5},
            "della": {"density": 0.5},
        }.items():
            make = call(name, weight=[1.0, 0.0], **params)
            with on_disk(family) as (folder, base, experts):
                without = plait.plan_model(call(name, weight=[1.0], **params)(base, experts[:1]), memory="1GiB")
                assert plait.plan_model(make(base, experts), memory="1GiB").prediction.bytes_read == without.prediction.bytes_read
                assert run(make(base, experts), folder / "out") == run(call(name, weight=[1.0], **params)(base, experts[: len(one.experts)]), folder / "one")

    check()
