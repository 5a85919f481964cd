"""mergekit's formulas for a whole recipe in plain float64 NumPy: written from their description, sharing no code with plait.

Only what the golden recipes need: Llama names, `models` or `slices`, gradients, filters, and the methods without randomness.
Where a TIES threshold falls inside a run of (nearly) equal magnitudes the kept elements are a matter of taste: `Result.unsure`
marks them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from support.stored import F64, Stored, rounded

Bits = NDArray[np.bool_]
Models = Callable[[str], dict[str, Stored]]
CODE = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_LAYER = re.compile(r"^model\.layers\.(\d+)\.(.+)$")


@dataclass(frozen=True)
class Result:
    """One expected tensor, and the elements where more than one value is right."""

    value: F64
    unsure: Bits


@dataclass(frozen=True)
class Task:
    """One output tensor with all that its method needs: `base` is None where the recipe names none; `experts` leave the base out."""

    name: str
    base: F64 | None
    experts: list[F64]
    params: list[dict[str, Any]]
    shared: dict[str, Any]
    dtype: str


def expect(config: dict[str, Any], models: Models) -> dict[str, Result]:
    """What the recipe `config` gives, by tensor name, before the last rounding."""
    return {task.name: _METHODS[config["merge_method"]](task) for task in tasks(config, models)}


def tasks(config: dict[str, Any], models: Models) -> list[Task]:
    """The recipe taken apart: one task an output tensor, inputs rounded to `dtype`, parameters resolved."""
    slices = _slices(config, models)
    names = list(models(slices[0]["sources"][0]["model"]))
    out, layer = [], 0
    for name in names:
        if not _LAYER.match(name):
            part = slices[0] if name == "model.embed_tokens.weight" else slices[-1]
            out.append(_task(config, models, part, name, [name] * len(part["sources"]), 0.0))
    for part in slices:
        first, last = part["sources"][0]["layer_range"]
        for step in range(last - first):
            t = step / (last - first - 1) if last - first > 1 else 1.0
            for suffix in sorted({m[2] for n in names if (m := _LAYER.match(n))}):
                stored = [f"model.layers.{s['layer_range'][0] + step}.{suffix}" for s in part["sources"]]
                out.append(_task(config, models, part, f"model.layers.{layer}.{suffix}", stored, t))
            layer += 1
    return out


def _slices(config: dict[str, Any], models: Models) -> list[dict[str, Any]]:
    if "slices" in config:
        return list(config["slices"])
    first = models(config["models"][0]["model"])
    count = 1 + max(int(m[1]) for n in first if (m := _LAYER.match(n)))
    return [{"sources": [{**m, "layer_range": [0, count]} for m in config["models"]]}]


def _task(config: dict[str, Any], models: Models, part: dict[str, Any], name: str, stored: list[str], t: float) -> Task:
    base_model = config.get("base_model")
    sources = list(zip(part["sources"], stored, strict=True))
    tensors = [models(s["model"])[n] for s, n in sources] + ([models(base_model)[stored[0]]] if base_model else [])
    dtype = CODE[config["dtype"]] if config.get("dtype") else tensors[0].dtype
    value = {s["model"]: rounded(x.value, dtype) for (s, _), x in zip(sources, tensors, strict=False)}
    base = rounded(tensors[-1].value, dtype) if base_model else None
    experts = [s for s, _ in sources if s["model"] != base_model]
    levels = [part.get("parameters", {}), config.get("parameters", {})]
    params = [_resolve([s.get("parameters", {}), *levels], name, t) for s in experts]
    return Task(name, base, [value[s["model"]] for s in experts], params, _resolve(levels, name, t), dtype)


def _resolve(levels: list[dict[str, Any]], name: str, t: float) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key in {k for level in levels for k in level}:
        for level in levels:
            value = _pick(level.get(key), name, t)
            if value is not None:
                out[key] = value
                break
    return out


def _pick(value: Any, name: str, t: float) -> Any:
    """A scalar, a gradient, or the first `{filter, value}` whose filter is in the name."""
    if isinstance(value, list) and value and isinstance(value[0], dict):
        hit = next((v for v in value if v.get("filter", "*") == "*" or v["filter"] in name), None)
        return None if hit is None else _pick(hit["value"], name, t)
    if isinstance(value, list):
        return float(np.interp(t * (len(value) - 1), range(len(value)), value))
    return value


def _sure(value: F64) -> Result:
    return Result(value, np.zeros(value.shape, bool))


def _linear(task: Task) -> Result:
    weights = np.array([p["weight"] for p in task.params], np.float64)
    total = sum(w * x for w, x in zip(weights, task.experts, strict=True))
    return _sure(total / weights.sum() if task.shared.get("normalize", True) else total)


def _slerp(task: Task) -> Result:
    assert task.base is not None
    a, b, t = task.base, task.experts[0], task.shared["t"]
    unit = [x / (n if (n := np.sqrt((x * x).sum())) > 1e-8 else 1.0) for x in (a, b)]
    cosine = float(np.clip((unit[0] * unit[1]).sum(), -1, 1))
    if abs(cosine) > 0.9995:
        return _sure((1 - t) * a + t * b)
    angle = np.arccos(cosine)
    return _sure((np.sin((1 - t) * angle) * a + np.sin(t * angle) * b) / np.sin(angle))


def _passthrough(task: Task) -> Result:
    return _sure(task.experts[0] * task.params[0].get("scale", 1.0))


def _model_stock(task: Task) -> Result:
    assert task.base is not None
    axis = (-1,) if task.shared.get("filter_wise") else tuple(range(task.base.ndim))
    offsets = [x - task.base for x in task.experts]
    norms = [np.sqrt((o * o).sum(axis, keepdims=True)) for o in offsets]
    n = len(offsets)
    pairs = [(i, j) for i in range(n) for j in range(i)]
    cosines = [(offsets[i] * offsets[j]).sum(axis, keepdims=True) / np.maximum(norms[i] * norms[j], 1e-6) for i, j in pairs]
    cosine = sum(cosines) / len(pairs)
    below = 1 + (n - 1) * cosine
    t = np.where(np.abs(below) < 1e-6, 0.0, n * cosine / below)
    return _sure(t * sum(task.experts) / n + (1 - t) * task.base)


def _task_vectors(task: Task, *, elect: bool, normalize: bool, middle: bool = False) -> Result:
    assert task.base is not None
    unsure = np.zeros(task.base.shape, bool)
    scaled = []
    for x, p in zip(task.experts, task.params, strict=True):
        delta = x - task.base
        if middle:
            kept, doubt = _middle(delta, p.get("density", 1.0), p.get("gamma", 0.01), task.dtype)
        else:
            kept, doubt = _trim(delta, p.get("density", 1.0), task.dtype) if elect else (delta, np.zeros(delta.shape, bool))
        if p.get("rescale") and np.abs(kept).sum() > 1e-7:
            kept = kept * (np.abs(delta).sum() / np.abs(kept).sum())
        scaled.append(p["weight"] * kept)
        unsure |= doubt
    weights = [p["weight"] for p in task.params]
    if elect:  # a vote that float32 rounding could turn
        vote, mass = np.abs(sum(scaled)), sum(np.abs(s) for s in scaled)
        unsure |= (mass > 0) & (vote <= 2.0**-22 * mass)
    return Result(task.base + combine(scaled, weights, task.shared, elect=elect, normalize=normalize), unsure)


def combine(scaled: list[F64], weights: list[float], shared: dict[str, Any], *, elect: bool, normalize: bool) -> F64:
    """The merged delta of weighted, sparsified deltas: a sum, or a sum of those that agree with the elected sign."""
    parts = np.stack(scaled)
    share = np.array(weights, np.float64).reshape(-1, *[1] * (parts.ndim - 1))
    if elect:
        sign = np.where(parts.sum(0) >= 0, 1.0, -1.0)
        agree = np.sign(parts) == sign
        parts, below = parts * agree, (share * agree).sum(0)
    else:
        below = share.sum(0)
    total = parts.sum(0)
    if shared.get("normalize", normalize):
        total = total / np.where(np.abs(below) < 1e-8, 1.0, below)
    return np.asarray(total * shared.get("lambda", 1.0))


def _trim(delta: F64, density: float, dtype: str) -> tuple[F64, Bits]:
    """The largest elements, and which of them (and of the dropped) lie as close to the threshold as the working dtype can tell."""
    if density >= 1:
        return delta, np.zeros(delta.shape, bool)
    size = np.abs(delta)
    keep = max(1, int(density * delta.size))
    order = np.argsort(-size, axis=None, kind="stable")
    last, next_ = size.flat[order[keep - 1]], size.flat[order[keep]]
    kept = np.zeros(delta.size, bool)
    kept[order[:keep]] = True  # exactly so many: of equal ones the first, as they decide the L1 norm
    slack = {"F32": 2.0**-22, "BF16": 2.0**-8, "F16": 2.0**-11}[dtype] * last
    doubt = (np.abs(size - last) <= slack) | (np.abs(size - next_) <= slack)
    return np.where(kept.reshape(delta.shape), delta, 0.0), doubt if last - next_ <= slack else np.zeros(delta.shape, bool)


def _middle(delta: F64, density: float, gamma: float, dtype: str) -> tuple[F64, Bits]:
    """The elements below the int(gamma n) largest, int(density n) of them, and which lie at either end of the interval."""
    size = np.abs(delta)
    first, count = int(gamma * size.size), int(density * size.size)
    order = np.argsort(-size, axis=None, kind="stable")
    kept = np.zeros(size.size, bool)
    kept[order[first : first + count]] = True
    slack = {"F32": 2.0**-22, "BF16": 2.0**-8, "F16": 2.0**-11}[dtype]
    doubt = np.zeros(size.shape, bool)
    for place in (first, first + count):
        if 0 < place < size.size:
            inner, outer = size.flat[order[place]], size.flat[order[place - 1]]
            if outer - inner <= slack * outer:
                doubt |= (np.abs(size - inner) <= slack * outer) | (np.abs(size - outer) <= slack * outer)
    return np.where(kept.reshape(delta.shape), delta, 0.0), doubt


def _sce(task: Task) -> Result:
    assert task.base is not None
    deltas = np.stack([x - task.base for x in task.experts])
    share = task.shared.get("select_topk", 1.0)
    doubt = np.zeros(task.base.shape, bool)
    if share < 1:
        narrow, count = deltas.astype(np.float32), np.float32(len(deltas))  # in float64 other variances would be equal
        middle = narrow[0] + sum(narrow - narrow[0]) / count
        spread = sum((x - middle) ** 2 for x in narrow) / count
        chosen = np.argsort(-spread, axis=None, kind="stable")[: int(share * np.count_nonzero(spread))]
        threshold = spread.flat[chosen[-1]]
        mask = np.zeros(spread.size, bool)
        mask[chosen] = True
        deltas = deltas * mask.reshape(spread.shape)
        doubt = np.abs(spread - threshold) <= {"F32": 2.0**-20, "BF16": 2.0**-6}[task.dtype] * threshold
    mass = (deltas**2).mean(tuple(range(1, deltas.ndim)))
    weights = (mass / mass.sum()).reshape(-1, *[1] * task.base.ndim)
    vote = deltas.sum(0)
    doubt |= (vote != 0) & (np.abs(vote) <= 2.0**-22 * np.abs(deltas).sum(0))
    agree = np.sign(deltas) == np.where(vote >= 0, 1.0, -1.0)
    below = (weights * agree).sum(0)
    return Result(task.base + (weights * agree * deltas).sum(0) / np.where(below > 0, below, 1.0), doubt)


def _arcee_fusion(task: Task) -> Result:
    assert task.base is not None
    base, expert = task.base, task.experts[0]
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) + 1e-8 for x in (expert, base))
    importance = np.abs(expert - base) * (p * np.log(p / q)).sum(-1, keepdims=True)
    order = np.sort(importance, axis=None)
    low, median, high = (order[int(share * (order.size - 1))] for share in (0.25, 0.5, 0.75))
    threshold = median + 1.5 * (high - low)
    # a row's divergence is a small difference of large terms, which float32 leaves a few digits of
    return Result(np.where(importance >= threshold, expert, base), np.abs(importance - threshold) <= 1e-2 * threshold)


def _nuslerp(task: Task) -> Result:
    axis: Any = None if task.shared.get("nuslerp_flatten", True) else 0 if task.shared.get("nuslerp_row_wise") else -1
    base = 0.0 if task.base is None else task.base
    a, b = (x - base for x in task.experts)
    weights = [p["weight"] for p in task.params]
    t = weights[1] / sum(weights)
    keep = axis is not None
    norms = [np.maximum(np.sqrt((x * x).sum(axis, keepdims=keep)), 1e-7) for x in (a, b)]
    cosine = np.clip((a * b).sum(axis, keepdims=keep) / (norms[0] * norms[1]), -1, 1)
    angle = np.arccos(cosine)
    flat = 1 - cosine**2 <= 1e-16
    sine = np.where(flat, 1.0, np.sin(angle))
    first, second = (np.where(flat, s, np.sin(s * angle) / sine) for s in (1 - t, t))
    return _sure(base + first * a + second * b)


def _multislerp(task: Task) -> Result:
    """The procedure as mergekit has it, with the step along the tangent."""
    base = 0.0 if task.base is None else task.base
    xs = [x - base for x in task.experts]
    weights = np.array([p["weight"] for p in task.params])
    weights = weights / weights.sum()
    norms = [np.sqrt((x * x).sum()) for x in xs]
    units = [x / (n + 1e-8) for x, n in zip(xs, norms, strict=True)]
    mean = sum(w * u for w, u in zip(weights, units, strict=True))
    mean = mean / np.sqrt((mean * mean).sum())
    tangent = sum(w * (u - (u * mean).sum() * mean) for w, u in zip(weights, units, strict=True))
    length = np.sqrt((tangent * tangent).sum())
    point = mean * np.cos(length) + (tangent * np.sin(length) / length if length > 0 else 0.0)
    return _sure(base + point * float(weights @ norms))


def _karcher(task: Task) -> Result:
    """The iteration on the unit vectors themselves."""
    norms = [np.sqrt((x * x).sum()) for x in task.experts]
    units = [x / n for x, n in zip(task.experts, norms, strict=True) if n > 1e-5]
    if not units:
        return _sure(np.zeros(task.experts[0].shape))
    mean = sum(units) / len(units)
    mean = mean / np.sqrt((mean * mean).sum())
    for _ in range(10):
        angles = [np.arccos(np.clip((u * mean).sum(), -1, 1)) for u in units]
        tangent = sum(a / np.sin(a) * (u - np.cos(a) * mean) for a, u in zip(angles, units, strict=True) if a >= 1e-5) / len(units)
        length = np.sqrt(np.sum(np.asarray(tangent) ** 2))
        if length < 1e-5:
            break
        mean = np.cos(length) * mean + np.sin(length) * tangent / length
        mean = mean / np.sqrt((mean * mean).sum())
    return _sure(mean * (sum(norms) / len(norms)))


def _nearswap(task: Task) -> Result:
    assert task.base is not None
    share = np.clip(task.shared["t"] / np.maximum(np.abs(task.base - task.experts[0]), 1e-6), 0, 1)
    return _sure(share * task.experts[0] + (1 - share) * task.base)


def _ram(task: Task) -> Result:
    assert task.base is not None
    epsilon = task.shared.get("epsilon", 1e-5)
    deltas = np.stack([x - task.base for x in task.experts])
    slack = {"F32": 2.0**-18, "BF16": 2.0**-7, "F16": 2.0**-10}[task.dtype] * epsilon
    unsure = (np.abs(np.abs(deltas) - epsilon) <= slack).any(0)
    active = np.abs(deltas) > epsilon
    count = active.sum(0)
    raised = np.ones(deltas.shape)
    if "r" in task.shared:
        for i, mask in enumerate(active):
            unique, shared = (mask & (count == 1)).sum(), (mask & (count > 1)).sum()
            ratio = min(shared / unique if unique else 0.0, task.shared["alpha"])
            raised[i] = np.where(count == 1, 1 + task.shared["r"] * ratio, 1.0)
    return Result(task.base + (active * deltas * raised).sum(0) / np.maximum(count, 1), unsure)


_METHODS: dict[str, Callable[[Task], Result]] = {
    "linear": _linear,
    "slerp": _slerp,
    "passthrough": _passthrough,
    "model_stock": _model_stock,
    "task_arithmetic": lambda task: _task_vectors(task, elect=False, normalize=False),
    "ties": lambda task: _task_vectors(task, elect=True, normalize=True),
    "breadcrumbs": lambda task: _task_vectors(task, elect=False, normalize=False, middle=True),
    "breadcrumbs_ties": lambda task: _task_vectors(task, elect=True, normalize=False, middle=True),
    "sce": _sce,
    "arcee_fusion": _arcee_fusion,
    "nuslerp": _nuslerp,
    "multislerp": _multislerp,
    "karcher": _karcher,
    "nearswap": _nearswap,
    "ram": _ram,
    "ramplus_tl": _ram,
}
