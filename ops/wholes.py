"""What each op on whole tensors needs and gives: results, workspace, work, and where its numerics are. Arithmetic only; no torch.

An op takes float32 matrices and small vectors, and gives matrices and small vectors. Its numerics are one function against torch, for any
device: `run(facts, inputs, out) -> numbers`, with `inputs` as the node lists them (matrices as tensors, small values as float64 NumPy arrays),
`out` the `Results` that its matrices are written to, and `numbers` the small vector that `info` gives.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

#: Elements that ops working piece by piece take at a time.
PIECE = 1 << 17
_SLACK = 1 << 19
#: What the heap keeps beside many small tensors.
_HEAP_SLACK = 4 << 20
#: Packing buffers of the matrix library.
_PRODUCT_SLACK, _PRODUCT_THREAD = 1 << 20, 2 << 20
#: Work, as float64 operations, and elements of an op that takes one core: less keeps Python busier than the core, more would leave the others waiting.
_LEAST_ALONE, _MOST_ALONE, _ELEMENTS_ALONE = 3e7, 2e10, 1 << 21
#: Ops whose result is (part of) an input's memory.
VIEWS = frozenset(("hold", "matrix"))


class Facts(Protocol):
    """What is known of a node without running it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions of its result."""

    def param(self, name: str) -> Any:
        """The parameter `name`, or None."""


@dataclass(frozen=True, slots=True)
class Whole:
    """One op.

    Attributes:
        run: `module:function` of its numerics; empty for an op that only names memory.
        workspace: most bytes it needs beside its inputs and results, on the CPU.
        flops: its work, as float64 operations at the speed of a product of large matrices.
        results: shapes of the matrices it gives.
    """

    run: str
    workspace: Callable[[Facts], int]
    flops: Callable[[Facts], float]
    results: Callable[[Facts], tuple[tuple[int, ...], ...]] = lambda node: (node.shape,)


def sizes(node: Facts) -> tuple[tuple[int, ...], ...]:
    """Shapes of a node's matrix inputs."""
    return node.param("sizes") or (node.shape,)


def is_view(op: str, node: Facts) -> bool:
    """Whether a node's value is its input's memory."""
    return op in VIEWS or (op == "stream" and not node.param("padded"))


def on_one_core(op: str, node: Facts) -> bool:
    """Whether an op runs on one core of the CPU, beside others: small matrices (heads, experts, adapters) use several cores badly.

    The shapes alone decide, since the number of threads decides the last bits.
    """
    if is_view(op, node) or max(map(math.prod, (node.shape, *sizes(node)))) > _ELEMENTS_ALONE:
        return False
    return _LEAST_ALONE <= WHOLES[op].flops(node) <= _MOST_ALONE


def _threads(op: str, node: Facts) -> int:
    """Threads that torch uses for an op on the CPU, at most."""
    return 1 if on_one_core(op, node) else os.cpu_count() or 1


def _numel(node: Facts) -> int:
    return math.prod(node.shape)


def _touch(node: Facts) -> float:
    """Work of going over the result once: bound by memory, a few operations' worth an element."""
    return 16.0 * _numel(node)


def _small_workspace(node: Facts) -> int:
    return _SLACK


def _pieces(bytes_each: int) -> Callable[[Facts], int]:
    """Workspace of ops that take whole rows piece by piece: float64 copies, products, keys and counts."""
    return lambda node: bytes_each * max(PIECE, sizes(node)[0][1]) + _HEAP_SLACK


# -- products -------------------------------------------------------------------------------------------
def _packing(op: str, node: Facts) -> int:
    return _PRODUCT_SLACK + _PRODUCT_THREAD * _threads(op, node)


def _product_workspace(node: Facts) -> int:
    return _packing("matmul", node)


def _product_flops(node: Facts) -> float:
    return 1.0 * _numel(node) * int(node.param("inner"))  # in float32: twice as fast


# -- decompositions ---------------------------------------------------------------------------------------
def _polar_policy(node: Facts) -> Any:
    return "full" if node.param("rank_policy") == "full" else "numerical"


def _polar_workspace(node: Facts) -> int:
    from plait.ops.kernels.polar import polar_workspace_bytes

    rows, columns = node.shape
    return polar_workspace_bytes(rows, columns, _polar_policy(node), threads=_threads("polar", node))


def _polar_flops(node: Facts) -> float:
    from plait.ops.kernels.polar import polar_flops

    rows, columns = node.shape
    return polar_flops(rows, columns, _polar_policy(node))


def _svd_workspace(node: Facts) -> int:
    from plait.ops.kernels.decompose import svd_workspace_bytes

    rows, columns = node.shape
    return svd_workspace_bytes(rows, columns, node.param("rank"), node.param("accuracy"), _threads("svd", node)) if node.param("rank") else 0


def _svd_flops(node: Facts) -> float:
    from plait.ops.kernels.thin_svd import svd_flops

    rows, columns = node.shape
    return svd_flops(rows, columns, node.param("rank"), node.param("accuracy")) if node.param("rank") else 0.0


def _svd_results(node: Facts) -> tuple[tuple[int, ...], ...]:
    (m, n), k = node.shape, node.param("rank")
    return (m, k), (k, n)


def _joint(node: Facts) -> tuple[int, int, int]:
    m, n = sizes(node)[0] if node.param("side") == "left" else sizes(node)[0][::-1]
    return len(sizes(node)), m, n


def _joint_workspace(node: Facts) -> int:
    from plait.ops.kernels.decompose import joint_workspace_bytes

    return joint_workspace_bytes(*_joint(node), _threads("joint_svd", node))


def _joint_flops(node: Facts) -> float:
    from plait.ops.kernels.decompose import joint_flops

    return joint_flops(*_joint(node))


# -- of single methods --------------------------------------------------------------------------------------
def _doge_workspace(node: Facts) -> int:
    m, n = node.shape
    return 4 * (4 * m * n + int(node.param("inner")) * n) + _packing("doge_correction", node)


def _doge_flops(node: Facts) -> float:
    m, n = node.shape
    count = len(sizes(node)) - 1
    # each step goes over the experts twice and over the state a few times, bound by memory
    return float(node.param("steps")) * (16.0 * (2 * count + 10) * m * n + 2.0 * m * n * int(node.param("inner")))


def _nothing(node: Facts) -> tuple[tuple[int, ...], ...]:
    return ()


_HERE = "plait.ops.kernels.matrices:"
WHOLES: dict[str, Whole] = {
    "polar": Whole(_HERE + "polar_factor", _polar_workspace, _polar_flops),
    "hold": Whole("", lambda node: 0, lambda node: 0.0),
    "matrix": Whole("", lambda node: 0, lambda node: 0.0),
    "part": Whole("", lambda node: 0, lambda node: 0.0),
    "stream": Whole(_HERE + "pad", _small_workspace, _touch),
    "matmul": Whole(_HERE + "product", _product_workspace, _product_flops),
    "concat": Whole(_HERE + "concat", _small_workspace, _touch),
    "scale": Whole(_HERE + "scale", _small_workspace, _touch),
    "cut": Whole(_HERE + "cut", _small_workspace, _touch),
    "combine": Whole(_HERE + "combine", _small_workspace, _touch),
    "svd": Whole(_HERE + "svd", _svd_workspace, _svd_flops, _svd_results),
    "joint_svd": Whole(_HERE + "joint_svd", _joint_workspace, _joint_flops),
    "row_dots": Whole(_HERE + "row_dots", _pieces(16), _touch, _nothing),
    "prune_threshold": Whole(_HERE + "prune_threshold", _pieces(54), lambda node: 128.0 * sum(map(math.prod, sizes(node))), _nothing),
    "prune": Whole(_HERE + "prune", _pieces(24), _touch),
    "opcm_block": Whole(_HERE + "opcm_block", _small_workspace, _touch),
    "doge_correction": Whole("plait.ops.kernels.doge:correction", _doge_workspace, _doge_flops),
}
