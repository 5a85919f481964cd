"""The tree of errors; every one carries its facts as fields and says what to do next.

    PlaitError
    ├── RecipeError       the recipe is wrong (file, line, column)
    ├── CheckpointError   an input file is wrong (path, tensor)
    ├── PlanError         recipe and checkpoints do not fit together
    │   └── BudgetTooSmall    the memory budget cannot work (task, needed, budget)
    ├── OutputError       the destination cannot take the result (path)
    ├── KernelError       a computation failed (task)
    ├── ResumeError       an interrupted run cannot be continued as asked
    ├── VerifyError       an output is not what was written (path, tensors)
    └── Stopped           the run was asked to stop, and did

On the command line each is one readable line. `exit_status` is 2 where the user can mend the
input and 1 where the run itself failed.
"""

from __future__ import annotations


class PlaitError(Exception):
    """Base of every error that plait raises on purpose.

    Args:
        message: one sentence that names the file, tensor or recipe line and what to do.
        facts: the numbers and names in the sentence, kept as `self.facts` for programs.
    """

    exit_status = 2

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.advice = ""  #: one more sentence for people, on how finished work is continued
        self.facts = facts


class RecipeError(PlaitError):
    """A recipe that cannot be read or makes no sense; the message begins with file:line:column."""


class CheckpointError(PlaitError):
    """An input checkpoint that is missing, damaged or of an unknown kind."""


class PlanError(PlaitError):
    """A recipe and its checkpoints do not fit together; lists every problem found, not the first."""


class BudgetTooSmall(PlanError):
    """The memory budget cannot hold even one task at a time."""


class OutputError(PlaitError):
    """The destination cannot take the result."""


class KernelError(PlaitError):
    """A computation failed while the plan ran."""

    exit_status = 1


class ResumeError(PlaitError):
    """An interrupted run cannot be continued with these inputs or options."""


class VerifyError(PlaitError):
    """An output is not what was written, or not what its recipe gives."""

    exit_status = 1


class Stopped(PlaitError):
    """A run was asked to stop and has; finished work is kept for the next one."""

    exit_status = 130
