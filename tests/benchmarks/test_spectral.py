"""The benchmark of spectral kernels on matrices of a moment: both sides run, errors are told, promises are judged."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "spectral.py"


def test_a_small_run(tmp_path: Path):
    """Table and data of one case; the error of a polar factor is rounding, and a broken promise shows in the exit status."""
    command = [sys.executable, SCRIPT, "--shape", "300x700", "--case", "polar", "--repeat", "1", "--threads", "1", "--name", tmp_path / "found"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = json.loads((tmp_path / "found.json").read_text())
    assert done.returncode == (1 if found["broken"] else 0), done.stderr
    assert "300x700" in (tmp_path / "found.txt").read_text()
    (result,) = found["results"]
    assert 0 < result["ours"][0]["error"] < 1e-6
    assert result["torch"][0]["cpu_s"] > 0
