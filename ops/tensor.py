"""`LazyTensor`: an immutable, hash-consed node of an expression over stored tensors.

Building one computes nothing. Equal expressions are the same object, so a common subexpression
costs nothing, and each carries a content key: a hash of op, parameters, shape and inputs, where a
leaf's key names the file's identity, the tensor and its byte range. Functions over nodes live in
`plait.ops.algebra`; running them is the engine's work.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal, TypeAlias

from plait.ops.op import CONST, LOAD, OPS, Op

Space = Literal["tensor", "row", "small", "matrix"]
Scalar = float | int
Operand: TypeAlias = "LazyTensor | float | int"


class LazyTensor:
    """One node.

    Attributes:
        op: what it does.
        inputs: the nodes it needs.
        params: sorted `(name, value)` pairs, hashable.
        shape: dimensions; `(rows, 1)` for row values, `()`, `(K,)` or `(K, K)` for small ones.
        dtype: `float32` (computed), a storage float after `cast`, `bool`, `uint32`, `int32`; `float64` for row and small values.
        space: `tensor` (one value an element), `row` (one a row), `small` (a few numbers on the host) or `matrix` (held whole in memory,
            of any shape, made and used by whole ops alone: `plait.ops.matrix`).
        key: 16-byte content key.
    """

    __slots__ = ("__weakref__", "dtype", "inputs", "key", "op", "params", "shape", "space")
    op: Op
    inputs: tuple[LazyTensor, ...]
    params: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    dtype: str
    space: Space
    key: bytes

    def __new__(
        cls,
        op: Op,
        inputs: tuple[LazyTensor, ...] = (),
        params: tuple[tuple[str, Any], ...] = (),
        *,
        shape: tuple[int, ...],
        dtype: str,
        space: Space,
    ) -> LazyTensor:
        """The node, or the equal one that exists already."""
        head = f"{op.name}|{params!r}|{shape!r}|{dtype}|{space}".encode()
        key = blake2b(head + b"".join(i.key for i in inputs), digest_size=16).digest()
        known = _NODES.get(key)
        if known is not None:
            return known
        node = object.__new__(cls)
        for name, value in (("op", op), ("inputs", inputs), ("params", params), ("shape", shape), ("dtype", dtype), ("space", space), ("key", key)):
            object.__setattr__(node, name, value)
        _NODES[key] = node
        return node

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError("a LazyTensor is immutable")

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def param(self, name: str) -> Any:
        """The parameter `name`, or None."""
        return dict(self.params).get(name)

    def __repr__(self) -> str:
        facts = "".join(f", {k}={v!r}" for k, v in self.params)
        return f"LazyTensor({self.op.name}, {self.dtype}{list(self.shape)}{facts})"

    def __reduce__(self) -> Any:
        raise TypeError("a LazyTensor lives in one process; send the plan instead")

    def __add__(self, other: Operand) -> LazyTensor:
        return binary("add", self, other)

    def __radd__(self, other: Operand) -> LazyTensor:
        return binary("add", other, self)

    def __sub__(self, other: Operand) -> LazyTensor:
        return binary("sub", self, other)

    def __rsub__(self, other: Operand) -> LazyTensor:
        return binary("sub", other, self)

    def __mul__(self, other: Operand) -> LazyTensor:
        return binary("mul", self, other)

    def __rmul__(self, other: Operand) -> LazyTensor:
        return binary("mul", other, self)

    def __truediv__(self, other: Operand) -> LazyTensor:
        return binary("div", self, other)

    def __rtruediv__(self, other: Operand) -> LazyTensor:
        return binary("div", other, self)

    def __neg__(self) -> LazyTensor:
        return elementwise("neg", self)

    def __abs__(self) -> LazyTensor:
        return elementwise("abs", self)

    def __gt__(self, other: Operand) -> LazyTensor:
        return binary("gt", self, other)

    def __ge__(self, other: Operand) -> LazyTensor:
        return binary("ge", self, other)

    def __lt__(self, other: Operand) -> LazyTensor:
        return binary("lt", self, other)

    def __le__(self, other: Operand) -> LazyTensor:
        return binary("le", self, other)

    def __and__(self, other: LazyTensor) -> LazyTensor:
        return elementwise("and", self, other)

    def __or__(self, other: LazyTensor) -> LazyTensor:
        return elementwise("or", self, other)

    def __invert__(self) -> LazyTensor:
        return elementwise("not", self)

    def __getitem__(self, index: int) -> LazyTensor:
        """Component `index` of a small vector, as a small scalar."""
        if self.space != "small" or len(self.shape) != 1 or not 0 <= index < self.shape[0]:
            raise IndexError(f"component {index} of {self!r}")
        return LazyTensor(OPS["item"], (self,), (("index", index),), shape=(), dtype="float64", space="small")


_NODES: weakref.WeakValueDictionary[bytes, LazyTensor] = weakref.WeakValueDictionary()


def load(source: tuple[Any, ...], shape: tuple[int, ...], storage: str) -> LazyTensor:
    """A stored tensor.

    Args:
        source: what identifies its bytes: file identity, tensor name and byte range; hashable, part of the key.
        shape: its dimensions.
        storage: safetensors code of its dtype (`BF16`, `F16`, `F32`).
    """
    return LazyTensor(LOAD, (), (("source", source), ("storage", storage)), shape=shape, dtype="float32", space="tensor")


def const(value: Scalar) -> LazyTensor:
    """A number, as a small scalar."""
    return LazyTensor(CONST, (), (("value", float(value)),), shape=(), dtype="float64", space="small")


def elementwise(name: str, *inputs: Operand) -> LazyTensor:
    """Apply a declared map; small and row operands broadcast over tensors.

    Raises:
        ValueError: tensor operands of different shapes.
    """
    nodes = tuple(i if isinstance(i, LazyTensor) else const(i) for i in inputs)
    if any(n.space == "matrix" for n in nodes):
        return _on_matrices(name, nodes)
    space: Space = "tensor" if any(n.space == "tensor" for n in nodes) else "row" if any(n.space == "row" for n in nodes) else "small"
    shapes = {n.shape for n in nodes if n.space == space and (space != "small" or n.shape != ())}
    if len(shapes) > 1:
        raise ValueError(f"{name} of tensors of shapes {' and '.join(str(list(s)) for s in sorted(shapes))}")
    op = OPS[name]
    dtype = op.result if op.result != "same" else "float32" if space == "tensor" else "float64"
    return LazyTensor(op, nodes, shape=next(iter(shapes), ()), dtype=dtype, space=space)


def _on_matrices(name: str, nodes: tuple[LazyTensor, ...]) -> LazyTensor:
    """Arithmetic on whole matrices; of other operands only numbers fit."""
    shapes = {n.shape for n in nodes if n.space == "matrix"}
    if name not in ON_MATRICES or len(shapes) > 1 or any(n.space not in ("matrix", "small") or (n.space == "small" and n.shape) for n in nodes):
        what = " and ".join(f"{n.space} {list(n.shape)}" for n in nodes)
        raise ValueError(f"{name} of {what}: whole matrices take {', '.join(ON_MATRICES)} with matrices of one shape and with numbers")
    sizes = tuple(n.shape for n in nodes if n.space == "matrix")
    return LazyTensor(OPS["combine"], nodes, (("function", name), ("sizes", sizes)), shape=sizes[0], dtype="float32", space="matrix")


#: Elementwise functions of whole matrices.
ON_MATRICES = ("add", "sub", "mul", "div", "neg", "abs", "sign", "maximum", "minimum")


def binary(name: str, a: Operand, b: Operand) -> LazyTensor:
    """Arithmetic and comparison with the simplifications that change no bit: x*1, x/1, and numbers among themselves."""
    folding = _FOLDING.get()
    if folding is not None and not folding.on:
        return elementwise(name, a, b)
    simpler = _simplified(name, a, b)
    if simpler is None:
        return elementwise(name, a, b)
    if folding is not None:
        folding.done += 1
    return simpler


def _simplified(name: str, a: Operand, b: Operand) -> LazyTensor | None:
    x, y = value_of(a), value_of(b)
    if x is not None and y is not None and name in _ON_NUMBERS and not (name == "div" and y == 0):
        return const(_ON_NUMBERS[name](x, y))
    if name in ("mul", "div") and y == 1.0 and isinstance(a, LazyTensor):
        return a
    if name == "mul" and x == 1.0 and isinstance(b, LazyTensor):
        return b
    return None


@dataclass(slots=True)
class Folding:
    """Whether `binary` simplifies, and how often it did."""

    on: bool = True
    done: int = 0


_FOLDING: ContextVar[Folding | None] = ContextVar("folding", default=None)


@contextmanager
def constant_folding(on: bool = True) -> Iterator[Folding]:
    """While it lasts, the simplifications of `binary` are counted, or not made."""
    folding = Folding(on)
    token = _FOLDING.set(folding)
    try:
        yield folding
    finally:
        _FOLDING.reset(token)


_ON_NUMBERS = {"add": lambda x, y: x + y, "sub": lambda x, y: x - y, "mul": lambda x, y: x * y, "div": lambda x, y: x / y}


def value_of(x: Operand) -> float | None:
    """The number that `x` is, when it is a literal or a `const`."""
    if isinstance(x, LazyTensor):
        return x.params[0][1] if x.op is CONST else None
    return float(x)
