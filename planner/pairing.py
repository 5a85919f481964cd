"""Which tensors of two or three models can be compared, and the plan that compares them; from headers alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from plait.ops.comparison import ONE, THREE, TWO, one, three, two
from plait.ops.dtypes import BY_CODE
from plait.ops.errors import PlanError
from plait.ops.tensor import LazyTensor
from plait.planner.expressions import NUMBERS, OutputSpec
from plait.planner.layers import role, split
from plait.planner.layout import make_layout
from plait.planner.plan import Plan
from plait.planner.resources import Resources
from plait.planner.schedule import make_plan
from plait.planner.types import Checkpoint, TensorRef

#: Floats that streamed work computes on.
COMPUTED = frozenset(("F32", "F16", "BF16"))


@dataclass(frozen=True, slots=True)
class Pair:
    """One tensor that all models have in one shape.

    Attributes:
        name: in all of them.
        refs: A, B and, where there is one, the base.
        ranked: it is a matrix whose largest singular values are wanted.
    """

    name: str
    refs: tuple[TensorRef, ...]
    ranked: bool = False

    @property
    def leaves(self) -> tuple[TensorRef, ...]:
        """Each stored tensor once."""
        return tuple(dict.fromkeys(self.refs))


@dataclass(frozen=True, slots=True)
class Pairing:
    """What is compared and what is not.

    Attributes:
        labels: A, B and, where there is one, the base, as they are called in sentences.
        pairs: tensors whose values are compared.
        bitwise: tensors that are not computed on (integers, float64, quantised), compared bit by bit; A's and B's.
        left_out: tensors that cannot be compared, and why, in words.
    """

    labels: tuple[str, ...]
    pairs: tuple[Pair, ...]
    bitwise: tuple[Pair, ...]
    left_out: dict[str, str]


def pair_up(models: Sequence[Checkpoint], labels: Sequence[str], *, ranked: bool = False) -> Pairing:
    """Match the tensors of A, B and, where given, their base by name.

    Raises:
        PlanError: no tensor can be compared.
    """
    a, b = models[0], models[1]
    pairs, bitwise, left_out = [], [], dict[str, str]()
    for name in dict.fromkeys(name for model in models for name in model.tensors):
        refs = [model.tensors.get(name) for model in models]
        held = [ref for ref in refs if ref is not None]
        if len(held) < len(refs):
            having = [label for label, ref in zip(labels, refs, strict=True) if ref is not None]
            left_out[name] = f"only in {' and '.join(having)}"
        elif len({ref.shape for ref in held}) > 1:
            left_out[name] = "shapes differ: " + ", ".join(f"{list(ref.shape)} in {label}" for label, ref in zip(labels, held, strict=True))
        elif 0 in held[0].shape:
            left_out[name] = f"empty: {list(held[0].shape)}"
        elif all(ref.dtype in COMPUTED for ref in held):
            pairs.append(Pair(name, tuple(held), ranked and _is_matrix(held[0].shape)))
        elif held[0].dtype == held[1].dtype:
            bitwise.append(Pair(name, (held[0], held[1])))
        else:
            names = ", ".join(f"{BY_CODE[ref.dtype].name} in {label}" for label, ref in zip(labels, held, strict=True))
            left_out[name] = f"dtypes that are not computed on: {names}"
    if not pairs and not bitwise:
        few = "; ".join(f"{name}: {why}" for name, why in list(left_out.items())[:3])
        raise PlanError(f"{a.label} and {b.label} have no tensor in common that could be compared ({few}); give models of one architecture")
    return Pairing(tuple(labels), tuple(pairs), tuple(bitwise), left_out)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and shape[0] > 1 and any(size > 1 for size in shape[1:])


def comparison_plan(pairing: Pairing, models: Sequence[Checkpoint], resources: Resources, passes: int = 0, notes: Sequence[str] = ()) -> Plan:
    """The plan that gives the numbers of every pair (`plait.ops.comparison`).

    Args:
        pairing: of these models.
        models: A, B and, where there is one, their base.
        resources: what it may use.
        passes: over matrices whose largest singular values are wanted.
        notes: for the reader.

    Raises:
        BudgetTooSmall: not even one block of each model fits.
    """
    specs = [_spec(pair, passes if pair.ranked else 0) for pair in pairing.pairs]
    files = {file.path: file for model in models for file in model.files}
    layout = make_layout([(pair.name, NUMBERS, (len(number_names(pair, passes)),)) for pair in pairing.pairs])
    return make_plan("comparison", specs, layout, list(files.values()), resources, notes)


def number_names(pair: Pair, passes: int = 0) -> tuple[str, ...]:
    """What the numbers of a pair are, in their order."""
    names, ranks = (TWO, ("top",)) if len(pair.refs) == 2 else (THREE, ("top_a", "top_b"))
    return (*names, *ranks) if passes and pair.ranked else names


def scan_plan(model: Checkpoint, resources: Resources, notes: Sequence[str] = ()) -> Plan:
    """The plan that looks through every tensor of a model that is computed on (`plait.ops.comparison.one`)."""
    specs = [
        _numbers(name, (ref,), "one", lambda leaves: one(leaves[0])) for name, ref in model.tensors.items() if ref.dtype in COMPUTED and 0 not in ref.shape
    ]
    return make_plan("scan", specs, make_layout([(s.name, NUMBERS, (len(ONE),)) for s in specs]), list(model.files), resources, notes)


def _spec(pair: Pair, passes: int) -> OutputSpec:
    leaves = pair.leaves
    places = tuple(leaves.index(ref) for ref in pair.refs)

    def build(nodes: Sequence[LazyTensor]) -> LazyTensor:
        a, b, *base = (nodes[place] for place in places)
        return three(a, b, base[0], passes) if base else two(a, b, passes)

    return _numbers(pair.name, leaves, (places, passes), build)


def _numbers(name: str, leaves: tuple[TensorRef, ...], what: object, build: Callable[[Sequence[LazyTensor]], LazyTensor]) -> OutputSpec:
    place = split(name)
    signature = (what, leaves[0].shape, tuple(ref.dtype for ref in leaves))
    return OutputSpec(name, NUMBERS, leaves, signature, build, role(name), place[1] if place is not None else None)
