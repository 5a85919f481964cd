"""The recipes of the demo: the same three experts, merged in six ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from plait.demo.folder import BASE


@dataclass(frozen=True, slots=True)
class DemoRecipe:
    """A merge of the demo: its name, what it does in one line, and the recipe with places for the models."""

    name: str
    what: str
    method: str
    expert: str
    rest: str = ""
    needs_base: bool = True

    def text(self, tasks: Sequence[str]) -> str:
        """The recipe as YAML; models are named relative to the recipe's own folder."""
        models = "".join(f"  - model: ../models/{BASE}-{task}\n{self.expert}" for task in tasks)
        base = f"base_model: ../models/{BASE}\n" if self.needs_base else ""
        return (
            f"# {self.what}\n# Written anew by each `plait demo`: copy it before you change it.\n"
            f"merge_method: {self.method}\n{base}models:\n{models}{self.rest}dtype: float32\n"
        )


def _expert(**parameters: float) -> str:
    inside = ", ".join(f"{name}: {value}" for name, value in parameters.items())
    return f"    parameters: {{{inside}}}\n"


RECIPES = (
    DemoRecipe("linear", "the plain average of the experts", "linear", _expert(weight=1.0), needs_base=False),
    DemoRecipe(
        "linear_calibrated",
        "the average, then every row of the change scaled back to the experts' magnitude",
        "linear",
        _expert(weight=1.0),
        "steps:\n  - method: magic_wsc\n    parameters: {rule: sphere}\n",
    ),
    DemoRecipe("task_arithmetic", "the experts' changes added to the base, each by 0.7", "task_arithmetic", _expert(weight=0.7)),
    DemoRecipe(
        "ties",
        "the largest fifth of each change, one sign elected, the mean of those that agree",
        "ties",
        _expert(weight=1.0, density=0.2),
        "parameters: {lambda: 1.5}\n",
    ),
    DemoRecipe(
        "dare_ties",
        "half of each change dropped at random and the rest doubled, then as ties",
        "dare_ties",
        _expert(weight=1.0, density=0.5),
        "parameters: {normalize: true, seed: 1}\n",
    ),
    DemoRecipe("iso_c", "the summed changes with all their singular values made equal", "iso_c", "", "parameters: {lambda: 1.5}\n"),
)

WHOLE_PLAN = "ties"
"""The recipe whose plan the demo shows whole; of the others it shows the head."""
