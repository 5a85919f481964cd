"""YAML text as a small tree in which every value knows its line and column.

Recipes come from strangers: only plain scalars, lists and mappings with text keys are read, with bounds on
size, depth and on what aliases expand to.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import yaml

from plait.ops.errors import RecipeError
from plait.planner.header_text import shown
from plait.planner.types import Mark

#: PyYAML reads a few 100 kB of text and some 20,000 values a second.
MAX_BYTES = 256 << 10
MAX_NODES = 10_000
MAX_DEPTH = 64
MAX_KEY_CHARACTERS = 200
MAX_PROBLEMS = 50
_MAX_NUMBER_CHARACTERS = 64  # `1:1:1:...` is a number of base 60 in YAML 1.1: quadratic time

_STANDARD = "tag:yaml.org,2002:"
_TEXT = frozenset(_STANDARD + kind for kind in ("str", "timestamp", "value"))


@dataclass(frozen=True, slots=True)
class Scalar:
    """One word or number."""

    mark: Mark
    value: bool | int | float | str | None


@dataclass(frozen=True, slots=True)
class Items:
    """A list."""

    mark: Mark
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One `key: value` of a mapping; `mark` is the key's."""

    mark: Mark
    node: Node


@dataclass(frozen=True, slots=True)
class Mapping:
    """A mapping with text keys."""

    mark: Mark
    entries: dict[str, Entry]


Node: TypeAlias = "Scalar | Items | Mapping"


class Problems:
    """Collects everything that is wrong with a recipe, so that one error can tell it all."""

    def __init__(self) -> None:
        """Nothing found yet."""
        self.found: list[tuple[Mark, str]] = []

    def add(self, mark: Mark, message: str) -> None:
        """Note one problem at a place of the recipe.

        Raises:
            RecipeError: `MAX_PROBLEMS` are found; looking for more would take long and help nobody.
        """
        if (mark, message) not in self.found:
            self.found.append((mark, message))
        if len(self.found) >= MAX_PROBLEMS:
            self.raise_any()

    def raise_any(self) -> None:
        """Raise what was found, in the order of the file.

        Raises:
            RecipeError: one line a problem, each beginning with file:line:column.
        """
        if not self.found:
            return
        found = sorted(self.found, key=lambda p: (p[0].line, p[0].column))
        lines = tuple(f"{mark}: {message}" for mark, message in found)
        first = found[0][0]
        raise RecipeError("\n".join(lines), file=first.file, line=first.line, column=first.column, problems=lines)


def read_yaml(text: str, file: str) -> Node:
    """The tree of one YAML document.

    Raises:
        RecipeError: empty, not YAML, more than one document, or more than plait reads (tags, duplicate keys, keys that
            are not text, aliases that refer to themselves or expand beyond `MAX_NODES` values).
    """
    start = Mark(file, 1, 1)
    if len(text) > MAX_BYTES:
        raise _error(start, f"a recipe of {len(text):,} characters is too long; at most {MAX_BYTES:,} are read")
    try:
        node = _Composer(text, file).get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = Mark(file, mark.line + 1, mark.column + 1) if mark else start
        if "single document" in str(error.context):
            raise _error(where, "a second YAML document begins here; a recipe is one document, so put each recipe in its own file") from None
        raise _error(where, f"not valid YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise _error(start, f"not valid YAML: {' '.join(str(error).split())}") from None
    if node is None:
        raise _error(start, "the recipe is empty; begin with merge_method, base_model and models")
    return _Converter(file).convert(node)[0]


def _error(mark: Mark, message: str) -> RecipeError:
    return RecipeError(f"{mark}: {message}", file=mark.file, line=mark.line, column=mark.column, problems=(f"{mark}: {message}",))


class _Composer(yaml.SafeLoader):
    """PyYAML's composer that stops at the bounds instead of exhausting memory or the stack."""

    def __init__(self, text: str, file: str) -> None:
        super().__init__(text)
        self._file, self._nodes, self._depth = file, 0, 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._nodes > MAX_NODES or self._depth > MAX_DEPTH:
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            what = f"more than {MAX_NODES:,} values" if self._nodes > MAX_NODES else f"values nested more than {MAX_DEPTH} deep"
            raise _error(Mark(self._file, mark.line + 1, mark.column + 1), f"the recipe has {what}")
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Converter:
    """yaml.Node -> Node; each shared (aliased) node is converted once, its size counted at every use."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._done: dict[int, tuple[Node, int]] = {}
        self._open: set[int] = set()
        self._scalars = yaml.constructor.SafeConstructor()

    def convert(self, node: yaml.Node) -> tuple[Node, int]:
        key = id(node)
        if key in self._done:
            return self._done[key]
        mark = self._mark(node)
        if key in self._open:
            raise _error(mark, "an alias (*name) refers to the value that contains it")
        self._open.add(key)
        if isinstance(node, yaml.ScalarNode):
            done: tuple[Node, int] = Scalar(mark, self._scalar(node)), 1
        elif isinstance(node, yaml.SequenceNode):
            self._standard(node, "seq")
            parts = [self.convert(item) for item in node.value]
            done = Items(mark, tuple(part for part, _ in parts)), 1 + sum(size for _, size in parts)
        else:
            self._standard(node, "map")
            done = self._mapping(node)
        self._open.discard(key)
        if done[1] > MAX_NODES:
            raise _error(mark, f"aliases (*name) make this more than {MAX_NODES:,} values")
        self._done[key] = done
        return done

    def _mapping(self, node: yaml.Node) -> tuple[Mapping, int]:
        own: dict[str, Entry] = {}
        merged: dict[str, Entry] = {}
        size = 1
        for key, value in node.value:
            at = self._mark(key)
            child, child_size = self.convert(value)
            size += 1 + child_size
            if key.tag == _STANDARD + "merge":
                for source in child.nodes if isinstance(child, Items) else (child,):
                    if not isinstance(source, Mapping):
                        raise _error(at, "<< takes a mapping or a list of mappings")
                    for name, entry in source.entries.items():
                        merged.setdefault(name, entry)
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag not in _TEXT:
                raise _error(at, "a key must be text; put it in quotes")
            if len(key.value) > MAX_KEY_CHARACTERS or not key.value.isprintable():
                raise _error(at, f"the key {shown(key.value, 40)} has more than {MAX_KEY_CHARACTERS} characters, or control characters; mend it")
            if key.value in own:
                raise _error(at, f"the key {key.value!r} is given twice (first on line {own[key.value].mark.line})")
            own[key.value] = Entry(at, child)
        return Mapping(self._mark(node), {**{k: e for k, e in merged.items() if k not in own}, **own}), size

    def _scalar(self, node: yaml.ScalarNode) -> bool | int | float | str | None:
        if node.tag in _TEXT:
            return str(node.value)
        kinds: dict[str, Callable[[yaml.ScalarNode], bool | int | float | None]] = {
            _STANDARD + "null": self._scalars.construct_yaml_null,
            _STANDARD + "bool": self._scalars.construct_yaml_bool,
            _STANDARD + "int": self._scalars.construct_yaml_int,
            _STANDARD + "float": self._scalars.construct_yaml_float,
        }
        if node.tag not in kinds:
            raise _error(self._mark(node), f"the tag {_short(node.tag)} is not allowed in a recipe; remove it")
        try:
            if len(node.value) > _MAX_NUMBER_CHARACTERS:
                raise ValueError(node.value)
            return kinds[node.tag](node)
        except (ValueError, KeyError, IndexError, OverflowError, yaml.YAMLError):
            raise _error(self._mark(node), f"{str(node.value)[:40]!r} is not {'a number' if node.tag[-1] == 't' else 'true, false or null'}") from None

    def _standard(self, node: yaml.Node, kind: str) -> None:
        if node.tag != _STANDARD + kind:
            raise _error(self._mark(node), f"the tag {_short(node.tag)} is not allowed in a recipe; remove it")

    def _mark(self, node: yaml.Node) -> Mark:
        return Mark(self._file, node.start_mark.line + 1, node.start_mark.column + 1)


def _short(tag: str) -> str:
    text = shown(tag.replace(_STANDARD, "!!"), 60)
    return text[1:-1] if text.endswith("'") else text
