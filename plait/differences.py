"""What `plait.diff` found: figures of tensors, groups and layers, all made of the sums that one pass gave (`docs/inspect.md`)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from plait.planner.inspect import ROLES, folded
from plait.planner.layers import split

#: Version of the JSON form.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Change:
    """What one model changed.

    Attributes:
        norm: ‖D‖, the root of the sum of squares.
        relative: ‖D‖ over the norm of what was changed; None where that is 0.
        largest: the largest |d|.
        unchanged: share of elements that are as they were.
        spread: (Σ|d|)² / (n Σd²): 1 where all elements changed by the same magnitude, 0.64 for a normal distribution, near 0 where few elements
            hold the change; None where nothing changed.
        stable_rank: ‖D‖² / σ², with the largest singular value σ; of a group the (upper) median of its matrices; None where it was not asked for.
    """

    norm: float
    relative: float | None
    largest: float
    unchanged: float
    spread: float | None
    stable_rank: float | None = None


@dataclass(frozen=True, slots=True)
class Figures:
    """How some tensors differ.

    Attributes:
        tensors, elements: how many.
        norms: ‖A‖ and ‖B‖; with a base ‖C‖ alone.
        changes: of B against A; with a base, of A and of B against it.
        cosine: between A and B; with a base, between the two changes. None where one of them is zero.
        sign_agreement: of the elements that are not zero in both (with a base: that both changed), the share with one sign; None without any.
        both: share of elements that are not zero in both; with a base, that both changed.
    """

    tensors: int
    elements: int
    norms: tuple[float, ...]
    changes: tuple[Change, ...]
    cosine: float | None
    sign_agreement: float | None
    both: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form; a number that is none is null."""
        names = ("a", "b") if len(self.norms) == 2 else ("base",)
        deltas = ("delta",) if len(self.changes) == 1 else ("delta_a", "delta_b")
        found: dict[str, Any] = {"tensors": self.tensors, "elements": self.elements}
        found |= {f"norm_{name}": _finite(norm) for name, norm in zip(names, self.norms, strict=True)}
        for name, change in zip(deltas, self.changes, strict=True):
            found[name] = {key: _finite(getattr(change, key)) for key in ("norm", "relative", "largest", "unchanged", "spread", "stable_rank")}
        found |= {"cosine": _finite(self.cosine), "sign_agreement": _finite(self.sign_agreement)}
        return found | {"both_nonzero" if len(self.norms) == 2 else "both_changed": _finite(self.both)}


@dataclass(frozen=True, slots=True)
class TensorDiff:
    """One tensor of both models.

    Attributes:
        name, role, layer, shape: of it.
        dtypes: in A, in B, and in the base where there is one.
        sums: the numbers that the pass gave, by name (`plait.ops.comparison`).
        nonfinite: values that are NaN or infinite, in each model.
    """

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    dtypes: tuple[str, ...]
    sums: dict[str, float]
    nonfinite: tuple[int, ...]

    @property
    def elements(self) -> int:
        """How many there are."""
        return math.prod(self.shape)

    @property
    def usable(self) -> bool:
        """Whether its figures are numbers; else it is left out of totals."""
        return not any(self.nonfinite) and all(math.isfinite(value) for value in self.sums.values())

    @property
    def figures(self) -> Figures:
        """How it differs."""
        return figures([self])

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        found = self.figures.to_dict()
        del found["tensors"]
        facts = {"name": self.name, "role": self.role, "layer": self.layer, "shape": list(self.shape), "dtypes": list(self.dtypes)}
        return {**facts, "nonfinite": list(self.nonfinite), **found}


@dataclass(frozen=True, slots=True)
class Diff:
    """Two models, tensor by tensor.

    Attributes:
        labels: A, B and, where there is one, the base, as they were given.
        tensors: those whose values were compared, in reading order.
        bitwise: integer, float64 and quantised tensors: whether their bits are equal.
        left_out: tensors that cannot be compared, and why.
        seconds: wall time of the comparison, planning included.
        bytes_read: of the models.
        peak_bytes: predicted private memory above the imports.
        budget_bytes: the memory budget.
        passes: over the matrices whose stable rank was asked for, beside the one that takes everything else; 0 where it was not.
    """

    labels: tuple[str, ...]
    tensors: tuple[TensorDiff, ...]
    bitwise: dict[str, bool] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    bytes_read: int = 0
    peak_bytes: int = 0
    budget_bytes: int = 0
    passes: int = 0

    @property
    def has_base(self) -> bool:
        """Whether changes from a base are compared, and not the models themselves."""
        return len(self.labels) == 3

    @property
    def total(self) -> Figures | None:
        """All tensors together, without those that hold NaN or infinity; None where nothing is left."""
        return self._of(self.tensors)

    def by_role(self) -> dict[str, Figures]:
        """Figures of embedding, attention, MLP, norms, head and the rest."""
        return self.grouped(lambda t: t.role, ROLES)

    def by_layer(self) -> dict[int, Figures]:
        """Figures of each layer of the largest stack."""
        stack = self.main_stack()
        inside = [t for t in self.tensors if t.layer is not None and _stack(t.name) == stack]
        return _grouped(inside, lambda t: t.layer, sorted({t.layer for t in inside if t.layer is not None}))

    def by_kind(self) -> dict[str, Figures]:
        """Figures of each kind of tensor: names with layer numbers folded into `*`."""
        return self.grouped(lambda t: folded(t.name))

    def by_layer_and_kind(self) -> dict[tuple[int, str], Figures]:
        """Figures of each cell of the map: a layer of the largest stack, and what follows its number in names."""
        stack = self.main_stack()
        cells: dict[tuple[int, str], list[TensorDiff]] = {}
        for tensor in self.tensors:
            place = split(tensor.name)
            if place is not None and place[0] == stack and tensor.usable:
                cells.setdefault((place[1], after_layer(tensor.name)), []).append(tensor)
        return {cell: figures(members) for cell, members in cells.items()}

    def main_stack(self) -> str:
        """The stack with most compared tensors; empty where there are no layers."""
        counts: dict[str, int] = {}
        for tensor in self.tensors:
            if tensor.layer is not None:
                counts[_stack(tensor.name)] = counts.get(_stack(tensor.name), 0) + 1
        return max(counts, key=lambda stack: counts[stack], default="")

    def grouped(self, key: Callable[[TensorDiff], Any], order: Sequence[Any] | None = None) -> dict[Any, Figures]:
        """Figures of groups of tensors, in the given order or that of first sight."""
        return _grouped(self.tensors, key, order)

    def _of(self, tensors: Iterable[TensorDiff]) -> Figures | None:
        usable = [t for t in tensors if t.usable]
        return figures(usable) if usable else None

    def readings(self) -> list[dict[str, Any]]:
        """What the figures suggest, in cautious sentences: `measure`, `value` and `text` of each."""
        from plait.readings import readings

        return readings(self)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able form, as `docs/inspect.md` describes it."""
        total = self.total
        names = ("a", "b", "base")
        return {
            "version": VERSION,
            **dict(zip(names, self.labels, strict=False)),
            "seconds": self.seconds,
            "bytes_read": self.bytes_read,
            "predicted_peak_bytes": self.peak_bytes,
            "budget_bytes": self.budget_bytes,
            "rank_passes": self.passes,
            "total": None if total is None else total.to_dict(),
            "roles": {role: found.to_dict() for role, found in self.by_role().items()},
            "layers": {str(layer): found.to_dict() for layer, found in self.by_layer().items()},
            "kinds": {kind: found.to_dict() for kind, found in self.by_kind().items()},
            "tensors": [tensor.to_dict() for tensor in self.tensors],
            "bitwise_equal": self.bitwise,
            "left_out": self.left_out,
            "readings": self.readings(),
        }

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_html(self) -> str:
        """One page that needs nothing else."""
        from plait.diff_page import page

        return page(self)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from plait.diff_page import notebook

        return notebook(self)


def after_layer(name: str) -> str:
    """What follows the layer's number in a name, shortened: `self_attn.q_proj`; the name itself outside the layers."""
    kind = folded(name).removesuffix(".weight")
    return kind.partition(".*.")[2] or kind


def figures(tensors: Sequence[TensorDiff]) -> Figures:
    """Figures of tensors together: their sums added up, in order."""
    total: dict[str, float] = {}
    for tensor in tensors:
        for name, value in tensor.sums.items():
            largest = name.startswith("largest")
            total[name] = max(total.get(name, 0.0), value) if largest else total.get(name, 0.0) + value
    count = sum(tensor.elements for tensor in tensors)
    if "cc" in total:
        norms: tuple[float, ...] = (_root(total["cc"]),)
        changes = tuple(_change(tensors, total, x, f"{x}{x}", "cc", count, f"_{x}") for x in "ab")
        cosine = _ratio(total["ab"], _root(total["aa"]) * _root(total["bb"]))
    else:
        norms = (_root(total["aa"]), _root(total["bb"]))
        changes = (_change(tensors, total, "d", "dd", "aa", count, ""),)
        # of A and B from the norms alone: (‖A‖² + ‖B‖² - ‖D‖²) / 2 is their inner product
        cosine = _ratio((total["aa"] + total["bb"] - total["dd"]) / 2, norms[0] * norms[1])
    cosine = None if cosine is None else max(-1.0, min(1.0, cosine)) if math.isfinite(cosine) else math.nan
    return Figures(len(tensors), count, norms, changes, cosine, _ratio(total["agree"], total["both"]), total["both"] / count)


def _change(tensors: Sequence[TensorDiff], total: dict[str, float], x: str, square: str, reference: str, count: int, suffix: str) -> Change:
    norm = _root(total[square])
    same = total[f"same{suffix}"]
    ranks = [rank for t in tensors if (rank := _ratio(t.sums[square], t.sums.get(f"top{suffix}"))) is not None]
    return Change(
        norm=norm,
        relative=_ratio(norm, _root(total[reference])),
        largest=total[f"largest{suffix}"],
        unchanged=same / count,
        spread=_ratio(total[f"sum{suffix}"] ** 2, count * total[square]),
        stable_rank=sorted(ranks)[len(ranks) // 2] if ranks else None,
    )


def _grouped(tensors: Sequence[TensorDiff], key: Callable[[TensorDiff], Any], order: Sequence[Any] | None = None) -> dict[Any, Figures]:
    groups: dict[Any, list[TensorDiff]] = {k: [] for k in order or ()}
    for tensor in tensors:
        if tensor.usable:
            groups.setdefault(key(tensor), []).append(tensor)
    return {k: figures(members) for k, members in groups.items() if members}


def _stack(name: str) -> str:
    place = split(name)
    return "" if place is None else place[0]


def _root(square: float) -> float:
    return math.sqrt(square) if square >= 0.0 else math.nan


def _ratio(value: float, by: float | None) -> float | None:
    """`value / by`; None where that is 0 or not there."""
    return None if by is None or by == 0.0 else value / by


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
