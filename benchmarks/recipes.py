"""The recipes that benchmarks run: of mergekit's methods as text that both programs read alike, of the others as `plait methods` shows them.

python benchmarks/recipes.py ties /data/tl/base /data/tl/expert1 /data/tl/expert2 > ties.yml
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from plait.method_recipe import example_parameters, recipe_of
from plait.ops.method import methods, steps


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


#: What `speed.py` measures unless asked otherwise, and makes promises about.
PROMISED = ("linear", "task_arithmetic", "dare_linear", "slerp", "ties", "dare_ties", "model_stock")
#: Recipes that mergekit 0.1.5 reads as they are, in its names of methods and parameters.
FOR_BOTH = {
    "linear": Recipe({"weight": 0.5}, base=False),
    "task_arithmetic": Recipe({"weight": 0.4}),
    "dare_linear": Recipe({"weight": 0.4, "density": 0.5}),
    "slerp": Recipe(overall={"t": 0.4}, listed=True, most=1),
    "ties": Recipe({"weight": 0.5, "density": 0.3}),
    "dare_ties": Recipe({"weight": 0.5, "density": 0.5}),
    "model_stock": Recipe(),
    "passthrough": Recipe(base=False, most=1),
    "nuslerp": Recipe({"weight": 0.5}, base=False, most=2),
    "multislerp": Recipe({"weight": 0.5}, base=False),
    "karcher": Recipe(base=False),
    "breadcrumbs": Recipe({"weight": 0.5, "density": 0.9, "gamma": 0.01}),
    "breadcrumbs_ties": Recipe({"weight": 0.5, "density": 0.9, "gamma": 0.01}),
    "della": Recipe({"weight": 0.5, "density": 0.4, "epsilon": 0.1}),
    "della_linear": Recipe({"weight": 0.5, "density": 0.4, "epsilon": 0.1}),
    "sce": Recipe(overall={"select_topk": 0.2}),
    "ram": Recipe(),
    "ramplus_tl": Recipe(),
    "nearswap": Recipe(overall={"t": 0.001}, most=1),
    "arcee_fusion": Recipe(most=1),
}
#: Methods that mergekit sorts or iterates for, where streaming saves most.
SORTED_THERE = ("ties", "breadcrumbs", "breadcrumbs_ties", "della", "della_linear", "sce", "karcher")


#: Every method and step that needs weights alone; those that mergekit has not run with the parameters of their examples.
_CATALOGUE = {name: m for name, m in {**methods(), **steps()}.items() if not m.statistics}
METHODS = FOR_BOTH | {
    name: Recipe(*example_parameters(m), base=m.base == "required", most=m.experts[1]) for name, m in _CATALOGUE.items() if name not in FOR_BOTH
}


def models_of(method: str, models: Sequence[Path]) -> list[Path]:
    """Those of a base and its experts that the method reads: `linear` averages the experts alone."""
    recipe = METHODS[method]
    experts = list(models[1:])[: recipe.most]
    return [models[0], *experts] if recipe.base else experts


def text_of(method: str, models: Sequence[Path], dtype: str = "bfloat16") -> str:
    """The recipe of a method over a base and its experts (JSON, which is YAML)."""
    if method not in FOR_BOTH:
        return json.dumps(recipe_of(_CATALOGUE[method], models[0].resolve(), [m.resolve() for m in models[1:]], dtype=dtype), indent=1) + "\n"
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
