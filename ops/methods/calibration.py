"""Steps after a merge that give the merged task vector the magnitude its experts had."""

from __future__ import annotations

import re

from plait.ops.algebra import differs, maximum, mean, minimum, row_dot, row_max, row_sum, sqrt, total, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, step
from plait.ops.tensor import LazyTensor

#: MLP down-projections and first embeddings: scaling them up hurts most (MAGIC, sensitive layers).
_SENSITIVE = re.compile(r"c_proj|fc2|down_proj|w2\b|(?<!attention\.)output\.dense|conv1|patch_embed|embed_tokens|word_embeddings|wte")
_EPS = 1e-8


@step(
    "magic_wsc",
    family="calibration",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="MAGIC, arXiv 2512.19320, weight-space calibration",
    kinds=("rows", "map"),
    params=(
        Param(
            "rule",
            str,
            "sphere: each row gets the mean norm of the experts' rows; ellipsoid: the released code's rule, for experts that are nearly orthogonal.",
            default="sphere",
            choices=("sphere", "ellipsoid"),
            gradient=False,
        ),
        Param("norm", str, "Norm of the sphere rule.", default="L1", choices=("L1", "L2", "Linf"), gradient=False),
        Param(
            "sensitive",
            str,
            "Layers that may only shrink while all others may only grow: none, by role (rule), or those in `layers`.",
            default="none",
            choices=("none", "rule", "list"),
            gradient=False,
        ),
        Param("layers", list, "Names, or parts of names, of the sensitive tensors when `sensitive` is list.", default=(), gradient=False),
        Param("target_scale", float, "Multiple of the experts' magnitude to aim at.", default=1.0, low=0.0),
    ),
)
def magic_wsc(
    t: MergeInputs,
    merged: LazyTensor,
    *,
    rule: str = "sphere",
    norm: str = "L1",
    sensitive: str = "none",
    layers: tuple[str, ...] = (),
    target_scale: float = 1.0,
) -> LazyTensor:
    """Rescale each row of the merged task vector to the magnitude of the experts' rows.

    sphere: xi = mean_k |a_k| / |d|. ellipsoid: d is scaled onto the ellipsoid with semi-axes |a_k| along the experts' rows a_k,
    completed by a sphere. theta = theta_0 + xi d, a zero row stays zero. Matrices named *weight* (but not *ln*) and convolutions.
    """
    if not _eligible(t):
        return merged
    delta = merged - t.origin
    xi = _sphere(t.deltas, delta, norm) if rule == "sphere" else _ellipsoid(t.deltas, delta)
    xi = xi * target_scale
    if sensitive != "none":
        held = any(part in t.name for part in layers) if sensitive == "list" else _SENSITIVE.search(t.name) is not None
        xi = minimum(xi, 1.0) if held else maximum(xi, 1.0)
    return t.origin + xi * delta


def _eligible(t: MergeInputs) -> bool:
    if len(t.shape) > 2:
        return True
    return len(t.shape) == 2 and "weight" in t.name and "ln" not in t.name


def _norm(x: LazyTensor, norm: str) -> LazyTensor:
    if norm == "L1":
        return row_sum(abs(x), rows="output")
    if norm == "L2":
        return sqrt(row_dot(x, x, rows="output"))
    return row_max(x, rows="output")


def _sphere(experts: tuple[LazyTensor, ...], delta: LazyTensor, norm: str) -> LazyTensor:
    size = _norm(delta, norm)
    return where(differs(size, 0.0), mean([_norm(a, norm) for a in experts]) / size, 1.0)


def _ellipsoid(experts: tuple[LazyTensor, ...], delta: LazyTensor) -> LazyTensor:
    """1 / sqrt(L_e + L_s): L_e the part of d along the experts' rows, L_s what is left, both in units of the semi-axes.

    |s|^2 = |d|^2 - 2 sum_k c_k <d, a_k> + sum_jk c_j c_k <a_j, a_k> needs inner products only, never the remainder s itself.
    """
    count = len(experts)

    def inner(x: LazyTensor, y: LazyTensor) -> LazyTensor:
        return row_dot(x, y, rows="output")

    squares = [inner(a, a) for a in experts]
    lengths = [sqrt(s) for s in squares]
    along = [inner(delta, a) for a in experts]
    c = [p / (s + _EPS) for p, s in zip(along, squares, strict=True)]
    ellipsoid = total([(k * n / (n + _EPS)) * (k * n / (n + _EPS)) for k, n in zip(c, lengths, strict=True)])
    crossed = total([c[j] * c[k] * (squares[j] if j == k else inner(experts[min(j, k)], experts[max(j, k)])) for j in range(count) for k in range(count)])
    rest = maximum(inner(delta, delta) - 2.0 * total([k * p for k, p in zip(c, along, strict=True)]) + crossed, 0.0)
    radius = mean(lengths)
    return 1.0 / sqrt(ellipsoid + rest / (radius * radius + _EPS) + _EPS)
