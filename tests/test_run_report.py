"""The report of a real merge: complete, true to its schema, verified with the output, honest about what it measured."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner

import plait
from plait.cli import main
from plait.engine import runreport
from plait.engine.lanes import STATES
from plait.engine.recording import MOST_GROUPS, MOST_SLOW, Recording
from plait.engine.runreport import REPORT_NAME
from plait.engine.series import MOST_ROWS
from plait.engine.ticker import Watch
from plait.engine.verdict import judged_peak, judged_time, verdict
from plait.keeping import verify
from plait.ops.errors import CheckpointError, Stopped, VerifyError
from plait.planner.plan import Component
from plait.reports import to_text
from support import tiny
from support.workspace import needs_rss_anon

TWO = plait.Options(memory="256MiB", workers=2)
SCHEMA = json.loads(Path(runreport.__file__).with_name("report.schema.json").read_text())


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return tiny.write_set(tmp_path_factory.mktemp("models"))


@pytest.fixture
def recipe(models: list[Path], tmp_path: Path) -> Callable[[str], Path]:
    def write(name: str) -> Path:
        path = tmp_path / f"{name}.yml"
        path.write_text(tiny.recipes(models)[name])
        return path

    return write


@pytest.mark.parametrize("name", ["linear", "ties", "ties_global", "passthrough", "iso_c"])
def test_a_report_is_whole_and_true_to_its_schema(name: str, recipe: Callable[[str], Path], tmp_path: Path):
    """Every merge leaves one; its parts agree with one another, with the plan and with what the run returned."""
    plan = plait.plan(recipe(name), TWO)
    told = plait.merge(recipe(name), tmp_path / "out", TWO)
    found = plait.report(tmp_path / "out")
    jsonschema.validate(found, SCHEMA)
    assert (found["title"], found["fingerprint"], found["workers"]) == (plan.title, plan.fingerprint, 2)
    assert found["part"] == {"resumed": False, "resumed_bytes": 0, "output_bytes": plan.prediction.bytes_written, "measured_share": 1.0}
    assert found["bytes"] == {
        "predicted_read": plan.prediction.bytes_read,
        "measured_read": told.bytes_read,
        "predicted_written": plan.prediction.bytes_written,
        "measured_written": told.bytes_written,
    }
    groups = found["groups"]
    assert sum(g["planned_tensors"] for g in groups) == sum(g["measured_tensors"] for g in groups) == len(tiny.SHAPES)
    assert sum(g["measured_written_bytes"] for g in groups) == told.bytes_written
    assert sum(g["measured_read_bytes"] for g in groups) <= told.bytes_read
    assert sum(g["predicted_written_bytes"] for g in groups) == plan.prediction.bytes_written
    assert 0 < len(found["slowest"]) <= MOST_SLOW
    time = found["time"]
    assert time["total_s"] == pytest.approx(sum(time[part] for part in ("planning_s", "preparing_s", "running_s", "publishing_s")), abs=1e-4)
    for lane in found["lanes"]:
        assert set(lane["seconds"]) == set(STATES)
        assert sum(lane["shares"].values()) == pytest.approx(1.0, abs=1e-3)
    rows, columns = found["timeline"]["points"], found["timeline"]["columns"]
    assert 0 < len(rows) <= MOST_ROWS
    assert all(len(row) == len(columns) for row in rows)
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert told.private_peak_bytes == found["memory"]["measured_peak_bytes"]
    assert list(told.off) == found["verdict"]["sentences"]


@needs_rss_anon
def test_the_peak_is_never_above_what_was_promised(recipe: Callable[[str], Path], tmp_path: Path):
    """Measured by the run itself, in a process of its own, for streams and for whole matrices."""
    for name in ("linear", "ties", "iso_c"):
        command = [sys.executable, "-m", "plait", "merge", str(recipe(name)), str(tmp_path / name), "--memory", "256MiB", "-q"]
        subprocess.run(command, check=True, env={k: v for k, v in os.environ.items() if k != "PLAIT_VERIFY"})  # checking takes memory of its own
        memory = plait.report(tmp_path / name)["memory"]
        assert memory["judged"], memory["not_judged"]
        assert 0 < memory["measured_peak_bytes"] <= memory["predicted_peak_bytes"], name


def test_a_report_is_part_of_what_is_verified(recipe: Callable[[str], Path], tmp_path: Path):
    """One that was changed, or is gone, is not what was written."""
    plait.merge(recipe("linear"), tmp_path / "out", TWO)
    verify(tmp_path / "out")
    path = tmp_path / "out" / REPORT_NAME
    text = path.read_text()
    path.write_text(text.replace('"right": true', '"right": false'))
    with pytest.raises(VerifyError, match=r"report\.json was changed"):
        verify(tmp_path / "out")
    path.unlink()
    with pytest.raises(VerifyError, match=r"report\.json is missing"):
        verify(tmp_path / "out")


_KILLED = """
import os, sys
from plait.engine import commits, events, ticker
commits.Commits.__init__.__defaults__ = (0.0, 1)
import plait
class Killer(events.Quiet):
    left = 3
    def finished_component(self, component):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), 9)
plait.merge(sys.argv[1], sys.argv[2], memory="256MiB", events=Killer())
"""


def test_a_run_that_continues_a_killed_one_says_what_it_measured(recipe: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The rest of the output alone, of which the time is not judged."""
    path, out = recipe("ties"), tmp_path / "out"
    assert subprocess.run([sys.executable, "-c", _KILLED, str(path), str(out)]).returncode == -9
    assert not out.exists()
    told = plait.merge(path, out, TWO)
    found = plait.report(out)
    jsonschema.validate(found, SCHEMA)
    assert found["part"]["resumed"]
    assert 0 < found["part"]["resumed_bytes"] == told.bytes_resumed < found["part"]["output_bytes"]
    assert found["part"]["measured_share"] == pytest.approx(told.bytes_written / found["part"]["output_bytes"], abs=1e-6)
    assert sum(g["measured_written_bytes"] for g in found["groups"]) == told.bytes_written
    assert any("interrupted" in words for words in found["verdict"]["not_judged"])
    assert "continued an interrupted run" in to_text(found)


def test_a_cache_and_a_resumed_whole_are_told(recipe: Callable[[str], Path], tmp_path: Path):
    """Hits are counted, and the time of such a run is not judged."""
    options = plait.Options(memory="256MiB", workers=2, cache=tmp_path / "cache")
    for out in ("one", "two"):
        plait.merge(recipe("iso_c"), tmp_path / out, options)
    first, second = plait.report(tmp_path / "one"), plait.report(tmp_path / "two")
    jsonschema.validate(second, SCHEMA)
    assert first["cache"]["hits"] == 0 < second["cache"]["hits"]
    assert not any("cache" in words for words in first["verdict"]["not_judged"])
    assert any("cache" in words for words in second["verdict"]["not_judged"])
    assert "hits" in to_text(second)


def test_a_peak_is_judged_where_a_cache_spared_loading_torch(tmp_path: Path):
    """In processes of their own: the first run has to load it in its middle, the second finds all that it would compute."""
    paths = tiny.write_set(tmp_path / "models", dtype="F32", shapes={"model.layers.0.mlp.up_proj.weight": (400, 700)})
    text = tiny.recipes(paths)["iso_c"]
    (tmp_path / "r.yml").write_text(text)
    told = []
    for out in ("one", "two"):
        command = [sys.executable, "-m", "plait", "merge", "r.yml", out, "--memory", "256MiB", "--quiet", "--cache", "cache"]
        subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
        told.append(plait.report(tmp_path / out)["memory"])
    assert "torch was loaded" in told[0]["not_judged"]
    assert (told[1]["judged"], told[1]["not_judged"]) == (True, "")


def test_a_stopped_run_leaves_no_report(recipe: Callable[[str], Path], tmp_path: Path):
    """There is nothing to publish it with, and the listeners hear that it was stopped."""
    heard: list[str] = []

    def hear(event: dict[str, Any]) -> None:
        heard.append(event["event"])
        if event["event"] == "tensor_complete":
            stop.set()

    import threading

    stop = threading.Event()
    with pytest.raises(Stopped):
        plait.merge(recipe("ties"), tmp_path / "out", TWO, on_event=hear, stop=stop)
    assert heard[-1] == "stopped"
    assert not (tmp_path / "out").exists()


# -- what is recorded stays small -------------------------------------------------------------------
def test_kinds_of_tensor_are_bounded():
    """A hundred thousand tensors of different names are a few hundred groups."""
    recording = Recording(Watch())
    for number in range(3 * MOST_GROUPS):
        recording._group(Component(f"odd{'x' * number}", 0, ()))
    assert len(recording.groups) == MOST_GROUPS + 1
    for layer in range(1000):
        recording._group(Component(f"model.layers.{layer}.w", 0, ()))
    assert len(recording.groups) == MOST_GROUPS + 1


# -- the verdict ------------------------------------------------------------------------------------
def test_tolerances():
    """Peaks may be under-used within 25 % and a little, never exceeded; times differ by a factor of two and a second."""
    mib = 1 << 20
    assert judged_peak(100 * mib, 90 * mib, whole=True)
    assert not judged_peak(100 * mib, 100 * mib + 1, whole=True)
    assert not judged_peak(100 * mib, 60 * mib, whole=True)
    assert judged_peak(100 * mib, 60 * mib, whole=False)
    assert judged_peak(10 * mib, 1 * mib, whole=True)
    assert judged_time(2.0, 3.9)
    assert judged_time(0.1, 1.0)
    assert not judged_time(2.0, 4.1)
    assert not judged_time(4.1, 2.0)


def test_a_wrong_prediction_is_one_line_that_names_the_group():
    """What was off, by how much, and where most of it is."""
    groups = [{"label": "slow", "predicted_s": 1.0, "measured_s": 9.0}, {"label": "right", "predicted_s": 3.0, "measured_s": 3.1}]
    memory = {"predicted_peak_bytes": 1 << 30, "measured_peak_bytes": 2 << 30, "judged": True, "not_judged": "", "peak_group": "wide"}
    found = verdict({"predicted_work_s": 4.0, "measured_work_s": 12.1}, memory, groups, why_not="", whole=True)
    assert not found["right"]
    peak, time = found["sentences"]
    assert "2 GiB of memory instead of 1 GiB, most of it" in peak
    assert peak.endswith("most of it in wide")
    assert "12.1 s instead of 4.0 s" in time
    assert time.endswith("most of it in slow")
    assert not any("\n" in sentence for sentence in found["sentences"])


# -- plait report -----------------------------------------------------------------------------------
def test_the_command(recipe: Callable[[str], Path], tmp_path: Path):
    """Lines of 80 columns that name what a person looks for; the same as JSON; the schema."""
    plait.merge(recipe("ties"), tmp_path / "out", TWO)
    shown = CliRunner().invoke(main, ["report", str(tmp_path / "out")], env={"COLUMNS": "80"})
    assert shown.exit_code == 0, shown.output
    assert all(len(line) <= 80 for line in shown.stdout.splitlines())
    for word in ("promised", "measured", "peak memory", "worker 1", "writer 1", "slowest", "lm_head.weight", "2 x model.layers.*.mlp.up_proj.weight", "Python"):
        assert word in shown.stdout, word
    data = CliRunner().invoke(main, ["report", str(tmp_path / "out"), "--format", "json"])
    assert json.loads(data.stdout) == plait.report(tmp_path / "out")
    schema = CliRunner().invoke(main, ["report", "--schema"])
    jsonschema.Draft202012Validator.check_schema(json.loads(schema.stdout))


def test_reports_that_cannot_be_read(recipe: Callable[[str], Path], tmp_path: Path):
    """One sentence that names the file and what to do, whatever lies there."""
    plait.merge(recipe("linear"), tmp_path / "out", TWO)
    path = tmp_path / "out" / REPORT_NAME
    good = json.loads(path.read_text())
    assert "give the folder of an output" in CliRunner().invoke(main, ["report"]).stderr
    for text, words in [
        (None, "has no report.json"),
        ("{", "report.json"),
        ("{}", "is not a report of plait"),
        (json.dumps({**good, "version": 9}), "of version 9"),
        (json.dumps({**good, "memory": 3}), "is damaged"),
        (json.dumps({**good, "timeline": {"columns": ["at_s", "private_bytes"], "points": [["x", 1]], "lanes": []}}), "is damaged"),
    ]:
        path.unlink(missing_ok=True)
        if text is not None:
            path.write_text(text)
        result = CliRunner().invoke(main, ["report", str(tmp_path / "out")])
        assert result.exit_code == 2, (text, result.output)
        (line,) = result.stderr.splitlines()
        assert words in line
    with pytest.raises(CheckpointError):
        plait.report(tmp_path / "nowhere")


def test_text_of_strangers_is_harmless(recipe: Callable[[str], Path], tmp_path: Path):
    """Control characters in a report do not reach the terminal."""
    plait.merge(recipe("linear"), tmp_path / "out", TWO)
    found = plait.report(tmp_path / "out")
    found["groups"][0]["label"] = "a\x1b[2Jb"
    found["title"] = "x\x07"
    assert not {"\x1b", "\x07"} & set(to_text(found))


def test_the_documents_tell_every_key():
    """docs/report-format.md describes what the schema has."""
    text = (Path(__file__).parents[1] / "docs" / "report-format.md").read_text()
    for key, value in SCHEMA["properties"].items():
        assert f"`{key}`" in text
        inner = value.get("properties") or value.get("items", {}).get("properties") or {}
        assert all(f"| `{k}` |" in text for k in inner), key
