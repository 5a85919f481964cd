"""Each method against its formula in plain float64 NumPy, and what its expression must and must not contain.

Expressions run through the real pipeline (`support.evaluate`) with the interpreter as backend; `test_properties` holds the compiled
kernels to the same bits.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from plait.ops.inputs import MergeInputs
from plait.ops.method import methods, steps
from plait.ops.methods.calibration import magic_wsc
from plait.ops.methods.dropping import keep_thresholds
from plait.ops.methods.election import Ballot, add_delta
from plait.ops.methods.geometry import slerp_coefficients
from plait.planner.program import topological
from support.evaluate import evaluate
from support.merging import CLOSE, F64, arguments, build, inputs, leaf, normal, run

# -- what expressions are made of ---------------------------------------------------------------------

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "linear": [{}, {"weight": (1.0, 2.0)}, {"normalize": False}],
    "passthrough": [{}, {"scale": 2.0}],
    "slerp": [{}],
    "model_stock": [{}, {"filter_wise": True}, {"clamp": True}, {"angle_mean": "angle"}],
    "task_arithmetic": [{}, {"lam": 0.5, "normalize": True}],
    "ties": [{"density": 0.5}, {"density": 0.5, "rescale": True}, {"density": 0.5, "scope": "global", "elect": "normmass", "zero_sign": "majority"}],
    "dare_linear": [{"density": 0.5}, {"density": 0.5, "rescale_by": "l1"}],
    "dare_ties": [{"density": 0.5}],
    "della": [{"density": 0.5}],
    "della_linear": [{"density": 0.5}],
    "iso_c": [{}],
    "breadcrumbs": [{"density": 0.5}, {"density": 0.5, "scope": "row"}, {"density": 0.5, "scope": "global", "rescale": True}],
    "breadcrumbs_ties": [{"density": 0.5}, {"density": 0.5, "scope": "row"}],
    "sce": [{}, {"select_topk": 0.5}, {"select_topk": 0.5, "select_applies_to": "weights_only"}],
    "varm": [{}, {"statistic": "abs"}],
    "arcee_fusion": [{}],
    "pcb": [{}, {"variant": "A"}, {"variant": "B", "scope": "global"}],
    "localize_stitch": [{}, {"keep": "above"}],
    "widen": [{}],
    "uniform_soup": [{}],
    "nuslerp": [{"weight": (1.0, 2.0), "axis": axis} for axis in ("flatten", "in", "out")],
    "multislerp": [{}],
    "karcher": [{}, {"task_vectors": True}],
    "nearswap": [{}],
    "expo": [{}],
    "magmax": [{}],
    "ram": [{}],
    "ramplus_tl": [{}, {"scope": "global"}],
    "emr": [{}],
    "consensus": [{}, {"vector": "ties", "density": 0.5}, {"k": 0, "lam": 0.5}],
    "fisher": [{}, {"normalize": "none"}],
    "led": [{"density": 0.5}, {"density": 0.5, "keep": "threshold"}],
    "sens": [{}, {"vector": "ties", "density": 0.5}, {"vector": "dare", "density": 0.5}],
    "iso_cts": [{}],
    "tsv_m": [{}],
    "star": [{}, {"exclude": ("embed",)}],
    "knots": [{"topk": 50.0}],
    "drm": [{}],
    "opcm": [{}],
    "doge_ta": [{}],
}


def experts_of(name: str) -> int:
    return 1 if methods()[name].experts[1] == 1 else 2


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_declared_kinds_are_those_used(name: str):
    """The catalogue's kinds are the kinds of ops in the expressions of the method's variants, no more and no fewer."""
    found: set[str] = set()
    for given in VARIANTS[name]:
        for tensor in ("w.weight", "model.embed_tokens.weight"):
            found |= {n.op.kind for n in topological(build(name, inputs(experts_of(name), name=tensor), **given))} - {"load", "small"}
    # DARE's l1 rescaling folds, but is a mode for mergekit's numbers
    assert found - {"fold"} == set(methods()[name].kinds) - {"fold"}
    assert "fold" not in methods()[name].kinds or "fold" in found


def test_every_method_has_variants():
    """None is left out of the tests above."""
    assert set(VARIANTS) == set(methods())


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_only_methods_that_say_so_depend_on_the_name(name: str):
    """Programs are shared by tensors of one shape: a method without `uses_name` gives one expression whatever the tensor is called."""
    count = experts_of(name)
    names = (("a.text_projection", "head"), ("w.weight", "mlp"), ("model.embed_tokens.weight", "embedding"))
    kinds = [len({build(name, inputs(count, name=n, role=r), **given) for n, r in names}) for given in VARIANTS[name]]
    assert (max(kinds) > 1) == methods()[name].uses_name


@pytest.mark.parametrize("name", ["linear", "task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear"])
def test_an_expert_of_weight_0_is_not_mentioned(name: str):
    """Nothing of it is in the expression, in the first place or in the last."""
    given = {"density": 0.5} if name not in ("linear", "task_arithmetic") else {}
    for weight in ((0.0, 1.0, 0.5), (1.0, 0.5, 0.0)):
        used = {n.param("source")[1] for n in topological(build(name, inputs(3), weight=weight, **given)) if n.op.name == "load"}
        assert f"expert{weight.index(0.0)}" not in used
        assert len(used - {"base"}) == 2


@pytest.mark.parametrize(
    "name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear", "iso_c", "magmax", "emr", "consensus", "led", "sens"]
)
def test_lambda_0_is_the_base_itself(name: str):
    """The base's node, so that its bytes are copied."""
    t = inputs(2)
    assert build(name, t, lam=0.0, **({"density": 0.5} if any(p.name == "density" for p in methods()[name].params) else {})) is t.origin


@pytest.mark.parametrize("name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "della", "della_linear"])
def test_no_weight_at_all_is_the_base_itself(name: str):
    """All weights 0: nothing is added."""
    t = inputs(2)
    assert build(name, t, weight=(0.0, 0.0)) is t.origin


def test_operators_and_methods_build_the_same_node():
    """base + 0.3 (a - base) by hand is task arithmetic with lambda 0.3: one expression, one key, one cache entry."""
    t = inputs(1)
    assert t.origin + 0.3 * (t.experts[0] - t.origin) is build("task_arithmetic", t, lam=0.3)
    assert (t.experts[0] + t.experts[0]) / 2 is build("linear", MergeInputs(None, t.experts * 2, ("a", "b"), t.shape))


def test_a_delta_of_the_whole_way_is_the_expert():
    """base + 1 (expert - base) is the expert, without rounding twice; any other lambda, or another base, computes."""
    t = inputs(1)
    assert add_delta(t.origin, t.deltas[0], 1.0) is t.experts[0]
    assert add_delta(t.origin, t.deltas[0], 0.5).op.name == "add"
    assert add_delta(leaf("other"), t.deltas[0], 1.0).op.name == "add"
    assert add_delta(t.origin, None, 1.0) is t.origin


def test_methods_that_need_a_base_say_so():
    """Without one the sentence says what to give."""
    with pytest.raises(ValueError, match="give base_model"):
        build("ties", inputs(2, base=False))


# -- averaging ---------------------------------------------------------------------------------------


def test_linear_normalises_by_the_sum_of_weights():
    """Negative weights included; a sum of zero is refused with what to do."""
    experts = [normal(1, 5, 3), normal(2, 5, 3)]
    got = run("linear", np.zeros((5, 3)), experts, weight=(3.0, -1.0))
    assert np.allclose(got, (3 * experts[0] - experts[1]) / 2, rtol=CLOSE, atol=CLOSE)
    got = run("linear", np.zeros((5, 3)), experts, weight=(3.0, -1.0), normalize=False)
    assert np.allclose(got, 3 * experts[0] - experts[1], rtol=CLOSE, atol=CLOSE)
    with pytest.raises(ValueError, match=r"weights 1, -1 sum to zero.*normalize: false"):
        build("linear", inputs(2), weight=(1.0, -1.0))


def test_passthrough_scales():
    """Each element times the scale, rounded once."""
    x = normal(3, 7)
    assert (run("passthrough", np.zeros(7), [x], scale=0.3) == (x.astype(np.float32) * np.float32(0.3))).all()


# -- angles ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_slerp_turns_by_the_share_of_the_angle(t: float):
    """Between unit vectors at a right angle, and between long ones: the closed form, and the angle to both ends."""
    a, b = np.zeros(8), np.zeros(8)
    a[0], b[1] = 3.0, 5.0
    got = run("slerp", a, [b], t=t)
    assert np.allclose(got[:2], [3 * np.cos(t * np.pi / 2), 5 * np.sin(t * np.pi / 2)], rtol=CLOSE)
    products = np.array([[1.0, np.cos(1.0)], [np.cos(1.0), 1.0]])
    c = slerp_coefficients(products, t=t)
    v = c[0] * np.array([1.0, 0.0]) + c[1] * np.array([np.cos(1.0), np.sin(1.0)])
    assert np.isclose(np.hypot(*v), 1.0)
    assert np.isclose(np.arctan2(v[1], v[0]), t)


@pytest.mark.parametrize("products", [[[1.0, 1.0], [1.0, 1.0]], [[4.0, -4.0], [-4.0, 4.0]], [[0.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
def test_slerp_of_parallel_opposed_and_zero_tensors_is_finite(products: list[list[float]]):
    """Nearly parallel ones are interpolated linearly; a zero tensor has no angle and gets finite factors."""
    c = slerp_coefficients(np.array(products), t=0.25)
    assert np.isfinite(c).all()
    if abs(products[0][1]) > 0:
        assert (c == [0.75, 0.25]).all()


def stock(base: F64, experts: list[F64], clamp: bool) -> F64:
    """Model Stock on flat tensors, with numpy's own dot."""
    d = [e - base for e in experts]
    pairs = list(itertools.combinations(d, 2))
    c = np.mean([x @ y / np.sqrt((x @ x) * (y @ y)) for x, y in pairs])
    c = min(max(c, 0.0), 1.0) if clamp else c
    r = len(d) * c / (1 + (len(d) - 1) * c)
    return np.asarray(r * np.mean(experts, 0) + (1 - r) * base)


@pytest.mark.parametrize("clamp", [False, True])
@pytest.mark.parametrize("filter_wise", [False, True])
def test_model_stock(filter_wise: bool, clamp: bool):
    """The formula on the whole tensor or on each output row, three experts, correlated or opposed."""
    shape = (5, 3, 2, 2)
    base, common = normal(1, *shape), normal(2, *shape)
    common[2] *= 0
    experts = [base + common + s * normal(3 + k, *shape) for k, s in enumerate((1.0, 1.5, 0.5))]
    experts = [e.astype(np.float32).astype(np.float64) for e in experts]
    got = run("model_stock", base, experts, filter_wise=filter_wise, clamp=clamp)
    if filter_wise:
        wanted = np.stack([stock(base[i].ravel(), [e[i].ravel() for e in experts], clamp).reshape(shape[1:]) for i in range(shape[0])])
    else:
        wanted = stock(base.ravel(), [e.ravel() for e in experts], clamp).reshape(shape)
    assert np.abs(got - wanted).max() <= 8 * CLOSE * np.abs(wanted).max()


def test_model_stock_skips_zero_task_vectors_and_poles():
    """A zero task vector has no angle; exactly opposed experts would divide by zero and give the base."""
    base, d = normal(1, 16), normal(2, 16)
    got = run("model_stock", base, [base + d, base - d])
    assert np.isfinite(got).all()
    same = run("model_stock", np.zeros(16), [d, d, np.zeros(16)])
    assert np.allclose(same, 2 * d / 3, rtol=4 * CLOSE), "one pair counts, with cosine 1: the mean of all three"


# -- sign election ---------------------------------------------------------------------------------------

GRID = np.array(list(itertools.product((-2.0, -1.0, -0.5, 0.0, 0.5, 1.0), repeat=3))).T


def elected(votes: F64, elect: str, zero_sign: str) -> F64:
    if elect == "sum":
        tally = votes.sum(0)
    elif elect == "count":
        tally = np.sign(votes).sum(0)
    else:
        share = votes**2 / (votes**2).sum(1, keepdims=True)
        tally = (np.sign(votes) * share).sum(0) if elect == "normmass" else np.sign(np.take_along_axis(votes, share.argmax(0)[None], 0)[0])
    if zero_sign == "drop":
        return np.sign(tally)
    default = 1.0 if zero_sign == "positive" or np.sign(tally).sum() > 0 else -1.0
    return np.where(tally == 0, default, np.sign(tally))


@pytest.mark.parametrize("zero_sign", ["positive", "majority", "drop"])
@pytest.mark.parametrize("elect", ["sum", "count", "normmass", "normfrac"])
def test_election_and_merge_of_every_pattern_of_three(elect: str, zero_sign: str):
    """All 216 triples of six values, weights 1, 1/2 and 2: elected sign, then mean, sum or largest of those that agree."""
    weights = (1.0, 0.5, 2.0)
    deltas = GRID.copy()
    if elect.startswith("norm"):  # no two experts of one set of values: squares over norms would tie up to rounding
        deltas += np.array([[0.0], [0.07], [0.11]]) * (GRID != 0)
        deltas = deltas.astype(np.float32).astype(np.float64)
    votes = deltas * np.array(weights)[:, None]
    sign = elected(votes, elect, zero_sign)
    agree = votes * sign > 0
    share = (agree * np.array(weights)[:, None]).sum(0)
    wanted = {
        ("mean", True): np.where(share > 0, (votes * agree).sum(0) / np.where(share > 0, share, 1), 0),
        ("mean", False): (votes * agree).sum(0),
        ("sum", True): (votes * agree).sum(0),
        ("max", True): sign * (np.abs(votes) * agree).max(0),
    }
    leaves = {f"d{k}": row.astype(np.float32) for k, row in enumerate(deltas)}
    for (aggregate, normalize), expected in wanted.items():
        ballot = Ballot([""] * 3, elect, zero_sign, aggregate, normalize)
        got = evaluate({"out": leaves}, lambda ballot=ballot, **d: ballot.merge(list(d.values()), weights), backend="torch")["out"]
        assert np.allclose(got, expected, rtol=CLOSE, atol=0), (aggregate, normalize)


def test_one_voter_is_itself_whatever_the_rules():
    """A single expert agrees with itself: mean gives its change, a sum its weighted change; a negative weight turns it round."""
    t = inputs(1)
    (delta,) = t.deltas
    for rules in itertools.product(("sum", "count", "normmass", "normfrac"), ("positive", "majority", "drop"), ("mean", "sum", "max")):
        assert Ballot([""], *rules, normalize=True).merge([delta], [1.0]) is delta
    assert Ballot([""]).merge([delta], [0.3]) is delta
    assert Ballot([""]).merge([delta], [-2.0]) is delta * -1.0
    assert Ballot([""], normalize=False).merge([delta], [0.3]) is delta * 0.3
    assert Ballot([]).merge([], []) is None


# -- random dropping --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("density", "epsilon"), [(0.5, 0.1), (0.29, 0.07), (0.7, 0.29)])
@pytest.mark.parametrize("length", [2, 3, 10, 1000])
def test_keep_thresholds_are_the_exact_line(density: float, epsilon: float, length: int):
    """From d - e for the smallest to d + e for the largest, within one unit of 2^-32 of the exact fraction, whole and rising."""
    table = keep_thresholds(density=density, epsilon=epsilon, length=length)
    d, e = Fraction(repr(density)), Fraction(repr(epsilon))
    for rank in range(length):
        exact = (d - e + 2 * e * Fraction(rank, length - 1)) * 2**32
        assert abs(Fraction(float(table[rank])) - exact) <= 2
        assert table[rank] == int(table[rank])
    assert (np.diff(table) > 0).all()
    assert abs(table.mean() / 2**32 - density) < 1e-9


def test_a_row_of_one_keeps_with_the_density():
    """No rank, no slope; an empty row has a table all the same."""
    for length in (0, 1):
        assert keep_thresholds(density=0.3, epsilon=0.1, length=length).tolist() == [round(Fraction("0.3") * 2**32)]


@pytest.mark.parametrize(("density", "epsilon", "words"), [(0.1, 0.15, "below 0.1"), (0.9, 0.1, "below 0.1"), (0.5, 0.5, "below 0.5")])
def test_probabilities_outside_0_to_1_are_refused(density: float, epsilon: float, words: str):
    """The sentence names both values and the largest epsilon that works."""
    with pytest.raises(ValueError, match=f"density {density:g} and epsilon {epsilon:g}.*{words}"):
        build("della", inputs(1), density=density, epsilon=epsilon)


def test_della_keeps_large_changes_more_often():
    """Over 4000 rows of 5 each rank is kept within 6 sigma of its own probability and scaled by its inverse."""
    rows, rank = 4000, np.arange(5)
    expert = np.tile(np.array([3.0, -1.0, 2.0, 5.0, -4.0]), (rows, 1))
    ranks = np.array([2, 0, 1, 4, 3])
    got = run("della", np.zeros((rows, 5)), [expert], density=0.5, epsilon=0.3)
    chance = (0.2 + 0.6 * rank / 4)[ranks]
    assert (np.abs((got != 0).sum(0) - rows * chance) < 6 * np.sqrt(rows * chance * (1 - chance))).all()
    assert np.allclose(got[got != 0], np.broadcast_to(expert / chance, got.shape)[got != 0], rtol=CLOSE)


def test_l1_rescaling_restores_the_norm():
    """mergekit's mode: what is kept has the L1 norm of what there was; TIES' rescale likewise."""
    expert = normal(5, 40, 25)
    for got in (
        run("dare_linear", np.zeros((40, 25)), [expert], density=0.3, rescale_by="l1"),
        run("ties", np.zeros((40, 25)), [expert], density=0.3, rescale=True),
    ):
        assert np.isclose(np.abs(got).sum(), np.abs(expert).sum(), rtol=1e-6)
        scale = got[got != 0] / expert[got != 0]
        assert np.allclose(scale, scale[0], rtol=4 * CLOSE)


# -- calibration --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "order"), [("L1", 1), ("L2", 2), ("Linf", np.inf)])
def test_sphere_gives_rows_the_experts_mean_norm(norm: str, order: float):
    """The norm of each row of the change (a whole output channel of a convolution) is the mean of the experts'; a zero row stays zero."""
    for shape in ((6, 5), (6, 3, 2, 2)):
        base = normal(1, *shape)
        experts = [base + normal(2 + k, *shape) for k in range(3)]
        for e in experts:
            e[4] = base[4]
        experts = [e.astype(np.float32).astype(np.float64) for e in experts]
        got = run("magic_wsc", base, experts, norm=norm) - base
        size = np.linalg.norm(got.reshape(6, -1), order, axis=1)
        wanted = np.mean([np.linalg.norm((e - base).reshape(6, -1), order, axis=1) for e in experts], 0)
        assert np.allclose(size, wanted, rtol=1e-5, atol=1e-6)
        assert (got[4] == 0).all()


def test_the_target_scale_multiplies():
    """Twice the magnitude is twice the change."""
    base, experts = normal(1, 4, 3), [normal(2, 4, 3), normal(3, 4, 3)]
    once, twice = (run("magic_wsc", base, experts, target_scale=s) - base for s in (1.0, 2.0))
    assert np.allclose(twice, 2 * once, rtol=1e-5, atol=1e-6)


def test_ellipsoid_of_orthogonal_experts_is_the_root_of_their_number():
    """The mean of K orthogonal experts is scaled by sqrt(K), whatever their norms; one expert alone by 1."""
    base = np.zeros((1, 8))
    experts = [np.zeros((1, 8)) for _ in range(4)]
    for k, e in enumerate(experts):
        e[0, 2 * k] = 1.0 + k
    mean = np.mean(experts, 0)
    assert np.allclose(run("magic_wsc", base, experts, rule="ellipsoid"), 2 * mean, rtol=1e-5)
    assert np.allclose(run("magic_wsc", base, experts[:1], rule="ellipsoid"), experts[0], rtol=1e-5)


@pytest.mark.parametrize(
    ("count", "cosine", "ellipsoid", "sphere"),
    [(8, 0.0, 2.83, 2.83), (8, 0.1, 1.47, 2.17), (8, 0.3, 0.59, 1.61), (8, 0.5, 0.33, 1.33), (8, 0.9, 0.15, 1.05), (4, 1.0, 0.28, 1.0)],
)
def test_the_ellipsoid_shrinks_where_experts_agree(count: int, cosine: float, ellipsoid: float, sphere: float):
    """The figures of the method's page, for rows of one length with exactly these cosines; the first is the root of the number of experts."""
    gram = np.full((count, count), cosine) + (1 - cosine) * np.eye(count)
    values, vectors = np.linalg.eigh(gram)
    rows = vectors * np.sqrt(np.maximum(values, 0.0))
    experts, base = [row[None] for row in rows], np.zeros((1, count))
    mean = np.mean(experts, 0)
    for settings, wanted in (({"rule": "ellipsoid"}, ellipsoid), ({"norm": "L2"}, sphere)):
        assert np.allclose(run("magic_wsc", base, experts, **settings), wanted * mean, atol=0.005 * np.abs(mean).max())
        page = magic_wsc.__doc__ or ""
        assert f"{wanted:g}" in page


@pytest.mark.parametrize(
    ("tensor", "shape", "touched"),
    [
        ("layers.0.mlp.up_proj.weight", (4, 3), True),
        ("layers.0.mlp.up_proj.bias", (4,), False),
        ("layers.0.mlp.up_proj.bias", (4, 3), False),
        ("model.visual.ln_post.weight", (4, 3), False),
        ("conv1.weight", (4, 3, 2, 2), True),
        ("proj", (4, 3), False),
    ],
)
def test_which_tensors_are_calibrated(tensor: str, shape: tuple[int, ...], touched: bool):
    """Matrices named weight but not ln, and convolutions; everything else keeps the merge's value."""
    t = inputs(2, shape, tensor)
    merged = build("linear", t)
    step = steps()["magic_wsc"]
    assert (step.build(t, merged, **arguments(step, 2)) is not merged) == touched


@pytest.mark.parametrize(
    ("tensor", "held"), [("layers.0.mlp.down_proj.weight", True), ("model.embed_tokens.weight", True), ("layers.0.mlp.up_proj.weight", False)]
)
def test_sensitive_layers_only_shrink_and_others_only_grow(tensor: str, held: bool):
    """By role and by list alike: rows that would grow (two orthogonal experts) and rows that would shrink (target 1/4)."""
    base, experts = np.zeros((2, 4)), [np.eye(4)[:2], np.eye(4)[2:]]
    mean = np.mean(experts, 0)
    for listed in ({"sensitive": "rule"}, {"sensitive": "list", "layers": ("down_proj", "embed_tokens.weight")}):
        for scale, factor in ((1.0, 1.0 if held else 2**0.5), (0.25, 2**0.5 / 4 if held else 1.0)):
            got = run("magic_wsc", base, experts, tensor, norm="L2", target_scale=scale, **listed)
            assert np.allclose(got, factor * mean, rtol=1e-6)


# -- spectra ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6), (1, 4)])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_iso_c_flattens_the_spectrum(shape: tuple[int, int], rank: int):
    """All kept singular values become their mean, the vectors stay: against numpy's SVD, over the numerical rank."""
    factors = normal(1, shape[0], rank) @ normal(2, rank, shape[1])
    base, delta = normal(3, *shape), [0.25 * factors, 0.75 * factors]
    delta = [np.round(d * 2**12) / 2**12 if rank >= min(shape) else d for d in delta]
    got = run("iso_c", np.zeros(shape), delta, lam=0.5)
    u, s, v = np.linalg.svd(sum(delta))
    kept = min(rank, *shape)
    wanted = 0.5 * s[:kept].mean() * u[:, :kept] @ v[:kept]
    assert np.linalg.norm(got - wanted) <= 1e-4 * np.linalg.norm(wanted)
    moved = run("iso_c", base, [base + d for d in delta], lam=0.5) - base
    assert np.linalg.norm(moved - wanted) <= 1e-2 * np.linalg.norm(wanted) or kept < min(shape), "float32 sums with the base blur a low rank"


def test_iso_c_of_nothing_is_nothing():
    """A zero sum has no directions: the base, not NaN."""
    d = normal(1, 4, 3)
    assert (run("iso_c", np.ones((4, 3)), [np.ones((4, 3))] * 2) == 1).all()
    assert np.allclose(run("iso_c", np.zeros((4, 3)), [d, -d]), 0)


@pytest.mark.parametrize(("tensor", "shape"), [("b", (7,)), ("conv", (2, 3, 2, 2)), ("model.text_projection", (4, 3))])
def test_what_is_no_matrix_is_averaged_by_iso_c(tensor: str, shape: tuple[int, ...]):
    """Vectors, convolutions and excluded names get lambda times the mean task vector."""
    base, experts = normal(1, *shape), [normal(2, *shape), normal(3, *shape)]
    got = run("iso_c", base, experts, tensor, lam=0.5)
    assert np.allclose(got, base + 0.5 * (np.mean(experts, 0) - base), rtol=4 * CLOSE, atol=4 * CLOSE)
