"""What a checked recipe consists of."""

from __future__ import annotations

import os.path
from dataclasses import dataclass, field

from plait.planner.parameters import Settings
from plait.planner.types import Mark


def model_key(text: str) -> str:
    """What tells whether two spellings in a recipe are the same model (`./a/` and `a`)."""
    return os.path.normpath(text)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A model as the recipe names it, and where."""

    text: str
    mark: Mark


@dataclass(frozen=True, slots=True)
class Source:
    """One model of `models:` or of a slice's `sources:`.

    Attributes:
        model: which.
        layer_range: `(start, end)`, half-open, or None under `models:`.
        mark: of the range, or of the model.
        settings: its own parameters.
        statistics: what is known of it, by the statistic's name.
    """

    model: ModelRef
    layer_range: tuple[int, int] | None
    mark: Mark
    settings: Settings
    statistics: dict[str, ModelRef] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Part:
    """What makes one part of the output: everything (`models:`) or an output slice.

    Attributes:
        sources: as listed.
        experts: those that are merged.
        base: the listed source that is the method's base, or None.
        base_model: the base that holds here (the slice's, else the recipe's), listed or not.
        settings: of the slice.
        mark: of the slice, or of `models`.
    """

    sources: tuple[Source, ...]
    experts: tuple[Source, ...]
    base: Source | None
    base_model: ModelRef | None
    settings: Settings
    mark: Mark


@dataclass(frozen=True, slots=True)
class StepUse:
    """One item of `steps:`."""

    name: str
    base_model: ModelRef | None
    settings: Settings
    mark: Mark


@dataclass(frozen=True, slots=True)
class Recipe:
    """A checked recipe.

    Attributes:
        file: name for messages; `text`: the file's text.
        method: merge method.
        base_model: of the recipe, or None.
        parts: one for `models:`, one for each output slice.
        sliced: whether the recipe has `slices:`.
        settings: the recipe's own parameters.
        dtype, out_dtype: as in `plait.ops.dtypes.RECIPE_FLOATS`, or None.
        steps: after the merge.
        tokenizer_source: `base`, `union` or a model, or None.
        mark: of the merge method.
    """

    file: str
    text: str
    method: str
    base_model: ModelRef | None
    parts: tuple[Part, ...]
    sliced: bool
    settings: Settings
    dtype: str | None
    out_dtype: str | None
    steps: tuple[StepUse, ...]
    tokenizer_source: ModelRef | None
    mark: Mark

    def models(self) -> tuple[ModelRef, ...]:
        """Every model it reads, each once where it is first named, the donor of config and tokenizer first."""
        sources = [s.model for part in self.parts for s in part.sources]
        others = [part.base_model for part in self.parts] + [step.base_model for step in self.steps]
        refs = [ref for ref in (self.base_model, *sources, *others) if ref is not None]
        unique: dict[str, ModelRef] = {}
        for ref in refs:
            unique.setdefault(model_key(ref.text), ref)
        return tuple(unique.values())

    def step_base(self) -> ModelRef | None:
        """The base that steps work from where the slice has none: the recipe's, else the one a step names."""
        return self.base_model or next((step.base_model for step in self.steps if step.base_model), None)
