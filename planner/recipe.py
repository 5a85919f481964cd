"""Recipes in mergekit's YAML, plus `steps:` after the merge: read, checked and every problem told at once.

    merge_method: ties
    base_model: models/base
    models:
      - model: models/math
        parameters: {weight: 1.0, density: 0.3}
      - model: models/code
        parameters: {weight: 0.5, density: [0.2, 0.6]}     # a gradient over the layers
    dtype: bfloat16
    steps: [magic_wsc]

Unknown keys, methods and parameters are errors with file:line:column and the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from plait.ops import method as registry
from plait.ops.errors import CheckpointError, RecipeError
from plait.ops.method import Method, nearest
from plait.ops.statistics import STATISTICS
from plait.planner import yaml_source as ys
from plait.planner.parameters import Level, Settings, parse_settings
from plait.planner.recipe_checks import check_use
from plait.planner.recipe_reader import RecipeReader
from plait.planner.recipe_types import ModelRef, Part, Recipe, Source, StepUse, model_key
from plait.planner.safetensors_header import open_regular
from plait.planner.types import Mark

__all__ = ["ModelRef", "Part", "Recipe", "Source", "StepUse", "load_recipe", "parse_recipe"]

_KEYS = ("merge_method", "base_model", "models", "slices", "parameters", "dtype", "out_dtype", "steps", "tokenizer_source")
_LATER = {
    "modules": "modules (one recipe for each part of a multimodal model) is not supported yet; write models: or slices:",
    "tokenizer": "tokenizer is not supported yet; remove it (models must share one tokenizer, and base_model's or the first model's is kept)",
    "chat_template": "chat_template is not supported yet; remove it (the chat template of base_model, or of the first model, is kept)",
}


def load_recipe(path: str | Path, methods: Mapping[str, Method] | None = None, steps: Mapping[str, Method] | None = None) -> Recipe:
    """The recipe in a file; see `parse_recipe`.

    Raises:
        RecipeError: it cannot be read, or it is wrong.
    """
    file = str(path)
    try:
        fd, _ = open_regular(file, "the recipe as a file")  # a pipe would wait for a writer, perhaps for ever
        with open(fd, "rb") as handle:
            raw = handle.read(ys.MAX_BYTES + 1)
    except OSError as error:
        raise RecipeError(f"{file}: cannot read the recipe: {error.strerror}; check the path", file=file) from None
    except CheckpointError as error:
        raise RecipeError(f"{file}: cannot read the recipe: {error.message.removeprefix(file).lstrip(': ')}", file=file) from None
    if len(raw) > ys.MAX_BYTES:
        raise RecipeError(f"{file}: a recipe longer than {ys.MAX_BYTES >> 10} KiB is not read; is this a recipe?", file=file)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file}: not text in UTF-8 (byte {error.start}); is this a recipe?", file=file) from None
    return parse_recipe(text, file, methods, steps)


def parse_recipe(text: str, file: str = "<recipe>", methods: Mapping[str, Method] | None = None, steps: Mapping[str, Method] | None = None) -> Recipe:
    """A checked recipe from YAML text.

    Args:
        text: YAML.
        file: name for messages; its folder is where relative model paths are also looked for.
        methods, steps: known methods and steps by name; by default plait's registry.

    Raises:
        RecipeError: all that is wrong, one line a problem, each beginning with file:line:column.
    """
    tree = ys.read_yaml(text, file)
    if not isinstance(tree, ys.Mapping):
        raise RecipeError(f"{tree.mark}: a recipe is a mapping; begin with merge_method, base_model and models", file=file)
    known = registry.methods() if methods is None else methods
    known_steps = registry.steps() if steps is None else steps
    return _Parser(tree, text, file, known, known_steps).recipe()


class _Parser(RecipeReader):
    """One recipe's worth of state: its tree, the method it names and the problems found so far."""

    def __init__(self, tree: ys.Mapping, text: str, file: str, methods: Mapping[str, Method], steps: Mapping[str, Method]) -> None:
        super().__init__(file)
        self.tree, self.text = tree, text
        self.methods, self.known_steps = methods, steps
        self.method: Method | None = None
        self.method_mark = tree.mark

    def recipe(self) -> Recipe:
        self.keys(self.tree, _KEYS, "a recipe", _LATER)
        name = self.find_method()
        base = self.model(self.tree, "base_model")
        settings = self.settings(self.tree, "recipe")
        steps = self.steps(base)
        dtype, out_dtype = self.dtype(self.tree, "dtype"), self.dtype(self.tree, "out_dtype")
        tokenizer = self.model(self.tree, "tokenizer_source")
        if tokenizer is not None and tokenizer.text == "base" and base is None:
            self.problems.add(tokenizer.mark, "tokenizer_source is base, but the recipe has no base_model; add base_model or remove tokenizer_source")
        parts, sliced = self.parts(base)
        recipe = Recipe(self.file, self.text, name, base, parts, sliced, settings, dtype, out_dtype, steps, tokenizer, self.method_mark)
        if self.method is not None:
            check_use(recipe, self.method, self.known_steps, self.problems)
        self.problems.raise_any()
        return recipe

    # -- pieces -------------------------------------------------------------------------------

    def find_method(self) -> str:
        entry = self.tree.entries.get("merge_method")
        if entry is None:
            self.problems.add(self.tree.mark, "merge_method is missing; 'plait methods' lists them")
            return ""
        name = self.word(entry.node, "merge_method")
        self.method_mark = entry.node.mark
        if name is None:
            return ""
        self.method = self.methods.get(name)
        if self.method is None:
            step = "; it is a step: name a merge method here and put it under steps:" if name in self.known_steps else ""
            hint = step or nearest(name, self.methods) or "; 'plait methods' lists the known ones"
            self.problems.add(entry.node.mark, f"unknown merge method {name!r}{hint}")
        return name

    def steps(self, base: ModelRef | None) -> tuple[StepUse, ...]:
        steps = [self.step(node) for node in self.listed(self.tree, "steps")]
        found = tuple(step for step in steps if step is not None)
        own: ModelRef | None = None
        for step in found:
            ref = step.base_model
            other = base or own
            if ref is not None and other is not None and model_key(other.text) != model_key(ref.text):
                self.problems.add(ref.mark, f"this step's base_model differs from {other.text} on line {other.mark.line}; all of a recipe uses one base")
            own = own or ref
        for step in found:
            method = self.known_steps.get(step.name)
            if method and method.base == "required" and not (base or own or self.has_slice_bases()):
                self.problems.add(step.mark, f"the step {step.name} needs the base; give base_model in the recipe or in this step")
        return found

    def has_slice_bases(self) -> bool:
        slices = self.tree.entries.get("slices")
        nodes = slices.node.nodes if slices and isinstance(slices.node, ys.Items) else ()
        return bool(nodes) and all(isinstance(node, ys.Mapping) and "base_model" in node.entries for node in nodes)

    def step(self, node: ys.Node) -> StepUse | None:
        if isinstance(node, ys.Scalar):
            name, mark, mapping = self.word(node, "a step"), node.mark, None
        elif isinstance(node, ys.Mapping):
            self.keys(node, ("method", "parameters", "base_model"), "a step")
            if "method" not in node.entries:
                self.problems.add(node.mark, "this step has no method; write 'method: NAME'")
                return None
            entry, mapping = node.entries["method"], node
            name, mark = self.word(entry.node, "method"), entry.node.mark
        else:
            self.problems.add(node.mark, "a step is a name, or a mapping with method and parameters")
            return None
        if name is None:
            return None
        method = self.known_steps.get(name)
        if method is None:
            merge = "; it is a merge method, not a step" if name in self.methods else ""
            self.problems.add(mark, f"unknown step {name!r}{merge or nearest(name, self.known_steps) or '; plait methods lists the known ones'}")
        settings = parse_settings(mapping.entries["parameters"].node if mapping and "parameters" in mapping.entries else None, method, "step", self.problems)
        for param in method.params if method else ():
            if param.required and param.name not in settings:
                self.problems.add(mark, f"the step {name} needs the parameter {param.name!r}")
        return StepUse(name, self.model(mapping, "base_model") if mapping else None, settings, mark)

    def parts(self, base: ModelRef | None) -> tuple[tuple[Part, ...], bool]:
        has = [key for key in ("models", "slices") if key in self.tree.entries]
        if len(has) != 1:
            if "modules" not in self.tree.entries:
                mark = self.tree.entries["slices"].mark if has else self.tree.mark
                self.problems.add(mark, "a recipe has models: or slices:, not both" if has else "models is missing; list the models to merge under models:")
            return (), False
        nodes = self.listed(self.tree, has[0])
        mark = self.tree.entries[has[0]].mark
        if has[0] == "models":
            sources = [self.source(node, sliced=False) for node in nodes]
            return (self.part(tuple(s for s in sources if s), base, {}, mark),), False
        slices = [self.slice(node, base) for node in nodes]
        return tuple(s for s in slices if s), True

    def slice(self, node: ys.Node, base: ModelRef | None) -> Part | None:
        if not isinstance(node, ys.Mapping):
            self.problems.add(node.mark, "a slice is a mapping with sources")
            return None
        later = {"residual_weight": "residual_weight has no effect (mergekit accepts and ignores it); remove it"}
        self.keys(node, ("sources", "base_model", "parameters"), "a slice", later)
        if "sources" not in node.entries:
            self.problems.add(node.mark, "this slice has no sources; list models with their layer_range under sources:")
            return None
        found = [self.source(item, sliced=True) for item in self.listed(node, "sources")]
        sources = tuple(s for s in found if s)
        for source in sources[1:]:
            a, b = sources[0].layer_range, source.layer_range
            if a and b and a[1] - a[0] != b[1] - b[0]:
                self.problems.add(
                    source.mark,
                    f"layer_range [{b[0]}, {b[1]}] is {b[1] - b[0]} layers, but [{a[0]}, {a[1]}] on line {sources[0].mark.line} is {a[1] - a[0]}; "
                    "all sources of a slice have the same number of layers",
                )
        return self.part(sources, self.model(node, "base_model") or base, self.settings(node, "slice"), node.mark)

    def part(self, sources: tuple[Source, ...], base: ModelRef | None, settings: Settings, mark: Mark) -> Part:
        listed: Source | None = None
        if self.method is not None and self.method.base != "unused" and base is not None:
            # only the first: a slice may merge layers of the base with others of its own
            listed = next((s for s in sources if model_key(s.model.text) == model_key(base.text)), None)
        experts = tuple(s for s in sources if s is not listed)
        return Part(sources, experts, listed, base, settings, mark)

    def source(self, node: ys.Node, *, sliced: bool) -> Source | None:
        what = "a source" if sliced else "an entry of models"
        if not isinstance(node, ys.Mapping):
            self.problems.add(node.mark, f"{what} is a mapping; write '- model: PATH'")
            return None
        later = {} if sliced else {"layer_range": "layer_range belongs to slices; write slices: with sources: instead of models:"}
        self.keys(node, ("model", *(("layer_range",) if sliced else ()), "parameters", *STATISTICS), what, later)
        settings = self.settings(node, "model")
        span = self.layer_range(node) if sliced else None
        if "model" not in node.entries:
            self.problems.add(node.mark, f"{what} needs a model; write '- model: PATH'")
            return None
        model = self.model(node, "model")
        mark = node.entries["layer_range"].node.mark if sliced and "layer_range" in node.entries else node.mark
        found = {name: self.path(node.entries[name].node, name) for name in STATISTICS if name in node.entries}
        return Source(model, span, mark, settings, {name: ref for name, ref in found.items() if ref is not None}) if model else None

    def layer_range(self, node: ys.Mapping) -> tuple[int, int] | None:
        entry = node.entries.get("layer_range")
        if entry is None:
            self.problems.add(node.mark, "this source has no layer_range; write 'layer_range: [START, END]', END not included")
            return None
        items = entry.node.nodes if isinstance(entry.node, ys.Items) else ()
        values = [item.value for item in items if isinstance(item, ys.Scalar)]
        numbers = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
        if len(items) != 2 or len(numbers) != 2:
            self.problems.add(entry.node.mark, "layer_range must be two whole numbers [START, END], END not included")
            return None
        start, end = numbers
        if start < 0 or start >= end:
            self.problems.add(entry.node.mark, f"layer_range [{start}, {end}] holds no layer; START is at least 0 and below END, which is not included")
            return None
        return start, end

    def settings(self, node: ys.Mapping, level: Level) -> Settings:
        entry = node.entries.get("parameters")
        return parse_settings(entry.node if entry else None, self.method, level, self.problems)
