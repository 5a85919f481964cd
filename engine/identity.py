"""What decides the bits of an output, in a form from which a difference between two runs can be told in words."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from operator import attrgetter
from typing import Any

from plait.engine.libraries import library_version
from plait.planner import blocks
from plait.planner.plan import Plan

#: Libraries that compute what plait does not compute itself: linear algebra of whole tensors and of small systems.
_LIBRARIES = ("torch", "numpy")
_TOLD = 3  # differences of one kind that a sentence names


def identity(plan: Plan, plait_version: str, recipe: str, source: str = "") -> dict[str, Any]:
    """Everything that the output's tensors follow from.

    Args:
        plan: what will run.
        plait_version: of the program.
        recipe: the text that the plan was made from, to tell differences by; what counts is the plan.
        source: where that text was read from, for people.
    """
    return {
        "plait": plait_version,
        "title": plan.title,
        "recipe": recipe,
        "source": writable(source),
        "fingerprint": plan.fingerprint,
        "files": [[writable(f.path), f.size, f.mtime_ns, f.header] for f in plan.files],
        "shards": [[s.name, s.size] for s in plan.layout.shards],
        "computation": _hash(repr(plan.programs), *(f"{c.name!r} {c.program}" for c in sorted(plan.components, key=attrgetter("name")))),
        "layout": _hash(*(s.name for s in plan.layout.shards), *(s.header.hex() for s in plan.layout.shards)),
        "blocks": [blocks.BLOCK, blocks.STORED, blocks.CHUNK],  # sums are added up by them
        "libraries": _libraries(plan),
    }


def writable(path: str) -> str:
    """A path as text; bytes that are no UTF-8 are escaped."""
    return path.encode("utf-8", "backslashreplace").decode()


def _hash(*texts: str) -> str:
    state = blake2b(digest_size=16)
    for text in texts:
        state.update(text.encode() + b"\n")
    return state.hexdigest()


def _libraries(plan: Plan) -> dict[str, str]:
    """Where whole tensors are computed and by what, for plans that do: other libraries and devices give other last bits."""
    whole = {n for n, p in enumerate(plan.programs) if any(node.kind == "whole" and node.op != "hold" for node in p.nodes)}
    solved = any(node.op == "solve" for p in plan.programs for node in p.nodes)
    if not whole and not solved:
        return {}
    found = {name: library_version(name) for name in (_LIBRARIES if whole else ("numpy",))}
    if whole:
        found["device of whole tensors"] = "cuda" if whole & set(plan.on_gpu) else "cpu"
    return found


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two identities, in words; nothing where the second continues the first."""
    found = _changed_files(before.get("files", []), now["files"])
    if before.get("plait") != now["plait"]:
        found.append(f"plait {before.get('plait')} began it and this is {now['plait']}")
    if before.get("layout") != now["layout"]:
        found.append(_changed_layout(before.get("shards", []), now["shards"]))
    if before.get("computation") != now["computation"]:
        found.append(_changed_recipe(str(before.get("recipe", "")), now["recipe"]))
    if before.get("blocks") != now["blocks"]:
        found.append("plait works in other blocks")
    old, new = before.get("libraries", {}), now["libraries"]
    found += [f"{key}: {old.get(key)} -> {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if not found and before.get("fingerprint") != now["fingerprint"]:
        found.append("the plan has another fingerprint")
    return found


def _changed_files(before: list[list[Any]], now: list[list[Any]]) -> list[str]:
    old, new = {f[0]: f[1:] for f in before}, {f[0]: f[1:] for f in now}
    found = [f"input {path} was not read before" for path in new if path not in old]
    found += [f"input {path} is no longer read" for path in old if path not in new]
    for path in new:
        was = old.get(path)
        if was is None or was == new[path]:
            continue
        names = ("size", "time of change", "header")
        facts = [f"{n} {a} -> {b}" for n, a, b in zip(names, was, new[path], strict=True) if a != b]
        found.append(f"input {path} changed ({', '.join(facts)})")
    return found if len(found) <= _TOLD else [*found[:_TOLD], f"{len(found) - _TOLD} more inputs differ"]


def _changed_layout(before: list[list[Any]], now: list[list[Any]]) -> str:
    if before != now:
        return f"the output's files: {_files(before)} -> {_files(now)} (shard size, dtype or tensors)"
    return "the output's tensors have other names, dtypes or shapes"


def _files(shards: list[list[Any]]) -> str:
    return f"{len(shards)} of {sum(s[1] for s in shards)} bytes"


def _changed_recipe(before: str, now: str) -> str:
    import difflib

    lines = [line for line in difflib.unified_diff(before.splitlines(), now.splitlines(), lineterm="", n=0) if line[:2] not in ("--", "++", "@@")]
    changed = [f"`{line[1:].strip()}` is {'gone' if line[0] == '-' else 'new'}" for line in lines if line[1:].strip()]
    if not changed:
        return "what is computed differs, though the recipe's text does not (an option, a Python expression or the name of a model)"
    more = f", and {len(changed) - 2 * _TOLD} more lines" if len(changed) > 2 * _TOLD else ""
    return "the recipe: " + ", ".join(changed[: 2 * _TOLD]) + more
