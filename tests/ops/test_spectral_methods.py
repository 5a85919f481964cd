"""Spectral, subspace and continual methods: the invariants of their papers, awkward shapes, and inputs that are degenerate.

Whole pipelines run: files, plan, engine, in float32 unless a test says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.ops.errors import PlanError, RecipeError
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods, steps
from plait.ops.tensor import LazyTensor
from support.evaluate import evaluate, stored_as, write_model, write_out
from support.stored import read_folder
from support.strategies import wide

Array = npt.NDArray[Any]
NAME = "model.layers.0.mlp.up_proj.weight"
#: Parameters under which a method is what its paper calls it; `doge_ta` with few steps, to be quick.
PARAMS: dict[str, dict[str, Any]] = {
    "iso_c": {},
    "iso_cts": {},
    "tsv_m": {},
    "knots": {"topk": 60.0},
    "star": {},
    "drm": {},
    "opcm": {},
    "doge_ta": {"steps": 5},
}
VERTICAL = {"direction": "vertical"}


def update(method: str, deltas: Sequence[Array], base: Array | None = None, step: str = "", **params: Any) -> Array:
    """What a method adds to the base (zeros where none is given, so that nothing is rounded away); `step` follows it."""
    base = np.zeros_like(deltas[0]) if base is None else base
    leaves = {"base": base, **{f"expert{k}": (base + d).astype(np.float32) for k, d in enumerate(deltas)}}
    wanted = {**PARAMS.get(method, {}), **params}

    def build(**nodes: LazyTensor) -> LazyTensor:
        experts = tuple(nodes[f"expert{k}"] for k in range(len(deltas)))
        t = MergeInputs(nodes["base"], experts, tuple(f"e{k}" for k in range(len(deltas))), base.shape, NAME, "mlp")
        if step:
            merged = methods()["task_arithmetic"].build(t, weight=(1.0 / len(deltas),) * len(deltas))
            result: LazyTensor = steps()[step].build(t, merged, **params)
            return result
        found = methods()[method]
        per_expert = {p.keyword: (wanted.pop(p.keyword, p.default),) * len(deltas) for p in found.params if p.per_expert}
        return found.build(t, **per_expert, **wanted)

    got: Array = evaluate({"out": leaves}, build, backend="torch")["out"]
    return got.astype(np.float64) - base


def deltas(count: int, shape: tuple[int, ...] = (12, 8), seed: int = 0) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for _ in range(count)]


def orthogonal(size: int, seed: int) -> Array:
    q: Array = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0]
    return q


def close(a: Array, b: Array, tolerance: float = 1e-4) -> bool:
    """Within a tolerance of the larger norm."""
    return float(np.linalg.norm(a - b)) <= tolerance * max(float(np.linalg.norm(a)), float(np.linalg.norm(b)), 1e-30)


shapes = st.sampled_from([(12, 8), (8, 12), (9, 9), (17, 5)])
seeds = st.integers(0, 10_000)


# -- the table of invariants -----------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "params"), [("tsv_m", {}), ("knots", {"topk": 100.0}), ("opcm", {}), ("star", {"eta": 100.0})])
@given(shapes, seeds)
@settings(max_examples=4, deadline=None)
def test_one_expert_comes_back(method: str, params: dict[str, Any], shape: tuple[int, int], seed: int):
    """K = 1 gives the expert, within the rounding of its decomposition."""
    (d,) = deltas(1, shape, seed)
    assert close(update(method, [d], **params), d, 1e-5)


def test_one_expert_is_flattened_or_truncated_by_the_others():
    """Iso-CTS of one expert is Iso-C; STAR keeps its leading part; DRM, hardly pruned, all but directions below 1e-2 of the largest."""
    (d,) = deltas(1)
    assert close(update("iso_cts", [d]), update("iso_c", [d]), 1e-5)
    assert 0.1 < np.linalg.norm(update("star", [d])) / np.linalg.norm(d) < 3
    assert close(update("drm", [d], drop_rate=1e-6), d, 2e-2)


@pytest.mark.parametrize("method", [m for m in PARAMS if m != "opcm"])
@given(shapes, seeds)
@settings(max_examples=3, deadline=None)
def test_the_order_of_the_experts_does_not_matter(method: str, shape: tuple[int, int], seed: int):
    """Permutations change rounding alone; OPCM, which goes by order, is not listed."""
    a, b, c = deltas(3, shape, seed)
    assert close(update(method, [a, b, c]), update(method, [c, a, b]), 2e-4)


def test_opcm_goes_by_order():
    """And says so in the catalogue."""
    a, b, c = deltas(3)
    assert not close(update("opcm", [a, b, c]), update("opcm", [c, a, b]), 1e-2)
    assert not methods()["opcm"].symmetric


@pytest.mark.parametrize("method", [m for m in PARAMS if m != "doge_ta"])
@given(st.sampled_from([0.125, 4.0]), seeds)
@settings(max_examples=3, deadline=None)
def test_scaled_task_vectors_give_a_scaled_update(method: str, factor: float, seed: int):
    """By a power of two, so that nothing else is rounded; DOGE scales every task vector to a norm of its own."""
    ds = deltas(3, seed=seed)
    assert close(update(method, [factor * d for d in ds]), factor * update(method, ds), 1e-5)


@pytest.mark.parametrize(
    ("method", "right"), [("iso_c", True), ("iso_cts", True), ("tsv_m", True), ("star", True), ("opcm", True), ("knots", False), ("drm", False)]
)
@given(seeds)
@settings(max_examples=3, deadline=None)
def test_rotated_task_vectors_give_a_rotated_update(method: str, right: bool, seed: int):
    """Q D R for orthogonal Q and R; methods that elect signs in right coordinates keep Q alone."""
    ds = deltas(3, (12, 8), seed)
    q, r = orthogonal(12, seed + 1), orthogonal(8, seed + 2) if right else np.eye(8)
    assert close(update(method, [(q @ d @ r).astype(np.float32) for d in ds]), q @ update(method, ds) @ r, 5e-4)


@pytest.mark.parametrize("method", PARAMS)
def test_zero_task_vectors_give_the_base(method: str):
    """Nothing is divided by zero."""
    base = deltas(1)[0]
    assert not update(method, [np.zeros_like(base)] * 3, base).any()


@pytest.mark.parametrize("method", PARAMS)
def test_identical_experts_have_a_defined_result(method: str):
    """Finite, and for the methods where it can be the shared update itself or its direction."""
    (d,) = deltas(1)
    got = update(method, [d, d, d])
    assert np.isfinite(got).all()
    if method == "opcm":
        assert close(got, d, 1e-4)  # what is added lies in the directions that are taken; the norm is the experts'
    if method == "tsv_m":  # each keeps the same r // 3 triplets, whose shared directions count once
        u, s, vh = np.linalg.svd(d.astype(np.float64), full_matrices=False)
        assert close(got, (u[:, :2] * s[:2]) @ vh[:2], 1e-4)
    if method == "knots":
        assert close(update(method, [d, d, d], topk=100.0), d, 1e-5)


@pytest.mark.parametrize("method", PARAMS)
def test_low_rank_updates_have_a_defined_result(method: str):
    """Rank 1 of 8, and rank 0: finite, in the experts' column space where the method only rotates."""
    rng = np.random.default_rng(3)
    ds = [np.outer(rng.standard_normal(12), rng.standard_normal(8)).astype(np.float32) for _ in range(2)]
    ds.append(np.zeros((12, 8), np.float32))
    got = update(method, ds)
    assert np.isfinite(got).all()
    if method not in ("doge_ta",):
        basis = np.linalg.qr(np.stack([d[:, 0] for d in ds[:2]], axis=1))[0]
        assert close(basis @ (basis.T @ got), got, 1e-4)


# -- shapes and dtypes --------------------------------------------------------------------------------------

AWKWARD = [(), (1,), (7,), (0,), (0, 4), (3, 0), (1, 6), (6, 1), (1, 1), (3, 4, 2), (4, 3, 2, 2), (2, 3, 2, 1, 2), (2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("method", PARAMS)
def test_every_shape_has_a_result(method: str, tmp_path: Path):
    """Scalars, vectors, empty tensors, convolutions: one merge of them all is finite and keeps shapes; one expert or five."""
    rng = np.random.default_rng(0)
    base = {f"model.layers.{i}.mlp.up_proj.weight": rng.standard_normal(s).astype(np.float32) for i, s in enumerate(AWKWARD)}
    for count in (1, 5):
        experts = [{n: (t + 0.1 * rng.standard_normal(t.shape)).astype(np.float32) for n, t in base.items()} for _ in range(count)]
        home = tmp_path / str(count)
        opened = [plait.open(write_model(home / f"m{k}", m)) for k, m in enumerate([base, *experts])]
        got = write_out(getattr(plait.methods, method)(base=opened[0], experts=opened[1:], **PARAMS[method]), home / "out", backend="torch")
        for name, t in base.items():
            assert got[name].shape == t.shape
            assert np.isfinite(got[name].value).all(), (name, count)


@pytest.mark.parametrize("code", ["BF16", "F16"])
@pytest.mark.parametrize("method", PARAMS)
def test_half_precision_is_rounded_once(method: str, code: str, tmp_path: Path):
    """Stored in 16 bits: the float32 merge of the same values, rounded at the end."""
    rng = np.random.default_rng(1)
    base = rng.standard_normal((10, 12))
    models = [stored_as(m, code) for m in (base, *(base + 0.1 * rng.standard_normal(base.shape) for _ in range(3)))]
    got = {}
    for kind, arrays in {"half": models, "full": [wide(m).astype(np.float32) for m in models]}.items():
        opened = [plait.open(write_model(tmp_path / f"{kind}{k}", {NAME: m})) for k, m in enumerate(arrays)]
        got[kind] = write_out(getattr(plait.methods, method)(base=opened[0], experts=opened[1:], **PARAMS[method]), tmp_path / kind, backend="torch")[
            NAME
        ].value
    assert np.abs(got["half"] - got["full"]).max() <= (2.0**-8 if code == "BF16" else 2.0**-11) * np.abs(got["full"]).max()


# -- each method ------------------------------------------------------------------------------------------------


def spectrum(x: Array) -> Array:
    s: Array = np.linalg.svd(x, compute_uv=False)
    return s


def test_iso_cts_is_flat_and_task_directions_replace_common_ones():
    """One singular value; with all directions common it is Iso-C."""
    ds = deltas(2, (14, 10))
    s = spectrum(update("iso_cts", ds, common_space_fraction=0.5))
    assert s.std() / s.mean() < 1e-4
    assert close(update("iso_cts", ds, common_space_fraction=1.0), update("iso_c", ds), 1e-6)
    assert not close(update("iso_cts", ds, common_space_fraction=0.5), update("iso_c", ds), 1e-2)
    assert not update("iso_cts", ds, lam=0.0).any()


def test_tsv_m_has_the_singular_values_of_its_tasks():
    """Exactly the chosen ones; on orthogonal spaces it is the sum; r // K counts in floats where the reference does."""
    ds = deltas(3, (16, 12))
    chosen = np.sort(np.concatenate([spectrum(d)[:4] for d in ds]))[::-1]
    assert np.abs(spectrum(update("tsv_m", ds)) - chosen).max() <= 1e-4
    q, r = orthogonal(12, 1), orthogonal(12, 2)
    apart = [(q[:, 4 * k : 4 * k + 4] @ np.diag([4.0, 3, 2, 1]) @ r[:, 4 * k : 4 * k + 4].T).astype(np.float32) for k in range(3)]
    assert close(update("tsv_m", apart), sum(apart), 1e-4)
    many = deltas(9, (8, 8))
    assert close(update("tsv_m", many), np.mean(many, axis=0), 1e-6)  # fewer singular values than experts


def test_fast_and_exact_agree_on_a_decaying_spectrum():
    """`accuracy: fast` is a choice of the recipe, shown in the plan; it stays within a hundredth."""
    rng = np.random.default_rng(0)
    u, v = np.linalg.qr(rng.standard_normal((600, 40)))[0], np.linalg.qr(rng.standard_normal((520, 40)))[0]
    ds = [((u * 0.7 ** np.arange(40)) @ v.T).astype(np.float32), ((u[:, ::-1] * 0.7 ** np.arange(40)) @ v.T).astype(np.float32)]
    assert close(update("star", ds, known_rank=8, accuracy="fast"), update("star", ds, known_rank=8), 1e-2)
    with pytest.raises(PlanError, match="give known_rank, or accuracy: exact"):
        update("star", ds, accuracy="fast")


def test_star_keeps_the_nuclear_norm():
    """Of each expert; rank one is left alone; more eta keeps more."""
    (d,) = deltas(1)
    for eta in (20.0, 40.0, 90.0):
        assert spectrum(update("star", [d], eta=eta)).sum() == pytest.approx(spectrum(d).sum(), rel=1e-4)
    ranks = [int((spectrum(update("star", [d], eta=eta)) > 1e-3).sum()) for eta in (10.0, 40.0, 70.0, 100.0)]
    assert ranks == sorted(ranks)
    assert ranks[0] == 1
    one = np.outer(d[:, 0], d[0]).astype(np.float32)
    assert close(update("star", [one]), one, 1e-5)
    conv = deltas(2, (6, 2, 3, 1))
    flat = update("star", [c.reshape(6, 6) for c in conv])
    assert close(update("star", conv).reshape(6, 6), flat, 1e-6)


def test_knots_aligns_only_what_is_not_linear():
    """Task arithmetic is the same in any basis; the update stays in the experts' column space; both directions work on any shape."""
    ds = deltas(3, (12, 3))
    assert close(update("knots", ds, merge="ta", scale=0.3), 0.3 * sum(ds), 1e-6)
    basis = np.linalg.qr(np.concatenate(ds, axis=1))[0]
    got = update("knots", ds, topk=40.0)
    assert close(basis @ (basis.T @ got), got, 1e-5)
    sideways = update("knots", [np.ascontiguousarray(d.T) for d in ds], topk=40.0, concat="input")
    assert close(sideways.T, got, 1e-4)
    assert not update("knots", ds, topk=0.0).any()
    assert close(update("knots", ds, aggregate="sum", drop=0.5, seed=3), update("knots", ds, aggregate="sum", drop=0.5, seed=3), 0.0)


def test_knots_with_one_threshold_for_the_model(tmp_path: Path):
    """Of two layers, one ten times larger: a global tenth is taken from the larger one alone, and the plan says that it works twice."""
    big, small = deltas(2, (12, 8)), deltas(2, (12, 8), 5)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    base = plait.open(write_model(tmp_path / "base", {n: np.zeros((12, 8), np.float32) for n in names}))
    experts = [plait.open(write_model(tmp_path / f"e{k}", {names[0]: 100 * big[k], names[1]: small[k]})) for k in range(2)]
    model = plait.methods.knots(base=base, experts=experts, topk=10, scope="global")
    planned = plait.plan_model(model, plait.Options(memory="1GiB", backend="torch"))
    assert planned.sweeps == 2
    assert any("worked on again in a later sweep" in note for note in planned.notes)
    assert "joint_svd again" in model.explain(memory="1GiB")
    json.loads(planned.to_json())
    got = write_out(model, tmp_path / "out", backend="torch")
    assert np.count_nonzero(got[names[0]].value)
    assert not got[names[1]].value.any()


def test_drm_prunes_the_stack_to_its_share():
    """Of the unit rows of all experts together a fifth and one is kept; vertical is horizontal of the transposes; drop 0 is a plain disjoint mean."""
    ds = deltas(2, (9, 6))
    wanted = update("drm", ds, **VERTICAL)
    assert close(update("drm", [np.ascontiguousarray(d.T) for d in ds]).T, wanted, 1e-4)
    assert close(update("drm", ds, drop_rate=0.0), np.mean(ds, axis=0), 1e-6)
    (d,) = deltas(1, (9, 6))
    u, _, _ = np.linalg.svd(d.astype(np.float64), full_matrices=False)
    kept = np.abs(u.T @ update("drm", [d], drop_rate=0.8)) > 1e-5
    assert abs(int(kept.sum()) - round(0.2 * 36)) <= 1


def test_opcm_keeps_the_mean_norm_and_adds_nothing_along_what_is_there():
    """|M| is the mean norm of the experts; the part that the second adds is orthogonal to the first."""
    a, b = deltas(2)
    got = update("opcm", [a, b])
    assert np.linalg.norm(got) == pytest.approx((np.linalg.norm(a) + np.linalg.norm(b)) / 2, rel=1e-5)
    scale = np.vdot(got, a) / np.vdot(a, a)
    assert abs(np.vdot(got - scale * a, a)) <= 1e-4 * np.vdot(a, a)


def test_opcm_goes_on_from_an_earlier_result(tmp_path: Path):
    """Two experts, then the third onto what was written and the one number that it reports: the merge of all three."""
    rng = np.random.default_rng(7)
    shapes = {NAME: (12, 8), "model.norm.weight": (8,), "model.embed_tokens.weight": (20, 8)}
    base = {n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()}
    paths = [write_model(tmp_path / "base", base)]
    paths += [write_model(tmp_path / f"e{k}", {n: (t + rng.standard_normal(t.shape)).astype(np.float32) for n, t in base.items()}) for k in range(3)]
    models = [plait.open(p) for p in paths]
    wanted = write_out(plait.methods.opcm(base=models[0], experts=models[1:]), tmp_path / "all", backend="torch")
    write_out(plait.methods.opcm(base=models[0], experts=models[1:3]), tmp_path / "two", backend="torch")
    norm = json.loads((tmp_path / "two" / "plait.json").read_text())["model_wide"]["dot opcm accumulator"] ** 0.5
    onward = plait.methods.opcm(base=models[0], experts=[plait.open(tmp_path / "two"), models[3]], merged_before=2, merged_norm=norm)
    got = write_out(onward, tmp_path / "onward", backend="torch")
    for name, t in wanted.items():
        assert close(got[name].value - base[name], t.value - base[name], 1e-4), name
    with pytest.raises(PlanError, match="give both, or neither"):
        plait.plan_model(plait.methods.opcm(base=models[0], experts=models[1:], merged_before=2), memory="1GiB")


def test_doge_without_steps_is_task_arithmetic_of_unit_layers():
    """sum_i lamda delta_i / |delta_i|; the scale of a task vector does not matter; the mask looks at the task vectors alone."""
    ds = deltas(3)
    unit = sum(0.07 * d / np.linalg.norm(d) for d in ds)
    assert close(update("doge_ta", ds, steps=0, topk=100.0), unit, 1e-6)
    assert close(update("doge_ta", [8 * d for d in ds], steps=0, topk=100.0), unit, 1e-6)
    got = update("doge_ta", ds[:1], topk=30.0)
    assert np.count_nonzero(got) == int(0.3 * ds[0].size) + 1
    assert close(update("doge_ta", deltas(9, (4, 4)), subspace=6), update("doge_ta", deltas(9, (4, 4)), subspace=6), 0.0)


def test_the_correction_of_doge_descends_along_the_gradient():
    """Its closed form is autograd's, and the loss falls."""
    import torch

    from plait.ops import matrix as mx
    from plait.ops.algebra import const
    from plait.ops.kernels.doge import correction
    from plait.ops.kernels.results import Results
    from plait.ops.tensor import load

    taus = [torch.from_numpy(d) for d in deltas(3)]
    weights = np.array([0.3, 0.2, 0.4])
    basis = torch.from_numpy(orthogonal(12, 0)[:, :2].astype(np.float32))
    nodes = [mx.matrix(load((str(k),), (12, 8), "F32")) for k in range(3)]

    def loss(d: torch.Tensor) -> torch.Tensor:
        merged = sum(w * (t + d) for w, t in zip(weights.tolist(), taus, strict=True))
        return sum((((t * (t - merged)).sum(dim=1)) ** 2).sum() for t in taus)

    def run(steps: int) -> torch.Tensor:
        node = mx.doge_correction(nodes, mx.matrix(load(("u",), (12, 2), "F32")), const(0.0), steps=steps, rate=1e-3)
        out = Results([(12, 8)])
        correction(node, [*taus, basis, weights], out)
        return out[0]

    start = torch.zeros(12, 8, requires_grad=True)
    loss(start).backward()
    assert start.grad is not None
    projected = start.grad - basis @ (basis.T @ start.grad)
    first = run(1)  # the first step of Adam is the sign of the gradient
    clear = projected.abs() > 1e-3 * projected.abs().max()
    assert torch.equal(torch.sign(first[clear]), -torch.sign(projected[clear]))
    assert float(loss(run(300))) < float(loss(torch.zeros(12, 8)))


def test_svc_undoes_what_identical_experts_pile_up():
    """K identical experts summed come back as one; a single expert and its own update are left alone."""
    (d,) = deltas(1)
    assert close(update("", [d], step="svc"), d, 1e-5)
    assert close(update("", [d, d, d], step="svc"), d, 1e-5)  # the mean has s = 1
    a, b = deltas(2)
    left, right = update("", [a, b], step="svc"), update("", [a.T.copy(), b.T.copy()], step="svc", side="right")
    assert close(left, right.T, 1e-4)


# -- magnitude calibration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [{"rule": "sphere"}, {"rule": "ellipsoid"}, {"rule": "spectral"}, {"per": "tensor"}, {"per": "tensor", "norm": "Linf"}])
def test_one_expert_needs_no_calibration(rule: dict[str, Any]):
    """Every rule gives 1, and leaves zero rows alone."""
    (d,) = deltas(1)
    d[3] = 0.0
    assert close(update("", [d], step="magic_wsc", **rule), d, 1e-5)


@pytest.mark.parametrize("norm", ["L1", "L2", "Linf"])
@pytest.mark.parametrize("per", ["row", "tensor"])
def test_the_sphere_has_the_experts_mean_norm(norm: str, per: str):
    """Row by row, or of the whole tensor."""
    ds = deltas(3)
    measures = {"L1": lambda x: np.abs(x).sum(-1), "L2": lambda x: np.sqrt((x.astype(np.float64) ** 2).sum(-1)), "Linf": lambda x: np.abs(x).max(-1)}
    got, flat = update("", ds, step="magic_wsc", norm=norm, per=per), (lambda x: x if per == "row" else x.reshape(1, -1))
    assert measures[norm](flat(got)) == pytest.approx(np.mean([measures[norm](flat(d)) for d in ds], axis=0), rel=1e-5)


def test_the_spectral_rule_matches_largest_singular_values():
    """One number a tensor, convolutions included; near-parallel experts can be left alone; target_scale multiplies."""
    ds = deltas(3, (6, 2, 2, 2))
    got = update("", ds, step="magic_wsc", rule="spectral", target_scale=0.5)
    assert spectrum(got.reshape(6, -1))[0] == pytest.approx(0.5 * np.mean([spectrum(d.reshape(6, -1))[0] for d in ds]), rel=1e-5)
    (d,) = deltas(1)
    alike = [d, (1.5 * d).astype(np.float32)]
    assert close(update("", alike, step="magic_wsc", per="tensor", max_cosine=0.5), 1.25 * d, 1e-6)
    assert close(update("", alike, step="magic_wsc", rule="spectral", target_scale=0.5, max_cosine=0.5), 0.625 * d, 1e-6)
    with pytest.raises(PlanError, match="the ellipsoid rule works on rows"):
        update("", alike, step="magic_wsc", rule="ellipsoid", per="tensor")


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"max_cosine": 0.5}, "max_cosine looks at whole tensors; set per: tensor or rule: spectral"),
        ({"layers": ("down_proj",)}, "layers are read with sensitive: list alone"),
        ({"layers": ("down_proj",), "sensitive": "rule"}, "layers are read with sensitive: list alone"),
    ],
)
def test_what_would_count_for_nothing_is_refused(facts: dict[str, Any], why: str):
    """A setting that another one leaves without effect is an error, not silence."""
    with pytest.raises(PlanError, match=why):
        update("", deltas(2), step="magic_wsc", **facts)


def test_sensitive_layers_come_from_a_file(tmp_path: Path):
    """Lines, a list, or scores of which the lowest count; what is not listed may grow, or with clip: sensitive do either."""
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(3)]
    base = {n: np.zeros((6, 4), np.float32) for n in names}
    ds = [deltas(2, (6, 4), i) for i in range(3)]
    paths = [write_model(tmp_path / "base", base)]
    paths += [write_model(tmp_path / f"e{k}", {n: ds[i][k] for i, n in enumerate(names)}) for k in range(2)]
    (tmp_path / "lines.txt").write_text(f"{names[1]}\n\n")
    (tmp_path / "list.json").write_text(json.dumps([names[1]]))
    (tmp_path / "scores.json").write_text(json.dumps({names[0]: 0.9, names[1]: 0.1, names[2]: 0.5}))
    results = {}
    for kind, facts in {"lines.txt": {}, "list.json": {}, "scores.json": {"lowest": 1}}.items():
        step = {"method": "magic_wsc", "parameters": {"sensitive": "file", "layers_file": kind, **facts}}
        models = [{"model": str(p), "parameters": {"weight": 0.5}} for p in paths[1:]]
        recipe = {"merge_method": "task_arithmetic", "base_model": str(paths[0]), "models": models, "steps": [step]}
        (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe))
        plait.merge(tmp_path / "recipe.yml", tmp_path / f"out-{kind}", plait.Options(memory="1GiB", backend="torch"))
        results[kind] = {n: t.value for n, t in read_folder(tmp_path / f"out-{kind}").items()}
    for found in results.values():
        for i, name in enumerate(names):
            mean = np.mean(ds[i], axis=0)
            ratio = np.abs(found[name]).sum(1) / np.abs(mean).sum(1)
            assert (ratio <= 1 + 1e-6).all() if i == 1 else (ratio > 1).any()
    (tmp_path / "recipe.yml").write_text((tmp_path / "recipe.yml").read_text().replace("scores.json", "missing.json"))
    with pytest.raises(RecipeError, match=r"recipe.yml:\d+:\d+: the file of names missing.json cannot be read"):
        plait.plan(tmp_path / "recipe.yml", memory="1GiB")
    grown = update("", ds[0], step="magic_wsc", sensitive="list", layers=(NAME,), clip="sensitive", target_scale=3.0)
    assert close(grown, np.mean(ds[0], axis=0), 1e-6)


def test_merges_inside_merges_with_model_wide_statistics(tmp_path: Path):
    """TIES with one threshold over a KnOTS and an OPCM merge, calibrated by SVC: the same as with every inner merge written out first."""
    rng = np.random.default_rng(2)
    names = [f"model.layers.{i}.mlp.up_proj.weight" for i in range(2)]
    base = {n: rng.standard_normal((12, 8)).astype(np.float32) for n in names}
    paths = [write_model(tmp_path / "base", base)]
    paths += [write_model(tmp_path / f"e{k}", {n: (t + rng.standard_normal(t.shape)).astype(np.float32) for n, t in base.items()}) for k in range(3)]
    origin, *experts = [plait.open(p) for p in paths]
    inner = [plait.methods.knots(base=origin, experts=experts, topk=50, scope="global"), plait.methods.opcm(base=origin, experts=experts)]

    def outer(models: Sequence[plait.Model]) -> plait.Model:
        merged = plait.methods.ties(base=origin, experts=models, density=0.4, scope="global", keep="threshold")
        return plait.methods.svc(merged, base=origin, experts=models)

    nested = write_out(outer(inner), tmp_path / "nested", backend="torch")
    for k, model in enumerate(inner):
        write_out(model, tmp_path / f"inner{k}", backend="torch")
    apart = write_out(outer([plait.open(tmp_path / f"inner{k}") for k in range(2)]), tmp_path / "apart", backend="torch")
    for name in names:
        assert close(nested[name].value - base[name], apart[name].value - base[name], 1e-4), name
