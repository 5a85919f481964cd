"""plait merges neural-network checkpoints that do not fit in memory.

import plait
base, math, code = map(plait.open, ("base", "math", "code"))
merged = plait.methods.ties(base=base, experts=[math, code], density=0.2, lam=1.0)
print(merged.explain(memory="4GiB"))
plait.write(merged, "out", memory="4GiB")
"""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

if (_Path(__file__).parents[1] / "pyproject.toml").is_file() and (_Path(__file__).parents[1] / "planner" / "plan.py").is_file():
    __path__.append(str(_Path(__file__).parents[1]))  # run from a source tree, this folder shadows the installed package: find the parts beside it

from plait.api import Options, merge, plan, plan_model, write
from plait.catalogue import methods
from plait.models import Model
from plait.models import open_model as open
from plait.ops.errors import BudgetTooSmall, CheckpointError, KernelError, OutputError, PlaitError, PlanError, RecipeError, ResumeError, Stopped, VerifyError

if _TYPE_CHECKING:
    from plait.diffing import diff
    from plait.extraction import extract_lora
    from plait.inspection import inspect
    from plait.reports import report

#: What a merge does not need, imported when it is asked for.
_LATER = {"diff": "plait.diffing", "extract_lora": "plait.extraction", "inspect": "plait.inspection", "report": "plait.reports"}

__version__ = "0.1.0"
__all__ = [
    "BudgetTooSmall",
    "CheckpointError",
    "KernelError",
    "Model",
    "Options",
    "OutputError",
    "PlaitError",
    "PlanError",
    "RecipeError",
    "ResumeError",
    "Stopped",
    "VerifyError",
    "diff",
    "extract_lora",
    "inspect",
    "merge",
    "methods",
    "open",
    "plan",
    "plan_model",
    "report",
    "write",
]


def __getattr__(name: str) -> _Any:
    if name not in _LATER:
        raise AttributeError(f"module 'plait' has no attribute {name!r}")
    value = globals()[name] = getattr(_import_module(_LATER[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
