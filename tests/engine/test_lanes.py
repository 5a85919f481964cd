"""Lanes account for all of a thread's time, and the course of a run stays small and keeps its peaks."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plait.engine.events import Quiet, Several
from plait.engine.lanes import COMPUTING, FOR_WORK, READING, STATES, WRITING, Lane, Lanes
from plait.engine.moments import Note, Sample
from plait.engine.series import Series
from plait.engine.ticker import Ticker


def test_the_times_of_a_lane_add_up():
    """Whatever it does, the states take all the time that has passed, and a cut gives what came since the last."""
    begun = time.perf_counter_ns()
    lane = Lane("worker 1")
    assert lane.switch(READING) == FOR_WORK
    time.sleep(0.01)
    with lane.writing(7):
        assert lane.state == WRITING
        time.sleep(0.01)
    assert lane.state == READING
    lane.switch(COMPUTING)
    first = lane.cut()
    passed = time.perf_counter_ns() - begun
    assert 0.8 * passed < sum(first.ns) <= passed
    assert min(first.ns[READING], first.ns[WRITING]) > 9e6
    assert (first.read, first.written) == (0, 7)
    second = lane.cut()
    assert second.ns[READING] == second.ns[WRITING] == second.written == 0
    assert sum(lane.spent()) >= sum(first.ns) + sum(second.ns)


def test_slices_follow_one_another_without_gaps():
    """Each begins where the one before ended; a switch to the same state makes none."""
    heard: list[tuple[int, int, int]] = []
    lane = Lane("w", slices=lambda _lane, state, begun, ended: heard.append((state, begun, ended)))
    for state in (READING, READING, COMPUTING, WRITING, FOR_WORK):
        lane.switch(state)
    assert [state for state, _, _ in heard] == [FOR_WORK, READING, COMPUTING, WRITING]
    assert all(a[2] == b[1] for a, b in pairwise(heard))


def test_a_thread_has_its_own_lane():
    """One that sits nowhere gets a lane that is not among those of the run."""
    lanes = Lanes()
    mine = lanes.sit(lanes.lane("worker 1"))
    others: list[Lane] = []
    thread = threading.Thread(target=lambda: others.append(lanes.here()))
    thread.start()
    thread.join()
    assert lanes.here() is mine is lanes.lane("worker 1")
    assert others[0] not in lanes.all() == (mine,)


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 9)), min_size=1, max_size=400))
def test_a_series_keeps_peaks_and_ends(rows: list[tuple[int, int]]):
    """However many rows are added, few are kept: their highest level is the highest of all, their last sum the last."""
    series, total = Series(1, most=8), 0
    for level, step in rows:
        total += step
        series.add([level, total])
    kept = series.rows()
    assert len(kept) <= 8
    assert kept[:, 0].max() == max(level for level, _ in rows)
    assert kept[-1, 1] == total
    assert (np.diff(kept[:, 1]) >= 0).all()


def sample(at_s: float, moved: int = 0) -> Sample:
    return Sample(at_s, 1, 2, (), moved, 0, 0, 0, (), ())


def test_a_listener_that_raises_ends_the_run():
    """What `sampled` raises on the ticker's own thread is told to the run."""

    class Broken(Quiet):
        def sampled(self, sample: Sample) -> None:
            raise RuntimeError("no ink")

    told: list[BaseException] = []
    ticker = Ticker(Several([Broken()]), lambda: sample(0.0), dict, told.append)
    ticker.__enter__()
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(RuntimeError, match="no ink"):
        ticker.__exit__(None, None, None)
    assert [str(error) for error in told] == ["no ink"]


def test_counts_and_stalls_become_notes():
    """Only what is new is told; a stall once, until something moves again."""
    heard: list[Note] = []

    class Listener(Quiet):
        def noted(self, note: Note) -> None:
            heard.append(note)

    looks = [(0.0, 0, 0), (3.0, 0, 2), (6.0, 0, 2), (9.0, 0, 3), (12.0, 5, 3), (18.0, 5, 3)]
    now = iter(looks)
    state = {"cache_hit": 0}

    def look() -> Sample:
        at, moved, state["cache_hit"] = next(now)
        return sample(at, moved)

    ticker = Ticker(Several([Listener()]), look, lambda: dict(state), lambda error: None)
    for _ in looks:
        ticker._tick()
    assert [(n.kind, n.times) for n in heard] == [("cache_hit", 2), ("stall", 1), ("cache_hit", 1), ("stall", 1)]


def test_nobody_listening_costs_no_thread():
    """Without a listener to samples there is no ticker; hooks that nobody overrides are not called."""
    events = Several([Quiet()])
    assert not any(events.hears(hook) for hook in ("sampled", "noted", "progress", "started"))
    before = threading.active_count()
    with Ticker(events, lambda: sample(0.0), dict, lambda error: None):
        assert threading.active_count() == before
    assert len(STATES) == 6
