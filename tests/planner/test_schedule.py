"""The memory a plan asks for: the smallest budget works, one less is refused by name, and nothing in a plan is over its budget."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import plait
from plait.ops.errors import BudgetTooSmall, PlanError
from plait.planner.cost import component_bytes, lease_of
from plait.planner.explain import to_text
from plait.planner.memory import worker_bytes
from plait.planner.plan import Plan
from plait.planner.program import scope_of
from plait.planner.rates import Rates
from plait.planner.residency import ASKED, CHEAPER, KEPT, NO_ROOM, ONCE, slab_bytes
from plait.planner.schedule import stage_sweeps
from plait.planner.sizes import MIB, enough, parse_size, size, size_up
from plait.planner.windows import WINDOW
from support import tiny

NAMES = list(tiny.recipes([Path("b"), Path("x"), Path("y")]))


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("set")
    found = {}
    for name, text in tiny.recipes(tiny.write_set(folder)).items():
        found[name] = folder / f"{name}.yml"
        found[name].write_text(text)
    return found


def planned(recipes: dict[str, Path], name: str, memory: int | str, workers: int = 2, residency: str = "auto") -> Plan:
    return plait.plan(recipes[name], plait.Options(memory=memory, workers=workers, device="cpu", residency=residency))


# -- the smallest budget ----------------------------------------------------------------------------
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_the_smallest_budget_really_works(name: str, workers: int, recipes: dict[str, Path], tmp_path: Path):
    """A merge inside the budget that the plan calls the smallest ends well, with the bits of a generous one."""
    least = planned(recipes, name, "2GiB", workers).prediction.minimum_bytes
    tight, wide = tmp_path / "tight", tmp_path / "wide"
    report = tiny.bounded(lambda: plait.merge(recipes[name], tight, plait.Options(memory=least, workers=workers, device="cpu")), 20)
    assert report.leased_peak_bytes <= least
    plait.merge(recipes[name], wide, plait.Options(memory="1GiB", workers=workers, device="cpu"))
    assert (tight / "model.safetensors").read_bytes() == (wide / "model.safetensors").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_one_less_is_refused_by_name(name: str, recipes: dict[str, Path]):
    """Less than the smallest is refused: the sentence names the tensor, what it needs, what there is, and a budget that works."""
    least = planned(recipes, name, "2GiB").prediction.minimum_bytes
    for budget in (least - 1, least - MIB, 0):
        with pytest.raises(BudgetTooSmall) as caught:
            planned(recipes, name, budget)
        error = caught.value
        assert error.facts["needed"] == least
        assert error.facts["budget"] == budget
        assert error.facts["task"] in tiny.SHAPES
        assert str(error.facts["task"]) in error.message
        assert error.exit_status == 2
    advice = re.search(r"give --memory (\S+) or more", error.message)
    assert advice is not None
    advised = advice.group(1)
    assert planned(recipes, name, advised).prediction.minimum_bytes == least
    with pytest.raises(BudgetTooSmall):
        planned(recipes, name, parse_size(advised) - MIB)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.integers(0, 40 * MIB), st.integers(1, 6))
def test_nothing_in_a_plan_is_over_its_budget(recipes: dict[str, Path], name: str, more: int, workers: int):
    """Under any budget the predicted peak fits, and each component alone fits beside the workers, or the run would wait for ever."""
    least = planned(recipes, name, "2GiB").prediction.minimum_bytes
    plan = planned(recipes, name, least + more, workers)
    p = plan.prediction
    assert least <= p.peak_bytes <= plan.budget_bytes
    assert p.peak_bytes == p.runtime_bytes + plan.workers * (p.worker_bytes + p.slab_bytes) + p.state_bytes
    assert 1 <= plan.workers <= workers
    left = plan.budget_bytes - p.runtime_bytes - plan.workers * (p.worker_bytes + p.slab_bytes)
    for component in plan.components:
        program = plan.program_of(component)
        assert component_bytes(program) <= left
        assert worker_bytes([program]) <= p.worker_bytes
        assert not component.keep_inputs or slab_bytes(program) <= p.slab_bytes


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(NAMES), st.integers(0, 64 * MIB), st.integers(1, 4))
def test_the_predicted_state_covers_any_window(recipes: dict[str, Path], name: str, more: int, workers: int):
    """Whichever components the engine may have open at once, together they hold no more than predicted."""
    least = planned(recipes, name, "2GiB").prediction.minimum_bytes
    plan = planned(recipes, name, least + more, workers)
    leases = [lease_of(plan.program_of(c)) for c in plan.components]
    p = plan.prediction
    limit = plan.budget_bytes - p.runtime_bytes - plan.workers * (p.worker_bytes + p.slab_bytes)
    for first in range(len(leases)):
        near = leases[first : first + WINDOW * plan.workers]
        for together in combinations(near, min(plan.workers, len(near))):
            assert min(sum(h.always for h in together) + max(h.in_turn for h in together), limit) <= p.state_bytes


def test_a_cache_needs_room_for_blocks_of_what_it_keeps(tmp_path: Path):
    """A block of a kept matrix, in float32, goes through a worker's buffers, beside the two of the output in bfloat16."""
    models = tiny.write_set(tmp_path / "models", experts=1, shapes={"a.weight": (1024, 1024)})
    (tmp_path / "r.yml").write_text(tiny.recipe("iso_c", models[1:], base=models[0]))
    without, cached = (plait.plan(tmp_path / "r.yml", plait.Options(memory="1GiB", workers=2, cache=c)) for c in (None, tmp_path / "cache"))
    assert without.prediction.worker_bytes < (2 * 2 + 4) * MIB <= cached.prediction.worker_bytes


def test_more_memory_never_means_fewer_workers(recipes: dict[str, Path]):
    """Workers grow with the budget up to what was asked for."""
    least = planned(recipes, "ties", "2GiB").prediction.minimum_bytes
    counts = [planned(recipes, "ties", least + k * MIB, 8).workers for k in range(0, 40, 4)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == 8


def test_inputs_are_kept_only_where_there_is_room(recipes: dict[str, Path]):
    """Asked to keep, two passes read once with plenty of memory; in a tight budget they read twice, and the plan says so."""
    least = planned(recipes, "slerp", "1GiB").prediction.minimum_bytes
    roomy, tight = planned(recipes, "slerp", "1GiB", residency="keep"), planned(recipes, "slerp", least, residency="keep")
    assert all(c.keep_inputs for c in roomy.components)
    assert not any(c.keep_inputs for c in tight.components)
    assert (roomy.prediction.passes, tight.prediction.passes) == (1, 2)
    assert tight.prediction.bytes_read == 2 * roomy.prediction.bytes_read
    assert set(roomy.residency) == {KEPT}
    assert set(tight.residency) == {NO_ROOM}
    assert "kept in memory between passes (saves " in flat(to_text(roomy, 400))
    assert "no room to keep them (it needs " in flat(to_text(tight, 400))


def test_keeping_is_a_matter_of_cost(recipes: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    """Where the page cache is slow and memory fast inputs stay; where it is the other way round, or a close call, they are read again, in any budget."""
    slow = Rates(read_bytes_s=1e4, read_thread_bytes_s=1e4, fill_bytes_s=1e4)
    half, tenth = replace(slow, fill_bytes_s=7.5e3), replace(slow, fill_bytes_s=5.5e3)  # two readings take 1.5 and 1.1 times as long as one that stays
    quick = Rates(fill_bytes_s=1e6)
    for rates, word in ((slow, KEPT), (half, KEPT), (tenth, CHEAPER), (quick, CHEAPER)):
        text = "kept in memory" if word == KEPT else "cheaper than keeping them"
        monkeypatch.setattr("plait.api.load_rates", lambda rates=rates: (rates, []))
        for name in ("slerp", "model_stock"):
            plan = planned(recipes, name, "1GiB")
            assert set(plan.residency) == {word}
            assert all(c.keep_inputs == (word == KEPT) for c in plan.components)
            assert text in flat(to_text(plan, 400))
    assert set(planned(recipes, "linear", "1GiB").residency) == {ONCE}


def test_whatever_becomes_of_inputs_the_bits_are_the_same(recipes: dict[str, Path], tmp_path: Path):
    """Kept or read again, the merge is the same, and the plan says which was asked for."""
    for name in ("slerp", "ties", "model_stock"):
        outputs = set()
        for wanted in ("keep", "reread"):
            out = tmp_path / f"{name}-{wanted}"
            plait.merge(recipes[name], out, plait.Options(memory="1GiB", workers=2, device="cpu", residency=wanted))
            outputs.add((out / "model.safetensors").read_bytes())
            assert set(planned(recipes, name, "1GiB", residency=wanted).residency) == {KEPT if wanted == "keep" else ASKED}
        assert len(outputs) == 1
    assert planned(recipes, "slerp", "1GiB", residency="keep").fingerprint == planned(recipes, "slerp", "1GiB", residency="reread").fingerprint
    with pytest.raises(PlanError, match="'hold' is not one of auto, keep, reread"):
        planned(recipes, "slerp", "1GiB", residency="hold")


def flat(text: str) -> str:
    """The tree without its branches and line breaks."""
    return re.sub(r"[\s│├└─]+", " ", text)


# -- order and sweeps -------------------------------------------------------------------------------
def test_components_follow_the_files(recipes: dict[str, Path]):
    """Reading goes through the first file from front to back."""
    plan = planned(recipes, "ties", "1GiB")
    starts = [c.inputs[0].start for c in plan.components]
    assert starts == sorted(starts)
    assert len({c.name for c in plan.components}) == len(tiny.SHAPES)


def test_a_model_wide_threshold_takes_a_sweep_of_its_own(recipes: dict[str, Path]):
    """Nothing is stored before the statistics it waits for are complete, and they count every element once."""
    plan = planned(recipes, "ties_global", "1GiB")
    assert plan.sweeps == 2
    assert [s.numel for s in plan.scopes] == [tiny.elements()] * 2
    after = {s.key: s.sweep for s in plan.scopes}
    for program in plan.programs:
        for stage, sweep in zip(program.stages, stage_sweeps(program, after), strict=True):
            assert all(after[key] < sweep for key in stage.waits)
            assert stage.store == (sweep == plan.sweeps - 1)
            assert {scope_of(program.nodes[i]) for i in stage.folds} <= set(after)


def test_one_program_serves_all_layers(recipes: dict[str, Path]):
    """Tensors of one shape share a program: layers do not multiply the work of planning."""
    plan = planned(recipes, "ties", "1GiB")
    assert len(plan.programs) == len(set(tiny.SHAPES.values()))
    assert component_bytes(plan.programs[0]) > 0


def test_global_scope_refuses_what_it_cannot_do(tmp_path: Path):
    """Two densities for one model-wide threshold make no sense; the sentence says what to change."""
    models = tiny.write_set(tmp_path / "m")
    density = [{"filter": "mlp", "value": 0.3}, {"value": 0.5}]
    path = tmp_path / "r.yml"
    path.write_text(tiny.recipe("ties", models[1:], base=models[0], each={"weight": 1.0, "density": density}, parameters={"scope": "global"}))
    with pytest.raises(PlanError, match=r"0\.3, 0\.5.*single density, or set scope: tensor"):
        plait.plan(path)


# -- sizes ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4GiB", 4 << 30),
        ("4g", 4 << 30),
        ("512MiB", 512 << 20),
        ("512m", 512 << 20),
        ("5GB", 5 * 10**9),
        ("1.5 GiB", 3 << 29),
        ("1000", 1000),
        ("7b", 7),
        (" 2TiB ", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text: str, expected: int):
    """Binary units unless a B stands alone behind the prefix."""
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "four", "-1GiB", "1e9", "4 G i B x", "GiB", "1..5G", "0x10", "nan"])
def test_what_is_no_size_is_refused(text: str):
    """The sentence quotes the text and gives an example."""
    with pytest.raises(ValueError, match="is not a size; write for example"):
        parse_size(text)


@given(st.integers(0, 1 << 45))
def test_a_rounded_up_size_is_enough(nbytes: int):
    """The size that errors advise, read again, covers the need with less than one MiB to spare; so does the smallest budget of a plan, within a tenth."""
    assert 0 <= parse_size(size_up(nbytes)) - nbytes < MIB
    assert nbytes <= parse_size(enough(nbytes)) <= 1.1 * nbytes


@pytest.mark.parametrize(
    ("nbytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (512 * MIB, "512 MiB"), (3 << 29, "1.5 GiB"), (141 * 10**9, "131 GiB")],
)
def test_sizes_for_people(nbytes: int, text: str):
    """At most one decimal, none where it says nothing."""
    assert size(nbytes) == text
