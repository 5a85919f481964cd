"""The recipes that benchmarks run, as text that plait and mergekit read alike.

python benchmarks/recipes.py ties /data/tl/base /data/tl/expert1 /data/tl/expert2 > ties.yml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """A method with the parameters that are measured.

    Attributes:
        each: parameters of every expert.
        overall: parameters of the merge.
        base: the recipe names a base model.
        listed: the base stands among the models, too.
        most: experts that the method takes at most.
    """

    each: dict[str, Any] = field(default_factory=dict)
    overall: dict[str, Any] = field(default_factory=dict)
    base: bool = True
    listed: bool = False
    most: int | None = None


METHODS = {
    "linear": Recipe({"weight": 0.5}, base=False),
    "task_arithmetic": Recipe({"weight": 0.4}),
    "dare_linear": Recipe({"weight": 0.4, "density": 0.5}),
    "slerp": Recipe(overall={"t": 0.4}, listed=True, most=1),
    "ties": Recipe({"weight": 0.5, "density": 0.3}),
    "dare_ties": Recipe({"weight": 0.5, "density": 0.5}),
    "model_stock": Recipe(),
}


def models_of(method: str, models: Sequence[Path]) -> list[Path]:
    """Those of a base and its experts that the method reads: `linear` averages the experts alone."""
    recipe = METHODS[method]
    experts = list(models[1:])[: recipe.most]
    return [models[0], *experts] if recipe.base else experts


def text_of(method: str, models: Sequence[Path], dtype: str = "bfloat16") -> str:
    """The recipe of a method over a base and its experts (JSON, which is YAML)."""
    recipe = METHODS[method]
    base, *experts = (str(m.resolve()) for m in models)
    parameters = {"parameters": recipe.each} if recipe.each else {}
    entries = [{"model": e, **parameters} for e in experts[: recipe.most]]
    lines: dict[str, Any] = {"merge_method": method, "dtype": dtype}
    if recipe.base:
        lines["base_model"] = base
    lines["models"] = [{"model": base}, *entries] if recipe.listed else entries
    if recipe.overall:
        lines["parameters"] = recipe.overall
    return json.dumps(lines, indent=1) + "\n"


def methods_named(names: str) -> list[str]:
    """Methods of a list with commas; unknown ones end the program."""
    wanted = [n.strip() for n in names.split(",") if n.strip()]
    unknown = [n for n in wanted if n not in METHODS]
    if unknown or not wanted:
        raise SystemExit(f"no recipe for {', '.join(unknown) or 'no method at all'}; there are {', '.join(METHODS)}")
    return wanted


def models_in(folder: Path, experts: int | None = None) -> list[Path]:
    """Base and experts of a set that `make_checkpoint.py` made."""
    found = sorted(folder.glob("expert*"), key=lambda p: int(p.name.removeprefix("expert")))[:experts]
    if not found or not (folder / "base").is_dir():
        raise SystemExit(f"{folder} holds no base and experts; make them with: python benchmarks/make_checkpoint.py 1.1b {folder} --experts 3")
    return [folder / "base", *found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("models", type=Path, nargs="+", help="base and experts")
    args = parser.parse_args()
    print(text_of(args.method, args.models), end="")


if __name__ == "__main__":
    main()
