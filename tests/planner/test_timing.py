"""Predicted time is arithmetic: its parts add up, it grows with what there is to do and with nothing else, and it knows disk from page cache."""

from __future__ import annotations

import json
import re
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import plait
from plait.ops.algebra import row_rank, row_rank_from_top, where
from plait.ops.inputs import MergeInputs
from plait.ops.method import methods
from plait.ops.op import OPS
from plait.ops.tensor import load
from plait.planner.cost import input_bytes, output_bytes
from plait.planner.explain import duration, to_text
from plait.planner.kernel_time import stage_ns
from plait.planner.program import Program, lower
from plait.planner.rates import DEFAULT_RATES, Rates
from plait.planner.timing import WHOLE_FLOPS, Setting, Timing, predict_seconds
from support import tiny

METHODS = {
    "linear": {"weight": (0.4, 0.4)},
    "ties": {"weight": (0.4, 0.4), "density": (0.2, 0.2)},
    "dare_linear": {"weight": (0.4, 0.4), "density": (0.2, 0.2)},
    "della": {"weight": (0.4, 0.4), "density": (0.2, 0.2), "epsilon": (0.1, 0.1)},
    "model_stock": {},
    "iso_c": {},
}
SIDES = st.integers(1, 3000)


def program(method: str, rows: int = 512, columns: int = 512, storage: str = "BF16") -> Program:
    """A method over a base and two experts."""
    leaves = [load((key,), (rows, columns), storage) for key in "bxy"]
    merge = MergeInputs(leaves[0], tuple(leaves[1:]), ("x", "y"), (rows, columns), "model.layers.0.mlp.up_proj.weight")
    return lower(methods()[method].build(merge, **METHODS[method]), storage, leaves)


def predicted(programs: list[Program], counts: dict[int, int], setting: Setting | None = None, *, keep: bool = False) -> Timing:
    return predict_seconds(programs, counts, [keep] * len(programs), setting or Setting(2))


# -- parts -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [False, True])
def test_parts_add_up(method: str, keep: bool):
    """The parts give the total, and the shares of the programs give the parts they speak of."""
    programs = [program(method), program(method, 64, 64)]
    timing = predicted(programs, {0: 3, 1: 5}, keep=keep)
    assert timing.seconds == pytest.approx(sum(timing.parts().values()))
    assert min(timing.parts().values()) >= 0.0
    assert timing.seconds > 0.0
    for name in ("computing_s", "bookkeeping_s"):
        assert sum(getattr(p, name) for p in timing.programs) == pytest.approx(getattr(timing, name))
    for name in ("reading_s", "writing_s"):  # what the workers do, and then waiting for the disk
        assert sum(getattr(p, name) for p in timing.programs) <= getattr(timing, name) * (1 + 1e-9)
    assert [(p.program, p.count) for p in timing.programs] == [(0, 3), (1, 5)]


@pytest.mark.parametrize("method", METHODS)
def test_linear_in_tensors(method: str):
    """Twice the tensors take twice the time beyond the start; nothing is quadratic."""
    setting = Setting(2, replace(DEFAULT_RATES, sync_s=1e-9))
    seconds = {n: predicted([program(method)], {0: n}, setting) for n in (1, 2, 1000, 2000)}
    start = seconds[1].starting_s
    assert seconds[2].seconds - start == pytest.approx(2 * (seconds[1].seconds - start))
    assert seconds[2000].seconds - start == pytest.approx(2 * (seconds[1000].seconds - start))


# -- monotone ----------------------------------------------------------------------------------------
@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(set(METHODS) - {"iso_c"})), SIDES, SIDES, st.integers(1, 500))  # of a larger matrix another way to decompose may be cheaper
def test_more_elements_never_take_less(method: str, rows: int, columns: int, more: int):
    """A larger tensor takes at least as long, in all parts together and in each kind of work."""
    small, large = (predicted([program(method, r, columns)], {0: 1}) for r in (rows, rows + more))
    assert large.seconds >= small.seconds
    assert large.computing_s > small.computing_s


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(METHODS)), st.sampled_from([f.name for f in fields(Rates) if f.name not in ("cores", "measured")]), st.floats(1.01, 100.0))
def test_a_slower_machine_never_takes_less(method: str, rate: str, factor: float):
    """Every single rate that becomes worse leaves the time as it was or makes it longer, the first run included."""
    per_second = rate.endswith(("bytes_s", "flops_s"))
    worse = replace(DEFAULT_RATES, **{rate: getattr(DEFAULT_RATES, rate) * (1 / factor if per_second else factor)})
    for backend in ("numba", "torch"):
        good, bad = (predicted([program(method)], {0: 4}, Setting(2, r, backend)) for r in (DEFAULT_RATES, worse))
        assert bad.seconds + bad.first_run_s >= good.seconds + good.first_run_s - 1e-12  # sums of parts round


def test_every_rate_counts_somewhere():
    """No rate is there for show: each changes the predicted time of some merge."""
    settings = [
        Setting(2, slab_bytes=1 << 30),
        Setting(1),
        Setting(2, backend="torch"),
        Setting(2, page_cache_bytes=0),
        Setting(2, on_gpu=(0,)),
        Setting(2, maps="cuda"),
    ]
    programs = [program(m) for m in METHODS]
    copied = load(("b",), (64, 64), "BF16")
    programs.append(lower(copied, "BF16", [copied]))

    def all_times(rates: Rates) -> list[float]:
        found = []
        for setting in settings:
            for keep in (False, True):
                for p in programs:
                    timing = predicted([p], {0: 1}, replace(setting, rates=rates), keep=keep)
                    found += [timing.seconds, timing.first_run_s]
        return found

    usual = all_times(DEFAULT_RATES)
    for field in fields(Rates):
        if field.name not in ("cores", "measured"):
            assert all_times(replace(DEFAULT_RATES, **{field.name: getattr(DEFAULT_RATES, field.name) * 0.1})) != usual, field.name
    assert all_times(replace(DEFAULT_RATES, cores=1)) != usual


def test_more_passes_read_longer():
    """A second pass over the same bytes takes reading time; kept inputs are read from files once."""
    one, two = program("linear"), program("model_stock")
    assert len(two.stages) == 2 * len(one.stages)
    per_byte = [predicted([p], {0: 1}).reading_s / input_bytes(p) for p in (one, two)]
    assert per_byte[1] == pytest.approx(2 * per_byte[0])


def test_workers_share_the_work_up_to_the_cores():
    """Two workers on two cores halve the computing, more than there are cores change nothing; writing into the page cache is shared, too."""
    times = {w: predicted([program("ties")], {0: 10}, Setting(w)) for w in (1, 2, 8)}
    assert times[1].computing_s == pytest.approx(2 * times[2].computing_s)
    assert times[8] == times[2]
    assert times[1].reading_s > times[2].reading_s


# -- disk and page cache -----------------------------------------------------------------------------
def test_what_does_not_fit_in_the_page_cache_comes_from_the_disk():
    """The disk's rate bounds the time from below, once for each pass over the model, and the timing says so."""
    programs, counts = [program("model_stock")], {0: 50}
    nbytes = 50 * input_bytes(programs[0])
    rates = replace(DEFAULT_RATES, cold_read_bytes_s=1e6, write_bytes_s=1e15)
    fits, unknown = (predicted(programs, counts, Setting(2, rates, page_cache_bytes=b)) for b in (nbytes, None))
    assert fits == unknown
    assert not fits.from_disk
    short = predicted(programs, counts, Setting(2, rates, page_cache_bytes=nbytes - 1))
    assert short.from_disk
    assert short.seconds - short.starting_s - short.bookkeeping_s - short.publishing_s == pytest.approx(nbytes / 1e6)
    none = predicted(programs, counts, Setting(2, rates, page_cache_bytes=0))
    assert none.reading_s > 1.9 * short.reading_s
    kept = predicted(programs, counts, Setting(2, rates, page_cache_bytes=0), keep=True)
    assert kept.reading_s == pytest.approx(short.reading_s, rel=0.01)


def test_the_disk_takes_the_output_behind_the_work():
    """A disk that is slower than the work sets the time; one that is quicker costs nothing; copies are flushed at the end."""
    programs, counts = [program("ties")], {0: 50}
    out = 50 * output_bytes(programs[0])
    slow, quick = (predicted(programs, counts, Setting(2, replace(DEFAULT_RATES, write_bytes_s=rate))) for rate in (1e6, 1e15))
    assert slow.reading_s + slow.computing_s + slow.writing_s == pytest.approx(out / 1e6)
    assert quick.writing_s == 0.0
    assert (quick.reading_s, quick.computing_s) == (slow.reading_s, slow.computing_s)
    leaf = load(("b",), (512, 512), "BF16")
    copies = predicted([lower(leaf, "BF16", [leaf])], counts)
    assert copies.publishing_s > quick.publishing_s
    assert copies.writing_s == pytest.approx(out / DEFAULT_RATES.copy_bytes_s)


# -- kernels -----------------------------------------------------------------------------------------
def test_kinds_of_work_have_their_rates():
    """Random bits, thresholds and ranks are told apart: each rate moves the methods that use it and no others."""
    uses = {"random_ns": {"dare_linear", "della"}, "count_ns": {"ties"}, "rank_ns": {"della"}}

    def ns(p: Program, rates: Rates) -> float:
        return sum(stage_ns(p, stage, rates) for stage in p.stages)

    for rate, users in uses.items():
        slow = replace(DEFAULT_RATES, **{rate: 1e3})
        assert {m for m in METHODS if ns(program(m), slow) != ns(program(m), DEFAULT_RATES)} == users


@pytest.mark.parametrize(("storage", "factor"), [("BF16", 1.0), ("F16", 1.0), ("F32", 2.0)])
def test_ranks_of_many_different_magnitudes_take_twice_as_long(storage, factor):
    """Rows of 16-bit weights are ranked by counting, of 32-bit ones by a sort; so are ranks from the top."""
    x = load(("a",), (4, 64), storage)
    none = replace(DEFAULT_RATES, rank_ns=0.0)
    for rank, expected in ((row_rank(x), factor), (row_rank_from_top(x), 2.0)):
        ranked = lower(where(rank > 3.0, x, 0.0), storage, [x])
        ns = [stage_ns(ranked, ranked.stages[0], rates) for rates in (DEFAULT_RATES, none)]
        assert ns[0] - ns[1] == pytest.approx(expected * DEFAULT_RATES.rank_ns)


def test_every_op_can_be_priced():
    """Whole ops say how much they compute, and all declared weights are sensible numbers."""
    assert {name for name, op in OPS.items() if op.kind == "whole"} == set(WHOLE_FLOPS)
    assert all(0 <= op.flops <= 40 for op in OPS.values())  # a transcendental function is tens of operations
    assert all(op.flops >= 1 for op in OPS.values() if op.kind == "map" and op.name != "random_bits")


def test_polar_factors_are_priced_by_their_short_side():
    """Work grows with the cube of the short side and linearly with the long one; transposing changes nothing."""
    rates = replace(DEFAULT_RATES, whole_flops_s=1.0)

    def whole_s(rows: int, columns: int) -> float:
        return predicted([program("iso_c", rows, columns)], {0: 1}, Setting(2, rates)).computing_s

    assert whole_s(128, 512) == pytest.approx(whole_s(512, 128))
    assert whole_s(256, 256) == pytest.approx(8 * whole_s(128, 128), rel=1e-6)
    assert whole_s(128, 1024) < 2 * whole_s(128, 512)


# -- the plan ----------------------------------------------------------------------------------------
def test_default_rates_are_documented():
    """Every rate has its line in the docstring and is a positive number."""
    text = Rates.__doc__ or ""
    for field in fields(Rates):
        assert re.search(rf"^ +{field.name}: ", text, re.MULTILINE), field.name
        assert field.name == "measured" or getattr(DEFAULT_RATES, field.name) > 0
    assert not DEFAULT_RATES.measured


@pytest.mark.parametrize("measured", [False, True])
def test_the_plan_says_how_long_and_on_what_grounds(measured: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Seconds stand in tree and JSON with their parts; default rates are called by their name; the fingerprint knows nothing of time."""
    (tmp_path / "r.yml").write_text(tiny.recipes(tiny.write_set(tmp_path / "m"))["ties"])
    prints = []
    for start_s in (7.0, 77.0):
        rates = replace(DEFAULT_RATES, start_s=start_s, measured=measured)
        monkeypatch.setattr("plait.api.load_rates", lambda rates=rates: (rates, []))
        plan = plait.plan(tmp_path / "r.yml", memory="256MiB")
        text, data = to_text(plan, 400), json.loads(plan.to_json())
        assert f"about {duration(plan.prediction.seconds)} (" in text
        assert f"starting {duration(plan.timing.starting_s + plan.timing.bookkeeping_s)}" in text
        assert plan.prediction.seconds == plan.timing.seconds == data["timing"]["seconds"] == data["predicted_seconds"] > start_s
        assert ("time estimated with default rates; run `plait bench machine`" in text) == (not measured)
        assert data["timing"]["measured"] is measured
        prints.append(plan.fingerprint)
    assert len(set(prints)) == 1


@pytest.mark.parametrize(("seconds", "text"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (119.4, "119 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")])
def test_durations_for_people(seconds: float, text: str):
    """One decimal below ten seconds, then whole seconds, minutes and hours."""
    assert duration(seconds) == text
