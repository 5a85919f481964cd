"""By which algorithm an op on whole tensors runs, why by that one, and how far its result may be off.

The same arithmetic that the kernels decide by, read before anything runs: shapes and parameters alone, so that a plan can tell it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from plait.ops.kernels import polar as polars
from plait.ops.kernels.thin_svd import DIRECT_SIDE, svd_flops, svd_route
from plait.ops.wholes import sizes
from plait.planner.program import Node

_LIMIT = f"1e{math.log10(polars.ERROR_LIMIT):.0f}"
#: What rounding a result to float32 costs.
_ROUNDED = "rounding to float32"


@dataclass(frozen=True, slots=True)
class Algorithm:
    """How a whole op runs.

    Attributes:
        name: of the algorithm.
        why: the reason for it; empty where there is no other.
        error: bound or class of the error of its result.
        figures: the numbers that decided, where there are any.
    """

    name: str
    why: str
    error: str
    figures: str = ""


def algorithm(node: Node) -> Algorithm:
    """The algorithm of a whole op."""
    known: Callable[[Node], Algorithm] | None = _KNOWN.get(node.op)
    return known(node) if known else Algorithm(_PLAIN.get(node.op, node.op), "", _ROUNDED)


def _svd(node: Node) -> Algorithm:
    rows, columns = node.shape
    rank, accuracy = int(node.param("rank")), node.param("accuracy")
    route = svd_route(rows, columns, rank, accuracy)
    short, long = sorted((rows, columns))
    if route == "direct":
        return Algorithm("SVD in float64", f"with no side of {DIRECT_SIDE} or more it costs nothing", _ROUNDED, f"the longer side is {long}")
    if route == "randomized":
        times = svd_flops(rows, columns, rank) / svd_flops(rows, columns, rank, "fast")
        figures = f"{rank} of {short} triplets take {times:.1f} times less work than by a Gram matrix"
        why = "accuracy: fast allows it, and for so few triplets it is less work"
        return Algorithm("random sketch", why, "within about 1 % of the best approximation of that rank", figures)
    why = f"eigenvectors of the short side are cheaper than an SVD and as good for float32 input from a side of {DIRECT_SIDE} on"
    if accuracy == "fast":
        why += "; accuracy: fast allows a random sketch, but " + ("all triplets are wanted" if rank == short else "for so many triplets it would take longer")
    return Algorithm("Gram matrix in float64", why, "at most 1e-6 of the norm", f"the sides are {short} and {long}, {rank} triplets are wanted")


def _polar(node: Node) -> Algorithm:
    short, long = sorted(node.shape)
    if node.param("rank_policy") == "full":
        return Algorithm("SVD in float64", "rank_policy: full keeps every direction", _ROUNDED)
    why = "it needs the singular vectors of the short side alone"
    figures = f"the sides are {short} and {long}"
    if long < DIRECT_SIDE:
        figures += f"; so small a matrix may be off by more than {_LIMIT} so, and then an SVD takes over"
    return Algorithm("Gram matrix in float64", why, f"at most {_LIMIT} of the norm, and rounding to float32", figures)


def _joint(node: Node) -> Algorithm:
    m, n = sizes(node)[0] if node.param("side") == "left" else sizes(node)[0][::-1]
    count = len(sizes(node))
    side = "rows" if m <= count * n else "columns"
    short, long = sorted((m, count * n))
    why = f"it is added up over the matrices, which are never set side by side; of their {side}, the fewer"
    figures = f"{count} matrices; {short} {side} against {long}"
    return Algorithm("Gram matrix in float64", why, "directions below 1e-7 of the largest are left out", figures)


def _steps(node: Node) -> Algorithm:
    return Algorithm(f"{node.param('steps')} gradient steps", "", _ROUNDED)


_KNOWN: dict[str, Callable[[Any], Algorithm]] = {"svd": _svd, "polar": _polar, "joint_svd": _joint, "doge_correction": _steps}
_PLAIN = {
    "matmul": "matrix product in float32",
    "concat": "copy",
    "cut": "copy",
    "stream": "copy",
    "scale": "product by rows or columns",
    "combine": "arithmetic",
    "row_dots": "inner products in float64",
    "prune_threshold": "exact threshold by counting",
    "prune": "comparison",
    "opcm_block": "copy",
}
