"""What a continued run need not do: tensors whose output an earlier run made durable.

A tensor of which every block is durable is not opened, unless it adds to a model-wide statistic that some other tensor still waits for: then
it runs up to the sweep in which that is counted. A tensor of which some blocks are durable runs all its passes, for its folds must be the same,
but the last pass computes and writes the other blocks alone.
"""

from __future__ import annotations

from plait.engine.journal import Found
from plait.planner.cost import input_bytes, looking_bytes, output_bytes, stage_read_bytes
from plait.planner.plan import Component, Plan


class Remaining:
    """Which components a run goes through.

    Args:
        plan: what runs.
        sweeps: for each program, the sweep of each stage.
        found: what is durable.
    """

    def __init__(self, plan: Plan, sweeps: list[list[int]], found: Found) -> None:
        """Compare the plan with what is there."""
        self._plan, self._sweeps = plan, sweeps
        places = plan.layout.places
        self.complete = {c.name for c in plan.components if found.covers(*places[c.name])} if found else set[str]()
        self.nothing = len(self.complete) == len(plan.components)
        self._last = [self._last_counting(number) for number in range(len(plan.programs))]

    def _last_counting(self, program: int) -> int:
        """The last sweep in which a program adds to a model-wide statistic; -1 where it never does."""
        stages = self._plan.programs[program].stages
        return max((sweep for sweep, stage in zip(self._sweeps[program], stages, strict=True) if stage.scopes), default=-1)

    def runs(self, component: Component, sweep: int) -> bool:
        """Whether a component takes part in a sweep."""
        return component.name not in self.complete or sweep <= self._last[component.program]

    def spared(self, component: Component, sweep: int) -> tuple[int, int]:
        """Predicted bytes that a component which takes no part in a sweep would have read and written in it."""
        plan, program = self._plan, self._plan.program_of(component)
        if program.copy is not None:
            nbytes = plan.layout.places[component.name].nbytes if sweep == 0 else 0
            return nbytes, nbytes
        stages = [stage for stage, its in zip(program.stages, self._sweeps[component.program], strict=True) if its == sweep]
        if component.keep_inputs:
            read = input_bytes(program) if stages else 0
        else:
            read = sum(stage_read_bytes(program, stage) + looking_bytes(program, stage)[0] for stage in stages)
        return read, output_bytes(program) if any(stage.store for stage in stages) else 0
