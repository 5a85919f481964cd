"""The optimisations that can be switched off, each by name: `plait plan --no-<name>`, `Options(without=(name, ...))`.

None of them changes a bit of the output, so switching one off only shows what it is worth. What is left out because it would change bits is
no optimisation in this sense: a model of weight zero is not read since its method says so (zero times infinity is not zero, and minus zero
plus zero is zero).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from plait.ops.errors import PlanError


@dataclass(frozen=True, slots=True)
class Optimisation:
    """One optimisation.

    Attributes:
        name: on the command line and in plans.
        does: what it does, a sentence.
    """

    name: str
    does: str


BYTE_COPY = "byte-copy"
COMMON_SUBEXPRESSIONS = "common-subexpressions"
CONSTANT_FOLDING = "constant-folding"
FORESIGHT = "foresight"
KEEP_INPUTS = "keep-inputs"
SHARED_INPUTS = "shared-inputs"
SHARED_PASSES = "shared-passes"

OPTIMISATIONS = {
    o.name: o
    for o in (
        Optimisation(BYTE_COPY, "A tensor that comes out as it went in is copied byte for byte, not decoded and rounded again."),
        Optimisation(COMMON_SUBEXPRESSIONS, "A statistic or decomposition that several terms use is computed once, not once for each."),
        Optimisation(CONSTANT_FOLDING, "Arithmetic on numbers is done while planning, and factors of one are dropped."),
        Optimisation(FORESIGHT, "A small sample foresees where an exact threshold lies, which spares a pass over its inputs."),
        Optimisation(KEEP_INPUTS, "Inputs stay in memory between passes where that is faster and the budget has room."),
        Optimisation(SHARED_INPUTS, "A stored tensor that a recipe names in two places is read once."),
        Optimisation(SHARED_PASSES, "Statistics of one tensor that can be gathered together share a pass over its inputs."),
    )
}


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """Names of optimisations, each once, in alphabetical order.

    Raises:
        PlanError: one is not known.
    """
    from plait.ops.method import nearest  # not needed to tell their names

    found = sorted(set(names))
    for name in found:
        if name not in OPTIMISATIONS:
            raise PlanError(f"no optimisation called {name!r}{nearest(name, OPTIMISATIONS)}; there are {', '.join(OPTIMISATIONS)}")
    return tuple(found)
