"""What is worked out from a plan for its readers, as plain data: the part of its JSON that people see in the tree."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from plait.planner.cost import component_bytes
from plait.planner.explain import headline, read_bytes
from plait.planner.grouping import groups
from plait.planner.optimisations import OPTIMISATIONS
from plait.planner.plan import Plan
from plait.planner.pools import pools
from plait.planner.savings import savings
from plait.planner.whatif import what_if
from plait.planner.wholework import whole_work


def reader_facts(plan: Plan) -> dict[str, Any]:
    """Headline, pools, optimisations, savings, whole-matrix work, other budgets and folded groups."""
    return {
        "headline": headline(plan),
        "optimisations": {name: name not in plan.without for name in OPTIMISATIONS},
        "pools": [asdict(pool) for pool in pools(plan)],
        "savings": [asdict(saving) for saving in savings(plan)],
        "whole_work": [asdict(work) for work in whole_work(plan)],
        "what_if": [asdict(row) for row in what_if(plan)],
        "groups": _groups(plan),
    }


def _groups(plan: Plan) -> list[dict[str, Any]]:
    found = []
    for role, members in groups(plan).items():
        for group in members:
            first = group.components[0]
            program = plan.program_of(first)
            found.append(
                {
                    "role": role,
                    "label": group.label,
                    "count": group.count,
                    "shape": list(group.shape),
                    "dtype": program.dtype,
                    "way": group.way,
                    "bytes_read": read_bytes(program, first),
                    "held_bytes": component_bytes(program, workspace=first.program not in plan.lean),
                }
            )
    return found
