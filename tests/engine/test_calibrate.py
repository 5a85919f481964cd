"""Measuring the machine: real and short, every rate plausible, nothing left behind; what is stored is read back, and what is odd ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import pytest

from plait.engine.calibrate import measure_rates
from plait.engine.machine import cores
from plait.engine.ratefile import describe_machine, load_rates, rates_path, save_rates
from plait.ops.errors import OutputError
from plait.planner.rates import DEFAULT_RATES, Rates

MEASURED = replace(DEFAULT_RATES, start_s=1.25, cores=cores(), measured=True)


@pytest.fixture(scope="module")
def rates(tmp_path_factory: pytest.TempPathFactory) -> Rates:
    """A short calibration, with an eye on what it says and leaves."""
    folder = tmp_path_factory.mktemp("disk")
    said: list[str] = []
    found = measure_rates(folder, 4 << 20, tell=said.append)
    assert said == ["writing", "reading", "memory", "kernels", "compiler", "bookkeeping", "starting"]
    assert list(folder.iterdir()) == []
    return found


def test_every_rate_is_plausible(rates: Rates):
    """All are positive, none is further from the defaults than machines differ, and what was not asked for keeps its default."""
    assert rates.measured
    assert rates.cores == cores()
    for name, value in asdict(rates).items():
        if name not in ("cores", "measured"):
            assert value > 0, name
            if name.endswith("bytes_s"):
                assert 1e6 < value < 1e13, name
            if name.endswith("_ns"):
                assert 1e-3 < value < 1e3, name
    assert rates.whole_flops_s == DEFAULT_RATES.whole_flops_s
    assert rates.rank_ns > rates.map_ns
    assert rates.compile_s > rates.kernel_load_s


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    """The sentence names the folder and the option; a missing folder is no crash."""
    with pytest.raises(OutputError, match=r"cannot be measured.*--folder") as caught:
        measure_rates(tmp_path / "nowhere", 1 << 20)
    assert str(tmp_path / "nowhere") in caught.value.message


# -- the stored file ---------------------------------------------------------------------------------
def test_what_is_stored_is_read_back(tmp_path: Path):
    """The same numbers come back, marked as measured, from a file that says which machine they are of."""
    path = save_rates(replace(MEASURED, measured=False), tmp_path / "deep" / "machine.json")
    assert load_rates(path) == (MEASURED, [])
    data = json.loads(path.read_text())
    assert data["machine"] == describe_machine()
    assert set(data["rates"]) == {f.name for f in fields(Rates)} - {"measured"}
    assert [p.name for p in path.parent.iterdir()] == ["machine.json"]


def test_no_file_is_no_news(tmp_path: Path):
    """Without a file the defaults are used and nothing is said."""
    assert load_rates(tmp_path / "machine.json") == (DEFAULT_RATES, [])


def test_the_file_lies_beside_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`PLAIT_CACHE_DIR` comes first, then the user's cache folder."""
    monkeypatch.setenv("PLAIT_CACHE_DIR", str(tmp_path / "a"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert rates_path() == tmp_path / "a" / "machine.json"
    monkeypatch.delenv("PLAIT_CACHE_DIR")
    assert rates_path() == tmp_path / "b" / "plait" / "machine.json"


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {k: v for k, v in data.items() if k != key}


def _rate(name: str, value: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda data: {**data, "rates": {**data["rates"], name: value}}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_without("rates"), "damaged"),
        (_without("machine"), "damaged"),
        (_without("version"), "damaged"),
        (lambda data: [data], "damaged"),
        (_rate("start_s", 0), "damaged"),
        (_rate("start_s", -1.0), "damaged"),
        (_rate("start_s", float("nan")), "damaged"),
        (_rate("start_s", float("inf")), "damaged"),
        (_rate("start_s", "fast"), "damaged"),
        (_rate("start_s", True), "damaged"),
        (_rate("cores", 0.5), "damaged"),
        (_rate("unheard_of", 1.0), "damaged"),
        (lambda data: {**data, "rates": []}, "damaged"),
        (lambda data: {**data, "version": 999}, "another version"),
        (lambda data: {**data, "machine": {"cpu": "Z80", "cores": 1}}, "another machine"),
    ],
)
def test_odd_files_are_ignored_with_a_word(change: Callable[[dict[str, Any]], Any], word: str, tmp_path: Path):
    """Whatever is wrong with the file, the defaults are used and a note says why and what to do."""
    path = save_rates(MEASURED, tmp_path / "machine.json")
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    rates, notes = load_rates(path)
    assert rates == DEFAULT_RATES
    assert len(notes) == 1
    assert str(path) in notes[0]
    assert word in notes[0]
    assert "plait bench machine" in notes[0]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000])
def test_bytes_that_are_no_json_are_ignored(content: bytes, tmp_path: Path):
    """A truncated or foreign file never stops a plan."""
    path = tmp_path / "machine.json"
    path.write_bytes(content)
    rates, notes = load_rates(path)
    assert rates == DEFAULT_RATES
    assert len(notes) == 1


def test_a_folder_in_its_place_is_ignored(tmp_path: Path):
    """What cannot be read is said so."""
    (tmp_path / "machine.json").mkdir()
    rates, notes = load_rates(tmp_path / "machine.json")
    assert rates == DEFAULT_RATES
    assert "cannot be read" in notes[0]
