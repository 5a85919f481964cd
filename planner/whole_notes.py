"""What a plan says about its whole-matrix ops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from plait.planner.liveness import recomputed
from plait.planner.program import Program


def whole_notes(programs: Sequence[Program], counts: Mapping[int, int]) -> list[str]:
    """What is worth knowing about whole ops: results that are computed again, and decompositions that are not exact."""
    again = [n for n in counts if any(recomputed(s, programs[n].nodes) for s in programs[n].stages)]
    notes = []
    if again:
        count, times = sum(counts[n] for n in again), max(sum(recomputed(s, programs[n].nodes) for s in programs[n].stages) for n in again)
        notes.append(
            f"{count} matri{'x is' if count == 1 else 'ces are'} worked on again in a later sweep ({times} stage{'s' if times > 1 else ''} each): "
            "nothing large is held while model-wide statistics are gathered"
        )
    used = {(node.op, str(node.param("accuracy"))) for n in counts for node in programs[n].nodes if node.op == "svd"}
    if ("svd", "fast") in used:
        notes.append("accuracy: fast: truncated decompositions are randomised, within about 1 % of the best approximation; accuracy: exact is the alternative")
    return notes
