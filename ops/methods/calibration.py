"""Steps after a merge that give the merged task vector the magnitude its experts had."""

from __future__ import annotations

import re

from plait.ops.algebra import differs, maximum, mean, minimum, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import Param, step
from plait.ops.methods.magnitudes import in_turn, largest_singular, mean_cosine, onto_ellipsoid, row_norm, whole_norm
from plait.ops.tensor import LazyTensor

#: MLP down-projections and first embeddings: scaling them up hurts most (MAGIC, sensitive layers).
_SENSITIVE = re.compile(r"c_proj|fc2|down_proj|w2\b|(?<!attention\.)output\.dense|conv1|patch_embed|embed_tokens|word_embeddings|wte")


@step(
    "magic_wsc",
    family="calibration",
    base="required",
    experts=(1, None),
    uses_name=True,
    source="MAGIC, arXiv 2512.19320, weight-space calibration",
    kinds=("rows", "fold", "whole", "map"),
    params=(
        Param(
            "rule",
            str,
            "sphere: the mean norm of the experts; ellipsoid: the released code's rule, for rows of experts that are nearly orthogonal; "
            "spectral: the mean of their largest singular values.",
            default="sphere",
            choices=("sphere", "ellipsoid", "spectral"),
            gradient=False,
        ),
        Param("per", str, "One coefficient a row, or one a tensor (spectral: always one a tensor).", "row", choices=("row", "tensor"), gradient=False),
        Param("norm", str, "Norm of the sphere rule.", default="L1", choices=("L1", "L2", "Linf"), gradient=False),
        Param(
            "sensitive",
            str,
            "Layers that may only shrink: none, by role (rule), those in `layers`, or those in `layers_file`.",
            default="none",
            choices=("none", "rule", "list", "file"),
            gradient=False,
        ),
        Param("layers", list, "Names, or parts of names, of the sensitive tensors when `sensitive` is list.", default=(), gradient=False),
        Param(
            "layers_file", str, "A file of such names: a line each, a JSON list, or a JSON object of name and score.", default=None, gradient=False, reads=True
        ),
        Param("lowest", int, "Of a file with scores, the names with the lowest are sensitive, so many of them.", default=10, low=1, gradient=False),
        Param("clip", str, "both: other layers may only grow, as in the released code; sensitive: they may do either.", "both", choices=("both", "sensitive")),
        Param("max_cosine", float, "One coefficient a tensor: none where the mean cosine of its task vectors is larger; the code has 0.5.", None, high=1.0),
        Param("target_scale", float, "Multiple of the experts' magnitude to aim at.", default=1.0, low=0.0),
    ),
)
def magic_wsc(
    t: MergeInputs,
    merged: LazyTensor,
    *,
    rule: str = "sphere",
    per: str = "row",
    norm: str = "L1",
    sensitive: str = "none",
    layers: tuple[str, ...] = (),
    layers_file: tuple[tuple[str, float | None], ...] | None = None,
    lowest: int = 10,
    clip: str = "both",
    max_cosine: float | None = None,
    target_scale: float = 1.0,
) -> LazyTensor:
    """Rescale the merged task vector, row by row or as a whole, to the magnitude of the experts'.

    sphere: xi = mean_k |a_k| / |d|. ellipsoid: d is scaled onto the ellipsoid with semi-axes |a_k| along the experts' rows a_k,
    completed by a sphere. spectral: largest singular values in place of norms. theta = theta_0 + xi d, zeros stay zero. Matrices named
    *weight* (but not *ln*) and convolutions.

    Idea:
        Merging settles the direction of a change but not its size: averaging and sparsifying shrink it, layer by layer.
    Differs:
        - The released code runs the ellipsoid rule on rows, where its text says one coefficient a layer; the paper's rule is the sphere.
        - Rows that the merge left at zero become NaN there under the sphere rule; here they stay zero.
    Caveats:
        - Names decide what is calibrated: parameters whose name has no `weight` in it keep what the merge gave.
        - The ellipsoid rule shrinks rows in which experts agree. It multiplies the mean of eight experts with pairwise cosines of 0, 0.1, 0.3, 0.5 and
          0.9 by 2.83, 1.47, 0.59, 0.33 and 0.15, the sphere rule (L2) by 2.83, 2.17, 1.61, 1.33 and 1.05; the mean of four equal experts by 0.28, not 1.
          `clip: both` hides that in layers that may only grow. Fine-tuned language models agree in many rows: use the sphere.
    """
    if rule == "ellipsoid" and per == "tensor":
        raise ValueError("magic_wsc: the ellipsoid rule works on rows; set per: row, or rule: sphere")
    whole = per == "tensor" or rule == "spectral"
    if max_cosine is not None and not whole:
        raise ValueError("magic_wsc: max_cosine looks at whole tensors; set per: tensor or rule: spectral, or leave it out")
    names = _names(sensitive, layers, layers_file, lowest)
    if not _eligible(t):
        return merged
    delta = merged - t.origin
    if rule == "spectral":
        xi = _ratio([largest_singular(d) for d in in_turn(t.deltas)], largest_singular(delta))
    elif rule == "ellipsoid":
        xi = onto_ellipsoid(t.deltas, delta)
    else:
        measure = row_norm if per == "row" else whole_norm
        xi = _ratio([measure(a, norm) for a in t.deltas], measure(delta, norm))
    if max_cosine is not None:
        xi = where(mean_cosine(t.deltas) > max_cosine, 1.0, xi)
    xi = xi * target_scale
    if sensitive != "none":
        held = _SENSITIVE.search(t.name) is not None if sensitive == "rule" else any(part in t.name for part in names)
        xi = minimum(xi, 1.0) if held else maximum(xi, 1.0) if clip == "both" else xi
    return t.origin + xi * delta


def _names(sensitive: str, layers: tuple[str, ...], listed: tuple[tuple[str, float | None], ...] | None, lowest: int) -> tuple[str, ...]:
    if layers and sensitive != "list":
        raise ValueError("magic_wsc: layers are read with sensitive: list alone; set it, or leave layers out")
    if listed is not None and sensitive != "file":
        raise ValueError("magic_wsc: layers_file is read with sensitive: file alone; set it, or leave layers_file out")
    if sensitive != "file":
        return layers
    if listed is None:
        raise ValueError("magic_wsc: sensitive: file needs layers_file, a file of names")
    scored = sorted((score, name) for name, score in listed if score is not None)
    return tuple(name for _, name in scored[:lowest]) or tuple(name for name, _ in listed)


def _eligible(t: MergeInputs) -> bool:
    if 0 in t.shape:
        return False
    return len(t.shape) > 2 or (len(t.shape) == 2 and "weight" in t.name and "ln" not in t.name)


def _ratio(experts: list[LazyTensor], size: LazyTensor) -> LazyTensor:
    return where(differs(size, 0.0), mean(experts) / size, 1.0)
