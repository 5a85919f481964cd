"""The catalogue's benchmark: a method at a time, kept after each, and what is over a promise is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from plait.method_runs import MethodRun

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(_BENCHMARKS))

import catalogue  # noqa: E402
from make_checkpoint import PRESETS, make_set  # noqa: E402

MIB = 1 << 20


def run(models: Path, results: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, _BENCHMARKS / "catalogue.py", "--set", f"tiny={models}", "--results", results, *more]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=os.environ.copy())


def test_a_second_run_measures_what_is_missing(tmp_path: Path):
    """Rows that are there stay as they are, streamed ones come first, refusals are rows with what they need, and the set is left as it was."""
    make_set(tmp_path / "set", PRESETS["tiny"], 2)
    before = sorted((tmp_path / "set").iterdir())
    done = run(tmp_path / "set", tmp_path, "--methods", "linear")
    assert done.returncode == 0, done.stdout + done.stderr
    first = json.loads((tmp_path / "catalogue.json").read_text())["sets"]["tiny"]["rows"]
    done = run(tmp_path / "set", tmp_path, "--methods", "doge_ta,linear,led", "--memory", "32MiB", "--through", "nice")
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "catalogue.json").read_text())["sets"]["tiny"]["rows"]
    assert list(rows) == ["linear", "led", "doge_ta"]
    assert rows["linear"] == first["linear"]
    assert rows["doge_ta"]["state"] == "refused"
    assert rows["doge_ta"]["predicted_peak_bytes"] > 32 * MIB
    assert "refused" in (tmp_path / "catalogue.txt").read_text()
    assert sorted((tmp_path / "set").iterdir()) == before


def test_promises_are_judged():
    """A peak over its prediction, a streamed method in too much memory, a failure; whole matrices may take more."""
    fine = MethodRun("linear", "f", budget_bytes=9 * MIB, predicted_peak_bytes=2 * MIB, peak_bytes=MIB, private_bytes=30 * MIB)
    rows = [fine, MethodRun("a", "f", budget_bytes=MIB, predicted_peak_bytes=MIB, peak_bytes=2 * MIB)]
    rows += [MethodRun("b", "f", private_bytes=300 * MIB), MethodRun("c", "f", streams=False, private_bytes=300 * MIB), MethodRun("d", "f", "failed", "why")]
    found = catalogue.broken({"x": {"rows": {run.method: run.to_dict() for run in rows}}})
    assert [line.split()[0] for line in found] == ["a", "b", "d"]
