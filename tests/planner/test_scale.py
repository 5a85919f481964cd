"""Planning costs work in proportion to the tensors: counted calls, never seconds. What makes it quick changes no plan and lets nothing through."""

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.ops.errors import CheckpointError
from plait.planner import safetensors_header
from plait.planner.cost import Lease
from plait.planner.header_text import decoded
from plait.planner.layout import index_json, make_layout
from plait.planner.safetensors_header import read_header
from plait.planner.types import TensorRef
from plait.planner.windows import WINDOW, widest_window
from support import tiny

OPTIONS = plait.Options(memory="512MiB", workers=2, device="cpu", backend="numba")


# -- growth -----------------------------------------------------------------------------------------
def sparse_models(folder: Path, experts: int) -> list[Path]:
    """Three models of four layers with so many feed-forward experts in each, in shards of 20 tensors; headers only."""
    parts = ("gate_proj", "up_proj", "down_proj")
    names = [f"model.layers.{layer}.mlp.experts.{e}.{p}.weight" for layer in range(4) for e in range(experts) for p in parts]
    layout = make_layout([(name, "BF16", (8, 8)) for name in names], 20 * 128)
    for model in ("base", "one", "two"):
        (folder / model).mkdir(parents=True)
        for shard in layout.shards:
            with open(folder / model / shard.name, "wb") as file:
                file.write(shard.header)
                file.truncate(shard.size)
        (folder / model / "model.safetensors.index.json").write_bytes(index_json(layout))
        (folder / model / "config.json").write_text("{}")
    return [folder / model for model in ("base", "one", "two")]


def work(function: Any, *args: Any) -> int:
    """Lines and rounds of loops that Python runs while `function` does: a count of its work that no other process disturbs."""
    count = 0

    def note(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return note

    before = sys.gettrace()
    sys.settrace(note)
    try:
        function(*args)
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("method", ["linear", "ties", "filters"])
def test_twice_the_tensors_take_twice_the_work(method: str, tmp_path: Path):
    """From 480 to 960 tensors (72 to 144 files) the work grows by what 480 tensors need: nothing is done for each pair of tensors or files."""
    each: dict[str, Any] = {"weight": 0.5}
    if method == "ties":
        each["density"] = 0.3
    if method == "filters":
        each["weight"] = [{"filter": "up_proj", "value": [0.1, 0.9]}, {"value": 0.4}]
    found = []
    for size in (20, 40, 80):
        models = sparse_models(tmp_path / str(size), size)
        base, *experts = models
        path = tmp_path / f"{size}.yml"
        path.write_text(tiny.recipe("ties", experts, base=base, each=each) if method == "ties" else tiny.recipe("linear", models, each=each))
        plait.plan(path, OPTIONS).to_json()  # what is done once a process is done
        found.append(work(lambda p=path: plait.plan(p, OPTIONS).to_json()))
    first, second = found[1] - found[0], found[2] - found[1]
    assert 1.8 < second / first < 2.2


def test_the_expression_of_a_kind_of_tensor_is_lowered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """1,200 tensors of one shape under one gradient over four layers: four programs are lowered."""
    lowered = []
    real = plait.planner.expressions.lower
    monkeypatch.setattr("plait.planner.expressions.lower", lambda *args: lowered.append(args) or real(*args))
    models = sparse_models(tmp_path, 100)
    gradient = {"weight": [0.1, 0.2, 0.5, 0.9]}
    (tmp_path / "recipe.yml").write_text(tiny.recipe("task_arithmetic", models[1:], base=models[0], each=gradient))
    plan = plait.plan(tmp_path / "recipe.yml", OPTIONS)
    assert len(plan.components) == 1200
    assert len(lowered) == len(plan.programs) == 4


# -- the sliding window -----------------------------------------------------------------------------
_SIZES = st.sampled_from([0, 0, 1, 2, 5, 7, 100])


@given(st.lists(st.builds(Lease, _SIZES, _SIZES), max_size=20), st.integers(1, 4), st.integers(0, 300))
def test_widest_window_is_that_of_the_definition(leases: list[Lease], workers: int, limit: int):
    """The most that any `workers` components among `WINDOW * workers` neighbours hold together, one of them in its turn."""
    best, at, most = 0, 0, max(limit, max((h.most for h in leases), default=0))
    for first in range(len(leases)):
        near = range(first, min(first + WINDOW * workers, len(leases)))
        some = combinations([leases[j] for j in near], min(workers, len(near)))
        together = min(max(sum(h.always for h in these) + max(h.in_turn for h in these) for these in some), most)
        if together > best:
            best, at = together, max(near, key=lambda j: (leases[j].most, -j))
    assert widest_window(leases, workers, limit) == (best, at)


# -- headers: all at once, and one by one -----------------------------------------------------------
def write(path: Path, header: str, data_bytes: int) -> Path:
    raw = header.encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(data_bytes))
    return path


def outcome(path: Path) -> Any:
    """What a header gives: its tensors in order, or the message of its refusal."""
    try:
        return list(read_header(path).entries.items())
    except CheckpointError as error:
        return str(error)


ODD_NUMBERS = [0, 1, 2, 3, 4, 8, -1, -2, 2**61, 2**63, 2**64, True, False, None, "", "a", "4", [], [2], {}]
odd = st.sampled_from(ODD_NUMBERS)
#: Descriptions of tensors, mostly right, so that whole headers are; each part may be replaced by something that only resembles it.
shapes = st.one_of(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3), st.lists(odd, max_size=3), odd)
codes = st.sampled_from(["BF16", "F32", "I8", "BOOL", "F4", "NO", "", None, 1, ["F32"]])


@st.composite
def headers(draw: st.DrawFn) -> tuple[str, int]:
    """The JSON of a header and the bytes of data that follow it."""
    at, entries = 0, {}
    for number in range(draw(st.integers(0, 4))):
        sound = draw(st.integers(0, 4)) > 0
        shape = draw(st.lists(st.sampled_from([0, 1, 2, 3]), max_size=3)) if sound else draw(shapes)
        code = draw(st.sampled_from(["BF16", "F32", "I8"])) if sound else draw(codes)
        count = 1
        for size in shape if isinstance(shape, list) else ():
            count = count * size if isinstance(size, int) and abs(size) < 9 else 0
        end = at + max(count, 0) * {"BF16": 2, "F32": 4}.get(code if isinstance(code, str) else "", 1)
        offsets: Any = [at, end] if sound or draw(st.booleans()) else draw(st.one_of(st.lists(odd, max_size=3), odd))
        entry = {"dtype": code, "shape": shape, "data_offsets": offsets}
        if not sound and draw(st.integers(0, 5)) == 0:
            entry[draw(st.sampled_from(["more", "dtype2"]))] = 1
        if not sound and draw(st.integers(0, 5)) == 0:
            entry.pop(draw(st.sampled_from(sorted(entry))))
        entries[f"t{number}"] = entry
        at = end
    if draw(st.integers(0, 4)) == 0:
        entries = dict(draw(st.permutations(list(entries.items()))))
    return json.dumps(entries), at + draw(st.sampled_from([0, 0, 0, 1]))


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
TWO = {"dtype": "BF16", "shape": [3, 2], "data_offsets": [8, 20]}


@pytest.mark.parametrize(
    "changed",
    [
        *({"shape": [value]} for value in ODD_NUMBERS),
        *({"shape": [value, 2], "data_offsets": [0, 4 * value * 2]} for value in (1, True)),
        *({"shape": value, "data_offsets": [0, 4]} for value in ("", {}, None, [], [True], [1], [-1, -1], [1, 1.0])),
        *({"shape": [2, value]} for value in (True, "1", None, [1], 1)),
        *({"shape": value, "data_offsets": [0, 0]} for value in ([0, 2**62], [0, 2**63], [0, -1], [2**63, 0])),
        {"shape": [-1, -2]},
        {"shape": [1] * 63 + [2]},
        {"shape": [1] * 64 + [2]},
        *({"data_offsets": value} for value in ([False, 8], [0, "8"], [0], [0, 8, 8], "08", {"0": 0, "8": 8}, None, 8, [-1, 7], [8, 0])),
        *({"dtype": value} for value in ("F64", "F16", "I32", "F4", "f32", "", None, ["F32"], 4)),
        {"more": 1},
        {"data_offsets": [0, 12]},
    ],
    ids=json.dumps,
)
def test_one_wrong_part_is_refused_alike(changed: dict[str, Any], tmp_path: Path):
    """One part of one description is changed: both checks accept it or refuse it in the same words."""
    path = tmp_path / "m.safetensors"
    for entries in ({"a": {**ONE, **changed}, "b": TWO}, {"a": {**ONE, **changed}}):
        for data_bytes in (20, 16, 12, 8, 4, 0):
            write(path, json.dumps(entries), data_bytes)
            quick = outcome(path)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(safetensors_header, "_plain_entries", lambda *_: None)
                assert outcome(path) == quick


@settings(max_examples=200, deadline=None)
@given(headers())
def test_checking_all_tensors_together_is_as_strict_as_one_by_one(tmp_path_factory: pytest.TempPathFactory, header: tuple[str, int]):
    """Headers of right and wrong types, sizes, orders and keys: the quick check accepts what the full one accepts, with the same tensors."""
    path = write(tmp_path_factory.getbasetemp() / "header.safetensors", *header)
    quick = outcome(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors_header, "_plain_entries", lambda *_: None)
        assert outcome(path) == quick


def test_a_sound_header_is_checked_all_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An ordinary header never reaches the slow check of single tensors; one that is not in order does, and gives the same."""
    monkeypatch.setattr(safetensors_header, "_entry", lambda *_: pytest.fail("checked one by one"))
    first = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "b": {"dtype": "BF16", "shape": [], "data_offsets": [8, 10]}}
    path = write(tmp_path / "m.safetensors", json.dumps(first), 10)
    entries = read_header(path).entries
    start = path.stat().st_size - 10
    assert entries == {"a": TensorRef(str(path), "a", "F32", (2,), start, 8), "b": TensorRef(str(path), "b", "BF16", (), start + 8, 2)}
    monkeypatch.undo()
    write(path, json.dumps(dict(reversed(first.items()))), 10)
    assert list(read_header(path).entries.items()) == list(entries.items())


@pytest.mark.parametrize(
    "text",
    [
        '{"a": 1, "a": 2}',
        '{"a": {"x": 1, "x": 2}}',
        '{"a": {"x": 1}, "a": 3}',
        '{"a": 3, "a": {"x": 1}}',
        '{"a:b": 1, "a:b": 2}',
        '{"\\u0061": 1, "a": 2}',
        '{"a": [{"b": 1, "b": 1}]}',
        '{"a": {"b": {"c": 1, "c": 1}}}',
    ],
)
def test_a_name_that_comes_twice_is_found(text: str):
    """At any depth, however it is written, and beside colons inside of names."""
    with pytest.raises(ValueError, match="twice"):
        decoded(text.encode())


@given(st.recursive(st.integers(-9, 9), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(':a"\\{', max_size=3), inner, max_size=3)))
def test_decoding_is_that_of_json(value: Any):
    """Text without names that come twice gives what the standard library gives, colons and quotes in names or not."""
    text = json.dumps(value)
    assert decoded(text.encode()) == json.loads(text)


# -- text -------------------------------------------------------------------------------------------
@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6, unique=True), st.sampled_from([None, {"é": {"x": [1]}}]))
def test_headers_and_indexes_are_ordinary_json(names: list[str], metadata: dict[str, Any] | None):
    """Put together by hand for speed, they are byte for byte what json.dumps makes of the same facts."""
    layout = make_layout([(name, "F32", (2, 3)) for name in names], 48)
    total = 24 * len(names)
    files = {name: layout.shards[place.shard].name for name, place in layout.places.items()}
    whole = {"metadata": {"total_size": total, **(metadata or {})}, "weight_map": files}
    assert index_json(layout, metadata) == json.dumps(whole, ensure_ascii=False, indent=2).encode() + b"\n"
    for number, shard in enumerate(layout.shards):
        mine = [name for name, place in layout.places.items() if place.shard == number]
        facts = {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [24 * i, 24 * i + 24]} for i, name in enumerate(mine)}
        text = json.dumps({"__metadata__": {"format": "pt"}, **facts}, ensure_ascii=False, separators=(",", ":")).encode()
        assert shard.header[8:].rstrip(b" ") == text
