"""What the figures of a comparison suggest about merging, in sentences that say no more than the figures do.

The thresholds are rules of thumb, stated here and in `docs/inspect.md`; nothing is measured on a task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plait.differences import Change, Diff, Figures

#: Relative changes up to the first are slight, above the second larger than fine-tuning usually makes.
SLIGHT, LARGE = 0.001, 0.3
#: Cosines of changes: up to the first in magnitude they are nearly orthogonal, above the second they agree.
ORTHOGONAL, ALIGNED = 0.1, 0.5
#: Sign conflicts: up to the first they hardly matter; from the second on they are near the half that chance gives.
FEW_CONFLICTS, MANY_CONFLICTS = 0.2, 0.4
#: One change is much larger than the other where its norm is so many times that of the other.
UNEVEN = 2.0
#: A change is sparse where so many elements are unchanged, and concentrated where its spread is below the second.
SPARSE, CONCENTRATED = 0.5, 0.3
#: Changes hardly overlap where both moved at most this share of elements.
APART = 0.05
#: A stable rank up to this share of the smaller dimension is low.
LOW_RANK = 0.05
#: One group changed much more than the whole where its relative change is so many times that of the whole.
STANDS_OUT = 3.0


def readings(diff: Diff) -> list[dict[str, Any]]:
    """Sentences on a comparison, each with the measure and the value it rests on."""
    total = diff.total
    if total is None:
        return [_reading("tensors", 0, "no tensor has finite figures in all models, so there is nothing to read from them")]
    found = _with_base(diff, total) if diff.has_base else _without_base(total)
    found += [r for name, change in zip(_names(diff), total.changes, strict=True) for r in _of_change(name, change)]
    return found + _rank(diff) + _outstanding(diff, total) + _odd(diff)


def _reading(measure: str, value: float | None, text: str) -> dict[str, Any]:
    return {"measure": measure, "value": value, "text": text}


def _names(diff: Diff) -> tuple[str, ...]:
    return ("A's change", "B's change") if diff.has_base else ("the change",)


def _without_base(total: Figures) -> list[dict[str, Any]]:
    relative = total.changes[0].relative
    if total.changes[0].norm == 0.0:
        return [_reading("relative", 0.0, "A and B hold the same values: there is nothing to merge")]
    if relative is None:
        return [_reading("relative", None, "A is zero everywhere, so no relative change is defined")]
    if relative <= SLIGHT:
        text = f"B differs slightly from A (relative change {relative:.2g}): weights above 1 may be needed for its change to show"
    elif relative > LARGE:
        text = f"B differs much from A (relative change {relative:.2g}): more than fine-tuning usually does; is A really what B was tuned from?"
    else:
        text = f"B differs from A as much as fine-tuning usually does (relative change {relative:.2g})"
    return [_reading("relative", relative, text)]


def _with_base(diff: Diff, total: Figures) -> list[dict[str, Any]]:
    a, b = total.changes
    if a.norm == 0.0 or b.norm == 0.0:
        same = " and ".join(name for name, change in (("A", a), ("B", b)) if change.norm == 0.0)
        return [_reading("relative", 0.0, f"{same} did not change the base: there is nothing to merge from it")]
    found = [_cosine(total.cosine or 0.0), *_conflict(total)]
    ratio = a.norm / b.norm
    if max(ratio, 1 / ratio) >= UNEVEN:
        larger, smaller, times = ("A", "B", ratio) if ratio > 1 else ("B", "A", 1 / ratio)
        text = (
            f"{larger}'s change is {times:.1f} times as large as {smaller}'s: with equal weights {larger} dominates; a larger weight for {smaller} evens it out"
        )
        found.append(_reading("norm_ratio", ratio, text))
    for name, change in (("A", a), ("B", b)):
        if change.relative is not None and change.relative > LARGE:
            text = f"{name} differs much from the base (relative change {change.relative:.2g}): is it really what {name} was tuned from?"
            found.append(_reading("relative", change.relative, text))
    return found


def _cosine(cosine: float) -> dict[str, Any]:
    if abs(cosine) <= ORTHOGONAL:
        text = f"the changes are nearly orthogonal (cosine {cosine:.2f}): they disturb one another little; task arithmetic with weights near 1 is a safe start"
    elif cosine > ALIGNED:
        text = f"the changes agree (cosine {cosine:.2f}): added up they overshoot; start with weights that add up to 1, as an average"
    elif cosine > 0:
        text = f"the changes share a direction (cosine {cosine:.2f}): weights of 1 overshoot along it; start with 0.5 to 0.8"
    else:
        text = f"the changes oppose one another (cosine {cosine:.2f}): what one adds the other takes away; expect a compromise, and weigh what matters more"
    return _reading("cosine", cosine, text)


def _conflict(total: Figures) -> list[dict[str, Any]]:
    found = []
    if total.both <= APART:
        found.append(_reading("both_changed", total.both, f"both changed only {_percent(total.both)} of the elements: the changes hardly meet"))
    if total.sign_agreement is not None and total.both > APART:
        conflict = 1.0 - total.sign_agreement
        if conflict >= MANY_CONFLICTS:
            text = f"signs conflict in {_percent(conflict)} of the elements that both changed, near the half of chance: electing signs (TIES) matters"
        elif conflict <= FEW_CONFLICTS:
            text = f"signs conflict in only {_percent(conflict)} of the elements that both changed: electing signs (TIES) will change little"
        else:
            text = f"signs conflict in {_percent(conflict)} of the elements that both changed: electing signs (TIES) may help"
        found.append(_reading("sign_conflict", conflict, text))
    return found


def _of_change(name: str, change: Change) -> list[dict[str, Any]]:
    if change.norm == 0.0:
        return []
    found = []
    if change.unchanged >= SPARSE:
        share = 1.0 - change.unchanged
        text = f"{name} leaves {_percent(change.unchanged)} of the elements as they were: a density of {share:.2g} or more keeps all of it"
        found.append(_reading("unchanged", change.unchanged, text))
    if change.spread is not None and change.spread < CONCENTRATED:
        text = f"{name} is held by few elements (spread {change.spread:.2g}; 0.64 is normal): a low density, kept by magnitude, keeps most of it"
        found.append(_reading("spread", change.spread, text))
    return found


def _rank(diff: Diff) -> list[dict[str, Any]]:
    total = diff.total
    found = []
    for number, name in enumerate(_names(diff)):
        rank = None if total is None else total.changes[number].stable_rank
        if rank is None:
            continue
        each = [(t, t.figures.changes[number].stable_rank) for t in diff.tensors if t.usable]
        shares = sorted(r / min(t.shape[0], t.elements // t.shape[0]) for t, r in each if r is not None)
        share = shares[len(shares) // 2]
        told = f"(stable rank {rank:.3g}, {_percent(share)} of the smaller dimension, in the median matrix)"
        if share <= LOW_RANK:
            text = f"{name} is of low rank {told}: a LoRA adapter or a spectral method (TSV-M, Iso-C) can hold most of it"
        else:
            text = f"{name} is spread over many directions {told}: a small LoRA adapter would lose much of it"
        found.append(_reading("stable_rank", rank, text))
    return found


def _outstanding(diff: Diff, total: Figures) -> list[dict[str, Any]]:
    """The group whose relative change stands out most."""
    found = []
    for number, name in enumerate(_names(diff)):
        whole = total.changes[number].relative
        groups = {role: group.changes[number].relative or 0.0 for role, group in diff.by_role().items()}
        top = max(groups, key=lambda role: groups[role], default=None)
        if whole and top is not None and groups[top] >= STANDS_OUT * whole:
            text = f"{name} is largest in the group {top} (relative change {groups[top]:.2g}, {groups[top] / whole:.1f} times that of the whole): "
            found.append(_reading("role_relative", groups[top], text + "a weight of its own may serve it"))
    return found


def _odd(diff: Diff) -> list[dict[str, Any]]:
    unusable = sum(1 for tensor in diff.tensors if not tensor.usable)
    if not unusable:
        return []
    what = "1 tensor holds" if unusable == 1 else f"{unusable} tensors hold"
    return [_reading("nonfinite", unusable, f"{what} NaN, infinity or values that overflow, and count in no total: look at the models before merging them")]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.1 or share == 0 else f"{100 * share:.2g} %"
