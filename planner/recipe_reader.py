"""What every level of a recipe is made of: keys, names, lists, dtypes and models, with what is wrong collected."""

from __future__ import annotations

import os.path
from collections.abc import Mapping

from plait.ops.dtypes import BY_NAME, RECIPE_FLOATS
from plait.ops.method import nearest
from plait.planner import yaml_source as ys
from plait.planner.header_text import shown
from plait.planner.recipe_types import ModelRef

_MAX_WORD_CHARACTERS = 4096  # as many as a path may have


class RecipeReader:
    """Readers of single values; each adds what is wrong to `problems` and gives None."""

    def __init__(self, file: str) -> None:
        """`file` is the recipe's name; its folder is where relative paths may lie."""
        self.file = file
        self.problems = ys.Problems()

    def keys(self, node: ys.Mapping, known: tuple[str, ...], what: str, later: Mapping[str, str] | None = None) -> None:
        """Check the keys of a mapping; `later` holds sentences for keys that are known and refused."""
        for key, entry in node.entries.items():
            if later and key in later:
                self.problems.add(entry.mark, later[key])
            elif key not in known:
                self.problems.add(entry.mark, f"unknown key {key!r} in {what}{nearest(key, known) or '; it takes ' + ', '.join(known)}")

    def word(self, node: ys.Node, what: str) -> str | None:
        """A text scalar."""
        if isinstance(node, ys.Scalar) and isinstance(node.value, str) and node.value.strip():
            if len(node.value) <= _MAX_WORD_CHARACTERS and node.value.isprintable():
                return node.value
            self.problems.add(node.mark, f"{what} {shown(node.value, 40)} is too long or has control characters; mend it")
            return None
        self.problems.add(node.mark, f"{what} must be a name; put it in quotes if it looks like a number")
        return None

    def path(self, node: ys.Node, what: str) -> ModelRef | None:
        """A file or folder that is no model."""
        text = self.word(node, what)
        return None if text is None else ModelRef(text, node.mark)

    def listed(self, node: ys.Mapping, key: str) -> tuple[ys.Node, ...]:
        """The items of a list."""
        entry = node.entries.get(key)
        if entry is None:
            return ()
        if not isinstance(entry.node, ys.Items):
            self.problems.add(entry.node.mark, f"{key} must be a list; begin each item with '- '")
            return ()
        if not entry.node.nodes and key != "steps":
            self.problems.add(entry.node.mark, f"{key} is empty; list at least one")
        return entry.node.nodes

    def dtype(self, node: ys.Mapping, key: str) -> str | None:
        """A dtype that recipes may name."""
        entry = node.entries.get(key)
        if entry is None or (isinstance(entry.node, ys.Scalar) and entry.node.value is None):
            return None
        name = self.word(entry.node, key)
        if name is None or name in RECIPE_FLOATS:
            return name
        known = " is not a dtype to merge in" if name in BY_NAME else " is not known"
        self.problems.add(entry.node.mark, f"{key} {name!r}{known}{nearest(name, RECIPE_FLOATS)}; it is one of {', '.join(RECIPE_FLOATS)}")
        return None

    def model(self, node: ys.Mapping, key: str) -> ModelRef | None:
        """A model under `key`: a path, or mergekit's mapping `{model: {path: PATH}}`."""
        entry = node.entries.get(key)
        if entry is None or (isinstance(entry.node, ys.Scalar) and entry.node.value is None and key != "model"):
            return None
        where = entry.node
        if isinstance(where, ys.Mapping):
            return self._model_mapping(where, key)
        text = self.word(where, key)
        if text is None:
            return None
        if "+" in text and not any(os.path.exists(os.path.join(near, text)) for near in ("", os.path.dirname(self.file))):
            self.problems.add(where.mark, f"{text!r} names a LoRA adapter after '+'; adapters are not supported yet: merge it into its model first")
            return None
        return ModelRef(text, where.mark)

    def _model_mapping(self, node: ys.Mapping, key: str) -> ModelRef | None:
        inner = node.entries.get("model")
        if inner is None or set(node.entries) - {"model", "lora"}:
            unknown = next((e.mark for k, e in node.entries.items() if k not in ("model", "lora")), node.mark)
            self.problems.add(unknown, f"{key} must be a path, or a mapping {{model: {{path: PATH}}}}")
            return None
        lora = node.entries.get("lora")
        if lora is not None and not (isinstance(lora.node, ys.Scalar) and lora.node.value is None):
            self.problems.add(lora.mark, "LoRA adapters are not supported yet; merge the adapter into its model first")
            return None
        if not isinstance(inner.node, ys.Mapping):
            return self.model(node, "model")
        self.keys(inner.node, ("path",), "a model", {"revision": "revision is not supported yet; download that revision and give its folder"})
        if "path" not in inner.node.entries:
            self.problems.add(inner.node.mark, "this model has no path; write 'path: PATH'")
            return None
        return self.model(inner.node, "path")
