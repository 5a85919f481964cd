"""docs/benchmarks.md and README.md show what the results hold, and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

REPO = Path(__file__).parents[1]


@pytest.fixture
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_pages", REPO / "scripts" / "benchmark_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MACHINE = {"cpu": "Some CPU", "cores": 2, "memory_bytes": 16 << 30}
RUN: dict[str, Any] = {
    **dict.fromkeys(("peak_bytes", "private_bytes", "predicted_peak_bytes", "read_bytes", "predicted_read_bytes", "written_bytes"), 32 << 20),
    "method": "ties",
    "state": "ran",
    "why": "",
    "streams": True,
    "seconds": 4.21,
    "predicted_seconds": 4.0,
    "passes": 2,
}
CELL = {"method": "ties", "shape": "tiny", "budget": "64MiB", "refused": False, "used": 5, "predicted": 6, "predicted_s": 1.0, "wall_s": 1.5}
ROW = {"plait": {"wall_s": [2.0], "peak_bytes": [52 << 20]}, "mergekit": {"wall_s": [120.0], "peak_bytes": [3 << 30]}}


def stored(folder: Path, **results: dict[str, Any]) -> None:
    for name, data in results.items():
        (folder / f"{name}.json").write_text(json.dumps(data))


def test_the_committed_pages_are_up_to_date(generator: ModuleType):
    """`python scripts/benchmark_pages.py` would change nothing, and the picture that they show is there."""
    for path, text in generator.pages().items():
        assert path.read_text() == text, "run python scripts/benchmark_pages.py"
    if generator.result("grid") is not None:
        assert (REPO / "benchmarks" / "results" / "grid.png").read_bytes().startswith(b"\x89PNG")


def test_figures_come_from_results(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every method, merge and target is told, also those that did not run; without results there is no section."""
    monkeypatch.setattr(generator, "RESULTS", tmp_path)
    assert "##" not in generator.page().split("## Your machine")[1].replace("## Your machine", "")
    skipped = {**RUN, "method": "iso_c", "state": "skipped", "why": "predicted to take 9000 s", "streams": False}
    sets = {"1.1b": {"experts": 3, "model_bytes": 2_200_000_000, "rows": {"ties": RUN, "iso_c": skipped}}}
    peers = {"set": {"experts": 3, "model_bytes": 2_200_000_000}, "memory": "128MiB", "peers": ["mergekit 0.1.5"], "machine": MACHINE}
    grid = {"machine": MACHINE, "cells": [CELL, {**CELL, "refused": True}, {**CELL, "used": 7}]}
    stored(
        tmp_path,
        catalogue={"machine": MACHINE, "sets": sets, "broken_promises": ["ties: over"]},
        speed_mergekit={**peers, "rows": {"ties": ROW, "sce": {"failed": "x"}}, "missed": ["sce: x"]},
        grid=grid,
    )
    text = generator.page()
    for said in (
        "| 4.2 s |",
        "- `iso_c`: predicted to take 9000 s",
        "1 methods were streamed",
        "32 MiB",
        "| 60.0 |",
        "sce: x",
        "of 1 was above",
        "Of 2 merges",
    ):
        assert said in text
    marked = "a\n<!-- figures: speed_mergekit -->\nold\n<!-- end -->\nb <!-- figures: grid -->\n<!-- end -->"
    filled = generator.filled(marked)
    assert "old" not in filled
    assert "60 (`ties`) times" in filled
    assert "2 of the predicted times" in filled
    assert generator.filled(filled) == filled


def test_check_says_what_is_stale(generator: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """--check writes nothing; without it pages are written, and then nothing is stale."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("x\n")
    monkeypatch.setattr(generator, "REPO", tmp_path)
    monkeypatch.setattr(generator, "PAGE", tmp_path / "docs" / "benchmarks.md")
    assert generator.main(check=True) == 1
    assert "benchmarks.md" in capsys.readouterr().out
    assert generator.main(check=False) == 0
    assert generator.main(check=True) == 0
