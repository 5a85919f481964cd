"""Parameter settings of a recipe: scalars, gradients over the layers, filters by tensor name, and their precedence.

A setting is a list of rules tried in order. The rules of the levels, one after another (model, output slice, recipe),
are the chain of a parameter: the first rule whose filter is part of the tensor's name gives the value, and where no
rule does, the parameter's default. That is mergekit's precedence, since no match falls through to the next level.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from plait.ops.method import Method, Param, nearest
from plait.planner import yaml_source as ys
from plait.planner.name_file import read_names
from plait.planner.types import Mark

Level = Literal["model", "slice", "recipe", "step"]
Params = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One value, for the tensors whose name contains `filter` (None: for all).

    Attributes:
        filter: plain substring of the tensor's name, or None.
        values: the checked value, or the points of a gradient.
        gradient: whether `values` are several points over the layers.
        mark: where the value stands.
    """

    filter: str | None
    values: tuple[Any, ...]
    gradient: bool
    mark: Mark

    def at(self, t: float, param: Param) -> Any:
        """The value at `t`, from 0 at the first layer to 1 at the last; numbers are interpolated, words step."""
        if not self.gradient:
            return self.values[0]
        scaled = t * (len(self.values) - 1)
        low = int(scaled)
        if param.type not in (float, int):
            return self.values[low]
        high = min(len(self.values) - 1, low + 1)
        part = scaled - low
        value = (1 - part) * self.values[low] + part * self.values[high]
        return round(value) if param.type is int else value


Chain = tuple[Rule, ...]
Settings = dict[str, Chain]


def parse_settings(node: ys.Node | None, method: Method | None, level: Level, problems: ys.Problems) -> Settings:
    """The settings under one `parameters:` key, every literal checked; what is wrong is added to `problems`."""
    if node is None or (isinstance(node, ys.Scalar) and node.value is None):
        return {}
    if not isinstance(node, ys.Mapping):
        problems.add(node.mark, "parameters must be a mapping of names to values, such as 'weight: 0.5'")
        return {}
    settings: Settings = {}
    for name, entry in node.entries.items():
        if method is None:  # unknown method, already said
            continue
        param = method.param(name)
        if param is None:
            hint = nearest(name, [p.name for p in method.params]) or f"; it takes {', '.join(p.name for p in method.params) or 'none'}"
            problems.add(entry.mark, f"{method.name} has no parameter {name!r}{hint}")
        elif level == "model" and not param.per_expert:
            problems.add(entry.mark, f"{name} holds for the whole merge, not for one model; move it to the recipe's own parameters")
        else:
            settings[name] = _chain(entry.node, param, problems)
    return settings


def _chain(node: ys.Node, param: Param, problems: ys.Problems) -> Chain:
    if isinstance(node, ys.Mapping):
        rules = [_conditional(node, param, problems)]
    elif isinstance(node, ys.Items) and any(isinstance(item, ys.Mapping) for item in node.nodes):
        rules = []
        for item in node.nodes:
            if isinstance(item, ys.Mapping):
                rules.append(_conditional(item, param, problems))
            else:
                problems.add(item.mark, f"{param.name} mixes filters and bare values; write this one as '- value: ...'")
    else:
        rules = [_rule(None, node, param, problems)]
    return tuple(rule for rule in rules if rule is not None)


def _conditional(node: ys.Mapping, param: Param, problems: ys.Problems) -> Rule | None:
    for key, entry in node.entries.items():
        if key not in ("filter", "value"):
            problems.add(entry.mark, f"unknown key {key!r} in a setting of {param.name}{nearest(key, ('filter', 'value'))}; it takes filter and value")
    if "value" not in node.entries:
        problems.add(node.mark, f"this setting of {param.name} has no value; write 'value: ...'")
        return None
    pattern: str | None = None
    if "filter" in node.entries:
        written = node.entries["filter"].node
        if not isinstance(written, ys.Scalar) or isinstance(written.value, (bool, float)):
            problems.add(written.mark, "a filter must be text: a part of the tensor's name, or '*'")
            return None
        pattern = None if written.value in (None, "*") else str(written.value)
    return _rule(pattern, node.entries["value"].node, param, problems)


def _rule(pattern: str | None, node: ys.Node, param: Param, problems: ys.Problems) -> Rule | None:
    if isinstance(node, ys.Mapping):
        problems.add(node.mark, f"{param.name} must be a value or a list of values here, not a mapping")
        return None
    if isinstance(node, ys.Scalar) or param.type is list:
        value = _checked(node.mark, _plain(node), param, problems)
        return Rule(pattern, (value,), False, node.mark)
    if not param.gradient:
        problems.add(node.mark, f"{param.name} takes one value, not a list over the layers")
        return None
    if not node.nodes:
        problems.add(node.mark, f"{param.name} is an empty list; give one value a layer group, or a single value")
        return None
    points = tuple(_checked(item.mark, _plain(item), param, problems) for item in node.nodes)
    return Rule(pattern, points, True, node.mark)


def _plain(node: ys.Node) -> Any:
    if isinstance(node, ys.Scalar):
        return node.value
    if isinstance(node, ys.Items):
        return [_plain(item) for item in node.nodes]
    return {key: _plain(entry.node) for key, entry in node.entries.items()}


def _checked(mark: Mark, value: Any, param: Param, problems: ys.Problems) -> Any:
    try:
        checked = param.check(value)
        return read_names(checked, near=os.path.dirname(mark.file)) if param.reads and checked is not None else checked
    except ValueError as error:
        problems.add(mark, str(error))
    except OverflowError:
        problems.add(mark, f"{param.name} is too large a number")
    return param.default


def chain(name: str, levels: Iterable[Mapping[str, Chain]]) -> Chain:
    """The rules for one parameter, strongest level first; what follows a rule without filter can never apply."""
    rules: list[Rule] = []
    for level in levels:
        for rule in level.get(name, ()):
            rules.append(rule)
            if rule.filter is None:
                return tuple(rules)
    return tuple(rules)


class MissingValue(Exception):
    """A required parameter that no rule gives for a tensor.

    Attributes:
        param: its name.
        expert: index of the model, or None for a parameter of the whole merge.
    """

    def __init__(self, param: str, expert: int | None) -> None:
        """See the attributes."""
        super().__init__(param, expert)
        self.param, self.expert = param, expert


class Resolver:
    """The parameters of one part of the output (all of it, or a slice), tensor by tensor.

    Tensors for which the same filters match at the same layer share one value, so that a model of many tensors is
    resolved in a handful of evaluations.

    Args:
        params: the method's.
        levels: settings of the slice and of the recipe, strongest first.
        experts: each expert's own settings, in order.
    """

    def __init__(self, params: Sequence[Param], levels: Sequence[Mapping[str, Chain]], experts: Sequence[Mapping[str, Chain]]) -> None:
        """See the arguments of the class."""
        self._shared = {p.name: chain(p.name, levels) for p in params if not p.per_expert}
        self._experts = [{p.name: chain(p.name, (own, *levels)) for p in params if p.per_expert} for own in experts]
        self._params = tuple(params)
        self._graded = any(r.gradient for c in (self._shared, *self._experts) for rules in c.values() for r in rules)
        self._shared_filters = _filters(self._shared)
        self._expert_filters = [(i, f) for i, chains in enumerate(self._experts) for f in _filters(chains)]
        self._cache: dict[tuple[Any, ...], Params] = {}

    def __call__(self, output: str, inputs: Sequence[str], t: float) -> Params:
        """Keyword and value of every parameter.

        Args:
            output: name of the output tensor, which filters of whole-merge parameters look at.
            inputs: each expert's name for it, which filters of per-model parameters look at.
            t: 0 at the first layer of the part, 1 at the last; 0 outside the layers.

        Raises:
            MissingValue: a required parameter has no value here.
        """
        key: tuple[Any, ...] = (
            t if self._graded else None,
            tuple([f in output for f in self._shared_filters]) if self._shared_filters else None,
            tuple([f in inputs[i] for i, f in self._expert_filters]) if self._expert_filters else None,
        )
        found = self._cache.get(key)
        if found is None:
            found = self._cache[key] = tuple((p.keyword, self._value(p, output, inputs, t)) for p in self._params)
        return found

    def _value(self, param: Param, output: str, inputs: Sequence[str], t: float) -> Any:
        if param.per_expert:
            return tuple(_evaluate(param, chains[param.name], inputs[i], t, i) for i, chains in enumerate(self._experts))
        return _evaluate(param, self._shared[param.name], output, t, None)


def _filters(chains: Mapping[str, Chain]) -> tuple[str, ...]:
    return tuple(sorted({rule.filter for rules in chains.values() for rule in rules if rule.filter is not None}))


def _evaluate(param: Param, rules: Chain, name: str, t: float, expert: int | None) -> Any:
    for rule in rules:
        if rule.filter is None or rule.filter in name:
            return rule.at(t, param)
    if param.required:
        raise MissingValue(param.name, expert)
    return param.default
