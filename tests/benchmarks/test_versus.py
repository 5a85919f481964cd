"""Beside mergekit: runs alternate, are kept after each method, and what misses its target is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

_BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(_BENCHMARKS))

import versus_mergekit  # noqa: E402
from make_checkpoint import PRESETS, make_set  # noqa: E402

#: A mergekit that says its version, and makes an output in no time.
PYTHON = "#!/bin/sh\necho 0.1.5\n"
PROGRAM = '#!/bin/sh\nmkdir "$2" && cp "$1" "$2"\n'


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("venv")
    (folder / "bin").mkdir()
    for name, text in (("python", PYTHON), ("mergekit-yaml", PROGRAM)):
        (folder / "bin" / name).write_text(text)
        (folder / "bin" / name).chmod(0o755)
    return folder


def run(venv: Path, models: Path, results: Path, methods: str) -> subprocess.CompletedProcess[str]:
    options = ["--set", models, "--mergekit", venv, "--methods", methods, "--results", results, "--through", "nice"]
    command = [sys.executable, _BENCHMARKS / "versus_mergekit.py", *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env=os.environ.copy())


def test_methods_are_kept_one_by_one(venv: Path, tmp_path: Path):
    """A second run measures what is missing and leaves the rest; a program that does nothing is faster, which is said; nothing stays in the set."""
    make_set(tmp_path / "set", PRESETS["tiny"], 2)
    before = sorted((tmp_path / "set").iterdir())
    done = run(venv, tmp_path / "set", tmp_path, "linear")
    assert done.returncode == 1, done.stdout + done.stderr
    first = json.loads((tmp_path / "speed_mergekit.json").read_text())
    assert list(first["rows"]) == ["linear"]
    assert any("less than 5" in line for line in first["missed"])
    row = first["rows"]["linear"]
    assert len(row["plait"]["wall_s"]) == len(row["mergekit"]["wall_s"]) == 1
    assert row["plait"]["peak_bytes"][0] > 1 << 20
    done = run(venv, tmp_path / "set", tmp_path, "linear,slerp")
    second = json.loads((tmp_path / "speed_mergekit.json").read_text())
    assert second["rows"]["linear"] == row
    assert second["rows"]["slerp"]["plan"]["passes"] == 2
    assert "mergekit 0.1.5" in (tmp_path / "speed_mergekit.txt").read_text()
    assert sorted((tmp_path / "set").iterdir()) == before


def test_targets_are_judged():
    """Sorting methods are promised more; private memory is judged; a failure is one, too."""
    row = {"plait": {"wall_s": [1.0], "peak_bytes": [1 << 20]}, "mergekit": {"wall_s": [10.0], "peak_bytes": [1]}}
    fat = {**row, "plait": {"wall_s": [1.0], "peak_bytes": [1 << 30]}}
    assert versus_mergekit.broken({"linear": row}) == []
    assert len(versus_mergekit.broken({"ties": row, "slerp": fat, "sce": {"failed": "x"}})) == 3
