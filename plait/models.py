"""Whole models as lazy values: opened checkpoints, and what operators and methods make of them."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plait.ops.dtypes import BY_CODE, promote
from plait.ops.errors import PlanError
from plait.ops.inputs import MergeInputs
from plait.ops.method import Method, nearest
from plait.ops.statistics import LayerScore
from plait.ops.tensor import LazyTensor, binary
from plait.planner.checkpoint import open_checkpoint, resolve_model
from plait.planner.expressions import OutputSpec, by_statistic, leaf_of
from plait.planner.layers import role as role_of
from plait.planner.optimisations import SHARED_INPUTS
from plait.planner.statistics import LayerFile
from plait.planner.types import Checkpoint, TensorRef

Number = int | float


class Model:
    """A model that exists as an expression; nothing is read before it is written.

    `a + b`, `a - b`, `0.3 * a`, `a / 2` and `-a` work tensor by tensor. The result has the tensors of its donor, the
    leftmost opened model or the base of a method, which also gives it configuration and tokenizer. Integer tensors are the donor's.
    """

    donor: Checkpoint

    def leaves(self, name: str) -> list[TensorRef]:
        """Stored tensors that tensor `name` is made of, in a fixed order, repeated where used twice."""
        raise TypeError("an abstract model has no tensors")

    def weights(self, name: str) -> list[TensorRef]:
        """Of the leaves those that are weights, whose dtypes decide that of the output."""
        return self.leaves(name)

    def signature(self, name: str) -> Hashable:
        """Equal for tensors whose expressions differ in their stored tensors alone."""
        raise TypeError("an abstract model has no tensors")

    def build(self, name: str, leaves: Iterator[LazyTensor]) -> LazyTensor:
        """The expression of tensor `name` over its leaves."""
        raise TypeError("an abstract model has no tensors")

    @property
    def names(self) -> list[str]:
        """Names of the tensors, in file order."""
        return list(self.donor.tensors)

    def __getitem__(self, name: str) -> LazyTensor:
        """One tensor as a lazy expression.

        Raises:
            KeyError: the model has no such tensor.
        """
        if name not in self.donor.tensors:
            raise KeyError(f"{self.donor.label} has no tensor {name!r}{nearest(name, self.donor.tensors)}")
        return self.build(name, iter([leaf_of(ref) for ref in self.leaves(name)]))

    def __add__(self, other: Model) -> Model:
        return Arithmetic("add", self, _model(other))

    def __sub__(self, other: Model) -> Model:
        return Arithmetic("sub", self, _model(other))

    def __mul__(self, factor: Number) -> Model:
        return Arithmetic("mul", self, _number(factor))

    def __rmul__(self, factor: Number) -> Model:
        return Arithmetic("mul", _number(factor), self)

    def __truediv__(self, factor: Number) -> Model:
        return Arithmetic("div", self, _number(factor))

    def __neg__(self) -> Model:
        return -1.0 * self

    def explain(self, memory: str | int | None = None) -> str:
        """What writing this model would do and need, as text.

        Args:
            memory: the budget, such as `4GiB`; half the free memory when not given.
        """
        from plait.api import plan_model
        from plait.planner.explain import to_text

        return to_text(plan_model(self, memory=memory))


def _model(value: Any) -> Model:
    if not isinstance(value, Model):
        raise TypeError(f"a model can be added to a model only, not to {value!r}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"a model can be scaled by a number only, not by {value!r}")
    return float(value)


class Opened(Model):
    """A checkpoint on disk."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.donor = checkpoint

    def leaves(self, name: str) -> list[TensorRef]:
        """The stored tensor."""
        return [self.donor.tensors[name]]

    def signature(self, name: str) -> Hashable:
        """All stored tensors are alike."""
        return "opened"

    def build(self, name: str, leaves: Iterator[LazyTensor]) -> LazyTensor:
        """The stored tensor itself."""
        return next(leaves)


def open_model(path: str | Path) -> Opened:
    """Open a checkpoint by reading its headers.

    Args:
        path: a folder or `.safetensors` file, or the name of a model in the local Hugging Face cache.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return Opened(open_checkpoint(resolve_model(str(path)), str(path)))


class Arithmetic(Model):
    """Two models, or a model and a number, joined by an operator."""

    def __init__(self, op: str, left: Model | float, right: Model | float) -> None:
        self.op, self.left, self.right = op, left, right
        self.donor = left.donor if isinstance(left, Model) else right.donor  # type: ignore[union-attr]

    @property
    def _models(self) -> list[Model]:
        return [m for m in (self.left, self.right) if isinstance(m, Model)]

    def leaves(self, name: str) -> list[TensorRef]:
        """Those of both sides."""
        return [ref for m in self._models for ref in m.leaves(name)]

    def weights(self, name: str) -> list[TensorRef]:
        """Those of both sides."""
        return [ref for m in self._models for ref in m.weights(name)]

    def signature(self, name: str) -> Hashable:
        """Operator and sides."""
        return (self.op, *(m.signature(name) if isinstance(m, Model) else m for m in (self.left, self.right)))

    def build(self, name: str, leaves: Iterator[LazyTensor]) -> LazyTensor:
        """The operator over both sides."""
        left, right = (m.build(name, leaves) if isinstance(m, Model) else m for m in (self.left, self.right))
        return binary(self.op, left, right)


class Merged(Model):
    """A merge method, or a step after one, over models.

    Args:
        method: from the registry.
        base: model that the method merges into, or None.
        experts: models that it merges.
        params: by Python keyword, checked; per-expert ones are tuples.
        merged: for a step, the model that it follows.
        tensors: statistics that are models: for each of the method's one an expert.
        layers: statistics of layers, one an expert, where the method has such a statistic.
    """

    def __init__(
        self,
        method: Method,
        base: Model | None,
        experts: Sequence[Model],
        params: dict[str, Any],
        merged: Model | None = None,
        tensors: Sequence[Model] = (),
        layers: Sequence[LayerFile] = (),
    ) -> None:
        self.tensors, self.layers = tuple(tensors), tuple(layers)
        self.method, self.base, self.experts, self.params, self.merged = method, base, tuple(experts), params, merged
        self.donor = (base or self.experts[0]).donor
        self.labels = tuple(e.donor.label if isinstance(e, Opened) else f"{e.donor.label}#{i}" for i, e in enumerate(self.experts, 1))

    @property
    def _models(self) -> list[Model]:
        return [m for m in (self.merged, self.base, *self.experts) if m is not None]

    def leaves(self, name: str) -> list[TensorRef]:
        """Those of the base, of all experts and of their statistics."""
        return [ref for m in (*self._models, *self.tensors) for ref in m.leaves(name)]

    def weights(self, name: str) -> list[TensorRef]:
        """Those of the base and all experts."""
        return [ref for m in self._models for ref in m.weights(name)]

    def signature(self, name: str) -> Hashable:
        """Method, parameters and models."""
        named = name if self.method.uses_name else None
        models = [m.signature(name) for m in (*self._models, *self.tensors)]
        return (self.method.name, tuple(sorted(self.params.items())), self.labels, named, self._scores(name), *models)

    def _scores(self, name: str) -> tuple[LayerScore, ...]:
        scores = []
        for file in self.layers:
            score = file.score(name)
            if score is None:
                raise PlanError(f"tensor {name!r} belongs to no layer of {file.label}; add it, or its layer", tensor=name)
            scores.append(score)
        return tuple(scores)

    def build(self, name: str, leaves: Iterator[LazyTensor]) -> LazyTensor:
        """The method's expression."""
        merged = self.merged.build(name, leaves) if self.merged is not None else None
        base = self.base.build(name, leaves) if self.base is not None else None
        experts = tuple(e.build(name, leaves) for e in self.experts)
        given = by_statistic(self.method, [m.build(name, leaves) for m in self.tensors], self._scores(name))
        t = MergeInputs(base, experts, self.labels, experts[0].shape, name, role_of(name), **given)
        result: LazyTensor = self.method.build(t, merged, **self.params) if merged is not None else self.method.build(t, **self.params)
        return result


def output_specs(model: Model, dtype: str | None, without: Collection[str] = ()) -> tuple[list[OutputSpec], list[str]]:
    """Specs of every tensor of a model, and notes.

    Args:
        model: any expression.
        dtype: storage code of float tensors in the output, or None for that of the inputs.
        without: names of optimisations that are not made.

    Raises:
        PlanError: tensors are missing or differ in shape; lists all.
    """
    specs: list[OutputSpec] = []
    problems: list[str] = []
    copied = 0
    for name, ref in model.donor.tensors.items():
        if BY_CODE[ref.dtype].kind == "i":
            specs.append(_copied(name, ref))
            copied += 1
            continue
        try:
            leaves = model.leaves(name)
        except KeyError:
            problems.append(f"tensor {name} of {model.donor.label} is missing in another model of the expression")
            continue
        problem = _misfit(model, name, leaves, dtype)
        if problem:
            problems.append(problem)
        elif BY_CODE[ref.dtype].kind == "q":
            specs.append(_copied(name, leaves[0]))
            copied += 1
        else:
            specs.append(_merged(model, name, leaves, dtype, SHARED_INPUTS not in without))
    if problems:
        rest = f"\nand {len(problems) - 20} more like these" if len(problems) > 20 else ""
        raise PlanError("\n".join(problems[:20]) + rest, problems=problems)
    notes = [f"{copied} tensors that are not floats are copied from {model.donor.label}"] if copied else []
    return specs, notes


def left_out(donor: Checkpoint, models: Sequence[Checkpoint]) -> list[str]:
    """Notes on tensors that other models have and the donor, and so the output, has not."""
    notes = []
    for model in models:
        names = [name for name in model.tensors if name not in donor.tensors]
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            notes.append(f"left out {len(names)} tensor{'s' if len(names) > 1 else ''} of {model.label} that {donor.label} does not have: {listed}")
    return notes


def _misfit(model: Model, name: str, leaves: list[TensorRef], dtype: str | None) -> str:
    """Why tensor `name` cannot be computed from its leaves, or an empty string."""
    first = leaves[0]
    for leaf in leaves:
        if leaf.shape != first.shape:
            return f"tensor {name} has shape {list(first.shape)} in {first.file} but {list(leaf.shape)} in {leaf.file}"
        if BY_CODE[leaf.dtype].kind == "i":
            return f"tensor {name} holds integers ({leaf.dtype}) in {leaf.file} but floats in other models; use models of one kind"
    odd = next((leaf for leaf in leaves if leaf.dtype not in ("F32", "F16", "BF16")), None)
    if odd is None or (len(leaves) == 1 and dtype in (None, odd.dtype) and model.build(name, iter([leaf_of(odd)])).op.name == "load"):
        return ""
    if odd.dtype == "F64":
        return f"tensor {name} of {odd.file} is float64, which plait copies but does not compute on; save the model in float32 first"
    return f"tensor {name} of {odd.file} is quantised ({BY_CODE[odd.dtype].name}), which can only be copied unchanged; use the model's unquantised weights"


def _copied(name: str, ref: TensorRef) -> OutputSpec:
    return OutputSpec(name, ref.dtype, (ref,), ("copy", ref.dtype, ref.shape), lambda nodes: nodes[0], role_of(name))


def _merged(model: Model, name: str, leaves: list[TensorRef], dtype: str | None, shared: bool) -> OutputSpec:
    unique = tuple(dict.fromkeys(leaves)) if shared else tuple(leaves)
    pattern = tuple(unique.index(leaf) for leaf in leaves) if shared else tuple(range(len(leaves)))
    out = dtype or promote([leaf.dtype for leaf in model.weights(name)])
    signature = (model.signature(name), pattern, tuple(u.dtype for u in unique), unique[0].shape, out)
    return OutputSpec(name, out, unique, signature, lambda nodes: model.build(name, iter([nodes[p] for p in pattern])), role_of(name), named=len(leaves))
