"""Fuzzing of headers and indexes: 20,000 mutants always, a million and a coverage-guided run when asked for (`-m slow`)."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz import headers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from plait.ops.errors import CheckpointError
from plait.planner.checkpoint import open_checkpoint

_EACH = 200


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> headers.Check:
    return headers.Check(tmp_path_factory.mktemp("mutants"))


@settings(max_examples=100, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**64 - 1))
def test_mutants_are_opened_or_refused(seed: int, check: headers.Check) -> None:
    """20,000 mutants of real headers and indexes: a checkpoint as safetensors reads it, or one sentence; none takes a second."""
    headers.run(seed, _EACH, check)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=300) | st.text('{}[]":,0123456789adtypesh_of \\u', max_size=300).map(lambda t: len(t).to_bytes(8, "little") + t.encode()))
def test_any_bytes(content: bytes, tmp_path: Path) -> None:
    """Bytes that no safetensors file gave rise to are opened or refused like any other."""
    path = tmp_path / "any.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        open_checkpoint(path)


def test_the_seeds_are_good_models(check: headers.Check) -> None:
    """Unmutated, every seed is opened: mutants differ from good files by their mutations alone."""
    before = dict(check.ends)
    for name, content in headers.seeds().items():
        check("header" if name.endswith(".safetensors") else "index", content)
    opened = {kind: check.ends[f"{kind} opened"] - before.get(f"{kind} opened", 0) for kind in ("header", "index")}
    assert opened == {"header": 9, "index": 2}


def test_the_check_notices(check: headers.Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A parser that lets another exception out, or reads a shape wrongly, fails the run."""
    good = headers.seeds()["plain.safetensors"]
    monkeypatch.setattr(headers, "open_checkpoint", lambda path: {}["no such"])
    with pytest.raises(KeyError):
        check("header", good)
    other = open_checkpoint(_written(tmp_path / "one.safetensors", headers.seeds()["one.safetensors"]))
    monkeypatch.setattr(headers, "open_checkpoint", lambda path: other)
    with pytest.raises(AssertionError):
        check("header", good)


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.slow
def test_a_million_mutants() -> None:
    """A million mutants in a process of its own: nothing but CheckpointError, none over a second, less than 200 MB over the start."""
    command = [sys.executable, headers.__file__, "--count", "1000000", "--seed", "20"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout)
    assert outcome["bytes"] < headers.MOST_BYTES
    assert outcome["slowest_s"] < headers.MOST_SECONDS
    assert outcome["header opened"] > 10_000
    assert outcome["index opened"] > 1_000


@pytest.mark.slow
def test_guided_by_coverage(tmp_path: Path) -> None:
    """Two minutes of mutants chosen by what they reach in the parser; needs atheris."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install atheris, on Python 3.11 or newer)")
    script = Path(headers.__file__).with_name("guided.py")
    done = subprocess.run([sys.executable, str(script), "-max_total_time=120", f"-artifact_prefix={tmp_path}/"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.iterdir())
    assert "DONE" in done.stderr
